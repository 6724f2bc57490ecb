"""The Gaussian second moment of every activation, with its derivatives.

The claim: in float64, for variances from 1e-3 to 30 and correlations from -1 to 1 inclusive, E[s_a s_b] and its first
and second derivatives are accurate to 1e-10. Each derivative is, by Price's theorem, an expectation E[s^(r)_a s^(q)_b],
and its error is taken relative to the Cauchy-Schwarz bound sqrt(E[s^(r)^2] E[s^(q)^2]): the scale that it cannot
exceed, that does not vanish where the expectation crosses zero, and that follows changes of units.
"""

import math
from fractions import Fraction
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import ACTIVATIONS, CLOSED, KINKED, SMOOTH, expansion_from, norms, pair_moments, softplus
from scipy.integrate import quad
from scipy.special import ndtr

import kernel_eft_jax as keft
from kernel_eft_jax.activations import Expansion
from kernel_eft_jax.pairs import pack, sigma_product, unpack_covariance, wick

ACCURACY = 1e-10
VARIANCES = ((1e-3, 1e-3), (1e-3, 30.0), (30.0, 1e-3), (0.3, 4.37), (4.37, 4.37), (30.0, 30.0))
CORRELATIONS = (0.0, 0.3, -0.5, 0.9, 0.9599, 0.9601, -0.97, 0.999, 1 - 1e-6, 1 - 1e-9, -1 + 1e-9, 1.0, -1.0)
GRID = [(*k, rho) for k, rho in product(VARIANCES, CORRELATIONS)]
KERNELS = jnp.array([[k_aa, rho * np.sqrt(k_aa * k_bb), k_bb] for k_aa, k_bb, rho in GRID])


@eqx.filter_jit
def expansions(activation: keft.Activation, ks):
    return jax.lax.map(activation.expansion, ks)


def between_inputs(activation: keft.Activation, ks=KERNELS) -> list[Expansion]:
    """The expansion at the pair of the two inputs, kernel by kernel."""
    arrays = jax.device_get(expansions(activation, ks))
    return [Expansion(*(x[i, 1] for x in arrays)) for i in range(len(ks))]


def tiers(names, quick, thorough=()):
    """The names as parameters of a test: those in neither list are for `make slow`."""
    marks = {name: () if name in quick else pytest.mark.slow for name in names}
    marks |= dict.fromkeys(thorough, pytest.mark.thorough)
    return [pytest.param(name, marks=marks[name]) for name in names]


def assert_accurate(
    found: Expansion, exact: Expansion, bound: Expansion, where: object, accuracy: float = ACCURACY
) -> None:
    for name, x, y, scale in zip(Expansion._fields, found, exact, bound, strict=True):
        assert np.all(np.abs(x - y) <= accuracy * scale), f"{name} at (k_aa, k_bb, rho) = {where}: {x}, exact {y}"


# --- smooth activations -----------------------------------------------------------------------------------------------


# Closed forms meet mpmath below, to rounding; one activation stands for each way of summing.
@pytest.mark.parametrize("name", tiers(SMOOTH, ["Linear", "Tanh", "Polynomial", "Scaled"], ["Softplus(2)"]))
def test_accuracy_over_variances_and_correlations(name):
    """Every route against a product rule in plain NumPy with derivatives written by hand."""
    case = SMOOTH[name]
    for (k_aa, k_bb, rho), found in zip(GRID, between_inputs(case.activation), strict=True):
        bound = expansion_from(np.outer(norms(case, k_aa), norms(case, k_bb)))
        assert_accurate(found, expansion_from(pair_moments(case, k_aa, k_bb, rho)), bound, (k_aa, k_bb, rho))


