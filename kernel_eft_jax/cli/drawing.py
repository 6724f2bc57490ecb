"""Figures of the command line. A command imports this file where it draws, because Matplotlib takes a while to load."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..diagnostics import Comparison
from ..ensemble import Estimate
from ..figures import Line, plot_panels
from ..trajectory import Solution
from .outputs import write
from .results import error

SYMBOLS = {"G": "E[G_{00}]", "V4": "V_{4;00,00}", "K1": "K_{1;00}"}


def trajectory(result: Solution | Estimate, title: str) -> Figure:
    """K0 or E[G], V4 and K1 against depth, of one input and of a pair of inputs if there are two."""
    mean = ("G", "E[G_{%s}]") if isinstance(result, Estimate) else ("K0", "K_{0;%s}")
    inputs = range(min(2, result.K0.shape[-1]))
    entries = [(0, b) for b in inputs]
    panels = {}
    for name, symbol in (mean, ("V4", "V_{4;%s}"), ("K1", "K_{1;%s}")):
        double = name == "V4"
        lines = {f"inputs {a}{b}": line(result, name, (a, b, a, b) if double else (a, b)) for a, b in entries}
        panels[f"${symbol % ('ab,ab' if double else 'ab')}$"] = lines
    return plot_panels(panels, title=title)


def line(result: Solution | Estimate, name: str, entry: tuple[int, ...]) -> Line:
    """One entry against depth: points with standard errors, or a curve."""
    stderr = error(result, name)[:, *entry] if isinstance(result, Estimate) else None
    return Line(np.asarray(result.ts), np.asarray(getattr(result, name))[:, *entry], stderr)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that its suffix says, whole or not at all."""
    write(path, lambda stream: figure.savefig(stream, format=path.suffix[1:].lower(), dpi=200))


def comparison(found: Comparison, title: str) -> Figure:
    """E[G], V4 and K1 of input 0: curves of the theory and points of the networks; below, their difference in standard errors."""
    names = [name for name in SYMBOLS if name in found.quantities]
    panels = {f"${SYMBOLS[name]}$": _values(found, name) for name in names}
    panels |= {f"difference of ${SYMBOLS[name]}$ in standard errors": _difference(found, name) for name in names}
    return plot_panels(panels, title=title, columns=len(names))


def _values(found, name):
    theory, sampled, stderr = (values.reshape(len(found.ts), -1)[:, 0] for values in found.quantities[name])
    return {"theory": Line(found.ts, theory), "sampled": Line(found.ts, sampled, stderr)}


def _difference(found, name):
    deviation = found.quantities[name].deviation.reshape(len(found.ts), -1)[:, 0]
    zero = np.zeros(len(found.ts))
    return {"theory": Line(found.ts, zero), "sampled": Line(found.ts, deviation, np.ones(len(found.ts)))}
