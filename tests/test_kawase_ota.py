"""The published study: its numbers come back from its rule, and the table states what was computed.

The main job at its real size is a slow test; here the same code runs on eight layers, eps = 0.5, and in the quick
tests on three linear layers, whose theory is known in closed form.
"""

import ast
import importlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from problems import CUBIC, polynomial

import kernel_eft_jax as keft
from kernel_eft_jax.studies import kawase_ota as study_of
from kernel_eft_jax.studies.kawase_ota.item import draw

PACKAGE = "kernel_eft_jax.studies.kawase_ota"
ROOMS = "activations", "equations", "main_job", "quadrature", "summary", "sweeps", "whole"
activations, equations, main_room, quadrature, summary, sweeps, whole = (
    importlib.import_module(f"{PACKAGE}.{name}") for name in ROOMS
)
RULE = study_of.GaussHermite(keft.Tanh())
ONE = study_of.MAIN._replace(K0=study_of.MAIN.K0[:1, :1])
LINEAR = keft.Linear()
ONE_POINT = study_of.GaussHermite(LINEAR, 1)  # finds E[x^2] = 0, and the right derivative


@eqx.filter_jit
def expansion(activation, k):
    return activation.expansion(k)


@pytest.mark.thorough
def test_the_published_rule_and_layers_give_the_published_theory_back():
    """Euler steps by the 32-point rule; and by converged expectations the numbers found independently of this
    package."""
    published, layers = study_of.PUBLISHED["theory_at_T2"], np.array([0, 200, 400, 600, 800])
    rule = study_of.Theory(study_of.Euler(), RULE, 1).solve(ONE, layers)
    assert float(rule.K0[-1, 0, 0]) == pytest.approx(published["K0_00"], abs=5e-5)
    assert float(rule.K1[-1, 0, 0]) == pytest.approx(published["K1_EFT_00"], abs=1e-4)
    V4 = [point["theory"] for point in study_of.PUBLISHED["V4_0000_n64"]]
    np.testing.assert_allclose(rule.V4[:, 0, 0, 0, 0], V4, atol=5e-4)
    # The solution itself says that its expectations are off: by half, in this case.
    assert 0.1 < rule.stats["expectation_error"] < 1
    converged = study_of.Theory(study_of.Euler(), keft.Tanh(), 1).solve(ONE, layers)
    assert float(converged.V4[-1, 0, 0, 0, 0]) == pytest.approx(47.789757, abs=1e-6)
    assert float(converged.K1[-1, 0, 0]) == pytest.approx(-1.0266683, abs=1e-7)


def wick(K):
    return np.einsum("ac,bd->abcd", K, K) + np.einsum("ad,bc->abcd", K, K)


def test_an_euler_step_is_that_of_the_equations():
    """Linear s, two inputs: Q = C_W K, chi h = C_W h and Hess = 0, so that one step is arithmetic."""
    K, C_W, eps = np.array([[1.5, 0.4], [0.4, 0.9]]), 0.8, 0.5
    theory = study_of.Theory(study_of.Euler(), keft.Linear(), 2)
    got = theory.solve(study_of.Setting(K, 1, 1, eps), np.array([1]), C_W=C_W)
    np.testing.assert_allclose(got.K0[0], (1 + eps**2 * C_W) * K, rtol=1e-12)
    # Sigma(K, C_W K) is twice C_W Wick(K), and so is transport.
    np.testing.assert_allclose(got.V4[0], (1 + 4 * eps**2 * C_W) * wick(K), rtol=1e-12)
    np.testing.assert_allclose(got.K1[0], 0, atol=1e-12)


@pytest.mark.parametrize(("k", "rule", "converged"), [(2, 0.1688, 0.1770), (3, 0.0777, 0.1099), (4, 0.0093, 0.0767)])
def test_transport_by_the_published_rule(k, rule, converged):
    # theory.md, section 3: E[(tanh^2)''] by 32 points and converged; chi of one input is half of it, for C_W = 1.
    for activation, expected in ((RULE, rule), (keft.Tanh(), converged)):
        assert 2 * expansion(activation, jnp.array([float(k)])).gradient.sum() == pytest.approx(expected, abs=5e-5)


def test_the_rule_is_exact_for_polynomials():
    # Products of two cubics have degree six, 32 points are exact to degree 63 and the eight points used here to 15.
    k_aa, k_bb, k_ab = 1.2, 0.7, -0.4
    got = expansion(study_of.GaussHermite(keft.Polynomial(jnp.array(CUBIC))), jnp.array([k_aa, k_ab, k_bb]))
    x, w = np.polynomial.hermite_e.hermegauss(8)
    w = w / w.sum()
    phi_a = np.sqrt(k_aa) * x[:, None]
    phi_b = k_ab / k_aa * phi_a + np.sqrt(k_bb - k_ab**2 / k_aa) * x
    s = polynomial(*CUBIC)

    def mean(i, j):
        return w @ (s(phi_a, i) * s(phi_b, j)) @ w

    def square_mean(k, order):
        square = np.polynomial.Polynomial(CUBIC) ** 2
        return w @ square.deriv(order)(np.sqrt(k) * x) if order else w @ square(np.sqrt(k) * x)

    np.testing.assert_allclose(got.value, [square_mean(k_aa, 0), mean(0, 0), square_mean(k_bb, 0)], rtol=1e-12)
    np.testing.assert_allclose(got.gradient[1], [mean(2, 0) / 2, mean(0, 2) / 2, mean(1, 1)], rtol=1e-12)
    np.testing.assert_allclose(
        got.gradient.sum(1)[jnp.array([0, 2])], [square_mean(k_aa, 2) / 2, square_mean(k_bb, 2) / 2], rtol=1e-12
    )
    curvature = [
        [mean(4, 0) / 4, mean(2, 2) / 4, mean(3, 1) / 2],
        [mean(2, 2) / 4, mean(0, 4) / 4, mean(1, 3) / 2],
        [mean(3, 1) / 2, mean(1, 3) / 2, mean(2, 2)],
    ]
    np.testing.assert_allclose(got.hessian[1], curvature, atol=1e-12)
    np.testing.assert_allclose(got.hessian[0].sum(), square_mean(k_aa, 4) / 4, rtol=1e-9)