@pytest.mark.parametrize("beta", [0.5, 30.0, -4.0])
def test_the_sharpness_of_softplus_is_one_over_its_scale(beta):
    """s'' = beta sech^2(beta x / 2) / 4 falls to 0.79 of its peak at 1 / sharpness, and to 0.42 at twice that: rules
    lay their nodes by this scale."""
    scale = 1 / np.asarray(keft.Softplus(beta).sharpness)
    second = softplus(beta)(scale * np.arange(3), 2)
    np.testing.assert_allclose(second[1:] / second[0], 1 / np.cosh([0.5, 1.0]) ** 2, rtol=1e-12)


# Both are compared with the same oracle, above and below.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["Erf", "GELU"])
def test_closed_form_agrees_with_the_numerical_route(name):
    case = CLOSED[name]
    summed = between_inputs(keft.Smooth(case.activation))
    for (k_aa, k_bb, rho), x, y in zip(GRID, between_inputs(case.activation), summed, strict=True):
        bound = expansion_from(np.outer(norms(case, k_aa), norms(case, k_bb)))
        assert_accurate(x, y, bound, (k_aa, k_bb, rho))


def test_the_accuracy_check_can_fail():
    """Negative controls: a relative error of 1e-9 in one entry of the hessian is seen, and so is a 32-point
    Gauss-Hermite rule, whose chi is off by a factor of 8 at variance 4.37."""
    case, where = SMOOTH["Tanh"], (4.37, 4.37, 1.0)
    exact, bound = (
        expansion_from(pair_moments(case, *where)),
        expansion_from(np.outer(norms(case, 4.37), norms(case, 4.37))),
    )
    assert_accurate(exact, exact, bound, where)
    with pytest.raises(AssertionError, match="hessian"):
        assert_accurate(exact._replace(hessian=exact.hessian * (1 + 1e-9)), exact, bound, where)
    x, w = np.polynomial.hermite_e.hermegauss(32)
    coarse = np.array([case.s(np.sqrt(4.37) * x, r) for r in range(5)])
    with pytest.raises(AssertionError, match="value"):
        assert_accurate(expansion_from(coarse * (w / w.sum()) @ coarse.T), exact, bound, where)


def test_polynomial_beyond_its_degree_is_not_needed():
    """Exact with degree + 1 Hermite coefficients; the expectation of x^2 x^2 is k_aa k_bb + 2 k_ab^2, of x^3 x^3 9 k_aa
    k_bb k_ab + 6 k_ab^3."""
    k = jnp.array([2.0, 0.7, 1.5])
    square = keft.Polynomial(jnp.array([0.0, 0, 1]))
    np.testing.assert_allclose(eqx.filter_jit(square.moments)(k), [12.0, 3 + 0.98, 6.75], rtol=1e-13)
    cube = keft.Polynomial(jnp.array([0.0, 0, 0, 1]))
    np.testing.assert_allclose(
        eqx.filter_jit(cube.moments)(k), [15 * 8.0, 27 * 0.7 + 6 * 0.343, 15 * 3.375], rtol=1e-13
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_function_itself(name):
    """The closed forms above belong to the functions that a network applies."""
    x = np.linspace(-4, 4, 41)
    exact = {"ReLU": np.maximum(x, 0), "LeakyReLU": np.where(x > 0, x, 0.2 * x)}
    expected = exact[name] if name in KINKED else SMOOTH[name].s(x, 0)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (keft.Mish(), lambda x: x * np.tanh(np.log1p(np.exp(x)))),
        (keft.ELU(0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(x))),
        (keft.CELU(0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(2 * x))),
    ],
)
def test_functions_without_closed_forms_are_those_of_their_names(activation, expected):
    x = np.linspace(-4, 4, 41)
    np.testing.assert_allclose(activation(jnp.asarray(x)), expected(x), rtol=1e-13)


