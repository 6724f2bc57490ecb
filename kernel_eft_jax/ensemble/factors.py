r"""Kernels, their factors and products with them, for many networks at once: arrays (inputs, neurons or inputs,
networks), networks innermost.

Increments of covariance Q are L z, $L L^T = Q$. The matrix Q determines the part of an input that earlier inputs do not
explain only to rounding of the whole, so that little or nothing of this part is left for nearly equal inputs.
`features_factor` finds it in the features themselves, since Q is their kernel: differences of features are exact.
"""

from collections.abc import Callable
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..cholesky import UNROLLED, semidefinite_cholesky
from ..kernel_maps import Dense
from ..linear import matmul
from ..pairs import input_count, pack, pair_table

WRITTEN_OUT = 2 * UNROLLED  # up to this many inputs, factors and their products are written out with networks innermost
DOUBTFUL = 1000  # in units of rounding: a smaller relative pivot is computed from the features


def gram(s: Float[Array, "N n B"]) -> Float[Array, "P B"]:
    r"""$\frac1n \sum_i s_i(a) s_i(b)$ of every network, packed."""
    inputs, width, networks = s.shape
    if inputs <= WRITTEN_OUT:
        # Neurons are cut into eight parts that are added elementwise: such a sum fills a vector register, and a
        # reduction over all neurons does not.
        rows = width // 8
        x, rest = s[:, : 8 * rows].reshape(inputs, 8, rows, networks), s[:, 8 * rows :]
        sums = [
            jnp.concatenate(
                [reduce(add, (x[a, i][None] * x[a:, i] for i in range(8))), rest[a][None] * rest[a:]], axis=1
            )
            for a in range(inputs)
        ]
        # The barrier keeps the compiler from cutting the sum of one input into eight passes.
        return jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(sums)), axis=1) / width
    s = jnp.moveaxis(s, -1, 0)
    return pack(matmul(s, s.mT)).T / width


def mix(L: Float[Array, "N N #B"], z: Float[Array, "N n B"], full: bool = False) -> Float[Array, "N n B"]:
    """L z for every network, L lower triangular unless `full`."""
    inputs = z.shape[0]
    if inputs <= WRITTEN_OUT:
        last = [inputs if full else a + 1 for a in range(inputs)]
        return jnp.stack(
            [sum(L[a, b][None] * z[b] for b in range(1, last[a])) + L[a, 0][None] * z[0] for a in range(inputs)]
        )
    return jnp.moveaxis(matmul(jnp.moveaxis(L, -1, 0), jnp.moveaxis(z, -1, 0)), 0, -1)


def cholesky_of_networks(Q: Float[Array, "N N B"]) -> Float[Array, "N N B"]:
    """`semidefinite_cholesky` of every network."""
    return jax.vmap(semidefinite_cholesky, -1, -1)(Q) if Q.shape[0] > WRITTEN_OUT else cholesky_written_out(Q)


def cholesky_written_out(Q: Float[Array, "N N B"]) -> Float[Array, "N N B"]:
    """`semidefinite_cholesky` of every network, written out with networks innermost: several times faster for 16
    inputs.

    Not for many more: compile time grows like their square.
    """
    inputs, columns = Q.shape[0], []
    Q = rest = jax.lax.optimization_barrier(Q)
    for first in range(0, inputs, UNROLLED):
        panel = [rest[j:, j] for j in range(min(UNROLLED, inputs - first))]
        for j, column in enumerate(panel):
            for k in range(j):
                column = column - panel[k][j - k :] * panel[k][j - k][None]
            regular = column[0] > 10 * inputs * jnp.finfo(Q.dtype).eps * Q[first + j, first + j]
            panel[j] = column * jnp.where(regular, 1 / jnp.sqrt(jnp.where(regular, column[0], 1)), 0)[None]
        panel = jax.lax.optimization_barrier(panel)
        below = [column[len(panel) - j :] for j, column in enumerate(panel)]
        rest = rest[len(panel) :, len(panel) :] - sum(x[:, None] * x[None] for x in below)
        rest = jax.lax.optimization_barrier(rest)
        columns += panel
    return jnp.stack([jnp.pad(column, ((j, 0), (0, 0))) for j, column in enumerate(columns)], axis=1)


def features_factor(
    dense: Dense, S: Float[Array, "P B"], features: Callable[[], Float[Array, "N m B"]]
) -> Float[Array, "N N B"]:
    """Lower-triangular L with L L^T = C_b + C_W S, S the kernel of the features.

    For a network with a doubtful pivot L comes from its features, and only then are features asked for again. No
    network's L depends on another network. A part of an input below 10 N roundings of the whole is zero, as that of a
    repeated input.
    """
    Q = dense.value(S)[pair_table(input_count(S.shape[0]))]
    L, diagonal = cholesky_of_networks(Q), jnp.diagonal(Q).T
    doubtful = jnp.any(DOUBTFUL * jnp.finfo(Q.dtype).eps * diagonal > jnp.diagonal(L).T ** 2, axis=0)
    with jax.named_scope("doubtful"):  # `benchmarks/gpu_program.py` counts by it
        return jax.lax.cond(
            jnp.any(doubtful), lambda: jnp.where(doubtful, orthogonalised(dense, Q, features()), L), lambda: L
        )


