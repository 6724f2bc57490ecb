r"""Functions of a pair of inputs in orthonormal Hermite modes, and covariances between modes of different pairs.

For a pair cd, (phi_c, phi_d) = L psi with psi two independent standard normals (L the Cholesky factor of the pair's
kernel), and the modes are w_rs = he_r(psi_1) he_s(psi_2), 1 <= r + s <= degree. They are Wick monomials of phi_c, phi_d
scaled to variance one, whatever the correlation, so nothing grows with the degree. Modes of two pairs p, q correlate
within one degree m = r + s only, through the symmetric power of a 2 x 2 matrix:

$$E[w^p_{rs} w^q_{il}] = \mathrm{Sym}^m(R)_{rs,il}, \qquad R = E[\psi^p \psi^{q\,T}] = M_p K M_q^T, \qquad M = L^{-1}$$

At rho = 1 or -1 phi_d follows from phi_c, and psi_2 vanishes. There, and for an input of zero variance, a tiny floor
replaces the zero scale in divisions, so that values stay right and derivatives finite. For one input with itself psi_2
does not exist: its rows of L and M are zero.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..activations import Activation
from ..activations.base import enough_points, rule
from ..activations.pair_quadrature import outer_rule
from ..linear import matmul
from ..pairs import diagonal, from_diagonal_first, input_count, off_diagonal, pair_table, pairs, triples
from ..quadrature import derivatives, hermite_polynomials, powers, remaining_scale
from ..selecting import root_of_rest
from .averages import averages


class Frame(NamedTuple):
    """Cholesky factor L of each pair's kernel and its inverse M, lower triangular; zero where psi_2 does not exist."""

    L: Float[Array, "P 2 2"]
    M: Float[Array, "P 2 2"]


class PairFunctions(NamedTuple):
    """Hermite coefficients of s_a s_b and of its second derivatives by (aa, bb, ab), the last counted twice.

    `value_tail` bounds the norm of the part of s_a s_b beyond the degree. Without kinks `second_tail` bounds the same
    norm of each second derivative, and `steep_tail` is `value_tail`. With kinks a second derivative has a delta
    function, which has no norm. So there `second_tail` bounds the norm of the coefficients of degree m divided by
    sqrt(m), and `steep_tail` that of the coefficients of s_a s_b multiplied by sqrt(m). The roots cancel where a sum
    over products of both is bounded.
    """

    value: Float[Array, "P J S"]
    second: Float[Array, "P 3 J S"]
    value_tail: Float[Array, " P"]
    second_tail: Float[Array, "P 3"]
    steep_tail: Float[Array, " P"]


def modes(degree: int, inputs: int) -> tuple[Int[np.ndarray, "J 1"], Int[np.ndarray, " S"]]:
    """Axes of the mode arrays: m = r + s from 1 to `degree`, and s from 0; modes with s > m do not exist and hold zero.

    One input alone has no second variable, hence S = 1.
    """
    return np.arange(1, degree + 1)[:, None], np.arange(degree + 1 if inputs > 1 else 1)


def frame(k: Float[Array, " P"]) -> Frame:
    """The frame of every pair of a packed kernel."""
    inputs = input_count(k.shape[-1])
    a, b = pairs(inputs)
    k_aa, k_bb, k_ab = k[triples(inputs)].T
    # A variance of zero becomes one that is small beside the others and still moves with k: derivatives at an input of
    # zero norm are one-sided.
    least = jnp.finfo(k.dtype).eps ** 0.6 * jax.lax.stop_gradient(jnp.max(k)) + jnp.finfo(k.dtype).tiny ** 0.25
    k_aa, k_bb = (x + jnp.where(x > 0, 0.0, least) for x in (k_aa, k_bb))
    first = jnp.sqrt(k_aa)
    across = jnp.where(a == b, first, k_ab / first)
    second = remaining_scale(k_bb - across**2, k_bb)
    inverse = jnp.where(a == b, 0.0, 1 / second)
    second = jnp.where(a == b, 0.0, second)
    zero = jnp.zeros_like(first)

    def stack(x11, x21, x22):
        return jnp.stack([jnp.stack([x11, zero], -1), jnp.stack([x21, x22], -1)], -2)

    return Frame(stack(first, across, second), stack(1 / first, -across / first * inverse, inverse))


def overlaps(k: Float[Array, " P"], f: Frame) -> Float[Array, "P P 2 2"]:
    r"""$R_{pq} = E[\psi^p \psi^{q\,T}]$ for all pairs p, q; linear in k."""
    inputs = input_count(k.shape[-1])
    members = np.stack(pairs(inputs), axis=1)
    blocks = k[pair_table(inputs)[members[:, None, :, None], members[None, :, None, :]]]  # inputs of p by those of q
    return jnp.einsum("pij,pqjk,qlk->pqil", f.M, blocks, f.M, precision="highest")


