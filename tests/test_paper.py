"""The published study: its numbers come back from its rule, and the table states what was computed.

The main job at its real size is a slow test; here the same code runs on eight layers, eps = 0.5.
"""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CUBIC, polynomial

import kernel_eft_jax as keft
from kernel_eft_jax import paper, storage
from kernel_eft_jax.gauss_hermite import GaussHermite

RULE = GaussHermite(keft.Tanh())


@eqx.filter_jit
def expansion(activation, k):
    return activation.expansion(k)


def test_the_published_rule_gives_the_published_theory_back():
    published, ts = paper.PUBLISHED["theory_at_T2"], np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    solution = keft.solve(keft.Model(RULE, C_W=2.0), np.array([[2.0]]), ts, closure=keft.GOnly(), eps=0.05)
    assert float(solution.K0[-1, 0, 0]) == pytest.approx(published["K0_00"], abs=5e-5)
    assert float(solution.K1[-1, 0, 0]) == pytest.approx(published["K1_EFT_00"], abs=1e-4)
    V4 = [point["theory"] for point in paper.PUBLISHED["V4_0000_n64"]]
    np.testing.assert_allclose(solution.V4[:, 0, 0, 0, 0], V4, atol=5e-4)
    # The solution itself says that its expectations are off: by half, in this case.
    assert 0.1 < solution.stats["expectation_error"] < 1


@pytest.mark.parametrize(("k", "rule", "converged"), [(2, 0.1688, 0.1770), (3, 0.0777, 0.1099), (4, 0.0093, 0.0767)])
def test_transport_by_the_published_rule(k, rule, converged):
    # theory.md, section 3: E[(tanh^2)''] by 32 points and converged; chi of one input is half of it, for C_W = 1.
    for activation, expected in ((RULE, rule), (keft.Tanh(), converged)):
        assert 2 * expansion(activation, jnp.array([float(k)])).slope.sum() == pytest.approx(expected, abs=5e-5)


def test_the_rule_is_exact_for_polynomials():
    # Products of two cubics have degree six, 32 points are exact to degree 63 and the eight points used here to 15.
    k_aa, k_bb, k_ab = 1.2, 0.7, -0.4
    got = expansion(GaussHermite(keft.Polynomial(jnp.array(CUBIC))), jnp.array([k_aa, k_ab, k_bb]))
    x, w = np.polynomial.hermite_e.hermegauss(8)
    w = w / w.sum()
    phi_a = np.sqrt(k_aa) * x[:, None]
    phi_b = k_ab / k_aa * phi_a + np.sqrt(k_bb - k_ab**2 / k_aa) * x
    s = polynomial(*CUBIC)

    def mean(i, j):
        return w @ (s(phi_a, i) * s(phi_b, j)) @ w

    def bend(k, order):
        square = np.polynomial.Polynomial(CUBIC) ** 2
        return w @ square.deriv(order)(np.sqrt(k) * x) if order else w @ square(np.sqrt(k) * x)

    np.testing.assert_allclose(got.value, [bend(k_aa, 0), mean(0, 0), bend(k_bb, 0)], rtol=1e-12)
    np.testing.assert_allclose(got.slope[1], [mean(2, 0) / 2, mean(0, 2) / 2, mean(1, 1)], rtol=1e-12)
    np.testing.assert_allclose(got.slope.sum(1)[jnp.array([0, 2])], [bend(k_aa, 2) / 2, bend(k_bb, 2) / 2], rtol=1e-12)
    curvature = [
        [mean(4, 0) / 4, mean(2, 2) / 4, mean(3, 1) / 2],
        [mean(2, 2) / 4, mean(0, 4) / 4, mean(1, 3) / 2],
        [mean(3, 1) / 2, mean(1, 3) / 2, mean(2, 2)],
    ]
    np.testing.assert_allclose(got.curvature[1], curvature, atol=1e-12)
    np.testing.assert_allclose(got.curvature[0].sum(), bend(k_aa, 4) / 4, rtol=1e-9)


