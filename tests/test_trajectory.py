"""`solve`: continuum and layers, their derivatives, and what it says when something is wrong.

Oracles: kernels of residual blocks by neural-tangents and by a NumPy trapezoidal rule, frozen; Taylor's theorem for the
distance between layers and continuum; central differences for derivatives, between themselves independent modes.
"""

import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.closures import base, tower_degree
from kernel_eft_jax.trajectory.failures import checked

PUBLISHED_K0 = 0.6 + 1.4 * np.eye(4)
CUBE = keft.Model(
    keft.Polynomial(jnp.array([0.0, 0.0, 0.0, 1.0])), C_W=1.0
)  # K0' = 15 K0^3 is infinite at t = 1 / (30 K0(0)^2)

# neural-tangents 0.6.5, jax 0.4.23, float64: 40 residual blocks x + 0.05 W act(x); tanh by a NumPy trapezoidal rule.
RESIDUAL_KERNELS = {
    "erf": (keft.Erf(), 2.1190259952, 0.6309188276),
    "relu": (keft.ReLU(), 2.2100660203, 0.7025309816),
    "gelu": (keft.GELU(), 2.1937450994, 0.6807098139),
    "sin": (keft.Sin(), 2.0983331096, 0.6166810639),
    "tanh": (keft.Tanh(), 2.1048800971, 0.6279899036),
}


# The kernel maps of the slow ones meet neural-tangents in test_model.
@pytest.mark.parametrize(
    "name", ["erf", *(pytest.param(name, marks=pytest.mark.slow) for name in RESIDUAL_KERNELS if name != "erf")]
)
def test_layers_give_the_kernels_of_residual_blocks(name):
    activation, diagonal, off_diagonal = RESIDUAL_KERNELS[name]
    model = keft.Model(activation, C_W=2.0)
    solution = keft.solve(model, PUBLISHED_K0[:2, :2], layers=40, eps=0.05, closure=keft.GOnly())
    np.testing.assert_allclose(solution.K0[0], [[diagonal, off_diagonal], [off_diagonal, diagonal]], atol=2e-10)


@pytest.mark.thorough
def test_layers_approach_the_continuum_at_first_order_in_eps_squared():
    model, K0 = keft.Model(keft.Sin(), C_W=1.5, C_b=0.2), np.array([[1.0]])
    exact = keft.solve(model, K0, 1.0, closure=keft.GOnly())
    counts = (50, 100)
    for name in ("K0", "V4", "K1"):
        errors = [
            np.abs(
                getattr(keft.solve(model, K0, layers=L, eps=L**-0.5, closure=keft.GOnly()), name) - getattr(exact, name)
            ).max()
            for L in counts
        ]
        np.testing.assert_allclose(-np.diff(np.log2(errors)), 1.0, atol=0.1, err_msg=name)


def test_saved_layers_are_the_layers_of_one_run():
    model, eps = keft.Model(keft.Sin(), C_W=2.0), 0.5
    every = keft.solve(model, np.array([[1.0]]), layers=range(9), eps=eps, closure=keft.GOnly())
    some = keft.solve(model, np.array([[1.0]]), layers=[1, 4, 6], eps=eps, closure=keft.GOnly())
    np.testing.assert_allclose(some.packed.V4, every.packed.V4[np.array([1, 4, 6])], rtol=1e-14)
    assert some.stats["num_steps"] == 6


def test_layers_that_are_not_saved_take_no_memory():
    """The covariances of two inputs, 3 x 3, are kept at the two saved layers, and at none of the 499 between them."""

    def run(C_W):
        return keft.solve(keft.Model(keft.Linear(), C_W), np.eye(2), layers=[1, 501], eps=0.1, closure=keft.GOnly()).V4

    program = str(jax.make_jaxpr(run)(1.0))
    assert "[2,3,3]" in program
    assert not re.search(r"\[50\d,3,3\]", program)


# --- derivatives ------------------------------------------------------------------------------------------------------

# One vector for everything that a result can be differentiated in: C_W, C_b, K0, two times, a scale.
POINT = np.array([1.8, 0.2, 1.5, 0.5, 1.0, 0.9])
ACCURATE = {"stepsize_controller": diffrax.PIDController(rtol=1e-10, atol=1e-10)}


