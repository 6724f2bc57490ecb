"""Figures of fits and sensitivities, without computation: data beside the fitted theory, and what each parameter moves."""

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .inference import Fit, Sensitivity
from .inference.likelihood import noise
from .pairs import pairs
from .plots import CURVES, POINTS, STYLE, curve_style

# Relative to the largest effect in a panel: less cannot be seen.
VISIBLE = 1e-3


def plot_fit(fit: Fit) -> Figure:
    """Mean kernels by layer against the fitted theory, and what is left of them in standard errors.

    Where V4 was fitted too, a third panel shows what is left of the variances of the same entries. Error bars are the noise
    that the theory predicts for so many networks, not the scatter of the data. Up to seven entries, below side by side.
    """
    layers, P = np.array(fit.experiment.layers), fit.prediction.covariance.shape[1]
    means = np.s_[: layers.size * P]
    error, left = _deviations(fit)
    curves, values, bars, mean_left = (
        x[means].reshape(-1, P) for x in (fit.prediction.statistics, fit.observed.statistics, error, left)
    )
    below = {"mean $-$ theory\n(standard errors)": mean_left}
    if left.size > layers.size * P:
        variances = left[layers.size * P :].reshape(layers.size, -1)[:, np.equal(*np.triu_indices(P))]
        below["variance $-$ theory\n(standard errors)"] = variances
    a, b = pairs(fit.experiment.K0.shape[0])
    shown, span = min(P, len(CURVES)), np.ptp(layers) or 20
    apart = min(0.012 * span, 0.1 * np.diff(layers).min(initial=span))
    with rc_context(STYLE):
        figure = _figure(8.4, 4.6 + 2.6 * len(below))
        top, *rest = figure.subplots(1 + len(below), 1, sharex=True, height_ratios=[2, *[1] * len(below)])
        for p, style, marker in zip(range(shown), CURVES, "osD^vPX", strict=False):
            points = POINTS | {"color": style["color"], "marker": marker}
            x = layers + apart * (p - 0.5 * (shown - 1))
            top.plot(layers, curves[:, p], marker="_" if layers.size == 1 else None, markersize=24, **style)
            top.errorbar(layers, values[:, p], bars[:, p], label=f"$G_{{{a[p]}{b[p]}}}$", **points)
            for panel, deviations in zip(rest, below.values(), strict=True):
                panel.errorbar(x, deviations[:, p], 1, **points)
        for panel, label in zip(rest, below, strict=True):
            panel.axhline(0, color="0.4", linewidth=0.9)
            panel.set_ylabel(label)
        top.set_ylabel("mean kernel")
        rest[-1].set_xlabel("layer")
        rest[-1].locator_params(axis="x", integer=True)
        rest[-1].set_xlim(layers[0] - 0.06 * span, layers[-1] + 0.06 * span)
        part = f"{shown} of {P} entries" if shown < P else None
        top.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, title=part)
        figure.suptitle(_found(fit), fontsize=13)
    return figure


def _deviations(fit):
    """Standard errors of all statistics by the theory, and how many of them the data lie above it."""
    with_V4 = fit.observed.statistics.size > fit.prediction.covariance[..., 0, 0].size
    error = np.sqrt(np.diagonal(noise(fit.prediction.covariance, fit.observed.networks, with_V4)))
    return error, (fit.observed.statistics - fit.prediction.statistics) / error


def _found(fit):
    """Estimates, three in a line, and how well the theory describes the data."""
    texts = [
        f"{name} = {0 if name in fit.at_bound else value:.4g} $\\pm$ {error:.1g}"
        for name, value, error in zip(fit.names, fit.values, fit.stderr, strict=True)
    ]
    lines = [",   ".join(texts[i : i + 3]) for i in range(0, len(texts), 3)]
    ended = "" if fit.converged else "NOT CONVERGED;  "
    p = f"  ($p$ = {fit.p_value:.2g})" if fit.dof else ""
    return "\n".join([*lines, f"{ended}$\\chi^2$ = {fit.chi2:.3g} for {fit.dof} degrees of freedom{p}"])


def plot_sensitivity(sensitivity: Sensitivity, entry: tuple[int, int] = (0, 0)) -> Figure:
    """Relative derivatives of K0, V4 and K1 at one pair of inputs by depth, in per cent for one per cent.

    A curve for each parameter that matters there; the legend names the others: those that are zero, of which there is no per
    cent (`sensitivity[name]` has their derivatives), and those with little effect. None where the quantity itself is zero,
    as K1 is at depth zero.
    """
    a, b = entry
    ts, solution = np.asarray(sensitivity.solution.ts), sensitivity.solution
    places = ((slice(None), a, b), (slice(None), a, b, a, b), (slice(None), a, b))
    K0, V4, K1 = (
        np.asarray(y)[place] for y, place in zip((solution.K0, solution.V4, solution.K1), places, strict=True)
    )
    rounding = 64 * np.finfo(K0.dtype).eps
    defined = (np.abs(K0) > 0, np.abs(V4) > 0, np.abs(K1) > rounding * np.abs(np.diagonal(solution.K0, 0, 1, 2)).max())
    zero = [name for name, value in zip(sensitivity.names, sensitivity.values, strict=True) if value == 0]
    every = {}
    for name in [name for name in sensitivity.names if name not in zero]:
        curves = [np.asarray(y)[place] for y, place in zip(sensitivity.elasticity(name), places, strict=True)]
        every[name] = [np.where(ok, y, np.nan) for ok, y in zip(defined, curves, strict=True)]
    largest = [max(_reach(curves[i]) for curves in every.values()) for i in range(3)]
    seen = [name for name, y in every.items() if any(_reach(y[i]) > VISIBLE * largest[i] for i in range(3))]
    left_out = {
        "zero, so no\nrelative change:": zero,
        f"below {100 * VISIBLE:g} % of\nthe largest:": [name for name in every if name not in seen],
    }
    with rc_context(STYLE):
        return _panels(ts, {name: every[name] for name in seen}, left_out, entry)


def _reach(curve):
    """The largest size of a curve, where it has one."""
    return np.max(np.abs(curve[np.isfinite(curve)]), initial=0.0)


def _panels(ts, curves, left_out, entry):
    a, b = entry
    figure = _figure(14.0, 4.6)
    panels = figure.subplots(1, 3, sharex=True)
    for number, (name, of_panel) in enumerate(curves.items()):
        for panel, curve in zip(panels, of_panel, strict=True):
            panel.plot(ts, curve, label=name, **curve_style(number))
    titles = (f"$K_{{0,{a}{b}}}$", f"$V_{{4,{a}{b}{a}{b}}}$", f"$K_{{1,{a}{b}}}$")
    for i, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        panel.set_title(title)
        panel.set_xlabel("depth time  $t$")
        panel.axhline(0, color="0.4", linewidth=0.8)
        if not any(np.isfinite(of_panel[i]).any() for of_panel in curves.values()):
            panel.text(0.5, 0.6, "zero at every depth", ha="center", transform=panel.transAxes)
            panel.set_yticks([])
    panels[0].set_ylabel("per cent for one per cent")
    handles, labels = panels[2].get_legend_handles_labels()
    for why, names in left_out.items():
        if names:
            handles.append(Line2D([], [], linestyle="none"))
            labels.append("\n  ".join([why, *names]))
    panels[2].legend(handles, labels, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _figure(width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