def test_a_scale_turns_and_stretches_moments_given_another_input():
    """0.7 relu(-1.3 x) as a scaled class, and as a function with its kink: E[s^(m) he_j] and E[s^(m) s'] on a line."""

    @eqx.filter_jit
    def moments(s):
        line = jnp.array([-0.4, 0.3]), jnp.array(0.8)
        return [s.smoothed_orders(*line, 4), *(s.smoothed_product(m, 1, *line) for m in (0, 1, 2))]

    scaled = moments(keft.Scaled(keft.ReLU(), -1.3, 0.7))
    direct = moments(keft.Piecewise(lambda x: 0.7 * jnp.maximum(-1.3 * x, 0), kinks=[0.0]))
    for x, y in zip(scaled, direct, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def test_a_scaled_pair_is_the_pair_at_scaled_variances():
    """b^2 E[s_a s_b] at a^2 times the kernel, of erf in closed form; both ways of a pair, and its derivatives."""
    k = jnp.array([1.2, 0.7, -0.3])
    scaled = keft.Scaled(keft.Erf(), 1.3, 0.7)
    inner = keft.Erf().pair(*(1.3**2 * k))
    for pair in (scaled.pair(*k), scaled.regular_pair(*k)):
        for order, (x, y) in enumerate(zip(pair, inner, strict=True)):
            np.testing.assert_allclose(x, 0.7**2 * 1.3 ** (2 * order) * y, rtol=1e-12)


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ValueError, match="`input_scale` of Scaled must not be zero: s would be a constant"):
        keft.Scaled(keft.ReLU(), 0.0, 1.0)


def textbook(name, a, b, c):
    """E[s_a s_b] in mpmath."""
    if name == "Sin":
        return mpmath.exp(-(a + b) / 2) * mpmath.sinh(c)
    if name == "Erf":
        return 2 / mpmath.pi * mpmath.asin(2 * c / mpmath.sqrt((1 + 2 * a) * (1 + 2 * b)))
    A, B, d = 1 + a, 1 + b, a * b - c**2
    rest = (d + c**2 / A + c**2 / B) / mpmath.sqrt(A * B - c**2)
    return (c * mpmath.acos(-c / mpmath.sqrt(A * B)) + rest) / (2 * mpmath.pi)


def textbook_derivatives(name, k):
    """Value, and first and second differences in relative changes of k, with steps of 1e-15 and 60 digits."""
    units = [k[0], k[1], mpmath.sqrt(k[0] * k[1])]
    h = mpmath.mpf(10) ** -15

    def at(*moves):
        return textbook(
            name,
            *(x + h * u * sum(s for i, s in moves if i == j) for j, (x, u) in enumerate(zip(k, units, strict=True))),
        )

    gradient = [(at((i, 1)) - at((i, -1))) / (2 * h) for i in range(3)]
    hessian = [
        [sum(s * t * at((i, s), (j, t)) for s in (1, -1) for t in (1, -1)) / (4 * h**2) for j in range(3)]
        for i in range(3)
    ]
    return at(), gradient, hessian


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["Erf", "Sin", "GELU"])
def test_closed_forms_to_rounding(name, dtype):
    """Each derivative is right to thirty roundings of the largest, or of sqrt(E[s_a^2] E[s_b^2]), for variances from
    1e-6 to 1e6 and for nearly equal inputs; mpmath's differences are the oracle."""
    variances = ((1e-6, 1e-6), (1.0, 1.0), (1e3, 1e3), (1e6, 1e6), (1.0, 1e3))
    correlations = (0.0, 0.7, -0.95, 1 - 1e-5, 1.0, -1.0)
    ks = np.array([[a, rho * np.sqrt(a * b), b] for (a, b), rho in product(variances, correlations)]).astype(dtype)
    for k, found in zip(ks.astype(float), between_inputs(CLOSED[name].activation, jnp.asarray(ks)), strict=True):
        units = np.sqrt([k[0] ** 2, k[2] ** 2, k[0] * k[2]])
        with mpmath.workdps(60):
            exact = [np.array(x, float) for x in textbook_derivatives(name, [mpmath.mpf(k[i]) for i in (0, 2, 1)])]
            scale = float(
                mpmath.sqrt(textbook(name, *[mpmath.mpf(k[0])] * 3) * textbook(name, *[mpmath.mpf(k[2])] * 3))
            )
        for x, y, unit in zip(found, exact, (1, units, np.outer(units, units)), strict=True):
            assert np.abs(x * unit - y).max() <= 30 * np.finfo(dtype).eps * max(np.abs(y).max(), scale), k


