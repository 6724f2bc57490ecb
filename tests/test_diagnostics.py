"""Diagnostics: equations term by term, the validity window, several widths against a theory.

Oracles: linear networks, whose kernel moments obey a closed recursion at every width; derivatives of solutions taken by
differences; NumPy quadrature; Wishart matrices, which are kernels of known law.
"""

import functools
import json
from types import SimpleNamespace

import equinox as eqx
import jax
import numpy as np
import pytest
from scipy import stats

import kernel_eft_jax as keft
from kernel_eft_jax import diagnostics, figures
from kernel_eft_jax.diagnostics import validity

C_W, K, WIDTH, EPS = 1.3, 1.7, 8, 0.5
DT = EPS**2
ONE = np.array([[K]])
LINEAR = keft.Model(keft.Linear(), C_W)
QUADRATIC = keft.Model(keft.Polynomial(np.array([0.2, 0.8, 0.15])), 0.9, 0.2)  # not odd, and cheap to compile


def linear_moments(n, layers):
    """E[G] and n Var(G) of linear networks of one input and width n, exactly.

    G' = G + 2 eps phi.eta / n + eps^2 eta.eta / n with eta ~ N(0, C_W G): E[G'|G] and E[G'^2|G] are multiples of G and
    G^2.
    """
    grow = 1 + DT * C_W
    mean = K * grow**layers
    square = K**2 * (1 + 2 / n) * (grow**2 + (4 * DT * C_W + 2 * DT**2 * C_W**2) / n) ** layers
    return mean, n * (square - mean**2)


@pytest.fixture(scope="module")
def linear():
    sizes = {"width": WIDTH, "depth": 4, "networks": 16_384}
    return keft.estimate(LINEAR, ONE, **sizes, eps=EPS, key=jax.random.key(1), save_at=[0, 1, 4], progress=False)


@pytest.fixture(scope="module")
def linear_residual(linear):
    return keft.covariance_residual(linear, LINEAR)


def test_residual_of_a_linear_network(linear_residual):
    """Every part in closed form at n = 8; 16,384 networks, standard errors near 1 %; 9 numbers within 4.5 of them:
    false alarms 6e-5."""
    value, stderr = linear_residual.value, linear_residual.stderr
    for i, layer in enumerate([0, 1, 4]):
        mean, V4 = linear_moments(WIDTH, layer)
        source = 4 * C_W * V4 / WIDTH  # E[Sigma] = 4 C_W E[G^2]
        step = DT * C_W**2 * (V4 + 2 * (mean**2 + V4 / WIDTH))
        for part, exact in (("source", source), ("layer", step), ("total", source + step)):
            got, error = (float(getattr(x, part)[i, 0, 0, 0, 0]) for x in (value, stderr))
            assert abs(got - exact) < 4.5 * error, (layer, part)
            assert error < 0.05 * exact
        # S = G, so that transport closes exactly
        assert abs(value.transport[i, 0, 0, 0, 0]) < 1e-5 * V4


def test_residual_is_what_one_layer_adds(linear, linear_residual):
    """V4' - V4 over eps^2 is the equation and its residual: two sides of the same networks, apart by the noise of one
    layer."""
    value = linear_residual.value
    mean, _ = linear_moments(WIDTH, 0)
    equation = 2 * C_W * linear.V4[0, 0, 0, 0, 0] + 4 * mean * C_W * mean
    step, error = linear.jackknife(lambda q: (q.V4[1] - q.V4[0]).item() / DT)
    assert abs(step - equation - value.total[0].item()) < 4.5 * error
    assert error < 0.05 * step


DEPTHS = np.linspace(0, 1, 41)


@pytest.fixture(scope="module")
def tower():
    return keft.solve(QUADRATIC, ONE, DEPTHS, closure=keft.HermiteTower(4))


@pytest.fixture(scope="module")
def kernel_alone():
    return keft.solve(QUADRATIC, ONE, DEPTHS, closure=keft.GOnly())


