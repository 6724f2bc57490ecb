"""Depth, in one language everywhere: layers with their steps eps, or depth times of the continuum,
$t_l = \\sum_{j \\le l} \\epsilon_j^2$."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from .checks import check_array, is_concrete, to_numpy

LARGEST_ROUNDING = 2e-4  # of a kernel, by the rounding of thin layers


def check_times(ts: Any) -> Any:
    """Depth times as a vector; a single number is a list of one. Known values come back as NumPy arrays, which stay
    known inside a user's jit."""
    if is_concrete(ts):
        ts = np.atleast_1d(to_numpy(ts, "ts"))
        if ts.dtype.kind == "c":
            raise ValueError(f"Argument `ts` must be real numbers, but has dtype {ts.dtype}: give its real part.")
        ts = ts.astype(np.float64)
    else:
        ts = jnp.atleast_1d(check_array(ts, "ts"))
    if ts.ndim != 1 or ts.shape[0] == 0:
        raise ValueError(f"Argument `ts` must be a list of depth times, but has shape {ts.shape}.")
    if is_concrete(ts) and (not np.isfinite(ts).all() or ts[0] < 0 or (np.diff(ts) <= 0).any()):
        raise ValueError(f"Argument `ts` must be finite, not negative and strictly increasing, but is {ts}.")
    return ts


def check_eps(eps: Any, decay: Any, depth: int) -> Float[Array, "*layers"]:
    r"""The step of each layer: one number, or one for each of `depth` layers, as a floating-point array.

    Raises ValueError for steps that are not finite and greater than zero, and where c eps^2 > 1.
    """
    values, eps = eps, check_array(eps, "eps")
    wanted = f"Argument `eps` must be a positive number, or one for each of the {depth} layers"
    if eps.ndim > 1 or (eps.ndim == 1 and eps.size != depth):
        raise ValueError(f"{wanted}, but has shape {eps.shape}.")
    if not is_concrete(values):
        return eps
    values = np.asarray(values, np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"{wanted}, but is {values}.")
    if is_concrete(decay):
        largest = float(np.max(values, initial=0.0))
        if float(decay) * largest**2 > 1 + 1e-6:
            raise ValueError(
                "Arguments `eps` and `decay` leave no real skip: a^2 = 1 - decay eps^2 is negative at decay = "
                f"{float(decay):.6g} and eps = {largest:.6g}. Take decay = 1 / eps^2 or less."
            )
    return eps


def check_survives_rounding(eps: Any, depth: int, dtype: Any) -> None:
    """Check that so many thin layers do not vanish in rounding: what a layer adds to a kernel is of the size of eps^2
    times the kernel, and below a hundred roundings of it the errors of many layers add up."""
    if not is_concrete(eps):
        return
    rounding = float(jnp.finfo(dtype).eps)
    dt = np.broadcast_to(np.asarray(eps, np.float64) ** 2, (depth,))
    thin = dt < 100 * rounding
    if 0.5 * rounding * np.count_nonzero(thin) > LARGEST_ROUNDING:
        raise ValueError(
            f"Argument `eps` makes {np.count_nonzero(thin):,} layers so thin, eps^2 = {dt.min():.2g} at least, that "
            f"what they add is lost in the rounding of {jnp.dtype(dtype)}: switch float64 on by "
            'jax.config.update("jax_enable_x64", True) and give the kernel again, or give the continuum '
            f"ts=[{dt.sum():.6g}] in place of layers."
        )


def squares(eps: Float[ArrayLike, "..."], depth: int, dtype: Any) -> Float[Array, " depth"]:
    """dt = eps^2 of every layer."""
    return jnp.broadcast_to(jnp.asarray(eps, dtype) ** 2, (depth,))


def first_steps(eps: Float[ArrayLike, "..."], layers: int) -> Float[np.ndarray, " layers"]:
    """eps of each of the first `layers` layers, from one number or one for each of them and more."""
    eps = np.asarray(eps, np.float64)
    return np.full(layers, eps) if eps.ndim == 0 else eps[:layers]


def times_of_layers(
    layers: Sequence[int] | Int[np.ndarray, " T"], eps: Float[ArrayLike, "..."]
) -> Float[np.ndarray, " T"]:
    """Depth times of layers, with known eps."""
    layers = np.asarray(layers, np.int64)
    eps = np.asarray(eps, np.float64)
    if eps.ndim == 0:
        return eps**2 * layers
    return np.concatenate([[0.0], np.cumsum(eps**2)])[layers]
