"""Objects of the library from the texts of options: activations, blocks, input kernels, closures; and a model as
text."""

import argparse
import difflib
import inspect
import re
from dataclasses import fields
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray

from .. import activations, closures
from ..activations import Activation
from ..branch import Part
from ..kernel_maps import GLU, Dense, RMSNorm
from ..model import Model
from .blocks import Layer, parse_block, parse_layer
from .kernel_file import read_input_kernel
from .options import CLOSURE_NAMES

LEAF_OF_OPTION = {"C_W": lambda m: m.branch[-1].C_W, "C_b": lambda m: m.branch[-1].C_b, "decay": lambda m: m.decay}
ALIASES = {"swish": "silu", "identity": "linear"}
K1_EFT = (
    "This K1 is K1_EFT of GOnly, which is not K1 of this block: 2.3 times as large for tanh at the paper's settings, "
    "and zero for one input and ReLU, where that of networks is not. For K1 itself take HermiteTower."
)
CLOSURE_OF = {name: getattr(closures, name) for name in CLOSURE_NAMES}


def option_name(cls: type) -> str:
    """The name of a class at the command line: LeakyReLU as leaky-relu."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower().replace("-lu", "lu")


def activation_classes() -> dict[str, type[Activation]]:
    """The activations that numbers alone describe, by their names at the command line."""
    public = (value for name, value in vars(activations).items() if not name.startswith("_"))
    classes = [value for value in public if inspect.isclass(value) and issubclass(value, Activation)]
    return {option_name(cls): cls for cls in classes if not inspect.isabstract(cls) and _by_numbers(cls)}


def _by_numbers(cls):
    return all(inspect.isclass(f.type) and issubclass(f.type, AbstractArray) for f in fields(cls))


def make_activation(layer: Layer, others: tuple[str, ...] = ()) -> Activation:
    """The activation of a text such as leaky-relu:slope=0.1."""
    known = activation_classes()
    plain = {name.replace("-", ""): name for name in known}
    asked = re.sub(r"[-_ ]", "", layer.name.lower())
    name = plain.get(ALIASES.get(asked, asked))
    if name is None:
        close = difflib.get_close_matches(asked, [*plain, *ALIASES], 1)
        hint = f" Did you mean {plain.get(close[0], close[0])}?" if close else ""
        kind = "layer" if others else "activation"
        raise ValueError(f"Unknown {kind} {layer.name!r}.{hint} Known: {', '.join(sorted([*known, *others]))}.")
    parameters: dict[str, Any] = {field.name: field.type for field in fields(known[name])}
    if layer.plain and layer.plain[0] in parameters:
        raise ValueError(
            f"Parameter {layer.plain[0]} in {layer.text!r} lacks its value: write {name}:{layer.plain[0]}=NUMBER."
        )
    wrong = [*layer.plain, *(key for key in layer.parameters if key not in parameters)]
    if wrong:
        has = f"has the parameter {', '.join(parameters)}" if parameters else "has no parameters"
        raise ValueError(f"Activation {name} {has}, but {layer.text!r} gives {wrong[0]!r}.")
    for key, numbers in layer.parameters.items():
        if len(numbers) > 1 and parameters[key].dim_str == "":
            raise ValueError(f"Parameter {key} of {name} is one number, but {layer.text!r} gives {len(numbers)}.")
    several = {key: parameters[key].dim_str != "" for key in layer.parameters}
    values = {key: numbers if several[key] else numbers[0] for key, numbers in layer.parameters.items()}
    try:
        return known[name](**values)
    except TypeError:
        raise ValueError(
            f"Activation {name} needs {', '.join(parameters)}: {name}:{next(iter(parameters))}=NUMBER."
        ) from None


def make_model(arguments: argparse.Namespace, own: Model | None = None) -> Model:
    """The model of --block, or of --activation, --C_W and --C_b. Options that are left out take the values of `own`, or
    else of the paper."""
    model = Model(activations.Tanh(), 2.0) if own is None else own
    if arguments.block is not None:
        model = Model(make_parts(arguments.block), decay=model.decay)
    elif arguments.activation is not None:
        activation = make_activation(parse_layer(arguments.activation))
        model = Model(activation, model.C_W, model.C_b, decay=model.decay)
    for name, place in LEAF_OF_OPTION.items():
        value = getattr(arguments, name)
        if value is not None:
            model = eqx.tree_at(place, model, jnp.asarray(value, float))
    return model


def make_parts(text: str) -> list[Part]:
    """The parts of a block. A layernorm is an RMSNorm where what it reads has mean zero: not behind an activation."""
    layers = parse_block(text)
    parts = [make_part(layer) for layer in layers]
    for layer, before in zip(layers[1:], parts, strict=False):
        if _plain_name(layer) == "layernorm" and isinstance(before, Activation):
            raise ValueError(
                f"The layernorm behind {before!r} removes the mean of its features over neurons, which is no map of "
                "kernels that this package has: write rmsnorm, which keeps the mean and is another network unless the "
                "activation is odd."
            )
    return parts


def _plain_name(layer):
    return re.sub(r"[-_ ]", "", layer.name.lower())


def make_part(layer: Layer) -> Part:
    """One part of a block: dense:C_W:ratio=R:C_b=B, rmsnorm, glu:ACTIVATION, or an activation."""
    name = _plain_name(layer)
    if name == "dense":
        return _dense(layer)
    if name in ("rmsnorm", "layernorm"):  # the same at order 1/n, but for `make_parts`
        if layer.plain or layer.parameters:
            raise ValueError(
                f"A norm has no parameters, but {layer.text!r} gives some: gains belong to the dense behind it."
            )
        return RMSNorm()
    if name == "glu":
        if not layer.plain:
            raise ValueError(f"A GLU needs its activation, as in glu:silu, but is {layer.text!r}.")
        return GLU(make_activation(layer._replace(name=layer.plain[0], plain=layer.plain[1:])))
    return make_activation(layer, others=("dense", "rmsnorm", "glu"))


def _dense(layer):
    given = [*layer.parameters.items(), *(("C_W", [text]) for text in layer.plain)]
    try:
        numbers = {name: float(value) for name, (value,) in given}
    except ValueError:  # a text, or several numbers
        numbers = {}
    if len(numbers) < len(given) or "C_W" not in numbers or not numbers.keys() <= {"C_W", "C_b", "ratio"}:
        raise ValueError(
            f"A matrix is dense:C_W, with :ratio=R and :C_b=B where they are not 1 and 0, but one is {layer.text!r}."
        )
    return Dense(**numbers)


def make_kernel(arguments: argparse.Namespace) -> np.ndarray:
    """The input kernel, from a file or of equal entries."""
    if arguments.K0 is not None:
        return read_input_kernel(arguments.K0)
    inputs, diagonal, off = arguments.inputs or 2, arguments.diagonal or 2.0, arguments.off_diagonal
    least = -diagonal / (inputs - 1) if inputs > 1 else -np.inf
    if off is not None and inputs > 1 and not least <= off <= diagonal:
        raise ValueError(
            f"Argument `--off-diagonal` must lie between {least:.6g} and --diagonal, {diagonal:.6g}, for {inputs} "
            f"inputs, but is {off:.6g}: other values are no covariances."
        )
    return np.where(np.eye(inputs, dtype=bool), diagonal, 0.6 if off is None else off)


def make_closure(arguments: argparse.Namespace) -> closures.Closure:
    """The closure of --closure and --degree."""
    options = [] if arguments.degree is None else [arguments.degree]
    return CLOSURE_OF[arguments.closure](*options)


def describe_model(model: Model) -> str:
    """A model as it would be written at the command line."""
    if model.one_matrix:
        text = f"{_text(model.activation)}, C_W = {float(model.C_W):.6g}, C_b = {float(model.C_b):.6g}"
    else:
        text = ",".join(map(_text, model.branch))
    return text if model.decay == 0 else f"{text}, decay = {float(model.decay):.6g}"


def describe_closure(closure: closures.Closure | None) -> str:
    """A closure with its degree; a file may hold one that this package does not know."""
    name = next((name for name, cls in CLOSURE_OF.items() if type(closure) is cls), None)
    if closure is None or name is None:
        return "closure not known"
    settings = ", ".join(f"{f.name} {getattr(closure, f.name)}" for f in fields(closure))
    return name + (f" of {settings}" if settings else "")


def remarks(model: Model | None, closure: closures.Closure | None) -> list[str]:
    """The note on K1 of GOnly for a block that begins with an activation."""
    if model is None or not isinstance(closure, closures.GOnly) or isinstance(model.read, activations.Linear):
        return []
    return [K1_EFT]


def _text(part: eqx.Module) -> str:
    if isinstance(part, Dense):
        more = f":ratio={part.ratio:.6g}" * (part.ratio != 1) + f":C_b={float(part.C_b):.6g}" * bool(part.C_b != 0)
        return f"dense:{float(part.C_W):.6g}{more}"
    if isinstance(part, GLU):
        return f"glu:{_text(part.activation)}"
    if isinstance(part, RMSNorm):
        return "rmsnorm"
    values = {f.name: np.asarray(getattr(part, f.name)).ravel() for f in fields(part)}
    parameters = [f":{name}={','.join(f'{v:.6g}' for v in numbers)}" for name, numbers in values.items()]
    return option_name(type(part)) + "".join(parameters)
