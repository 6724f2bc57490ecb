"""The result of `estimate`: the quantities and their errors, the sums that they follow from, and what made them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int, PRNGKeyArray, UInt32

from ..depths import times_of_layers
from ..model import Model
from ..pairs import input_count, unpack
from ..showing import Shown, rounded, shown
from ..storage import MEANING, Result, axes, dataset, labelled, read_origin, write_origin
from .observables import OBSERVABLES, InfiniteWidth, Quantities, estimated, quantities, recorded
from .samplers import Sampler
from .statistics import Sums, interval, jackknife, least_V4_error

if TYPE_CHECKING:
    import xarray as xr

ESTIMATE_ORIGIN = ("model", "sampler", "key")


class Estimate(Shown, Result, Quantities):
    """The result of `estimate`: every quantity of `Quantities`, and its standard error under the same name in `stderr`.

    Arrays are float64 NumPy arrays over the saved depths. `stderr` is right on average: from 64 networks on, its square
    is within 4 % of the variance of G and of V4. But V4 and its error are small together, so that an interval of two
    standard errors holds the true value less often than in 95 % of runs; use `interval` for V4. V4_excess and its error
    are small together too. It may be negative, so there is no better interval for it: at width 16 that of two errors
    holds in 93 % of runs of 2,048 networks and in 95 % of 16,384.

    Attributes:
        layers: The saved layers.
        ts: Their depth times, the sum of eps^2 over the layers before.
        K0: The kernel at infinite width, at these layers.
        stderr: The standard error of each quantity.
        networks: How many networks were sampled.
        width: Neurons of the stream, n.
        sums: Sums over groups of networks, from which every quantity and error follows.
        limit: K0 and E_K0[s s] over pairs a <= b.
        eps: The step of a layer, one number or one for each layer.
        control: Whether control variates were used.
        model: The block; None if a file was loaded that cannot hold a function of your own.
        sampler: How outputs of matrices were drawn.
    """

    layers: Int[np.ndarray, " T"]
    ts: Float[np.ndarray, " T"]
    K0: Float[np.ndarray, "T N N"]
    stderr: Quantities
    networks: int
    width: int
    sums: Sums
    limit: InfiniteWidth
    eps: Float[np.ndarray, "*layers"]
    control: bool
    model: Model | None = None
    sampler: Sampler | None = None
    key_data: UInt32[np.ndarray, " words"] | None = None
    key_kind: str = eqx.field(static=True, default="")

    def __repr__(self) -> str:
        what = f"Estimate of {self.networks} networks of width {self.width}, {self.sampler!r}, for {self.model!r}"
        lines = [what, f"  layers {self.layers.tolist()}, eps {shown(self.eps)}"]
        for name, entry in (("G", "00"), ("V4", "00,00"), ("K1", "00")):
            value, error = (np.asarray(getattr(x, name))[-1].ravel()[0] for x in (self, self.stderr))
            lines.append(f"  {name}[{entry}] = {rounded(value, error)} at the last depth")
        return "\n".join(lines)

    @property
    def key(self) -> PRNGKeyArray | None:
        """The key of `jax.random` that the networks were drawn with."""
        return (
            None if self.key_data is None else jax.random.wrap_key_data(jnp.asarray(self.key_data), impl=self.key_kind)
        )

    @staticmethod
    def of(
        sums: Sums,
        limit: InfiniteWidth,
        width: int,
        layers: Int[np.ndarray, " T"],
        eps: Float[ArrayLike, "*layers"],
        control: bool,
        model: Model | None = None,
        sampler: Sampler | None = None,
        key: PRNGKeyArray | None = None,
    ) -> "Estimate":
        """The estimate from the sums of all groups."""
        value, stderr = jackknife(lambda total: quantities(total, limit, width, control), sums)
        eps = np.asarray(eps, np.float64)
        return Estimate(
            layers=layers,
            ts=times_of_layers(layers, eps),
            K0=unpack(limit.K0),
            **vars(value),
            stderr=stderr,
            networks=sums.total().networks,
            width=width,
            sums=sums,
            limit=limit,
            eps=eps,
            control=control,
            model=model,
            sampler=sampler,
            **_key_fields(key),
        )

    def jackknife(self, function: Callable[[Quantities], Any]) -> tuple[Any, Any]:
        """Value and standard error of any function of the quantities, correlations between them included.

        For the relative variance at the last depth:
        `est.jackknife(lambda q: q.V4[-1, 0, 0, 0, 0] / q.G[-1, 0, 0] ** 2)`. The function gives real numbers, or a tree
        of arrays of them; ValueError for complex ones.
        """
        if not callable(function):
            raise ValueError(
                "Argument `function` must be a function of the quantities, such as lambda q: q.K1, but is "
                f"{function!r:.200}."
            )
        return jackknife(lambda total: function(quantities(total, self.limit, self.width, self.control)), self.sums)

    def interval(self, name: str, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of confidence intervals of a quantity, of its shape.

        They are those of Student's t; for V4 they are symmetric in the logarithm of its variances, with at least the
        error of Wishart matrices. Those of G and K1 hold from 64 networks on, at every width, and so do those of V4
        where the kernel varies little from seed to seed. (Two standard errors of V4 hold less often: in 88 % of runs of
        64 networks of width 8, in 94 % from some 500 networks on.) Where the kernel varies much its distribution has a
        long tail, which few networks do not show, and fourth moments need thousands. Measured in linear networks of
        width 16 whose kernel varies by 70 %: intervals of 95 % hold V4 in 86 % of runs of 64 networks, in 91 % of 512
        and in 94 % of 4,096; they hold V4_excess in 77 %, 86 % and 93 %, and two errors of `kurtosis` in 86 %, 87 % and
        94 %.
        """
        if name not in estimated(self.control):
            raise ValueError(f"Argument `name` must be one of {', '.join(estimated(self.control))}, but is {name!r}.")
        value, error = getattr(self, name), getattr(self.stderr, name)
        if name == "V4":
            error = np.maximum(error, least_V4_error(value, self.networks, self.width))
        free = sum(group.networks > 0 for group in self.sums.groups) - 1
        return interval(value, error, free, level, logarithm=name == "V4")

    def to_xarray(self) -> "xr.Dataset":
        """All quantities and errors over t and the inputs a, b, c, d, with the sums over groups of networks and what
        made them."""
        limit, (networks, first, second) = self.limit, self.sums.stacked()
        upper = np.triu_indices(second.shape[-1])
        meaning = MEANING | {name: entry.meaning for name, entry in OBSERVABLES.items()}
        variables = labelled({name: getattr(self, name) for name in ("K0", *OBSERVABLES)}, meaning)
        variables |= labelled(vars(self.stderr), meaning, "_stderr", "standard error of ")
        variables |= {
            name: (dimensions.split(), value, {"long_name": meaning})
            for name, dimensions, value, meaning in (
                ("layer", "t", self.layers, "layer"),
                ("eps", "step" if self.eps.ndim else "", self.eps, "step of a layer"),
                ("limit_K0", "t pair", limit.K0, "K0 over pairs a <= b"),
                ("limit_S", "t pair", limit.S, "E_K0[s s] over pairs a <= b"),
                ("sum_networks", "group", networks, "networks of a group"),
                (
                    "sum_first",
                    "group t x",
                    first,
                    f"sum of x = {_names(self.control)} over the networks of a group",
                ),
                (
                    "sum_second",
                    "group t xx",
                    second[..., *upper],
                    "sum of x x^T of the first entries, upper triangle",
                ),
            )
        }
        attributes = {"networks": self.networks, "width": self.width, "parts": self.sums.parts}
        attributes |= {"control": str(self.control), "averages": _names(self.control)}
        attributes |= write_origin(self, ESTIMATE_ORIGIN)
        return dataset("Estimate", self.ts, self.K0.shape[-1], variables, attributes)

    @classmethod
    def from_xarray(cls, data: "xr.Dataset") -> "Estimate":
        """The estimate that `to_xarray` gave."""
        control = data.attrs["control"] == "True"
        if data.attrs["averages"] != _names(control):
            raise ValueError("Another version of this package, with other averages, made it: make it again.")

        def read(suffix="") -> dict[str, Any]:
            return {
                name: axes(data, name + suffix, f"t {entry.axes}") if entry.formula(control) else None
                for name, entry in OBSERVABLES.items()
            }

        made = read_origin(data, ESTIMATE_ORIGIN)
        packed = axes(data, "sum_second", "group t xx")
        size = input_count(packed.shape[-1])
        second, (i, j) = np.empty((*packed.shape[:-1], size, size)), np.triu_indices(size)
        second[..., i, j] = second[..., j, i] = packed
        networks, first = axes(data, "sum_networks", "group"), axes(data, "sum_first", "group t x")
        return cls(
            layers=axes(data, "layer", "t"),
            ts=axes(data, "t", "t"),
            K0=axes(data, "K0", "t a b"),
            **read(),
            stderr=Quantities(**read("_stderr")),
            networks=int(data.attrs["networks"]),
            width=int(data.attrs["width"]),
            sums=Sums.of(networks, first, second, int(data.attrs["parts"])),
            limit=InfiniteWidth(axes(data, "limit_K0", "t pair"), axes(data, "limit_S", "t pair")),
            eps=axes(data, "eps", " ".join(map(str, data["eps"].dims))),
            control=control,
            model=made["model"],
            sampler=made["sampler"],
            **_key_fields(made["key"]),
        )


def _names(control):
    """The names of what is averaged, in the order of the sums."""
    return ", ".join(average.name for average in recorded(control)[0])


def _key_fields(key):
    """A key as plain numbers, which every function of trees accepts."""
    if key is None:
        return {}
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(jnp.asarray(key))
    return {"key_data": np.asarray(jax.random.key_data(key)), "key_kind": str(jax.random.key_impl(key))}
