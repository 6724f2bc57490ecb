"""What may be said of a parameter, declared with the field that holds it: fits, errors and sentences follow from that.

A field without a declaration holds a parameter of any real value, whose unit is one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

KEY = "parameter"


class Parameter(NamedTuple):
    """Which values a parameter can have, and what a change of order one of it is.

    A `positive` parameter is greater than zero, moves in its logarithm, and its value is its scale. `least` is a bound
    that can be reached. The scale of one that is not positive is its value, or `unit` where that is larger: a function
    of the module that holds the parameter and of the packed kernel that this module reads.
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
