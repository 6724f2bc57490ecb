"""Matrix products in the full precision of their dtype: GPUs and TPUs round the factors of others to fewer bits."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def matmul(x: Float[Array, "*x k"], y: Float[Array, "*y"]) -> Float[Array, "*xy"]:
    """x y for matrices, for stacks of them, for a matrix and a vector, or for two vectors."""
    return jnp.matmul(x, y, precision="highest")
