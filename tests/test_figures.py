"""Figures show what they were given: data, labels and error bars are read back from the drawing, not judged by eye."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

import kernel_eft_jax as keft
from kernel_eft_jax import figures
from kernel_eft_jax.figures import style

TS = np.linspace(0, 2, 31)
STDERR = 0.05 * (1 + TS)
SAMPLED = figures.Line(TS, 1 + TS, STDERR)
ONE, TWO = figures.Line(TS, 1.1 + TS), figures.Line(TS, TS - 1)
PANELS = {"$V_4$": {"sampled": SAMPLED, "one": ONE}, "error (%)": {"two": TWO, "one": ONE}, "third": {"one": ONE}}


@pytest.fixture(scope="module")
def figure():
    return figures.plot_panels(PANELS, title="A title", ylabel="y")


def bars(ax):
    (container,) = (c for c in ax.containers if isinstance(c, ErrorbarContainer))
    points, _, (segments,) = container.lines
    return points, np.array([np.ptp(segment[:, 1]) / 2 for segment in segments.get_segments()])


def test_standard_errors_make_points_and_others_curves(figure):
    first, second, _ = figure.axes
    points, half_lengths = bars(first)
    np.testing.assert_array_equal(points.get_xdata(), TS[::2])  # no more than 21
    np.testing.assert_array_equal(points.get_ydata(), SAMPLED.value[::2])
    np.testing.assert_allclose(half_lengths, STDERR[::2])
    drawn = {line.get_label(): line.get_ydata() for line in second.get_lines()}
    np.testing.assert_array_equal(drawn["one"], ONE.value)
    np.testing.assert_array_equal(drawn["two"], TWO.value)


def test_a_label_has_one_style_in_all_panels_and_figures(figure):
    def looks(figure):
        lines = (line for ax in figure.axes for line in ax.get_lines())
        return {
            (line.get_label(), line.get_color(), line.get_linestyle()) for line in lines if line.get_label()[0] != "_"
        }

    assert len(looks(figure)) == 2
    alone = figures.plot_panels({"p": {"one": ONE}}, title="", order=["sampled", "one", "two"])
    assert looks(alone) < looks(figure)


def test_a_closure_looks_the_same_in_all_figures():
    """Whatever stands beside it, and under its longer names too; nothing else looks so."""
    for labels in (["GOnly", "HermiteTower"], ["networks", "SigmaKernel", "GOnly, converged", "HermiteTower"]):
        numbers = style.style_numbers(labels)
        assert len(set(numbers.values())) == len(labels)
        assert {number for label, number in numbers.items() if label[:5] == "GOnly"} == {style.CLOSURES["GOnly"]}
        assert numbers["HermiteTower"] == style.CLOSURES["HermiteTower"]
    both = style.style_numbers(["GOnly, 32-point rule", "GOnly, converged"])
    assert both == {"GOnly, 32-point rule": style.CLOSURES["GOnly"], "GOnly, converged": 0}


def test_zero_is_marked_where_it_is_in_sight(figure):
    assert [any(np.array_equal(line.get_ydata(), [0, 0]) for line in ax.get_lines()) for ax in figure.axes] == [
        False,
        True,
        False,
    ]


def test_labels_and_headings(figure):
    assert [ax.get_title() for ax in figure.axes] == list(PANELS)
    assert figure.axes[0].get_ylabel() == "y"
    assert all(r"t = \epsilon^2 l" in ax.get_xlabel() for ax in figure.axes)
    assert style.entry_text(0, 1, 2, 3) == "01,23"


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_panels_stand_side_by_side_or_are_stacked(columns):
    """Stacked panels are as wide as panels side by side; the legend names everything once and covers nothing."""
    figure = figures.plot_panels(PANELS, title="a title of many words " * 4, columns=columns)
    assert figure.get_figwidth() == columns * style.PANEL[0]
    figure.canvas.draw()
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert len({round(box.x0) for box in boxes}) == columns
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "sampled", "two"]
    assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
    for artist in (legend, figure._suptitle):
        assert figure.bbox.x0 <= artist.get_window_extent().x0
        assert artist.get_window_extent().x1 <= figure.bbox.x1


def test_type_is_legible_at_the_width_of_a_phone():
    """A stacked figure that is shown 390 pixels wide has letters of 12 pixels or more."""
    figure = figures.plot_panels(PANELS, title="", columns=1)
    size = min(float(text.get_fontsize()) for ax in figure.axes for text in (ax.xaxis.label, *ax.get_xticklabels()))
    assert size / 72 * 390 / figure.get_figwidth() > 12


def test_a_formula_is_not_broken():
    figure = figures.plot_panels({"p": {"one": ONE}}, title=r"word " * 8 + r"$n = 64$, $\epsilon = 0.05$, $C_W = 2$")
    lines = figure.get_suptitle().split("\n")
    assert len(lines) == 2
    assert all(line.count("$") % 2 == 0 for line in lines)


def test_no_word_of_a_title_stands_alone():
    """Seven words of six letters over a panel, in which six have room, make lines of four and three."""
    figure = figures.plot_panels({"p": {"one": ONE}}, title=" ".join(["letter"] * 7), columns=1)
    assert sorted(line.count("letter") for line in figure.get_suptitle().split("\n")) == [3, 4]


def test_styles_tell_curves_and_points_apart_without_colour():
    assert len({str(curve["linestyle"]) for curve in style.CURVE_STYLES}) == len(style.CURVE_STYLES) == 7
    assert len({points["marker"] for points in style.POINT_STYLES}) == 7
    assert len({curve["color"] for curve in style.CURVE_STYLES}) == 7


@pytest.mark.thorough
def test_results_are_drawn_as_they_are(key):
    model, K0 = keft.Model(keft.Linear(), 1.3), [[1.0, 0.5], [0.5, 2.0]]
    theory = keft.solve(model, K0, layers=[0, 1, 2], eps=0.5, closure=keft.GOnly())
    sampled = keft.estimate(model, K0, width=8, depth=2, eps=0.5, networks=64, key=key, progress=False)
    V4, K1 = figures.plot_trajectories({"networks": sampled, "theory": theory}, (0, np.int64(1)), title="").axes
    assert [ax.get_title() for ax in (V4, K1)] == ["$V_{4;01,01}$", "$K_{1;01}$"]
    for ax, name, place in ((V4, "V4", (0, 1, 0, 1)), (K1, "K1", (0, 1))):
        points, half_lengths = bars(ax)
        np.testing.assert_array_equal(points.get_ydata(), getattr(sampled, name)[:, *place])
        np.testing.assert_allclose(half_lengths, getattr(sampled.stderr, name)[:, *place])
        (curve,) = (line for line in ax.get_lines() if line.get_label() == "theory")
        np.testing.assert_array_equal(curve.get_ydata(), getattr(theory, name)[:, *place])


def test_one_result_is_drawn_and_nothing_else():
    with pytest.raises(ValueError, match=r"`result` must be a Solution or an Estimate, but is .*: `plot_trajectories`"):
        figures.plot_result([1, 2])


def test_files_are_png_at_200_dots_an_inch_and_pdf(figure, tmp_path):
    png, pdf = figures.save_figure(figure, tmp_path / "figure")
    height, width = matplotlib.image.imread(png).shape[:2]
    np.testing.assert_allclose([width, height], 200 * figure.get_size_inches(), atol=1)
    assert pdf.read_bytes().startswith(b"%PDF")


def test_matplotlib_loads_only_for_figures():
    code = "import sys, kernel_eft_jax.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
