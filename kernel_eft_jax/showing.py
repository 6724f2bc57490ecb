"""Objects in one line, with their numbers: `print(model)` shows what the model is; results in a table and a figure."""

import html
import importlib
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from .checks import is_concrete

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES_MODULE = f"{__name__.split('.')[0]}.figures"  # a higher floor, looked up by name when a figure is asked for


class Shown(eqx.Module):
    """A result that shows itself: in a few lines of text, as a table in a notebook, as a figure."""

    def plot(self, **options: Any) -> "Figure":
        """The figure of this result, by the function for its class in `kernel_eft_jax.figures`, which takes the
        options. Loads Matplotlib."""
        return importlib.import_module(FIGURES_MODULE).plot(self, **options)

    def _repr_html_(self) -> str:
        """The lines of `repr` as a table, cut at " = "."""
        rows = []
        for line in map(html.escape, repr(self).split("\n")):
            name, equals, value = line.strip().partition(" = ")
            cells = f"<td>{name}</td><td>{value}</td>" if equals else f'<td colspan="2"><pre>{line}</pre></td>'
            rows.append(f"<tr>{cells}</tr>")
        return f"<table>{''.join(rows)}</table>"


def rounded(value: float, error: float | None = None) -> str:
    """1.234 ± 0.005: both to the first digit of the error, or the second where the first is a one.

    An error that six digits do not show is left out, and one that is not known or has no bound is said.
    """
    if error is not None and math.isfinite(value) and not math.isfinite(error):
        return f"{value:.6g} ± {'?' if math.isnan(error) else 'inf'}"
    if error is None or not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.6g}"
    size = math.floor(math.log10(max(abs(value), error)))
    if not -4 <= size < 7:
        shown = rounded(value / 10.0**size, error / 10.0**size)
        return f"({shown})e{size:+03d}" if "±" in shown else f"{value:.6g}"
    place = math.floor(math.log10(error))
    places = -place + (error < 2 * 10.0**place)
    if places > 5 - size:
        return f"{value:.6g}"
    decimals = max(places, 0)
    return f"{round(value, places):.{decimals}f} ± {round(error, places):.{decimals}f}"


def shown(value: Any) -> str:
    """A value in short: a module by its fields, a function by its name, an array by its numbers, or by its dtype and
    shape if the numbers are many or traced."""
    if isinstance(value, eqx.Module) and type(value).__repr__ is not eqx.Module.__repr__:
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(shown(part) for part in value)}]"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if not is_concrete(value) or value.size > 12 or value.dtype.kind not in "biuf":
            return f"{value.dtype}{list(value.shape)}"
        return f"{float(value):.6g}" if value.ndim == 0 else str(np.asarray(value).round(6).tolist())
    if callable(value) and not isinstance(value, eqx.Module):
        return getattr(value, "__name__", repr(value))
    return repr(value)


def shown_fields(module: eqx.Module) -> str:
    """A module as the call that makes it."""
    parts = [f"{field.name}={shown(getattr(module, field.name))}" for field in fields(module)]
    return f"{type(module).__name__}({', '.join(parts)})"
