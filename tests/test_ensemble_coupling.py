r"""How free copies share a network's normals, and factors of near-copies: against algebra in float64, closed forms, and
the theory.

Statistical tests say how many standard errors they allow; false alarms are those of normal numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel_eft_jax import BlockSampler, Dense, Erf, GOnly, Linear, Model, ReLU, RMSNorm, Tanh, WeightSampler, solve
from kernel_eft_jax.ensemble import estimate, sample_kernels
from kernel_eft_jax.ensemble.factors import features_factor, gram, lower_inverse, near_factor, unit_rows

SIZES = [2, 3, 9, 17]
near_factor, unit_rows, lower_inverse = jax.jit(near_factor), jax.jit(unit_rows), jax.jit(lower_inverse)


def factors(key, inputs, neurons, networks=4):
    """Factors of the kernels of `neurons` random features of each network, networks last; float64, lower triangular."""
    x = np.asarray(jax.random.normal(key, (networks, inputs, neurons)), np.float64)
    L = np.linalg.cholesky(x @ x.transpose(0, 2, 1) / neurons + 1e-13 * np.eye(inputs))
    L[np.abs(L) < 1e-5] = 0
    return np.moveaxis(L, 0, -1)


# --- what the free copies are driven by -------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", SIZES)
@pytest.mark.parametrize("neurons", [1, 40])
def test_turned_factors_have_the_covariance_of_infinite_width(key, inputs, neurons):
    """(L0 U)(L0 U)^T = L0 L0^T to rounding, whatever the network: also of one neuron, and for a limit of two repeated
    inputs."""
    L = factors(key, inputs, neurons)
    K = 0.5 * np.eye(inputs) + 0.5
    K[-1], K[:, -1] = K[0], K[:, 0]
    K[-1, -1] = K[0, 0]
    for singular in (False, True):
        L0 = np.linalg.cholesky(K + 1e-13 * np.eye(inputs) if singular else 0.5 * np.eye(inputs) + 0.5)
        L0[np.abs(L0) < 1e-5] = 0
        inverse = lower_inverse(jnp.asarray(L0))
        found = np.asarray(near_factor(jnp.asarray(L0), inverse, jnp.asarray(L)))
        np.testing.assert_allclose(
            np.einsum("abB,cbB->acB", found, found), np.repeat((L0 @ L0.T)[..., None], L.shape[2], 2), atol=1e-12
        )


def test_the_rotation_is_the_orthogonal_part_to_first_order(key):
    """L = L0 (1 + d): U is the polar factor of 1 + d up to d^2, and no order of the inputs is special."""
    L0 = np.linalg.cholesky(0.5 * np.eye(4) + 0.5)
    noise = np.tril(np.asarray(jax.random.normal(key, (4, 4)), np.float64))
    for size in (1e-2, 1e-3):
        left, _, right = np.linalg.svd(np.eye(4) + size * noise)
        L = (L0 @ (np.eye(4) + size * noise))[:, :, None]
        U = np.linalg.solve(
            L0, np.asarray(near_factor(jnp.asarray(L0), lower_inverse(jnp.asarray(L0)), jnp.asarray(L)))[..., 0]
        )
        assert np.abs(U - left @ right).max() < 10 * size**2


def test_rows_of_unit_length(key):
    """Rows have length one; a row of zeros becomes the unit row of the input's own normals."""
    L = factors(key, 3, 2)
    L[1, :, 0] = 0
    rows = np.asarray(unit_rows(jnp.asarray(L)))
    np.testing.assert_allclose((rows**2).sum(axis=1), 1, rtol=1e-14)
    assert np.array_equal(rows[1, :, 0], [0, 1, 0])
    np.testing.assert_allclose(rows * np.linalg.norm(L, axis=1)[:, None], L, atol=1e-15)


# --- errors of K1 -----------------------------------------------------------------------------------------------------


RUN = {"width": 64, "depth": 20, "eps": 0.316, "networks": 4096, "save_at": 20, "progress": False}


@functools.cache
def equivalent_inputs(inputs):
    """Errors of K1 for tanh, K0 = 2 on and 0.6 off the diagonal."""
    run = RUN | {"depth": 40, "eps": 0.2236, "save_at": 40}
    return estimate(Model(Tanh(), 2.0), 0.6 + 1.4 * np.eye(inputs), **run, key=jax.random.key(inputs))


