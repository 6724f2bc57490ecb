r"""Streaming moments of kernels, and their errors by the jackknife.

Per network and saved depth the vector x = (G, S, F), with F the mean over neurons of phi_a^2 phi_b^2, or with control variates
(G, S, D_G, D_S, R, D_F), D_G = G - C_G and so on (see `control`), each packed: means of all, second moments of G, S and D_G.
Parts of blocks of networks are reduced where they are sampled, about their means, in float32, and added in float64, in fixed order, to
GROUPS groups or a multiple of that. So memory does not grow with the number of networks, nothing cancels, and leaving out one group
at a time gives the standard error of any function of the moments, which g groups tell to one part in sqrt(2 (g - 1)).
"""

from collections.abc import Callable
from functools import cache, reduce
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from ..depths import times_of_layers
from ..model import Model
from ..pairs import input_count, pair_table, triples
from .samplers import Sampler

GROUPS = 32


class Moments(NamedTuple):
    """Sums of y = x - centre over a block of networks at one depth, and of y y^T for the first M of the X entries."""

    centre: Float[Array | np.ndarray, "*batch X"]
    first: Float[Array | np.ndarray, "*batch X"]
    second: Float[Array | np.ndarray, "*batch M M"]


def block_moments(x: Float[Array, "X B"], squared: int, weight: Float[Array, " B"]) -> Moments:
    """Moments over the networks of weight one, about the mean of all; those of weight zero do not count.

    Where the number of networks is a power of two no division rounds, and the bits do not depend on how it is compiled.
    """
    centre = jnp.sum(x, axis=1) / x.shape[1]
    y = (x - centre[:, None]) * weight
    second = jnp.einsum("mb,nb->mn", y[:squared], y[:squared], precision="highest")
    return Moments(centre, jnp.sum(y, axis=1), second)


class Group(NamedTuple):
    """Sums over some of the networks: their number, x, and x x^T of its first entries."""

    networks: int
    first: Float[np.ndarray, "T X"]
    second: Float[np.ndarray, "T M M"]

    @staticmethod
    def of(networks: int, moments: Moments) -> "Group":
        """The sums of one block, about zero instead of about its centre."""
        centre, first, second = (np.asarray(part, np.float64) for part in moments)
        f, c = (part[:, : second.shape[-1]] for part in (first, centre))
        mixed = f[:, :, None] * c[:, None, :]
        square = networks * c[:, :, None] * c[:, None, :]
        return Group(networks, first + networks * centre, second + mixed + np.swapaxes(mixed, 1, 2) + square)

    def plus(self, other: "Group", sign: int = 1) -> "Group":
        """The sums of both, or with `sign` -1 of this one without the other."""
        return Group(
            self.networks + sign * other.networks, self.first + sign * other.first, self.second + sign * other.second
        )


class Sums(NamedTuple):
    """The sums of all groups, and how many parts of blocks they hold. Never changed in place: an interruption finds it whole."""

    groups: tuple[Group, ...]
    parts: int

    @staticmethod
    def zeros(depths: int, size: int, squared: int, groups: int = GROUPS) -> "Sums":
        return Sums((Group(0, np.zeros((depths, size)), np.zeros((depths, squared, squared))),) * groups, 0)

    def add(self, part: int, networks: int, moments: Moments) -> "Sums":
        """With the moments of one more part of a block: parts are dealt to groups in turn."""
        index = part % len(self.groups)
        new = Group.of(networks, moments)
        return Sums((*self.groups[:index], self.groups[index].plus(new), *self.groups[index + 1 :]), self.parts + 1)

    def total(self) -> Group:
        """All groups together."""
        return reduce(Group.plus, self.groups)


@cache  # asked for some ten times a group by every jackknife
def _tables(pair_count: int) -> tuple[np.ndarray, np.ndarray]:
    """`pair_table`, and the columns of `triples`."""
    inputs = input_count(pair_count)
    return pair_table(inputs), triples(inputs).T


def _unpack(k: np.ndarray) -> np.ndarray:
    return k[..., _tables(k.shape[-1])[0]]


def _unpack_covariance(V: np.ndarray) -> np.ndarray:
    table = _tables(V.shape[-1])[0]
    return V[..., table[:, :, None, None], table]


def _gaussian(k: np.ndarray) -> np.ndarray:
    """E[phi_a^2 phi_b^2] of Gaussians of covariance k, packed."""
    aa, bb, ab = _tables(k.shape[-1])[1]
    return k[:, aa] * k[:, bb] + 2 * k[:, ab] ** 2


class Quantities(NamedTuple):
    """What an ensemble estimates at each saved depth, n the width; float64 NumPy arrays.

    With control variates K1 and U1 are n E[R] and n E[D_S]: unbiased, and far less noisy than the differences that define them.
    kappa4 is the order 1/n of how far a single neuron is from Gaussian: n (E[F] - E[G_aa] E[G_bb] - 2 E[G_ab]^2) with
    F_ab the mean over neurons of phi_a^2 phi_b^2. Control variates take its noise, and the cancellation, off that too.
    `V4_excess` is V4 minus its value at infinite width, n (Cov(G, G) - Cov(C_G, C_G)): added to the exact infinite-width V4 of
    the same layers it gives V4 with far smaller error. Without control variates it is None.
    """

    G: Float[np.ndarray, "T N N"]  # E[G]
    S: Float[np.ndarray, "T N N"]  # E[S]
    K1: Float[np.ndarray, "T N N"]  # n (E[G] - K0)
    U1: Float[np.ndarray, "T N N"]  # n (E[S] - E_K0[ss])
    V4: Float[np.ndarray, "T N N N N"]  # n Cov(G_ab, G_cd)
    V_GS: Float[np.ndarray, "T N N N N"]  # n Cov(G_ab, S_cd)
    V_SS: Float[np.ndarray, "T N N N N"]  # n Cov(S_ab, S_cd)
    kappa4: Float[np.ndarray, "T N N"]  # n times the joint cumulant of phi_a, phi_a, phi_b, phi_b of one neuron
    V4_excess: Float[np.ndarray, "T N N N N"] | None


