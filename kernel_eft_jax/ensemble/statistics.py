r"""Streaming moments of kernels, and their errors by the jackknife.

For each network and saved depth there is a vector x of the averages that `observables` asks for, packed: means are kept
of all its entries, second moments of the first ones. Each part of a block of networks is reduced where it is sampled,
about its mean, in float32. The parts are added in float64, in fixed order, to GROUPS groups or a multiple of that. So
memory does not grow with the number of networks, and nothing cancels. The standard error of any function of the moments
follows by leaving out one group at a time; g groups determine it to one part in sqrt(2 (g - 1)).
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import stdtrit

GROUPS = 32  # of networks, for the jackknife


class CentredSums(NamedTuple):
    """Sums of y = x - centre over a block of networks at one depth, and of y y^T for the first M of the X entries."""

    centre: Float[Array | np.ndarray, "*batch X"]
    first: Float[Array | np.ndarray, "*batch X"]
    second: Float[Array | np.ndarray, "*batch M M"]


def centred_sums(x: Float[Array, "X B"], squared: int, weight: Float[Array, " B"]) -> CentredSums:
    """Sums over the networks of weight one, about the mean of all networks of the block, those of weight zero included.

    If the number of networks is a power of two, the division is exact, and the bits do not depend on how it is
    compiled.
    """
    centre = jnp.sum(x, axis=1) / x.shape[1]
    y = (x - centre[:, None]) * weight[None, :]
    second = jnp.einsum("mb,nb->mn", y[:squared], y[:squared], precision="highest")
    return CentredSums(centre, jnp.sum(y, axis=1), second)


class Group(NamedTuple):
    """Sums over some of the networks: their number, x, and x x^T of its first entries."""

    networks: int
    first: Float[np.ndarray, "T X"]
    second: Float[np.ndarray, "T M M"]

    @staticmethod
    def of(networks: int, moments: CentredSums) -> "Group":
        """The sums of one block, about zero instead of about its centre."""
        centre, first, second = (np.asarray(part, np.float64) for part in moments)
        f, c = (part[:, : second.shape[-1]] for part in (first, centre))
        mixed = f[:, :, None] * c[:, None, :]
        square = networks * c[:, :, None] * c[:, None, :]
        return Group(networks, first + networks * centre, second + mixed + np.swapaxes(mixed, 1, 2) + square)

    def plus(self, other: "Group", sign: int = 1) -> "Group":
        """The sums of both groups, or with `sign` -1 those of this group without the other."""
        return Group(
            self.networks + sign * other.networks, self.first + sign * other.first, self.second + sign * other.second
        )


class Sums(NamedTuple):
    """The sums of all groups, and how many parts of blocks they hold. They are never changed in place, so that an
    interruption leaves them whole."""

    groups: tuple[Group, ...]
    parts: int

    @staticmethod
    def zeros(depths: int, size: int, squared: int, groups: int = GROUPS) -> "Sums":
        return Sums((Group(0, np.zeros((depths, size)), np.zeros((depths, squared, squared))),) * groups, 0)

    @staticmethod
    def of(networks: np.ndarray, first: np.ndarray, second: np.ndarray, parts: int) -> "Sums":
        """The sums that `stacked` gave as arrays."""
        return Sums(tuple(map(Group, map(int, networks), first, second)), parts)

    def stacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The numbers of networks and the first and second sums of all groups, a group for each row."""
        networks, first, second = (np.stack(of_groups) for of_groups in zip(*self.groups, strict=True))
        return networks, first, second

    def add(self, part: int, networks: int, moments: CentredSums) -> "Sums":
        """The sums with one more part of a block: parts are dealt to groups in turn."""
        index = part % len(self.groups)
        new = Group.of(networks, moments)
        return Sums((*self.groups[:index], self.groups[index].plus(new), *self.groups[index + 1 :]), self.parts + 1)

    def total(self) -> Group:
        """All groups together."""
        return reduce(Group.plus, self.groups)


def jackknife(function: Callable[[Group], Any], sums: Sums) -> tuple[Any, Any]:
    """Value and standard error of any function of the total, deleting one group at a time.

    Groups may differ in size (Busing, Meijer and van der Leeden 1999). The function may return any tree of arrays of
    real numbers; ValueError for complex ones, whose real and imaginary parts have errors of their own.
    """
    total = sums.total()
    value = function(total)
    if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(value)):
        raise ValueError(
            "The function gives complex numbers, but errors are of real ones: return real and imaginary parts."
        )
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


def least_V4_error(
    V4: Float[np.ndarray, "*batch N N N N"], networks: int, width: int
) -> Float[np.ndarray, "*batch N N N N"]:
    """Standard error of V4 from B networks whose kernels are Wishart matrices, those of independent Gaussian neurons.

    Its square is (V_pp V_qq + V_pq^2) (1 / (B - 1) + 6 / (n B)), exact for a variance. The true error is at least this
    one. It is a lower bound for the error that is estimated from few networks, which is too small whenever their V4 is
    too small.
    """
    variance = np.einsum("...abab->...ab", V4)
    products = variance[..., :, :, None, None] * variance[..., None, None, :, :]
    return np.sqrt((products + V4**2) * (1 / (networks - 1) + 6 / (width * networks)))


def interval(
    value: Float[np.ndarray, "*shape"], error: Float[np.ndarray, "*shape"], free: Any, level: float, logarithm: bool
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """Ends of confidence intervals by Student's t with `free` degrees of freedom. With `logarithm`, value is a
    covariance, and the intervals of its variances are symmetric in their logarithm."""
    if not 0 < level < 1:
        raise ValueError(f"Argument `level` must lie between 0 and 1, but is {level}.")
    reach = stdtrit(free, 0.5 + 0.5 * level) * error
    low, high = value - reach, value + reach
    if logarithm:
        a, b = np.indices(value.shape[-2:])
        place = np.s_[..., a, b, a, b]
        factor = np.exp(reach[place] / value[place])
        low[place], high[place] = value[place] / factor, value[place] * factor
    return low, high
