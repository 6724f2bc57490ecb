"""Pair space: packing is a change of coordinates, and the products are covariances of Gaussians."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_eft_jax.pairs import (
    input_count,
    pack,
    pack_covariance,
    pair_table,
    pairs,
    sigma_product,
    triples,
    unpack,
    unpack_covariance,
    wick,
)

inputs = st.integers(1, 4)


def kernel(N: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(N, N + 1))
    return x @ x.T / (N + 1)


def test_tables_of_three_inputs():
    a, b = pairs(3)
    assert list(zip(a, b, strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    np.testing.assert_array_equal(pair_table(3), [[0, 1, 2], [1, 3, 4], [2, 4, 5]])
    np.testing.assert_array_equal(triples(3), [[0, 0, 0], [0, 3, 1], [0, 5, 2], [3, 3, 3], [3, 5, 4], [5, 5, 5]])


@given(inputs)
def test_pairs_and_inputs_count_each_other(N):
    assert input_count(N * (N + 1) // 2) == N
    assert pairs(N)[0].size == N * (N + 1) // 2


@pytest.mark.parametrize("count", [2, 4, 5, 7, 8, 9, 11])
def test_not_a_number_of_pairs(count):
    with pytest.raises(ValueError, match=rf"{count} is not a number of pairs"):
        input_count(count)


@given(inputs, st.integers(0, 100))
def test_pack_and_unpack_are_inverse(N, seed):
    K = jnp.asarray(kernel(N, seed))
    np.testing.assert_array_equal(unpack(pack(K)), K)
    k = jnp.arange(N * (N + 1) / 2)
    np.testing.assert_array_equal(pack(unpack(k)), k)
    V = jnp.arange(k.size**2.0).reshape(k.size, k.size)
    np.testing.assert_array_equal(pack_covariance(unpack_covariance(V)), V)


def test_batch_axes_pass_through():
    K = jnp.asarray([[kernel(3, i + 2 * j) for i in range(2)] for j in range(4)])
    assert pack(K).shape == (4, 2, 6)
    np.testing.assert_array_equal(unpack(pack(K)), K)
    np.testing.assert_array_equal(wick(pack(K))[3, 1], wick(pack(K[3, 1])))
    assert unpack_covariance(wick(pack(K))).shape == (4, 2, 3, 3, 3, 3)


def test_derivatives_treat_both_halves_alike():
    """The derivative of a function of k_ab by K is symmetric, and its sum over both halves is the derivative by
    k_ab."""
    weights = jnp.arange(1.0, 7.0)
    gradient = jax.grad(lambda K: weights @ pack(K))(jnp.asarray(kernel(3)))
    np.testing.assert_array_equal(gradient, gradient.T)
    np.testing.assert_array_equal(gradient + gradient.T * (1 - np.eye(3)), unpack(weights))


def test_unpacked_covariance_has_every_symmetry():
    V = unpack_covariance(wick(pack(jnp.asarray(kernel(3)))))
    for axes in [(1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1)]:
        np.testing.assert_array_equal(V, np.transpose(V, axes))


def test_sigma_product_entry_by_entry():
    G, Q = kernel(3, 1), kernel(3, 2)
    packed = np.asarray(sigma_product(pack(jnp.asarray(G)), pack(jnp.asarray(Q))))
    for (p, (a, b)), (q, (c, d)) in product(enumerate(zip(*pairs(3), strict=True)), repeat=2):
        entry = G[a, c] * Q[b, d] + G[a, d] * Q[b, c] + G[b, c] * Q[a, d] + G[b, d] * Q[a, c]
        np.testing.assert_allclose(packed[p, q], entry, rtol=1e-14)


def test_wick_is_the_covariance_of_products_of_gaussians():
    """Integrated exactly: products of four Gaussians are polynomials of degree four, three Gauss-Hermite points a
    variable."""
    K = kernel(3, 3)
    x, w = np.polynomial.hermite_e.hermegauss(3)
    phi = np.array(list(product(x, repeat=3))) @ np.linalg.cholesky(K).T
    weight = np.prod(list(product(w / w.sum(), repeat=3)), axis=1)
    a, b = pairs(3)
    products = phi[:, a] * phi[:, b]
    centred = products - weight @ products
    np.testing.assert_allclose(wick(pack(jnp.asarray(K))), centred.T * weight @ centred, rtol=1e-13, atol=1e-14)


@given(inputs, st.integers(0, 100))
def test_covariances_are_positive_semi_definite(N, seed):
    G, Q = pack(jnp.asarray(kernel(N, seed))), pack(jnp.asarray(kernel(N, seed + 1)))
    for V in (wick(G), sigma_product(G, Q)):
        np.testing.assert_allclose(V, V.T, atol=1e-15 * np.trace(V))
        assert np.linalg.eigvalsh(V).min() > -1e-14 * np.trace(V)


def test_dtype_is_kept():
    K = jnp.asarray(kernel(3), dtype=jnp.float32)
    k = pack(K)
    assert {x.dtype for x in (k, unpack(k), wick(k), sigma_product(k, k), unpack_covariance(wick(k)))} == {k.dtype}
    assert k.dtype == jnp.float32