@pytest.mark.thorough
def test_residual_of_a_theory_is_the_rate_that_the_equation_misses(tower):
    model = QUADRATIC
    residual = keft.covariance_residual(tower)
    value, stderr = residual.value, residual.stderr
    at, weights = 24, np.array([1, -8, 0, 8, -1]) / (12 * 0.025)  # fourth-order difference around t = 0.6
    V4, K0 = np.asarray(tower.V4), np.asarray(tower.K0)[at]
    rate = np.tensordot(weights, V4[at - 2 : at + 3], 1)
    q = np.asarray(model.Q(K0))
    sigma = np.einsum("ac,bd->abcd", K0, q)
    sigma = sigma + np.swapaxes(sigma, 2, 3)
    sigma = sigma + np.einsum("abcd->bacd", sigma)
    chi = np.asarray(model.chi(K0, V4[at][:, :, 0, 0]))[None, None]
    transport = np.einsum("cdab->abcd", chi)
    equation = transport + np.einsum("abcd->cdab", transport) + sigma
    np.testing.assert_allclose(value.total[at], rate - equation, atol=1e-5 * np.abs(rate).max())
    assert np.abs(value.total[at]).max() > 0.02 * np.abs(rate).max()
    np.testing.assert_array_equal(stderr.total, 0)


@pytest.mark.thorough
def test_closures_of_the_kernel_alone_have_no_residual(kernel_alone):
    np.testing.assert_array_equal(keft.covariance_residual(kernel_alone).value.total, 0)


TRANSFORMER = keft.Model([keft.RMSNorm(), keft.Dense(1.0, 0.1, ratio=2), keft.Erf(), keft.Dense(2.0, 0.1)], decay=0.5)
PAIRED = keft.Model([keft.Dense(1.3), keft.Polynomial([0.1, 0.9, 0.2]), keft.Dense(0.9, 0.2)], decay=0.5)


BLOCKS = {"norm": TRANSFORMER, "matrix": PAIRED, "one": keft.Model(keft.Erf(), 1.2, 0.1, decay=0.5)}
PAIR, STEPS = np.array([[1.2, 0.4], [0.4, 0.8]]), np.array([0.3, 0.5, 0.4])


@functools.cache
def tower_of(block):
    """Three layers of two inputs. (Behind a matrix or a norm the hierarchy ends at degree 2 by itself.)"""
    return keft.solve(BLOCKS[block], PAIR, layers=[0, 1, 2, 3], eps=STEPS, closure=keft.HermiteTower(4))


def check_exact(tower):
    residual, scale = keft.covariance_residual(tower).value, np.abs(tower.V4).max()
    np.testing.assert_allclose(residual.transport, 0, atol=1e-9 * scale)
    np.testing.assert_allclose(residual.total, residual.layer, atol=1e-9 * scale)
    source = keft.mean_source(tower).value
    size = max(np.abs(source.exact).max(), 1e-6)  # behind a norm the source of one input is zero
    np.testing.assert_allclose(source.closure, source.exact, atol=1e-9 * size)


NORM = pytest.param("norm", marks=pytest.mark.thorough)
MATRIX = pytest.param("matrix", marks=pytest.mark.slow)  # a response without the norm's, of which a block has both


@pytest.mark.parametrize("block", [NORM, MATRIX])
def test_where_a_branch_begins_with_a_matrix_or_a_norm_the_kernel_alone_is_exact(block):
    """The tower's V_GS, V_SS and U1 are those that the kernel alone says: no residual; and a window without end, for
    which nothing is sampled without a key."""
    check_exact(tower_of(block))
    run = {"depth": 3, "eps": STEPS, "tolerance": 1e-6, "reference": keft.HermiteTower(4)}
    window = keft.validity_window(BLOCKS[block], PAIR, **run)
    assert window.widths == {}
    assert "order 1/n" not in str(window)
    assert [reach.t_star for reach in window.reach["GOnly"].values()] == [np.inf, np.inf]
    assert list(window.reach) == ["GOnly"]


@pytest.mark.slow
@pytest.mark.parametrize("block", ["norm", "matrix"])
def test_the_kernel_alone_is_exact_there_in_the_continuum_too(block):
    """The rate of a tower has no residual either, at a tower of degree 2."""
    check_exact(keft.solve(BLOCKS[block], PAIR[:1, :1], [0.0, 0.4], closure=keft.HermiteTower(2)))


