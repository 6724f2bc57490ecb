"""Models and other values as text that can be read, edited and rebuilt, and that never runs code.

    {"Model": {"activation": {"Sin": {}}, "C_W": {"float64": 1.5}, "C_b": {"float64": 0.1}}}

A module is written as its public name in this package with its fields, an array as its dtype with its numbers at full
precision: so a new class needs no entry anywhere. A function cannot be rebuilt from text. Its name is written, and
whatever holds the function is rebuilt as None.
"""

import importlib
import json
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import xarray as xr

FUNCTION = "function"


def describe(value: Any) -> str:
    """A value as text."""
    return json.dumps(_describe(value))


def rebuild(text: str) -> Any:
    """The value that `describe` wrote. Raises ValueError, with a sentence, for functions and for classes that this
    package does not have."""
    return _rebuild(json.loads(text))


def read_origin(data: "xr.Dataset", names: Iterable[str]) -> dict[str, Any]:
    """What made a result, from its attributes; None for what no file can hold."""
    found = {}
    for name in names:
        value = data.attrs.get(name)
        try:
            found[name] = rebuild(value) if isinstance(value, str) else value
        except ValueError:
            found[name] = None
    return found


def write_origin(result: Any, names: Iterable[str]) -> dict[str, str | int | float]:
    """What made a result as attributes, which `read_origin` reads; None is left out."""
    made = {name: getattr(result, name) for name in names}
    return {name: attribute(value) for name, value in made.items() if value is not None}


def attribute(value: Any) -> str | int | float:
    """A value as an attribute of a file: numbers and text as they are, modules and keys in a form that can be rebuilt,
    others as their text."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, eqx.Module | tuple) or eqx.is_array(value):
        return describe(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return str(value)
    return value if not isinstance(value, int) or -(2**63) <= value < 2**63 else str(value)


def _describe(value: Any) -> Any:
    if _is_key(value):
        return {"key": {str(jax.random.key_impl(value)): np.asarray(jax.random.key_data(value)).tolist()}}
    if isinstance(value, eqx.Module) and _public(type(value).__name__) is type(value):
        return {type(value).__name__: {f.name: _describe(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, jax.Array | np.ndarray):
        return {str(value.dtype): np.asarray(value).tolist()}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_describe(x) for x in value]}
    if isinstance(value, np.generic):
        value = value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else {FUNCTION: repr(value)}


def _rebuild(value):
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == FUNCTION:
        raise ValueError(
            f"The file holds the name of a function, {content}, and not the function: build the model again and pass "
            "it."
        )
    if name == "key":
        ((implementation, numbers),) = content.items()
        return jax.random.wrap_key_data(jnp.asarray(numbers, jnp.uint32), impl=implementation)
    if name in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[name](map(_rebuild, content))
    kind = _public(name)
    if kind is not None:
        module = object.__new__(kind)  # not by its constructor, which may convert, or take other arguments
        for field in fields(kind):
            object.__setattr__(module, field.name, _rebuild(content[field.name]))
        return module
    try:
        dtype = jnp.dtype(name)
    except TypeError as error:
        raise ValueError(f"The file holds a {name}, which this version of the package does not have.") from error
    return jnp.asarray(np.asarray(content, dtype))


def _public(name):
    """The module class of this name among the package's public names, or None."""
    kind = getattr(importlib.import_module(__name__.split(".")[0]), name, None)
    return kind if isinstance(kind, type) and issubclass(kind, eqx.Module) else None


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
