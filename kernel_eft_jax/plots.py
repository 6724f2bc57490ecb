"""Figures from results, without computation: sampled points with error bars beside the curves of theories.

Matplotlib figures by its object interface: nothing global is touched and no window opens. Colours are Okabe and Ito's, which
colour-blind readers tell apart; every curve also has its own line style.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
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
CURVES: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00", "linestyle": "-"},
    {"color": "#0072B2", "linestyle": (0, (6, 1.5))},
    {"color": "#009E73", "linestyle": (0, (4, 1.5, 1, 1.5))},
    {"color": "#CC79A7", "linestyle": (0, (1, 1.2))},
    {"color": "#E69F00", "linestyle": (0, (2.5, 1.2))},
    {"color": "#56B4E9", "linestyle": (0, (8, 1.5, 1, 1.5, 1, 1.5))},
    {"color": "black", "linestyle": (0, (8, 3))},
)
POINTS: dict[str, Any] = {
    "color": "black",
    "marker": "o",
    "markersize": 5.5,
    "markerfacecolor": "white",
    "linestyle": "none",
    "capsize": 2.5,
    "elinewidth": 1.3,
}


class Points(NamedTuple):
    """A sampled quantity at depth times, with standard errors."""

    ts: Float[np.ndarray, " T"]
    value: Float[np.ndarray, "T *entry"]
    stderr: Float[np.ndarray, "T *entry"]


class Curve(NamedTuple):
    """The same quantity by a theory, at the same times; `compare` draws it in the row of relative errors too."""

    value: Float[np.ndarray, "T *entry"]
    compare: bool = True


def curve_style(number: int) -> dict[str, Any]:
    """Colour and line style of the curve with this number: those of `CURVES`, then the other pairs of them, 49 in all."""
    count = len(CURVES)
    return {
        "color": CURVES[number % count]["color"],
        "linestyle": CURVES[(number + number // count) % count]["linestyle"],
    }


def trajectories(
    symbol: str,
    sampled: Points,
    theories: Mapping[str, Curve],
    entries: Sequence[tuple[int, ...]],
    *,
    title: str,
    label: str,
    relative: bool = False,
) -> Figure:
    """A quantity against depth, one column an entry: points with error bars, and a curve a theory.

    `symbol` is mathematical text with {} for the entry, such as "V_{{4; {}}}". With `relative`, a second row shows the error of
    each theory in per cent of the sampled value, and one standard error of that as a band; leave it out for quantities
    that cross zero.
    """
    rows = 2 if relative else 1
    with rc_context(STYLE):
        figure = Figure(figsize=(5.8 * len(entries), 6.4 if relative else 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, len(entries), sharex=True, squeeze=False, height_ratios=[3, 2][:rows])
        for entry, column in zip(entries, axes.T, strict=True):
            _values(column[0], sampled, theories, entry, label)
            column[0].set_ylabel(f"${symbol.format(entry_text(entry))}$")
            if relative:
                _errors(column[1], sampled, theories, entry)
            column[-1].set_xlabel(r"depth time  $t = \epsilon^2 l$")
        if relative:
            axes[1, 0].set_ylabel("error of theory (%)")
        handles = {
            text: handle for ax in axes[:, 0] for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(title, fontsize=14)
    return figure


def entry_text(entry: tuple[int, ...]) -> str:
    """(0, 1, 0, 1) as 01,01."""
    return ",".join("".join(map(str, entry[i : i + 2])) for i in range(0, len(entry), 2))


def save(figure: Figure, path: str | os.PathLike) -> list[Path]:
    """Write a figure as PNG (200 dots an inch) and PDF beside each other; `path` is without suffix."""
    files = [Path(path).with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in files:
        figure.savefig(file, dpi=200)
    return files


def _values(ax: Axes, sampled, theories, entry, label):
    ts, value, stderr = sampled.ts, sampled.value[:, *entry], sampled.stderr[:, *entry]
    every = np.s_[:: -(-len(ts) // 21)]
    for style, (name, curve) in zip(CURVES, theories.items(), strict=False):
        ax.plot(ts, curve.value[:, *entry], label=name, **style)
    ax.errorbar(ts[every], value[every], stderr[every], label=label, zorder=1.9, **POINTS)
    ax.locator_params(nbins=6)


def _errors(ax: Axes, sampled, theories, entry):
    value, stderr = sampled.value[:, *entry], sampled.stderr[:, *entry]
    band = 100 * stderr / np.abs(value)
    ax.fill_between(sampled.ts, -band, band, color="0.75", linewidth=0, label="standard error of sampled")
    ax.axhline(0, color="black", linewidth=0.9)
    for style, curve in zip(CURVES, theories.values(), strict=False):
        if curve.compare:
            ax.plot(sampled.ts, 100 * (curve.value[:, *entry] / value - 1), **style)
    ax.locator_params(nbins=6)
