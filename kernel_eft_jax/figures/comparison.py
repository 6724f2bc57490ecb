"""The figure of a comparison: a theory and sampled networks against depth, and their difference in standard errors."""

import numpy as np
from matplotlib.figure import Figure

from ..checks import check_kind
from ..diagnostics import Comparison
from .trajectory import Line, plot_panels

SYMBOLS = {"G": "E[G_{00}]", "V4": "V_{4;00,00}", "K1": "K_{1;00}"}


def plot_comparison(found: Comparison, title: str = "Theory and networks", *, columns: int = 3) -> Figure:
    """E[G], V4 and K1 of input 0: curves of the theory and points of the networks, then their difference in standard
    errors."""
    check_kind(found, Comparison, "found")
    names = [name for name in SYMBOLS if name in found.quantities]
    panels = {f"${SYMBOLS[name]}$": _values(found, name) for name in names}
    panels |= {f"difference of ${SYMBOLS[name]}$ in standard errors": _difference(found, name) for name in names}
    return plot_panels(panels, title=title, columns=columns)


def _values(found, name):
    one = found.quantities[name]
    theory, sampled, stderr = (x.reshape(len(found.ts), -1)[:, 0] for x in (one.theory, one.sampled, one.stderr))
    return {"theory": Line(found.ts, theory), "sampled": Line(found.ts, sampled, stderr)}


def _difference(found, name):
    deviation = found.quantities[name].deviation.reshape(len(found.ts), -1)[:, 0]
    zero = np.zeros(len(found.ts))
    return {"theory": Line(found.ts, zero), "sampled": Line(found.ts, deviation, np.ones(len(found.ts)))}
