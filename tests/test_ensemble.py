r"""Ensembles against laws known without this package, and samplers against each other.

For s(x) = x and C_b = 0 the moments of G close at every width: with $A = 2 \epsilon^2 C_W + \epsilon^4 C_W^2$ and M =
E[G G],

$$E[G'] = (1 + \epsilon^2 C_W) E[G], \qquad
  M'_{ab,cd} = (1 + \epsilon^2 C_W)^2 M_{ab,cd} + \tfrac{A}{n} (M_{ac,bd} + M_{ad,bc})$$

from M = K0 K0 + (1/n) (K0 K0 + K0 K0) at depth zero, and so does the fourth moment of one neuron,
$f_{ab} = E[\phi_a^2 \phi_b^2]$:

$$f'_{ab} = f_{ab} + \epsilon^2 C_W (2 M_{aa,bb} + 4 M_{ab,ab}) + \epsilon^4 C_W^2 (M_{aa,bb} + 2 M_{ab,ab})$$

Statistical tests compare in units of the standard error that the ensemble reports
(itself tested in test_statistics.py), with a bound of 5: a false alarm has probability 6e-7 for each number compared.
"""

import re
import resource
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import SMOOTH, one_input_layers
from scipy.stats import ks_2samp

from kernel_eft_jax import machine
from kernel_eft_jax.activations import GELU, Erf, Linear, Polynomial, ReLU, Smooth, Tanh
from kernel_eft_jax.closures import HermiteTower
from kernel_eft_jax.ensemble import BlockSampler, WeightSampler, estimate, plan, sample_kernels
from kernel_eft_jax.ensemble.factors import cholesky_written_out
from kernel_eft_jax.ensemble.statistics import jackknife
from kernel_eft_jax.kernel_maps import GLU, Dense, RMSNorm
from kernel_eft_jax.model import Model
from kernel_eft_jax.network import ResNet, draw_inputs, empirical_kernel
from kernel_eft_jax.trajectory import solve

K0 = jnp.array([[2.0, 0.6], [0.6, 1.5]])


def linear_moments(K, n, depth, eps, C_W):
    """E[G], n Cov(G, G) and n times the fourth cumulant of a neuron, for the linear network of width n at the last
    depth."""

    def pairings(M):
        return np.einsum("acbd->abcd", M) + np.einsum("adbc->abcd", M)

    step = 1 + eps**2 * C_W
    M = np.einsum("ab,cd->abcd", K, K)
    M = M + pairings(M) / n

    def gaussian(M):  # E[phi_a^2 phi_b^2] of Gaussians from the products K K
        return np.einsum("aabb->ab", M) + 2 * np.einsum("abab->ab", M)

    fourth = gaussian(np.einsum("ab,cd->abcd", K, K))
    for _ in range(depth):
        fourth = fourth + (2 * eps**2 * C_W + eps**4 * C_W**2) * gaussian(M)
        M = step**2 * M + (2 * eps**2 * C_W + eps**4 * C_W**2) / n * pairings(M)
    mean = step**depth * K
    product = np.einsum("ab,cd->abcd", mean, mean)
    return mean, n * (M - product), n * (fourth - gaussian(product))


def agree(value, error, expected, scale=None):
    """Within 5 standard errors, and those smaller than 5 % of `scale`, or else of the largest expected number."""
    assert (np.abs(value - expected) < 5 * error).all(), (value, expected, error)
    assert (error <= 0.05 * (np.abs(expected).max() if scale is None else scale)).all(), (error, scale)


def error_of_mean(V4, n, networks):
    """Standard error of n E[G] from so many networks of covariance V4 / n, without control variates."""
    return np.sqrt(n * np.einsum("abab->ab", V4) / networks)