@pytest.mark.thorough
def test_the_depth_derivative_at_the_input_is_the_kernel_map():
    """In both modes, where t = 0 is the only depth."""
    model = keft.Model(keft.Erf(), C_W=1.5, C_b=0.1, decay=0.2)
    rate = model.Q([[1.3]])[0, 0] - 0.2 * 1.3
    for mode, adjoint in ((jax.jacrev, None), (jax.jacfwd, diffrax.ForwardMode())):
        K0 = lambda ts: keft.solve(model, [[1.3]], ts, closure=keft.GOnly(), adjoint=adjoint).K0[0, 0, 0]  # noqa: B023, E731
        np.testing.assert_allclose(mode(K0)(jnp.zeros(1)), [rate], rtol=1e-8)


def test_thin_layers_are_right_or_refused():
    """K0 of linear networks is (1 + eps^2 C_W)^l. In float32 the additions of 100,000 layers of eps = 1e-4 are lost."""
    model = keft.Model(keft.Linear(), C_W=1.5)
    for dtype, eps, depth, rtol in ((np.float64, 1e-4, 100_000, 1e-10), (np.float32, 4e-3, 100_000, 2e-4)):
        found = keft.solve(model, np.ones((1, 1), dtype), layers=[depth], eps=eps, closure=keft.GOnly())
        np.testing.assert_allclose(found.K0.ravel(), np.exp(depth * np.log1p(1.5 * eps**2)), rtol=rtol)
    single = {"K0": np.ones((1, 1), np.float32), "closure": keft.GOnly()}
    keft.solve(model, **single, layers=[3000], eps=1e-3)
    for solve in (keft.solve, jax.jit(keft.solve, static_argnames=("layers", "eps")), keft.solve_pairs):
        with pytest.raises(ValueError, match=r"`eps` makes 4,000 layers so thin.* rounding of float32.*ts=\[0\.004\]"):
            solve(model, **single, layers=(4000,), eps=1e-3)


WEIGHTS = np.array([0.7, -0.3, 0.2, 0.5])


def test_the_input_alone_is_a_depth(monkeypatch):
    """At layer 0 no layer has acted: G is a Wishart matrix, and without a layer the lowest degree is enough."""
    K = np.array([[1.2, 0.4], [0.4, 0.8]])
    solution = keft.solve(keft.Model(keft.Linear(), 1.0), K, layers=[0], eps=0.5, closure=keft.GOnly())
    np.testing.assert_allclose(solution.V4[0], np.einsum("ac,bd->abcd", K, K) + np.einsum("ad,bc->abcd", K, K))
    monkeypatch.setattr(tower_degree, "_shares", lambda tower, model, k, dt, degrees: np.zeros(len(degrees)) + dt.sum())
    assert keft.HermiteTower().settled(keft.Model(keft.Tanh(), 1.0), jnp.ones(1), jnp.zeros(0)).degree == 4


def reading(point, **options):
    """One number that depends on all of it: the mean, the covariance and its correction, at both times."""
    C_W, C_b, K0, first, last, scale = point
    model = keft.Model(keft.Scaled(keft.Erf(), input_scale=scale), C_W=C_W, C_b=C_b)
    depth = {"layers": (2, 4)} if "eps" in options else {"ts": jnp.stack([first, last])}
    s = keft.solve(model, K0[None, None], **depth, closure=keft.GOnly(), **options)
    return jnp.concatenate([s.K0[:1].ravel(), s.V4.ravel(), s.K1[1:].ravel()]) @ WEIGHTS


def central_differences(function, point, step=1e-3):
    """Fourth-order central differences, coordinate by coordinate."""
    near, far = (
        np.array([function(point + shift) - function(point - shift) for shift in size * np.eye(len(point))])
        for size in (step, 2 * step)
    )
    return (8 * near - far) / (12 * step)


@pytest.fixture(scope="module")
def differences():
    compiled = jax.jit(lambda p: reading(p, **ACCURATE))
    return central_differences(lambda p: float(compiled(p)), POINT)


@pytest.mark.parametrize(
    ("mode", "adjoint"),
    [
        # In CI a linear network has this adjoint's derivatives in test_gradients.
        pytest.param(jax.grad, None, marks=pytest.mark.slow),
        # In CI test_sensitivity differentiates so; below, the mean has the derivative by the depth.
        pytest.param(jax.jacfwd, diffrax.ForwardMode(), marks=pytest.mark.slow),
        pytest.param(jax.jacfwd, diffrax.DirectAdjoint(), marks=pytest.mark.slow),
    ],
    ids=["default-reverse", "forward", "direct"],
)
def test_continuum_derivatives_agree_with_central_differences(differences, mode, adjoint):
    gradient = jax.jit(mode(lambda p: reading(p, adjoint=adjoint, max_steps=256, **ACCURATE)))(POINT)
    np.testing.assert_allclose(gradient, differences, atol=1e-7)