@pytest.mark.parametrize("block", [NORM, MATRIX, "one"])
def test_residual_in_layers_is_what_one_layer_adds_to_the_equation(block):
    """(V4' - V4) / eps^2 of the tower, eps of each layer, is -2 c V4 + chi V4 + V4 chi^T + Sigma(K0, Q) and the
    residual."""
    model, tower = BLOCKS[block], tower_of(block)
    total = keft.covariance_residual(tower).value.total
    V4 = np.asarray(tower.V4)
    for layer in range(3):
        k = np.asarray(tower.K0)[layer]
        q = np.asarray(model.Q(k))
        sigma = np.einsum("ac,bd->abcd", k, q)
        sigma = sigma + np.swapaxes(sigma, 2, 3)
        sigma = sigma + np.einsum("abcd->bacd", sigma)
        chi = np.stack([[np.asarray(model.chi(k, V4[layer][:, :, c, d])) for d in (0, 1)] for c in (0, 1)])
        transport = np.einsum("cdab->abcd", chi)
        equation = transport + np.einsum("abcd->cdab", transport) + sigma - 2 * float(model.decay) * V4[layer]
        rate = (V4[layer + 1] - V4[layer]) / STEPS[layer] ** 2
        np.testing.assert_allclose(total[layer], rate - equation, atol=1e-9 * np.abs(rate).max())


def test_K1_is_driven_layer_by_layer_where_all_layers_are_saved():
    tower = tower_of("one")
    np.testing.assert_allclose(keft.driven_K1(tower).value, tower.K1, rtol=1e-12, atol=1e-14)


def source_of_tanh():
    # 1/2 Hess : Wishart / C_W for one input is K^2 / 4 E[(s^2)''''], and (tanh^2)'''' by the recursion tanh' = 1 -
    # tanh^2.
    x = np.linspace(-12, 12, 4801) * np.sqrt(K)
    polynomial = np.polynomial.Polynomial([0, 0, 1])
    for _ in range(4):
        polynomial = polynomial.deriv() * np.polynomial.Polynomial([1, 0, -1])
    density = np.exp(-(x**2) / (2 * K)) / np.sqrt(2 * np.pi * K)
    return K**2 / 4 * np.sum(polynomial(np.tanh(x)) * density) * (x[1] - x[0])


def test_source_of_the_mean_at_depth_zero():
    theory = keft.solve(keft.Model(keft.Tanh(), 2.0), ONE, layers=[0, 1], eps=0.3, closure=keft.GOnly())
    assert keft.mean_source(theory).value.closure[0].item() == pytest.approx(source_of_tanh(), rel=1e-9)


@pytest.mark.thorough
def test_source_of_the_mean_of_networks_at_depth_zero():
    """Networks agree that there is no source, exactly; the EFT's model is fed with their sampled V4 here. And a theory
    of the continuum has the source of layers."""
    model, exact = keft.Model(keft.Tanh(), 2.0), source_of_tanh()
    run = {"width": 8, "depth": 2, "eps": 0.3, "networks": 256, "key": jax.random.key(2)}
    estimate = keft.estimate(model, ONE, **run, save_at=[0, 2], progress=False)
    source = keft.mean_source(estimate, model).value
    theory = keft.solve(model, ONE, np.array([0.0, 0.1]), closure=keft.GOnly())
    assert keft.mean_source(theory).value.closure[0].item() == pytest.approx(exact, rel=1e-9)
    assert abs(source.exact[0].item()) < 1e-5
    assert source.closure[0].item() == pytest.approx(exact * estimate.V4[0].item() / (2 * K**2), rel=1e-6)


