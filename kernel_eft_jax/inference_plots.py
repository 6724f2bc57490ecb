"""Figures of fits and sensitivities, without computation: data beside the fitted theory, and what each parameter moves."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .inference import Fit, Sensitivity
from .pairs import pairs
from .plots import CURVES, curve_style

# Relative to the largest effect in a panel: less cannot be seen, and is called no effect.
VISIBLE = 1e-3


def plot_fit(fit: Fit) -> Figure:
    """Mean kernels against the fitted theory by layer, above; what is left, in standard errors of the data, below."""
    layers, P = np.array(fit.experiment.layers), fit.prediction.covariance.shape[1]
    means = slice(0, layers.size * P)
    observed = fit.observed.statistics[means].reshape(-1, P)
    theory = fit.prediction.statistics[means].reshape(-1, P)
    variance = np.einsum("tptp->tp", fit.prediction.covariance) / fit.observed.networks
    figure = _figure(7.0, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (2, 1)})
    a, b = pairs(fit.experiment.K0.shape[0])
    shown = min(P, len(CURVES))
    for p, style in zip(range(shown), CURVES, strict=False):
        colour, shift = style["color"], 0.004 * (p - 0.5 * (shown - 1)) * np.ptp(layers)
        above.plot(layers, theory[:, p], **style)
        above.errorbar(
            layers, observed[:, p], np.sqrt(variance[:, p]), fmt="o", color=colour, label=f"$G_{{{a[p]}{b[p]}}}$"
        )
        left = (observed - theory)[:, p] / np.sqrt(variance[:, p])
        below.errorbar(layers + shift, left, 1, fmt="o", color=colour, capsize=2)
    below.axhline(0, color="0.4", linewidth=0.8)
    above.set_ylabel("mean kernel")
    below.set_ylabel("data $-$ theory\n(standard errors)")
    below.set_xlabel("layer")
    above.legend(frameon=False)
    found = ",  ".join(
        f"{n} = {0 if n in fit.at_bound else v:.4g} $\\pm$ {e:.1g}"
        for n, v, e in zip(fit.names, fit.values, fit.stderr, strict=True)
    )
    above.set_title(f"{found}\n$\\chi^2$ = {fit.chi2:.3g} for {fit.dof} degrees of freedom", fontsize=12)
    return figure


def plot_sensitivity(sensitivity: Sensitivity, entry: tuple[int, int] = (0, 0)) -> Figure:
    """Relative derivatives of K0, V4 and K1 at one pair of inputs by depth, in per cent for one per cent.

    A curve for each parameter that matters there; the legend names those that do not. None where the quantity itself is
    zero, as K1 is at depth zero.
    """
    a, b = entry
    ts, solution = np.asarray(sensitivity.solution.ts), sensitivity.solution
    places = ((slice(None), a, b), (slice(None), a, b, a, b), (slice(None), a, b))
    K0, V4, K1 = (
        np.asarray(y)[place] for y, place in zip((solution.K0, solution.V4, solution.K1), places, strict=True)
    )
    rounding = 64 * np.finfo(K0.dtype).eps
    defined = (np.abs(K0) > 0, np.abs(V4) > 0, np.abs(K1) > rounding * np.abs(np.diagonal(solution.K0, 0, 1, 2)).max())
    every = {}
    for name in sensitivity.names:
        curves = [np.asarray(y)[place] for y, place in zip(sensitivity.elasticity(name), places, strict=True)]
        every[name] = [np.where(ok, y, np.nan) for ok, y in zip(defined, curves, strict=True)]
    largest = [max(_reach(curves[i]) for curves in every.values()) for i in range(3)]
    seen = [name for name, y in every.items() if any(_reach(y[i]) > VISIBLE * largest[i] for i in range(3))]
    return _panels(ts, {name: every[name] for name in seen}, [name for name in every if name not in seen], entry)


def _reach(curve):
    """The largest size of a curve, where it has one."""
    return np.max(np.abs(curve[np.isfinite(curve)]), initial=0.0)


def _panels(ts, curves, left_out, entry):
    a, b = entry
    figure = _figure(12.0, 4.2)
    panels = figure.subplots(1, 3)
    for number, (name, of_panel) in enumerate(curves.items()):
        for panel, curve in zip(panels, of_panel, strict=True):
            panel.plot(ts, curve, label=name, **curve_style(number))
    titles = (f"$K_{{0,{a}{b}}}$", f"$V_{{4,{a}{b}{a}{b}}}$", f"$K_{{1,{a}{b}}}$")
    for i, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        panel.set_title(title)
        panel.set_xlabel("depth t")
        panel.axhline(0, color="0.4", linewidth=0.8)
        if not any(np.isfinite(of_panel[i]).any() for of_panel in curves.values()):
            panel.text(0.5, 0.6, "zero at every depth", ha="center", transform=panel.transAxes)
    panels[0].set_ylabel("per cent for one per cent")
    handles, labels = panels[2].get_legend_handles_labels()
    if left_out:
        handles.append(Line2D([], [], linestyle="none"))
        labels.append("\n  ".join(["no effect:", *left_out]))
    panels[2].legend(handles, labels, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _figure(width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
