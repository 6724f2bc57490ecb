r"""GOnly against what is known without it.

Oracles: the trajectories of `problems`, closed forms among them; the same equations written a second time in plain
NumPy and SciPy, with full index notation, an own quadrature and an own integrator; numbers of converged quadrature
known to five digits. A control shows that the comparison can fail: with chi wrong by ten per cent it does.
"""

from itertools import product
from math import comb

import jax.numpy as jnp
import numpy as np
import pytest
from problems import select
from scipy.integrate import solve_ivp

import kernel_eft_jax as keft
from kernel_eft_jax.pairs import pack
from kernel_eft_jax.studies.kawase_ota.euler import Euler

PUBLISHED_K0 = 0.6 + 1.4 * np.eye(3)  # three of the four published inputs, which are equivalent
UNEQUAL_K0 = np.array([[2.0, 0.5], [0.5, 1.3]])
C_W, C_b = 1.7, 0.3


def wick(K):
    return np.einsum("ac,bd->abcd", K, K) + np.einsum("ad,bc->abcd", K, K)


# --- the same equations in NumPy: nothing below uses the package ------------------------------------------------------


def tanh_derivatives(x):
    s = np.tanh(x)
    c = 1 - s**2
    return np.stack([s, c, -2 * s * c, c * (6 * s**2 - 2), 8 * s * c * (2 - 3 * s**2)])


def pair_expectations(K, a, b):
    """E[s^(i)(phi_a) s^(j)(phi_b)] for i, j <= 4 by the trapezoidal rule in whitened coordinates."""
    z = np.arange(-8, 8.05, 0.1)
    w = np.exp(-(z**2) / 2) * 0.1 / np.sqrt(2 * np.pi)
    if a == b:
        s = tanh_derivatives(np.sqrt(K[a, a]) * z)
        return np.einsum("ix,jx,x->ij", s, s, w)
    L = np.linalg.cholesky(K[np.ix_([a, b], [a, b])])
    s_b = tanh_derivatives(L[1, 0] * z[:, None] + L[1, 1] * z) @ w
    return np.einsum("ix,jx,x->ij", tanh_derivatives(L[0, 0] * z), s_b, w)


def derivative_of_product(moments, a, b, slots):
    """E[d_x d_y ... (s_a s_b)] for inputs x, y, ... in `slots`, from the table of `pair_expectations`."""
    if a == b:
        order = len(slots)
        return sum(comb(order, i) * moments[i, order - i] for i in range(order + 1)) if set(slots) <= {a} else 0.0
    return moments[slots.count(a), slots.count(b)] if set(slots) <= {a, b} else 0.0


def gaussian_derivatives(K):
    """Q, dQ and d2Q over all ordered index pairs: d E[F] = 1/2 sum_xy E[d_x d_y F] dK_xy, and so again for the
    second."""
    N = len(K)
    Q, first, second = np.empty((N, N)), np.empty((N,) * 4), np.empty((N,) * 6)
    for a, b in product(range(N), repeat=2):
        moments = pair_expectations(K, a, b)
        Q[a, b] = C_b + C_W * moments[0, 0]
        for slots in product(range(N), repeat=2):
            first[a, b][slots] = C_W / 2 * derivative_of_product(moments, a, b, slots)
        for slots in product(range(N), repeat=4):
            second[a, b][slots] = C_W / 4 * derivative_of_product(moments, a, b, slots)
    return Q, first, second


