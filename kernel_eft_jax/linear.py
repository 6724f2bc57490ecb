"""Matrix products in the full precision of their dtype: GPUs and TPUs round the factors of others to fewer bits."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def matmul(x: Float[Array, "*#batch n k"], y: Float[Array, "*#batch k m"]) -> Float[Array, "*batch n m"]:
    """x y for matrices, or for stacks of them."""
    return jnp.matmul(x, y, precision="highest")
