"""Matrix products keep all bits of their dtype: accelerators round factors of products that do not ask for it."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.closures.pair_tower import PairTower
from kernel_eft_jax.ensemble.control_variates import differences
from kernel_eft_jax.ensemble.estimate import add_theory, prepare
from kernel_eft_jax.ensemble.factors import WRITTEN_OUT, gram
from kernel_eft_jax.ensemble.simulate import simulate

K0 = jnp.asarray([[1.0, 0.3], [0.3, 0.8]], jnp.float32)
MLP = keft.Model([keft.RMSNorm(), keft.Dense(1.0), keft.GELU(), keft.Dense(2.0)])


def products(program) -> Iterator[jax.extend.core.JaxprEqn]:
    """All matrix products of a traced program, inner programs included."""
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)
        ):
            if isinstance(inner, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr):
                yield from products(getattr(inner, "jaxpr", inner))


def rounded_products(function, *arguments) -> list[str]:
    """The matrix products of numbers that do not ask for full precision."""
    found = products(jax.make_jaxpr(function)(*arguments).jaxpr)
    highest = jax.lax.Precision.HIGHEST
    floating = (e for e in found if jnp.issubdtype(e.outvars[0].aval.dtype, jnp.floating))
    return [str(e) for e in floating if e.params["precision"] not in (highest, (highest, highest))]


def test_a_product_that_rounds_is_seen():
    """The walk sees a product at JAX's default precision inside jit, scan and cond."""

    def inner(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x)

    assert len(rounded_products(lambda x: jax.lax.scan(lambda x, _: (jax.jit(inner)(x), None), x, None, 2)[0], K0)) == 1
    assert not rounded_products(lambda x: jnp.matmul(x, x, precision="highest"), K0)


@pytest.mark.parametrize(
    ("model", "closure"),
    [
        pytest.param(keft.Model(keft.Tanh(), 2.0), keft.HermiteTower(4), marks=pytest.mark.thorough),
        pytest.param(keft.Model(keft.ReLU(), 2.0), keft.HermiteTower(4), marks=pytest.mark.thorough),
        (keft.Model(keft.Tanh(), 2.0), PairTower(4)),
        pytest.param(keft.Model(keft.ELU(), 2.0), keft.SigmaKernel(4), marks=pytest.mark.thorough),
        (MLP, keft.GOnly()),
    ],
    ids=["tower", "tower of a kink", "tower of a pair", "sigma-kernel", "block"],
)
def test_theory_asks_for_full_precision(model, closure):
    """One layer, its rate of change, what is read off it, its memory and its errors."""

    def everything(model, k, dt):
        state = closure.init(model, k)
        memory = closure.follow(model, state, closure.remember(model, state), dt)
        return (
            closure.step(model, state, dt),
            closure.drift(model, state),
            closure.readings(model, state),
            closure.recall(model, state, memory),
            closure.error(model, k),
        )

    k, dt = K0[np.triu_indices(2)], jnp.asarray(0.1, jnp.float32)
    assert rounded_products(everything, model, k, dt) == []


@pytest.mark.parametrize(
    ("control", "inputs"),
    [
        pytest.param(True, 2, marks=pytest.mark.thorough),
        pytest.param(True, WRITTEN_OUT + 1, marks=pytest.mark.thorough),
        (False, 2),
        pytest.param(False, WRITTEN_OUT + 1, marks=pytest.mark.thorough),
    ],
    ids=["block law, few", "block law, many", "weights, few", "weights, many"],
)
def test_sampling_asks_for_full_precision(inputs, control, key):
    """A batch of networks and its control variates, written out for few inputs and by matrix products for many."""
    sampler, k0 = keft.BlockSampler() if control else keft.WeightSampler(), np.eye(inputs) + 0.3
    problem = prepare(MLP, k0, 8, 2, 0.5, sampler, [2])
    problem, _ = add_theory(problem, MLP, k0, 2, 0.5, control)

    def measure(state, path):
        G = gram(state.phi)
        return differences(state.control, G, G, G, path) if control else G

    assert rounded_products(lambda p: simulate(p, key, jnp.arange(2, dtype=jnp.uint32), measure), problem) == []
