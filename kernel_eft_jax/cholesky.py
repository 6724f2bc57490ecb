"""The Cholesky factor of a covariance of any rank: repeated inputs, and more inputs than neurons, are exact."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .linear import matmul

UNROLLED = 8  # up to this many inputs, N x N algebra is written out; beyond, it is a loop or a batched product


def semidefinite_cholesky(Q: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """Lower-triangular L with L L^T = Q, for positive semi-definite Q of any rank.

    A pivot that is zero to rounding (an input that depends on earlier ones) gives a column of zeros, which is exact for
    a rank-deficient Q; nothing is added to Q. Columns come in panels, written out, so that they fuse over a batch.
    """
    inputs = Q.shape[0]
    rows, floor = jnp.arange(inputs), 10 * inputs * jnp.finfo(Q.dtype).eps * jnp.diagonal(Q)

    def eliminate(columns, first):
        for j in range(len(columns)):
            pivot = columns[j][first + j]
            regular = pivot > floor[first + j]
            scale = jnp.where(regular, 1 / jnp.sqrt(jnp.where(regular, pivot, 1)), 0)
            columns[j] = jnp.where(rows >= first + j, columns[j] * scale, 0)
            for i in range(j + 1, len(columns)):
                columns[i] = columns[i] - columns[j] * columns[j][first + i]
        return jnp.stack(columns, axis=1)

    def panel(first, width, L):
        done = jax.lax.dynamic_slice_in_dim(L, first, width, axis=0)
        rest = jax.lax.dynamic_slice_in_dim(Q, first, width, axis=1) - matmul(L, done.T)
        columns = eliminate([rest[:, j] for j in range(width)], first)
        return jax.lax.dynamic_update_slice_in_dim(L, columns, first, axis=1)

    if inputs <= UNROLLED:
        return eliminate([Q[:, j] for j in range(inputs)], 0)
    whole, last = divmod(inputs, UNROLLED)
    L = jax.lax.fori_loop(0, whole, lambda k, L: panel(k * UNROLLED, UNROLLED, L), jnp.zeros_like(Q))
    return panel(whole * UNROLLED, last, L) if last else L