# --- laws in closed form --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(BlockSampler(), marks=pytest.mark.slow),
        pytest.param(WeightSampler(), marks=pytest.mark.thorough),
    ],
)
def test_linear_network_at_finite_width(key, sampler):
    """n = 6, where V4 and kappa4 are 1.5 times their values at infinite width. 80,000 networks.

    In the fast tier the moments of the block law are those of the next test, with control variates.
    """
    n, depth, eps, C_W = 6, 10, 0.3, 1.5
    est = estimate(
        Model(Linear(), C_W),
        K0,
        width=n,
        depth=depth,
        eps=eps,
        networks=80_000,
        key=key,
        sampler=sampler,
        control=False,
        save_at=[0, 4, depth],
        progress=False,
    )
    for t, layer in enumerate(est.layers):
        mean, V4, kappa4 = linear_moments(K0, n, layer, eps, C_W)
        agree(est.G[t], est.stderr.G[t], mean)
        agree(est.V4[t], est.stderr.V4[t], V4)
        largest = linear_moments(K0, n, depth, eps, C_W)[2].max()  # there is none at depth zero
        agree(est.kappa4[t], est.stderr.kappa4[t], kappa4, scale=largest if layer == 0 else None)
        assert np.allclose(est.K0[t], mean, rtol=1e-12)
        exact = error_of_mean(V4, n, 80_000)
        agree(est.K1[t], est.stderr.K1[t], np.zeros_like(K0), scale=20 * 1.2 * exact)
        assert (est.stderr.K1[t] > 0.8 * exact).all()
    assert np.allclose(est.V_SS, est.V4, rtol=1e-5)
    assert np.allclose(est.V_GS, est.V4, rtol=1e-5)
    assert np.allclose(est.ts, eps**2 * est.layers)


@pytest.mark.thorough
def test_control_variates_are_unbiased_and_better(key):
    """Linear again: the moments of G at n = 16; K1 = U1 = 0, and V4 at width n minus V4 at infinite width is known.
    80,000 networks.

    Over four keys errors of K1 were 0.08 to 0.13 of those without control variates, of U1 0.25 to 0.40, of V4_excess
    0.55 to 0.68 of V4's.
    """
    n, depth, eps, C_W = 16, 8, 0.3, 1.5
    run = {"width": n, "depth": depth, "eps": eps, "networks": 80_000, "key": key, "save_at": depth, "progress": False}
    est = estimate(Model(Linear(), C_W), K0, **run)
    mean, V4, kappa4 = linear_moments(K0, n, depth, eps, C_W)
    agree(est.G[0], est.stderr.G[0], mean)
    agree(est.V4[0], est.stderr.V4[0], V4)
    exact = error_of_mean(V4, n, 80_000)
    agree(est.K1, est.stderr.K1, 0 * est.K1, scale=20 * 0.15 * exact)
    agree(est.U1, est.stderr.U1, 0 * est.U1, scale=20 * 0.48 * exact)
    assert est.V4_excess is not None
    assert est.stderr.V4_excess is not None
    excess = V4 - linear_moments(K0, 1e9, depth, eps, C_W)[1]
    agree(est.V4_excess[0], est.stderr.V4_excess[0], excess)
    ratio = est.stderr.V4_excess / est.stderr.V4
    assert (ratio > 0.45).all()
    assert (ratio < 0.75).all()
    agree(est.kappa4[0], est.stderr.kappa4[0], kappa4)


@pytest.mark.slow
def test_published_setting_of_control_variates(key):
    """tanh, one input, n = 128: K1 = -0.454 in the limit, V4 = 48.5. From 40,000 networks the standard error of K1 is
    below 0.003.

    Without control variates it is 0.4, and with n E[G - C_G] instead of n E[R] 0.012: both are measured here too.
    The error of V4_excess is 0.075 of V4's.
    """
    est = estimate(
        Model(Tanh(), 2.0),
        jnp.array([[2.0]]),
        width=128,
        depth=200,
        eps=0.1,
        networks=40_000,
        key=key,
        save_at=[100, 200],
        progress=False,
    )
    K1, error = est.K1[-1, 0, 0], est.stderr.K1[-1, 0, 0]
    assert 0.001 < error < 0.003
    assert abs(K1 + 0.454) < 0.005 + 4 * error
    by_kernels, error_by_kernels = jackknife(lambda sums: 128 * sums.first[-1, 2] / sums.networks, est.sums)
    assert 0.008 < error_by_kernels.item() < 0.016
    assert abs(K1 - by_kernels.item()) < 4 * error_by_kernels.item()
    plain = 128 * np.sqrt(est.V4[-1].item() / 128 / 40_000)
    assert plain > 0.3
    V4, error = est.V4[-1].item(), est.stderr.V4[-1].item()
    assert 0.2 < error < 0.6
    assert abs(V4 - 48.5) < 0.3 + 4 * error
    assert est.stderr.V4_excess is not None
    assert 0.05 < est.stderr.V4_excess[-1].item() / error < 0.1
    assert abs(est.K0[-1, 0, 0] - 4.367) < 0.003