# In CI test_gradients differentiates layers of the same closure, by every parameter and every eps.
@pytest.mark.slow
def test_layer_derivatives_agree_with_central_differences():
    def by_layers(p):
        return reading(p, eps=p[3])

    compiled = jax.jit(by_layers)
    expected = central_differences(lambda p: float(compiled(p)), POINT)
    for mode in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(mode(by_layers))(POINT), expected, atol=1e-8)


def test_depth_derivative_of_the_mean_is_the_kernel_map():
    model = keft.Model(keft.Sin(), C_W=2.0, C_b=0.1)
    how = {"closure": keft.GOnly(), "adjoint": diffrax.ForwardMode()}

    @jax.jit
    def with_slope(t):
        return jax.jvp(lambda t: keft.solve(model, np.array([[1.0]]), t[None], **how).K0[0], (t,), (1.0,))

    K0, slope = with_slope(1.0)
    np.testing.assert_allclose(slope, model.Q(K0), rtol=1e-6)


class CountingGOnly(keft.GOnly):
    """Says when Python runs its equations, which is when JAX traces them."""

    traces: list = eqx.field(static=True)

    def step(self, model, state, dt):
        self.traces.append(1)
        return super().step(model, state, dt)

    def drift(self, model, state):
        self.traces.append(1)
        return super().drift(model, state)


@pytest.mark.parametrize(
    ("depth", "new"),
    [
        pytest.param({"ts": [0.5, 1.0]}, {"ts": [0.4, 0.9]}, marks=pytest.mark.thorough),
        pytest.param({"ts": [0.5], "dt0": 0.1}, {"ts": [0.5], "dt0": 0.2}, marks=pytest.mark.thorough),
        ({"layers": [2, 4], "eps": 0.5}, {"layers": [2, 4], "eps": 0.4}),
    ],
    ids=["continuum", "first step", "layers"],
)
def test_new_values_do_not_compile_again(depth, new):
    closure, K0 = CountingGOnly([]), np.array([[1.0]])
    keft.solve(keft.Model(keft.Sin(), C_W=1.0), K0, closure=closure, **depth)
    traced = len(closure.traces)
    assert traced > 0
    keft.solve(keft.Model(keft.Sin(), C_W=2.0, C_b=0.3), 2 * K0, closure=closure, **new)
    assert len(closure.traces) == traced


# --- what it says -----------------------------------------------------------------------------------------------------