# --- kinked activations -----------------------------------------------------------------------------------------------


def arc_cosine(k_aa: float, k_bb: float, k_ab: float) -> Expansion:
    """E[relu relu] and derivatives; the determinant is exact, so that nothing is lost near rho = +-1."""
    determinant = float(Fraction(k_aa) * Fraction(k_bb) - Fraction(k_ab) ** 2)
    r = np.sqrt(max(determinant, 0.0))
    both_positive = (np.pi - np.arctan2(r, k_ab)) / (2 * np.pi)
    value = r / (2 * np.pi) + k_ab * both_positive
    gradient = np.array([r / k_aa / (4 * np.pi), r / k_bb / (4 * np.pi), both_positive])
    with np.errstate(divide="ignore", invalid="ignore"):
        aa, bb = (
            k_bb / k_aa / (8 * np.pi * r) - r / k_aa**2 / (4 * np.pi),
            k_aa / k_bb / (8 * np.pi * r) - r / k_bb**2 / (4 * np.pi),
        )
        aa_bb, aa_ab, bb_ab = 1 / (8 * np.pi * r), -k_ab / k_aa / (4 * np.pi * r), -k_ab / k_bb / (4 * np.pi * r)
        hessian = np.array([[aa, aa_bb, aa_ab], [aa_bb, bb, bb_ab], [aa_ab, bb_ab, 1 / (2 * np.pi * r)]])
    return Expansion(value, gradient, hessian)


@pytest.mark.parametrize(("k_aa", "k_bb", "rho"), [(1.0, 1.0, 0.5), (30.0, 1e-3, -0.8), (0.3, 4.37, 0.99)])
def test_arc_cosine_against_integration(k_aa, k_bb, rho):
    """relu_a times the conditional mean of relu_b, integrated over phi_a; then central differences of that."""

    def integral(k_aa, k_bb, k_ab):
        a, rest = math.sqrt(k_aa), math.sqrt(k_bb - k_ab**2 / k_aa)

        def density(x):
            return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

        def integrand(phi):
            mean = k_ab / k_aa * phi
            return phi * (mean * ndtr(mean / rest) + rest * density(mean / rest)) * density(phi / a) / a

        return quad(integrand, 0, 12 * a, epsabs=0, epsrel=1e-12, limit=200)[0]

    k = np.array([k_aa, k_bb, rho * np.sqrt(k_aa * k_bb)])
    exact, scale = arc_cosine(*k), np.sqrt(k_aa * k_bb) / 2
    assert abs(integral(*k) - exact.value) < 1e-11 * scale
    units = np.array([k_aa, k_bb, np.sqrt(k_aa * k_bb)])
    steps = 1e-3 * (1 - abs(rho)) * np.diag(units)
    for i, u in enumerate(steps):
        assert abs((integral(*(k + u)) - integral(*(k - u))) / 2 / u[i] - exact.gradient[i]) < 1e-5 * scale / units[i]
        for j, v in enumerate(steps):
            second = (
                (integral(*(k + u + v)) - integral(*(k + u - v)) - integral(*(k - u + v)) + integral(*(k - u - v)))
                / 4
                / u[i]
                / v[j]
            )
            assert abs(second - exact.hessian[i, j]) < 1e-3 * scale / units[i] / units[j]


