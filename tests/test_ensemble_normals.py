"""Random numbers: the words against published vectors and JAX's own, the normals against their distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from scipy.special import erfc
from scipy.stats import kstest

from kernel_eft_jax.ensemble.normals import network_keys, normal_pairs, normals, real_and_imaginary, threefry


def words(first, second):
    return jnp.array([first], jnp.uint32), jnp.array([second], jnp.uint32)


def test_published_vectors():
    """Known answers for 20 rounds of Threefry-2x32, from the Random123 distribution of Salmon et al."""
    for key, counter, answer in [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]:
        assert tuple(int(x[0]) for x in threefry(words(*key), words(*counter))) == answer


def test_the_function_behind_jax_keys(key):
    counters = jax.random.bits(key, (2, 100), jnp.uint32)
    k = jax.random.bits(key, (2,), jnp.uint32)
    ours = threefry((jnp.full(100, k[0]), jnp.full(100, k[1])), (counters[0], counters[1]))
    assert np.array_equal(jnp.concatenate(ours), threefry_2x32(k, counters.reshape(-1)))


def test_pairs_are_box_muller(key):
    """To float32 rounding of the formula in float64, extreme words included."""
    x, y = np.asarray(jax.random.bits(key, (2, 100_000), jnp.uint32))
    edges = np.array([0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)
    x, y = np.concatenate([x, np.repeat(edges, 7)]), np.concatenate([y, np.tile(edges, 7)])
    z = np.asarray(normal_pairs(jnp.asarray(x), jnp.asarray(y)))
    u = (x.astype(np.float32).astype(float) + 0.5) * 2.0**-32
    turns = (y >> 31) + 2.0 * ((y >> 30) & 1)
    angle = (y << 2).view(np.int32) * (np.pi * 2.0**-33) + np.pi / 2 * turns
    expected = np.sqrt(np.maximum(-2 * np.log(u), 0)) * np.exp(1j * angle)
    assert np.abs(z - expected).max() < 3e-6
    assert np.isfinite(z).all()
    assert np.abs(z).max() > 6.7


@functools.partial(jax.jit, static_argnums=(2, 3))
def draw(key, layer, networks, count):
    k = network_keys(key, jnp.arange(networks, dtype=jnp.uint32))
    z = normals((k[0][None], k[1][None]), jnp.uint32(layer), jnp.arange(count, dtype=jnp.uint32)[:, None])
    return real_and_imaginary(z, 2 * count)


def test_distribution(key):
    """4,096,000 normals. Kolmogorov-Smirnov at level 1e-6 (distance 0.0013; a scale wrong by 1 % gives 0.0024); the
    first eight moments and the numbers beyond 2, 3, 4 and 5 standard deviations within 5 of their standard errors:
    false alarm below 1e-5 in all.
    """
    z = np.asarray(draw(key, 3, 1000, 2048), np.float64).ravel()
    assert kstest(z, "norm").pvalue > 1e-6
    assert kstest(1.01 * z, "norm").pvalue < 1e-6
    moments = {0: 1, 2: 1, 4: 3, 6: 15, 8: 105, 10: 945, 12: 10395, 14: 135135, 16: 2027025}
    for p in range(1, 9):
        mean, square = moments.get(p, 0), moments[2 * p]
        assert abs((z**p).mean() - mean) < 5 * np.sqrt((square - mean**2) / z.size)
    for bound in (2, 3, 4, 5):
        expected = z.size * erfc(bound / np.sqrt(2))
        assert abs((np.abs(z) > bound).sum() - expected) < 5 * np.sqrt(expected)


def test_independence(key):
    """Correlations of values and of squares between real and imaginary parts, neighbouring indices, networks and
    layers.

    512,000 numbers each: standard error 0.0014; ten correlations within 5 of them (false alarm 6e-6).
    """
    z, other = (np.asarray(draw(key, layer, 1000, 256), np.float64) for layer in (3, 4))
    half = len(z) // 2
    for x, y in [
        (z[:half], z[half:]),
        (z[:-1], z[1:]),
        (z[:, :-1], z[:, 1:]),
        (z, other),
        (z[:-1], other[1:]),
    ]:
        for power in (1, 2):
            r = np.corrcoef((x**power).ravel(), (y**power).ravel())[0, 1]
            assert abs(r) < 5 / np.sqrt(x.size)


def test_networks_have_the_key_of_their_number(key):
    all_of_them = np.asarray(draw(key, 1, 50, 3))
    k = network_keys(key, jnp.array([7, 49], jnp.uint32))
    z = normals((k[0][None], k[1][None]), jnp.uint32(1), jnp.arange(3, dtype=jnp.uint32)[:, None])
    # Two programs: the last bit of a normal is the compiler's.
    np.testing.assert_allclose(real_and_imaginary(z, 5), all_of_them[:5, [7, 49]], rtol=3e-7)
    folded = jax.random.key_data(
        jax.random.fold_in(jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32)), 7)
    )
    assert np.array_equal(folded, jnp.stack(k)[:, 0])