@pytest.mark.thorough
def test_sampled_blocks_obey_the_equation_of_one_layer():
    """Networks of a block with decay and an eps of each layer: K1 driven by U1 is K1 to rounding of float32, and V4' -
    V4 is what the residual says.

    8,192 networks of width 8, two layers: standard error of the rate below 10 %, agreement within 4.5 of them.
    """
    eps, run = [0.4, 0.6], {"width": 8, "depth": 2, "networks": 8192, "key": jax.random.key(3)}
    sampled = keft.estimate(PAIRED, ONE, **run, eps=eps, save_at=[0, 1, 2], progress=False)
    np.testing.assert_allclose(keft.driven_K1(sampled).value, sampled.K1, rtol=1e-4, atol=1e-5)
    residual, q, c = keft.covariance_residual(sampled).value.total, float(PAIRED.Q(ONE)[0, 0]), 0.5
    chi = float(PAIRED.chi(ONE, ONE)[0, 0]) / K
    V4 = float(sampled.V4[0, 0, 0, 0, 0])
    equation = 2 * (chi - c) * V4 + 4 * K * q
    rate, error = sampled.jackknife(lambda x: (x.V4[1] - x.V4[0]).item() / eps[0] ** 2)
    assert abs(rate - equation - residual[0].item()) < 4.5 * error
    assert error < 0.1 * rate


def thinned(solution, every):
    moments = jax.tree.map(lambda x: x[::every], (solution.ts, solution.packed))
    return eqx.tree_at(lambda s: (s.ts, s.packed), solution, moments)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_constant_source_drives_K1_in_closed_form(decay):
    """K1' = C_W U1 - c K1 with U1 = 1: C_W t, and C_W (1 - exp(-c t)) / c by the trapezoidal rule, whose error is c^2
    step^2 / 12 of it at most."""
    ts = np.array([0.0, 0.1, 0.25, 0.5])
    result = SimpleNamespace(ts=ts, U1=np.ones((4, 1, 1)), K0=np.ones((4, 1, 1)), eps=None)
    K1 = keft.driven_K1(result, keft.Model(keft.Linear(), C_W, decay=decay)).value[:, 0, 0]
    expected = C_W * (-np.expm1(-decay * ts) / decay if decay else ts)
    np.testing.assert_allclose(K1, expected, rtol=(decay * 0.25) ** 2 / 12 + 1e-12)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ts": np.array([0.1, 0.5])}, "must begin at depth zero, but begins at t = 0.1: save that depth too"),
        ({"U1": None}, "carries no U1: solve with `HermiteTower` or `SigmaKernel`, or sample"),
        ({"model": None}, "`model` is missing, and this result comes from a file that does not hold it"),
    ],
)
def test_what_drives_no_K1_is_refused(changes, says):
    one = np.ones((2, 1, 1))
    result = {"ts": np.array([0.0, 0.5]), "U1": one, "K0": one, "eps": None, "model": LINEAR}
    with pytest.raises(ValueError, match=says):
        keft.driven_K1(SimpleNamespace(**(result | changes)))


@pytest.mark.thorough
def test_K1_is_driven_by_its_source(tower, kernel_alone):
    """`driven_K1` converges to K1 as the saved depths become dense: the error of the trapezoidal rule falls by four
    when their spacing is halved."""

    def error(every):
        return abs(keft.driven_K1(thinned(tower, every)).value[-1].item() / tower.K1[-1].item() - 1)

    assert error(1) < 1e-3
    assert error(4) / error(2) == pytest.approx(4, rel=0.1)
    assert error(2) / error(1) == pytest.approx(4, rel=0.1)
    with pytest.raises(ValueError, match="carries no U1"):
        keft.driven_K1(kernel_alone)
    with pytest.raises(ValueError, match="must begin at depth zero"):
        keft.driven_K1(eqx.tree_at(lambda s: s.ts, tower, tower.ts + 0.1))


def test_kurtosis_of_a_linear_network(linear):
    """n (E[phi^4] / E[phi^2]^2 - 3) in closed form: 3 depths within 4.5 standard errors, and its limit of large n."""
    measured = keft.kurtosis(linear)
    got, stderr = measured.value, measured.stderr
    for i, layer in enumerate([0, 1, 4]):
        mean, V4 = linear_moments(WIDTH, layer)
        # Rotations of the neurons are a symmetry: phi = |phi| times a uniform direction, so E[phi_1^4] = 3 n / (n + 2)
        # E[G^2].
        exact = WIDTH * (3 * WIDTH / (WIDTH + 2) * (V4 / WIDTH + mean**2) / mean**2 - 3)
        assert abs(got[i, 0] - exact) < 4.5 * stderr[i, 0] + 1e-4, layer
    theory = keft.solve(LINEAR, ONE, layers=[0, 1, 4], eps=EPS, closure=keft.GOnly())
    predicted = keft.kurtosis(theory).value
    assert predicted[0, 0] == pytest.approx(0, abs=1e-12)
    assert predicted[1, 0] == pytest.approx(3 * (np.asarray(theory.V4)[1].item() / (K * (1 + DT * C_W)) ** 2 - 2))