@pytest.mark.parametrize(
    "inputs", [pytest.param(2, marks=pytest.mark.thorough), pytest.param(4, marks=pytest.mark.slow)]
)
def test_equivalent_inputs_have_equal_errors(inputs):
    """Errors of K1_aa agree for all a, and those of K1_ab for all a < b.

    Errors by g groups are good to one part in sqrt(2 (g - 1)); two of them within 5 errors of their ratio: false alarm
    6e-7 for each of the 1 or 21 pairs of entries. An order of the inputs is seen: by the Cholesky factors alone the
    errors of K1_00 and K1_11 differ by 4.4.
    """
    est = equivalent_inputs(inputs)
    bound = 5 * np.sqrt(2) / np.sqrt(2 * (len(est.sums.groups) - 1))
    assert bound < 0.5
    error, (a, b) = np.log(est.stderr.K1[-1]), np.triu_indices(inputs, 1)
    for entries in (np.diagonal(error), error[a, b]):
        assert np.ptp(entries) < bound


@pytest.mark.thorough
def test_errors_are_smaller_than_with_the_factors_alone():
    """Times sqrt(networks) 0.37 on and 1.32 off the diagonal for 40 layers; by Cholesky factors 0.36, 1.79, 1.59: 1.78
    in the mean of logarithms.

    Here less than 1.5 of that is not enough: 0.67. The error of the mean is good to 3 %.
    """
    est = equivalent_inputs(2)
    error = est.stderr.K1[-1][np.triu_indices(2)] * np.sqrt(est.networks)
    assert np.exp(np.log(error).mean()) < 1.007 / 1.5


@pytest.mark.slow
def test_behind_a_norm_every_input_alone_is_known(key):
    """S_aa of the hidden neurons is that of its free copy, for each input: K1_aa = 0 to rounding where the norm comes
    first.

    In the fast tier a gated block holds it, in test_ensemble_blocks.py, by the run that its control variates take.
    """
    model = Model([RMSNorm(), Dense(1.0, ratio=2), Erf(), Dense(2.0)])
    est = estimate(model, 0.6 + 1.4 * np.eye(2), **RUN | {"depth": 5, "save_at": 5, "networks": 1024}, key=key)
    for name in ("K1", "U1"):
        assert np.abs(np.diagonal(getattr(est, name)[-1])).max() < 1e-3
        assert np.diagonal(getattr(est.stderr, name)[-1]).max() < 1e-4
    assert est.stderr.K1[-1, 0, 1] > 1e-3


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([0, 1, 2, 3], id="few neurons", marks=pytest.mark.slow),
        pytest.param([0, 0, 1, 1], id="repeated", marks=pytest.mark.thorough),
        pytest.param([0, 1, 4, 5], id="near-copies and opposite", marks=pytest.mark.thorough),
    ],
)
def test_singular_kernels_leave_control_variates_unbiased(key, rows):
    """Linear units, n = 3, four inputs: K1 = U1 = 0 and kappa4's fluctuation too, at a rotation that is far from one.
    40,000 networks, 4.5 errors.

    False alarm 1e-4. Repeated inputs have one number: to rounding their copies never part.
    """
    x = np.random.default_rng(3).normal(size=(6, 5)) / 2
    x[4], x[5] = x[0] + 1e-3 * x[5], -x[1]
    K = (x @ x.T)[np.ix_(rows, rows)]
    run = {"width": 3, "depth": 5, "eps": 0.5, "networks": 40_000, "save_at": [2, 5], "progress": False}
    est = estimate(Model(Linear(), 1.5), K, **run, key=key)
    for name in ("K1", "U1"):
        value, error = getattr(est, name), getattr(est.stderr, name)
        assert (np.abs(value) < 4.5 * error + 1e-5).all(), (name, value / error)
        assert (error < 0.2 * np.max(np.abs(K))).all()
    if rows == [0, 0, 1, 1]:
        for name in ("G", "S", "K1", "U1"):
            value = getattr(est, name)
            np.testing.assert_allclose(value[:, 0, 0], value[:, 0, 1], atol=1e-5)
            np.testing.assert_allclose(value[:, 2, 2], value[:, 3, 2], atol=1e-5)


# --- near-copies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gap",
    [
        pytest.param(1e-4, marks=pytest.mark.thorough),
        pytest.param(5e-7, marks=pytest.mark.slow),
        pytest.param(5e-8, marks=pytest.mark.thorough),
    ],
)
def test_near_copies_drift_apart_as_they_should(key, gap):
    """erf, C_W = 2, K = [[1, 1 - gap], [., 1]]: G_00 + G_11 - 2 G_01 is what the infinite-width recursion has in
    float64.

    Within 4.5 standard errors of 5,000 networks, 0.6 % of it, and 1 % for all of order 1/n (n = 64); false alarm 7e-6.
    By the factor of the kernel alone half of it and more is lost below 1e-6.
    """
    K = np.array([[1, 1 - gap], [1 - gap, 1]])
    model, run = Model(Erf(), 2.0), {"depth": 10, "eps": 0.3, "save_at": 10}
    expected = solve(model, K, layers=[10], eps=0.3, closure=GOnly()).K0[-1]
    G = sample_kernels(model, K, width=64, networks=5000, key=key, **run).astype(float)[:, 0]
    apart = np.array([1, -2, 1]) @ np.array([G[:, 0, 0], G[:, 0, 1], G[:, 1, 1]])
    theory = expected[0, 0] + expected[1, 1] - 2 * expected[0, 1]
    assert abs(apart.mean() - theory) < 4.5 * apart.std() / np.sqrt(len(apart)) + 0.01 * theory


