"""`kernel-eft sample`: statistics of sampled networks with standard errors, into a file and a figure."""

import argparse

import jax

from ... import storage
from ...checks import check_positive
from ...ensemble import BlockSampler, WeightSampler, estimate
from ...ensemble.observables import estimated
from ..depths import describe_depths, saved_layers
from ..models import describe_model, make_kernel, make_model
from ..outputs import write_figure
from ..printing import Table, show
from ..results import result_columns, result_rows

SAMPLERS = {"block": BlockSampler, "weights": WeightSampler}


def run(arguments: argparse.Namespace) -> None:
    """One ensemble."""
    model, K0 = make_model(arguments), make_kernel(arguments)
    sampler = SAMPLERS[arguments.sampler]()
    found = estimate(
        model,
        K0,
        width=arguments.width,
        depth=arguments.depth,
        eps=arguments.eps,
        networks=arguments.networks,
        key=jax.random.key(arguments.seed),
        sampler=sampler,
        control=arguments.sampler == "block",
        save_at=saved_layers(arguments),
        target=target(arguments, len(K0)),
        checkpoint=arguments.checkpoint,
        progress=not arguments.quiet,
    )
    title = {
        "sampled": f"{found.networks:,} networks of width {arguments.width} "
        f"by {arguments.sampler}, seed {arguments.seed}",
        "model": describe_model(model),
        "depth": describe_depths(arguments),
    }
    result, plot = arguments.files
    if result is not None:
        storage.save(found, result, model=model, eps=arguments.eps, seed=arguments.seed, sampler=sampler)
    if plot is not None:
        write_figure(plot, found.plot(title=", ".join(title.values())))
    show(Table(title, result_columns(found), result_rows(found), ["Errors are standard errors."]), arguments)


def target(arguments: argparse.Namespace, inputs: int):
    """The entry and the error of --target, as `estimate` takes them."""
    if arguments.target is None:
        return None
    (name, _, text), error = arguments.target[0].partition(":"), arguments.target[1]
    known = estimated(control=arguments.sampler == "block")
    if name not in known:
        raise ValueError(f"Argument `--target` must name one of {', '.join(known)}, but names {name!r}.")
    rank = len(known[name].axes.split())
    place = text.split(",") if text else ["0"] * rank
    if len(place) != rank or not all(i.isdecimal() and int(i) < inputs for i in place):
        example = ",".join(["0"] * rank)
        raise ValueError(
            f"Argument `--target` must be like {name}:{example}, of inputs 0 to {inputs - 1}, but is {name}:{text}."
        )
    try:
        wanted = float(error)
    except ValueError:
        raise ValueError(
            f"Argument `--target` must end in a number, the standard error wanted, but ends in {error!r}."
        ) from None
    check_positive(wanted, "--target")
    entry = (-1, *map(int, place))
    return (lambda quantities: getattr(quantities, name)[entry]), wanted
