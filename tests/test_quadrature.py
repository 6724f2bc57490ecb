"""Gaussian expectations of functions, against closed forms and against adaptive integration.

Relative to what: an expectation E[f g] is compared with its Cauchy-Schwarz bound sqrt(E f^2 E g^2), the one scale that
it cannot exceed, that does not vanish where E[f g] crosses zero, and that follows changes of units.
"""

import math
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from problems import SMOOTH, SUMMED, Case, expansion_from, line, norms, pair_moments, tanh
from scipy.integrate import dblquad

import kernel_eft_jax as keft
from kernel_eft_jax.activations import Expansion
from kernel_eft_jax.quadrature import centred_rule, derivative, hermite_means

VARIANCES = jnp.array([1e-3, 0.3, 1.0, 4.37, 30.0])
UNEQUAL = jnp.array([[2.0, 0.7, -1.1, 0.1], [0.7, 1.0, 0.2, 0.6], [-1.1, 0.2, 0.9, 0.0], [0.1, 0.6, 0.0, 0.5]])
# One input three times: as it is, scaled by 1.5, and negated; and one that is nearly the first.
REPEATED = jnp.outer(v := jnp.array([1.0, 1.5, -1.0, 1.0]), v) * 1.3
REPEATED = REPEATED.at[3, 3].multiply(1 + 1e-9)
compiled_rule, compiled_means = (jax.jit(f, static_argnums=2) for f in (centred_rule, hermite_means))


def gaussian_mean(f, k):
    """E[f(sqrt(k) x)], x standard normal, by a trapezoidal rule: the oracle of this file, itself held to closed
    forms."""
    x, w = line(1 / 32)
    return f(jnp.multiply.outer(jnp.sqrt(k), jnp.asarray(x))) @ w


# --- one variable -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "accuracy"), [(0.0, 1e-12), (1.0, 1e-12), (1e3, 1e-11)])
def test_moments_of_the_centred_rule(width, accuracy):
    """E[x^2m] = (2m - 1)!!, odd moments vanish, wherever nodes crowd."""
    for centre in (0.0, -3.2, 7.0, 30.0):
        x, w = compiled_rule(jnp.array([centre]), jnp.array(width), 104)
        for m in range(4):
            np.testing.assert_allclose(w @ x ** (2 * m), float(mpmath.fac2(2 * m - 1)), rtol=accuracy)
            assert abs(w @ x ** (2 * m + 1)) < accuracy * (w @ np.abs(x) ** (2 * m + 1))


@pytest.mark.parametrize(
    ("f", "mean"),
    [
        (jnp.cos, lambda k: jnp.exp(-k / 2)),
        (lambda x: x**4, lambda k: 3 * k**2),
        (lambda x: jnp.exp(0.3 * x), lambda k: jnp.exp(0.045 * k)),
        (lambda x: jnp.tanh(x) * x, lambda k: k * gaussian_mean(lambda x: 1 - jnp.tanh(x) ** 2, k)),
    ],
    ids=["cos", "x^4", "exp", "Stein"],
)
def test_mean_of_one_variable(f, mean):
    np.testing.assert_allclose(gaussian_mean(f, VARIANCES), mean(VARIANCES), rtol=1e-13, atol=1e-15)


def test_mean_of_one_variable_against_adaptive_integration():
    """E[tanh^2 phi] with 25 digits: the expectation that a 32-point Gauss-Hermite rule has wrong by 3e-3 at 4.37."""
    with mpmath.workdps(25):
        for k in VARIANCES.tolist():
            exact = mpmath.quad(
                lambda x, k=k: mpmath.tanh(mpmath.sqrt(k) * x) ** 2 * mpmath.npdf(x), np.linspace(-13, 13, 27).tolist()
            )
            np.testing.assert_allclose(
                gaussian_mean(lambda x: jnp.tanh(x) ** 2, jnp.array(k)), float(exact), rtol=1e-14
            )


@pytest.mark.parametrize("order", range(5))
def test_derivative(order):
    x = jnp.linspace(-3.0, 3.0, 13)
    np.testing.assert_allclose(derivative(jnp.tanh, order)(x), tanh(np.asarray(x), order), rtol=1e-13, atol=1e-15)


