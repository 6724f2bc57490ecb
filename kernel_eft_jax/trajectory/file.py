"""A Solution as a labelled Dataset and back."""

from typing import TYPE_CHECKING, Any

import diffrax
import jax.numpy as jnp
import numpy as np

from ..closures import Moments
from ..pairs import pack, pack_covariance, unpack, unpack_covariance
from ..storage import attribute, axes, dataset, labelled, read_origin

if TYPE_CHECKING:
    import xarray as xr

OUTCOMES = (
    "successful",
    "max_steps_reached",
    "dt_min_reached",
    "max_steps_rejected",
    "nonlinear_divergence",
    "nonlinear_max_steps_reached",
    "nonfinite",
    "event_occurred",
    "internal_error",
)
SOLUTION_ORIGIN = ("model", "closure", "eps", "layers")  # the fields that say what made a result of a solve


def to_xarray(solution: Any) -> "xr.Dataset":
    """The moments and their truncation errors over t and the inputs a, b, c, d; what made them as attributes."""
    if solution.ts.ndim > 1:
        stack = " x ".join(map(str, solution.ts.shape[:-1]))
        raise ValueError(
            f"A stack of {stack} solutions has no Dataset: take one of them, `jax.tree.map(lambda x: x[0] if "
            "eqx.is_array(x) else x, stack)`."
        )
    variables = labelled(unpack_moments(solution.packed)._asdict())
    if solution.packed_truncation is not None:
        errors = unpack_moments(solution.packed_truncation)._asdict()
        variables |= labelled(errors, suffix="_truncation", prefix="estimated truncation error of ")
    attributes: dict[str, Any] = {f"stats_{name}": np.asarray(value)[()] for name, value in solution.stats.items()}
    attributes["result"] = next(name for name in OUTCOMES if solution.result == getattr(diffrax.RESULTS, name))
    made = {name: getattr(solution, name) for name in SOLUTION_ORIGIN}
    attributes |= {name: attribute(value) for name, value in made.items() if value is not None}
    inputs = unpack(solution.packed.K0).shape[-1]
    return dataset(type(solution).__name__, solution.ts, inputs, variables, attributes)


def from_xarray(cls: Any, data: "xr.Dataset") -> Any:
    """The Solution that `to_xarray` gave."""
    packed = {3: pack, 5: pack_covariance}

    def moments(suffix):
        present = [name for name in Moments._fields if name + suffix in data]
        full = {name: axes(data, name + suffix, "t a b c d" if name[0] == "V" else "t a b") for name in present}
        return Moments(**{name: jnp.asarray(packed[values.ndim](values)) for name, values in full.items()})

    return cls(
        ts=jnp.asarray(axes(data, "t", "t")),
        packed=moments(""),
        packed_truncation=moments("_truncation") if "V4_truncation" in data else None,
        stats={name[6:]: jnp.asarray(value) for name, value in data.attrs.items() if name.startswith("stats_")},
        result=getattr(diffrax.RESULTS, data.attrs["result"]),
        **read_origin(data, SOLUTION_ORIGIN),
    )


def unpack_moments(packed: Moments) -> Moments:
    """Packed moments as full arrays; None where the closure carries none."""
    full = {name: unpack_covariance if name[0] == "V" else unpack for name in Moments._fields}
    return packed._replace(**{name: full[name](x) for name, x in packed._asdict().items() if x is not None})