def test_sources_alone_add_up():
    """Linear s: Sigma = 2 C_W Wick(K0) and K0 grows by (1 + eps^2 C_W) a layer; a sum written out."""
    k, C_W, eps, layers = 1.5, 0.8, 0.5, np.array([0, 1, 5])
    theory = study_of.Theory(study_of.SourceOnly(), keft.Linear(), 1)
    got = theory.solve(study_of.Setting(np.array([[k]]), 1, 5, eps), layers, C_W=C_W)
    K0 = k * (1 + eps**2 * C_W) ** np.arange(6)
    V4 = 2 * k**2 + np.concatenate([[0], np.cumsum(eps**2 * 2 * C_W * 2 * K0**2)])
    np.testing.assert_allclose(got.V4[:, 0, 0, 0, 0], V4[layers], rtol=1e-12)


@pytest.fixture(scope="module")
def study():
    small = {name: t._replace(inputs=2, closure=study_of.Euler()) for name, t in study_of.THEORIES.items()}
    small[study_of.SOURCE] = study_of.THEORIES[study_of.SOURCE]._replace(inputs=2)  # this one has no chi
    small[study_of.TOWER] = small[study_of.TOWER]._replace(closure=keft.HermiteTower(20))  # of the summary
    setting = study_of.Setting(study_of.MAIN.K0[:2, :2], 64, 8, 0.5)
    return study_of.main_job(64, jax.random.key(3), setting, small, progress=False)


@pytest.fixture(scope="module")
def main_item(study):
    return study_of.main_item(study)


@pytest.fixture(scope="module")
def equations_item(study):
    return study_of.equations_item(study)


def growth(depth, g):
    """K0 and V4 of linear layers over those of the input, with g = eps^2 C_W: Q = C_W K0, chi h = C_W h, Hess = 0."""
    K0 = (1 + g) ** np.arange(depth + 1.0)

    def V4(kept, new):
        return np.array([*itertools.accumulate(K0[:-1] ** 2, lambda v, square: kept * v + new * square, initial=1.0)])

    return K0, {
        study_of.TOWER: V4((1 + g) ** 2, 2 * g + g**2),
        study_of.G_ONLY: V4(1 + 2 * g, 2 * g),
        study_of.RULE: V4(1 + 2 * g, 0),  # of one point, for which Q = 0
        study_of.SOURCE: V4(1, 2 * g),
    }


def known_theory(closure, activation, inputs):
    """Solves for V4 of linear layers in closed form; a tower is exact."""
    by_rule = study_of.RULE if activation == ONE_POINT else study_of.G_ONLY
    name = study_of.TOWER if isinstance(closure, keft.HermiteTower) else by_rule

    def solve(setting, layers):
        factor = growth(setting.depth, setting.eps**2 * 2)[1][name][layers]
        return SimpleNamespace(V4=np.multiply.outer(factor, wick(setting.K0[:inputs, :inputs])))

    return SimpleNamespace(solve=solve)


def linearise(patch):
    """Linear layers take the place of tanh, the rule of one point that of the rule of 32."""
    model, by_rule = (keft.Model(activation, 2.0) for activation in (LINEAR, ONE_POINT))
    names = {"TANH": LINEAR, "RULE_32": ONE_POINT, "MODEL": model, "RULE_MODEL": by_rule}
    for room in (equations, main_room, quadrature, summary, sweeps):
        for name in names.keys() & vars(room).keys():
            patch.setattr(room, name, names[name])
    for room in (quadrature, summary):
        patch.setattr(room, "Theory", known_theory)
    patch.setattr(activations, "ACTIVATIONS", {"tanh": LINEAR, "ReLU": LINEAR})


K, WIDTH, DEPTH = np.array([[1.5, 0.4], [0.4, 0.9]]), 8, 3
K0_GROWTH, V4_GROWTH = growth(DEPTH, 0.5)  # eps = 0.5, C_W = 2


@pytest.fixture(scope="module")
def linear_study():
    """Linear layers, for which all is known and little is compiled. K1, U1 and V_GS of the tower, K1 and V4 of
    SigmaKernel are made up, so that they can be told from the others."""
    theories = {
        name: study_of.Theory(study_of.Euler(), activation, 2)
        for name, activation in ((study_of.G_ONLY, LINEAR), (study_of.RULE, ONE_POINT))
    }
    setting = study_of.Setting(K, WIDTH, DEPTH, 0.5)
    solved = study_of.main_job(64, jax.random.key(3), setting, theories, activation=LINEAR, progress=False)
    euler = solved.theories[study_of.G_ONLY]

    def with_moments(**moments):
        return eqx.tree_at(lambda s: s.packed, euler, euler.packed._replace(**moments))

    def V4(name):
        return euler.packed.V4 * (V4_GROWTH[name] / V4_GROWTH[study_of.G_ONLY])[:, None, None]

    K0, exact = euler.packed.K0, V4(study_of.TOWER)
    made = {
        study_of.SOURCE: with_moments(V4=V4(study_of.SOURCE)),
        study_of.TOWER: with_moments(V4=exact, K1=-0.1 * K0, U1=-0.3 * K0, V_GS=1.1 * exact, V_SS=exact),
        study_of.SIGMA: with_moments(V4=1.2 * exact, K1=-0.2 * K0),
    }
    return solved._replace(theories={**solved.theories, **made})


