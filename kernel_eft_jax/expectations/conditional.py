r"""Gaussian expectations of four factors among which an input occurs twice, E[F(phi_x) f(phi_y) g(phi_z)].

The average over the other two inputs given phi_x comes first: they are two normals of conditional correlation r, and
the average is a Mehler series in r, or one sum if both are the same input. Then phi_x is averaged over by quadrature:

$$E[F(\phi_x) f(\phi_y) g(\phi_z)] = E_x\Big[ F(\phi_x) \sum_s f_s(\phi_x)\, g_s(\phi_x)\, r^s \Big],
  \qquad f_s = E[f(\phi_y)\, he_s \,|\, \phi_x]$$
"""

from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..activations import Activation
from ..activations.base import at_zero, between_sides, centres, enough_points
from ..activations.pair_quadrature import SECOND, kink_deltas
from ..pairs import unpack
from ..quadrature import (
    centred_rule,
    derivative,
    derivatives,
    hermite_polynomials,
    powers,
    steepness,
)
from ..selecting import safe_ratio, safe_root
from .averages import averages
from .hermite_modes import modes

PRODUCTS = ((0, 0), (1, 0))  # orders of two factors at one input
FourFactors = tuple[tuple[int, int], ...]


class Conditional:
    """Averages of an activation given each input x, at nodes of psi_x, and the expectations of four factors that follow
    from them.

    The other inputs y stand in the order in which they follow x, cyclically: at place d is y = x + d, and x itself is
    the first.
    """

    def __init__(self, activation: Activation, k: Float[Array, " P"], degree: int):
        self.activation, self.k, self.degree = activation, k, degree
        K = unpack(k)
        inputs = K.shape[0]
        own = np.eye(inputs, dtype=bool)
        self.roots = jnp.sqrt(jnp.diagonal(K))
        across = K / self.roots[:, None]
        covariance = K[None] - across[:, :, None] * across[:, None, :]  # of the rests of y and z given x
        left = jnp.diagonal(covariance, axis1=1, axis2=2)
        # A rest below rounding is none: y is a multiple of x. A width of its own would smooth s where nothing varies.
        some = ~own & (left > 8 * jnp.finfo(K.dtype).eps * jnp.diagonal(K)[None])
        width = safe_root(jnp.where(some, left, 0.0))
        inverse = safe_ratio(jnp.ones_like(width), width)
        correlation = covariance * inverse[:, :, None] * inverse[:, None, :]
        self.nodes, self.weights = self._rules(K, across, inverse)
        x = np.arange(inputs)[:, None]
        around = (x + x.T) % inputs
        self.correlation = correlation[x[:, :, None], around[:, :, None], around[:, None, :]]
        self.orders, self.products = self._averages(across[x, around[:, 1:]], width[x, around[:, 1:]])

    def _rules(self, K, across, inverse):
        """Nodes and weights for each input x, (x, nodes). The kinks of all other inputs given x have cells of their
        own; the kinks of x itself are the last nodes."""
        activation, dtype = self.activation, K.dtype
        places = centres(activation, dtype)
        width = jnp.broadcast_to(steepness(jnp.max(self.roots), activation.sharpness), self.roots.shape)
        around = places[None, :] / self.roots[:, None]
        if activation.kinks:
            width = jnp.maximum(width, jnp.max(jnp.abs(across) * inverse, axis=1))
            safe = jnp.where(jnp.abs(across) > jnp.finfo(dtype).tiny ** 0.5, across, 1.0)
            others = places[None, None, :] / safe[:, :, None]
            if not at_zero(activation.kinks):
                around = jnp.reshape(others, (self.roots.size, -1))
        nodes, weights = centred_rule(around, width, enough_points(activation, self.degree + 1))
        if activation.kinks:
            at_kinks = places[None, :] / self.roots[:, None]
            nodes = jnp.concatenate([nodes, at_kinks], axis=1)
            weights = jnp.concatenate([weights, jnp.zeros_like(at_kinks)], axis=1)
        return nodes, weights

    def _averages(self, across, width):
        """E[s^(m) he_j | psi_x], (x, j, m, d, nodes), and E[s s | psi_x], E[s s' | psi_x], (x, 2, d, nodes)."""
        activation, terms = self.activation, self.degree + 1

        def given(across, width, root, nodes, weights):
            s, ds, dds = derivatives(activation, 2)(root * nodes)
            sharp = jnp.pad(jnp.stack([s, ds, dds])[None, :, None], ((0, terms - 1), *3 * ((0, 0),)))
            squares = jnp.stack([s * s, s * ds])[:, None]
            if across.size == 0:  # one input has no others
                return sharp, squares
            mean = across[:, None] * nodes[None, :]
            orders, products = averages(activation, mean, width, weights, terms, PRODUCTS)
            return jnp.concatenate([sharp, orders], axis=2), jnp.concatenate([squares, products], axis=1)

        # One input x at a time: the arrays of all may be larger than the memory.
        return jax.lax.map(lambda x: given(*x), (across, width, self.roots, self.nodes, self.weights))

    def expect(self, entries: list[FourFactors]) -> Float[Array, " entries"]:
        """Expectations of products of four factors s^(order)(phi_input), each factor an (input, order)."""
        groups = defaultdict(list)
        for place, factors in enumerate(entries):
            orders, inputs = _around_repeated(factors)
            groups[orders, inputs[1] == inputs[2]].append((place, *inputs))
        result = jnp.zeros(len(entries), self.roots.dtype)
        for (orders, same), members in groups.items():
            places, x, y, z = np.array(members).T
            y, z = (y - x) % self.roots.size, (z - x) % self.roots.size
            values = self._one(orders)[x, y] if same else self._two(orders)[x, y, z]
            result = result.at[places].set(values)
        return result

    def _weight(self, i, j):
        """The product of both factors at x and the weight of each node; at kinks s'' is a delta function."""
        phi = self.roots[:, None] * self.nodes
        s = self.activation
        weight = derivative(s, i)(phi) * derivative(s, j)(phi) * self.weights
        if not s.kinks or (i, j) not in ((2, 0), (2, 1)):
            return weight
        other = between_sides(derivative(s, j), s, phi.dtype)
        delta = jax.vmap(lambda root: kink_deltas(s, root)[SECOND])(self.roots) * other[None]
        return weight.at[:, -delta.shape[1] :].set(delta)

    def _one(self, orders):
        """y and z the same input: (x, y)."""
        (i, j), *rest = orders
        given_x = self.products[:, PRODUCTS.index(tuple(rest))]
        return jnp.einsum("an,ayn->ay", self._weight(i, j), given_x, precision="highest")

    def _two(self, orders):
        """y and z different: (x, y, z)."""
        (i, j), m, n = orders
        left = self._weight(i, j)[:, None, None, :] * self.orders[:, :, m]
        moments = jnp.einsum("asyn,aszn->asyz", left, self.orders[:, :, n], precision="highest")
        return jnp.einsum("asyz,ayzs->ayz", moments, powers(self.correlation, self.degree + 1), precision="highest")

    def rests(self) -> Float[Array, "N N N"]:
        """Bounds of what the series of E[s_x^2 s_y s_z] leave out, (x, y, z)."""
        beyond = jnp.maximum(self.products[:, 0] - jnp.sum(self.orders[:, :, 0] ** 2, axis=1), 0)
        rest = jnp.sqrt(jnp.einsum("an,ayn->ay", self._weight(0, 0), beyond, precision="highest"))
        least = jnp.minimum(jnp.abs(self.correlation), 1) ** (self.degree + 1)
        inputs = np.arange(self.roots.size)
        x, y, z = np.ix_(inputs, inputs, inputs)
        return (rest[:, :, None] * rest[:, None, :] * least)[x, (y - x) % inputs.size, (z - x) % inputs.size]

    def pair_modes(self) -> Float[Array, "pairs J S"]:
        """Coefficients of s_a s_b in the modes of the pair, for all pairs a < b (`hermite_modes`)."""
        a, b = np.triu_indices(self.roots.size, 1)
        he = jax.vmap(lambda nodes: hermite_polynomials(nodes, self.degree + 1))(self.nodes)
        at_a = he * (self.weights * self.activation(self.roots[:, None] * self.nodes))[:, None, :]
        m, s = modes(self.degree, 2)
        found = jnp.einsum("prn,psn->prs", at_a[a], self.orders[a, :, 0, b - a], precision="highest")
        return jnp.where((m >= s)[None], found[:, np.maximum(m - s, 0), s], 0)


def _around_repeated(factors: FourFactors):
    """((both orders at x), order at y, order at z) and (x, y, z), x the input that occurs twice. If two inputs do, x is
    the one with more derivatives."""
    choices = []
    for first in range(4):
        for second in range(first + 1, 4):
            (x, i), (other, j) = factors[first], factors[second]
            if x == other:
                rest = (factors[f] for f in range(4) if f not in (first, second))
                (y, m), (z, n) = sorted(rest, key=lambda factor: -factor[1])
                choices.append((((max(i, j), min(i, j)), m, n), (x, y, z)))
    return max(choices, key=lambda choice: sum(choice[0][0]))
