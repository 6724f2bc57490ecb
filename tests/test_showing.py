"""What results and models say of themselves: text, tables of notebooks, figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import kernel_eft_jax as keft
from kernel_eft_jax.showing import rounded

MODEL = keft.Model(keft.Erf(), 1.5, 0.1)
K0 = np.array([[1.0, 0.3], [0.3, 1.0]])


@pytest.fixture(scope="module")
def results():
    """One of each kind that has a figure."""
    sizes = {"width": 8, "depth": 2, "eps": 0.5, "key": jax.random.key(0), "save_at": [0, 1, 2]}
    short = {"closures": {"GOnly": keft.GOnly()}, "reference": keft.HermiteTower(9)}
    sampled = keft.estimate(MODEL, K0, networks=80, progress=False, **sizes)
    theory = keft.solve(MODEL, K0, layers=[0, 1, 2], eps=0.5, closure=keft.GOnly())
    kernels = {n: keft.sample_kernels(MODEL, K0, networks=40, **sizes | {"width": n}) for n in (8, 16)}
    experiment = keft.Experiment(MODEL, K0, width=8, layers=[0, 1, 2], eps=0.5)
    return {
        "Solution": theory,
        "Estimate": sampled,
        "Sensitivity": keft.sensitivity(MODEL, K0, layers=[0, 1, 2], eps=0.5, closure=keft.GOnly()),
        "Fit": keft.fit(kernels[8], experiment, ["C_W"], closure=keft.GOnly(), progress=False),
        "Window": keft.validity_window(MODEL, K0[:1, :1], depth=2, eps=0.5, tolerance=0.5, **short),
        "WidthCheck": keft.width_check(kernels, theory),
    }


@pytest.mark.parametrize("name", ["Solution", "Estimate", "Sensitivity", "Fit", "Window", "WidthCheck"])
def test_every_result_shows_itself(results, name):
    """A class of this name; at most some lines of text, each line in the table of a notebook with what HTML forbids
    escaped; a figure."""
    result = results[name]
    assert type(result).__name__ == name
    lines = repr(result).split("\n")
    assert len(lines) < 12
    page = result._repr_html_()
    assert page.count("<tr>") == len(lines)
    assert "<lambda>" not in page
    assert isinstance(result.plot(), Figure)


def test_a_figure_shows_the_numbers_of_the_result(results):
    """E[G], V4 and K1 of inputs 00 and 01 against depth, with their errors."""
    panels = results["Estimate"].plot(title="mine").axes
    K1 = panels[2].containers[1]
    np.testing.assert_allclose(
        K1.lines[0].get_xydata(), np.stack([results["Estimate"].ts, results["Estimate"].K1[:, 0, 1]], axis=1)
    )
    curve = results["Solution"].plot().axes[0].lines[0]
    np.testing.assert_allclose(curve.get_ydata(), results["Solution"].K0[:, 0, 0])


def test_text_has_numbers_and_errors(results):
    V4, error = results["Estimate"].V4[-1, 0, 0, 0, 0], results["Estimate"].stderr.V4[-1, 0, 0, 0, 0]
    number = rounded(float(V4), float(error))
    assert f"V4[00,00] = {number} at the last depth" in repr(results["Estimate"])
    assert f"<td>V4[00,00]</td><td>{number} at the last depth</td>" in results["Estimate"]._repr_html_()
    slope = float(results["Sensitivity"]["C_W"].K0[-1, 0, 0])
    assert f"C_W = 1.5: d K0[00], V4[00,00], K1[00] = {slope:.6g}, " in repr(results["Sensitivity"])


def test_errors_have_the_shape_of_the_values(results):
    """Of an ensemble, of several widths, of a fit."""
    for result in (results["Estimate"], results["WidthCheck"]):
        for name, error in vars(result.stderr).items():
            assert np.shape(error) == np.shape(getattr(result, name)), name
    assert results["Fit"].stderr.shape == results["Fit"].values.shape
    assert results["Fit"].information.stderr.shape == results["Fit"].information.values.shape


def test_models_read_like_the_calls_that_make_them():
    def mine(x):
        return x + 0.1 * jnp.sin(x)

    assert repr(keft.Smooth(mine)) == "Smooth(mine)"
    assert repr(keft.Piecewise(jnp.abs, kinks=[0])) == "Piecewise(abs, kinks=[0.0])"
    model = keft.Model(keft.Smooth(mine), 2.0)
    assert repr(model) == "Model(branch=[Smooth(mine), Dense(C_W=2, C_b=0, ratio=1)], decay=0)"


@pytest.mark.parametrize("closure", [keft.GOnly(), keft.HermiteTower(6)])
def test_rounding_is_shown_as_zero(closure):
    """Behind a norm the mean square does not drift: K1_aa is zero. What rounding leaves of K1_aa, some 1e-17, is shown
    as 0; so is what it leaves of the derivatives. K1_ab of two inputs, 0.04, stays. In a small unit nothing is taken
    for zero."""
    block = [keft.RMSNorm(), keft.Dense(1.0, ratio=4), keft.GELU(), keft.Dense(2.0)]
    depth = {"layers": [2], "eps": 0.5, "closure": closure}
    solution = keft.solve(keft.Model(block), K0, **depth)
    assert solution.K1[0, 0, 0] != 0
    assert abs(solution.K1[0, 0, 0]) < 1e-15
    assert "  K1[00] = 0 at the last depth" in repr(solution).split("\n")
    assert "<td>K1[00]</td><td>0 at the last depth</td>" in solution._repr_html_()
    assert solution.significant("K1")[0][0, 0, 1] == solution.K1[0, 0, 1]
    assert "  K1 from 0 to 0.03" in repr(keft.solve_pairs(keft.Model(block), K0, **depth, progress=False))
    derivatives = keft.sensitivity(keft.Model(block), K0, **depth)
    assert "C_W = 2: d K0[00], V4[00,00], K1[00] = 0.212611, 1.35255, 0 at" in repr(derivatives)
    assert derivatives.elasticity("branch[3].C_W").K1[0, 0, 0] == 0
    small = keft.solve(keft.Model(keft.ReLU(), 2.0), 1e-20 * K0, **depth)
    assert small.significant("K1")[0][0, 0, 1] == small.K1[0, 0, 1] != 0


def test_a_truncation_that_is_not_known_is_shown():
    """K1's bound is NaN for a kink at a low degree."""
    solution = keft.solve(keft.Model(keft.ReLU(), 2.0), [[1.0]], layers=[1], eps=0.5, closure=keft.HermiteTower(4))
    assert np.isnan(solution.truncation.K1).all()
    assert "(truncation up to nan)" in repr(solution)
