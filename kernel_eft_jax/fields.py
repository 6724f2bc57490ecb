"""What a field declares of the parameter that it holds: fits, errors and messages follow from the declaration.

A field without a declaration holds a parameter of any real value, whose unit is one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

KEY = "parameter"


class Parameter(NamedTuple):
    """The values that a parameter can have, and its scale: the size of a change that matters.

    A `positive` parameter is greater than zero; its scale is its value, and fits search in its logarithm. Any other
    parameter is `least` or more, the bound itself included; its scale is the size of its value, or `unit` where that is
    larger. `unit` is a function of the module that holds the parameter and of the packed kernel that this module reads.
    """

    positive: bool = False
    least: float = -np.inf
    unit: Callable[[Any, Any], Any] = lambda module, k: 1.0


def parameter(**said: Any) -> dict[str, Parameter]:
    """The metadata of a field that holds a parameter: `eqx.field(metadata=parameter(positive=True))`.

    Takes what `Parameter` holds: `positive`, `least` and `unit`.
    """
    return {KEY: Parameter(**said)}


def declared(field: Any) -> Parameter:
    """What a field says of the parameter that it holds."""
    return field.metadata.get(KEY, Parameter())