class Limit(NamedTuple):
    """K0 and E_K0[ss] at the saved depths: the values at infinite width."""

    K0: Float[np.ndarray, "T P"]
    moment: Float[np.ndarray, "T P"]


def quantities(sums: Group, limit: Limit, width: int) -> Quantities:
    """The estimates from the total of all groups, or of all but one."""
    count, first, second = sums
    pair_count = limit.K0.shape[-1]
    mean = first / count
    squared = mean[:, : second.shape[-1]]
    covariance = width * (second - count * squared[:, :, None] * squared[:, None, :]) / (count - 1)
    parts = [
        np.split(rows, second.shape[-1] // pair_count, axis=2)
        for rows in np.split(covariance, second.shape[-1] // pair_count, axis=1)
    ]
    G, S, *rest = np.split(mean, first.shape[-1] // pair_count, axis=1)
    if len(rest) == 1:
        U1, K1, kappa4, excess = S - limit.moment, G - limit.K0, rest[0] - _gaussian(G), None
    else:
        _, U1, K1, D_F = rest
        kappa4 = D_F - (_gaussian(limit.K0 + K1) - _gaussian(limit.K0))
        excess = parts[0][2] + parts[2][0] - parts[2][2]
    return Quantities(
        *(_unpack(k) for k in (G, S, width * K1, width * U1)),
        *(_unpack_covariance(V) for V in (parts[0][0], parts[0][1], parts[1][1])),
        kappa4=_unpack(width * kappa4),
        V4_excess=None if excess is None else _unpack_covariance(excess),
    )


def jackknife(function: Callable[[Group], Any], sums: Sums) -> tuple[Any, Any]:
    """Value and standard error of any function of the total, deleting one group at a time.

    Groups may differ in size (Busing, Meijer and van der Leeden 1999). The function may return any tree of arrays.
    """
    total = sums.total()
    value = function(total)
    plain = linear = square = jax.tree.map(np.zeros_like, value)
    groups = [group for group in sums.groups if group.networks]
    for group in groups:
        share = group.networks / total.networks
        change = jax.tree.map(np.subtract, value, function(total.plus(group, -1)))
        plain = jax.tree.map(lambda a, d: a + d, plain, change)
        linear = jax.tree.map(lambda a, d, m=share: a + (1 - m) * d, linear, change)
        square = jax.tree.map(lambda a, d, m=share: a + (1 / m - 1) * d**2, square, change)
    weight = sum(group.networks / (total.networks - group.networks) for group in groups)
    variance = jax.tree.map(lambda s, b, d: (s - 2 * b * d + weight * b**2) / len(groups), square, linear, plain)
    return value, jax.tree.map(lambda v: np.sqrt(np.maximum(v, 0)), variance)


class Estimate(eqx.Module):
    """The result of `estimate`: every quantity of `Quantities`, and its standard error under the same name in `stderr`.

    Layers are l, depth times t the sum of eps^2 over them; arrays are float64 NumPy arrays over the saved depths. `model`, `sampler`, `eps` and
    the words of `key` are those of the run.
    """

    layers: Int[np.ndarray, " T"]
    ts: Float[np.ndarray, " T"]
    K0: Float[np.ndarray, "T N N"]
    G: Float[np.ndarray, "T N N"]
    S: Float[np.ndarray, "T N N"]
    K1: Float[np.ndarray, "T N N"]
    U1: Float[np.ndarray, "T N N"]
    V4: Float[np.ndarray, "T N N N N"]
    V_GS: Float[np.ndarray, "T N N N N"]
    V_SS: Float[np.ndarray, "T N N N N"]
    kappa4: Float[np.ndarray, "T N N"]
    V4_excess: Float[np.ndarray, "T N N N N"] | None
    stderr: Quantities
    networks: int
    width: int
    sums: Sums
    limit: Limit
    model: Model | None
    sampler: Sampler | None
    eps: Float[np.ndarray, "..."] | None
    key: UInt32[np.ndarray, " words"] | None

    @staticmethod
    def of(sums, limit, width, layers, eps, model, sampler, key) -> "Estimate":
        """The estimate that group sums amount to."""
        value, stderr = jackknife(lambda total: quantities(total, limit, width), sums)
        return Estimate(
            layers=layers,
            ts=times_of_layers(layers, eps),
            K0=_unpack(limit.K0),
            **value._asdict(),
            stderr=stderr,
            networks=sums.total().networks,
            width=width,
            sums=sums,
            limit=limit,
            model=model,
            sampler=sampler,
            eps=np.asarray(eps, np.float64),
            key=np.asarray(jax.random.key_data(key)),
        )

    def jackknife(self, function: Callable[[Quantities], Any]) -> tuple[Any, Any]:
        """Value and standard error of any function of the quantities, correlations between them included.

        For the relative variance at the last depth: `est.jackknife(lambda q: q.V4[-1, 0, 0, 0, 0] / q.G[-1, 0, 0] ** 2)`.
        """
        return jackknife(lambda total: function(quantities(total, self.limit, self.width)), self.sums)
