r"""The expectations that one pair of inputs needs of an activation, in one pass over a grid of the plane.

With (phi_a, phi_b) = L psi, phi_a follows from psi_1 alone, so that one table of s(phi_b) over the nodes of (psi_1,
psi_2) gives all: its projections on Hermite polynomials are two matrix products. Nodes of psi_1 are those of
`outer_rule`. For psi_2 they are equidistant, the same for every psi_1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..activations import Activation, Expansion
from ..activations.base import along, rule
from ..activations.pair_quadrature import assemble, by_parts, factors, on_line, outer_rule
from ..linear import matmul
from ..quadrature import even_rule, hermite_polynomials, powers
from .hermite_modes import Frame, PairFunctions, frame, modes, pair_functions, tails


class _Functions(NamedTuple):
    """Value and second derivatives of one pair: coefficients and tails."""

    coefficients: Float[Array, "4 J S"]
    tails: Float[Array, " 4"]


def read_pair(
    activation: Activation, k: Float[Array, " 3"], degree: int, nodes: tuple[int, int]
) -> tuple[Expansion, PairFunctions]:
    """E[s s] of the pairs (aa, ab, bb) with its derivatives, at their packed kernel, and the functions behind it, those
    of all three pairs in the modes of ab.

    Without kinks `nodes` are half the nodes of psi_1, and the nodes of psi_2. With kinks `nodes` are not used:
    `pair_functions` chooses its own nodes of psi_1, and averages over psi_2 by the activation's own `smoothed_orders`
    and `smoothed_product`.
    """
    f = frame(k)
    if activation.kinks:
        own = pair_functions(activation, f, degree)
        coefficients = jnp.concatenate([own.value[:, None], own.second], axis=1)
        beyond = jnp.concatenate([own.value_tail[:, None], own.second_tail], axis=1)
        expansion, steep = activation.expansion(k), own.steep_tail
        line = coefficients[:, :, :, 0]
    else:
        between, apart = _on_plane(activation, k, f, degree, nodes)
        alone, ends = jax.vmap(lambda k: _on_line(activation, k, degree, nodes[0]))(k[np.array([0, 2])])
        expansion = jax.tree.map(lambda x, y: jnp.stack([y[0], x, y[1]]), between, alone)
        line = jnp.stack([ends.coefficients[0], ends.coefficients[0], ends.coefficients[1]])
        coefficients = jnp.broadcast_to(apart.coefficients, (3, *apart.coefficients.shape))
        beyond = jnp.stack([ends.tails[0], apart.tails, ends.tails[1]])
        steep = beyond[:, 0]
    of_a = jnp.zeros_like(coefficients[0]).at[:, :, 0].set(line[0])
    everything = jnp.stack([of_a, coefficients[1], line[2][:, :, None] * lifted(f, degree)[None]])
    functions = PairFunctions(everything[:, 0], everything[:, 1:], beyond[:, 0], beyond[:, 1:], steep)
    return expansion, functions


def lifted(f: Frame, degree: int) -> Float[Array, "J S"]:
    r"""The modes of phi_b alone in those of the pair, $he_m(\rho \psi_1 + \rho' \psi_2) = \sum_s B_{ms} w_{m-s,s}$."""
    m, s = modes(degree, 2)
    row = f.L[1, 1] / jnp.sqrt(jnp.sum(f.L[1, 1] ** 2))
    low, high = powers(row[0], degree + 1), powers(row[1], degree + 1)
    return jnp.where(
        m >= s, _root_binomials(degree).astype(low.dtype) * low[np.maximum(m - s, 0)] * high[s.reshape(1, -1)], 0
    )


def rotate_lower(R: Float[Array, "2 2"], w: Float[Array, "*batch J S"]) -> Float[Array, "*batch J S"]:
    r"""$\mathrm{Sym}^m(R)\, w_m$ for a lower triangular R, from the binomial theorem.

    $$T^m_{st} = R_{11}^{m-s} R_{21}^{s-t} R_{22}^t \binom{s}{t} \sqrt{(m-t)!\, t! / ((m-s)!\, s!)}$$
    """
    degree = w.shape[-2]
    m, s, t = np.arange(1, degree + 1)[:, None, None], np.arange(degree + 1)[:, None], np.arange(degree + 1)
    first, across, second = (powers(R[i, j], degree + 1) for i, j in ((0, 0), (1, 0), (1, 1)))
    down = across[np.maximum(s - t, 0)] * second[t][None]
    T = _shears(degree).astype(w.dtype) * first[np.maximum(m - s, 0)] * down[None]
    return jnp.einsum("mst,...mt->...ms", T, w, precision="highest")


def rotate_lower_rate(rate: Float[Array, "2 2"], w: Float[Array, "*batch J S"]) -> Float[Array, "*batch J S"]:
    """The rate of change of `rotate_lower` where R is one and changes at a rate."""
    m, s = (np.reshape(x, shape) for x, shape in zip(modes(w.shape[-2], 2), ((-1, 1), (1, -1)), strict=True))
    own = np.maximum(m - s, 0).astype(w.dtype) * rate[0, 0] + s.astype(w.dtype) * rate[1, 1]
    lower = np.sqrt(np.maximum(s * (m - s + 1), 0)).astype(w.dtype) * rate[1, 0]
    own, lower = (jnp.expand_dims(x, range(w.ndim - 2)) for x in (own, lower))
    return own * w + lower * jnp.roll(w, 1, axis=-1)


def _root_binomials(degree):
    m, s = modes(degree, 2)
    f = _log_factorials(degree)
    return np.where(m >= s, np.exp(0.5 * (f[m] - f[s] - f[np.maximum(m - s, 0)])), 0)


def _shears(degree):
    m, s, t = np.arange(1, degree + 1)[:, None, None], np.arange(degree + 1)[:, None], np.arange(degree + 1)
    f, r = _log_factorials(degree), np.maximum(m - s, 0)
    binomials = f[s] - f[t] - f[np.maximum(s - t, 0)]
    logarithms = binomials + 0.5 * (f[np.maximum(m - t, 0)] + f[t] - f[r] - f[s])
    return np.where((s >= t) & (m >= s), np.exp(logarithms), 0)


def _log_factorials(degree):
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, degree + 1)))])


