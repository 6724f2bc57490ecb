"""`kernel-eft validity`: depths and widths where the theories hold, into a figure and a file."""

import argparse

import jax

from ...closures import HermiteTower
from ...diagnostics import Window, validity_window
from ...diagnostics.validity import answer
from ..depths import describe_depths
from ..models import describe_closure, describe_model, make_kernel, make_model
from ..outputs import write_figure, write_json
from ..printing import Table, Value, say_sampling, show

NOTE = (
    "t* is the depth time up to which a closure is right to --tolerance, and n* the width from which order 1/n is. "
    "The error of a closure is that at the last depth, and the error of order 1/n that of sampled networks of the "
    "width that is named."
)


def run(arguments: argparse.Namespace) -> None:
    """The window of one setting."""
    model, K0, reference = make_model(arguments), make_kernel(arguments), HermiteTower(arguments.degree)
    say_sampling(arguments)
    window = validity_window(
        model,
        K0,
        depth=arguments.depth,
        eps=arguments.eps,
        tolerance=arguments.tolerance,
        key=jax.random.key(arguments.seed),
        networks=arguments.networks,
        reference=reference,
        progress=not arguments.quiet,
    )
    title = {
        "reference": describe_closure(reference),
        "model": describe_model(model),
        "depth": describe_depths(arguments),
    }
    figure, record = arguments.files
    if figure is not None:
        write_figure(figure, window.plot(title=f"{title['model']}, {title['depth']}"))
    if record is not None:
        write_json(record, title | window.record())
    show(Table(title, ["quantity", "theory", "holds", "error"], rows(window), [NOTE]), arguments)


def rows(window: Window) -> list[list]:
    """Up to which depth each closure holds, and from which width order 1/n."""
    table = []
    for closure, reaches in window.reach.items():
        for quantity, reach in reaches.items():
            table.append([quantity, closure, reach.where, f"{reach.error[-1]:.2g}"])
    for quantity, sampled in window.widths.items():
        found = answer(sampled, window.tolerance)
        table.append([quantity, "order 1/n", found.where(window.tolerance), Value(found.deviation, found.stderr)])
    return table
