"""`kernel-eft fit`: hyperparameters from kernels of networks, into a file and a figure."""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ... import inference, storage
from ...ensemble import Estimate
from ...inference.parameters import get_parameters
from ...model import Model
from ..models import describe_closure, describe_model, make_closure, make_model, remarks
from ..outputs import write_figure, write_json
from ..printing import Table, Value, show


def run(arguments: argparse.Namespace) -> None:
    """One fit."""
    data, settings, own = read_data(arguments.data)
    start, closure = inference.Experiment(starting_model(arguments, own), **settings), make_closure(arguments)
    if own is not None:
        check_model(arguments, start, inference.Experiment(own, **settings))
    found = inference.fit(
        data,
        start,
        arguments.free,
        closure=closure,
        with_V4=arguments.with_V4,
        progress=not arguments.quiet,
    )
    title = {"closure": describe_closure(found.closure), "model": describe_model(found.experiment.model)}
    notes = [*remarks(start.model, closure), *str(found).splitlines()[len(found.names) :]]
    result, plot = arguments.files
    if result is not None:
        write_json(result, title | {"notes": notes} | inference.fit_record(found))
    if plot is not None:
        write_figure(plot, found.plot())
    show(Table(title, ["parameter", "value", "95 % from", "to"], rows(found), notes), arguments)
    if not found.converged:
        where = f"{arguments.files.names()} hold" if result or plot else "the table shows"
        raise RuntimeError(f"The fit did not converge, and {where} where it stopped: start elsewhere.")


def rows(found: inference.Fit) -> list[list]:
    """Each free parameter with its standard error and interval."""
    estimates = zip(found.names, found.values, found.stderr, found.interval(), strict=True)
    return [
        [name, "0 (at its bound)" if name in found.at_bound else Value(float(v), float(e)), float(low), float(high)]
        for name, v, e, (low, high) in estimates
    ]


def read_data(path: Path) -> tuple[Any, dict[str, Any], Model | None]:
    """The data for `fit` (kernels or an Estimate), the settings of its experiment, and the model if the file holds
    it."""
    suffix = path.suffix.lower()
    path.stat()  # raises for a file that is not there, and names it
    if suffix == ".npz":
        return *inference.read_kernels(path), None
    if suffix != ".nc":
        raise ValueError(
            f"{path} is no file of kernels: `fit` reads .nc files of `kernel-eft sample`, and .npz files of "
            "numpy.savez with arrays G, K0, layers, width, eps."
        )
    result = storage.load(path)
    if not isinstance(result, Estimate):
        raise ValueError(
            f"{path} holds a theory, and `fit` wants sampled networks: give a file of `kernel-eft sample`."
        )
    layers = result.layers.tolist()
    if layers[0] != 0 or layers[-1] == 0:
        raise ValueError(
            f"{path} has layers {layers}, and `fit` wants layer 0 for the input kernel and later ones: sample them "
            "again."
        )
    settings = {"K0": result.K0[0], "layers": layers, "width": result.width, "eps": result.eps}
    return result, settings, result.model


def starting_model(arguments: argparse.Namespace, own: Model | None) -> Model:
    """The model from which the search starts: that of the command line; options that are left out take the values in
    the file."""
    if own is None and arguments.activation is None and arguments.block is None:
        raise ValueError(f"{arguments.data} does not say which activation its networks have: give `--activation`.")
    return make_model(arguments, own)


def check_model(arguments: argparse.Namespace, start: inference.Experiment, own: inference.Experiment) -> None:
    """Check that the command line and the file agree on all parameters that are not estimated."""
    if jax.tree.structure(start.model) != jax.tree.structure(own.model):
        raise ValueError(
            f"{arguments.data} was sampled with {describe_model(own.model)}, but the command line says "
            f"{describe_model(start.model)}: leave the activation and the block to the file."
        )
    held = tuple(name for name in inference.parameter_names(own) if name not in arguments.free)
    for name, here, there in zip(held, get_parameters(start, held), get_parameters(own, held), strict=True):
        if not np.isclose(here, there, rtol=1e-6, atol=0):
            raise ValueError(
                f"{arguments.data} was sampled with {name} = {there:.6g}, but the command line says {here:.6g}: leave "
                "it to the file, or add it to `--free`."
            )
