"""`kernel-eft network`: how the stream of a network grows, before it is trained, into a figure and a file."""

import argparse
from typing import Any

import jax
import numpy as np

from ... import recipes
from ...depths import first_steps
from ...diagnostics import CoordinateCheck, coordinate_check
from ...diagnostics.validity import least_sufficient
from ...inference.files import read_kernels
from ..models import describe_model, make_kernel, make_model
from ..outputs import write_figure, write_json
from ..printing import Table, say_sampling, show


def run(arguments: argparse.Namespace) -> None:
    """The predicted network, compared with the user's own networks if there are any."""
    own, layers, settings = read_own(arguments.own or [])
    stack = make_stack(arguments, settings)
    key = jax.random.key(arguments.seed)
    choices = {"tolerance": arguments.tolerance, "networks": arguments.networks, "progress": not arguments.quiet}
    say_sampling(arguments)
    check = coordinate_check(**stack, layers=layers, own=own or None, key=key, **choices)
    name = f"{arguments.recipe}: " if arguments.recipe else ""
    title = {
        "model": name + describe_model(stack["model"]),
        "network": f"{stack['depth']} blocks, width {stack['width']}",
    }
    columns, *rows = check.table()
    table = Table(title, columns, rows, check.sentences())
    figure, beside = arguments.files
    if figure is not None:
        write_figure(figure, check.plot(title=", ".join(title.values())))
    if beside is not None:
        write_json(beside, title | record(check))
    show(table, arguments)


def make_stack(arguments: argparse.Namespace, settings: dict[str, Any]) -> recipes.Stack:
    """The network of a recipe or of the options. Width, depth, eps and K0 are those of the user's own networks; an
    option may give another width and depth."""
    width = arguments.width or settings.get("width", 512)
    depth = arguments.depth or (settings["layers"][-1] if settings else 24)
    if arguments.recipe is None:
        eps = settings.get("eps", 1.0) if arguments.eps is None else arguments.eps
        stack = recipes.Stack(model=make_model(arguments), K0=make_kernel(arguments), width=width, depth=depth, eps=eps)
    else:
        stack = getattr(recipes, arguments.recipe.replace("-", "_"))(width=width, depth=depth)
    given = [getattr(arguments, name) for name in ("K0", "inputs", "diagonal", "off_diagonal")]
    if any(value is not None for value in given):
        stack["K0"] = make_kernel(arguments)
    elif settings:
        stack["K0"] = settings["K0"]
    if settings:
        check_settings(arguments, stack, settings)
    return stack


def check_settings(arguments: argparse.Namespace, stack: recipes.Stack, settings: dict[str, Any]) -> None:
    """Check that the user's own networks have the steps and the input kernel of the prediction."""
    last = min(stack["depth"], settings["layers"][-1])
    own, here = (first_steps(x["eps"], last) for x in (settings, stack))
    wrong = np.flatnonzero(~np.isclose(own, here))
    if wrong.size:
        i = wrong[0]
        name = f"{arguments.recipe} of depth {stack['depth']} has" if arguments.recipe else "`--eps` says"
        remedy = "Give their block with --block instead." if arguments.recipe else "Leave `--eps` to the file."
        raise ValueError(
            f"Argument `--own`: the networks have eps = {own[i]:.6g} in block {i + 1}, but {name} {here[i]:.6g}. "
            f"{remedy}"
        )
    if np.shape(stack["K0"]) != np.shape(settings["K0"]) or not np.allclose(stack["K0"], settings["K0"], rtol=1e-6):
        raise ValueError(
            "Argument `--own`: the networks have another input kernel than the options say: leave out --K0, --inputs, "
            "--diagonal and --off-diagonal, which the file replaces."
        )


def read_own(files: list) -> tuple[dict[int, np.ndarray], list[int] | None, dict[str, Any]]:
    """Kernels by their width, the layers that they share, and the settings of the first file."""
    kernels: dict[int, np.ndarray] = {}
    first: dict[str, Any] = {}
    for file in files:
        G, settings = read_kernels(file)
        if not float(settings["width"]).is_integer():
            raise ValueError(
                f"Argument `--own`: width in {file} is {settings['width']:.6g}, which is not a whole number: save the "
                "number of neurons of the stream."
            )
        settings["width"] = int(settings["width"])
        first = first or settings
        for name in ("layers", "K0", "eps"):
            if not np.array_equal(settings[name], first[name]):
                raise ValueError(f"Argument `--own`: {file} has other {name} than {files[0]}: check them apart.")
        if settings["width"] in kernels:
            raise ValueError(f"Argument `--own`: two files hold networks of width {settings['width']}: join them.")
        kernels[settings["width"]] = G
    return kernels, (first["layers"] if first else None), first


def record(check: CoordinateCheck) -> dict[str, Any]:
    """The check as plain numbers and lists."""
    arrays = {name: getattr(check, name).tolist() for name in ("mean", "spread", "drift")}
    found = {q: least_sufficient(widths, check.tolerance) for q, widths in check.enough.items()}
    enough = {q: width and width.width for q, width in found.items()}
    return {"layers": list(check.layers), **arrays, "enough": enough, "sentences": check.sentences()}
