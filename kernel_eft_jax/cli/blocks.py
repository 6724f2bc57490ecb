"""The text of a block, `rmsnorm,dense:1:ratio=4,gelu,dense:2:C_b=0.1`, taken apart. Loads no JAX.

Layers stand in the order in which data flow, separated by commas; colons separate the parts of one layer. A comma
before a number belongs to a list, as in `polynomial:coefficients=0,1,-0.3`.
"""

import re
from typing import NamedTuple


class Layer(NamedTuple):
    """One layer as it was written: its name, its values without a name (`plain`), its parameters, and the whole
    `text`."""

    name: str
    plain: list[str]
    parameters: dict[str, list[float]]
    text: str


def parse_block(text: str) -> list[Layer]:
    """The layers of a block."""
    parts = [part.strip() for part in re.split(r",(?=\s*[A-Za-z])|,\s*$", text)]
    if not all(parts):
        raise ValueError(f"A block is a list of layers such as rmsnorm,dense:1:ratio=4,gelu,dense:2, but is {text!r}.")
    return [parse_layer(part) for part in parts]


def parse_layer(text: str) -> Layer:
    """One layer, `name:value:parameter=number,number`."""
    name, *rest = (part.strip() for part in text.split(":"))
    plain = [part for part in rest if "=" not in part]
    parameters = {}
    for part in rest:
        key, sign, numbers = part.partition("=")
        if not sign:
            continue
        if key.strip() in parameters:
            raise ValueError(f"{text!r} gives {key.strip()} twice.")
        try:
            parameters[key.strip()] = [float(number) for number in numbers.split(",")]
        except ValueError:
            raise ValueError(f"{part!r} in {text!r} must read PARAMETER=NUMBER, such as slope=0.1.") from None
    return Layer(name, plain, parameters, text)