def numpy_g_only(K0, ts, chi_factor=1.0):
    """K0, V4, K1 at ts by SciPy's eighth-order Runge-Kutta method, in full index notation."""
    N = len(K0)
    sizes = np.cumsum([N**2, N**4])

    def unpacked(y):
        K, V, K1 = np.split(y, sizes)
        return K.reshape(N, N), V.reshape((N,) * 4), K1.reshape(N, N)

    def drift(_, y):
        K, V, K1 = unpacked(y)
        Q, first, second = gaussian_derivatives(K)
        chi = chi_factor * first
        sigma = sum(np.einsum(s, K, Q) for s in ("ac,bd->abcd", "ad,bc->abcd", "bc,ad->abcd", "bd,ac->abcd"))
        dV = np.einsum("abxy,xycd->abcd", chi, V) + np.einsum("cdxy,abxy->abcd", chi, V) + sigma
        dK1 = np.einsum("abxy,xy->ab", chi, K1) + 0.5 * np.einsum("abxyzw,xyzw->ab", second, V)
        return np.concatenate([Q.ravel(), dV.ravel(), dK1.ravel()])

    start = np.concatenate([K0.ravel(), wick(K0).ravel(), np.zeros(N**2)])
    run = solve_ivp(drift, (0, ts[-1]), start, method="DOP853", t_eval=ts, rtol=1e-8, atol=1e-9)
    return [np.stack(values) for values in zip(*map(unpacked, run.y.T), strict=True)]


def assert_same_statistics(solution, K0, V4, K1):
    np.testing.assert_allclose(solution.K0, K0, rtol=1e-6)
    np.testing.assert_allclose(solution.V4, V4, rtol=1e-6)
    np.testing.assert_allclose(solution.K1, K1, atol=1e-6)


# --- tests ------------------------------------------------------------------------------------------------------------

LAYERS = {"layers": [0, 3, 6], "eps": 0.5}


@pytest.fixture(scope="module")
def tanh():
    return keft.Model(keft.Tanh(), C_W=2.0)


@pytest.fixture(scope="module")
def published(tanh):
    """The published kernel, in thick layers."""
    return keft.solve(tanh, PUBLISHED_K0, closure=keft.GOnly(), **LAYERS)


@pytest.fixture(scope="module")
def unequal():
    model = keft.Model(keft.Tanh(), C_W=C_W, C_b=C_b)
    return keft.solve(model, UNEQUAL_K0, np.array([0.0, 0.4, 1.2]), closure=keft.GOnly())


# Quick: several inputs with biases in the continuum, and a closed form in layers. A kink by `make thorough`.
QUICK, THOROUGH = ("linear, C_b = 0.4", "GELU layers"), ("relu",)
KNOWN = select("V4_g_only")


@pytest.mark.parametrize(
    "problem",
    [
        *(p for p in KNOWN if p.name in QUICK),
        *(pytest.param(p, marks=pytest.mark.thorough) for p in KNOWN if p.name in THOROUGH),
        *(pytest.param(p, marks=pytest.mark.slow) for p in KNOWN if p.name not in QUICK + THOROUGH),
    ],
    ids=lambda problem: problem.name,
)
def test_known_trajectories(problem):
    solution = keft.solve(problem.model, problem.K0, closure=keft.GOnly(), **problem.depth)
    # In the continuum the adaptive solver's tolerance of 1e-8 a step is what is left.
    least = 1e-6 if "ts" in problem.depth else 1e-12
    for quantity, field in (("K0", "K0"), ("V4_g_only", "V4"), ("K1_g_only", "K1")):
        value, rtol, _ = problem.known[quantity]
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            getattr(solution, field), value, atol=max(rtol, least) * max(scale, 1), err_msg=quantity
        )


def test_published_setting_with_converged_expectations(tanh):
    # A one-input recursion with a trapezoidal rule, written apart from this package.
    one = keft.solve(tanh, PUBLISHED_K0[:1, :1], layers=800, eps=0.05, closure=keft.GOnly())
    at_two = [x.item() for x in (one.K0, one.V4, one.K1)]
    assert at_two == [
        pytest.approx(4.36796, abs=5e-6),
        pytest.approx(47.808104, abs=1e-6),
        pytest.approx(-1.0269677, abs=1e-7),
    ]