@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_accuracy_of_kinked_activations(leak):
    """Against the exact derivatives; near rho = +-1 these change by more than the accuracy when an entry of K is
    rounded.

    There sqrt(k_aa k_bb - k_ab^2) has half the digits, and the result must be exact for a kernel within two roundings
    of the given one.
    """
    activation = keft.LeakyReLU(jnp.array(leak)) if leak else keft.ReLU()
    for (k_aa, k_bb, rho), k, found in zip(GRID, KERNELS.tolist(), between_inputs(activation), strict=True):
        nearby = [arc_cosine(k_aa, k_bb, k[1] * (1 + shift)) for shift in (-(2.0**-51), 0.0, 2.0**-51)]
        linear = Expansion(k[1], np.array([0.0, 0.0, 1.0]), np.zeros((3, 3)))
        candidates = [[leak * x + (1 - leak) ** 2 * y for x, y in zip(linear, e, strict=True)] for e in nearby]
        units = np.array([k_aa, k_bb, np.sqrt(k_aa * k_bb)])
        scale = np.sqrt(k_aa * k_bb) / 2
        for name, x, options, unit in zip(
            Expansion._fields, found, zip(*candidates, strict=True), (1, units, np.outer(units, units)), strict=True
        ):
            if name == "hessian" and abs(rho) > 1 - 1e-12:
                assert np.isfinite(x).all()
                continue
            slack = ACCURACY * np.maximum(scale / unit, np.abs(options[1]))
            low, high = np.min(options, axis=0) - slack, np.max(options, axis=0) + slack
            assert np.all((low <= x) & (x <= high)), f"{name} at {(k_aa, k_bb, rho)}: {x}, exact {options[1]}"


# --- degenerate kernels: repeated inputs, rho = +-1, rank one ---------------------------------------------------------


# Input 2 repeats input 0; a generic kernel otherwise, so that no other pair is degenerate.
COPY = np.array([0, 1, 0])
TWICE = jnp.array([[1.3, 0.4], [0.4, 0.8]])[COPY][:, COPY]
DEGENERATE = {
    "repeated": TWICE,
    "rank one": jnp.outer(*[jnp.array([1.0, 1.5, -1.0])] * 2),
    "nearly repeated": TWICE.at[0, 2].multiply(1 - 1e-9).at[2, 0].multiply(1 - 1e-9),
    "uncorrelated": jnp.diag(jnp.array([1.0, 2.0, 0.5])),
}


# Sums meet the product rule above at correlation one.
@pytest.mark.parametrize("name", tiers(["Tanh", "GELU", "ReLU", "LeakyReLU"], ["ReLU"]))
def test_a_repeated_input_is_the_same_input(name):
    """Q, chi h and Hess:V have equal rows where the kernel has: what holds on the diagonal holds between the two
    copies."""

    @jax.jit
    def evaluate(K):
        model = keft.Model(ACTIVATIONS[name], 1.7, 0.1)
        V = unpack_covariance(wick(pack(K)) + sigma_product(pack(K), pack(model.Q(K))))
        return model.Q(K), model.chi(K, K**2), model.hess(K, V)

    for result in evaluate(TWICE):
        np.testing.assert_allclose(result, result[COPY][:, COPY], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["ReLU", "LeakyReLU"])
@pytest.mark.parametrize("scale", [1.0, 1.5], ids=["repeated", "scaled"])
def test_curvature_contracted_at_full_correlation_is_the_limit(name, scale):
    """At rho = 1 - delta the curvature is about delta^(-1/2), and kernels move the two copies apart by delta at most.

    So Hess:V comes close to its value at rho = 1 like delta^(3/2), here for V = h h + Wick(K) with another such kernel
    h.
    """
    D = jnp.array([[1.0, scale], [scale, scale**2]])

    @jax.jit
    def contracted(delta):
        model, K = keft.Model(ACTIVATIONS[name], 2.0), D * jnp.array([[1.0, 1 - delta], [1 - delta, 1.0]])
        h = D * jnp.array([[1.0, 1 - 3 * delta], [1 - 3 * delta, 1.0]])
        V = jnp.einsum("ab,cd->abcd", h, h) + unpack_covariance(wick(pack(K)))
        return model.hess(K, V), model.activation.expansion(pack(K)).hessian[1, 2, 2]

    limit, _ = contracted(0.0)
    assert jnp.isfinite(limit).all()
    distance = [jnp.abs(contracted(delta)[0] - limit).max() for delta in (1e-2, 1e-4, 1e-6)]
    assert distance[0] > 1e-4  # there is something to see
    np.testing.assert_allclose([distance[1] / distance[0], distance[2] / distance[1]], 1e-3, rtol=0.01)
    np.testing.assert_allclose(contracted(1e-6)[1] / contracted(1e-2)[1], 100, rtol=0.01)