def rotate(R: Float[Array, "*#batch 2 2"], w: Float[Array, "*#batch J S"]) -> Float[Array, "*batch J S"]:
    r"""$\mathrm{Sym}^m(R)\, w_m$ for every degree m, by recursion from one degree to the next.

    $$m\, T^m_{st} = \sqrt{(m-s)(m-t)} R_{11} T^{m-1}_{st} + \sqrt{s (m-t)} R_{21} T^{m-1}_{s-1,t}
      + \sqrt{(m-s) t} R_{12} T^{m-1}_{s,t-1} + \sqrt{s t} R_{22} T^{m-1}_{s-1,t-1}$$
    """
    degree, columns = w.shape[-2:]
    if columns == 1:
        return powers(R[..., 0, 0], degree + 1)[..., 1:, None] * w
    s = np.arange(columns).astype(w.dtype).reshape((1,) * (R.ndim - 1) + (-1,))  # along the last axis

    def next_degree(T, m_and_w):
        m, w_m = m_and_w
        stay, up = jnp.sqrt(jnp.maximum(m - s, 0) / m), jnp.sqrt(s / m)
        along = [[R[..., i, j, None, None] * T for j in (0, 1)] for i in (0, 1)]
        rows = [stay * along[i][0] + up * jnp.roll(along[i][1], 1, axis=-1) for i in (0, 1)]
        T = stay.mT * rows[0] + up.mT * jnp.roll(rows[1], 1, axis=-2)
        return T, jnp.einsum("...st,...t->...s", T, w_m, precision="highest")

    batch = jnp.broadcast_shapes(R.shape[:-2], w.shape[:-2])
    first = jnp.zeros((*R.shape[:-2], columns, columns), w.dtype).at[..., 0, 0].set(1)
    degrees = jnp.arange(1, degree + 1, dtype=w.dtype)
    _, rotated = jax.lax.scan(next_degree, first, (degrees, jnp.moveaxis(w, -2, 0)))
    return jnp.broadcast_to(jnp.moveaxis(rotated, 0, -2), (*batch, degree, columns))


def mode_covariances(k: Float[Array, " P"], f: Frame, value: Float[Array, "P J S"]) -> Float[Array, "P P J S"]:
    r"""$\mathrm{Cov}(F_p, w^q_{rs})$ for functions F_p of pair p (first axis) and the modes of every pair q
    (second)."""
    return rotate(jnp.swapaxes(overlaps(k, f), 0, 1), value[:, None])


def pair_functions(activation: Activation, f: Frame, degree: int) -> PairFunctions:
    r"""Hermite coefficients of $s_a s_b$, $s''_a s_b$, $s_a s''_b$ and $2 s'_a s'_b$ for every pair.

    The average over psi_2 comes first (`averages`), and the rest is a sum over psi_1. The first of the second
    derivatives is integrated by parts, $\partial_a = (\partial_1 - L_{21} \partial_b) / L_{11}$, so that a kink needs
    no delta function. One input with itself has no psi_2, and its three second derivatives are one function,
    $(s^2)''$: each place holds a third. The tails follow from the exact norms, $E[s_a^2 s_b^2]$ and so on, less the
    squares of all coefficients. With kinks those of F = s_a s_b times sqrt(m) follow from E[|grad F|^2], and those of
    the second derivatives divided by sqrt(m) from the norms of first derivatives: the derivative along a direction of
    length one makes of a mode of degree m + 1 one of degree m, times sqrt(m + 1) at most.
    """
    inputs = input_count(f.L.shape[0])
    columns = modes(degree, inputs)[1].size
    found = jax.vmap(partial(_functions_of_one, activation, degree, columns))(f.L[diagonal(inputs), 0, 0])
    if inputs > 1:
        apart = jax.lax.map(partial(_functions_of_two, activation, degree), f.L[off_diagonal(inputs)])
        found = (jnp.concatenate(x)[from_diagonal_first(inputs)] for x in zip(found, apart, strict=True))
    functions, beyond, steep = found
    return PairFunctions(functions[:, 0], functions[:, 1:], beyond[:, 0], beyond[:, 1:], steep)


# Drift and readings of one program call these two: compiled functions are traced once.
@eqx.filter_jit
def _functions_of_one(activation, degree, columns, deviation):
    """Coefficients, tails and steep tail of one input with itself, in so many columns; `deviation` is that of phi_a."""
    x, w = rule(activation, jnp.zeros_like(deviation), deviation, enough_points(activation, degree + 2))
    he = hermite_polynomials(x, degree + 2)
    s, ds, dds = derivatives(activation, 2)(deviation * x)
    value, slope = matmul(jnp.stack([s * s, s * ds]) * w[None], he.T)
    third = 2 / 3 * _root_degrees(degree, x.dtype) * slope[1:] / deviation
    norms = matmul(jnp.stack([s**4, (2 * (ds**2 + s * dds) / 3) ** 2]), w)
    each = np.array([0, 1, 1, 1])
    found = jnp.stack([value[:-1], third])[each]
    functions = jnp.pad(found[:, 1:, None], ((0, 0), (0, 0), (0, columns - 1)))
    beyond = tails(norms[each], functions, found[:, 0])
    if not activation.kinks:
        return functions, beyond, beyond[0]
    steep = _steep_tail(4 * deviation**2 * jnp.sum(s**2 * ds**2 * w), functions[0])
    return functions, beyond.at[1:].set(_lowered(degree, x.dtype) * steep / (3 * deviation**2)), steep


