"""Figures of diagnostics: validity windows, and several widths beside a theory."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullFormatter

from ..checks import check_kind
from ..diagnostics import WidthCheck, Window
from ..diagnostics.validity import answer
from .style import (
    CLOSURES,
    COLOURS,
    CURVE_STYLES,
    DEPTH,
    POINT_STYLES,
    TOLERABLE,
    check_entry,
    entry_text,
    grid,
    legend,
    style_numbers,
    styled,
)

OF_NETWORKS = [i for i in range(len(COLOURS)) if i not in CLOSURES.values()]  # styles that no closure has

# Where the label of t* stands: an error grows with depth, so that its curve passes below left and above right of t*.
BESIDE: tuple[dict[str, Any], ...] = ({"xytext": (9, -17), "ha": "left"}, {"xytext": (-9, 8), "ha": "right"})


@styled
def plot_window(window: Window, title: str = "Where the theories hold", *, columns: int = 3) -> Figure:
    """Errors of closures against depth with the tolerance and `t*`. If networks were sampled: their deviation against
    width with `n*`."""
    check_kind(window, Window, "window")
    figure, axes = grid(3 if window.widths else 2, columns, title)
    for ax in axes:
        ax.axhspan(1e-9, window.tolerance, zorder=0, **TOLERABLE)
    for ax, quantity, symbol in zip(axes, ("V4", "K1"), ("V_4", "K_1"), strict=False):
        _reaches(ax, window, quantity)
        ax.set_title(f"relative error of ${symbol}$")
    if window.widths:
        _widths(axes[2], window)
    legend(figure, axes, {f"tolerance {100 * window.tolerance:.3g} %": Patch(**TOLERABLE)})
    return figure


def _reaches(ax: Axes, window: Window, quantity: str) -> None:
    """The error of each closure by depth, and where it leaves the tolerance."""
    styles = style_numbers(list(window.reach))
    for name, reaches in window.reach.items():
        style = CURVE_STYLES[styles[name]]
        error, t_star = reaches[quantity].error, reaches[quantity].t_star
        ax.plot(*_between(window.ts, error), label=name, **style)
        if 0 < t_star < np.inf:
            ax.plot(t_star, window.tolerance, "o", color=style["color"], markersize=8)
            ax.annotate(
                f"$t^* = {t_star:.2g}$",
                (t_star, window.tolerance),
                textcoords="offset points",
                color=style["color"],
                path_effects=[withStroke(linewidth=4, foreground="white")],
                **BESIDE[bool(t_star > 0.7 * window.ts[-1])],
            )
    errors = np.concatenate([[window.tolerance], *(reaches[quantity].error for reaches in window.reach.values())])
    low, high = errors[errors > 0].min(), errors.max()
    ax.set_yscale("log")
    ax.set_ylim(max(low, 1e-3 * window.tolerance) / 2, 2 * high)
    ax.set_xlabel(DEPTH)


def _between(ts: Float[np.ndarray, " T"], error: Float[np.ndarray, " T"]) -> tuple[np.ndarray, np.ndarray]:
    """The error as a straight line between saved depths, which has a curve on a logarithmic axis; zero is not drawn."""
    fine = np.union1d(ts, np.linspace(ts[0], ts[-1], 1000))
    line = np.interp(fine, ts, error)
    return fine, np.where(line > 0, line, np.nan)


def _widths(ax: Axes, window: Window) -> None:
    """Sampled deviations from order 1/n, the 1/n law through the pilot, and what they say of the width."""
    for i, (quantity, widths) in zip(OF_NETWORKS, window.widths.items(), strict=False):
        style, points = CURVE_STYLES[i], POINT_STYLES[i]
        n, d, error = (np.array([getattr(w, name) for w in widths], float) for name in ("width", "deviation", "stderr"))
        where = answer(widths, window.tolerance).where(window.tolerance).replace("n*", "$n^*$")
        label = f"${quantity[0]}_{quantity[1]}$: {where}"
        # On a logarithmic axis a bar that reaches zero would have no end.
        ax.errorbar(n, d, [np.minimum(error, 0.9 * d), error], label=label, **points)
        span = np.array([n.min() / 1.5, n.max() * 1.5])
        ax.plot(span, d[0] * n[0] / span, linewidth=1.3, **style)
    every = [w for widths in window.widths.values() for w in widths]
    ticks = sorted({w.width for w in every})
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.set_xticks([], minor=True)
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(
        0.3 * min(window.tolerance, *(w.deviation for w in every)),
        2 * max(window.tolerance, *(w.deviation + w.stderr for w in every)),
    )
    ax.set_title("networks: deviation from order $1/n$")
    ax.set_xlabel("width  $n$")


@styled
def plot_width_check(
    check: WidthCheck, entry: tuple[int, int] = (0, 0), title: str = "Networks of several widths", *, columns: int = 2
) -> Figure:
    """V4_ab,ab and K1_ab against depth: of networks of each width as points, and of the theory as a curve, by the name
    of its closure."""
    check_kind(check, WidthCheck, "check")
    check_entry(entry, check.K1.shape[-1])
    ts, pair = np.asarray(check.theory.ts), (*entry, *entry)
    theory = type(check.theory.closure).__name__
    curve = CURVE_STYLES[style_numbers([theory])[theory]]
    figure, axes = grid(2, columns, title)
    for ax, quantity, symbol, place in zip(axes, ("V4", "K1"), ("V_4", "K_1"), (pair, entry), strict=True):
        ax.plot(ts, check.theory.significant(quantity)[0][:, *place], label=theory, **curve)
        value, error = (getattr(x, quantity)[..., *place] for x in (check, check.stderr))
        for i, n in enumerate(check.widths):
            shift = 0.012 * np.ptp(ts) * (i - 0.5 * (len(check.widths) - 1))
            points = POINT_STYLES[OF_NETWORKS[i % len(OF_NETWORKS)]]
            ax.errorbar(ts + shift, value[i], error[i], label=f"$n = {n}$", **points)
        p = f"   ($p = {check.p_value(quantity):.2g}$)" if len(check.widths) > 1 else ""
        ax.set_title(f"${symbol[0]}_{{{symbol[-1]};{entry_text(*place)}}}${p}")
        ax.set_xlabel(DEPTH)
    legend(figure, axes)
    return figure
