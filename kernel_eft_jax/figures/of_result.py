"""The figure of each class of results: `result.plot(...)` is `plot(result, ...)`."""

from functools import singledispatch
from typing import Any

from matplotlib.figure import Figure

from ..diagnostics import Comparison, CoordinateCheck, WidthCheck, Window
from ..ensemble import Estimate
from ..inference import Fit, Sensitivity
from ..trajectory import Solution
from .comparison import plot_comparison
from .coordinates import plot_coordinate_check
from .diagnostics import plot_width_check, plot_window
from .fit import plot_fit
from .sensitivity import plot_sensitivity
from .trajectory import plot_result


@singledispatch
def plot(result: Any, **options: Any) -> Figure:
    """The figure of a result, by the function for its class; `options` are those of that function."""
    raise TypeError(f"There is no figure of a {type(result).__name__}: give a result of this package.")


for kind, function in (
    (Solution, plot_result),
    (Estimate, plot_result),
    (Fit, plot_fit),
    (Sensitivity, plot_sensitivity),
    (Window, plot_window),
    (WidthCheck, plot_width_check),
    (CoordinateCheck, plot_coordinate_check),
    (Comparison, plot_comparison),
):
    plot.register(kind, function)
