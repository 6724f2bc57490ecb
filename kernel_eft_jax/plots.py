"""Figures from results, without computation: sampled points with error bars beside the curves of theories.

Matplotlib figures by its object interface: nothing global is touched and no window opens. Colours are Okabe and Ito's, which
colour-blind readers tell apart; every curve also has its own line style.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 14,
    "legend.fontsize": 12.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.9,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 2.2,
    "pdf.fonttype": 42,
}
CURVES = (
    {"color": "#D55E00", "linestyle": "-"},
    {"color": "#0072B2", "linestyle": (0, (6, 1.5))},
    {"color": "#009E73", "linestyle": (0, (4, 1.5, 1, 1.5))},
    {"color": "#CC79A7", "linestyle": (0, (1, 1.2))},
    {"color": "#E69F00", "linestyle": (0, (2.5, 1.2))},
)
POINTS = {"color": "black", "marker": "o", "markersize": 5, "linestyle": "none", "capsize": 3, "elinewidth": 1.4}


class Points(NamedTuple):
    """A sampled quantity at depth times, with standard errors."""

    ts: Float[np.ndarray, " T"]
    value: Float[np.ndarray, "T *entry"]
    stderr: Float[np.ndarray, "T *entry"]


class Curve(NamedTuple):
    """The same quantity by a theory."""

    ts: Float[np.ndarray, " T"]
    value: Float[np.ndarray, "T *entry"]


def trajectories(
    symbol: str,
    sampled: Mapping[str, Points],
    theories: Mapping[str, Curve],
    entries: Sequence[tuple[int, ...]],
    *,
    title: str,
    relative: str | None = None,
) -> Figure:
    """A quantity against depth, one panel an entry: points with error bars, and a curve a theory.

    `relative` labels a second row with the relative difference of each theory from the points, the error of which is its
    error bar; leave it out for quantities that cross zero. Names are what the legend says.
    """
    rows = 1 if relative is None else 2
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6 * len(entries), 4.4 if rows == 1 else 6.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, len(entries), sharex=True, squeeze=False, height_ratios=[3, 2][:rows])
        for column, entry in enumerate(entries):
            _values(axes[0, column], sampled, theories, entry)
            axes[0, column].set_title(entry_label(symbol, entry))
            if relative is not None:
                _differences(axes[1, column], next(iter(sampled.values())), theories, entry)
            axes[-1, column].set_xlabel(r"depth time  $t = \epsilon^2 l$")
        axes[0, 0].set_ylabel(f"${symbol}$")
        if relative is not None:
            axes[1, 0].set_ylabel(relative)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(title, fontsize=13)
    return figure


def entry_label(symbol: str, entry: tuple[int, ...]) -> str:
    """V_4 and (0, 1, 0, 1) as the formula V_{4;01,01}."""
    places = ["".join(map(str, entry[i : i + 2])) for i in range(0, len(entry), 2)]
    return rf"${symbol}\,[{', '.join(places)}]$"


def save(figure: Figure, path: str | os.PathLike) -> list[Path]:
    """Write a figure as PNG (200 dots an inch) and PDF beside each other; `path` is without suffix."""
    files = [Path(path).with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in files:
        figure.savefig(file, dpi=200)
    return files


def _values(ax: Axes, sampled, theories, entry):
    for style, (label, curve) in zip(CURVES, theories.items(), strict=False):
        ax.plot(curve.ts, curve.value[:, *entry], label=label, **style)
    for label, points in sampled.items():
        ax.errorbar(points.ts, points.value[:, *entry], points.stderr[:, *entry], label=label, zorder=3, **POINTS)


def _differences(ax: Axes, points, theories, entry):
    value, stderr = points.value[:, *entry], points.stderr[:, *entry]
    for style, curve in zip(CURVES, theories.values(), strict=False):
        at = np.isin(curve.ts, points.ts)
        ax.plot(points.ts, 100 * (curve.value[at][:, *entry] / value - 1), **style)
    ax.errorbar(points.ts, 0 * value, 100 * stderr / np.abs(value), zorder=3, **POINTS)
