r"""Functions of a pair of inputs in orthonormal Hermite modes, and covariances between modes of different pairs.

For a pair cd, (phi_c, phi_d) = L psi with psi two independent standard normals (L the Cholesky factor of the pair's kernel),
and the modes are w_rs = he_r(psi_1) he_s(psi_2), 1 <= r + s <= degree. They are Wick monomials of phi_c, phi_d scaled to
variance one, whatever the correlation, so nothing grows with the degree. Modes of two pairs p, q correlate within one
degree m = r + s only, through the symmetric power of a 2 x 2 matrix:

$$E[w^p_{rs} w^q_{il}] = \mathrm{Sym}^m(R)_{rs,il}, \qquad R = E[\psi^p \psi^{q\,T}] = M_p K M_q^T, \qquad M = L^{-1}$$

So it is for psi_2 of any variance: where phi_d follows from phi_c (rho = 1 or -1) psi_2 is small beside its scale in L, and what
it contributes is zero but has the right derivative. For one input with itself psi_2 does not exist: its rows of L and M are zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..activations import Activation
from ..pairs import input_count, pair_table, pairs, triples
from ..quadrature import derivative, line_rule, powers

KINKS = 3.0  # bounds sum m c_m^2 / (J sum c_m^2) over m > J for coefficients that fall like those of |x|, the slowest


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
    first = jnp.sqrt(k_aa)
    across = k_ab / first
    second = remaining_scale(k_bb - across**2, k_bb)
    inverse = jnp.where(a == b, 0.0, 1 / second)
    second = jnp.where(a == b, 0.0, second)
    zero = jnp.zeros_like(first)

    def stack(x11, x21, x22):
        return jnp.stack([jnp.stack([x11, zero], -1), jnp.stack([x21, x22], -1)], -2)

    return Frame(stack(first, across, second), stack(1 / first, -across / first * inverse, inverse))


def remaining_scale(rest: Float[Array, "*shape"], variance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root of a remaining variance, and a scale above its rounding error where nothing remains.

    Functions of it are right to 1e-9 in float64; so are their derivatives, to 1e-7 where nothing remains.
    """
    least = jnp.finfo(rest.dtype).eps ** 0.6 * variance
    x = jax.lax.stop_gradient(rest / least)
    return jnp.sqrt(rest + least * jnp.where(x > 0, jnp.exp(-x), 1 - 2 * x))


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


def mode_covariances(k: Float[Array, " P"], f: Frame, value: Float[Array, "P J S"]) -> Float[Array, "P P J S"]:
    r"""$\mathrm{Cov}(F_p, w^q_{rs})$ for functions F_p of pair p (first axis) and the modes of every pair q (second)."""
    return rotate(jnp.swapaxes(overlaps(k, f), 0, 1), value[:, None])


def hermite_functions(x: np.ndarray, degree: int) -> np.ndarray:
    """he_0 ... he_degree at x."""
    he = np.ones((degree + 1, x.size))
    he[1:2] = x
    for j in range(1, degree):
        he[j + 1] = (x * he[j] - np.sqrt(j) * he[j - 1]) / np.sqrt(j + 1)
    return he