def check_fourth_cumulant(key, model, K0, V4, layers, eps):
    r"""At order 1/n a neuron is Gaussian of a covariance that varies from network to network as G does, less G's
    Wishart part W:

    $$\kappa_{ab} = (V4 - W)_{aa,bb} + 2 (V4 - W)_{ab,ab}$$

    n = 128, 24,000 networks: errors below 5 % of the largest entry, where without the control variate they are of its
    size. Within 4.5 errors and the next order, 4 kappa / n. Depth zero has none.
    """
    run = {"width": 128, "depth": layers[-1], "eps": eps, "networks": 24_000, "save_at": layers, "progress": False}
    est = estimate(model, K0, **run, key=key)
    fluctuation = V4 - np.einsum("tac,tbd->tabcd", est.K0, est.K0) - np.einsum("tad,tbc->tabcd", est.K0, est.K0)
    kappa4 = np.einsum("taabb->tab", fluctuation) + 2 * np.einsum("tabab->tab", fluctuation)
    assert (est.kappa4[0] == 0).all()
    for t in range(1, len(layers)):
        assert (est.stderr.kappa4[t] < 0.05 * kappa4[t].max()).all()
        assert (np.abs(est.kappa4[t] - kappa4[t]) < 4.5 * est.stderr.kappa4[t] + 4 * kappa4[t] / 128).all()


@pytest.mark.thorough
def test_fourth_cumulant_of_a_neuron(key):
    """GELU, one input, 4 layers, with V4 that NumPy sums over layers: two numbers, false alarm 1.4e-5.

    What pairs of inputs add to kappa4 is held by the linear networks: weights without control variates, the block law
    with them.
    """
    V4 = one_input_layers(SMOOTH["GELU"], 1.5, 0.2, 1.0, 0.5, 4)["V4"][[0, 2, 4]]
    check_fourth_cumulant(key, Model(GELU(), 1.5, 0.2), [[1.0]], V4.reshape(3, 1, 1, 1, 1), [0, 2, 4], 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("model", [Model(Tanh(), 2.0, 0.1), Model(ReLU(), 1.0)], ids=["tanh", "relu"])
def test_fourth_cumulants_of_two_inputs(key, model):
    """8 layers, with V4 of HermiteTower: six numbers, false alarm 4e-5."""
    tower = solve(model, K0, layers=[0, 4, 8], eps=0.3, closure=HermiteTower(30))
    check_fourth_cumulant(key, model, K0, tower.V4, [0, 4, 8], 0.3)


@pytest.mark.slow
def test_fourth_cumulant_without_control_variates(key):
    """Weights at n = 8 against the block law with control variates: 60,000 networks each, errors below 5 %.

    Within 4.5 joint errors: false alarm 2e-5 for three numbers. At depth zero the cumulant is nothing, within 4.5
    errors.

    In the fast tier weights are held by the linear networks, and by the law of kernels that all samplers have.
    """
    run = {"width": 8, "depth": 4, "eps": 0.5, "networks": 60_000, "save_at": [0, 4], "progress": False}
    model, keys = Model(Erf(), 2.0, 0.1), jax.random.split(key)
    plain = estimate(model, K0, **run, key=keys[0], sampler=WeightSampler(), control=False)
    est = estimate(model, K0, **run, key=keys[1])
    assert (np.abs(plain.kappa4[0]) < 4.5 * plain.stderr.kappa4[0]).all()
    assert (np.abs(plain.kappa4 - est.kappa4)[1] < 4.5 * np.hypot(plain.stderr.kappa4, est.stderr.kappa4)[1]).all()
    for error in (plain.stderr.kappa4[1], est.stderr.kappa4[1]):
        assert (error < 0.05 * est.kappa4[1].max()).all()
    # The sigma-kernel, which the weights need only where it is saved: six numbers more.
    assert (np.abs(plain.S - est.S) < 4.5 * np.hypot(plain.stderr.S, est.stderr.S)).all()
    assert (0.01 * est.S.max() > plain.stderr.S).all()


@pytest.mark.thorough
def test_control_variates_take_off_all_that_is_of_leading_order(key):
    """What is left of S - C_S and F - C_F is of order 1/n: errors of U1 and kappa4, which are n times that, do not grow
    with the width.

    From 16 to 256 neurons, few steps that are large: a table of the infinite-width path that is one layer off leaves a
    part of order 1/sqrt(n), and errors grow by 4. 2048 networks tell their ratio to 10 %.
    """
    run = {"depth": 3, "eps": 0.8, "networks": 2048, "save_at": [3], "progress": False}
    errors = [estimate(Model(Erf(), 2.0), K0, width=width, key=key, **run).stderr for width in (16, 256)]
    for name in ("U1", "kappa4"):
        narrow, wide = (getattr(error, name)[0] for error in errors)
        assert (wide < 1.5 * narrow).all(), (name, wide / narrow)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [BlockSampler(), WeightSampler()])
