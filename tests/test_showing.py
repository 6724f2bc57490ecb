"""What results and models say of themselves: text, tables of notebooks, figures."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import kernel_eft_jax as keft
from kernel_eft_jax.diagnostics import compare
from kernel_eft_jax.figures import plot_trajectories
from kernel_eft_jax.figures.of_result import plot
from kernel_eft_jax.showing import rounded

MODEL = keft.Model(keft.Erf(), 1.5, 0.1)
K0 = np.array([[1.0, 0.3], [0.3, 1.0]])


def wishart(K0, width):
    """40 networks whose kernels (40, T, 2, 2) have these means, by NumPy."""
    phi = np.linalg.cholesky(K0) @ np.random.default_rng(width).standard_normal((40, len(K0), 2, width))
    return phi @ phi.swapaxes(2, 3) / width


@pytest.fixture(scope="module")
def theory():
    return keft.solve(MODEL, K0, layers=[0, 1, 2], eps=0.5, closure=keft.GOnly())


@pytest.fixture(scope="module")
def results(theory):
    """One of each kind that has a figure."""
    sizes = {"width": 8, "depth": 2, "eps": 0.5, "key": jax.random.key(0), "save_at": [0, 1, 2]}
    short = {"closures": {"GOnly": keft.GOnly()}, "reference": keft.HermiteTower(2)}
    sampled = keft.estimate(MODEL, K0, networks=80, control=False, progress=False, **sizes)
    kernels = {n: wishart(np.asarray(theory.K0), n) for n in (8, 16)}
    experiment = keft.Experiment(MODEL, K0, width=8, layers=[0, 1, 2], eps=0.5)
    return {
        "Solution": theory,
        "Estimate": sampled,
        "Sensitivity": keft.sensitivity(MODEL, K0, layers=[0, 1, 2], eps=0.5, closure=keft.GOnly()),
        "Fit": keft.fit(kernels[8], experiment, ["C_W"], closure=keft.GOnly(), progress=False),
        "Window": keft.validity_window(
            keft.Model(keft.Linear(), 1.5), K0[:1, :1], depth=2, eps=0.5, tolerance=0.5, **short
        ),
        "WidthCheck": keft.width_check(kernels, theory),
    }


def shows_itself(result, name):
    """A class of this name; at most some lines of text, which name the theory, each line in the table of a notebook
    with what HTML forbids escaped; a figure."""
    assert type(result).__name__ == name
    lines = repr(result).split("\n")
    assert len(lines) < 12
    assert ("GOnly" in repr(result)) == (name != "Estimate")
    page = result._repr_html_()
    assert page.count("<tr>") == len(lines)
    assert "<lambda>" not in page
    assert isinstance(result.plot(), Figure)


def test_a_solution_shows_itself(theory):
    shows_itself(theory, "Solution")


def test_several_solutions_are_drawn_in_one_figure(theory):
    """V4 and K1 of the entry that is asked for, a curve for each solution."""
    V4, K1 = plot_trajectories({"one": theory, "two": theory}, (0, 1), title="").axes
    assert [ax.get_title() for ax in (V4, K1)] == ["$V_{4;01,01}$", "$K_{1;01}$"]
    for ax, values in ((V4, theory.V4[:, 0, 1, 0, 1]), (K1, theory.K1[:, 0, 1])):
        curves = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
        np.testing.assert_array_equal([curves["one"], curves["two"]], [values, values])


def test_the_largest_truncation_of_two_inputs_is_shown(theory):
    """K1_01 has the largest error, and entry 00 none; nothing is said where nothing is missing."""

    def with_error(K1):
        left_out = jax.tree.map(jnp.zeros_like, theory.packed)
        left_out = eqx.tree_at(lambda m: m.K1, left_out, left_out.K1.at[..., 1].set(K1))
        return eqx.tree_at(lambda s: s.packed_truncation, theory, left_out, is_leaf=lambda x: x is None)

    assert repr(with_error(0.125)).endswith("\n  largest truncation of all entries and depths: V4 0, K1 0.1")
    assert "largest truncation" not in repr(with_error(0.0))


def test_there_is_no_figure_of_other_things():
    with pytest.raises(TypeError, match="There is no figure of a list: give a result of this package"):
        plot([1.0])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["Estimate", "Sensitivity", "Fit", "Window", "WidthCheck"])
def test_every_result_shows_itself(results, name):
    shows_itself(results[name], name)


@pytest.mark.thorough
def test_a_comparison_shows_itself(theory, results):
    """The largest difference of each quantity in words; E[G], V4, K1 and their differences in panels."""
    found = compare(theory, results["Estimate"])
    largest = np.abs(found.quantities["V4"].deviation).max()
    assert f"largest difference of V4 = {largest:.2g} standard errors, of 48 numbers" in repr(found)
    assert len(found.plot().axes) == 6


@pytest.mark.thorough
def test_a_figure_shows_the_numbers_of_the_result(results):
    """E[G], V4 and K1 of inputs 00 and 01 against depth, with their errors."""
    panels = results["Estimate"].plot(title="mine").axes
    K1 = panels[2].containers[1]
    np.testing.assert_allclose(
        K1.lines[0].get_xydata(), np.stack([results["Estimate"].ts, results["Estimate"].K1[:, 0, 1]], axis=1)
    )
    curve = results["Solution"].plot().axes[0].lines[0]
    np.testing.assert_allclose(curve.get_ydata(), results["Solution"].K0[:, 0, 0])


@pytest.mark.thorough
def test_text_has_numbers_and_errors(results):
    V4, error = results["Estimate"].V4[-1, 0, 0, 0, 0], results["Estimate"].stderr.V4[-1, 0, 0, 0, 0]
    number = rounded(float(V4), float(error))
    assert f"V4[00,00] = {number} at the last depth" in repr(results["Estimate"])
    assert f"<td>V4[00,00]</td><td>{number} at the last depth</td>" in results["Estimate"]._repr_html_()
    slope = float(results["Sensitivity"]["C_W"].K0[-1, 0, 0])
    assert f"C_W = 1.5: d K0[00], V4[00,00], K1[00] = {slope:.6g}, " in repr(results["Sensitivity"])


@pytest.mark.thorough
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


NORMED = {"layers": [2], "eps": 0.6}


def linear_behind_a_norm():
    return keft.Model([keft.RMSNorm(), keft.Dense(1.1)])


@pytest.mark.parametrize(
    "closure",
    [
        pytest.param(keft.GOnly(), marks=pytest.mark.thorough),
        pytest.param(keft.HermiteTower(2), marks=pytest.mark.slow),
    ],
    ids=["g-only", "tower"],
)
def test_rounding_is_shown_as_zero(closure):
    """Behind a norm the mean square does not drift: K1_aa is zero. What rounding leaves of K1_aa, some 1e-17 or nothing
    as the processor has it, is shown as 0; so is what it leaves of the derivatives. K1_ab of two inputs, -0.15,
    stays."""
    solution = keft.solve(linear_behind_a_norm(), K0, **NORMED, closure=closure)
    assert abs(solution.K1[0, 0, 0]) < 1e-15
    solution = eqx.tree_at(lambda s: s.packed.K1, solution, replace_fn=lambda K1: K1.at[0, 0].set(3e-17))
    assert "  K1[00] = 0 at the last depth" in repr(solution).split("\n")
    assert "<td>K1[00]</td><td>0 at the last depth</td>" in solution._repr_html_()
    assert solution.significant("K1")[0][0, 0, 1] == solution.K1[0, 0, 1]
    np.testing.assert_array_equal(solution.plot().axes[2].lines[0].get_ydata(), 0)
    check = keft.width_check({4: np.linspace(1, 2, 20)[:, None, None, None] * np.eye(2)}, solution)
    assert str(check).split("\n")[2].split()[-1] == "0"
    np.testing.assert_array_equal(check.plot().axes[1].lines[0].get_ydata(), 0)
    pairs = keft.solve_pairs(linear_behind_a_norm(), K0, **NORMED, closure=closure, progress=False)
    assert "  K1 from -0.145409 to 0" in repr(pairs)
    derivatives = keft.sensitivity(linear_behind_a_norm(), K0, **NORMED, closure=closure)
    assert "C_W = 1.1: d K0[00], V4[00,00], K1[00] = 0.72, 5.16096, 0 at" in repr(derivatives)
    assert derivatives.elasticity("branch[1].C_W").K1[0, 0, 0] == 0


@pytest.fixture(scope="module")
def tower():
    return keft.solve(linear_behind_a_norm(), K0[:1, :1], **NORMED, closure=keft.HermiteTower(2))


def with_error(solution, error):
    return eqx.tree_at(lambda solution: solution.packed_truncation.K1, solution, replace_fn=lambda K1: K1 + error)


@pytest.mark.thorough
def test_errors_of_rounding_are_shown_as_zero(tower):
    """What the degree leaves out of a K1 that is rounding alone is rounding too: no error is shown."""
    assert "  K1[00] = 0 at the last depth" in repr(with_error(tower, 1e-17)).split("\n")


def test_nothing_is_rounding_in_a_small_unit():
    """Kernels of 1e-8, whose K1 is 1e-15: rounding is relative to the kernel."""
    small = keft.solve(keft.Model(keft.Erf(), 1.5), 1e-8 * K0, layers=[0, 1, 2], eps=0.5, closure=keft.GOnly())
    assert np.all(small.K1[1:] != 0)
    np.testing.assert_array_equal(small.significant("K1")[0], small.K1)


@pytest.mark.thorough
def test_the_largest_truncation_of_several_inputs_is_shown(tower):
    """K1_01 has the largest error, and entry 00 none: the line names it, and is left out where nothing is missing."""
    two = keft.solve(linear_behind_a_norm(), K0, **NORMED, closure=keft.HermiteTower(2))
    wrong = eqx.tree_at(lambda s: s.packed_truncation.K1, two, replace_fn=lambda K1: K1.at[..., 1].set(0.125))
    wrong = eqx.tree_at(lambda s: s.packed_truncation.V4, wrong, replace_fn=jnp.zeros_like)
    assert repr(wrong).endswith("\n  largest truncation of all entries and depths: V4 0, K1 0.1")
    assert "largest truncation" not in repr(tower)


@pytest.mark.thorough
def test_a_truncation_that_is_not_known_is_shown(tower):
    """K1's bound is NaN for a kink at a low degree; here NaN is put in its place."""
    assert "(truncation up to nan)" in repr(with_error(tower, np.nan))