LAYERS = {"ts": None, "layers": 2, "eps": 0.5}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"layers": [1], "eps": 0.5},
            r"`ts` holds depth times of the continuum, and `layers` with `eps` ask for layers",
        ),
        ({"eps": 0.5}, r"pass either `ts` alone, or `layers=\[...\]` and `eps`"),
        ({"ts": None}, r"`ts` is missing: depth times of the continuum; or `layers` and `eps`"),
        ({"ts": None, "layers": 2}, r"`eps` is missing: layers need `layers` and `eps`, and only `layers` is given"),
        ({"ts": None, "eps": 0.1}, r"`layers` is missing: layers need `layers` and `eps`, and only `eps` is given"),
        ({"ts": None}, r"`ts` is missing.*; or `layers` and `eps`"),
        (
            LAYERS | {"layers": [1.5]},
            r"`layers` must be a list of whole layer numbers in increasing order, but is \[1.5\]",
        ),
        (LAYERS | {"layers": [3, 1]}, r"`layers` must be a list of whole layer numbers in increasing order"),
        (LAYERS | {"layers": [-1]}, r"`layers` must be 0 or more, but is \[-1\]"),
        (LAYERS | {"layers": 10**20}, r"`layers` must be"),
        ({"ts": [0.5, 0.25]}, r"`ts` must be .* strictly increasing"),
        ({"ts": [0.5, 0.5]}, r"`ts` must be .* strictly increasing"),
        ({"ts": [-0.25]}, r"`ts` must be .* not negative"),
        ({"ts": [np.inf]}, r"`ts` must be finite"),
        ({"ts": []}, r"`ts` must be a list of depth times"),
        ({"K0": [[1.0, np.nan], [np.nan, 1.0]]}, r"`K0` must be finite, but entry \[0, 1\] is nan"),
        ({"K0": [[1.0, 0.0]]}, r"`K0` must be a square matrix .* shape \(1, 2\)"),
        ({"K0": [[1.0, 0.2], [0.1, 1.0]]}, r"`K0` must be symmetric, but entry \[0, 1\] is 0.2 and \[1, 0\] is 0.1"),
        ({"K0": [[1.0, 0.0], [0.0, -1.0]]}, r"`K0` must have positive variances .* entry \[1, 1\] is -1.0"),
        ({"K0": [[1.0, 1.5], [1.5, 1.0]]}, r"`K0` must be positive semi-definite, but its smallest eigenvalue is -0.5"),
        (LAYERS | {"eps": 0.0}, r"`eps` must be a positive number, or one for each of the 2 layers, but is 0.0"),
        (LAYERS | {"eps": [0.1, -0.1]}, r"`eps` must be a positive number"),
        (LAYERS | {"eps": np.nan}, r"`eps` must be a positive number, .* but is nan"),
        (LAYERS | {"eps": "0.1 m"}, r"`eps` must be numbers, but is '0.1 m'"),
        (LAYERS | {"eps": [0.1, 0.1, 0.1]}, r"`eps` must be .* one for each of the 2 layers, but has shape \(3,\)"),
        (LAYERS | {"solver": diffrax.Euler()}, r"`solver`, .* belong to the continuum"),
        ({"max_steps": 0}, r"`max_steps` must be a whole number, 1 or more, but is 0"),
        ({"dt0": -0.1}, r"`dt0` must be a finite number greater than zero, but is -0.1"),
    ],
)
def test_bad_arguments_are_named_before_any_work(change, says):
    arguments = {"K0": [[1.0]], "ts": [0.25]} | change
    with pytest.raises(ValueError, match=says):
        keft.solve(CUBE, **arguments)


# Kernels of linear networks grow by 1 + 1e18 a layer here, and in steps of 25 / C_W by 1e4 and more a step.
@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        pytest.param(
            keft.Model(keft.Linear(), C_W=1.0),
            {"max_steps": 8, "stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.01},
            r"stopped at depth t = 0\.08 of 0.2.*Try increasing `max_steps`",
            marks=pytest.mark.thorough,
        ),
        pytest.param(  # K0' = 15 K0^3 from one ends at t = 1/30
            CUBE, {"max_steps": 256}, r"stopped at depth t = 0\.03333.* of 0.2", marks=pytest.mark.slow
        ),
        (keft.Model(keft.Linear(), C_W=1e20), {"layers": [1, 2, 20], "eps": 0.1}, r"K0\[0, 0\] at layer 20"),
        # diffrax calls a run of constant steps through NaN successful.
        pytest.param(
            keft.Model(keft.Linear(), C_W=1e4),
            {"stepsize_controller": diffrax.StepTo(np.linspace(0, 0.2, 81))},
            r"K0\[0, 0\] at t = 0.2",
            marks=pytest.mark.thorough,
        ),
    ],
    ids=["steps", "adaptive", "layers", "constant-steps"],
)
def test_a_run_that_blows_up_says_where(model, options, says):
    K0 = np.array([[0.1, 0.0], [0.0, 1.0]])
    options = ({} if "layers" in options else {"ts": [0.01, 0.02, 0.2]}) | options | {"closure": keft.GOnly()}
    with pytest.raises(RuntimeError, match=says):
        keft.solve(model, K0, **options)
    partial = keft.solve(model, K0, throw=False, **options)
    assert np.isfinite(partial.K0[:2]).all()
    assert not np.isfinite(partial.K0[2]).all()


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        (
            lambda s: s.packed.V4,
            -2.0,
            r"no longer valid: the variance V4\[0, 0, 0, 0\] at layer 1 is -2, below zero\. Take the closure",
        ),
        (
            lambda s: s.packed.V4,
            0.0,
            r"square of K0\[0, 0\] = 1\.5, at layer 1, is below the smallest number of float64",
        ),
        (lambda s: s.packed.K1, np.nan, r"no longer finite: K1\[0, 0\] at layer 1 is nan"),
        (
            lambda s: (s.packed.K1, s.model.branch[1].C_W),
            np.inf,
            r"not finite from the input kernel on\. .*: Q\[0, 0\] at K\[0, 0\] = 1 is inf",
        ),
        (
            lambda s: s.stats["expectation_error"],
            0.3,
            r"estimated relative error of 0\.3, above 0\.\d+: the numbers are not rel",
        ),
        (lambda s: s.stats["expectation_error"], np.nan, r"estimated relative error of nan, above"),
    ],
)
def test_a_solution_that_is_no_theory_gets_a_sentence(part, value, says):
    """A number of a good solution is replaced by what may not stand there."""
    good = keft.solve(keft.Model(keft.Linear(), 2.0), [[1.0]], layers=[1], eps=0.5, closure=keft.GOnly())
    assert checked(good, jnp.ones(1)) is good
    bad = eqx.tree_at(part, good, replace_fn=lambda x: jnp.full_like(x, value))
    with pytest.raises(RuntimeError, match=says):
        checked(bad, jnp.ones(1))
    with pytest.raises(RuntimeError, match=r"input kernel is not finite in float64"):
        checked(bad, jnp.array([np.inf]))


