"""Figures of the command line. A command imports this file where it draws, because Matplotlib takes a while to load."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..diagnostics import Comparison
from ..figures import Line, plot_panels
from .outputs import write

SYMBOLS = {"G": "E[G_{00}]", "V4": "V_{4;00,00}", "K1": "K_{1;00}"}


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that its suffix says, whole or not at all."""
    write(path, lambda stream: figure.savefig(stream, format=path.suffix[1:].lower(), dpi=200))


def comparison_figure(found: Comparison, title: str) -> Figure:
    """E[G], V4 and K1 of input 0: curves of the theory and points of the networks; below, their difference in standard
    errors."""
    names = [name for name in SYMBOLS if name in found.quantities]
    panels = {f"${SYMBOLS[name]}$": _values(found, name) for name in names}
    panels |= {f"difference of ${SYMBOLS[name]}$ in standard errors": _difference(found, name) for name in names}
    return plot_panels(panels, title=title, columns=len(names))


def _values(found, name):
    one = found.quantities[name]
    theory, sampled, stderr = (x.reshape(len(found.ts), -1)[:, 0] for x in (one.theory, one.sampled, one.stderr))
    return {"theory": Line(found.ts, theory), "sampled": Line(found.ts, sampled, stderr)}


def _difference(found, name):
    deviation = found.quantities[name].deviation.reshape(len(found.ts), -1)[:, 0]
    zero = np.zeros(len(found.ts))
    return {"theory": Line(found.ts, zero), "sampled": Line(found.ts, deviation, np.ones(len(found.ts)))}
