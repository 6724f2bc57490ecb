"""The figure of a coordinate check: the predicted stream against depth and against width, and networks of the user's
own."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from ..checks import check_kind
from ..diagnostics import CoordinateCheck
from .style import COLOURS, CURVE_STYLES, POINT_STYLES, check_entry, grid, legend, styled

BAND = {"alpha": 0.2, "linewidth": 0}
WIDTH_RANGE = 8.0  # the second panel goes from an eighth of the width to eight times


@styled
def plot_coordinate_check(
    check: CoordinateCheck, entry: int = 0, title: str = "Predicted coordinate check", *, columns: int = 2
) -> Figure:
    """Mean square of the stream for one input: against the layer, at the width of the check, and against the width, at
    three layers.

    Bands and bars hold two thirds of all seeds, by the log-normal law of the predicted or measured mean and variance.
    """
    check_kind(check, CoordinateCheck, "check")
    check_entry((entry,), check.mean.shape[1], axes=1)
    figure, axes = grid(2, columns, title, sharey=True)
    if check.mean[:, entry].max() > 10 * check.mean[:, entry].min():
        axes[0].set_yscale("log")
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    _by_depth(axes[0], check, entry)
    _by_width(axes[1], check, entry)
    legend(figure, axes, {"two thirds of all seeds": Patch(color="0.35", **BAND)})
    return figure


def _by_depth(ax: Axes, check: CoordinateCheck, a: int) -> None:
    layers, mean = np.asarray(check.layers), check.mean[:, a]
    ax.plot(layers, mean, color=COLOURS[0], label="predicted mean")
    ax.fill_between(layers, *_seeds(mean, check.spread[:, a]), color="0.35", **BAND)
    for yours in _measured(check):
        if yours.width == check.width:
            _points(ax, layers, yours.mean[:, a], yours.spread[:, a], POINT_STYLES[0], label="your networks")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_title(f"width $n = {check.width}$")
    ax.set_xlabel("layer")
    ax.set_ylabel("mean square of the stream")


def _by_width(ax: Axes, check: CoordinateCheck, a: int) -> None:
    layers = np.asarray(check.layers)
    widths = np.geomspace(check.width / WIDTH_RANGE, check.width * WIDTH_RANGE, 60)
    for curve, points, i in zip(CURVE_STYLES[1:], POINT_STYLES[1:], _three(len(layers)), strict=False):
        mean, spread = (np.array([at(n)[i, a] for n in widths]) for at in (check.mean_at, check.spread_at))
        ax.plot(widths, mean, label=f"layer {layers[i]}", **curve)
        ax.fill_between(widths, *_seeds(mean, spread), color=curve["color"], **BAND)
        for yours in _measured(check):
            _points(ax, [yours.width], yours.mean[[i], a], yours.spread[[i], a], points)
    ax.set_xscale("log", base=2)
    ax.set_title("what the width changes")
    ax.set_xlabel("width  $n$")


def _points(ax, x, mean, spread, style, **options):
    low, high = _seeds(mean, spread)
    bars = np.maximum([mean - low, high - mean], 0).tolist()  # lists: matplotlib 3.10 stumbles over arrays of one point
    ax.errorbar(x, mean, bars, **style, **options)


def _seeds(mean, spread):
    """The interval that holds two thirds of a positive quantity of this mean and standard deviation."""
    sigma = np.sqrt(np.log1p((spread / mean) ** 2))
    middle = mean * np.exp(-(sigma**2) / 2)
    return middle * np.exp(-sigma), middle * np.exp(sigma)


def _measured(check):
    return [check.measured(i) for i in range(0 if check.own is None else len(check.own.widths))]


def _three(depths: int) -> list[int]:
    """The first layer after the start, a middle one, and the last."""
    return sorted({min(1, depths - 1), depths // 2, depths - 1})