def _on_plane(activation, k, f, degree, nodes):
    (k_aa, k_ab, k_bb), L = k, f.L[1]
    x, w = outer_rule(activation, (L[0, 0], jnp.sqrt(k_bb)), L[1, 0], L[1, 1], nodes[0])
    y, v = even_rule(nodes[1], k.dtype)
    parts = by_parts(activation, k_aa), by_parts(activation, k_bb)
    a = factors(activation, L[0, 0] * x, parts[0])
    b = factors(activation, L[1, 0] * x[:, None] + L[1, 1] * y[None], parts[1])
    expansion = assemble(matmul(a * w[None], matmul(b, v).T), k_aa, k_bb, k_ab, parts)
    over_y = matmul(b[:3], (hermite_polynomials(y, degree + 1) * v[None]).T)
    table = hermite_polynomials(x, degree + 1) * w[None]
    which = ((0, 0), (2, 0), (0, 2), (1, 1))
    scale = np.array([1, 1, 1, 2]).astype(k.dtype)
    found = jnp.stack([matmul(table * a[i][None], over_y[j]) for i, j in which]) * scale[:, None, None]
    squares = matmul(b[:3] ** 2, v)
    norms = jnp.stack([jnp.sum(a[i] ** 2 * squares[j] * w) for i, j in which]) * scale**2
    m, s = modes(degree, 2)
    places = jnp.where(m >= s, found[:, np.maximum(m - s, 0), s], 0)
    return expansion, _Functions(places, tails(norms, places, found[:, 0, 0]))


def _on_line(activation, k, degree, nodes):
    root = jnp.sqrt(k)
    x, w = rule(activation, jnp.zeros_like(k), root, nodes)
    here = factors(activation, root * x, by_parts(activation, k))
    expansion = along(*jnp.sum(on_line(activation, k, x, here) * w[None], axis=-1))
    both = here[0] ** 2
    third = 2 * (here[1] ** 2 + here[0] * here[2]) / 3
    found = matmul(jnp.stack([both, third]) * w[None], hermite_polynomials(x, degree + 1).T)
    norms = jnp.stack([jnp.sum(both**2 * w), jnp.sum(third**2 * w)])
    places = found[:, 1:]
    beyond, each = tails(norms, places[:, :, None], found[:, 0]), np.array([0, 1, 1, 1])
    return expansion, _Functions(places[each], beyond[each])