def test_a_small_variance_below_zero_is_seen_beside_a_large_one():
    """Of inputs of variance 1 and 1e-4: V4_11,11 = -1e-8 is no rounding of its own size, 2e-8. Inside jit the sentence
    is a general one."""
    good = keft.solve(keft.Model(keft.Linear(), 2.0), np.diag([1.0, 1e-4]), layers=[1], eps=0.5, closure=keft.GOnly())
    bad = eqx.tree_at(lambda s: s.packed.V4, good, good.packed.V4.at[0, 2, 2].set(-1e-8))
    with pytest.raises(RuntimeError, match=r"the variance V4\[1, 1, 1, 1\] at layer 1 is -1e-08, below zero"):
        checked(bad, jnp.array([1.0, 0.0, 1e-4]))
    with pytest.raises(Exception, match="Run the same call outside jit"):
        eqx.filter_jit(checked)(bad, jnp.array([1.0, 0.0, 1e-4]))
    bad = eqx.tree_at(lambda s: s.packed.V4, good, good.packed.V4.at[0, 1, 1].set(-1e-4))
    with pytest.raises(RuntimeError, match=r"the variance V4\[0, 1, 0, 1\] at layer 1 is -0\.0001, below zero"):
        checked(bad, jnp.array([1.0, 0.0, 1e-4]))


@pytest.mark.thorough
@pytest.mark.parametrize("block", [keft.ReLU(), keft.RMSNorm()], ids=["relu", "norm"])
def test_squares_below_the_smallest_number_are_refused(block):
    """V4 is of the size of K0^2: for K0 = 1e-20 float32 has no such number but zero, and float64 has one."""
    model, at = keft.Model([block, keft.Dense(2.0)]), {"layers": [1], "eps": 0.5, "closure": keft.GOnly()}
    small = np.full((1, 1), 1e-20, np.float32)
    with pytest.raises(RuntimeError, match=r"of K0\[0, 0\] = .*, at .*, is below the smallest number of float32"):
        keft.solve(jax.tree.map(lambda x: x.astype(jnp.float32), model), small, **at)
    assert keft.solve(model, small.astype(np.float64), **at).V4[0, 0, 0, 0, 0] > 0


def test_squares_above_the_largest_number_are_refused():
    """K0 = 1e30 has no square in float32, at depth zero: smaller depths would not help, and float64 does."""
    model, large = keft.Model(keft.Linear(), 2.0), np.full((1, 1), 1e30)
    at = {"layers": [1], "eps": 0.5, "closure": keft.GOnly()}
    with pytest.raises(RuntimeError, match=r"above the largest number of float32\..* nearer to one\.$"):
        keft.solve(jax.tree.map(lambda x: x.astype(jnp.float32), model), large.astype(np.float32), **at)
    np.testing.assert_allclose(keft.solve(model, large, **at).K0, [[[1.5e30]]], rtol=1e-12)


@pytest.mark.thorough
def test_a_truncation_has_the_shape_of_its_quantity():
    solution, kernel_alone = (
        keft.solve(keft.Model(keft.Linear(), 1.0), np.eye(2), layers=[1], eps=0.5, closure=closure)
        for closure in (keft.HermiteTower(2), keft.GOnly())
    )
    for name in ("K0", "V4", "K1"):
        assert getattr(solution.truncation, name).shape == getattr(solution, name).shape
    assert kernel_alone.truncation is None


