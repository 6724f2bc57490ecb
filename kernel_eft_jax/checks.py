"""Checks at the door: each error names the argument, what was wrong and what would be right.

Only concrete values are looked at; under `jax.jit` and other transformations shapes are checked and values are not.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float


def is_concrete(value: Any) -> bool:
    """Whether a value can be looked at now: False under a JAX transformation."""
    return not isinstance(value, Tracer)


def check_kernel(K: Float[ArrayLike, "N N"], name: str = "K0") -> Float[Array, "N N"]:
    """K as a floating-point array, if it is a kernel: square, finite, symmetric, positive semi-definite, positive diagonal."""
    values = np.asarray(K, dtype=np.float64) if is_concrete(K) else None
    K = jnp.asarray(K)
    if K.ndim != 2 or K.shape[0] != K.shape[1] or K.shape[0] == 0:
        raise ValueError(f"Argument `{name}` must be a square matrix (inputs, inputs), but has shape {K.shape}.")
    if not jnp.issubdtype(K.dtype, jnp.floating):
        K = K.astype(float)
    if values is None:
        return K
    if not np.isfinite(values).all():
        a, b = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"Argument `{name}` must be finite, but entry [{a}, {b}] is {values[a, b]}.")
    tolerance = 32 * values.shape[0] * float(jnp.finfo(K.dtype).eps) * np.abs(values).max()
    gap = np.abs(values - values.T)
    if gap.max() > tolerance:
        a, b = np.unravel_index(gap.argmax(), gap.shape)
        raise ValueError(
            f"Argument `{name}` must be symmetric, but entry [{a}, {b}] is {values[a, b]} and [{b}, {a}] is {values[b, a]}."
        )
    variances = np.diagonal(values)
    if variances.min() <= 0:
        a = int(variances.argmin())
        raise ValueError(
            f"Argument `{name}` must have positive variances on its diagonal, but entry [{a}, {a}] is {variances[a]}. "
            "An input that is exactly zero has none: leave it out, or give the embedding a bias (C_b > 0 in input_kernel)."
        )
    smallest = np.linalg.eigvalsh(values).min()
    if smallest < -tolerance:
        raise ValueError(
            f"Argument `{name}` must be positive semi-definite, but its smallest eigenvalue is {smallest:.6g}. "
            "No set of inputs has such a kernel: check that the off-diagonal entries are covariances, not correlations."
        )
    return K


def check_positive(value: Any, name: str) -> None:
    """That a number is finite and greater than zero."""
    if is_concrete(value) and not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise ValueError(f"Argument `{name}` must be a finite number greater than zero, but is {value}.")


def check_count(value: Any, name: str, least: int = 1) -> None:
    """That a number is a whole number and at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"Argument `{name}` must be a whole number, {least} or more, but is {value!r}.")