def test_sources_alone_add_up_in_closed_form():
    # Linear s: Sigma = 2 C_W Wick(K0), so V4 = Wick(K0(0)) (1 + 2 C_W int exp(2 C_W t) dt) = Wick(K0(0)) exp(2 C_W t).
    ts = np.array([0.5, 1.0])
    solution = keft.solve(keft.Model(keft.Linear(), C_W=0.8), np.array([[1.5]]), ts, closure=paper.SourceOnly())
    np.testing.assert_allclose(solution.V4[:, 0, 0, 0, 0], 2 * 1.5**2 * np.exp(1.6 * ts), rtol=1e-6)


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "EPS", 0.5)
        patch.setattr(paper, "DEPTH", 8)
        patch.setattr(paper, "K0", paper.K0[:2, :2])
        small = {name: theory._replace(inputs=2, closure=keft.GOnly()) for name, theory in paper.THEORIES.items()}
        patch.setattr(paper, "THEORIES", small)
        yield paper.main_job(96, jax.random.key(3), progress=False)


def rows(study):
    return {row.quantity: row for section in paper.table(study) for row in section.rows}


def test_the_table_sets_ours_beside_the_published(study):
    table, sampled = rows(study), study.sampled
    row = table["V4[00,00] at t = 2, no control variate"]
    assert (row.published, row.here) == (48.735, sampled.V4[-1, 0, 0, 0, 0])
    row = table["K1_mic[00] at t = 2, with the converged K0"]
    assert (row.here, row.here_error) == (sampled.K1[-1, 0, 0], sampled.stderr.K1[-1, 0, 0])
    bias = 64 * float(study.theories[paper.G_ONLY].K0[-1, 0, 0] - study.theories[paper.RULE].K0[-1, 0, 0])
    assert bias < 0
    assert row.published == pytest.approx(-0.7742 - bias)
    with_bias = table["K1_mic[00] at t = 2, with the published K0"]
    assert with_bias.here - row.here == pytest.approx(bias)
    assert with_bias.published == -0.7742


def test_sampled_V4_is_the_exact_one_and_the_excess(study):
    V4, stderr = study.V4()
    excess = study.sampled.V4_excess[:, :2, :2, :2, :2]
    np.testing.assert_allclose(V4, study.theories[paper.TOWER].V4 + excess, rtol=1e-12)
    np.testing.assert_array_equal(stderr, study.sampled.stderr.V4_excess[:, :2, :2, :2, :2])


def test_differences_are_in_standard_errors_where_there_are_any():
    assert paper.Row("", 1.0, 0.3, 3.0, 0.4).difference == "+4.0 s.e."
    assert paper.Row("", 1.0, None, 0.5, None).difference == "-0.5"


def test_everything_is_written_and_can_be_read_again(study, tmp_path):
    files = {path.name: path for path in paper.write(study, tmp_path / "new" / "results")}
    for number in ("1-mean-kernel", "3-mean-correction", "4-covariance"):
        for suffix in ("png", "pdf"):
            assert files[f"figure-{number}.{suffix}"].stat().st_size > 10_000
    sampled = storage.load(files["sampled.nc"])
    np.testing.assert_array_equal(sampled.V4, study.sampled.V4)
    assert sum(name.startswith("theory-") for name in files) == len(study.theories)
    np.testing.assert_array_equal(storage.load(files["theory-g-only.nc"]).V4, study.theories[paper.G_ONLY].V4)
    sections = json.loads(files["table.json"].read_text())
    assert [s["title"] for s in sections] == [s.title for s in paper.table(study)]
    assert files["table.md"].read_text() == paper.markdown(paper.table(study))


def test_markdown_is_a_table(study):
    text = paper.markdown(paper.table(study))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for lines in tables:
        assert len({len(line) for line in lines}) == 1
        assert {line.count("|") for line in lines} == {5}


@pytest.mark.slow
def test_sampled_values_agree_with_the_published_ones():
    """20,000 networks against the published 5 million: 12 rows within 4 standard errors, false alarms below 1 in 1,000."""
    study = paper.main_job(20_000, jax.random.key(0), progress=False)
    assert study.sampled.stderr.K1[-1, 0, 0] < 0.025
    sampled = [row for section in paper.table(study)[2:] for row in section.rows if row.difference.endswith("s.e.")]
    assert len(sampled) == 12
    for row in sampled:
        error = np.hypot(row.published_error or 0, row.here_error or 0)
        assert abs(row.here - row.published) < 4 * error, row
