"""The type checker of the tests, for jaxtyping's import hook: beartype, to which an int is a float, as to every other
checker."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

# What the package answers with a sentence of its own when it is called wrongly, and which takes lists and integers as
# well.
DOORS = {
    "Dense.__init__",
    "GLU.__init__",
    "Experiment.__init__",
    "variance_leaf",
    "expect",
    "sensitivity",
    "observe",
    "Checkpoint.__init__",
}

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typechecked(function: Callable) -> Callable:
    """The function with its annotations checked; functions that check their arguments themselves are left as they
    are."""
    return function if function.__qualname__ in DOORS else _checked(function)
