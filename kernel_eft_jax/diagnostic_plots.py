"""Figures of diagnostics, without computation: residuals of equations, validity windows, several widths against a theory."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .diagnostics import WidthCheck, Window
from .plots import CURVES, POINTS, STYLE

STYLES: tuple[dict[str, Any], ...] = (
    *CURVES,
    {"color": "black", "linestyle": "-"},
    {"color": "#56B4E9", "linestyle": (0, (6, 1.5))},
)
DEPTH = r"depth time  $t = \epsilon^2 l$"


class Line(NamedTuple):
    """A quantity against depth: points with error bars if there is a standard error, else a curve."""

    ts: Float[np.ndarray, " T"]
    value: Float[np.ndarray, " T"]
    stderr: Float[np.ndarray, " T"] | None = None


def plot_panels(panels: Mapping[str, Mapping[str, Line]], *, title: str, ylabel: str, columns: int = 3) -> Figure:
    """Panels side by side, by their headings, each with its lines; a label has the same style in all of them."""
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = _figure(4.9 * min(columns, len(panels)), 4.3 * rows + 0.7)
        axes = figure.subplots(rows, min(columns, len(panels)), squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for ax, (heading, lines) in zip(axes, panels.items(), strict=False):
            ax.axhline(0, color="0.4", linewidth=0.9)
            for label, line in lines.items():
                _draw(ax, line, label, labels.index(label))
            ax.set_title(heading)
            ax.set_xlabel(DEPTH)
            ax.locator_params(nbins=6)
        axes[0].set_ylabel(ylabel)
        _legend(figure, axes[: len(panels)])
        figure.suptitle(title, fontsize=14)
    return figure


def plot_window(window: Window, title: str = "Where the theories hold") -> Figure:
    """Errors of the closures against depth with the tolerance and t*, and deviations of sampled networks against width with n*."""
    with rc_context(STYLE):
        figure = _figure(15.0 if window.widths else 10.4, 5.0)
        axes = figure.subplots(1, 3 if window.widths else 2)
        for ax, quantity, symbol in zip(axes, ("V4", "K1"), ("V_4", "K_1"), strict=False):
            ax.axhspan(1e-9, window.tolerance, color="0.92", zorder=0)
            for style, (name, reaches) in zip(CURVES, window.reach.items(), strict=False):
                error, t_star = reaches[quantity]
                ax.plot(window.ts, error, label=name, **style)
                if 0 < t_star < np.inf:
                    ax.plot(t_star, window.tolerance, "o", color=style["color"], markersize=8)
                    ax.annotate(
                        f"$t^* = {t_star:.2g}$",
                        (t_star, window.tolerance),
                        xytext=(8, -17),
                        textcoords="offset points",
                        color=style["color"],
                    )
            errors = np.concatenate([reaches[quantity].error for reaches in window.reach.values()])
            ax.set_yscale("log")
            low, high = min(errors[errors > 0].min(), window.tolerance), max(errors.max(), window.tolerance)
            ax.set_ylim(max(low, 1e-3 * window.tolerance) / 2, 2 * high)
            ax.set_title(f"relative error of ${symbol}$")
            ax.set_xlabel(DEPTH)
        if window.widths:
            _widths(axes[2], window)
        _legend(figure, axes[:1], extra=f"tolerance {100 * window.tolerance:.3g} %")
        figure.suptitle(title, fontsize=14)
    return figure


def plot_width_check(
    check: WidthCheck, entry: tuple[int, int] = (0, 0), title: str = "Networks of several widths"
) -> Figure:
    """n Cov(G, G) and n (mean G - K0) of one pair of inputs against depth: widths as points, on the theory as a curve or not."""
    a, b = entry
    ts = np.asarray(check.theory.ts)
    theory = np.asarray(check.theory.V4)[:, a, b, a, b], np.asarray(check.theory.K1)[:, a, b]
    sampled = (
        (check.V4[..., a, b, a, b], check.V4_stderr[..., a, b, a, b]),
        (check.K1[..., a, b], check.K1_stderr[..., a, b]),
    )
    names = f"$n\\,\\mathrm{{Cov}}(G_{{{a}{b}}}, G_{{{a}{b}}})$", f"$n\\,(E[G_{{{a}{b}}}] - K_{{0;{a}{b}}})$"
    with rc_context(STYLE):
        figure = _figure(11.6, 5.4)
        axes = figure.subplots(1, 2)
        for ax, curve, (value, error), name, quantity in zip(axes, theory, sampled, names, ("V4", "K1"), strict=True):
            ax.plot(ts, curve, color="black", label="theory")
            for i, n in enumerate(check.widths):
                shift = 0.012 * np.ptp(ts) * (i - 0.5 * (len(check.widths) - 1))
                style: dict[str, Any] = POINTS | {"color": STYLES[i % len(STYLES)]["color"], "marker": "osD^vPX"[i % 7]}
                ax.errorbar(ts + shift, value[i], error[i], label=f"$n = {n}$", **style)
            p = f"   ($p = {check.p_value(quantity):.2g}$)" if len(check.widths) > 1 else ""
            ax.set_title(name + p)
            ax.set_xlabel(DEPTH)
        _legend(figure, axes[:1])
        figure.suptitle(title, fontsize=14)
    return figure


def _widths(ax: Axes, window: Window) -> None:
    """Sampled deviations from order 1/n, the 1/n law through the pilot, and n*."""
    ax.axhspan(1e-9, window.tolerance, color="0.92", zorder=0)
    for style, marker, (quantity, widths) in zip(CURVES[2:], "osD", window.widths.items(), strict=False):
        n = np.array([w.width for w in widths], float)
        d = np.array([w.deviation for w in widths])
        error = np.array([w.stderr for w in widths])
        symbol = f"${quantity[0]}_{quantity[1]}$"
        low = np.minimum(error, 0.9 * d)
        ax.errorbar(
            n,
            d,
            [low, error],
            fmt=marker,
            color=style["color"],
            capsize=2.5,
            label=f"{symbol}: $n^* = {widths[-1].width}$",
        )
        span = np.array([n.min() / 1.5, n.max() * 1.5])
        ax.plot(span, d[0] * n[0] / span, color=style["color"], linestyle=style["linestyle"], linewidth=1.3)
    ax.set_xscale("log")
    ax.set_yscale("log")
    sampled = sorted({w.width for widths in window.widths.values() for w in widths})
    ax.set_xticks(sampled, [str(n) for n in sampled])
    ax.set_xticks([], minor=True)
    every = [w for widths in window.widths.values() for w in widths]
    ax.set_ylim(
        0.3 * min(window.tolerance, *(w.deviation for w in every)),
        2 * max(window.tolerance, *(w.deviation + w.stderr for w in every)),
    )
    ax.set_title("networks: deviation from order $1/n$")
    ax.set_xlabel("width  $n$")
    ax.legend(frameon=False)


def _draw(ax: Axes, line: Line, label: str, index: int) -> None:
    style = STYLES[index % len(STYLES)]
    if line.stderr is None:
        ax.plot(line.ts, line.value, label=label, **style)
        return
    every = np.s_[:: -(-len(line.ts) // 21)]
    points = POINTS | {"color": style["color"], "marker": "osD^vPX"[index % 7]}
    ax.errorbar(line.ts[every], line.value[every], line.stderr[every], label=label, **points)


def _legend(figure: Figure, axes, extra: str | None = None) -> None:
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    if extra is not None:
        from matplotlib.patches import Patch

        handles[extra] = Patch(color="0.92")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