def linear_item(item, study):
    with pytest.MonkeyPatch.context() as patch:
        linearise(patch)
        return item(study)


@pytest.fixture(scope="module")
def linear_main_item(linear_study):
    return linear_item(study_of.main_item, linear_study)


@pytest.fixture(scope="module")
def linear_equations_item(linear_study):
    return linear_item(study_of.equations_item, linear_study)


@pytest.fixture(params=[pytest.param("", marks=pytest.mark.thorough, id="tanh"), pytest.param("linear_", id="linear")])
def part(request, monkeypatch):
    """The study or an item of it, by name: that of tanh, or that of linear layers."""
    if request.param:
        linearise(monkeypatch)
    return lambda name: request.getfixturevalue(request.param + name)


def rows(item):
    return {row.quantity: row for section in item.sections for row in section.rows}


def test_linear_layers_grow_as_known(linear_study):
    """The main job samples what it is asked for, and solves at the sampled layers. By one point Q is zero, so that K0
    stays, and the solution says that all of E[x^2] is missing; the layers themselves are linear."""
    assert ONE_POINT(2.0) == 2
    sampled, theories = linear_study.sampled, linear_study.theories
    assert (sampled.width, sampled.networks, sampled.layers.tolist()) == (WIDTH, 64, [0, 1, 2, 3])
    np.testing.assert_allclose(sampled.K0, np.multiply.outer(K0_GROWTH, K), rtol=1e-12)
    np.testing.assert_allclose(theories[study_of.G_ONLY].K0, sampled.K0, rtol=1e-12)
    np.testing.assert_allclose(theories[study_of.RULE].K0, 0 * sampled.K0 + K, rtol=1e-12)
    for name in (study_of.G_ONLY, study_of.RULE):
        np.testing.assert_allclose(theories[name].V4, np.multiply.outer(V4_GROWTH[name], wick(K)), rtol=1e-12)
        np.testing.assert_allclose(theories[name].K1, 0, atol=1e-12)
    assert theories[study_of.RULE].stats["expectation_error"] == pytest.approx(1)
    np.testing.assert_allclose(linear_study.quadrature_bias(), WIDTH * np.multiply.outer(K0_GROWTH - 1, K), atol=1e-12)
    assert [linear_study.place(t) for t in (0, 0.3, 0.45, 2)] == [0, 1, 2, 3]


def test_the_main_table_of_linear_layers(linear_study, linear_main_item):
    """The rule stands under `here`, converged theory beside it; the error of the rule's K0 belongs to K1_mic."""
    table, sampled = rows(linear_main_item), linear_study.sampled
    K1, bias, V4 = sampled.K1[-1, 0, 0], WIDTH * (K0_GROWTH[-1] - 1) * 1.5, 4.5 * V4_GROWTH[study_of.TOWER]
    row = table["K0[00] at t = 2"]
    assert (row.here.value, row.converged.value) == pytest.approx((1.5, 1.5 * K0_GROWTH[-1]))
    row = table["V4[00,00] at t = 0.5"]  # layer 2; the row of the sampled networks comes later and has this name too
    assert row.here.value == pytest.approx(V4[2] + sampled.V4_excess[2, 0, 0, 0, 0])
    assert row.published.error == pytest.approx(14.719 * np.sqrt(2 / 5e6))
    theory = {row.quantity: row for row in linear_main_item.sections[0].rows}["V4[00,00] at t = 0.5"]
    expected = [4.5 * V4_GROWTH[name][2] for name in (study_of.RULE, study_of.G_ONLY)]
    assert (theory.here.value, theory.converged.value) == pytest.approx(expected)
    assert table["K1_EFT[00] at t = 2"].here.value == pytest.approx(0, abs=1e-12)
    row = table["K1_mic[00] at t = 2"]
    assert (row.here.value, row.converged.value) == pytest.approx((K1 + bias, K1))
    plain = table["V4[00,00] at t = 2.0, no control variate"]
    assert (plain.published.value, plain.here.value) == (48.735, sampled.V4[-1, 0, 0, 0, 0])
    for name, share, factor in ((study_of.TOWER, 1, -0.1), (study_of.SIGMA, 1.2, -0.2)):
        assert table[f"V4: sampled, n = 256; here {name}"].here.value == pytest.approx(share * V4[-1])
        row = table[f"K1_mic less the error of K0; here {name}"]
        assert (row.here.value, row.published.value) == pytest.approx((factor * 1.5 * K0_GROWTH[-1], -0.7742 - bias))