def split_rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for a standard normal variable, for functions smooth on either side of zero.

    Panels shrink towards zero, down to `remaining_scale`: there lie the kinks of other inputs, smoothed where they are nearly copies.
    """
    near, far = np.append(0, 4.0 ** np.arange(-9, 1)), np.arange(1, 11)
    rules = [_panels(near, 8), _panels(far, 16)]
    x, w = (np.concatenate(parts) for parts in zip(*rules, strict=True))
    x, w = np.concatenate([-x[::-1], x]), np.concatenate([w[::-1], w])
    return x, w * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def _panels(edges, points):
    """Gauss and Legendre between neighbouring edges."""
    x, w = np.polynomial.legendre.leggauss(points)
    half = 0.5 * np.diff(edges)[:, None]
    return (edges[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel()


def pair_functions(activation: Activation, f: Frame, degree: int) -> PairFunctions:
    r"""Hermite coefficients of $s_a s_b$, $s''_a s_b$, $s_a s''_b$ and $2 s'_a s'_b$ for every pair.

    phi_b is averaged over psi_2 by the activation (`smoothed`), the rest is summed over psi_1. The first of the second
    derivatives is taken by parts, $\partial_a = (\partial_1 - L_{21} \partial_b) / L_{11}$, so that a kink at zero needs no delta function.
    The tails follow from the exact norms, $E[s_a^2 s_b^2]$ and so on, less all coefficients; the second derivatives of a function with
    kinks have no norm, and their tails are estimated from that of the function and the ratio of both in the upper half of the degrees.
    """
    inputs = input_count(f.L.shape[0])
    x, w = split_rule()
    dtype = f.L.dtype
    table = (hermite_functions(x, degree + 1) * w).astype(dtype)
    m, s = modes(degree, inputs)
    r, exists = np.maximum(m - s, 0), m >= s
    root = np.sqrt(np.arange(1, degree + 2)).astype(dtype)[:, None]

    def one(L, same):
        phi_a = L[0, 0] * x.astype(dtype)
        s_a, ds_a = activation(phi_a), activation.derivative(phi_a)
        s_b, ds_b, dds_b = (activation.smoothed(i, L[1, 0] * x.astype(dtype), L[1, 1], s.size) for i in range(3))

        def project(u, v):
            return jnp.matmul(table * u, v, precision="highest")

        def place(c):
            return jnp.where(exists, c[r, s], 0)

        first = project(ds_a, ds_b)
        second_aa, second_bb = (root * project(ds_a, s_b)[1:] - L[1, 0] * first[:-1]) / L[0, 0], project(s_a, dds_b)
        value, second = project(s_a, s_b), jnp.stack([place(second_aa), place(second_bb), 2 * place(first)])
        squares = [square(activation, i, L[1, 0] * x.astype(dtype), L[1, 1]) for i in range(3)]
        dds_a = derivative(activation, 2)(phi_a)
        norms = jnp.stack([s_a**2 * squares[0], dds_a**2 * squares[0], s_a**2 * squares[2], 4 * ds_a**2 * squares[1]])
        means = jnp.stack([value[0, 0], second_aa[0, 0], second_bb[0, 0], 2 * first[0, 0]])
        found, norms = place(value), jnp.matmul(norms, w.astype(dtype), precision="highest")
        # On the diagonal the three second derivatives are one function.
        norms = jnp.where(
            same, norms.at[1:].set(jnp.matmul((2 * ds_a**2 + 2 * s_a * dds_a) ** 2, w.astype(dtype)) / 9), norms
        )
        means = jnp.where(same, means.at[1:].set(jnp.sum(means[1:]) / 3), means)
        functions = jnp.concatenate([found[None], jnp.where(same, jnp.sum(second, axis=0) / 3, second)])
        held = jnp.sum(functions**2, axis=(1, 2)) + means**2
        tails = jnp.sqrt(jnp.maximum(norms - held, 8 * jnp.finfo(dtype).eps * norms))
        if getattr(activation, "kinks", ()) or type(activation).__name__ in ("ReLU", "LeakyReLU"):
            upper = jnp.where(m > degree // 2, 1, 0).astype(dtype)
            squares = jnp.sum(upper * functions**2, axis=(1, 2))
            tails = tails.at[1:].set(KINKS * jnp.sqrt(squares[1:] / (squares[0] + jnp.finfo(dtype).tiny)) * tails[0])
        return PairFunctions(found, second, tails[0], tails[1:])

    a, b = pairs(inputs)
    return jax.vmap(one)(f.L, a == b)


def square(activation: Activation, order: int, mean: Float[Array, " X"], width: Float[Array, ""]) -> Float[Array, " X"]:
    y, w = line_rule(1 / 8)
    values = derivative(activation, order)(mean[:, None] + width * y.astype(mean.dtype))
    return jnp.matmul(values**2, w.astype(mean.dtype), precision="highest")
