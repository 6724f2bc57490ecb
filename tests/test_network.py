"""Networks with real weights against the definition, written out in NumPy, and against the exact law of one layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel_eft_jax.activations import GELU, Linear, SiLU, Tanh
from kernel_eft_jax.cholesky import semidefinite_cholesky
from kernel_eft_jax.kernel_maps import GLU, Dense, RMSNorm
from kernel_eft_jax.model import Model
from kernel_eft_jax.network import ResNet, draw_inputs, empirical_kernel, fitting_width, shapes
from tests.networks import silu

MODEL = Model(Tanh(), C_W=1.7, C_b=0.3)
K0 = jnp.array([[2.0, 0.6, -0.3], [0.6, 1.5, 0.2], [-0.3, 0.2, 1.0]])


def test_network_is_the_definition(key):
    net = ResNet(MODEL, width=5, depth=7, eps=0.3, key=key)
    phi = jax.random.normal(key, (3, 5))
    layers = [np.asarray(phi)]
    for W, b in zip(np.asarray(net.W[0]), np.asarray(net.b[0]), strict=True):
        layers.append(layers[-1] + 0.3 * (np.tanh(layers[-1]) @ W.T + b))
    assert np.allclose(net(phi), layers[-1], rtol=1e-12)
    assert np.allclose(net.trajectory(phi), layers, rtol=1e-12)
    kernels = [x @ x.T / 5 for x in layers]
    assert np.allclose(empirical_kernel(net.trajectory(phi)), kernels, rtol=1e-12)


def test_a_branch_of_several_matrices_is_the_definition(key):
    """Two norms, a gate, hidden layers of 9 and 3 neurons, part of the skip, an eps of each layer."""
    branch = [
        RMSNorm(), Dense(1.2, 0.1, ratio=1.5), GLU(SiLU()), RMSNorm(), Dense(1.5, 0.2, ratio=0.5), Tanh(), Dense(2.0, 0.3),
    ]  # fmt: skip
    steps = np.array([0.3, 0.8, 0.5])
    net = ResNet(Model(branch, decay=0.7), width=6, depth=3, eps=steps, key=key)
    assert [W.shape for W in net.W] == [(3, 18, 6), (3, 3, 9), (3, 6, 3)]
    phi = jax.random.normal(key, (2, 6))
    layers = [np.asarray(phi)]
    for eps, *weights in zip(steps, *(np.asarray(W) for W in net.W), *(np.asarray(b) for b in net.b), strict=True):
        W1, W2, W3, b1, b2, b3 = weights
        x = layers[-1]
        uw = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)) @ W1.T + b1
        x = uw[:, 9:] * silu(uw[:, :9])
        x = np.tanh(x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)) @ W2.T + b2) @ W3.T + b3
        layers.append(np.sqrt(1 - 0.7 * eps**2) * layers[-1] + eps * x)
    assert np.allclose(net.trajectory(phi), layers, rtol=1e-12)
    assert np.allclose(net(phi), layers[-1], rtol=1e-12)


@pytest.mark.parametrize(("index", "C_W", "C_b", "features"), [(0, 1.2, 0.1, 20), (1, 1.5, 0.2, 30), (2, 2.0, 0.3, 10)])
def test_weights_have_their_variances(key, index, C_W, C_b, features):
    """Hidden matrices too: C_W over the number of features. At least 100,000 weights and 20,000 biases: 5 standard
    errors are 2 and 5 %."""
    branch = [Dense(1.2, 0.1, ratio=1.5), GELU(), Dense(1.5, 0.2, ratio=0.5), Tanh(), Dense(2.0, 0.3)]
    net = ResNet(Model(branch), width=20, depth=2000, eps=0.1, key=key)
    assert net.W[index].shape[2] == features
    assert np.isclose(np.var(net.W[index]), C_W / features, rtol=0.02)
    assert np.isclose(np.var(net.b[index]), C_b, rtol=0.05)


def test_plain_networks_have_no_skip(key):
    """decay eps^2 = 1: the output does not remember phi but through the branch, which for one layer of constant
    features is nothing."""
    net = ResNet(Model(Linear(), 1.0, decay=1.0), width=5, depth=1, eps=1.0, key=key)
    phi = jax.random.normal(key, (2, 5))
    assert np.allclose(net(phi), phi @ net.W[0][0].T, rtol=1e-12)
    # An eps whose square is 1 / decay to rounding is no skip either, and not a NaN.
    net = ResNet(Model(Linear(), 1.0, decay=10.0), width=5, depth=1, eps=0.1**0.5, key=key)
    assert np.allclose(net(phi), 0.1**0.5 * phi @ net.W[0][0].T, rtol=1e-6, atol=1e-7)


def test_jit_and_vmap_change_nothing(key):
    keys = jax.random.split(key, 2)
    phi = jax.random.normal(key, (3, 6))

    def run(key):
        return ResNet(MODEL, width=6, depth=5, eps=0.2, key=key)(phi)

    alone = run(keys[0])
    assert np.allclose(eqx.filter_jit(eqx.filter_vmap(run))(keys)[0], alone, rtol=1e-13)
    assert np.allclose(eqx.filter_jit(run)(keys[0]), alone, rtol=1e-13)


def test_gradients_reach_the_model(key):
    phi = jax.random.normal(key, (2, 6))

    def trace(C_W):
        return jnp.trace(empirical_kernel(ResNet(Model(Tanh(), C_W, 0.1), width=6, depth=4, eps=0.3, key=key)(phi)))

    h, both = 1e-5, jax.jit(jax.value_and_grad(trace))
    (_, slope), (up, _), (down, _) = (both(1.3 + shift) for shift in (0, h, -h))
    assert np.isclose(slope, (up - down) / (2 * h), rtol=1e-7)


def test_one_layer_has_the_exact_law(key):
    """Given phi, E[G'] = G + eps^2 Q and n Cov(G', G') = eps^2 Sigma(G, Q) + eps^4 (Q Q + Q Q), at n = 4.

    100,000 networks. Mean: within 5 standard errors (false alarm 6 x 6e-7), which are below 0.3 % of eps^2 Q.
    Covariance: its relative standard error is near 0.5 %; every entry within 2.5 % of the largest (5 standard errors).
    """
    n, eps = 4, 0.7
    phi = jax.random.normal(key, (3, n))

    def run(key):
        return empirical_kernel(ResNet(MODEL, width=n, depth=1, eps=eps, key=key)(phi))

    G1 = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(key, 100_000)))
    G, S = np.asarray(phi @ phi.T) / n, np.tanh(phi) @ np.tanh(phi).T / n
    Q = 0.3 + 1.7 * S

    def pairings(A, B):
        return np.einsum("ac,bd->abcd", A, B) + np.einsum("ad,bc->abcd", A, B)

    error = G1.std(axis=0) / np.sqrt(len(G1))
    assert (error < 0.01 * eps**2 * Q.max()).all()
    assert (np.abs(G1.mean(axis=0) - G - eps**2 * Q) < 5 * error).all()
    expected = eps**2 * (pairings(G, Q) + pairings(Q, G)) + eps**4 * pairings(Q, Q)
    sampled = n * np.cov(G1.reshape(-1, 9).T).reshape(3, 3, 3, 3)
    assert np.abs(sampled - expected).max() < 0.025 * expected.max()


def test_inputs_have_their_kernel(key):
    """2e5 neurons: an entry's standard error is at most sqrt(2 / 2e5) K = 0.0063; all 6 within 5 of them. Repeated
    inputs are equal."""
    repeated = np.array([0, 1, 1])
    K = K0[np.ix_(repeated, repeated)]
    phi = draw_inputs(K, width=200_000, key=key)
    assert np.abs(empirical_kernel(phi) - K).max() < 5 * 0.0063
    assert np.allclose(phi[1], phi[2], rtol=1e-12)


factors_of = jax.jit(jax.vmap(semidefinite_cholesky))


@pytest.mark.parametrize("inputs", [1, 3, 8, 21])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 2, 30])
def test_factor_is_exact_at_any_rank(inputs, dtype, rank):
    """L L^T = Q to rounding, with as many columns as the rank, and NumPy's factor where the rank is full."""
    A = np.random.default_rng(inputs + rank).normal(size=(5, inputs, rank))
    Q = jnp.asarray((A @ np.swapaxes(A, 1, 2)).astype(dtype))
    L = np.asarray(factors_of(Q))
    assert L.dtype == dtype
    tolerance = 50 * inputs * np.finfo(dtype).eps * float(jnp.abs(Q).max())
    assert np.abs(L @ np.swapaxes(L, 1, 2) - Q).max() < tolerance
    assert (np.tril(L) == L).all()
    assert (np.abs(L).max(axis=1) > np.sqrt(tolerance)).sum(axis=1).max() <= rank
    if rank >= inputs:
        assert np.allclose(L[0], np.linalg.cholesky(Q[0]), atol=100 * tolerance)


@pytest.mark.parametrize("inputs", [8, 21])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_multiples_of_an_input_are_no_directions(inputs, dtype):
    """Rounding leaves pivots of some 1e-16 of an input, which must not become columns of their roots, 1e-8."""
    x = np.random.default_rng(inputs).normal(size=(5, inputs, 1)).astype(dtype)
    L = np.asarray(factors_of(jnp.asarray(x * np.swapaxes(x, 1, 2))))
    np.testing.assert_allclose(L[:, :, :1], x * np.sign(x[:, :1]), rtol=1e-5)
    assert not L[:, :, 1:].any()


def test_bad_arguments(key):
    with pytest.raises(ValueError, match="`width`"):
        ResNet(MODEL, width=0, depth=3, eps=0.1, key=key)
    with pytest.raises(ValueError, match="`depth`"):
        ResNet(MODEL, width=3, depth=0, eps=0.1, key=key)
    with pytest.raises(ValueError, match="`eps`"):
        ResNet(MODEL, width=3, depth=3, eps=-0.1, key=key)
    with pytest.raises(
        ValueError,
        match=r"whole number of neurons, but 3 x 1.5 is 4.5: take another width, or Dense\(..., ratio=4 / 3\)",
    ):
        ResNet(Model([Dense(1.0, ratio=1.5), Tanh(), Dense(1.0)]), width=3, depth=3, eps=0.1, key=key)
    with pytest.raises(ValueError, match="`eps` and `decay` leave no real skip"):
        ResNet(Model(Tanh(), 1.0, decay=2.0), width=3, depth=3, eps=[0.1, 0.2, 0.8], key=key)
    with pytest.raises(ValueError, match="one for each of the 3 layers"):
        ResNet(MODEL, width=3, depth=3, eps=[0.1, 0.2], key=key)
    with pytest.raises(ValueError, match=r"`phi0` must have shape \(inputs, 3\), but has shape \(2, 4\)"):
        ResNet(MODEL, width=3, depth=3, eps=0.1, key=key)(jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="smallest eigenvalue"):
        draw_inputs(jnp.array([[1.0, 2.0], [2.0, 1.0]]), width=3, key=key)


def test_no_bias_is_allowed(key):
    net = ResNet(Model(Linear(), 1.0), width=4, depth=3, eps=0.1, key=key)
    assert (np.asarray(net.b[0]) == 0).all()


@pytest.mark.parametrize(("ratio", "least", "expected"), [(8 / 3, 64, 66), (0.25, 6, 8), (1, 7, 7), (0.01, 64, 100)])
def test_widths_that_fit_the_ratios(ratio, least, expected):
    """The next width that gives every matrix a whole number of neurons, at least one."""
    model = Model([RMSNorm(), Dense(1.0, ratio=ratio), GELU(), Dense(2.0)])
    assert fitting_width(model, least) == expected
    assert shapes(model, expected)[0][0] == round(ratio * expected)


def test_a_ratio_that_no_width_fits_leaves_the_width():
    """`shapes` then says what is wrong with it."""
    assert fitting_width(Model([Dense(1.0, ratio=2**0.5), GELU(), Dense(2.0)]), 64) == 64