@eqx.filter_jit
def _functions_of_two(activation, degree, L):
    """Coefficients, tails and steep tail of two inputs, whose frame is L."""
    (m, s), lowered = modes(degree, 2), _lowered(degree, L.dtype)
    r, exists = np.maximum(m - s, 0), m >= s
    second = jnp.sqrt(L[1, 0] ** 2 + L[1, 1] ** 2)
    x, w = outer_rule(activation, (L[0, 0], second), L[1, 0], L[1, 1], enough_points(activation, degree + 2))
    table = hermite_polynomials(x, degree + 2) * w[None]
    s_a, ds_a, dds_a = derivatives(activation, 2)(L[0, 0] * x)
    products = ((0, 0), (1, 1), (1, 0) if activation.kinks else (2, 2))
    over, squares = averages(activation, L[1, 0] * x[None], L[1, 1][None], w, s.size, products)
    s_b, ds_b, dds_b = jnp.moveaxis(over[:, :, 0], 1, 0)

    def project(u, v):
        return matmul(table * u[None], v.T)

    first = project(ds_a, ds_b)
    second_aa = (_root_degrees(degree, x.dtype)[:, None] * project(ds_a, s_b)[1:] - L[1, 0] * first[:-1]) / L[0, 0]
    everything = jnp.stack([project(s_a, s_b)[:-1], second_aa, project(s_a, dds_b)[:-1], 2 * first[:-1]])
    functions = jnp.where(exists[None], everything[:, r, s], 0)
    of_b = squares[:, 0]
    norms = jnp.stack([s_a**2 * of_b[0], dds_a**2 * of_b[0], s_a**2 * of_b[2], 4 * ds_a**2 * of_b[1]])
    beyond = tails(matmul(norms, w), functions, everything[:, 0, 0])
    if not activation.kinks:
        return functions, beyond, beyond[0]
    slopes = jnp.stack([project(ds_a, s_b)[:-1], project(s_a, ds_b)[:-1]])
    norms = jnp.stack([ds_a**2 * of_b[0], s_a**2 * of_b[1], s_a * ds_a * of_b[2]])
    *norms, mixed = matmul(norms, w)
    by_a, by_b = tails(jnp.stack(norms), jnp.where(exists[None], slopes[:, r, s], 0), slopes[:, 0, 0])
    by_both = 0.5 * beyond[3] / np.sqrt(degree + 1).astype(beyond.dtype)
    second_aa = (lowered * by_a + jnp.abs(L[1, 0]) * by_both) / L[0, 0]
    second_bb = (lowered * by_b + jnp.abs(L[1, 0]) * L[0, 0] / second * by_both) / second
    gradient = L[0, 0] ** 2 * norms[0] + 2 * L[0, 0] * L[1, 0] * mixed + second**2 * norms[1]
    second_tails = jnp.stack([second_aa, second_bb, 2 * by_both])
    return functions, beyond.at[1:].set(second_tails), _steep_tail(gradient, functions[0])


def _root_degrees(degree, dtype):
    """sqrt(m + 1), by which the derivative multiplies a mode of degree m + 1."""
    return np.sqrt(np.arange(1, degree + 2)).astype(dtype)


def _lowered(degree, dtype):
    """The largest sqrt((m + 1) / m) of the degrees m beyond this one."""
    return np.sqrt((degree + 2) / (degree + 1)).astype(dtype)


def tails(norms: Float[Array, " F"], functions: Float[Array, "F J S"], means: Float[Array, " F"]) -> Float[Array, " F"]:
    """The norms of what F functions have beyond their coefficients and means, from their squared norms."""
    return root_of_rest(norms, jnp.sum(functions**2, axis=(1, 2)) + means**2)


def _steep_tail(norm, functions):
    degrees = np.arange(1, functions.shape[0] + 1).astype(norm.dtype)
    return root_of_rest(norm, jnp.sum(degrees[:, None] * functions**2))


def without(functions: PairFunctions, degree: Int[Array, ""], activation: Activation) -> PairFunctions:
    """The functions as `pair_functions` gives them at a lower degree, the modes beyond it zero and counted in the
    tails."""
    m = jnp.arange(1, functions.value.shape[-2] + 1)[:, None]

    left = m > degree
    steepness = (m if activation.kinks else jnp.ones_like(m)).astype(functions.value.dtype)

    def norm(tail, coefficients, weight):
        beyond = jnp.where(left, weight, 0)
        return jnp.sqrt(tail**2 + jnp.einsum("...ms,mz->...", coefficients**2, beyond, precision="highest"))

    value_tail = norm(functions.value_tail, functions.value, jnp.ones_like(steepness))
    steep_tail = norm(functions.steep_tail, functions.value, steepness)
    second_tail = norm(functions.second_tail, functions.second, 1 / steepness)
    value, second = (
        jnp.where(jnp.expand_dims(left, range(x.ndim - 2)), 0, x) for x in (functions.value, functions.second)
    )
    return PairFunctions(value, second, value_tail, second_tail, steep_tail)