@pytest.mark.thorough
def test_inputs_of_equal_variance_and_overlap_stay_equivalent(published):
    K0, K1, V4 = (np.asarray(x[-1]) for x in (published.K0, published.K1, published.V4))
    swap = [2, 0, 1]
    np.testing.assert_allclose(K0[np.ix_(swap, swap)], K0, rtol=1e-12)
    np.testing.assert_allclose(K1[np.ix_(swap, swap)], K1, rtol=1e-10)
    np.testing.assert_allclose(V4[np.ix_(swap, swap, swap, swap)], V4, rtol=1e-11)


@pytest.mark.thorough
def test_agrees_with_an_independent_implementation(unequal):
    assert_same_statistics(unequal, *numpy_g_only(UNEQUAL_K0, np.asarray(unequal.ts)))


@pytest.mark.thorough
def test_negative_control_chi_wrong_by_ten_per_cent_is_caught(unequal):
    K0, V4, K1 = numpy_g_only(UNEQUAL_K0, np.asarray(unequal.ts), chi_factor=1.1)
    np.testing.assert_allclose(unequal.K0, K0, rtol=1e-6)  # the mean does not see chi
    for wrong in ((V4, unequal.K1), (unequal.V4, K1)):
        with pytest.raises(AssertionError):
            assert_same_statistics(unequal, K0, *wrong)


@pytest.mark.thorough
def test_one_input_does_not_feel_the_others(tanh, published):
    alone, together = keft.solve(tanh, np.array([[2.0]]), closure=keft.GOnly(), **LAYERS), published
    np.testing.assert_allclose(alone.K0[:, 0, 0], together.K0[:, 0, 0], rtol=1e-7)
    np.testing.assert_allclose(alone.V4[:, 0, 0, 0, 0], together.V4[:, 0, 0, 0, 0], rtol=1e-7)
    np.testing.assert_allclose(alone.K1[:, 0, 0], together.K1[:, 0, 0], atol=1e-7)


@pytest.mark.thorough
def test_order_of_inputs_only_relabels(unequal):
    model = keft.Model(keft.Tanh(), C_W=C_W, C_b=C_b)
    swapped = keft.solve(model, UNEQUAL_K0[::-1, ::-1], unequal.ts, closure=keft.GOnly())
    np.testing.assert_allclose(swapped.K0[:, ::-1, ::-1], unequal.K0, rtol=1e-12)
    np.testing.assert_allclose(swapped.V4[:, ::-1, ::-1, ::-1, ::-1], unequal.V4, rtol=1e-11)
    np.testing.assert_allclose(swapped.K1[:, ::-1, ::-1], unequal.K1, rtol=1e-10)


@pytest.mark.thorough
def test_covariance_is_symmetric_and_positive_semi_definite(published, unequal):
    for solution in (published, unequal):
        V = np.asarray(solution.packed.V4)
        np.testing.assert_allclose(V, np.swapaxes(V, -1, -2), rtol=1e-13)
        assert np.linalg.eigvalsh(V).min() > 0
        full = np.asarray(solution.V4)
        np.testing.assert_array_equal(full, np.einsum("tabcd->tbacd", full))
        np.testing.assert_array_equal(full, np.einsum("tabcd->tabdc", full))


def assert_rows_copied(twice, once):
    """`twice` has the inputs 0, 1, 0 of `once`."""
    for name, atol in (("K0", 1e-7), ("V4", 1e-6), ("K1", 1e-6)):
        expected = np.asarray(getattr(once, name))
        for axis in range(1, expected.ndim):
            expected = np.take(expected, [0, 1, 0], axis=axis)
        np.testing.assert_allclose(getattr(twice, name), expected, atol=atol, err_msg=name)


REPEATED_K0 = UNEQUAL_K0[np.ix_([0, 1, 0], [0, 1, 0])]


@pytest.mark.thorough
def test_a_repeated_input_copies_its_rows(tanh):
    """The first input in the place of a third, against that third input's neighbours without the copy."""
    three = np.pad(UNEQUAL_K0, (0, 1)) + np.diag([0.0, 0.0, 0.7])
    apart, twice = (keft.solve(tanh, K0, closure=keft.GOnly(), **LAYERS) for K0 in (three, REPEATED_K0))
    assert_rows_copied(twice, apart)


