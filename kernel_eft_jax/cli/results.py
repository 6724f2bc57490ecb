"""The table and the figure of a trajectory, predicted or sampled."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..diagnostic_plots import Line, plot_panels
from ..ensemble import Estimate
from ..pairs import unpack, unpack_covariance
from ..trajectory import Solution
from .outputs import write
from .printing import Value

SHOWN = 11  # depths in a table


def columns(result: Solution | Estimate, published_K1: bool = False) -> list[str]:
    """Depth time, and the quantities whose entry 00 the table shows."""
    mean = "E[G][00]" if isinstance(result, Estimate) else "K0[00]"
    return ["t", mean, "V4[00,00]", "K1_EFT[00]" if published_K1 else "K1[00]"]


def rows(result: Solution | Estimate) -> list[list]:
    """Entries 00 at eleven depths, with standard errors or the estimated truncation."""
    shown = np.unique(np.linspace(0, len(result.ts) - 1, SHOWN).astype(int))
    mean = "G" if isinstance(result, Estimate) else "K0"
    return [[float(result.ts[i]), *(value(result, name, i) for name in (mean, "V4", "K1"))] for i in shown]


def value(result: Solution | Estimate, name: str, depth: int, entry: tuple[int, ...] | None = None) -> Value:
    """One entry, 00 by default, with its error."""
    values, errors = np.asarray(getattr(result, name)), error(result, name)
    place = (depth, *((0,) * (values.ndim - 1) if entry is None else entry))
    return Value(float(values[place]), float(errors[place]))


def error(result: Solution | Estimate, name: str) -> np.ndarray:
    """Standard errors of an ensemble, the estimated truncation of a theory; zero where nothing is truncated."""
    if isinstance(result, Estimate):
        return np.asarray(getattr(result.stderr, name))
    return truncation(result, name)


def truncation(solution: Solution, name: str) -> np.ndarray:
    """The estimated truncation error of a quantity, unpacked; zeros where there is none."""
    packed = getattr(solution.truncation, name, None)
    if packed is None:
        return np.zeros(np.shape(getattr(solution, name)))
    return np.asarray(unpack(packed) if packed.ndim == 2 else unpack_covariance(packed))


def figure(result: Solution | Estimate, title: str) -> Figure:
    """K0 or E[G], V4 and K1 against depth, of one input and of a pair of inputs if there are two."""
    mean = ("G", "E[G_{%s}]") if isinstance(result, Estimate) else ("K0", "K_{0;%s}")
    inputs = range(min(2, result.K0.shape[-1]))
    entries = [(0, b) for b in inputs]
    panels = {}
    for name, symbol in (mean, ("V4", "V_{4;%s}"), ("K1", "K_{1;%s}")):
        double = name == "V4"
        lines = {f"inputs {a}{b}": line(result, name, (a, b, a, b) if double else (a, b)) for a, b in entries}
        panels[f"${symbol % ('ab,ab' if double else 'ab')}$"] = lines
    return plot_panels(panels, title=title, ylabel="")


def line(result: Solution | Estimate, name: str, entry: tuple[int, ...]) -> Line:
    """One entry against depth: points with standard errors, or a curve."""
    stderr = error(result, name)[:, *entry] if isinstance(result, Estimate) else None
    return Line(np.asarray(result.ts), np.asarray(getattr(result, name))[:, *entry], stderr)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that its suffix says, whole or not at all."""
    write(path, lambda stream: figure.savefig(stream, format=path.suffix[1:].lower(), dpi=200))
