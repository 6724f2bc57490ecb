"""The figure of a fit: data beside the fitted theory, and their differences."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..checks import check_kind
from ..inference import Fit
from ..pairs import pairs
from ..showing import rounded
from .style import COLOURS, CURVE_STYLES, PANEL, POINT_STYLES, grid, legend, styled


@styled
def plot_fit(fit: Fit) -> Figure:
    """Mean kernels by layer beside the fitted theory, and their differences in standard errors.

    If V4 was fitted too, a third panel shows the differences of the variances of the same entries. Error bars are the
    noise that the theory predicts for this number of networks, not the scatter of the data. The first seven entries are
    shown.
    """
    check_kind(fit, Fit, "fit")
    layers, P = np.array(fit.experiment.layers), fit.prediction.covariance.shape[1]
    means, error = np.s_[: layers.size * P], fit.expected_stderr
    left = (fit.observed.statistics - fit.prediction.statistics) / error
    curves, values, bars, mean_left = (
        x[means].reshape(-1, P) for x in (fit.prediction.statistics, fit.observed.statistics, error, left)
    )
    below = {"mean $-$ theory\n(standard errors)": mean_left}
    if left.size > layers.size * P:
        variances = left[layers.size * P :].reshape(layers.size, -1)[:, np.equal(*np.triu_indices(P))]
        below["variance $-$ theory\n(standard errors)"] = variances
    a, b = pairs(fit.experiment.K0.shape[0])
    shown, span = min(P, len(COLOURS)), np.ptp(layers) or 20
    apart = min(0.012 * span, 0.1 * np.diff(layers).min(initial=span))
    heights = [PANEL[1], *[0.65 * PANEL[1]] * len(below)]
    figure, (top, *rest) = grid(1 + len(below), 1, _found(fit), heights, sharex=True)
    for p, curve, points in zip(range(shown), CURVE_STYLES, POINT_STYLES, strict=False):
        x = layers + apart * (p - 0.5 * (shown - 1))
        top.plot(layers, curves[:, p], marker="_" if layers.size == 1 else None, markersize=24, **curve)
        top.errorbar(layers, values[:, p], bars[:, p], label=f"$G_{{{a[p]}{b[p]}}}$", **points)
        for ax, deviations in zip(rest, below.values(), strict=True):
            ax.errorbar(x, deviations[:, p], 1, **points)
    for ax, label in zip(rest, below, strict=True):
        ax.axhline(0, color="0.4", linewidth=0.9)
        ax.set_ylabel(label)
    top.set_ylabel("mean kernel")
    rest[-1].set_xlabel("layer")
    rest[-1].locator_params(axis="x", integer=True)
    rest[-1].set_xlim(layers[0] - 0.06 * span, layers[-1] + 0.06 * span)
    legend(figure, [top], {f"{shown} of {P} entries": Line2D([], [], linestyle="none")} if shown < P else None)
    return figure


def _found(fit: Fit) -> str:
    """Estimates, two in a line, and how well the theory describes the data."""
    texts = [
        f"{name} = {f'0 ± {error:.1g}' if name in fit.at_bound else rounded(value, error)}"
        for name, value, error in zip(fit.names, fit.values, fit.stderr, strict=True)
    ]
    ended = "" if fit.converged else "NOT CONVERGED;  "
    p = f",  $p$\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{fit.p_value:.2g}" if fit.dof else ""
    lines = [",   ".join(texts[i : i + 2]) for i in range(0, len(texts), 2)]
    return "\n".join(lines) + f"\n{ended}$\\chi^2$ = {fit.chi2:.4g} for {fit.dof} degrees of freedom{p}"