@pytest.mark.slow  # in CI their derivatives: test_gradients
def test_a_repeated_input_copies_its_rows_for_kinked_activations():
    model, layers = keft.Model(keft.ReLU(), C_W=2.0, C_b=0.1), {"layers": [50, 100], "eps": 0.1}
    once = keft.solve(model, UNEQUAL_K0, closure=keft.GOnly(), **layers)
    assert_rows_copied(keft.solve(model, REPEATED_K0, closure=keft.GOnly(), **layers), once)


@pytest.mark.thorough
def test_starts_from_the_wishart_covariance(published):
    np.testing.assert_allclose(published.V4[0], wick(PUBLISHED_K0), rtol=1e-14)
    np.testing.assert_array_equal(published.K1[0], 0)
    np.testing.assert_allclose(published.packed.K0[0], pack(jnp.asarray(PUBLISHED_K0)), rtol=1e-14)


@pytest.mark.thorough
def test_many_thick_layers_of_gelu():
    """K1 is right at large variances: 40 layers of GELU, C_W = 2, K0 = 1, eps = 1, end at K0 = 9.4e11.

    The numbers are mpmath's, with 40 digits, from E[gelu^2] in closed form and its derivatives: k' = k + Q and
    K1' = K1 + chi K1 + Hess V4 / 2. With the layer V4' = (1 + chi)^2 V4 + 4 k Q + 2 Q^2 K1 ends at 41170248559.5248,
    and with the plain step V4' = V4 + 2 chi V4 + 4 k Q at 48938785645.9941. Sums of the second derivatives of a pair
    lose all digits here, and gave -5.9e12.
    """
    model = keft.Model(keft.GELU(), 2.0)
    for closure, K1 in ((keft.GOnly(), 41170248559.5248), (Euler(), 48938785645.9941)):
        s = keft.solve(model, [[1.0]], layers=[40], eps=1.0, closure=closure)
        np.testing.assert_allclose(s.K0[0, 0, 0], 941280462591.0, rtol=1e-12)
        np.testing.assert_allclose(s.K1[0, 0, 0], K1, rtol=1e-9)


@pytest.mark.thorough
def test_a_steep_error_function_in_single_precision():
    """K0, V4 and K1 of erf(1000 x), C_W = 1, K0 = 1, eps = 0.25, 16 layers, are right to 1e-4 in float32.

    The recursion is that of GELU, with E[s^2] = (2 / pi) arcsin(2 k / (1 + 2 k)) at 1e6 times the variance. Derivatives
    of E[s^2] are 1e-6 of the terms of which they are the sum for a pair.
    """
    k, V4, K1, h, scale = 1.0, 2.0, 0.0, 1 / 16, 1e6
    for _ in range(16):
        A, D = 1 + 2 * scale * k, 1 + 4 * scale * k
        Q = 2 / np.pi * np.arctan2(A - 1, np.sqrt(D))
        chi = 4 / np.pi * scale / (A * np.sqrt(D))
        hess = -2 * chi * scale * (1 / A + 1 / D)
        K1 += h * (chi * K1 + 0.5 * hess * V4)
        V4 = (1 + h * chi) ** 2 * V4 + 4 * h * k * Q + 2 * h**2 * Q**2
        k += h * Q
    model = keft.Model(keft.Scaled(keft.Erf(), 1000.0), 1.0)
    s = keft.solve(model, jnp.ones((1, 1), jnp.float32), layers=[16], eps=0.25, closure=keft.GOnly())
    assert s.K1.dtype == jnp.float32
    np.testing.assert_allclose([s.K0[0, 0, 0], s.V4[0, 0, 0, 0, 0], s.K1[0, 0, 0]], [k, V4, K1], rtol=1e-4)