def test_a_stack_of_solutions_shows_itself_and_is_not_saved():
    def one(C_W):
        model = keft.Model(keft.Linear(), C_W)
        return keft.solve(model, np.eye(1), layers=[1], eps=0.5, closure=keft.GOnly(), throw=False)

    stack = jax.vmap(one)(jnp.array([1.0, 2.0, 3.0]))
    assert "a stack of 3 solutions" in repr(stack)
    with pytest.raises(ValueError, match="A stack of 3 solutions has no Dataset: take one of them"):
        stack.to_xarray()


def test_a_run_that_blows_up_under_jit_raises():
    model = keft.Model(keft.Linear(), C_W=1e20)
    with pytest.raises(Exception, match="no longer finite"):
        jax.block_until_ready(
            jax.jit(lambda K0: keft.solve(model, K0, layers=[20], eps=0.1, closure=keft.GOnly()).K0)(np.eye(1))
        )


@pytest.mark.parametrize(
    ("closure", "inputs", "cheaper"),
    [
        # 20100^2 pairs of pairs with 30 x 31 modes: 3 TB, and sixteen times that in a step
        (keft.HermiteTower(30), 200, ", or take a lower degree or GOnly()"),
        pytest.param(keft.HermiteTower(), 200, ", or take a lower degree or GOnly()", marks=pytest.mark.thorough),
        (keft.SigmaKernel(), 200, ", or take a lower degree or GOnly()"),
        (keft.GOnly(), 1000, ""),
    ],
    ids=repr,
)
def test_what_cannot_fit_is_refused_before_any_work(closure, inputs, cheaper):
    with pytest.raises(
        MemoryError, match=rf"{type(closure).__name__}\(.* for {inputs} inputs .* needs about"
    ) as refused:
        keft.solve(keft.Model(keft.Erf(), C_W=1.0), np.eye(inputs), 1.0, closure=closure)
    assert str(refused.value).endswith(f"pairs and chosen quadruples of inputs, or save fewer depths{cheaper}.")


@pytest.mark.thorough
def test_derivatives_are_counted_in_the_memory(monkeypatch):
    """With room for the solve and for no more: reverse mode, in and outside jit, and forward mode of many parameters
    are refused before any work."""
    monkeypatch.setattr(base, "host_memory", lambda: 2**20)
    K = jnp.eye(8)

    def observe(C_W):
        return keft.solve(keft.Model(keft.Linear(), C_W), K, layers=100, eps=0.1, closure=keft.GOnly()).V4[
            0, 0, 1, 0, 1
        ]

    C_W = jnp.array(1.0)
    assert np.isfinite(jax.jit(jax.jacfwd(observe))(C_W))
    for gradient in (jax.grad(observe), jax.jit(jax.grad(observe))):
        with pytest.raises(
            MemoryError, match=r"8 inputs at 1 depths in reverse mode, which keeps 100 layers, needs about 0.0011"
        ):
            gradient(C_W)
    with pytest.raises(MemoryError, match=r"in reverse mode, which keeps 90 checkpoints, needs"):
        jax.grad(lambda C: keft.solve(keft.Model(keft.Linear(), C), K, 1.0, closure=keft.GOnly()).K1[0, 0, 1])(C_W)
    with pytest.raises(MemoryError, match=r"at 1 depths, with derivatives by 40 parameters, needs about"):
        keft.sensitivity(keft.Model(keft.Linear(), C_W), K, layers=2, eps=0.1, closure=keft.GOnly())


@pytest.mark.slow
def test_reverse_mode_keeps_what_is_told():
    """What reverse mode keeps from the way there to the way back, in bytes: 800 layers more are 800 states more, of
    36^2 numbers and some, within a third."""
    K = jnp.eye(8)

    def kept(layers):
        def observe(C_W):
            model = keft.Model(keft.Erf(), C_W)
            return keft.solve(model, K, layers=layers, eps=0.05, closure=keft.GOnly()).V4[0, 0, 1, 0, 1]

        residuals = jax.eval_shape(lambda C_W: jax.vjp(observe, C_W)[1], jnp.array(1.0))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    np.testing.assert_allclose(kept(900) - kept(100), 800 * 8 * 36**2, rtol=1 / 3)
