"""The figure of sensitivities: the effect of each parameter."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..checks import check_kind
from ..inference import Sensitivity
from .style import COLOURS, CURVE_STYLES, DEPTH, check_entry, entry_text, grid, legend, styled

# The smallest effect that is drawn, relative to the largest one in a panel.
VISIBLE = 1e-3


@styled
def plot_sensitivity(sensitivity: Sensitivity, entry: tuple[int, int] = (0, 0), *, columns: int = 3) -> Figure:
    """Relative derivatives of K0, V4 and K1 at one pair of inputs by depth, in per cent for one per cent.

    There is a curve for each of the seven parameters with the largest effects. The legend names the others: those that
    are zero, for which there is no relative change (`sensitivity[name]` has their derivatives), and those with less
    effect. There is no curve where the quantity itself is zero, as K1 at depth zero.
    """
    check_kind(sensitivity, Sensitivity, "sensitivity")
    check_entry(entry, sensitivity.solution.K0.shape[-1])
    zero = [name for name, value in zip(sensitivity.names, sensitivity.values, strict=True) if value == 0]
    curves = {name: _curves(sensitivity, name, entry) for name in sensitivity.names if name not in zero}
    sizes = {
        name: [np.max(np.abs(y[np.isfinite(y)]), initial=0.0) for y in of_name] for name, of_name in curves.items()
    }
    largest = np.max(list(sizes.values()), axis=0, initial=0.0) if sizes else np.zeros(3)
    matters = {name: max(np.divide(s, largest, where=largest > 0, out=np.zeros(3))) for name, s in sizes.items()}
    seen = sorted((name for name in curves if matters[name] > VISIBLE), key=lambda name: -matters[name])[: len(COLOURS)]
    shown = [name for name in curves if name in seen]
    pair = (*entry, *entry)
    symbols = (f"$K_{{0;{entry_text(*entry)}}}$", f"$V_{{4;{entry_text(*pair)}}}$", f"$K_{{1;{entry_text(*entry)}}}$")
    figure, axes = grid(3, columns, "Change in per cent for one per cent of a parameter")
    for i, (ax, symbol) in enumerate(zip(axes, symbols, strict=True)):
        for style, name in zip(CURVE_STYLES, shown, strict=False):
            ax.plot(np.asarray(sensitivity.solution.ts), curves[name][i], label=name, **style)
        ax.set_title(symbol)
        ax.set_xlabel(DEPTH)
        ax.set_xlim(axes[0].get_xlim())
        ax.axhline(0, color="0.4", linewidth=0.8)
        if not any(np.isfinite(of_name[i]).any() for of_name in curves.values()):
            ax.text(0.5, 0.6, "zero at every depth", ha="center", transform=ax.transAxes)
            ax.set_yticks([])
    left_out = {"zero, so no relative change": zero, "less effect": [name for name in curves if name not in shown]}
    notes = [f"{why}:\n{_four_a_line(names)}" for why, names in left_out.items() if names]
    legend(figure, axes[:1], {note: Line2D([], [], linestyle="none") for note in notes})
    return figure


def _curves(sensitivity: Sensitivity, name: str, entry: tuple[int, int]) -> list[np.ndarray]:
    """Relative derivatives of K0, V4 and K1 by one parameter, NaN where the quantity is zero."""
    places = ((slice(None), *entry), (slice(None), *entry, *entry), (slice(None), *entry))
    values = (sensitivity.solution.significant(quantity)[0] for quantity in ("K0", "V4", "K1"))
    return [
        np.where(np.asarray(y)[at] != 0, np.asarray(relative)[at], np.nan)
        for y, relative, at in zip(values, sensitivity.elasticity(name), places, strict=True)
    ]


def _four_a_line(names: list[str]) -> str:
    """Four names in a line."""
    return "\n".join(", ".join(names[i : i + 4]) for i in range(0, len(names), 4))