def test_many_inputs_and_few_neurons(key, sampler):
    """9 inputs, two of them repeated, 4 neurons: batched algebra with kernels of rank 4. 30,000 networks.

    In the fast tier that algebra is held layer by layer: factors in test_ensemble_coupling.py, increments in
    test_ensemble_samplers.py.
    """
    A, repeated = jnp.asarray(np.random.default_rng(0).normal(size=(7, 7))), np.array([*range(7), 0, 1])
    K = (A @ A.T / 7 + jnp.eye(7))[np.ix_(repeated, repeated)]
    n, depth, eps, C_W = 4, 3, 0.4, 1.2
    est = estimate(
        Model(Linear(), C_W),
        K,
        width=n,
        depth=depth,
        eps=eps,
        networks=30_000,
        key=key,
        sampler=sampler,
        control=False,
        save_at=[depth],
        progress=False,
    )
    mean, V4, _ = linear_moments(K, n, depth, eps, C_W)
    agree(est.G[0], est.stderr.G[0], mean)
    agree(est.V4[0], est.stderr.V4[0], V4)
    assert np.allclose(est.G[0, :2], est.G[0, 7:], rtol=1e-5)


@pytest.mark.parametrize("inputs", [9, 16])
def test_factors_of_singular_kernels(key, inputs):
    """L L^T = Q to float32 rounding, L lower triangular: kernels of full rank, of 4 neurons, and with two inputs
    repeated."""
    s = np.array(jax.random.normal(key, (3, inputs, 2 * inputs), jnp.float32))
    s[1, :, 4:] = 0
    s[2, [3, -1]] = s[2, [0, 2]]
    Q = np.moveaxis(s @ s.transpose(0, 2, 1), 0, -1)
    L = np.asarray(jax.jit(cholesky_written_out)(jnp.asarray(Q)), np.float64)
    assert all((np.triu(L[:, :, i], 1) == 0).all() for i in range(3))
    assert np.abs(np.einsum("ikB,jkB->ijB", L, L) - Q).max() < 20 * inputs * np.finfo(np.float32).eps * Q.max()
    assert [int((np.abs(L[:, :, i]).max(axis=0) > 0).sum()) for i in range(3)] == [inputs, 4, inputs - 2]


# --- one law, three samplers ------------------------------------------------------------------------------------------


def network_kernels(model, K, n, depth, eps, networks, key):
    """G at the last depth of networks with real weights."""

    def run(key):
        key_phi, key_net = jax.random.split(key)
        return empirical_kernel(
            ResNet(model, width=n, depth=depth, eps=eps, key=key_net)(draw_inputs(K, width=n, key=key_phi))
        )

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(key, networks)))


