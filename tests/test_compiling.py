"""A second call with the same shapes compiles nothing."""

import contextlib
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.compiling import compiled_with

MODEL = keft.Model(keft.Linear(), C_W=1.0)
K0 = np.array([[1.0]])
LAYERS = {"layers": [2], "eps": 1.0}
SAMPLED = {"width": 8, "depth": 2, "eps": 1.0, "networks": 64, "key": jax.random.key(0)}
GONLY = {"closure": keft.GOnly()}


@contextlib.contextmanager
def compilations():
    """The names of the programs that JAX compiles meanwhile."""
    names: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record):
            found = re.match(r"Compiling (\S+)", record.getMessage())
            if found:
                names.append(found.group(1))

    logger, handler = logging.getLogger("jax"), Handler()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def experiment():
    return keft.Experiment(MODEL, K0, width=8, **LAYERS)


def sampled():
    return keft.estimate(MODEL, K0, **SAMPLED, save_at=[2], progress=False)


CALLS = {
    "Q": lambda: MODEL.Q(K0),
    "solve, layers": lambda: keft.solve(MODEL, K0, **LAYERS).packed,
    "solve, two inputs": lambda: keft.solve(keft.Model(keft.Erf(), 1.0), np.eye(2), **LAYERS, **GONLY).packed,
    "solve, continuum": lambda: keft.solve(MODEL, K0, [0.1], **GONLY).packed,
    "solve_pairs": lambda: keft.solve_pairs(MODEL, np.eye(2), **LAYERS, **GONLY, progress=False).K1,
    "estimate": lambda: sampled().K1,
    "fisher": lambda: keft.fisher(experiment(), ["C_W"], networks=100, **GONLY).matrix,
    "fit": lambda: keft.fit(sampled(), experiment(), ["C_W"], **GONLY, progress=False).values,
    "sensitivity": lambda: keft.sensitivity(MODEL, K0, **LAYERS, **GONLY).packed,
    "gradient": lambda: jax.grad(lambda m: keft.solve(m, K0, **LAYERS, **GONLY).K1.sum())(MODEL).C_W,
    "sample_kernels": lambda: keft.sample_kernels(MODEL, K0, **SAMPLED),
    "mean_source": lambda: keft.mean_source(sampled()).value,
}


# Quick: one call of theory and one of sampling: the others take programs of their own.
QUICK = ("Q", "solve, layers", "estimate")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.thorough) for name in CALLS if name not in QUICK)]
)
def test_a_second_call_compiles_nothing(name):
    """A second call with equal shapes compiles no operation, for every way of making the call."""
    jax.block_until_ready(jax.tree.leaves(CALLS[name]()))
    with compilations() as second:
        jax.block_until_ready(jax.tree.leaves(CALLS[name]()))
    assert second == []


def test_an_option_that_xla_does_not_know_is_left_out():
    assert compiled_with(lambda x: 2 * x, xla_cpu_no_such_option=True)(1.0) == 2.0


def test_a_full_memory_is_not_taken_for_an_unknown_option(monkeypatch):
    """A device whose memory is full says nothing of options: the error is raised, and the next call asks again."""
    jit = jax.jit

    def full(function, **kwargs):
        if function is jnp.negative:  # with which the options are tried
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes.")
        return jit(function, **kwargs)

    def negative(x):
        return -x

    known = {"xla_cpu_use_fusion_emitters": True}
    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", full)
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            compiled_with(negative, **known)
    assert compiled_with(negative, **known)(1.0) == -1.0


def test_what_jax_compiles_is_seen():
    """The names above are those of the programs that JAX compiles."""

    def seen(x):
        return x + 1

    with compilations() as names:
        jax.jit(seen)(1.0)
    assert any("seen" in name for name in names)