def test_hermite_means_of_sine_and_exponential():
    """E[exp(z x) he_j(x)] = exp(z^2 / 2) z^j / sqrt(j!), with z = i root for sin."""
    j, root = np.arange(24), 1.0
    factor = root**j / np.sqrt([float(math.factorial(i)) for i in j])
    x, w = compiled_rule(jnp.zeros((1, 1)), jnp.array([root]), 100)
    exponential, sine = compiled_means(jnp.stack([jnp.exp(root * x), jnp.sin(root * x)]) * w[None], x, 24)[:, 0]
    np.testing.assert_allclose(exponential[:12], (np.exp(root**2 / 2) * factor)[:12], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(sine, np.exp(-(root**2) / 2) * factor * np.sin(j * np.pi / 2), rtol=1e-10, atol=1e-10)


# --- two variables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "g", "exact"),
    [
        (jnp.sin, jnp.sin, lambda K, a, b: jnp.exp(-(a + b) / 2) * jnp.sinh(K)),
        (lambda x: jnp.exp(0.5 * x), jnp.cos, lambda K, a, b: jnp.exp(a / 8 - b / 2) * jnp.cos(K / 2)),
    ],
    ids=["sin sin", "exp cos"],
)
def test_expectations_in_closed_form(f, g, exact):
    """Values and derivatives by the entries of K, of which the rows belong to f and the columns to g."""

    def formula(K):
        return exact(K, jnp.diagonal(K)[:, None], jnp.diagonal(K)[None, :])

    direction = jnp.cos(jnp.arange(16.0)).reshape(4, 4)
    ours, known = (
        jax.jit(lambda K, Q=Q: jax.jvp(Q, (K,), (direction,))) for Q in (lambda K: keft.expect(f, g, K), formula)
    )
    for K in (UNEQUAL, REPEATED):
        squares = [gaussian_mean(lambda x, f=f: f(x) ** 2, jnp.diagonal(K)) for f in (f, g)]
        scale = jnp.sqrt(jnp.outer(*squares))
        for x, y in zip(ours(K), known(K), strict=True):
            assert jnp.max(jnp.abs(x - y) / scale) < 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("k_aa", "k_bb", "rho", "r", "q"), [(4.37, 4.37, 0.3, 0, 0), (30.0, 1e-3, -0.9, 1, 1), (30.0, 30.0, 0.9599, 2, 2)]
)
def test_oracle_against_adaptive_integration(k_aa, k_bb, rho, r, q):
    """The NumPy rule that other tests rely on, itself tested by SciPy's adaptive cubature."""
    a, b, rest = np.sqrt(k_aa), np.sqrt(k_bb), np.sqrt((1 - rho) * (1 + rho))

    def integrand(y, x):
        return tanh(a * x, r) * tanh(b * (rho * x + rest * y), q) * np.exp(-(x**2 + y**2) / 2) / (2 * np.pi)

    adaptive, _ = dblquad(integrand, -8.5, 8.5, -8.5, 8.5, epsabs=1e-12, epsrel=1e-12)
    case = SMOOTH["Tanh"]
    bound = norms(case, k_aa)[r] * norms(case, k_bb)[q]
    assert abs(pair_moments(case, k_aa, k_bb, rho)[r, q] - adaptive) < 1e-11 * bound


def test_oracle_against_high_precision_at_a_repeated_input():
    """rho = 1: E[s^(r) s^(q)] with 25 digits, r + q = 4, where poles of the integrand are strongest."""
    case, derivatives = SMOOTH["Tanh"], (lambda t: t, lambda t: 1 - t**2, lambda t: -2 * t * (1 - t**2))
    with mpmath.workdps(25):
        for k in (1e-3, 30.0):
            exact = mpmath.quad(
                lambda x, k=k: derivatives[2](mpmath.tanh(mpmath.sqrt(k) * x)) ** 2 * mpmath.npdf(x),
                np.linspace(-13, 13, 53).tolist(),
            )
            np.testing.assert_allclose(pair_moments(case, k, k, 1.0)[2, 2], float(exact), rtol=1e-13)


# --- the stated error -------------------------------------------------------------------------------------------------


@eqx.filter_jit
def stated_error(activation, k):
    return activation.error(k)


def steep(b: float) -> Case:
    return Case(keft.Smooth(lambda x: jnp.tanh(b * x)), lambda x, r: b**r * tanh(b * x, r), np.pi / (2 * b))


HONEST = {
    "tanh 5x": (steep(5.0), (1.0, 4.37, 30.0)),
    "exp": (Case(keft.Smooth(jnp.exp), lambda x, r: np.exp(x)), (0.1, 1.0, 4.37)),
}


def true_error(case: Case, k: float, rho: float, found: Expansion) -> float:
    """Error of value, gradient and hessian relative to E[s^2] for relative changes of k."""
    exact = expansion_from(pair_moments(case, k, k, rho))
    errors = [k**order * np.abs(x - y).max() for order, (x, y) in enumerate(zip(found, exact, strict=True))]
    return max(errors) / norms(case, k)[0] ** 2


@pytest.mark.parametrize("name", [pytest.param("tanh 5x", marks=pytest.mark.thorough), "exp"])
def test_stated_error_is_honest(name):
    """It never falls below a third of the true error, rounding (1e-12) apart, until it says that all digits are
    lost."""
    case, variances = HONEST[name]
    points = list(product(variances, (0.9599, 0.9601, -1.0)))
    ks = jnp.array([[k, rho * k, k] for k, rho in points])
    found = jax.device_get(eqx.filter_jit(jax.lax.map)(case.activation.expansion, ks))
    stated = dict(zip(variances, stated_error(case.activation, jnp.array(variances)).tolist(), strict=True))
    for i, (k, rho) in enumerate(points):
        if stated[k] < 0.1:
            true = true_error(case, k, rho, Expansion(*(x[i, 1] for x in found)))
            assert 3 * stated[k] + 1e-12 > true, f"at k = {k}, rho = {rho}"


@pytest.mark.thorough
def test_stated_error_is_useful():
    """Small where the rule has converged, large where it cannot: beyond its range, and at kinks, wherever they lie."""
    for name in ("Tanh", "SiLU", "Softplus(2)"):
        assert stated_error(SUMMED[name].activation, VARIANCES).max() < 1e-11
    assert stated_error(keft.Smooth(lambda x: jax.nn.relu(x - 0.013)), VARIANCES).min() > 1e-3
    # At large k no derivative above s'' is taken, so that a jump of s'' does no harm there.
    elu = np.asarray(stated_error(keft.Smooth(jax.nn.elu), VARIANCES))
    assert elu[VARIANCES <= 1].min() > 1e-3
    assert elu[VARIANCES > 1].max() < 1e-11