# In CI test_ensemble_blocks compares both samplers with networks in NumPy, and test_network holds `ResNet` to the
# exact law of one layer.
@pytest.mark.slow
@pytest.mark.parametrize("model", [Model(Erf(), 2.0, 0.2), Model(ReLU(), 1.5)], ids=["erf", "relu"])
def test_samplers_have_one_law(key, model):
    """Two-sample Kolmogorov-Smirnov at n = 4, depth 6, far from Gaussian; 40,000 networks each.

    Five functions of G, three pairs of samplers: each at level 1e-5, so a false alarm has probability 1.5e-4 a model.
    The level is reached at a distance of 0.0175 between the distributions; eps 5 % larger would give 0.02 to 0.04
    (checked below as a negative control).
    """
    n, depth, eps, networks = 4, 6, 0.6, 40_000
    keys = jax.random.split(key, 4)

    def sample(sampler, key, eps=eps):
        return sample_kernels(
            model, K0, width=n, depth=depth, eps=eps, networks=networks, key=key, sampler=sampler, save_at=[depth]
        )[:, 0]

    samples = [
        sample(BlockSampler(), keys[0]),
        sample(WeightSampler(), keys[1]),
        network_kernels(model, K0, n, depth, eps, networks, keys[2]),
    ]

    def p_values(G, H):
        functions = [
            lambda G: G[:, 0, 0],
            lambda G: G[:, 0, 1],
            lambda G: np.linalg.det(G),
            lambda G: G[:, 0, 1] / np.sqrt(G[:, 0, 0] * G[:, 1, 1]),
            lambda G: G[:, 0, 0] - 2 * G[:, 1, 1],
        ]
        return [np.asarray(ks_2samp(f(G), f(H)))[1] for f in functions]

    for i in range(3):
        assert min(p_values(samples[i], samples[i - 1])) > 1e-5
    assert min(p_values(samples[2], sample(BlockSampler(), keys[3], 1.05 * eps))) < 1e-5


# --- draws do not depend on what they must not depend on --------------------------------------------------------------


SMALL = {"model": Model(Erf(), 2.0, 0.1), "K0": K0, "width": 5, "depth": 7, "eps": 0.3, "save_at": (2, 7)}


@pytest.mark.thorough
def test_a_draw_depends_on_its_key_and_number_only(key):
    def sample(networks, key=key, save_at=(2, 7)):
        return sample_kernels(**SMALL | {"networks": networks, "key": key, "save_at": save_at})

    all_of_them = sample(5000)
    assert all_of_them.shape == (5000, 2, 2, 2)
    assert all_of_them.dtype == np.float32
    for networks in (1, 3, 1024):
        assert np.array_equal(sample(networks), all_of_them[:networks])
    assert np.array_equal(sample(10, save_at=[0, 2, 3, 7])[:, [1, 3]], all_of_them[:10])
    assert not np.array_equal(sample(1, jax.random.split(key)[0]), all_of_them[:1])
    assert len(np.unique(all_of_them[:, 0, 0, 0])) > 4990


@pytest.mark.thorough
def test_a_step_below_the_smallest_float32_leaves_the_kernel_as_it_is(key):
    """Processors take numbers below 1e-38 for zero: so small a step is a layer that changes nothing."""
    run = {"width": 4, "depth": 2, "networks": 3, "key": key, "save_at": [0, 1, 2]}
    G = sample_kernels(Model(Linear(), 2.0), K0, eps=1e-40, **run)
    assert (G[:, 0, 0, 0] > 0).all()
    np.testing.assert_array_equal(G[:, 1:], G[:, [0, 0]])


@pytest.mark.thorough
def test_estimate_and_samples_are_the_same_networks(key):
    est = estimate(**SMALL, networks=1000, key=key, progress=False)
    G = sample_kernels(**SMALL, networks=1000, key=key).astype(float)
    assert np.allclose(est.G, G.mean(axis=0), rtol=1e-6)
    assert np.allclose(est.V4[1, 0, 1, 1, 1], 5 * np.cov(G[:, 1, 0, 1], G[:, 1, 1, 1])[0, 1], rtol=1e-4)


