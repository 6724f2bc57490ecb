"""`kernel-eft sensitivity`: derivatives of a trajectory by every parameter and input, into a file and a figure."""

import argparse

import numpy as np

from ... import inference
from ..depths import at_depths, describe_depths
from ..models import describe_closure, describe_model, make_closure, make_kernel, make_model, remarks
from ..outputs import write, write_figure
from ..printing import Table, show


def run(arguments: argparse.Namespace) -> None:
    """The derivatives of one theory."""
    model, closure = make_model(arguments), make_closure(arguments)
    found = inference.sensitivity(model, make_kernel(arguments), **at_depths(arguments), closure=closure)
    title = {
        "closure": describe_closure(found.solution.closure),
        "model": describe_model(model),
        "depth": describe_depths(arguments),
    }
    notes = remarks(model, closure)
    result, plot = arguments.files
    if result is not None:
        arrays = inference.sensitivity_arrays(found) | title | {"notes": notes}
        write(result, lambda stream: np.savez(stream, **arrays))  # pyright: ignore[reportArgumentType]
    if plot is not None:
        write_figure(plot, found.plot())
    t = float(found.solution.ts[-1])
    what = (
        f"Changes at t = {t:.4g}: in per cent for one per cent of the parameter, or derivatives by a parameter that "
        "is zero."
    )
    columns = ["parameter", "value", "K0[00]", "V4[00,00]", "K1_EFT[00]" if notes else "K1[00]", "change"]
    show(Table(title, columns, rows(found), [what, *notes]), arguments)


def rows(found: inference.Sensitivity) -> list[list]:
    """Entries 00 at the last depth: relative changes, or derivatives by parameters that are zero."""
    table = []
    for name, value in zip(found.names, found.values, strict=True):
        kernels = found.significant(name) if value == 0 else found.elasticity(name)
        entries = [float(np.asarray(quantity[-1]).flat[0]) for quantity in kernels]
        table.append([name, float(value), *entries, "derivative" if value == 0 else "relative"])
    return table