# One activation that is summed, one closed form, one kink.
@pytest.mark.parametrize("name", tiers(["Tanh", "Sin", "GELU", "ReLU", "LeakyReLU"], ["GELU", "ReLU"], ["Tanh"]))
def test_derivatives_at_degenerate_kernels_are_finite_and_agree(name):
    """Reverse, forward, and the rules chi and Hess: all finite, and the same directional derivatives."""
    model = keft.Model(ACTIVATIONS[name], 1.7, 0.1)
    w = jnp.cos(jnp.arange(9.0)).reshape(3, 3)
    w = w + w.T

    @jax.jit
    def derivatives(K):
        def value(K):
            return jnp.sum(w * model.Q(K))

        def slope(K):
            return jnp.sum(w * model.chi(K, w))

        first = jnp.sum(w * jax.grad(value)(K)), jax.jvp(value, (K,), (w,))[1], slope(K)
        second = jnp.sum(w * jax.grad(slope)(K)), jnp.sum(w * model.hess(K, jnp.einsum("ab,cd->abcd", w, w)))
        return first, second

    for kind, K in DEGENERATE.items():
        for same in derivatives(K):
            assert jnp.isfinite(jnp.array(same)).all(), kind
            np.testing.assert_allclose(same[1:], same[0], rtol=1e-9, err_msg=kind)


# --- parameters -------------------------------------------------------------------------------------------------------


class Bump(eqx.Module):
    width: jax.Array
    centre: jax.Array

    def __call__(self, x):
        return jnp.exp(-(((x - self.centre) / self.width) ** 2))


PARAMETERS = {
    "LeakyReLU": keft.LeakyReLU(jnp.array(0.2)),
    "Scaled LeakyReLU": keft.Scaled(keft.LeakyReLU(jnp.array(0.2)), jnp.array(0.8), jnp.array(1.4)),
    "Scaled Softplus": keft.Scaled(keft.Softplus(jnp.array(1.3)), jnp.array(0.8), jnp.array(1.4)),
    "Polynomial": keft.Polynomial(jnp.array([0.1, 0.9, -0.2, 0.05])),
    "Smooth": keft.Smooth(Bump(jnp.array(1.5), jnp.array(0.3))),
}


# A closed form with a scale, and a sum.
@pytest.mark.parametrize("name", tiers(PARAMETERS, ["Scaled LeakyReLU"], ["Smooth"]))
def test_gradients_by_parameters(name):
    """Reverse mode against central differences (order four), along each parameter, C_W and C_b included.

    The kernel has an ordinary pair, a strongly correlated one and a repeated input.
    """
    K = jnp.array([[1.0, 0.4, 1.38, 1.0], [0.4, 0.7, 0.5, 0.4], [1.38, 0.5, 2.0, 1.38], [1.0, 0.4, 1.38, 1.0]])
    weights = jnp.cos(jnp.arange(16.0)).reshape(4, 4)
    parameters, static = eqx.partition(keft.Model(PARAMETERS[name], 1.7, 0.1), eqx.is_array)
    flat, restore = ravel_pytree(parameters)
    assert flat.size >= 3

    @jax.jit
    def loss(flat):
        return jnp.sum(weights * eqx.combine(restore(flat), static).Q(K))

    gradient, step = jax.grad(loss)(flat), 1e-3
    for i, unit in enumerate(step * np.eye(flat.size)):
        near, far = loss(flat + unit) - loss(flat - unit), loss(flat + 2 * unit) - loss(flat - 2 * unit)
        np.testing.assert_allclose(gradient[i], (8 * near - far) / (12 * step), rtol=1e-8, atol=1e-10)


