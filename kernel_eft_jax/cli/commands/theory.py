"""`kernel-eft theory`: K0, V4 and K1 of a closure, into a file and a figure."""

import argparse

from ... import storage
from ...trajectory import solve
from ..depths import at_depths, describe_depths
from ..models import describe_closure, describe_model, make_closure, make_kernel, make_model, remarks
from ..outputs import write_figure
from ..printing import Table, show
from ..results import accuracy_notes, result_columns, result_rows


def run(arguments: argparse.Namespace) -> None:
    """One theory."""
    model, closure = make_model(arguments), make_closure(arguments)
    solution = solve(model, make_kernel(arguments), **at_depths(arguments), closure=closure)
    closure = solution.closure
    title = {"closure": describe_closure(closure), "model": describe_model(model), "depth": describe_depths(arguments)}
    notes = remarks(model, closure)
    result, plot = arguments.files
    if result is not None:
        storage.save(solution, result, model=model, closure=closure, depth=title["depth"], notes=" ".join(notes))
    if plot is not None:
        write_figure(plot, solution.plot(title=", ".join(title.values())))
    show(
        Table(title, result_columns(solution, bool(notes)), result_rows(solution), [*notes, *accuracy_notes(solution)]),
        arguments,
    )
