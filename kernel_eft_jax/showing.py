"""Objects in one line, with their numbers: `print(model)` shows what the model is."""

from dataclasses import fields
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .checks import is_concrete


def shown(value: Any) -> str:
    """A value in short: modules by their fields, arrays by their numbers, or by their shape where those are many or traced."""
    if isinstance(value, eqx.Module) and type(value).__repr__ is not eqx.Module.__repr__:
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(shown(part) for part in value)}]"
    if isinstance(value, jax.Array | np.ndarray):
        if not is_concrete(value) or value.size > 12 or value.dtype.kind not in "biuf":
            return f"{value.dtype}{list(value.shape)}"
        return f"{float(value):.6g}" if value.ndim == 0 else str(np.asarray(value).round(6).tolist())
    return repr(value)


def shown_fields(module: eqx.Module) -> str:
    """A module as the call that makes it."""
    parts = [f"{field.name}={shown(getattr(module, field.name))}" for field in fields(module)]
    return f"{type(module).__name__}({', '.join(parts)})"
