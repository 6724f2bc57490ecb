"""Figures say what they were given: data, labels and error bars are read back from the drawing, never judged by eye here."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from kernel_eft_jax import plots

TS = np.linspace(0, 2, 11)


@pytest.fixture(scope="module")
def data():
    value = 1 + TS[:, None, None] * np.array([[2.0, 1.0], [1.0, 3.0]])
    sampled = plots.Points(TS, value, 0.05 * value)
    theories = {"one": plots.Curve(1.1 * value), "two": plots.Curve(0.9 * value, compare=False)}
    return sampled, theories


@pytest.fixture(scope="module")
def figure(data):
    sampled, theories = data
    return plots.trajectories(
        "K_{{1;{}}}", sampled, theories, [(0, 0), (0, 1)], title="A title", label="sampled", relative=True
    )


def test_panels_hold_the_curves_and_points_of_their_entry(figure, data):
    sampled, theories = data
    for ax, entry in zip(figure.axes[:2], [(0, 0), (0, 1)], strict=True):
        for label, line in zip(("one", "two"), ax.get_lines(), strict=False):
            np.testing.assert_array_equal(line.get_ydata(), theories[label].value[:, *entry])
        (bars,) = (c for c in ax.containers if isinstance(c, ErrorbarContainer))
        np.testing.assert_array_equal(bars.lines[0].get_ydata(), sampled.value[:, *entry])
        half_lengths = [np.ptp(segment[:, 1]) / 2 for segment in bars.lines[2][0].get_segments()]
        np.testing.assert_allclose(half_lengths, sampled.stderr[:, *entry])


def test_error_panels_show_per_cent_of_the_sampled_value(figure):
    (zero, one) = figure.axes[2].get_lines()
    np.testing.assert_array_equal(zero.get_ydata(), 0)
    np.testing.assert_allclose(one.get_ydata(), 10)  # "two" asked to be left out
    (band,) = figure.axes[2].collections
    np.testing.assert_allclose(np.abs(band.get_paths()[0].vertices[1:-1, 1]).max(), 5)


def test_labels_carry_the_symbols(figure):
    assert [ax.get_ylabel() for ax in figure.axes[:2]] == ["$K_{1;00}$", "$K_{1;01}$"]
    assert all(r"t = \epsilon^2 l" in ax.get_xlabel() for ax in figure.axes[2:])
    assert plots.entry_text((0, 1, 2, 3)) == "01,23"


def test_the_legend_names_everything_and_covers_nothing(figure):
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} >= {"one", "two", "sampled"}
    figure.canvas.draw()
    box = legend.get_window_extent()
    assert not any(box.overlaps(ax.get_window_extent()) for ax in figure.axes)


def test_styles_tell_curves_apart_without_colour():
    assert len({str(style["linestyle"]) for style in plots.CURVES}) == len(plots.CURVES)
    assert len({style["color"] for style in plots.CURVES}) == len(plots.CURVES)
    assert [plots.curve_style(i) for i in range(len(plots.CURVES))] == list(plots.CURVES)
    assert len({str(plots.curve_style(i)) for i in range(49)}) == 49


def test_files_are_png_at_200_dots_an_inch_and_pdf(figure, tmp_path):
    png, pdf = plots.save(figure, tmp_path / "figure")
    height, width = matplotlib.image.imread(png).shape[:2]
    np.testing.assert_allclose([width, height], 200 * figure.get_size_inches(), atol=1)
    assert pdf.read_bytes().startswith(b"%PDF")


def test_matplotlib_loads_only_for_figures():
    code = "import sys, kernel_eft_jax.cli, kernel_eft_jax.paper; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
