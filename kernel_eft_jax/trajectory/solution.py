"""What `solve` returns: the trajectory, how accurate the trajectory is, and what made it."""

from typing import TYPE_CHECKING, Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import is_concrete
from ..closures import Closure, Moments
from ..model import Model
from ..pairs import pack, pack_covariance, unpack, unpack_covariance
from ..showing import Shown, shown
from ..storage import Result, axes, dataset, labelled, read_origin, write_origin
from . import rounding

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


class Solution(Shown, Result):
    """K0, V4 and K1 at the saved depths: E[G] = K0 + K1 / n, Cov(G, G) = V4 / n, up to higher orders of 1/n.

    Symbols: [glossary](../glossary.md).

    Attributes:
        ts: The saved depth times.
        packed: The moments in pair space, entries a <= b only; the properties give full matrices.
        packed_truncation: Estimated errors of the moments, packed as they are; `truncation` gives them in full.
        stats: Counts of work, and `expectation_error`, the estimated relative error of the Gaussian expectations.
        result: Diffrax's code; that of a failed solve reads as a sentence.
        model: The block.
        closure: The theory, its degree chosen.
        eps: The step of a layer, one number or one for each; None in the continuum.
        layers: The saved layers; None in the continuum.
    """

    ts: Float[Array, " T"]
    packed: Moments
    packed_truncation: Moments | None
    stats: dict[str, Any]
    result: diffrax.RESULTS
    model: Model
    closure: Closure
    eps: Float[Array, "..."] | None
    layers: tuple[int, ...] | None = eqx.field(static=True)

    def __repr__(self) -> str:
        depth = f"layers {list(self.layers)}, eps {shown(self.eps)}" if self.layers else f"ts {shown(self.ts)}"
        lines = [f"Solution of {self.closure!r} for {self.model!r}", f"  {depth}"]
        if self.ts.ndim > 1:
            return "\n".join([*lines, f"  a stack of {' x '.join(map(str, self.ts.shape[:-1]))} solutions"])
        if is_concrete(self.ts):
            for name, entry in (("K0", "00"), ("V4", "00,00"), ("K1", "00")):
                value, error = (np.asarray(x)[-1].ravel()[0] for x in self.significant(name))
                bound = f" (truncation up to {error:.1g})" if error != 0 else ""
                lines.append(f"  {name}[{entry}] = {value:.6g} at the last depth{bound}")
            if self.packed_truncation is not None and self.K0.shape[-1] > 1:
                V4, K1 = (self.significant(name)[1].max() for name in ("V4", "K1"))
                known = f"  largest truncation of all entries and depths: V4 {V4:.1g}, K1 {K1:.1g}"
                lines += [known] if (V4, K1) != (0, 0) else []
        return "\n".join(lines)

    def significant(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """V4 or K1 in full, and its truncation error, with zero in place of what is rounding alone; K0 as it is."""
        whole = unpack_covariance if name == "V4" else unpack
        values, missing = getattr(self.packed, name), getattr(self.packed_truncation, name, None)
        values, errors = (whole(np.asarray(x)) for x in (values, np.zeros_like(values) if missing is None else missing))
        if name == "K0":
            return values, np.zeros_like(values)
        variance = np.einsum("tabab->tab", unpack_covariance(np.asarray(self.packed.V4)))
        return rounding.significant(values, self.K0, variance), rounding.significant(errors, self.K0, variance)

    @property
    def K0(self) -> Float[Array, "T N N"]:
        """Mean kernel at infinite width."""
        return unpack(self.packed.K0)

    @property
    def V4(self) -> Float[Array, "T N N N N"]:
        """Width times the covariance of the kernel, V4_ab,cd."""
        return unpack_covariance(self.packed.V4)

    @property
    def K1(self) -> Float[Array, "T N N"]:
        """Width times the finite-width correction of the mean kernel."""
        return unpack(self.packed.K1)

    @property
    def V_GS(self) -> Float[Array, "T N N N N"] | None:
        """Width times Cov(G_ab, S_cd), S the sigma-kernel; None for closures that do not carry it."""
        return None if self.packed.V_GS is None else unpack_covariance(self.packed.V_GS)

    @property
    def V_SS(self) -> Float[Array, "T N N N N"] | None:
        """Width times the covariance of the sigma-kernel; None for closures that do not carry it."""
        return None if self.packed.V_SS is None else unpack_covariance(self.packed.V_SS)

    @property
    def U1(self) -> Float[Array, "T N N"] | None:
        """Width times the finite-width correction of the mean sigma-kernel; None for closures that do not carry it."""
        return None if self.packed.U1 is None else unpack(self.packed.U1)

    @property
    def truncation(self) -> Moments | None:
        """Estimated errors that a truncated expansion leaves of K0, V4, K1 and so on, with the shapes of these; None
        for closures that expand nothing."""
        return None if self.packed_truncation is None else _unpack_moments(self.packed_truncation)

    def to_xarray(self) -> "xr.Dataset":
        """The moments and their truncation errors over t and the inputs a, b, c, d; what made them as attributes."""
        if self.ts.ndim > 1:
            stack = " x ".join(map(str, self.ts.shape[:-1]))
            raise ValueError(
                f"A stack of {stack} solutions has no Dataset: take one of them, `jax.tree.map(lambda x: x[0] if "
                "eqx.is_array(x) else x, stack)`."
            )
        variables = labelled(_unpack_moments(self.packed)._asdict())
        if self.truncation is not None:
            errors = self.truncation._asdict()
            variables |= labelled(errors, suffix="_truncation", prefix="estimated truncation error of ")
        attributes: dict[str, Any] = {f"stats_{name}": np.asarray(value)[()] for name, value in self.stats.items()}
        attributes["result"] = next(name for name in OUTCOMES if self.result == getattr(diffrax.RESULTS, name))
        attributes |= write_origin(self, SOLUTION_ORIGIN)
        return dataset(type(self).__name__, self.ts, self.K0.shape[-1], variables, attributes)

    @classmethod
    def from_xarray(cls, data: "xr.Dataset") -> "Solution":
        """The solution that `to_xarray` gave."""
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


def _unpack_moments(packed: Moments) -> Moments:
    """Packed moments as full arrays; None where the closure carries none."""
    full = {name: unpack_covariance if name[0] == "V" else unpack for name in Moments._fields}
    return packed._replace(**{name: full[name](x) for name, x in packed._asdict().items() if x is not None})