def test_kernels_of_the_wrong_shape_are_refused(linear):
    with pytest.raises(ValueError, match=r"`K0` must hold a kernel for each saved depth, shape \(3, 1, 1\)"):
        keft.covariance_residual(linear, LINEAR, np.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="`model` must be a Model object, but is 'tanh'"):
        keft.covariance_residual(linear, "tanh")


# ---------------------------------------------------------------------------------------------------------------- validity window


class Euler(keft.GOnly):
    """GOnly in Euler's steps, without the terms of order eps^4."""

    def step(self, model, state, dt):
        return jax.tree.map(lambda y, rate: y + dt * rate, state, keft.GOnly().drift(model, state))


@pytest.fixture(scope="module")
def window():
    """A linear network, where the exact deviation from order 1/n is known, against a reference that is exact at order
    1/n."""
    closures = {"kernel": Euler(), "itself": keft.HermiteTower(2)}
    return keft.validity_window(
        LINEAR,
        ONE,
        depth=4,
        eps=EPS,
        tolerance=0.1,
        key=jax.random.key(5),
        networks=4096,
        pilot_width=32,
        closures=closures,
        reference=keft.HermiteTower(2),
        progress=False,
    )


def test_depths_where_a_closure_holds(window):
    # c = eps^2 C_W. A layer has V4' = (1 + c)^2 V4 + (4 c + 2 c^2) K^2, which the tower knows; the closure below leaves
    # out c^2.
    c, mean, exact, euler, error = DT * C_W, K, 2 * K**2, 2 * K**2, []
    for _ in range(4):
        exact = (1 + c) ** 2 * exact + (4 * c + 2 * c**2) * mean**2
        euler = (1 + 2 * c) * euler + 4 * c * mean**2
        mean *= 1 + c
        error.append(abs(euler / exact - 1))
    reach = window.reach["kernel"]["V4"]
    np.testing.assert_allclose(reach.error, error, rtol=1e-9)
    first = int(np.argmax(np.array(error) > 0.1))
    assert window.ts[first - 1] < reach.t_star < window.ts[first]
    share = (0.1 - error[first - 1]) / (error[first] - error[first - 1])
    assert reach.t_star == pytest.approx(DT * (first + share))
    assert window.reach["itself"]["V4"].t_star == window.reach["itself"]["K1"].t_star == np.inf


def test_widths_where_order_1_over_n_is_enough(window):
    """V4 of linear networks at every width exactly: deviations within 4 s.e. of it (4,096 networks), and the n* that
    follows confirmed."""
    limit = linear_moments(10**7, 4)[1]
    widths = window.widths["V4"]
    assert widths[-1].confirms(0.1)
    assert [w.width for w in widths] == [32, *(w.needed for w in widths[:-1])]
    for w in widths:
        exact = linear_moments(w.width, 4)[1] / limit - 1
        assert abs(w.deviation - exact) < 4 * w.stderr
        assert w.stderr < 0.3 * exact


def test_scatter_of_networks_asks_for_no_width(window):
    """K1 of linear networks is zero at every width, and 4,096 networks know it to 1 % of K0, ten times the tolerance:
    the pilot's scatter is no deviation, from which a width would follow."""
    (pilot,) = window.widths["K1"]
    assert pilot.width == 32
    assert not pilot.resolves(0.1)
    assert pilot.deviation < 2 * pilot.stderr
    assert "K1 to order 1/n: too few networks to tell at n = 32" in str(window)


