"""The table of a trajectory, of a theory or of sampled networks."""

import numpy as np

from ..ensemble import Estimate
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


def value(result: Solution | Estimate, name: str, depth: int) -> Value:
    """Entry 00 with its standard error, or with its estimated truncation, which is zero where nothing is truncated."""
    numbers = (
        (getattr(result, name), getattr(result.stderr, name))
        if isinstance(result, Estimate)
        else result.significant(name)
    )
    return Value(*(float(np.asarray(number)[depth].ravel()[0]) for number in numbers))


def accuracy_notes(solution: Solution) -> list[str]:
    """How accurate the numbers of a theory are, in sentences."""
    sentences = []
    if solution.truncation is not None:
        worst = {name: float(np.max(getattr(solution.truncation, name))) for name in ("V4", "K1")}
        known = ", ".join(f"{name} {error:.2g}" for name, error in worst.items() if np.isfinite(error))
        unknown = " and ".join(name for name, error in worst.items() if not np.isfinite(error))
        sentences = [f"Errors estimate what the degree leaves out: over all entries and depths {known}."] * bool(known)
        sentences += [f"The degree is too low to tell what it leaves out of {unknown}."] * bool(unknown)
    expectation = float(solution.stats["expectation_error"])
    return [*sentences, f"Estimated relative error of the Gaussian expectations: {expectation:.1e}."]
