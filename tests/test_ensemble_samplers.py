r"""One layer of the samplers against NumPy in float64, from the same random numbers, at widths and numbers of inputs of
every kind.

$$S = \frac1n s s^T, \qquad \eta = L z, \quad L L^T = C_b + C_W S \qquad \text{or} \qquad \eta = W s + b$$
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel_eft_jax.activations import Tanh
from kernel_eft_jax.ensemble import BlockSampler, WeightSampler
from kernel_eft_jax.ensemble.factors import gram, mix
from kernel_eft_jax.ensemble.normals import network_keys
from kernel_eft_jax.ensemble.samplers import as_rows, draw_hidden, draw_last, draw_rows
from kernel_eft_jax.kernel_maps import GLU, Dense
from kernel_eft_jax.model import Model
from kernel_eft_jax.pairs import pairs

NETWORKS = 3
SHAPES = [(1, 1), (1, 7), (2, 64), (3, 9), (17, 40)]  # inputs, neurons: each with a path of its own
SHAPES += [pytest.param(*shape, marks=pytest.mark.slow) for shape in [(4, 8), (8, 65), (9, 20), (16, 23)]]
MODEL = Model(Tanh(), jnp.float32(1.7), jnp.float32(0.3))


@partial(jax.jit, static_argnums=(1, 2, 3))
def draw(key, inputs, width, sampler=None):
    """phi of some networks, and the random numbers of a layer."""
    keys = network_keys(key, jnp.arange(NETWORKS, dtype=jnp.uint32))
    phi = as_rows(draw_rows(keys, jnp.uint32(0), inputs, width), (inputs, width, NETWORKS))
    return phi, sampler and draw_last(sampler, MODEL, keys, jnp.uint32(3), inputs, width)


@partial(jax.jit, static_argnums=0)
def outputs(sampler, phi, noise):
    """The outputs of the matrix that reads tanh(phi)."""
    last = MODEL.sections[-1]
    read = sampler.reads(last.dense, lambda: last.features(phi))
    return sampler.outputs(last.dense, read, noise, (phi.shape[1], phi.shape[1]))


def double(x):
    return np.moveaxis(np.asarray(x, np.float64), -1, 0)  # networks first


@pytest.mark.parametrize(("inputs", "width"), SHAPES)
def test_kernels_sum_over_every_neuron_once(key, inputs, width):
    phi, _ = draw(key, inputs, width)
    x, (a, b) = double(phi), pairs(inputs)
    np.testing.assert_allclose(
        double(jax.jit(gram)(phi)), (x @ x.swapaxes(1, 2) / width)[:, a, b], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("inputs", "width"), SHAPES)
def test_increments_of_the_block_law(key, inputs, width):
    """L z with NumPy's Cholesky factor of C_b + C_W S, and z the normals of the layer, each in its place once."""
    phi, noise = draw(key, inputs, width, BlockSampler())
    S = np.tanh(double(phi)) @ np.tanh(double(phi)).swapaxes(1, 2) / width
    z = double(as_rows(noise, phi.shape))
    flat = np.concatenate([np.asarray(noise).real, np.asarray(noise).imag])[: inputs * width]
    assert np.array_equal(z.astype(np.float32), np.moveaxis(flat.reshape(phi.shape), -1, 0))
    eta = outputs(BlockSampler(), phi, noise)
    np.testing.assert_allclose(double(eta), np.linalg.cholesky(0.3 + 1.7 * S) @ z, atol=3e-4)


@pytest.mark.parametrize(("inputs", "width"), SHAPES)
def test_increments_by_weights(key, inputs, width):
    """W s + b with n + 1 numbers for each neuron, none used twice: C_W / n for the first n of them, C_b for the
    last."""
    phi, noise = draw(key, inputs, width, WeightSampler())
    z = np.asarray(noise, np.complex128)
    z = np.concatenate([z.real, z.imag], axis=2)[:, :, :width]
    assert z.shape == (NETWORKS, width + 1, width)
    assert len(np.unique(z)) > 0.999 * z.size  # a few agree by chance, in float32
    eta = np.sqrt(1.7 / width) * np.tanh(double(phi)) @ z[:, :-1] + np.sqrt(0.3) * z[:, -1:]
    np.testing.assert_allclose(double(outputs(WeightSampler(), phi, noise)), eta, atol=3e-5)


def test_outputs_of_a_matrix_that_is_not_square(key):
    """Five outputs, W x + b, of eight features x: C_W / 8 for each weight."""
    x, _ = draw(key, 2, 8)
    dense, shape, keys = MODEL.last, (5, 8), network_keys(key, jnp.arange(NETWORKS, dtype=jnp.uint32))
    noise = WeightSampler().draw(keys, jnp.uint32(3), 0, 2, shape)
    z = np.asarray(noise, np.complex128)
    z = np.concatenate([z.real, z.imag], axis=2)[:, :, :5]
    u = np.sqrt(1.7 / 8) * double(x) @ z[:, :-1] + np.sqrt(0.3) * z[:, -1:]
    np.testing.assert_allclose(double(WeightSampler().outputs(dense, x, noise, shape)), u, atol=3e-5)


@pytest.mark.parametrize("sampler", [BlockSampler(), WeightSampler()])
def test_no_normal_is_used_twice_in_a_layer(key, sampler):
    """The last matrix and the hidden ones, a gated one among them, at odd numbers of neurons."""
    model = Model([Dense(1.0, ratio=3), GLU(Tanh()), Dense(1.0, ratio=7), Tanh(), Dense(1.0)])

    @jax.jit
    def draws(key):
        keys = network_keys(key, jnp.arange(1, dtype=jnp.uint32))
        last = draw_last(sampler, model, keys, jnp.uint32(3), 3, 5)
        return [last, *draw_hidden(sampler, model, keys, jnp.uint32(3), 3, 5)]

    noise = [np.asarray(z) for z in draws(key)]
    block = isinstance(sampler, BlockSampler)
    shapes = [(5, 35), (30, 5), (35, 15)]  # outputs and features: the last, then in the order of data flow
    pairs = [(3 * m + 1) // 2 if block else (f + 1) * ((m + 1) // 2) for m, f in shapes]
    assert [z.size for z in noise] == pairs
    z = np.concatenate([np.concatenate([z.real.ravel(), z.imag.ravel()]) for z in noise])
    assert len(np.unique(z)) > 0.999 * z.size


@pytest.mark.parametrize("inputs", [1, 5, 16, 17])
def test_mixing_is_a_product_of_matrices(key, inputs):
    z, _ = draw(key, inputs, 6)
    L = np.tril(np.asarray(jax.random.normal(key, (NETWORKS, inputs, inputs), jnp.float32)))
    mixed = mix(jnp.moveaxis(jnp.asarray(L), 0, -1), z)
    np.testing.assert_allclose(double(mixed), L.astype(np.float64) @ double(z), rtol=1e-5, atol=1e-5)
