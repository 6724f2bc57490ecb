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

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..activations import Activation
from ..activations.base import enough_points, rule
from ..activations.pair_quadrature import outer_rule
from ..pairs import input_count, pair_table, pairs, triples
from ..quadrature import derivatives, hermite_polynomials, powers, remaining_scale
from .averages import averages

KINKS = 3.0  # a bound of sum m c_m^2 / (J sum c_m^2), sums over m > J, for the coefficients of |x|, which fall slowest


class Frame(NamedTuple):
    """Cholesky factor L of each pair's kernel and its inverse M, lower triangular; zero where psi_2 does not exist."""

    L: Float[Array, "P 2 2"]
    M: Float[Array, "P 2 2"]


class PairFunctions(NamedTuple):
    """Hermite coefficients of s_a s_b and of its second derivatives by (aa, bb, ab), the last counted twice.

    `value_tail` and `second_tail` are the norms of what these functions have beyond the degree.
    """

    value: Float[Array, "P J S"]
    second: Float[Array, "P 3 J S"]
    value_tail: Float[Array, " P"]
    second_tail: Float[Array, "P 3"]


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


def pair_blocks_between(k: Float[Array, " P"]) -> Float[Array, "P P 2 2"]:
    """The 2 x 2 block of a packed kernel between the inputs of one pair and those of another."""
    inputs = input_count(k.shape[-1])
    members = np.stack(pairs(inputs), axis=1)
    return k[pair_table(inputs)[members[:, None, :, None], members[None, :, None, :]]]


def overlaps(k: Float[Array, " P"], f: Frame) -> Float[Array, "P P 2 2"]:
    r"""$R_{pq} = E[\psi^p \psi^{q\,T}]$ for all pairs p, q."""
    return jnp.einsum("pij,pqjk,qlk->pqil", f.M, pair_blocks_between(k), f.M, precision="highest")


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
    squares of all coefficients. The second derivatives of a function with kinks have no norm: their tails are estimated
    as that of the function times the ratio of both sets of coefficients in the upper half of the degrees.
    """
    inputs = input_count(f.L.shape[0])
    m, s = modes(degree, inputs)
    r, exists = np.maximum(m - s, 0), m >= s
    points, root = enough_points(activation, degree + 2), np.sqrt(np.arange(1, degree + 2)).astype(f.L.dtype)

    def alone(k):
        x, w = rule(activation, jnp.zeros_like(k), k, points)
        he = hermite_polynomials(x, degree + 2)
        s_a, ds_a, dds_a = derivatives(activation, 2)(k * x)
        value, slope = jnp.matmul(jnp.stack([s_a * s_a, s_a * ds_a]) * w[None], he.T, precision="highest")
        third = 2 / 3 * root * slope[1:] / k
        norms = jnp.stack([s_a**4, (2 * (ds_a**2 + s_a * dds_a) / 3) ** 2])
        norms = jnp.matmul(norms, w, precision="highest")
        each = np.array([0, 1, 1, 1])
        found = jnp.stack([value[:-1], third])[each]
        functions = jnp.pad(found[:, 1:, None], ((0, 0), (0, 0), (0, s.size - 1)))
        return functions, tails(norms[each], functions, found[:, 0])

    def between(L):
        second = jnp.sqrt(L[1, 0] ** 2 + L[1, 1] ** 2)
        x, w = outer_rule(activation, (L[0, 0], second), L[1, 0], L[1, 1], points)
        table = hermite_polynomials(x, degree + 2) * w[None]
        s_a, ds_a, dds_a = derivatives(activation, 2)(L[0, 0] * x)
        over, squares = averages(activation, L[1, 0] * x[None], L[1, 1][None], w, s.size, ((0, 0), (1, 1), (2, 2)))
        s_b, ds_b, dds_b = jnp.moveaxis(over[:, :, 0], 1, 0)

        def project(u, v):
            return jnp.matmul(table * u[None], v.T, precision="highest")

        first = project(ds_a, ds_b)
        second_aa = (root[:, None] * project(ds_a, s_b)[1:] - L[1, 0] * first[:-1]) / L[0, 0]
        everything = jnp.stack([project(s_a, s_b)[:-1], second_aa, project(s_a, dds_b)[:-1], 2 * first[:-1]])
        functions = jnp.where(exists[None], everything[:, r, s], 0)
        of_b = squares[:, 0]
        norms = jnp.stack([s_a**2 * of_b[0], dds_a**2 * of_b[0], s_a**2 * of_b[2], 4 * ds_a**2 * of_b[1]])
        return functions, tails(jnp.matmul(norms, w, precision="highest"), functions, everything[:, 0, 0])

    def tails(norms, functions, means):
        held = jnp.sum(functions**2, axis=(1, 2)) + means**2
        beyond = jnp.maximum(norms - held, 8 * jnp.finfo(norms.dtype).eps * norms)
        found = jnp.where(beyond > 0, jnp.sqrt(jnp.where(beyond > 0, beyond, 1.0)), 0.0)
        if activation.kinks:
            upper = jnp.sum(jnp.where(m > degree // 2, functions**2, 0), axis=(1, 2))
            found = found.at[1:].set(KINKS * jnp.sqrt(upper[1:] / (upper[0] + jnp.finfo(upper.dtype).tiny)) * found[0])
        return found

    a, b = pairs(inputs)
    same, others = np.flatnonzero(a == b), np.flatnonzero(a != b)
    functions, beyond = jax.vmap(alone)(f.L[same, 0, 0])
    if inputs > 1:
        order = np.argsort(np.concatenate([same, others]))
        apart = jax.lax.map(between, f.L[others])
        functions, beyond = (jnp.concatenate(x)[order] for x in zip((functions, beyond), apart, strict=True))
    return PairFunctions(functions[:, 0], functions[:, 1:], beyond[:, 0], beyond[:, 1:])


def without(functions: PairFunctions, degree: Int[Array, ""], activation: Activation) -> PairFunctions:
    """The functions as `pair_functions` gives them at a lower degree, the modes beyond it zero and counted in the
    tails."""
    m = jnp.arange(1, functions.value.shape[-2] + 1)[:, None]

    def squares(coefficients, where):
        return jnp.sum(jnp.where(where, coefficients**2, 0), axis=(-2, -1))

    value_tail = jnp.sqrt(functions.value_tail**2 + squares(functions.value, m > degree))
    second_tail = jnp.sqrt(functions.second_tail**2 + squares(functions.second, m > degree))
    if activation.kinks:
        upper = (m > degree // 2) & (m <= degree)
        ratio = (
            squares(functions.second, upper)
            / (squares(functions.value, upper) + jnp.finfo(value_tail.dtype).tiny)[:, None]
        )
        second_tail = KINKS * jnp.sqrt(ratio) * value_tail[:, None]
    kept = m <= degree
    return PairFunctions(
        jnp.where(kept, functions.value, 0), jnp.where(kept, functions.second, 0), value_tail, second_tail
    )
