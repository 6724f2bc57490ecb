"""Quantities against depth: sampled networks as points with error bars, theories as curves."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from ..ensemble import Estimate
from ..trajectory import Solution
from .style import CURVE_STYLES, DEPTH, POINT_STYLES, check_entry, entry_text, grid, legend, style_numbers, styled

MOST_POINTS = 21  # of one line: the error bars of more points would overlap


class Line(NamedTuple):
    """A quantity against depth: points with error bars if there is a standard error, else a curve."""

    ts: Float[np.ndarray, " T"]
    value: Float[np.ndarray, " T"]
    stderr: Float[np.ndarray, " T"] | None = None


@styled
def plot_panels(
    panels: Mapping[str, Mapping[str, Line]],
    *,
    title: str,
    ylabel: str = "",
    columns: int = 3,
    order: Sequence[str] = (),
) -> Figure:
    """Panels by their headings, each with its lines by their labels; a label has one style in all panels.

    A label in `order` has the style of its place in `order`, and one that begins with the name of a closure has the
    style of that closure, so that several figures agree. Other labels have the remaining styles, in the order in which
    they occur.
    """
    styles = style_numbers([label for lines in panels.values() for label in lines], order)
    figure, axes = grid(len(panels), columns, title)
    for ax, (heading, lines) in zip(axes, panels.items(), strict=True):
        for label, line in lines.items():
            _draw(ax, line, label, styles[label])
        low, high = ax.get_ylim()
        if low < 0 < high:
            ax.axhline(0, color="0.4", linewidth=0.9, zorder=1)
        ax.set_title(heading)
        ax.set_xlabel(DEPTH)
    axes[0].set_ylabel(ylabel)
    legend(figure, axes)
    return figure


def plot_result(result: Estimate | Solution, title: str = "", *, columns: int = 3) -> Figure:
    """K0 or E[G], V4 and K1 against depth, of one input and of a pair of inputs if there are two.

    `plot_trajectories` draws several results in one figure. Raises ValueError for any other object.
    """
    if not isinstance(result, Estimate | Solution):
        raise ValueError(
            f"Argument `result` must be a Solution or an Estimate, but is {result!r:.200}: `plot_trajectories` draws "
            "several results in one figure."
        )
    mean = ("G", "E[G_{%s}]") if isinstance(result, Estimate) else ("K0", "K_{0;%s}")
    entries = [(0, b) for b in range(min(2, result.K0.shape[-1]))]
    panels = {}
    for name, symbol in (mean, ("V4", "V_{4;%s}"), ("K1", "K_{1;%s}")):
        twice = 2 if name == "V4" else 1
        lines = {f"inputs {a}{b}": _line(result, name, (a, b) * twice) for a, b in entries}
        panels[f"${symbol % ','.join(['ab'] * twice)}$"] = lines
    return plot_panels(panels, title=title, columns=columns)


def plot_trajectories(
    results: Mapping[str, Estimate | Solution], entry: tuple[int, int] = (0, 0), *, title: str, columns: int = 2
) -> Figure:
    """V4_ab,ab and K1_ab of sampled networks and theories, by their labels, against depth."""
    if not isinstance(results, Mapping) or not results:
        raise ValueError(
            f"Argument `results` must map labels to results, {{'theory': solution}}, but is "
            f"{'empty' if isinstance(results, Mapping) else f'a {type(results).__name__}'}."
        )
    for label, result in results.items():
        if not isinstance(result, Estimate | Solution):
            raise ValueError(
                f"Argument `results` must hold what `solve` or `estimate` gives, but {label!r} is {result!r:.200}."
            )
        check_entry(entry, result.K0.shape[-1])
    V4 = {label: _line(result, "V4", (*entry, *entry)) for label, result in results.items()}
    K1 = {label: _line(result, "K1", entry) for label, result in results.items()}
    panels = {f"$V_{{4;{entry_text(*entry, *entry)}}}$": V4, f"$K_{{1;{entry_text(*entry)}}}$": K1}
    return plot_panels(panels, title=title, columns=columns)


def _line(result, name, entry):
    if isinstance(result, Estimate):
        return Line(np.asarray(result.ts), getattr(result, name)[:, *entry], getattr(result.stderr, name)[:, *entry])
    return Line(np.asarray(result.ts), result.significant(name)[0][:, *entry], None)


def _draw(ax, line, label, style):
    if line.stderr is None:
        ax.plot(line.ts, line.value, label=label, **CURVE_STYLES[style])
        return
    every = np.s_[:: -(-len(line.ts) // MOST_POINTS)]
    ax.errorbar(line.ts[every], line.value[every], line.stderr[every], label=label, **POINT_STYLES[style])
