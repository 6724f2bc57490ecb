r"""What `estimate` measures: each field of `Quantities` defines one quantity completely.

A field holds the shape, the meaning, the formula in means and covariances over networks, and the formula with control
variates where these help. The formulas determine what is averaged over networks, and of which averages second moments
are kept. Errors, files, targets and the command line follow from the fields. So a new quantity is one field, and one
`Average` if its formula needs a new average.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from ..pairs import input_count, triples, unpack, unpack_covariance
from ..storage import MEANING
from .statistics import Group


class Networks(NamedTuple):
    """A batch of networks at one depth: pre-activations, G, S, the fourth moment F, and `less`, which holds G, S and F
    minus their control variates, if there are any."""

    phi: Float[Array, "N n B"]
    G: Float[Array, "P B"]
    S: Float[Array, "P B"]
    F: Float[Array, "P B"]
    less: Any  # Differences, or None


class Average(NamedTuple):
    """Something averaged over networks: one number for each network and each pair of inputs."""

    name: str
    of: Callable[[Networks], Float[Array, "P B"]]


G = Average("G", lambda x: x.G)
S = Average("S", lambda x: x.S)
F = Average("F", lambda x: x.F)
D_G = Average("G - C_G", lambda x: x.less.G)
D_A = Average("G - C_G alone", lambda x: x.less.G_alone)
D_S = Average("S - C_S", lambda x: x.less.S)
R = Average("R", lambda x: x.less.R)
D_F = Average("F - C_F", lambda x: x.less.F)


class InfiniteWidth(NamedTuple):
    """K0 and E_K0[ss] at the saved depths, packed: the values at infinite width."""

    K0: Float[np.ndarray, "T P"]
    S: Float[np.ndarray, "T P"]


class Sampled(NamedTuple):
    """What a formula may use: means over networks, n times their covariances, the width n, and the values at infinite
    width; all packed."""

    total: Group
    limit: InfiniteWidth
    n: int
    control: bool

    def mean(self, x: Average) -> Float[np.ndarray, "T P"]:
        """E[x]."""
        return self.total.first[:, self._place(x)] / self.total.networks

    def covariance(self, x: Average, y: Average) -> Float[np.ndarray, "T P P"]:
        """n Cov(x, y), unbiased."""
        count, second = self.total.networks, self.total.second[:, self._place(x), self._place(y)]
        return self.n * (second - count * self.mean(x)[:, :, None] * self.mean(y)[:, None, :]) / (count - 1)

    def _place(self, x: Average) -> slice:
        return slice_of(x, self.limit.K0.shape[-1], self.control)


def excess(x: "Sampled | _Asked") -> Float[np.ndarray, "T P P"]:
    """n (Cov(G, G) - Cov(C, C)). For the variance of G_aa the copy C is that of a alone, else that of all inputs."""

    def less(D):
        return x.covariance(G, D) + x.covariance(D, G) - x.covariance(D, D)

    aa, bb, _ = triples(input_count(x.limit.K0.shape[-1])).T
    return np.where(np.diag(aa == bb), less(D_A), less(D_G))


Formula = Callable[[Sampled], Float[np.ndarray, "T P"] | Float[np.ndarray, "T P P"]]


class Observable(NamedTuple):
    """One quantity: its axes, its meaning, its formula, and its formula with control variates if that is another
    one."""

    axes: str
    meaning: str
    plain: Formula | None
    controlled: Formula | None

    def formula(self, control: bool) -> Any:
        """The formula of a run with or without control variates; None if there is none."""
        return self.controlled if control and self.controlled is not None else self.plain


def observable_field(
    axes: str, meaning: str, plain: Formula | None, controlled: Formula | None = None
) -> dict[str, Any]:
    """The metadata of a field of `Quantities`."""
    return {"observable": Observable(axes, meaning, plain, controlled)}


class Quantities(eqx.Module):
    """What an ensemble estimates at each saved depth, n the width; float64 NumPy arrays. Symbols:
    [glossary](../glossary.md).

    With control variates K1 and U1 are n E[R] and n E[S - C_S]: unbiased, and far less noisy than the differences that
    define them. kappa4 is the order 1/n of the distance of one neuron from a Gaussian: n (E[F] - E[G_aa] E[G_bb] - 2
    E[G_ab]^2) with F_ab the mean over neurons of phi_a^2 phi_b^2. Control variates remove most of its noise too, and
    the cancellation. `V4_excess` is V4 minus its value at infinite width, n (Cov(G, G) - Cov(C_G, C_G)): added to the
    exact infinite-width V4 of the same layers it gives V4 with far smaller error. Without control variates it is None.
    """

    G: Float[np.ndarray, "T N N"] = eqx.field(
        metadata=observable_field(
            "a b", "mean of the empirical kernel, (1/n) sum_i phi_i(a) phi_i(b)", lambda x: x.mean(G)
        )
    )
    S: Float[np.ndarray, "T N N"] = eqx.field(
        metadata=observable_field(
            "a b", "mean of the empirical sigma-kernel, (1/n) sum_i s(phi_i(a)) s(phi_i(b))", lambda x: x.mean(S)
        )
    )
    K1: Float[np.ndarray, "T N N"] = eqx.field(
        metadata=observable_field(
            "a b", MEANING["K1"], lambda x: x.n * (x.mean(G) - x.limit.K0), lambda x: x.n * x.mean(R)
        )
    )
    U1: Float[np.ndarray, "T N N"] = eqx.field(
        metadata=observable_field(
            "a b", MEANING["U1"], lambda x: x.n * (x.mean(S) - x.limit.S), lambda x: x.n * x.mean(D_S)
        )
    )
    V4: Float[np.ndarray, "T N N N N"] = eqx.field(
        metadata=observable_field("a b c d", MEANING["V4"], lambda x: x.covariance(G, G))
    )
    V_GS: Float[np.ndarray, "T N N N N"] = eqx.field(
        metadata=observable_field("a b c d", MEANING["V_GS"], lambda x: x.covariance(G, S))
    )
    V_SS: Float[np.ndarray, "T N N N N"] = eqx.field(
        metadata=observable_field("a b c d", MEANING["V_SS"], lambda x: x.covariance(S, S))
    )
    kappa4: Float[np.ndarray, "T N N"] = eqx.field(
        metadata=observable_field(
            "a b",
            "width times the fourth cumulant of one neuron: n (E[phi_a^2 phi_b^2] - E[phi_a^2] E[phi_b^2] - 2 "
            "E[phi_a phi_b]^2)",
            lambda x: x.n * (x.mean(F) - gaussian(x.mean(G))),
            lambda x: x.n * (x.mean(D_F) - (gaussian(x.limit.K0 + x.mean(R)) - gaussian(x.limit.K0))),
        )
    )
    V4_excess: Float[np.ndarray, "T N N N N"] | None = eqx.field(
        metadata=observable_field(
            "a b c d",
            "V4 at this width less V4 at infinite width, by control variates",
            None,
            excess,
        )
    )


OBSERVABLES: dict[str, Observable] = {field.name: field.metadata["observable"] for field in fields(Quantities)}


def estimated(control: bool) -> dict[str, Observable]:
    """The quantities that a run with or without control variates gives."""
    return {name: entry for name, entry in OBSERVABLES.items() if entry.formula(control) is not None}


def quantities(total: Group, limit: InfiniteWidth, width: int, control: bool) -> Quantities:
    """The estimates from the total of all groups, or of all but one."""
    x = Sampled(total, limit, width, control)
    found: dict[str, Any] = dict.fromkeys(OBSERVABLES)
    whole: dict[str, Callable[[Any], Any]] = {"a b": unpack, "a b c d": unpack_covariance}
    for name, entry in estimated(control).items():
        found[name] = whole[entry.axes](entry.formula(control)(x))
    return Quantities(**found)


class _Asked(NamedTuple):
    """A stand-in for `Sampled` that records which averages a formula asks for."""

    means: list[Average]
    squared: list[Average]
    n: int = 1
    limit: InfiniteWidth = InfiniteWidth(np.zeros((1, 1)), np.zeros((1, 1)))

    def mean(self, x: Average) -> np.ndarray:
        self.means.append(x)
        return np.zeros((1, 1))

    def covariance(self, x: Average, y: Average) -> np.ndarray:
        self.squared.extend((x, y))
        return np.zeros((1, 1, 1))


@cache
def recorded(control: bool) -> tuple[tuple[Average, ...], int]:
    """All averages of a run with or without control variates, and how many of the first have second moments."""
    asked: Any = _Asked([], [])
    for entry in estimated(control).values():
        entry.formula(control)(asked)
    return tuple(dict.fromkeys([*asked.squared, *asked.means])), len(set(asked.squared))


def slice_of(x: Average, pair_count: int, control: bool) -> slice:
    """The entries of the sums that belong to an average."""
    first = recorded(control)[0].index(x) * pair_count
    return slice(first, first + pair_count)


def lengths(pair_count: int, control: bool) -> tuple[int, int]:
    """The length of the vector of all averages, and that of its first part, which has second moments."""
    found, squared = recorded(control)
    return len(found) * pair_count, squared * pair_count


def gaussian(k: Float[np.ndarray, "T P"]) -> Float[np.ndarray, "T P"]:
    """E[phi_a^2 phi_b^2] of Gaussians of covariance k, packed."""
    aa, bb, ab = triples(input_count(k.shape[-1])).T
    return k[:, aa] * k[:, bb] + 2 * k[:, ab] ** 2
