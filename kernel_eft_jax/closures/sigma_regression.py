r"""The regression that `SigmaKernel` takes, of the second derivatives of s_a s_b on the local
z = (phi_c phi_d, s_c s_d), cd in (aa, bb, ab); and its error."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..activations import Activation
from ..activations.base import rule
from ..expectations.conditional import Conditional
from ..expectations.four_point import local_products
from ..kernel_maps import apply_gradient
from ..linear import matmul
from ..pairs import diagonal, input_count, pairs, triples, wick
from ..quadrature import derivatives
from ..selecting import safe_ratio


class Regression(NamedTuple):
    """At a kernel: E[s s] with its derivatives, and the regression of the second derivatives of s_a s_b (by aa, bb, and
    ab twice) on the local z."""

    value: Float[Array, " P"]
    gradient: Float[Array, "P 3"]
    hessian: Float[Array, "P 3 3"]
    projection: Float[Array, "P 3 6"]


def regression(given: Conditional) -> Regression:
    """The regression at a kernel, from averages given each input."""
    expansion, cross, C = _local_moments(given)
    return Regression(*expansion, matmul(cross, _pseudo_inverse(C)))


def _local_moments(given: Conditional):
    """The expansion, the covariances of the second derivatives with the local z, and those of z."""
    k = given.k
    triple = triples(input_count(k.shape[0]))
    value, gradient, hessian = given.activation.expansion(k)
    # The mean of each second derivative is twice a gradient (Price), and Cov(f, phi phi) is how it moves with K.
    local_wick = wick(k)[triple[:, :, None], triple[:, None, :]]
    with_g = 2 * jnp.einsum("ptu,puv->ptv", hessian, local_wick, precision="highest")
    second, ss = local_products(given)
    # For one input with itself only the sum of the three second derivatives has a meaning: each place holds a third.
    a, b = pairs(input_count(k.shape[0]))
    second = jnp.where((a == b)[:, None, None], jnp.mean(second, axis=1, keepdims=True), second)
    with_y = second - 2 * gradient[:, :, None] * value[triple][:, None, :]
    sp = apply_gradient(gradient, wick(k))[triple[:, :, None], triple[:, None, :]]
    ss = ss - value[triple][:, :, None] * value[triple][:, None, :]
    C = jnp.concatenate([jnp.concatenate([local_wick, jnp.swapaxes(sp, 1, 2)], 2), jnp.concatenate([sp, ss], 2)], 1)
    return (value, gradient, hessian), jnp.concatenate([with_g, with_y], axis=-1), C


def regression_error(given: Conditional) -> Float[Array, ""]:
    """What rounding and the directions that the pseudo-inverse drops make of the regression."""
    k, activation = given.k, given.activation
    C = jax.lax.stop_gradient(_local_moments(given)[-1])
    variances = k[diagonal(input_count(k.shape[0]))]
    alone = jax.lax.map(lambda k: dropped_of_one(activation, k, _threshold(C)), variances)
    return jnp.maximum(_eigenvalue_error(C), jnp.max(alone))


def _eigenvalue_error(C):
    """The larger of two errors, of rounding and of the directions that are dropped.

    The share of an eigenvalue is the eigenvalue divided by the largest one. The error of rounding is eps over the
    smallest share that is kept. The error of the dropped directions is the root of the largest share that is dropped,
    because no function of norm one has a larger covariance with a direction of this share. Dropped shares below ten
    roundings do not count: such a direction may not exist.
    """
    eigenvalues, eps = jnp.linalg.eigvalsh(C * _unit_diagonal(C)), jnp.finfo(C.dtype).eps
    shares = eigenvalues / jnp.max(eigenvalues, axis=-1, keepdims=True)
    kept = shares > _threshold(C)
    dropped = jnp.max(jnp.where(kept | (shares < 10 * eps), 0, shares))
    return jnp.maximum(eps / jnp.min(jnp.where(kept, shares, 1)), jnp.sqrt(dropped))


def dropped_of_one(activation: Activation, k: Float[Array, ""], threshold: float) -> Float[Array, ""]:
    r"""What one input loses with $r = s^2 - \alpha - \beta \phi^2$, the part of $s^2$ that does not follow from
    $\phi^2$, where the pseudo-inverse drops it: a part of K1, in units of K0.

    Noise moves r together with $s^2$ at a rate $Q\, E[r' (s^2)'] = Q\, E[r'^2]$, and the regression would follow r with
    $E[(s^2)'' r] / E[r^2] = E[r'' r] / E[r^2]$. For s near |x| the share of r is tiny where this product is not.
    """
    x, w = rule(activation, jnp.zeros_like(k), jnp.sqrt(k))
    s, ds = derivatives(activation, 1)(jnp.sqrt(k) * x)
    square, slope = s * s, 2 * jnp.sqrt(k) * s * ds  # of x, whose variance is one
    mean = jnp.sum(square * w)
    square, slope = safe_ratio(square, mean), safe_ratio(slope, mean)
    he = (x**2 - 1) * 2**-0.5

    def without_square(f, df):
        along = jnp.sum(f * he * w)
        return f - jnp.sum(f * w) - along * he, df - 2**0.5 * along * x

    rest, rest_slope = without_square(*without_square(square, slope))  # twice: the first time leaves rounding
    noise, size = jnp.sum(rest_slope**2 * w), jnp.sum(rest**2 * w)
    bend = 0.5 * (jnp.sum(rest_slope * rest * x * w) - noise)
    share = size / jnp.sum((square - 1) ** 2 * w)
    # The least eigenvalue is a quarter of this share of the largest one.
    dropped = (share < 4 * threshold) & (share > (10 * jnp.finfo(k.dtype).eps) ** 2)
    return jnp.where(dropped, jnp.abs(noise * bend) / jnp.where(dropped, size, 1), 0.0)


def _pseudo_inverse(C):
    scale = _unit_diagonal(C)
    return jnp.linalg.pinv(C * scale, rtol=_threshold(C), hermitian=True) * scale


def _threshold(C):
    return 1e-9 if C.dtype == jnp.float64 else 1e-4


def _unit_diagonal(C):
    """Factors that scale the diagonal to one."""
    scale = jnp.sqrt(jnp.diagonal(C, axis1=-2, axis2=-1))
    scale = 1 / jnp.where(scale > 0, scale, 1.0)
    return scale[..., :, None] * scale[..., None, :]
