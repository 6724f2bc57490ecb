"""Figures from results. This folder computes nothing and opens no window.

A function with an argument `columns` places so many panels side by side; `columns=1` stacks them, legible at the width
of a phone.
"""

from .comparison import plot_comparison as plot_comparison
from .coordinates import plot_coordinate_check as plot_coordinate_check
from .diagnostics import plot_width_check as plot_width_check
from .diagnostics import plot_window as plot_window
from .fit import plot_fit as plot_fit
from .of_result import plot as plot
from .sensitivity import plot_sensitivity as plot_sensitivity
from .style import save_figure as save_figure
from .trajectory import Line as Line
from .trajectory import plot_panels as plot_panels
from .trajectory import plot_result as plot_result
from .trajectory import plot_trajectories as plot_trajectories
