r"""Activations that are linear on either side of zero: ReLU, LeakyReLU (PReLU), Abs.

All are a combination of x and max(x, 0). With $r = \sqrt{k_{aa} k_{bb} - k_{ab}^2}$ and
$\theta = \mathrm{arctan2}(r, k_{ab})$ the arc-cosine kernel A (Cho and Saul 2009) and its derivatives are

$$2\pi A = r + k_{ab} (\pi - \theta), \qquad
  2\pi \nabla A = \left(\frac{r}{2 k_{aa}}, \frac{r}{2 k_{bb}}, \pi - \theta\right)$$

The second derivative $\partial^2 A / \partial k_{ab}^2 = 1 / (2 \pi r)$ diverges at a repeated input. There only its
contraction with a covariance of kernels has a meaning, and this contraction vanishes like $r^3$. So terms in 1 / r are
left out where r is zero to rounding. All formulas are written in ratios of variances: no intermediate result under- or
overflows before the final one does.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..quadrature import hermite_polynomials, normal_density, remaining_share
from ..selecting import safe_ratio, safe_root
from .base import array, finite
from .pair import PairActivation


class _Ramp(PairActivation):
    """s(x) = slope x for x < 0, x for x > 0."""

    @abstractmethod
    def _below(self, dtype) -> Float[Array, ""]:
        """The slope below zero."""

    @property
    def kinks(self):
        return (0.0,)

    @property
    def sharpness(self):
        return 0.0

    def __call__(self, x):
        return jnp.where(x > 0, x, self._below(x.dtype) * x)

    def moment(self, k_aa, k_bb, k_ab):
        below = self._below(k_ab.dtype)
        r, angle = _area_and_angle(k_aa, k_bb, k_ab)
        return below * k_ab + (1 - below) ** 2 * (r + k_ab * angle) / (2 * jnp.pi)

    def gradient(self, k_aa, k_bb, k_ab):
        below = self._below(k_ab.dtype)
        r, angle = _area_and_angle(k_aa, k_bb, k_ab)
        kinked = jnp.stack([0.5 * safe_ratio(r, k_aa), 0.5 * safe_ratio(r, k_bb), angle]) / (2 * jnp.pi)
        return (1 - below) ** 2 * kinked + below * jnp.asarray([0, 0, 1], k_ab.dtype)

    def hessian(self, k_aa, k_bb, k_ab):
        r, _ = _area_and_angle(k_aa, k_bb, k_ab)
        regular = remaining_share(k_aa, k_bb, k_ab) > 64 * jnp.finfo(r.dtype).eps
        inverse = jnp.where(regular, 1 / jnp.where(regular, r, 1.0), 0.0)
        p, q = safe_ratio(k_ab, k_aa), safe_ratio(k_ab, k_bb)
        aa = 0.25 * safe_ratio(k_bb, k_aa) * inverse - 0.5 * safe_ratio(safe_ratio(r, k_aa), k_aa)
        bb = 0.25 * safe_ratio(k_aa, k_bb) * inverse - 0.5 * safe_ratio(safe_ratio(r, k_bb), k_bb)
        aa_ab, bb_ab, aa_bb = -0.5 * p * inverse, -0.5 * q * inverse, 0.25 * inverse
        rows = [[aa, aa_bb, aa_ab], [aa_bb, bb, bb_ab], [aa_ab, bb_ab, inverse]]
        scale = (1 - self._below(r.dtype)) ** 2 / (2 * jnp.pi)
        return scale * jnp.stack([jnp.stack(row) for row in rows])

    def smoothed_orders(self, mean, width, terms):
        below = self._below(mean.dtype)
        line, ramp = (jnp.stack([f(r, mean, width, terms) for r in range(3)]) for f in (_smoothed_line, _smoothed_ramp))
        return below * line + (1 - below) * ramp


class ReLU(_Ramp):
    r"""$s(x) = \max(x, 0)$."""

    def _below(self, dtype):
        return jnp.zeros((), dtype)


class Abs(_Ramp):
    """$s(x) = |x|$."""

    def _below(self, dtype):
        return -jnp.ones((), dtype)


class LeakyReLU(_Ramp):
    r"""$s(x) = \max(x, 0) + \text{slope} \min(x, 0)$."""

    slope: Float[Array, ""] = eqx.field(converter=array("slope"), default=0.01)

    def __check_init__(self):
        finite("slope", self.slope)

    def _below(self, dtype):
        return self.slope.astype(dtype)


class PReLU(LeakyReLU):
    """`LeakyReLU` whose slope starts from 0.25, as PyTorch's does; a scalar, one for all neurons."""

    slope: Float[Array, ""] = eqx.field(converter=array("slope"), default=0.25)


def _area_and_angle(k_aa, k_bb, k_ab):
    """r and pi - theta."""
    share = remaining_share(k_aa, k_bb, k_ab)
    # A share that is zero to rounding is set to zero: then two inputs that are multiples of each other have the moments
    # of one input.
    share = jnp.where(share > 4 * jnp.finfo(share.dtype).eps, share, 0.0)
    sine = safe_root(share)
    size = jnp.sqrt(k_aa) * jnp.sqrt(k_bb)
    return size * sine, jnp.pi - jnp.arctan2(sine, safe_ratio(k_ab, size))


def _smoothed_line(order, mean, width, terms):
    """`Activation.smoothed_orders` of s(x) = x, one order."""
    lowest = (mean, jnp.ones_like(mean), jnp.zeros_like(mean))[order]
    next_one = jnp.full_like(mean, width) if order == 0 else jnp.zeros_like(mean)
    columns = jnp.stack([lowest, next_one], -1)[:, :terms]
    return jnp.pad(columns, ((0, 0), (0, max(terms - 2, 0))))


def _smoothed_ramp(order, mean, width, terms):
    r"""`Activation.smoothed_orders` of max(x, 0), one order, by parts: $E[s^{(j)}(\mu + w y)]$ are derivatives of a
    normal distribution function."""
    exists = width > 0
    w = jnp.where(exists, width, 1.0)
    z = mean / w
    bell = normal_density(z)
    degrees, waves = jnp.arange(terms, dtype=z.dtype), hermite_polynomials(-z, terms, bell)
    below = jax.scipy.special.ndtr(z)
    if order == 0:
        rest = w * waves[: max(terms - 2, 0)] / jnp.sqrt(degrees[2:] * (degrees[2:] - 1))[:, None]
        rows = jnp.concatenate([jnp.stack([mean * below + w * bell, w * below])[:terms], rest])
    elif order == 1:
        rows = jnp.concatenate([below[None], waves[: terms - 1] / jnp.sqrt(degrees[1:])[:, None]])
    else:
        rows = waves / w
    sharp = (jnp.maximum(mean, 0), jnp.heaviside(mean, 0.5), jnp.zeros_like(mean))[order]
    return jnp.where(exists, rows.T, jnp.pad(sharp[:, None], ((0, 0), (0, terms - 1))))