@pytest.mark.parametrize("entries", [1, 3, 55])
def test_the_largest_of_many_deviations_exceeds_its_bound_as_rarely_as_one_exceeds_two(entries):
    """The probability 2 Phi(-2) = 0.0455 of one, by the law of the largest of independent normals: the bound is that of
    the sum of their probabilities, which is never too small and at most 3 % of this probability too large."""
    bound = validity.largest_of(entries)
    found = 1 - (1 - 2 * stats.norm.sf(bound)) ** entries
    assert 0.97 * 2 * stats.norm.sf(2) < found <= 2 * stats.norm.sf(2) * (1 + 1e-12)


def test_window_in_words_and_numbers(window):
    text = str(window)
    assert "V4 of itself: everywhere" in text
    assert f"V4 to order 1/n: from n* = {window.widths['V4'][-1].width}" in text
    record = json.loads(json.dumps(window.record()))
    assert record["reach"]["itself"]["V4"]["t_star"] is None
    assert record["widths"]["V4"][-1]["confirms"] is True


def test_a_closure_that_is_off_from_the_start_holds_nowhere():
    assert validity._leaves(np.array([1.0, 2.0]), np.array([0.5, 0.6]), 0.1) == 0.0
    assert validity._leaves(np.array([1.0, 2.0]), np.array([0.05, 0.15]), 0.1) == pytest.approx(1.5)


def test_a_reference_that_is_not_exact_enough_is_refused(window):
    run = {"depth": 3, "eps": STEPS, "tolerance": 1e-6, "reference": keft.HermiteTower(4)}
    with pytest.raises(ValueError, match=r"`reference` is not exact enough.* such as reference=HermiteTower\(60\)"):
        keft.validity_window(BLOCKS["one"], PAIR, **run)
    # A reference that cannot say what it leaves out is none.
    known = window.reference
    unknown = eqx.tree_at(lambda s: s.packed_truncation.K1, known, np.nan * known.packed.K1)
    with pytest.raises(ValueError, match="its degree is too low to tell the truncation error of K1"):
        validity._check_reference(unknown, 0.05)
    with pytest.raises(ValueError, match="`tolerance` must be a finite number greater than zero"):
        keft.validity_window(LINEAR, ONE, depth=4, eps=EPS, tolerance=0.0)


# ---------------------------------------------------------------------------------------------------------------- several widths


def wisharts(rng, widths, networks, K=PAIR):
    """Kernels of independent Gaussian neurons: mean K, n times the covariance that of Wick, at every width."""
    root = np.linalg.cholesky(K)
    phi = {n: rng.standard_normal((networks, n, 2)) @ root.T for n in widths}
    return {n: (np.swapaxes(x, 1, 2) @ x / n)[:, None] for n, x in phi.items()}


@pytest.fixture(scope="module")
def wishart_theory():
    return keft.solve(keft.Model(keft.Linear(), 1.0), PAIR, layers=[0], eps=0.1, closure=keft.GOnly())


def test_moments_by_width_are_those_of_numpy(wishart_theory):
    kernels = wisharts(np.random.default_rng(0), (4, 16), 500)
    check = keft.width_check(kernels, wishart_theory)
    for i, n in enumerate((4, 16)):
        G = kernels[n][:, 0].reshape(500, 4)
        np.testing.assert_allclose(check.V4[i, 0].reshape(4, 4), n * np.cov(G.T), rtol=1e-12)
        reach = stats.t(499).ppf(0.95) * check.stderr.K1[i, 0]  # 5 % lie beyond on each side
        np.testing.assert_allclose(
            [x[i, 0] for x in check.interval("K1", 0.9)], check.K1[i, 0] + reach * [[[-1]], [[1]]]
        )
        np.testing.assert_allclose(check.K1[i, 0].ravel(), n * (G.mean(0) - PAIR.ravel()), rtol=1e-12)
        np.testing.assert_allclose(check.stderr.K1[i, 0].ravel(), n * G.std(0, ddof=1) / 500**0.5, rtol=1e-12)


