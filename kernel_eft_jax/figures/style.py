"""The style that all figures share: type, colours, the grid of panels, the legend below, and files.

Figures use Matplotlib's object interface, so that nothing global changes. Colours are those of Okabe and Ito, which
colour-blind readers tell apart; every curve also has a line style of its own, and every set of points a marker of its
own.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..checks import check_count

DEPTH = r"depth time  $t = \epsilon^2 l$"
COLOURS = ("black", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = (
    *((0, (8, 3)), "-", (0, (6, 1.5)), (0, (4, 1.5, 1, 1.5))),
    *((0, (1, 1.2)), (0, (2.5, 1.2)), (0, (8, 1.5, 1, 1.5, 1, 1.5))),
)
CURVE_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "linestyle": dash} for colour, dash in zip(COLOURS, DASHES, strict=True)
)
POINT_STYLES: tuple[dict[str, Any], ...] = tuple(
    {
        "color": colour,
        "marker": marker,
        "markersize": 5.5,
        "markerfacecolor": "white",
        "linestyle": "none",
        "capsize": 2.5,
        "elinewidth": 1.3,
    }
    for colour, marker in zip(COLOURS, "osD^vPX", strict=True)
)
# The style of a closure in every figure, so that the closures look alike across figures.
CLOSURES = {"HermiteTower": 1, "GOnly": 2, "SigmaKernel": 4}
TOLERABLE: dict[str, Any] = {"color": "0.92", "linewidth": 0}
# A panel is as wide as a phone shows 13-point type at its natural size.
PANEL = 4.9, 3.6  # inches
LINE = 0.25  # inches, a line of the title or of the legend: the more lines, the taller is the figure

styled = rc_context(
    {
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
)


def grid(
    count: int, columns: int, title: str, heights: Sequence[float] | None = None, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, `columns` of them side by side; `heights` of the rows in inches."""
    if count == 0:
        raise ValueError("There is nothing to draw: give one panel or more.")
    columns = min(check_count(columns, "columns"), count)
    rows = -(-count // columns)
    heights = [PANEL[1]] * rows if heights is None else heights
    title = _broken(title, columns)
    height = sum(heights) + 2 * LINE + LINE * (1 + title.count("\n"))
    # A heading keeps away from the axis label above it, by inches.
    figure = Figure(figsize=(PANEL[0] * columns, height), layout=ConstrainedLayoutEngine(h_pad=0.1))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights, **options).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax in axes[:count]:
        ax.locator_params(nbins=6)
    figure.suptitle(title, fontsize=14)
    return figure, list(axes[:count])


def legend(figure: Figure, axes: Sequence[Axes], extra: dict[str, Artist] | None = None) -> None:
    """One legend below all panels, each label once; `extra` holds entries that no panel has."""
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    handles |= extra or {}
    fitting = max(1, int(figure.get_figwidth() / (0.8 + 0.095 * max(map(_letters, handles)))))
    rows = -(-len(handles) // fitting)
    columns = -(-len(handles) // rows)
    lines = sum(1 + text.count("\n") for text in handles)
    figure.set_figheight(figure.get_figheight() + LINE * -(-lines // columns))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)


def style_numbers(labels: Sequence[str], order: Sequence[str] = ()) -> dict[str, int]:
    """The style of each label: that of its place in `order`; that of the closure with whose name the label begins; else
    one of those that are left, in turn. No two labels share a style before all are taken."""
    styles = {label: order.index(label) for label in labels if label in order}
    for label in labels:
        closure = CLOSURES.get(label.split(",")[0])
        if closure is not None and closure not in styles.values():
            styles.setdefault(label, closure)
    free = [i for i in range(len(COLOURS)) if i not in styles.values()] or range(len(COLOURS))
    others = dict.fromkeys(label for label in labels if label not in styles)
    return styles | {label: free[i % len(free)] for i, label in enumerate(others)}


def check_entry(entry: tuple[int, ...], inputs: int, axes: int = 2) -> None:
    """Check that an entry names as many inputs as there are axes, of a result with so many inputs."""
    named = isinstance(entry, tuple | list) and all(isinstance(a, int | np.integer) for a in entry)
    if not named or len(entry) != axes or not all(0 <= a < inputs for a in entry):
        raise ValueError(f"Argument `entry` must name inputs from 0 to {inputs - 1}, {axes} of them, but is {entry!r}.")


def entry_text(*entry: int) -> str:
    """(0, 1, 0, 1) as 01,01."""
    return ",".join("".join(map(str, entry[i : i + 2])) for i in range(0, len(entry), 2))


def save_figure(figure: Figure, path: str | os.PathLike) -> list[Path]:
    """Write a figure as PNG (200 dots an inch) and PDF beside each other; `path` is without suffix."""
    files = [Path(path).with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in files:
        figure.savefig(file, dpi=200)
    return files


def _broken(title: str, columns: int) -> str:
    """The title in as few lines as fit over so many panels, about equally long; formulas and what stands around " = "
    are never broken."""
    return "\n".join("\n".join(_balanced(line, 9 * PANEL[0] * columns)) for line in title.split("\n"))


def _balanced(line: str, width: float) -> list[str]:
    lines = _filled(line, width)
    while width > 1 and len(narrower := _filled(line, width - 1)) == len(lines):
        lines, width = narrower, width - 1
    return lines


def _filled(line: str, width: float) -> list[str]:
    """As many words as fit in each line."""
    lines = [""]
    for word in re.findall(r"(?:\$[^$]*\$| = |[^ $])+", line):
        if lines[-1] and _letters(lines[-1] + word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]


def _letters(text: str) -> int:
    """About how many letters wide a text is when it is drawn."""
    return max(len(line) for line in re.sub(r"\\\w+|[${}_^\\]", "", text).split("\n"))
