"""The table of a trajectory, of a theory or of sampled networks."""

import numpy as np

from ..ensemble import Estimate
from ..pairs import unpack, unpack_covariance
from ..trajectory import Solution
from .printing import Value

TABLE_DEPTHS = 11  # depths in a table


def result_columns(result: Solution | Estimate, published_K1: bool = False) -> list[str]:
    """Depth time, and the quantities whose entry 00 the table shows."""
    mean = "E[G][00]" if isinstance(result, Estimate) else "K0[00]"
    return ["t", mean, "V4[00,00]", "K1_EFT[00]" if published_K1 else "K1[00]"]


def result_rows(result: Solution | Estimate) -> list[list]:
    """Entries 00 at eleven depths, with standard errors or the estimated truncation."""
    shown = np.unique(np.linspace(0, len(result.ts) - 1, TABLE_DEPTHS).astype(int))
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
