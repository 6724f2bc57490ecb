"""Figures of fits and sensitivities, without computation: data beside the fitted theory, and what each parameter moves."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .inference import Fit, Sensitivity
from .pairs import pairs

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (6, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2)))
ENTRIES = 7


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
    for p in range(min(P, ENTRIES)):
        colour, shift = COLOURS[p], 0.004 * (p - 0.5 * (min(P, ENTRIES) - 1)) * np.ptp(layers)
        above.plot(layers, theory[:, p], color=colour, linestyle=DASHES[p % len(DASHES)])
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
        f"{n} = {v:.4g} $\\pm$ {e:.1g}" for n, v, e in zip(fit.names, fit.values, fit.stderr, strict=True)
    )
    above.set_title(f"{found}\n$\\chi^2$ = {fit.chi2:.3g} for {fit.dof} degrees of freedom", fontsize=12)
    return figure


def plot_sensitivity(sensitivity: Sensitivity, entry: tuple[int, int] = (0, 0)) -> Figure:
    """Relative derivatives of K0, V4 and K1 at one pair of inputs by depth: a curve for each parameter that matters."""
    a, b = entry
    ts = np.asarray(sensitivity.solution.ts)
    figure = _figure(12.0, 4.2)
    panels = figure.subplots(1, 3)
    for number, name in enumerate(sensitivity.names):
        K0, V4, K1 = (np.asarray(part) for part in sensitivity.elasticity(name))
        curves = (K0[:, a, b], V4[:, a, b, a, b], K1[:, a, b])
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
        for panel, curve in zip(panels, curves, strict=True):
            panel.plot(ts, np.where(np.isfinite(curve), curve, np.nan), label=name, **style)
    titles = (f"$K_{{0,{a}{b}}}$", f"$V_{{4,{a}{b}{a}{b}}}$", f"$K_{{1,{a}{b}}}$")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title)
        panel.set_xlabel("depth t")
        panel.axhline(0, color="0.4", linewidth=0.8)
    panels[0].set_ylabel("per cent for one per cent")
    panels[2].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _figure(width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
