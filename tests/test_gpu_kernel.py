"""The kernel of `benchmarks/gpu_kernel.py`, interpreted on the CPU, against `simulate`: the same networks to float32
rounding."""

import importlib.util
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.ensemble.estimate import add_theory, prepare
from kernel_eft_jax.ensemble.samplers import BlockSampler
from kernel_eft_jax.ensemble.simulate import simulate

spec = importlib.util.spec_from_file_location("gpu_kernel", Path(__file__).parents[1] / "benchmarks" / "gpu_kernel.py")
gpu_kernel = importlib.util.module_from_spec(spec)
sys.modules["gpu_kernel"] = gpu_kernel
spec.loader.exec_module(gpu_kernel)

EPS = jnp.array([0.3, 0.4, 0.2, 0.5, 0.3])


def problem(K0, control, width=16):
    """Five layers, each with a step of its own, with bias and decay; layers 0, 2 and 5 are saved."""
    model, depth = keft.Model(keft.Erf(), 1.7, 0.2, decay=0.5), len(EPS)
    return add_theory(prepare(model, K0, width, depth, EPS, BlockSampler(), [0, 2, 5]), model, K0, depth, EPS, control)[
        0
    ]


def kernel(inputs):
    """Inputs of unlike lengths and correlations of 0.3 to 0.5."""
    lengths = 1 + 0.2 * np.arange(inputs)
    return np.outer(lengths, lengths) * (0.4 + 0.6 * np.eye(inputs)) + 0.1


def networks(count):
    return jnp.arange(count, dtype=jnp.uint32)


@jax.jit
def chip(problem, key, networks):
    return gpu_kernel.on_chip(problem, key, networks, interpret=True)


@jax.jit
def plain(problem, key, networks):
    return simulate(problem, key, networks, gpu_kernel.seen)


@pytest.mark.parametrize(
    ("inputs", "control"),
    [
        pytest.param(2, True, marks=pytest.mark.thorough),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in ((2, False), (1, True), (3, True))),
    ],
)
def test_the_networks_are_those_of_simulate(inputs, control, key):
    """All sums of 32 networks at three depths to 3e-5: float32 rounds to 6e-8, and 5 layers of sums over 16 neurons
    carry it on. A stream that is multiplied by 1.001 a in each layer is seen."""
    p = problem(kernel(inputs), control)
    found, doubtful = chip(p, key, networks(32))
    expected = plain(p, key, networks(32))
    assert found.shape == expected.shape
    assert not doubtful.any()
    scale = np.abs(np.asarray(expected)).max(axis=(0, 2), keepdims=True)
    assert (np.abs(np.asarray(found - expected)) < 3e-5 * scale).all()
    other = plain(eqx.tree_at(lambda p: p.skip, p, 1.001 * p.skip), key, networks(32))
    assert (np.abs(np.asarray(found - other)) > 3e-5 * scale).any(axis=(0, 2)).all()


@pytest.mark.thorough
def test_bits_do_not_depend_on_which_networks_are_asked_for(key):
    p = problem(kernel(2), False)
    whole, _ = chip(p, key, networks(64))
    part, _ = chip(p, key, networks(64)[32:])
    np.testing.assert_array_equal(whole[:, :, 32:], part)


@pytest.mark.thorough
def test_near_copies_are_marked(key):
    """A repeated input, and one that is near: there `simulate` takes the factor from the features, which the kernel
    does not."""
    for K0 in (np.ones((2, 2)), np.array([[1, 1 - 1e-5], [1 - 1e-5, 1]])):
        assert chip(problem(K0, False), key, networks(32))[1].all()


def test_what_the_kernel_does_not_take(key):
    p = problem(kernel(2), False)
    two = eqx.tree_at(lambda p: p.model, p, keft.Model([keft.Dense(1.0), keft.Tanh(), keft.Dense(2.0)]))
    for refused, count in ((problem(kernel(2), False, width=24), 32), (p, 33), (two, 32)):
        with pytest.raises(ValueError, match="take `simulate`"):
            gpu_kernel.on_chip(refused, key, networks(count), interpret=True)
