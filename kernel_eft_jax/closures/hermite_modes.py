r"""Functions of a pair of inputs in orthonormal Hermite modes, and covariances between modes of different pairs.

For a pair cd, (phi_c, phi_d) = L psi with psi two independent standard normals (L the Cholesky factor of the pair's kernel),
and the modes are w_rs = he_r(psi_1) he_s(psi_2), 1 <= r + s <= degree. They are Wick monomials of phi_c, phi_d scaled to
variance one, whatever the correlation, so nothing grows with the degree. Modes of two pairs p, q correlate within one
degree m = r + s only, through the symmetric power of a 2 x 2 matrix:

$$E[w^p_{rs} w^q_{il}] = \mathrm{Sym}^m(R)_{rs,il}, \qquad R = E[\psi^p \psi^{q\,T}] = M_p K M_q^T, \qquad M = L^{-1}$$

So it is for psi_2 of any variance: where phi_d follows from phi_c (rho = 1 or -1) psi_2 is small beside its scale in L, and what
it contributes is zero but has the right derivative. For one input with itself psi_2 does not exist: its rows of L and M are zero.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..activations import Activation
from ..activations.base import enough_points
from ..activations.summation import outer_rule
from ..pairs import input_count, pair_table, pairs, triples
from ..quadrature import hermite_polynomials, powers, remaining_scale


class Frame(NamedTuple):
    """Cholesky factor L of each pair's kernel and its inverse M, lower triangular; zero where psi_2 does not exist."""

    L: Float[Array, "P 2 2"]
    M: Float[Array, "P 2 2"]


class PairFunctions(NamedTuple):
    """Hermite coefficients of s_a s_b and of its second derivatives by (aa, bb, ab), the last counted twice."""

    value: Float[Array, "P J S"]
    bend: Float[Array, "P 3 J S"]


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
    first = jnp.sqrt(k_aa)
    across = k_ab / first
    second = remaining_scale(k_bb - across**2, k_bb)
    inverse = jnp.where(a == b, 0.0, 1 / second)
    second = jnp.where(a == b, 0.0, second)
    zero = jnp.zeros_like(first)

    def stack(x11, x21, x22):
        return jnp.stack([jnp.stack([x11, zero], -1), jnp.stack([x21, x22], -1)], -2)

    return Frame(stack(first, across, second), stack(1 / first, -across / first * inverse, inverse))


def frame_drift(k: Float[Array, " P"], q: Float[Array, " P"]) -> Float[Array, "P 2 2"]:
    r"""$\dot M M^{-1} = -M \dot L$ for $\dot K = Q$."""
    f, rate = jax.jvp(frame, (k,), (q,))
    return -f.M @ rate.L


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
    s = np.arange(columns).astype(w.dtype)

    def next_degree(T, m_and_w):
        m, w_m = m_and_w
        stay, up = jnp.sqrt(jnp.maximum(m - s, 0) / m), jnp.sqrt(s / m)
        along = [[R[..., i, j, None, None] * T for j in (0, 1)] for i in (0, 1)]
        rows = [stay * along[i][0] + up * jnp.roll(along[i][1], 1, axis=-1) for i in (0, 1)]
        T = stay[:, None] * rows[0] + up[:, None] * jnp.roll(rows[1], 1, axis=-2)
        return T, jnp.einsum("...st,...t->...s", T, w_m, precision="highest")

    batch = jnp.broadcast_shapes(R.shape[:-2], w.shape[:-2])
    first = jnp.zeros((*R.shape[:-2], columns, columns), w.dtype).at[..., 0, 0].set(1)
    degrees = jnp.arange(1, degree + 1, dtype=w.dtype)
    _, rotated = jax.lax.scan(next_degree, first, (degrees, jnp.moveaxis(w, -2, 0)))
    return jnp.broadcast_to(jnp.moveaxis(rotated, 0, -2), (*batch, degree, columns))


def rotation_drift(B: Float[Array, "C 2 2"], w: Float[Array, "*batch C J S"]) -> Float[Array, "*batch C J S"]:
    r"""The derivative of `rotate` at R = 1 along B: how modes move when $\dot\psi = B \psi$, B lower triangular."""
    inputs = input_count(B.shape[0])
    m, s = modes(w.shape[-2], inputs)
    r = np.maximum(m - s, 0)
    b11, b21, b22 = (B[:, i, j, None, None] for i, j in ((0, 0), (1, 0), (1, 1)))
    return (b11 * r.astype(B.dtype) + b22 * s.astype(B.dtype)) * w + b21 * np.sqrt(s * (r + 1)).astype(
        B.dtype
    ) * jnp.roll(w, 1, axis=-1)


def mode_covariances(k: Float[Array, " P"], f: Frame, value: Float[Array, "P J S"]) -> Float[Array, "P P J S"]:
    r"""$\mathrm{Cov}(F_p, w^q_{rs})$ for functions F_p of pair p (first axis) and the modes of every pair q (second)."""
    return rotate(jnp.swapaxes(overlaps(k, f), 0, 1), value[:, None])


def pair_functions(activation: Activation, f: Frame, degree: int) -> PairFunctions:
    r"""Hermite coefficients of $s_a s_b$, $s''_a s_b$, $s_a s''_b$ and $2 s'_a s'_b$ for every pair.

    phi_b is averaged over psi_2 by the activation (`smoothed_orders`), the rest is summed over psi_1. The first of the second
    derivatives is taken by parts, $\partial_a = (\partial_1 - L_{21} \partial_b) / L_{11}$, so that a kink needs no delta function.
    """
    inputs = input_count(f.L.shape[0])
    m, s = modes(degree, inputs)
    r, exists = np.maximum(m - s, 0), m >= s
    points, root = enough_points(activation, degree + 2), np.sqrt(np.arange(1, degree + 2)).astype(f.L.dtype)[:, None]

    def between(L, same):
        second = jnp.sqrt(L[1, 0] ** 2 + L[1, 1] ** 2)
        x, w = outer_rule(activation, (L[0, 0], second), L[1, 0], L[1, 1], points)
        table, phi_a = hermite_polynomials(x, degree + 2) * w[None], L[0, 0] * x
        s_a, ds_a = activation(phi_a), activation.derivative(phi_a)
        sharp = jnp.stack([s_a, ds_a, jnp.zeros_like(s_a)])
        alone = jnp.pad(sharp[:, :, None], ((0, 0), (0, 0), (0, s.size - 1)))
        s_b, ds_b, dds_b = alone
        if inputs > 1:
            averages = partial(activation.smoothed_orders, L[1, 0] * x, L[1, 1], s.size)
            s_b, ds_b, dds_b = jax.lax.cond(same, lambda: alone, averages)

        def project(u, v):
            return jnp.matmul(table * u[None], v, precision="highest")

        bend_ab = project(ds_a, ds_b)
        bend_aa = (root * project(ds_a, s_b)[1:] - L[1, 0] * bend_ab[:-1]) / L[0, 0]
        # One input with itself has no psi_2 over which a delta function could be averaged.
        bend_bb = jnp.where(same, bend_aa, project(s_a, dds_b)[:-1])
        places = jnp.stack([project(s_a, s_b)[:-1], bend_aa, bend_bb, 2 * bend_ab[:-1]])
        return jnp.where(exists[None], places[:, r, s], 0)

    a, b = pairs(inputs)
    result = jax.lax.map(lambda pair: between(*pair), (f.L, jnp.asarray(a == b)))
    return PairFunctions(result[:, 0], result[:, 1:])
