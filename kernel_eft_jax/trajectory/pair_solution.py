"""What `solve_pairs` returns: K0, K1 and variances of every pair of inputs, how accurate they are, and what made
them."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..closures import Closure
from ..model import Model
from ..showing import shown
from ..storage import Result, axes, dataset, labelled, read_origin, write_origin
from . import rounding
from .solution import SOLUTION_ORIGIN

if TYPE_CHECKING:
    import xarray as xr

MATRICES = ("K0", "K1", "variance", "K1_truncation", "variance_truncation")
CHOSEN = ("V4", "V4_truncation", "quadruples")


class PairSolution(Result):
    """K0, K1 and V4_ab,ab of every pair of inputs ab at the saved depths, E[G] = K0 + K1 / n and Var(G_ab) = variance /
    n.

    `V4` holds V4_ab,cd of the chosen `quadruples` (a, b, c, d). The truncations estimate the errors that a truncated
    expansion leaves, and are None for closures that expand nothing; `expectation_error` is the largest estimated
    relative error of the Gaussian expectations. `model`, `closure`, `layers` and `eps` say what made the numbers; the
    last two are None in the continuum.
    """

    ts: Float[Array, " T"]
    K0: Float[Array, "T N N"]
    K1: Float[Array, "T N N"]
    variance: Float[Array, "T N N"]
    K1_truncation: Float[Array, "T N N"] | None
    variance_truncation: Float[Array, "T N N"] | None
    V4: Float[Array, "T quadruples"]
    V4_truncation: Float[Array, "T quadruples"] | None
    quadruples: Int[Array, "quadruples 4"]
    expectation_error: Float[Array, ""]
    model: Model
    closure: Closure
    eps: Float[Array, "..."] | None
    layers: tuple[int, ...] | None = eqx.field(static=True)

    def __repr__(self) -> str:
        depth = f"layers {list(self.layers)}, eps {shown(self.eps)}" if self.layers else f"ts {shown(self.ts)}"
        lines = [f"PairSolution of {self.closure!r} for {self.model!r}", f"  {self.K0.shape[-1]} inputs, {depth}"]
        for name in ("K0", "variance", "K1"):
            values, error = getattr(self, name), getattr(self, f"{name}_truncation", None)
            if name == "K1":
                values, error = (
                    x if x is None else rounding.significant(x, self.K0, self.variance) for x in (values, error)
                )
            values, error = np.asarray(values)[-1], 0 if error is None else np.max(np.asarray(error)[-1])
            bound = f" (truncation up to {error:.1g})" if error != 0 else ""
            lines.append(f"  {name} from {values.min():.6g} to {values.max():.6g} at the last depth{bound}")
        return "\n".join(lines)

    def to_xarray(self) -> "xr.Dataset":
        """The entries over t and the inputs a, b; those of the quadruples over t and quadruple."""
        present: dict[str, Any] = {name: getattr(self, name) for name in MATRICES if getattr(self, name) is not None}
        variables = labelled(present)
        for name in CHOSEN:
            value = getattr(self, name)
            if value is not None:
                dimensions = ("quadruple", "inputs") if name == "quadruples" else ("t", "quadruple")
                variables[name] = (dimensions, np.asarray(value), {"long_name": "of chosen quadruples of inputs"})
        attributes = write_origin(self, SOLUTION_ORIGIN) | {"expectation_error": float(self.expectation_error)}
        return dataset(type(self).__name__, self.ts, self.K0.shape[-1], variables, attributes)

    @classmethod
    def from_xarray(cls, data: "xr.Dataset") -> "PairSolution":
        """The solution that `to_xarray` gave."""
        dimensions = (
            dict.fromkeys(MATRICES, "t a b") | dict.fromkeys(CHOSEN, "t quadruple") | {"quadruples": "quadruple inputs"}
        )
        read = {n: jnp.asarray(axes(data, n, d)) if n in data else None for n, d in dimensions.items()}
        error = jnp.asarray(data.attrs["expectation_error"])
        ts = jnp.asarray(axes(data, "t", "t"))
        return cls(ts=ts, **read, expectation_error=error, **read_origin(data, SOLUTION_ORIGIN))
