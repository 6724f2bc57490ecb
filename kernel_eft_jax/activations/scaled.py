"""Another activation with a scale in front and a scale inside."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import check_kind, check_variances, is_concrete
from .accuracy import rounding_of_entries
from .base import Activation, Expansion, array, at_zero, finite


class Scaled(Activation):
    r"""$s(x) = \text{output\_scale} \cdot \text{activation}(\text{input\_scale} \cdot x)$, both scales
    differentiable.

    The product of a kernel and the squared scale is rounded. For nearly equal inputs this adds to the error, which
    `kernel_error` counts and `error`, which knows variances alone, does not.
    """

    activation: Activation
    input_scale: Float[Array, ""] = eqx.field(converter=array("input_scale"), default=1.0)
    output_scale: Float[Array, ""] = eqx.field(converter=array("output_scale"), default=1.0)

    def __check_init__(self):
        check_kind(self.activation, Activation, "activation")
        finite("input_scale", self.input_scale)
        if is_concrete(self.input_scale) and not np.all(np.asarray(self.input_scale) != 0):
            raise ValueError("Parameter `input_scale` of Scaled must not be zero: s would be a constant.")
        finite("output_scale", self.output_scale)

    def __call__(self, x):
        inner = self.activation(self.input_scale.astype(x.dtype) * x)
        return self.output_scale.astype(x.dtype) * inner

    def pair(self, k_aa, k_bb, k_ab):
        return self._rescale(self.activation.pair, k_aa, k_bb, k_ab)

    def regular_pair(self, k_aa, k_bb, k_ab):
        return self._rescale(self.activation.regular_pair, k_aa, k_bb, k_ab)

    def single(self, k):
        return self._rescale(self.activation.single, k)

    def between(self, k):
        return self._rescale(self.activation.between, k)

    def _rescale(self, expansion, *k):
        inner, outer = self._squares(k[0])
        value, gradient, hessian = expansion(*(inner * x for x in k))
        return Expansion(outer * value, outer * inner * gradient, outer * inner**2 * hessian)

    def error(self, k):
        k = check_variances(k)
        return self.activation.error(self._squares(k)[0] * k)

    def kernel_error(self, k):
        k = self._squares(k)[0] * k
        return self.activation.kernel_error(k) + rounding_of_entries(self.activation, k)

    @property
    def kinks(self):
        kinks = self.activation.kinks
        return kinks if at_zero(kinks) else tuple(c / self.input_scale for c in kinks)

    @property
    def polynomial_degree(self):
        return self.activation.polynomial_degree

    @property
    def sharpness(self):
        return self.activation.sharpness * jnp.abs(self.input_scale)

    def smoothed_orders(self, mean, width, terms):
        inner, outer = self.input_scale.astype(mean.dtype), self.output_scale.astype(mean.dtype)
        result = self.activation.smoothed_orders(inner * mean, jnp.abs(inner) * width, terms)
        # A negative scale turns y round, and he_j(-y) = (-1)^j he_j(y).
        parity = jnp.where(inner < 0, -1.0, 1.0).astype(inner.dtype) ** np.arange(terms).astype(inner.dtype)
        orders = jnp.stack([outer, outer * inner, outer * inner**2])
        return orders[:, None, None] * parity[None, None, :] * result

    def smoothed_product(self, m, n, mean, width):
        inner, outer = self.input_scale.astype(mean.dtype), self.output_scale.astype(mean.dtype)
        return (
            outer**2 * inner ** (m + n) * self.activation.smoothed_product(m, n, inner * mean, jnp.abs(inner) * width)
        )

    def _squares(self, k):
        return self.input_scale.astype(k.dtype) ** 2, self.output_scale.astype(k.dtype) ** 2
