"""`kernel-eft compare`: a theory compared with sampled networks, as a table and a figure."""

import argparse
from pathlib import Path
from typing import TypeVar

import numpy as np

from ... import storage
from ...diagnostics import compare
from ...diagnostics.comparison import Comparison
from ...ensemble import Estimate
from ...trajectory import Solution
from ..models import describe_closure, remarks
from ..outputs import write_figure
from ..printing import Table, Value, show
from ..results import accuracy_notes

Kind = TypeVar("Kind", Solution, Estimate)
COMPARED_DEPTHS = 4  # depths of each quantity


def run(arguments: argparse.Namespace) -> None:
    """One theory and one ensemble."""
    theory = _load(arguments.theory, Solution, "kernel-eft theory")
    sampled = _load(arguments.sample, Estimate, "kernel-eft sample")
    found = compare(theory, sampled)
    title = {
        "theory": f"{describe_closure(theory.closure)}, {arguments.theory}",
        "sampled": f"{sampled.networks:,} networks of width {sampled.width}, {arguments.sample}",
    }
    if arguments.files.result is not None:
        write_figure(arguments.files.result, found.plot(title=" against ".join(title.values())))
    columns = ["quantity", "layer", "t", "theory [0..]", "sampled [0..]", "difference", "largest", "at"]
    notes = remarks(theory.model, theory.closure)
    if theory.layers is None:
        notes.append("The theory is of the continuum: layers differ from it by terms of order eps^2.")
    notes += accuracy_notes(theory)
    notes += [
        "Differences are sampled less theory in standard errors: of the entry shown, and the largest of all entries.",
        f"The theory leaves out the next order: relative errors of a few times 1/n = {1 / sampled.width:.2g}, more "
        "where V4 grows fast. Many networks resolve them.",
        "A V4 that is sampled too low has too small an error: deviations of V4 below zero look larger than they are.",
        "U1, V_GS, V_SS: mean correction and covariances of S, the kernel of the features that the last matrix reads.",
    ]
    show(Table(title, columns, rows(found), notes), arguments)


def rows(found: Comparison) -> list[list]:
    """Each quantity at four depths."""
    shown = np.unique(np.linspace(0, len(found.ts) - 1, COMPARED_DEPTHS).astype(int))
    table = []
    for name, one in found.quantities.items():
        theory, sampled, stderr, deviation = one.theory, one.sampled, one.stderr, one.deviation
        corner = (0,) * (theory.ndim - 1)
        for i in shown:
            worst = tuple(int(a) for a in np.unravel_index(np.abs(deviation[i]).argmax(), deviation[i].shape))
            value = Value(float(sampled[i][corner]), float(stderr[i][corner]))
            gaps = [f"{deviation[i][place]:+.1f}" for place in (corner, worst)]
            where = "".join(map(str, worst)) if len(worst) == 2 else f"{worst[0]}{worst[1]},{worst[2]}{worst[3]}"
            table.append(
                [name, int(found.layers[i]), float(found.ts[i]), float(theory[i][corner]), value, *gaps, where]
            )
    return table


def _load(path: Path, kind: type[Kind], command: str) -> Kind:
    path.stat()  # raises for a file that is not there, and names it
    result = storage.load(path)
    if not isinstance(result, kind):
        other = "a theory" if isinstance(result, Solution) else "sampled networks"
        raise ValueError(f"{path} holds {other}: `kernel-eft compare` wants a file of `{command}` in its place.")
    return result