@pytest.mark.thorough
def test_any_kind_of_key():
    """A key of another kind than JAX's default, which all other tests take."""
    run = {"width": 3, "depth": 2, "eps": 0.3, "key": jax.random.key(1, impl="rbg")}
    one, three = (sample_kernels(Model(Linear(), 2.0), K0[:1, :1], **run, networks=networks) for networks in (1, 3))
    assert np.array_equal(one, three[:1])


@pytest.mark.thorough
def test_samplers_ask_for_no_expectation(key):
    """Sampling uses no moment of an activation: it runs with moments that raise."""

    class NoMoments(Tanh):
        def moments(self, k):
            raise AssertionError

        def expansion(self, k):
            raise AssertionError

    model = Model([NoMoments(), Dense(1.0), GLU(NoMoments()), RMSNorm(), Dense(1.0)])
    run = {"width": 3, "depth": 2, "eps": 0.3, "networks": 2, "key": key}
    for sampler in (BlockSampler(), WeightSampler()):
        assert np.isfinite(sample_kernels(model, K0[:1, :1], **run, sampler=sampler)).all()


@pytest.mark.thorough
def test_a_users_activation_and_default_layers(key):
    model = Model(Smooth(lambda x: x / (1 + x**2)), 2.0)
    est = estimate(model, K0[:1, :1], width=4, depth=50, eps=0.1, networks=64, key=key, progress=False)
    assert len(est.layers) == 41
    assert (est.layers[0], est.layers[-1]) == (0, 50)
    assert est.networks == 64
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(eqx.filter(est, eqx.is_array)))