def test_p_values_are_those_of_chance(wishart_theory):
    """200 sets of kernels that obey the theory: p below 0.1 in about 20 of them or fewer (Bonferroni), below 0.01 in
    few; binomial, 1e-4."""
    rng = np.random.default_rng(1)
    p = {q: [] for q in ("V4", "K1")}
    for _ in range(200):
        check = keft.width_check(wisharts(rng, (8, 32, 128), 400), wishart_theory)
        for quantity, values in p.items():
            values.append(check.p_value(quantity))
    for quantity in p:
        values = np.array(p[quantity])
        assert (values < 0.1).sum() <= 36, quantity
        assert (values < 0.3).sum() >= 5, quantity


@pytest.mark.parametrize(
    ("networks", "widths"),
    [
        pytest.param(16, (1, 2, 4, 8), marks=pytest.mark.thorough),
        *(
            pytest.param(networks, widths, marks=pytest.mark.slow)
            for networks, widths in ((16, (8, 16, 32, 64)), (64, (1, 2, 4, 8)), (64, (8, 16, 32, 64)))
        ),
    ],
)
def test_p_values_and_intervals_hold_for_few_networks(widths, networks, wishart_theory):
    """600 sets of kernels that obey the theory: p below 0.01 in 6, in 15 or more with probability 2e-3 (binomial;
    Bonferroni makes it less).

    The intervals of 95 % hold in 570 of 600 within 16, three standard errors; less than 3 % too often is allowed, and
    too seldom not.
    """
    rng, below, held = np.random.default_rng(networks), {"V4": 0, "K1": 0}, []
    for _ in range(600):
        check = keft.width_check(wisharts(rng, widths, networks), wishart_theory)
        for quantity in below:
            below[quantity] += check.p_value(quantity) < 0.01
        low, high = check.interval("V4")
        a, b = np.array([0, 0, 1]), np.array([0, 1, 1])
        right = np.asarray(wishart_theory.V4)[:, a, b, a, b]
        held.append((low[:, :, a, b, a, b] <= right) & (right <= high[:, :, a, b, a, b]))
    assert max(below.values()) < 15, below
    shares = np.mean(held, axis=0)
    assert shares.min() > 0.95 - 0.027
    assert shares.max() < 0.95 + 0.027 + 0.03


@pytest.mark.parametrize("quantity", ["V4", "K1"])
def test_networks_of_another_law_are_seen(wishart_theory, quantity):
    """Negative controls: variances 5 % too large (K1 grows with n), or shared between neurons (V4 grows with n)."""
    rng = np.random.default_rng(2)
    kernels = wisharts(rng, (8, 32, 128), 2000, 1.05 * PAIR if quantity == "K1" else PAIR)
    if quantity == "V4":
        kernels = {n: G * (1 + 0.2 * rng.choice([-1, 1], (2000, 1, 1, 1))) for n, G in kernels.items()}
    assert keft.width_check(kernels, wishart_theory).p_value(quantity) < 1e-6


def test_bad_kernels_are_refused(wishart_theory):
    good = wisharts(np.random.default_rng(5), (4,), 20)[4]
    half = np.where(np.eye(2) > 0, 1, [[1, 2], [1, 1]])
    for kernels, message in (
        ({}, "must map widths to arrays of kernels, .*, but is empty"),
        ({4: good[:, 0]}, r"arrays of shape .* = \(networks, 1, 2, 2\)"),
        ({4: good[:10]}, "needs 16 networks or more to show their scatter, but width 4 has 10"),
        ({4: np.nan * good}, r"must be finite, but G\[0, 0\] of network 0 of width 4 at layer 0 is nan"),
        ({4: -good}, r"must be kernels with variances on their diagonal, but G\[0, 0\] of network 0 of width 4"),
        ({4: half * good}, r"must be symmetric, but G\[0, 1\] of network 0 of width 4 at layer 0 is"),
        ({4: good[[0] * 20]}, "must hold the kernels of different networks, but of its 20 networks of width 4 only 1"),
    ):
        with pytest.raises(ValueError, match=message):
            keft.width_check(kernels, wishart_theory)
    with pytest.raises(ValueError, match='`quantity` must be "V4" or "K1", but is \'K0\''):
        keft.width_check(wisharts(np.random.default_rng(3), (4, 8), 20), wishart_theory).p_value("K0")
    with pytest.raises(ValueError, match="two widths or more"):
        keft.width_check(wisharts(np.random.default_rng(3), (4,), 20), wishart_theory).p_value()