def test_new_parameter_values_do_not_retrace():
    traces = 0

    @eqx.filter_jit
    def Q(model, K):
        nonlocal traces
        traces += 1
        return model.Q(K)

    for C_W, beta in [(1.0, 0.5), (2.0, 0.5), (2.0, 3.0)]:
        Q(keft.Model(keft.Softplus(beta), C_W, C_b=0.1 * C_W), TWICE)
    assert traces == 1


# --- how JAX may use it -----------------------------------------------------------------------------------------------


# Only those with constants or parameters of their own can promote.
@pytest.mark.parametrize("name", tiers(ACTIVATIONS, set(ACTIVATIONS) - {"SiLU", "Softplus(0.5)", "Smooth"}))
def test_float32_is_not_promoted(name):
    """The dtype of the kernel is the dtype of everything, float64 enabled and parameters in float64 or not."""
    activation, k = ACTIVATIONS[name], jax.ShapeDtypeStruct((3,), jnp.float32)
    everything = jax.eval_shape(lambda k: (activation.expansion(k), activation.error(k), activation(k)), k)
    assert {x.dtype for x in jax.tree.leaves(everything)} == {jnp.dtype("float32")}


def test_derivatives_in_float32_are_not_promoted():
    model, K = keft.Model(ACTIVATIONS["LeakyReLU"], 2.0, 0.1), jax.ShapeDtypeStruct((2, 2), jnp.float32)
    derivatives = jax.eval_shape(lambda K: (model.chi(K, K), jax.grad(lambda K: jnp.sum(model.Q(K)))(K)), K)
    assert {x.dtype for x in derivatives} == {jnp.dtype("float32")}


# In float32 too the closed forms meet mpmath above.
@pytest.mark.parametrize("name", tiers(["Tanh", "Sin", "GELU"], ["Tanh"]))
def test_float32_is_accurate(name):
    """The claim again in float32, with 1e-4: a thousand roundings."""
    case = SMOOTH[name]
    single = between_inputs(case.activation, KERNELS.astype(jnp.float32))
    for (k_aa, k_bb, rho), x, y in zip(GRID, single, between_inputs(case.activation), strict=True):
        bound = expansion_from(np.outer(norms(case, k_aa), norms(case, k_bb)))
        assert_accurate(x, y, bound, (k_aa, k_bb, rho), accuracy=1e-4)


# The next test has the same of the whole expansion.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["Tanh", "ReLU"])
def test_compiled_and_mapped_is_eager_in_a_loop(name):
    activation, ks = ACTIVATIONS[name], jnp.stack([pack(DEGENERATE[kind]) for kind in ("repeated", "uncorrelated")])
    mapped = eqx.filter_jit(jax.vmap(activation.moments))(ks)
    for k, moments in zip(ks, mapped, strict=True):
        np.testing.assert_allclose(activation.moments(k), moments, rtol=1e-12, atol=1e-14)


@pytest.mark.thorough
def test_kinked_activations_compiled_and_mapped():
    """At a singular kernel half of the digits are lost, but compiling and mapping the formula loses no more."""
    ks = jnp.stack([pack(K) for K in DEGENERATE.values()])
    mapped, looped = eqx.filter_jit(jax.vmap(keft.ReLU().expansion))(ks), expansions(keft.ReLU(), ks)
    eager = keft.ReLU().expansion(ks[0])
    for x, y, z in zip(mapped, looped, eager, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-11)
        np.testing.assert_allclose(x[0], z, rtol=1e-7, atol=1e-11)


class TwoNumbers(keft.PairActivation):
    """A moment for arrays of inputs, where one pair is due."""

    def __call__(self, x):
        return x

    def moment(self, k_aa, k_bb, k_ab):
        return jnp.stack([k_ab, k_ab])


def test_a_moment_is_one_number_of_one_pair():
    with pytest.raises(
        ValueError, match=r"`moment` of TwoNumbers must give one number for one pair .* gives shape \(2,\)"
    ):
        TwoNumbers()