@pytest.mark.slow
def test_repeated_inputs(key):
    """Three inputs, two equal: their entries agree to rounding, control variates included.

    In the fast tier linear units hold it: four inputs, two of them repeated, in test_ensemble_coupling.py.
    """
    repeated = np.array([0, 1, 1])
    est = estimate(
        Model(Erf(), 2.0),
        K0[np.ix_(repeated, repeated)],
        width=8,
        depth=20,
        eps=0.2,
        networks=2000,
        key=key,
        save_at=[20],
        progress=False,
    )
    for name in ("G", "S", "K1", "U1"):
        value = getattr(est, name)[0]
        assert np.allclose(value[1, 1], value[2, 2], atol=1e-4)
        assert np.allclose(value[1, 1], value[1, 2], atol=1e-4)
        assert np.allclose(value[0, 1], value[0, 2], atol=1e-4)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument(key):
    run = {
        "model": Model(Erf(), 2.0),
        "K0": K0,
        "width": 4,
        "depth": 3,
        "eps": 0.1,
        "networks": 100,
        "key": key,
        "progress": False,
    }
    for change, message in [
        ({"K0": jnp.array([[1.0, 2.0], [2.0, 1.0]])}, "smallest eigenvalue"),
        ({"width": 0}, "`width`"),
        ({"depth": 2.5}, "`depth`"),
        ({"eps": 0.0}, "`eps`"),
        ({"networks": 63}, "`networks` must be a whole number, 64 or more"),
        ({"save_at": [0, 5]}, "between 0 and the depth 3"),
        ({"save_at": [2, 1]}, "increasing"),
        ({"save_at": [0.5]}, "whole layer numbers"),
        ({"save_at": []}, "`save_at`"),
        ({"eps": [0.1, 0.2]}, r"or one for each of the 3 layers, but has shape \(2,\)"),
        ({"model": Model(Erf(), 2.0, decay=5.0), "eps": 0.5}, "leave no real skip: .* Take decay = 1 / eps"),
        (
            {"model": Model([Erf(), Dense(1.0, ratio=1.6), Erf(), Dense(1.0)])},
            r"whole number of neurons, but 4 x 1.6 is 6.4: take another width, or Dense\(..., ratio=6 / 4\)",
        ),
        ({"sampler": WeightSampler()}, "`control` must be False"),
        ({"target": (lambda q: q.K1[-1, 0, 0], 0.0)}, "`target`"),
        ({"target": (lambda q: q.K1[-1, 0, 0], "0.1")}, "`target` must be a function .* its standard error is '0.1'"),
        ({"target": 0.002}, r"`target` must be a function of the quantities .* such as `\(lambda q: .* but is 0\.002"),
        (
            {"target": (lambda q: q.K1[-1], 0.1)},
            r"must give one number, but gives an array of float64 of shape \(2, 2\)",
        ),
        ({"target": (lambda q: {"a": q.K1[-1, 0, 0]}, 0.1)}, "must give one number, but gives an array of object"),
        (
            {"target": (lambda q: q.K1[-1, 2, 0], 0.1)},
            "function in `target` fails: IndexError: index 2 is out of bounds",
        ),
        (
            {"target": (lambda q: q.V4_excess[-1, 0, 0, 0, 0], 0.1), "control": False},
            "function in `target` fails: TypeError: .* Without control variates `V4_excess` is None",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            estimate(**(run | change))


@pytest.mark.thorough
def test_targets_that_are_not_finite_say_so(key):
    """A target that is not finite raises during the run, since it cannot always be known before: K1 is zero at depth
    zero, for example."""
    with pytest.raises(
        ValueError, match=r"has standard error nan after \d+ networks: take a function that stays finite"
    ):
        estimate(
            Model(Erf(), 2.0),
            K0,
            width=4,
            depth=3,
            eps=0.1,
            networks=100,
            key=key,
            target=(lambda q: q.K1[0, 0, 0] * np.nan, 0.1),
            progress=False,
        )


@pytest.mark.thorough
def test_non_finite_is_named(key):
    """A cubic activation diverges: the error says where first, and does not wait for the end. So for single networks,
    and for Q itself."""
    model = Model(Polynomial([0.0, 0.0, 0.0, 1.0]), 2.0)
    with pytest.raises(
        FloatingPointError, match=r"entry \[0, 0\] of G at layer [2-9] of network \d+ is (inf|nan)\. .* eps"
    ):
        sample_kernels(model, K0[:1, :1], width=4, depth=30, eps=1.0, networks=16, key=key, save_at=range(31))
    with pytest.raises(FloatingPointError, match=r"Q\[0, 0\] at K\[0, 0\] = 1e\+110 is (inf|nan)"):
        model.Q([[1e110]])
    with pytest.raises(FloatingPointError, match=r"entry \[0, 0\] of [GS] at layer [2-6], .* eps"):
        estimate(
            model,
            K0[:1, :1],
            width=4,
            depth=30,
            eps=1.0,
            networks=200,
            key=key,
            control=False,
            save_at=range(0, 31, 2),
            progress=False,
        )


@pytest.mark.thorough
def test_kernels_fit_where_their_moments_do_not(key, monkeypatch):
    """Where second moments do not fit the memory, `sample_kernels` runs."""
    monkeypatch.setattr(plan, "host_memory", lambda: 2**23)
    sizes = {"width": 4, "depth": 40, "eps": 0.1, "key": key}
    assert sample_kernels(Model(Linear(), 1.0), np.eye(3), networks=1, **sizes).shape == (1, 41, 3, 3)


def test_a_run_that_cannot_fit_says_what_it_needs(key, monkeypatch):
    """The error of a run that cannot fit says what needs the memory (second moments, single networks or kernels), and
    the remedy."""
    linear = Model(Linear(), 1.0)
    small = {"width": 4, "depth": 40, "eps": 0.1, "key": key}
    monkeypatch.setattr(plan, "host_memory", lambda: 2**33)
    with pytest.raises(MemoryError, match=r"about \d+\.\d GiB of memory on the host, which has 8 GiB: .* `save_at`"):
        estimate(linear, jnp.eye(32), networks=1000, **small, progress=False)
    monkeypatch.setattr(plan, "host_memory", lambda: 2**23)
    with pytest.raises(MemoryError, match=r"which has 8 MiB: .* or take `sample_kernels`"):
        estimate(linear, np.eye(3), networks=1000, **small, progress=False)
    monkeypatch.setattr(plan, "host_memory", lambda: 2**33)
    sizes = {"depth": 40, "eps": 0.1, "networks": 1000, "key": key}
    large = {"width": 65536, **sizes}  # one network's weights: 48 GiB
    remedy = r"blocks of 1 networks, \d+ at once. Take a smaller `width`, or `sampler=BlockSampler\(\)`"
    with pytest.raises(MemoryError, match=remedy):
        estimate(linear, K0, **large, sampler=WeightSampler(), control=False, progress=False)
    with pytest.raises(
        MemoryError, match=r"4[89](\.\d)? GiB for 1 networks at once. Take a smaller `width`, or `sampler=Block"
    ):
        sample_kernels(linear, K0, **large, sampler=WeightSampler())
    monkeypatch.setattr(plan, "host_memory", lambda: 2**20)
    with pytest.raises(MemoryError, match=r"at once\. Take a smaller `width` or fewer inputs"):
        estimate(linear, K0, **large, progress=False)
    with pytest.raises(MemoryError, match=r"0\.209 GiB for kernels of 1000000 .* Take fewer networks at a time"):
        sample_kernels(linear, K0, width=4, depth=40, eps=0.1, networks=10**6, key=key, save_at=range(8))


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    own, files = (
        tmp_path / "cgroup",
        [tmp_path / "two" / "memory.max", tmp_path / "one" / "a" / "memory.limit_in_bytes"],
    )
    (tmp_path / "one" / "a" / "b").mkdir(parents=True)
    (tmp_path / "two" / "job" / "step").mkdir(parents=True)
    own.write_text("4:cpu,memory:/a/b\n1:name=systemd:/x\n0::/job/step\n")
    groups = {"": (tmp_path / "two", "memory.max"), "memory": (tmp_path / "one", "memory.limit_in_bytes")}
    monkeypatch.setattr(machine, "CGROUPS", groups)
    monkeypatch.setattr(machine, "OWN_GROUPS", own)
    whole = machine.host_memory()
    assert whole > 2**28
    for text, memory in (("max\n", whole), (f"{2**63 - 4096}\n", whole), (f"{2**27}\n", 2**27)):
        for file in files:
            file.write_text(text)
            assert machine.host_memory() == memory
            file.unlink()


def test_memory_is_what_the_process_may_still_take(monkeypatch):
    """`ulimit -v` counts address space, of which JAX has taken a part."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (used + 2**26, -1))
    assert 2**25 < machine.host_memory() <= 2**26 + 2**20
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (resource.RLIM_INFINITY, -1))
    assert machine.host_memory() > 2**26


@pytest.mark.parametrize(
    ("inputs", "depth", "table"), [(2, 10**9, True), (1, 6 * 10**8, True), (300, 3, False), (120, 40, False)]
)
def test_depth_and_inputs_are_counted_before_anything_is_computed(inputs, depth, table, key, monkeypatch):
    """1e9 layers of two inputs have tables of 12 (5 * 3 + 2 * 4) bytes a layer; 300 inputs have 10^10 second
    moments."""
    monkeypatch.setattr(plan, "host_memory", lambda: 2**35)

    def theory(*args):
        pytest.fail("the theory was computed")

    monkeypatch.setattr(sys.modules[estimate.__module__], "find_limits", theory)
    says = f"infinite-width values of {depth} layers and {inputs} inputs" if table else "for second moments of"
    with pytest.raises(MemoryError, match=says):
        estimate(
            Model(Erf(), 2.0),
            np.eye(inputs),
            width=4,
            depth=depth,
            eps=0.001,
            networks=64,
            key=key,
            save_at=[depth],
            progress=False,
        )


@pytest.mark.thorough
def test_progress_goes_to_stderr(key, capsys):
    run = {"model": Model(Erf(), 2.0), "K0": K0, "width": 4, "depth": 3, "eps": 0.1, "networks": 100, "key": key}
    estimate(**run, progress=False)
    assert capsys.readouterr() == ("", "")
    estimate(**run)
    out, err = capsys.readouterr()
    assert out == ""
    assert "100/100" in err
    assert "networks/s" in err
    assert re.search(r"100 networks in blocks of 1 need about [\d:]+, and", err)
    estimate(**run, target=(lambda q: q.K1[-1, 0, 0], 1e-6))
    assert "it will be about" in capsys.readouterr().err