@pytest.mark.thorough
def test_both_samplers_agree_on_near_copies(key):
    """ReLU at n = 8 with biases: the mean and the variance of what parts two inputs, within 4.5 joint errors."""
    K, model = np.array([[1, 1 - 1e-6], [1 - 1e-6, 1]]), Model(ReLU(), 1.5, 0.3)
    run = {"width": 8, "depth": 6, "eps": 0.4, "save_at": 6, "networks": 20_000}
    apart = []
    for sampler, k in zip((BlockSampler(), WeightSampler()), jax.random.split(key), strict=True):
        G = sample_kernels(model, K, **run, key=k, sampler=sampler).astype(float)[:, 0]
        apart.append(G[:, 0, 0] + G[:, 1, 1] - 2 * G[:, 0, 1])
    x, y = apart
    for f, g in ((x, y), (x**2, y**2)):
        assert abs(f.mean() - g.mean()) < 4.5 * np.hypot(f.std(), g.std()) / np.sqrt(len(f))


@jax.jit
def factor_of(dense, x):
    return features_factor(dense, gram(x), lambda: x)


@pytest.mark.parametrize("inputs", [3, pytest.param(9, marks=pytest.mark.slow), 17])
@pytest.mark.parametrize("C_b", [0.0, 0.4])
def test_factors_from_features(key, inputs, C_b):
    """L L^T = C_b + C_W S in directions that are 1e-3 and 1e-4 of the inputs, to 1 and 5 %: float32 features, NumPy's
    QR in float64.

    The last inputs are near-copies of the first, and of each other; in another network the second and the last repeat
    the first, which is exact, and others come between. Other networks in the batch change no bit.
    """
    m, networks = 2 * inputs + 6, 3
    x = np.array(jax.random.normal(key, (inputs, m, networks), jnp.float32))
    noise = np.array(jax.random.normal(jax.random.split(key)[0], (inputs, m, networks), jnp.float32))
    x[-1, :, 1] = x[0, :, 1] + np.float32(1e-3) * noise[-1, :, 1]
    x[-1, :, 2] = x[0, :, 2]
    if inputs > 2:
        x[-2, :, 1] = x[0, :, 1] + np.float32(1e-4) * noise[-2, :, 1]
    x[1, :, 2] = x[0, :, 2]
    dense = Dense(jnp.float32(1.7), jnp.float32(C_b))

    def factor(x):
        return np.asarray(factor_of(dense, jnp.asarray(x)), np.float64)

    L = factor(x)
    whole = np.concatenate([np.sqrt(1.7 / m) * x, np.full((inputs, 1, networks), np.sqrt(C_b))], axis=1).astype(float)
    for i in range(networks):
        Q = whole[..., i] @ whole[..., i].T
        assert np.abs(L[..., i] @ L[..., i].T - Q).max() < 20 * inputs * np.finfo(np.float32).eps * Q.max()
        assert (np.triu(L[..., i], 1) == 0).all()
    R = np.abs(np.diagonal(np.linalg.qr(whole[..., 1].T)[1]))
    np.testing.assert_allclose(L[-1, -1, 1], R[-1], rtol=0.01)
    if inputs > 2:
        np.testing.assert_allclose(L[-2, -2, 1], R[-2], rtol=0.05)
    assert np.array_equal(L[-1, :, 2], L[0, :, 2])
    assert np.array_equal(L[1, :, 2], L[0, :, 2])
    alone = np.concatenate([x[..., :1]] * 3, axis=-1)
    assert np.array_equal(factor(alone)[..., 0], L[..., 0])


def test_directions_that_are_tiny_beside_tiny_ones_are_found():
    """e1, e1 + d e2 and e1 + d e2 + d^2 e3 with d = 1e-7 have the factor 1; 1, d; 1, d, d^2, by hand. The last entry,
    1e-14 of its input, needs a second round of Gram and Schmidt: the first leaves it beside a d as large as itself
    over d."""
    d = 1e-7
    L = np.array([[1.0, 0.0, 0.0], [1.0, d, 0.0], [1.0, d, d**2]])
    found = factor_of(Dense(jnp.array(3.0), jnp.array(0.0)), jnp.asarray(L)[:, :, None])
    np.testing.assert_allclose(np.asarray(found)[:, :, 0], L, rtol=1e-6)
