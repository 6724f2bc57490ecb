"""Which numbers of a trajectory are rounding alone: what is shown of them is zero."""

import numpy as np
from jaxtyping import ArrayLike, Float

NOISE = 100  # units in the last place


def significant(
    values: Float[ArrayLike, "T N N"] | Float[ArrayLike, "T N N N N"],
    K0: Float[ArrayLike, "T N N"],
    variance: Float[ArrayLike, "T N N"],
    rate: Float[ArrayLike, " T"] | float = 1.0,
) -> np.ndarray:
    r"""K1 or V4, with zero in place of entries that rounding alone may leave.

    K1_ab is a sum of terms of size $k_{ab} (1 + v)$, $k_{ab} = \sqrt{K_{0;aa} K_{0;bb}}$ and v the largest
    V4_aa,aa / K0_aa^2; V4_ab,cd of terms $k_{ab} k_{cd} (1 + v)$. Below a hundred units in the last place of that size
    no digit is right.

    Args:
        values: K1 or V4, or a derivative of them.
        K0: Mean kernel.
        variance: V4_ab,ab.
        rate: For a derivative, the relative change of the kernel by the parameter.
    """
    values, K0, variance = map(np.asarray, (values, K0, variance))
    square = np.diagonal(K0, axis1=1, axis2=2)
    size = np.sqrt(square[:, :, None] * square[:, None, :])
    terms = 1 + np.max(np.diagonal(variance, axis1=1, axis2=2) / square**2, axis=1)
    least = (NOISE * np.finfo(values.dtype).eps * terms * rate)[:, None, None] * size
    if values.ndim == 5:
        least = least[:, :, :, None, None] * size[:, None, None, :, :]
    return np.where(np.abs(values) <= least, 0, values)  # not a number stays so


def relative_rate(derivative: Float[ArrayLike, "T N N"], K0: Float[ArrayLike, "T N N"]) -> Float[np.ndarray, " T"]:
    """The largest change of an entry of K0 by a parameter, relative to the size of the entry."""
    square = np.diagonal(np.asarray(K0), axis1=1, axis2=2)
    return np.max(np.abs(derivative) / np.sqrt(square[:, :, None] * square[:, None, :]), axis=(1, 2))