def test_an_entry_without_scatter_is_not_that_of_the_theory(wishart_theory):
    """Streams that were normalised have a mean square of one in every network: no noise excuses a difference then."""
    kernels = wisharts(np.random.default_rng(6), (4, 8), 20)
    kernels = {n: G / np.sqrt(np.einsum("btaa,btcc->btac", G, G)) for n, G in kernels.items()}
    kernels = {n: np.where(np.eye(2) > 0, 1.0, G) for n, G in kernels.items()}
    check = keft.width_check(kernels, wishart_theory)
    assert (check.p_value("V4"), check.p_value("K1")) == (0.0, 0.0)


def test_a_check_in_words(wishart_theory):
    text = str(keft.width_check(wisharts(np.random.default_rng(4), (4, 8), 100), wishart_theory))
    assert all(word in text for word in ("theory", "p = ", "for V4", "for K1"))
    assert len({len(line) for line in text.splitlines()[:4]}) == 1


# ---------------------------------------------------------------------------------------------------------------- figures


def test_window_figure_marks_depths_and_widths(window):
    figure = figures.plot_window(window)
    first, _, widths = figure.axes
    t_star = window.reach["kernel"]["V4"].t_star
    assert any(text.get_text() == f"$t^* = {t_star:.2g}$" for text in first.texts)
    labels = widths.get_legend_handles_labels()[1]
    assert labels[0] == f"$V_4$: from $n^*$ = {window.widths['V4'][-1].width}"
    assert labels[1] == "$K_1$: too few networks to tell at n = 32"
    t, error = map(np.asarray, first.lines[0].get_data())
    np.testing.assert_array_equal(error[np.isin(t, window.ts)], window.reach["kernel"]["V4"].error)
    assert np.interp(t_star, t, error) == pytest.approx(window.tolerance)


def test_window_figure_draws_no_error_that_is_zero(window):
    """Zero is nowhere on a logarithmic axis: a line that ended there would be a vertical one at the wrong depth."""
    grows = np.arange(window.ts.size, dtype=float)
    figure = figures.plot_window(eqx.tree_at(lambda w: w.reach["kernel"]["V4"].error, window, grows))
    line = next(line for line in figure.axes[0].lines if line.get_label() == "kernel")
    t, error = map(np.asarray, line.get_data())
    assert np.isnan(error[0])
    np.testing.assert_allclose(error[1:], np.interp(t[1:], window.ts, grows))


def test_window_figure_of_no_closure_and_of_one_without_errors_shows_the_tolerance(window):
    """A window of widths alone has no closure, and a closure that is the reference has no error."""
    exact = eqx.tree_at(lambda w: w.reach["kernel"]["V4"].error, window, np.zeros(window.ts.size))
    none = eqx.tree_at(lambda w: w.reach, window, {})
    for shown in (exact, none):
        low, high = figures.plot_window(shown).axes[0].get_ylim()
        assert 0 < low < window.tolerance < high
        assert np.isfinite(high)


def test_width_figure_shows_points_and_theory(wishart_theory):
    check = keft.width_check(wisharts(np.random.default_rng(5), (4, 8), 100), wishart_theory)
    figure = figures.plot_width_check(check, entry=(0, 1))
    left = figure.axes[0]
    np.testing.assert_allclose(left.lines[0].get_ydata(), check.theory.V4[:, 0, 1, 0, 1])
    assert left.get_legend_handles_labels()[1] == [type(wishart_theory.closure).__name__, "$n = 4$", "$n = 8$"]


def test_panels_draw_errors_as_points_and_theory_as_curves():
    ts = np.linspace(0, 1, 5)
    lines = {"sampled": figures.Line(ts, ts, 0.1 + 0 * ts), "theory": figures.Line(ts, 2 * ts)}
    figure = figures.plot_panels({"left": lines, "right": lines}, title="", ylabel="y")
    for ax in figure.axes:
        assert len(ax.containers) == 1
        assert any(np.array_equal(line.get_ydata(), 2 * ts) for line in ax.lines)
    assert diagnostics.WidthCheck is keft.WidthCheck