def test_the_figures_of_linear_layers(linear_study, linear_main_item):
    """What is drawn is what the study holds: E[G] = K0 + K1 / n, differences in per cent, and K1 once more, driven by
    the measured U1."""
    sampled, bias, ts = linear_study.sampled, linear_study.quadrature_bias(), [0, 0.25, 0.5, 0.75]
    lines = {
        name: {label: line for panel in drawing.panels.values() for label, line in panel.items()}
        for name, drawing in linear_main_item.figures.items()
    }
    assert all((line[0] == ts).all() for line in lines["figure-1-mean-and-covariance"].values())
    panels = linear_main_item.figures["figure-1-mean-and-covariance"].panels
    _, mean, stderr = panels["$E[G_{01}]$ and $K_{0;01}$"]["networks"]
    np.testing.assert_allclose(mean, (sampled.K0 + sampled.K1 / WIDTH)[:, 0, 1], rtol=1e-12)
    np.testing.assert_allclose(stderr, sampled.stderr.K1[:, 0, 1] / WIDTH, rtol=1e-12)
    K1 = linear_main_item.figures["figure-3-mean-correction"].panels["$K_{1;01}$"]
    np.testing.assert_allclose(K1["networks with the 32-point $K_0$"][1], (sampled.K1 + bias)[:, 0, 1], rtol=1e-12)
    np.testing.assert_allclose(K1["driven by the measured source"][1], sampled.K1[:, 0, 1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(K1[study_of.TOWER][1], -0.04 * K0_GROWTH, rtol=1e-12)
    errors = lines["errors-of-the-theories"]
    assert set(errors) == {"networks", *linear_study.theories} - {study_of.SOURCE}
    V4 = linear_study.V4()[0][:, 0, 1, 0, 1]
    expected = 100 * (V4_GROWTH[study_of.RULE] * wick(K)[0, 1, 0, 1] / V4 - 1)
    np.testing.assert_allclose(errors[study_of.RULE][1], expected, rtol=1e-9)


def test_the_equations_of_linear_layers(linear_study, linear_equations_item):
    """Transport is exact. Sigma of the networks is 4 C_W E[G^2], of GOnly 4 C_W K0^2, and zero by the rule; a layer
    adds C_W^2 eps^2 (V4 + 2 E[G^2]). The source of K1 is zero at depth zero, where the rule misses n K0; by GOnly it
    is K1."""
    table, sampled = rows(linear_equations_item), linear_study.sampled
    V4 = sampled.V4[:, 0, 0, 0, 0]
    square = sampled.G[:, 0, 0] ** 2 + V4 / WIDTH  # E[G^2]
    Sigma, of_closure, layer = 8 * square, 8 * (1.5 * K0_GROWTH) ** 2, V4 + 2 * square
    for t, i in (("0.4", 2), ("0.9", 3)):
        row = table[f"residual[00,00] at t = {t}"]
        total = (Sigma + layer)[i]
        assert (row.here.value, row.converged.value) == pytest.approx((total, total - of_closure[i]), rel=1e-3)
    # Transport of the tower: C_W (V_GS + V_GS^T) - 2 C_W V4 with V_GS = 1.1 V4.
    row = table["transport[00,00] at t = 2"]
    assert row.published.value == pytest.approx(0.4 * 4.5 * V4_GROWTH[study_of.TOWER][-1])
    assert row.here.value == pytest.approx(0, abs=1e-4 * V4[-1])
    row = table["source[00,00] at t = 2"]
    assert (row.published.value, row.here.value) == pytest.approx((0, (Sigma - of_closure)[-1]), rel=1e-3, abs=1e-9)
    row = table["U1[00] at t = 0, measured"]
    assert (row.here.value, row.converged.value) == pytest.approx((WIDTH * 1.5, 0), abs=1e-5)
    assert row.published.error == pytest.approx(np.sqrt(WIDTH * V4[0] / 5e6), rel=1e-5)
    row, K1 = table["K1[00] at t = 2 from the measured source"], sampled.K1[-1, 0, 0]
    assert row.converged.value == pytest.approx(K1, rel=1e-4)
    assert row.here.value - row.converged.value == pytest.approx(WIDTH * (K0_GROWTH[-1] - 1) * 1.5)
    panel = linear_equations_item.figures["figure-4-source"].panels["$U_{1;01}$"]
    for label, source in (("networks", sampled.U1), ("GOnly formula, $V_4$ and $K_1$ of networks", sampled.K1)):
        np.testing.assert_allclose(panel[label][1], source[:, 0, 1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(panel[study_of.TOWER][1], -0.3 * 0.4 * K0_GROWTH)
    (kurtosis,) = linear_equations_item.figures["kurtosis"].panels.values()
    expected = 6 * (V4_GROWTH[study_of.G_ONLY] / K0_GROWTH**2 - 1)
    np.testing.assert_allclose(kurtosis[study_of.G_ONLY][1], expected, atol=1e-9)
    residual = linear_equations_item.figures["residual-of-V4"].panels
    np.testing.assert_allclose(residual["source"]["networks, 32-point rule"][1], Sigma, rtol=1e-3)
    np.testing.assert_array_equal(residual["all"]["published networks"][1], list(equations.RESIDUAL.values()))


def test_the_summary_of_linear_layers(linear_study, linear_equations_item):
    """Errors of the rule over all entries and layers; a K1 of zero is off by all of it, whatever the noise."""
    table, sampled = {row.quantity: row for row in linear_equations_item.sections[-1].rows}, linear_study.sampled

    def error(theory, truth):
        norm = [np.linalg.norm(x.reshape(DEPTH + 1, -1), axis=1) for x in (theory - truth, truth)]
        return np.mean(norm[0] / norm[1])

    V4 = {name: np.multiply.outer(factor, wick(K)) for name, factor in V4_GROWTH.items()}
    networks = V4[study_of.TOWER] + sampled.V4_excess
    assert table["K0"].here.value == pytest.approx(error(K, sampled.K0 + sampled.K1 / WIDTH))
    assert table["V4_full"].here.value == pytest.approx(error(V4[study_of.RULE], networks))
    assert table["V4_source_only"].here.value == pytest.approx(error(V4[study_of.SOURCE], networks))
    assert table["K1_EFT"].here == pytest.approx((1, 0))
    assert 0 < table["K1_exact_source"].here.value < 0.01


def test_the_published_noise_grows_as_linear_kernels(linear_study, monkeypatch):
    """X' = (1 + eps^2 C_W) X + M'; the variance of M is n V4 of the sources / networks, to five standard
    errors of 0.7 %."""
    linearise(monkeypatch)
    monkeypatch.setattr(summary, "DRAWS", 40_000)
    X, M = summary.published_noise(linear_study)
    np.testing.assert_allclose(X[:, 1:], 1.5 * X[:, :-1] + np.diff(M, axis=1), atol=1e-12)
    np.testing.assert_array_equal(X[:, 0], M[:, 0])
    expected = wick(K)[0, 1, 0, 1] * V4_GROWTH[study_of.SOURCE] * WIDTH / 5_000_000
    np.testing.assert_allclose(M[:, :, 0, 1].var(0), expected, rtol=0.035)


def test_rules_of_linear_layers(linear_study, monkeypatch):
    """The published code has 200 layers, eps = 0.1; one point has its own V4, more points have that of GOnly. Along
    K0(t) the error of one point is all of E[x^2], and its chi is right."""
    linearise(monkeypatch)
    points = "V4_0000_T2_eps_0.10_of_the_published_code_by_points"
    monkeypatch.setattr(quadrature, "PUBLISHED", study_of.PUBLISHED | {points: {"1": 42.83, "64": 47.36}})
    monkeypatch.setattr(quadrature, "RULES", {"32-point rule": ONE_POINT, study_of.G_ONLY: LINEAR})
    item = study_of.quadrature_item(linear_study)
    table, (_, V4) = rows(item), growth(200, 0.02)
    for m, name, published in ((1, study_of.RULE, 42.83), (64, study_of.G_ONLY, 47.36)):
        row = table[f"V4[00,00] at t = 2, eps = 0.1, {m} points"]
        expected = 8 * V4[name][-1], 8 * V4[study_of.G_ONLY][-1], published
        assert (row.here.value, row.converged.value, row.published.value) == pytest.approx(expected)
    error, chi, values, ratios = item.figures["quadrature-bias"].panels.values()
    np.testing.assert_allclose(error["32-point rule"][1], -1.5 * K0_GROWTH)
    assert set(error) == {"32-point rule"}
    assert all(line[1] == pytest.approx(2) for line in chi.values())
    networks = linear_study.V4()[0][:, 0, 0, 0, 0]
    for label, name in (("32-point rule", study_of.RULE), (study_of.TOWER, study_of.TOWER)):
        np.testing.assert_allclose(values[label][1], 4.5 * V4_GROWTH[name])
        np.testing.assert_allclose(ratios[label][1], 100 * (4.5 * V4_GROWTH[name] / networks - 1))
    assert list(item.results) == ["theory-GOnly-1-points"]


def test_each_activation_has_networks_of_its_own(monkeypatch):
    """Each is sampled with its own key, at the same setting, and its theories are its own."""
    asked = []
    monkeypatch.setattr(activations, "main_job", lambda *args, activation, progress: asked.append((*args, activation)))
    assert list(study_of.activation_studies(64, jax.random.key(0), progress=False)) == list(activations.ACTIVATIONS)
    assert len({tuple(jax.random.key_data(key).tolist()) for _, key, *_ in asked}) == len(asked) == 4
    for (networks, _, setting, theories, activation), own in zip(asked, activations.ACTIVATIONS.values(), strict=True):
        assert (networks, setting, activation) == (64, activations.SETTING, own)
        assert {name: t.closure for name, t in theories.items()} == activations.CLOSURES
        assert {t.activation for t in theories.values()} == {own}


def test_a_setting_names_itself_in_symbols():
    published = "tanh, $C_W = 2$, $C_b = 0$, $K_{0;00} = 2$, $K_{0;01} = 0.6$, $n = 64$, $\\epsilon = 0.05$, 800 layers"
    assert study_of.MAIN.symbols == published
    assert str(ONE) == "tanh, C_W = 2, C_b = 0, K0[00] = 2, n = 64, eps = 0.05, 800 layers"


def test_an_item_is_written_under_names_of_its_own(linear_study, monkeypatch, tmp_path):
    """Each figure twice, in two columns and stacked; names without blanks; what was saved can be read again."""
    columns = {}

    def savefig(figure, file, **_):
        columns[file.name] = figure.axes[0].get_gridspec().ncols

    monkeypatch.setattr(Figure, "savefig", savefig)
    line = [0, 1], [1, 2], [0, 1]
    drawing = study_of.Drawing("title", {name: {"networks": line} for name in ("left", "right")}, "per cent")
    theory, sections = linear_study.theories[study_of.RULE], [study_of.Chapter("title", "why", [row(1.0, 0.3, 1.8)])]
    item, out = study_of.Item(sections, {"Figure 1": drawing}, {study_of.RULE: theory}), tmp_path / "new" / "results"
    saved, *figures = study_of.write_item(item, out)
    assert saved == out / "gonly-32-point-rule.nc"
    np.testing.assert_array_equal(keft.load(saved).V4, theory.V4)
    assert columns == {"figure-1.png": 2, "figure-1.pdf": 2, "figure-1-stacked.png": 1, "figure-1-stacked.pdf": 1}
    assert [path.name for path in figures] == list(columns)
    text, data = study_of.write_table(sections, "heading", out)
    assert text.read_text() == study_of.markdown(sections, "heading")
    assert json.loads(data.read_text())[0]["rows"][0]["verdict"] == "agrees"
    left, right = draw(drawing, 2).axes
    assert (left.get_title(), right.get_title()) == ("left", "right")
    np.testing.assert_array_equal(left.lines[0].get_ydata(), line[1])


@pytest.mark.thorough
def test_the_tables_set_ours_beside_the_published(study, main_item):
    table, sampled = rows(main_item), study.sampled
    row = table["V4[00,00] at t = 2.0, no control variate"]
    assert (row.published.value, row.here.value) == (48.735, sampled.V4[-1, 0, 0, 0, 0])
    bias = 64 * float(study.theories[study_of.G_ONLY].K0[-1, 0, 0] - study.theories[study_of.RULE].K0[-1, 0, 0])
    assert study.quadrature_bias()[-1, 0, 0] == pytest.approx(bias)
    assert bias < 0
    row = table["K1_mic[00] at t = 2"]
    assert row.published.value == -0.7742
    assert row.converged == (sampled.K1[-1, 0, 0], sampled.stderr.K1[-1, 0, 0])
    assert row.here.value == pytest.approx(row.converged.value + bias)
    assert table["K1_mic less the error of K0; here HermiteTower"].published.value == pytest.approx(-0.7742 - bias)


def test_sampled_V4_is_the_exact_one_and_the_excess(part):
    study = part("study")
    V4, stderr = study.V4()
    excess = study.sampled.V4_excess[:, :2, :2, :2, :2]
    np.testing.assert_allclose(V4, study.theories[study_of.TOWER].V4 + excess, rtol=1e-12)
    np.testing.assert_array_equal(stderr, study.sampled.stderr.V4_excess[:, :2, :2, :2, :2])


def row(published, published_error, here, here_error=0.0, **others):
    return study_of.Row(
        "", study_of.WithError(published, published_error), study_of.WithError(here, here_error), **others
    )


def test_differences_are_in_standard_errors_where_there_are_any():
    assert row(1.0, 0.3, 3.0, 0.4).difference == "+4.0 s.e."
    assert row(1.0, 0.0, 0.5).difference == "-0.5"


def test_agreement_is_within_three_standard_errors_or_the_last_digit():
    assert row(1.0, 0.3, 1.8).verdict == "agrees"
    assert row(1.0, 0.3, 2.0).verdict == "differs"
    assert row(42.878, 0.0, 42.8778).verdict == "agrees"
    assert row(42.878, 0.0, 42.88, reason="why").verdict == "why"


def test_the_summary_counts_what_stands_in_the_tables():
    """What agrees is counted by kind, what does not is named; rows that are not compared with published numbers are
    left out."""
    agrees, differs, digits = row(1.0, 0.3, 1.8), row(1.0, 0.1, 2.0), row(42.878, 0.0, 42.8778)
    sections = [
        study_of.Chapter("one", "", [agrees, differs._replace(quantity="V4"), digits]),
        study_of.Chapter("two", "", [differs], "theory"),
    ]
    text = study_of.summary(sections)
    assert text.startswith("2 of 3 published numbers come back")
    assert "1 of 2 sampled ones within three standard errors, 1 of 1 others to the last digit" in text
    assert "The others: V4 (+10.0 s.e., differs)." in text
    assert "The others" not in study_of.summary([study_of.Chapter("one", "", [agrees, digits])])


def test_the_page_says_what_its_tables_say():
    """docs/paper.md: what its summary counts is what its tables show, row by row."""
    page = (Path(__file__).parents[1] / "docs" / "paper.md").read_text()
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("| quantity")]
    cells_of = [[[cell.strip() for cell in line.split("|")] for line in lines] for lines in tables]
    published = [cells for head, _, *lines in cells_of for cells in lines if head[2] == "published"]
    agree = sum(cells[5] == "agrees" for cells in published)
    assert f"{agree} of {len(published)} published numbers come back" in page
    text = " ".join(page.split())
    assert all(f"{cells[1]} ({cells[4]}" in text for cells in published if cells[5] != "agrees")


@pytest.mark.thorough
def test_everything_is_written_and_can_be_read_again(study, main_item, tmp_path):
    names = ("figure-1-mean-and-covariance", "figure-3-mean-correction", "errors-of-the-theories")
    assert set(main_item.figures) == set(names)
    item, out = main_item._replace(figures={names[1]: main_item.figures[names[1]]}), tmp_path / "new" / "results"
    paths = study_of.write_item(item, out) + study_of.write_table(item.sections, "heading", out)
    files = {path.name: path for path in paths}
    for suffix in (".png", ".pdf", "-stacked.png", "-stacked.pdf"):
        assert files[f"{names[1]}{suffix}"].stat().st_size > 10_000
    for drawing in main_item.figures.values():  # the others are drawn, and not written
        draw(drawing, 2).draw_without_rendering()
    sampled = keft.load(files["sampled.nc"])
    np.testing.assert_array_equal(sampled.V4, study.sampled.V4)
    assert sum(name.startswith("theory-") for name in files) == len(study.theories)
    theory = keft.load(files["theory-gonly-converged.nc"])
    np.testing.assert_array_equal(theory.V4, study.theories[study_of.G_ONLY].V4)
    sections = json.loads(files["table.json"].read_text())
    assert [s["title"] for s in sections] == [s.title for s in item.sections]
    assert files["table.md"].read_text() == study_of.markdown(item.sections, "heading")


def test_markdown_is_a_table(part):
    text = study_of.markdown(part("main_item").sections, "heading")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    # The last column is there only where something has converged.
    assert [{line.count("|") for line in lines} for lines in tables] == [{7}, {7}, {6}]
    assert all(len({len(line) for line in lines}) == 1 for lines in tables)


def test_figures_carry_the_numbers_of_the_paper(part, monkeypatch):
    """1: K0 and V4 together; 2: the steps at n = 256; 3: K1; 4: the source U1. What goes beyond has a name and no
    number."""
    monkeypatch.setattr(sweeps, "main_job", lambda *_, **__: part("study"))
    numbered = {}
    for item in (
        part("main_item"),
        part("equations_item"),
        study_of.sweep_item(study_of.sweep(64, jax.random.key(0))),
    ):
        numbered |= {name: list(d.panels) for name, d in item.figures.items() if name.startswith("figure")}
    K0, V4 = ["$E[G_{00}]$ and $K_{0;00}$", "$E[G_{01}]$ and $K_{0;01}$"], ["$V_{4;00,00}$", "$V_{4;01,01}$"]
    assert numbered["figure-1-mean-and-covariance"] == K0 + V4
    assert [heading[:3] for heading in numbered["figure-2-steps"]] == ["(a)", "(b)"]
    assert numbered["figure-3-mean-correction"] == ["$K_{1;00}$", "$K_{1;01}$"]
    assert numbered["figure-4-source"] == ["$U_{1;00}$", "$U_{1;01}$"]
    assert len(numbered) == 4


@pytest.mark.thorough
def test_residuals_and_sources_stand_beside_the_published(study, equations_item):
    """The numbers of the table are those of the diagnostics, which have oracles of their own; the rule's error is one
    of NumPy's."""
    table = rows(equations_item)
    residual = keft.covariance_residual(study.sampled, keft.Model(keft.Tanh(), 2.0))
    value, stderr = residual.value, residual.stderr
    row = table["residual[00,00] at t = 1.95"]
    assert row.published.value == 9.3125
    assert row.converged == pytest.approx((value.total[-1].flat[0], stderr.total[-1].flat[0]))
    # At t = 0 nothing depends on the size of the study: 64 times the error of 32 points for E[tanh^2] at k = 2.
    x, w = np.polynomial.hermite_e.hermegauss(32)
    line = np.linspace(-12, 12, 4001)
    density = np.exp(-(line**2) / 2) * (line[1] - line[0]) / np.sqrt(2 * np.pi)
    rule = w / w.sum() @ np.tanh(np.sqrt(2) * x) ** 2 - density @ np.tanh(np.sqrt(2) * line) ** 2
    measured, eft = table["U1[00] at t = 0, measured"], table["U1[00] at t = 0 by the EFT"]
    assert measured.here.value == pytest.approx(-64 * rule, abs=1e-4)
    assert measured.converged.value == pytest.approx(0, abs=1e-6)
    assert eft.verdict == "agrees"
    assert abs(eft.converged.value - eft.published.value) > 0.002


def test_published_residuals_have_the_noise_of_their_neighbours(part):
    """If the published residuals of neighbouring layers differ three times as much, so do their errors; alike ones have
    none."""
    study = part("study")
    noise = study_of.residual_noise(study)
    assert set(noise) == set(equations.RESIDUAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equations, "RESIDUAL", {t: 3 * value for t, value in equations.RESIDUAL.items()})
        np.testing.assert_allclose(list(study_of.residual_noise(study).values()), 3 * np.array(list(noise.values())))
        patch.setattr(equations, "RESIDUAL", dict.fromkeys(equations.RESIDUAL, 1.0))
        np.testing.assert_allclose(list(study_of.residual_noise(study).values()), 0)


def test_the_summary_averages_as_published(part):
    """Frobenius norms over all entries, averaged over all layers: for a theory that is off by a share linear in depth,
    half of it."""
    study = part("study")
    layers = study.sampled.layers
    truth = np.random.default_rng(0).uniform(1, 2, (len(layers), 2, 2))
    off = 0.1 * layers / layers[-1]
    assert summary.mean_error(truth * (1 + off[:, None, None]), truth, study) == pytest.approx(0.05)
    later = summary.mean_error(truth * (1 + off[:, None, None]), truth, study, start=1)
    assert later == pytest.approx(0.05 * len(layers) / layers[-1])


@pytest.mark.thorough
def test_the_published_noise_is_that_of_the_mean_kernel(study):
    """Variance of X is n V4 / networks, with chi in it, and of M that of the sources alone; 200 draws tell it to 10 %,
    z below 5.

    Independent of the code under test: a V4 of GOnly that was stepped in layers, and the published standard error of K1
    is its root.
    """
    X, M = summary.published_noise(study)
    for noise, name in ((X, study_of.G_ONLY), (M, study_of.SOURCE)):
        expected = np.asarray(study.theories[name].V4)[-1, 0, 0, 0, 0] * 64 / 5_000_000
        assert noise[:, -1, 0, 0].var() / expected == pytest.approx(1, abs=0.5)
        assert noise[:, 0, 0, 0].var() / (2 * 2.0**2 * 64 / 5_000_000) == pytest.approx(1, abs=0.5)
    np.testing.assert_array_equal(X, np.swapaxes(X, 2, 3))
    # Without chi X would be M: here it is 0.17 a unit of depth time at first, times what there is.
    gain = np.sum((X - M)[:, 1] * M[:, 0], axis=0) / np.sum(M[:, 0] ** 2, axis=0)
    assert gain[0, 0] == pytest.approx(0.25 * 0.177, rel=0.02)


@pytest.mark.thorough
def test_the_published_code_comes_back_with_32_and_64_points(study):
    """42.83 and 47.36 are V4 of the published code at eps = 0.1, with its own 32 points and with 64."""
    item = study_of.quadrature_item(study)
    table = rows(item)
    for points, value in ((32, 42.83), (64, 47.36)):
        row = table[f"V4[00,00] at t = 2, eps = 0.1, {points} points"]
        assert row.published.value == value
        assert row.here.value == pytest.approx(value, abs=0.01)
    panels = list(item.figures["quadrature-bias"].panels.values())
    assert len(panels) == 4
    errors = {name: np.abs(line[1]) for name, line in panels[0].items()}
    assert (errors["32-point rule"] > 1e-4).all()
    assert (errors["128-point rule"] < 1e-8 + 1e-3 * errors["32-point rule"]).all()
    assert set(item.results) == {f"theory-GOnly-{points}-points" for points in (32, 64, 128)}


def test_sweeps_compare_every_published_case(part, monkeypatch):
    study = part("study")
    small = study._replace(setting=study.setting._replace(K0=study.setting.K0[:1, :1]))
    asked = []

    def main_job(networks, key, setting, theories, *, progress):
        asked.append((setting.width, setting.depth, setting.eps, len(setting.K0)))
        return small

    monkeypatch.setattr(sweeps, "main_job", main_job)
    item = study_of.sweep_item(study_of.sweep(64, jax.random.key(0), progress=False))
    assert sorted(asked) == [
        (64, 800, 0.05, 1),
        (128, 800, 0.05, 1),
        (256, 200, 0.1, 1),
        (256, 408, 0.07, 1),
        (256, 800, 0.05, 1),
    ]
    theory = np.asarray(small.theories[study_of.RULE].V4)[:, 0, 0, 0, 0]
    error = theory / small.V4()[0][:, 0, 0, 0, 0] - 1
    table = {r.quantity: r for r in item.sections[0].rows}
    assert len(table) == 3 + 2 + 4  # eps = 0.05 and T = 2 at n = 256 are one number
    assert table["n = 128, t = 2"].here.value == error[-1]
    assert table["T = 0.5, n = 256, eps = 0.05"].here.value == error[small.place(0.5)]
    assert table["T = 0.5, n = 256, eps = 0.05"].published.value == -0.0141
    label = r"$n = 128$, $\epsilon = 0.05$"
    drawn = item.figures["errors-by-width-and-step"].panels[study_of.RULE][label]
    np.testing.assert_array_equal(drawn[1], 100 * error)
    # Table 3: Sigma of the networks is 4 C_W (E[G] E[S] + V_GS / n), that of the closure 4 K0 Q(K0).
    table, i = rows(item), small.place(0.5)
    G, S, V_GS = (x[i].flat[0] for x in (small.sampled.G, small.sampled.S, small.sampled.V_GS))
    networks = table["Sigma[00,00] of networks at t = 0.5"].here.value
    assert networks == pytest.approx(8 * (G * S + V_GS / small.sampled.width), rel=1e-6)
    K0 = small.theories[study_of.G_ONLY].K0[i, :1, :1]
    closure = table["Sigma[00,00] of the closure at t = 0.5"].converged.value
    assert closure == pytest.approx(4 * (K0 * sweeps.MODEL.Q(K0)).item())


def test_other_activations_are_split_too(part):
    """The table has transport, source and three closures for each activation, from its own networks."""
    study = part("study")
    item = study_of.activation_item({"tanh": study, "ReLU": study})
    quantities = [r.quantity for r in item.sections[0].rows]
    assert len(quantities) == 10
    assert quantities[5:7] == ["ReLU: transport / rate", "ReLU: source / rate"]
    assert len(item.figures["residual-by-activation"].panels) == 2
    table, sampled, theories = rows(item), study.sampled, study.theories
    networks, theory = (V4[-1].flat[0] for V4 in (study.V4()[0], np.asarray(theories[study_of.SIGMA].V4)))
    row = table[f"ReLU: V4, {study_of.SIGMA}"]
    assert (row.published.value, row.here.value) == (theory, networks)
    assert row.reason == f"{100 * (theory / networks - 1):+.1f} %"
    # The rate of V4 is C_W (V_GS + V_GS^T) + 4 C_W G S.
    G, S, V_GS = (x[-1].flat[0] for x in (sampled.G, sampled.S, sampled.V_GS))
    model = keft.Model(activations.ACTIVATIONS["ReLU"], 2.0)
    transport = keft.covariance_residual(theories[study_of.TOWER], model).value.transport[-1].flat[0]
    assert table["ReLU: transport / rate"].published.value == pytest.approx(transport / (4 * V_GS + 8 * G * S))


def test_the_study_is_computed_as_it_is_asked_for(monkeypatch, tmp_path):
    """The parts of the study are computed when they are asked for, and the main job has the same key whether or not
    others are asked for."""
    done = []

    def job(name):
        return lambda size, key, **_: done.append((name, size, key))

    for name in ("main_job", "sweep", "activation_studies"):
        monkeypatch.setattr(whole, name, job(name))
    for name in ("main_item", "equations_item", "quadrature_item", "sweep_item", "activation_item"):
        monkeypatch.setattr(whole, name, lambda study, name=name: name)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text("")
    parts = study_of.everything(study_of.Sizes(1, 2, 3), jax.random.key(0), checkpoint=checkpoint)
    assert next(parts) == ("main job", "main_item")
    assert [d[:2] for d in done] == [("main_job", 1)]
    assert [name for name, _ in parts] == ["equations", "quadrature", "sweeps", "activations"]
    assert [d[:2] for d in done] == [("main_job", 1), ("sweep", 2), ("activation_studies", 3)]
    assert not checkpoint.exists()
    next(study_of.everything(study_of.Sizes(1, 2, 3), jax.random.key(0)))
    assert done[-1][2] == done[0][2]


def test_the_study_uses_public_names_only():
    """What it takes from the package is exported by it, or by a room whose name has no underscore; and so is every
    attribute of `keft`."""
    folder = Path(keft.__file__).parent / "studies" / "kawase_ota"
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                inside = node.level == 1 or (node.module or "").split(".")[0] != "kernel_eft_jax"
                assert inside or not any(a.name.startswith("_") for a in node.names), path.name
                assert node.level < 2, path.name
                assert inside or node.module in {"kernel_eft_jax", *PUBLIC_ROOMS}, (path.name, node.module)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "keft":
                assert node.attr in keft.__all__, (path.name, node.attr)


PUBLIC_ROOMS = {"kernel_eft_jax.figures", "kernel_eft_jax.activations", "kernel_eft_jax.pairs"}


@pytest.mark.slow
def test_sampled_values_agree_with_the_published_ones():
    """20,000 networks against the published 5 million: 11 rows within 4 standard errors, false alarms below 1 in
    1,000."""
    study = study_of.main_job(20_000, jax.random.key(0), progress=False)
    assert study.sampled.stderr.K1[-1, 0, 0] < 0.025
    sampled = [row for row in rows(study_of.main_item(study)).values() if row.difference.endswith("s.e.")]
    assert len(sampled) == 11
    for row in sampled:
        error = np.hypot(row.published.error, row.here.error)
        assert abs(row.here.value - row.published.value) < 4 * error, row