def orthogonalised(dense: Dense, Q: Float[Array, "N N B"], x: Float[Array, "N m B"]) -> Float[Array, "N N B"]:
    """The factor of Q by two rounds of Gram and Schmidt on the feature vectors: each round takes what the last one has
    left of them.

    Every round subtracts from a vector its parts along earlier inputs, except along those whose own rest is doubtful.
    With y the rest, x = C y, the factor of Q is C times the factor of the kernel of y for any C: so C is held fixed in
    derivatives.
    """
    table, floor = pair_table(Q.shape[0]), (10 * Q.shape[0] * jnp.finfo(Q.dtype).eps) ** 2 * jnp.diagonal(Q).T
    C_W, C_b = dense.C_W.astype(Q.dtype), dense.C_b.astype(Q.dtype)
    y, bias = x, jnp.ones_like(x[:, :1])
    total, rest = jnp.broadcast_to(jnp.eye(Q.shape[0], dtype=Q.dtype)[:, :, None], Q.shape), Q
    for _ in range(2):
        C, inverse = jax.tree.map(jax.lax.stop_gradient, eliminate(rest))
        total, y, bias = mix(total, C), mix(inverse, y), mix(inverse, bias)
        rest = (C_W * gram(y) + C_b * gram(bias))[table]
        seen = floor < jnp.diagonal(rest).T  # a rest that is only rounding must not count as a direction
        y, bias = zeroed(y, seen[:, None]), zeroed(bias, seen[:, None])
        rest = zeroed(rest, seen[:, None] & seen[None])
    return mix(total, cholesky_of_networks(rest))


def zeroed(x: Float[Array, "*shape"], kept: Bool[Array, "*#shape"]) -> Float[Array, "*shape"]:
    """x where it is `kept`, and zero elsewhere. The derivative is that of x everywhere, since a number that is zero may
    still change."""
    return x - jax.lax.stop_gradient(jnp.where(kept, 0, x))


def eliminate(Q: Float[Array, "N N B"]) -> tuple[Float[Array, "N N B"], Float[Array, "N N B"]]:
    """Unit lower-triangular C and its inverse: C^-1 Q C^-T is diagonal, except in rows and columns of doubtful
    pivots."""
    inputs = Q.shape[0]
    floor, rows = DOUBTFUL * jnp.finfo(Q.dtype).eps * jnp.diagonal(Q).T, jnp.arange(inputs)[:, None]
    unit = jnp.broadcast_to(jnp.eye(inputs, dtype=Q.dtype)[:, :, None], Q.shape)

    def step(j, state):
        rest, C, inverse = state
        pivot = rest[j, j][None]
        regular = pivot > floor[j][None]
        # For a copy c must be exactly 1, so that nothing is left of it; the compiler's reciprocals would give nearly 1.
        c = jnp.where(rest[:, j] == pivot, 1, rest[:, j] / jnp.where(regular, pivot, 1))
        c = jnp.where(regular & (rows > j), c, 0)
        return rest - c[:, None] * rest[j][None], C.at[:, j].add(c), inverse - c[:, None] * inverse[j][None]

    return jax.lax.fori_loop(0, inputs, step, (Q, unit, unit))[1:]


def unit_rows(L: Float[Array, "N N B"]) -> Float[Array, "N N B"]:
    """Each row of L divided by its length: the direction of an input's increments among the normals. A row of zeros is
    replaced by the input's own normals."""
    squares = jnp.sum(L**2, axis=1)
    some = squares > 0
    scale = jnp.where(some, 1 / jnp.sqrt(jnp.where(some, squares, 1)), 0)
    own = jnp.eye(L.shape[0], dtype=L.dtype)[:, :, None]
    return L * scale[:, None] + jnp.where(some, 0, 1)[:, None].astype(L.dtype) * own


def near_factor(
    L0: Float[Array, "N N"], inverse: Float[Array, "N N"], L: Float[Array, "N N B"]
) -> Float[Array, "N N B"]:
    r"""A factor L0 U of $L_0 L_0^T$, U orthogonal, that is near to L and hardly depends on the order of the inputs.

    $$U = (1 - A)^{-1} (1 + A), \qquad A = \tfrac14 (M - M^T), \qquad M = L_0^{-1} L$$

    is orthogonal for every A, and to first order in M - 1 it is the orthogonal part of M (Cayley). Directions that L0
    lacks stay as they are.
    """
    inputs = L.shape[0]
    below = jnp.tril(jnp.ones((inputs, inputs), L.dtype), -1)[:, :, None]
    M = below * jnp.clip(mix(inverse[:, :, None], L), -4, 4)
    A = 0.25 * (M - jnp.swapaxes(M, 0, 1))
    unit = jnp.broadcast_to(jnp.eye(inputs, dtype=L.dtype)[:, :, None], L.shape)

    def step(j, state):  # Gauss and Jordan, without a search for pivots: the symmetric part of 1 - A is 1
        scale = 1 / state[0][j, j][None]
        lines = [x[j] * scale for x in state]
        column = state[0][:, j].at[j].add(-1)
        return tuple(x - column[:, None] * line[None] for x, line in zip(state, lines, strict=True))

    U = jax.lax.fori_loop(0, inputs, step, (unit - A, unit + A), unroll=inputs <= UNROLLED)[1]
    return mix(L0[:, :, None], U)


def lower_inverse(L: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """The inverse of a lower-triangular factor; its rows are zero for directions that the factor lacks."""
    regular = jnp.diagonal(L) > 0
    unit = jnp.eye(L.shape[0], dtype=L.dtype)
    whole = L + jnp.diag(jnp.where(regular, 0, 1).astype(L.dtype))
    return jnp.where(regular[:, None], jax.scipy.linalg.solve_triangular(whole, unit, lower=True), 0)
