r"""The Gauss-Hermite rule of fixed order, by which the published numerics take expectations.

$$E[f(\phi)] \approx \sum_m w_m f(\sqrt{k}\, x_m), \qquad \phi \sim N(0, k)$$

is exact for polynomials, but converges slowly for functions with poles near the real axis, such as tanh.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

import kernel_eft_jax as keft
from kernel_eft_jax.activations import Expansion


class GaussHermite(keft.Activation):
    """An activation whose expectations are taken by a Gauss-Hermite rule, as the published numerics take them.

    Values are those of the rule (a tensor product for two inputs), first derivatives those of Price's theorem under the
    rule, and second derivatives come from differentiating the rule itself twice. At 32 points and variance 4 the first
    derivative for tanh is wrong by a factor of eight: use this class for the comparison with the paper only. Inputs
    must differ from each other.
    """

    fn: keft.Activation
    points: int = eqx.field(static=True, default=32)

    def __call__(self, x):
        return self.fn(x)

    def single(self, k):
        x, w = self._rule(k.dtype)

        def mean(variance, order=0):
            return _derivative(lambda x: self.fn(x) ** 2, order)(jnp.sqrt(variance) * x) @ w

        second = jax.grad(jax.grad(mean))(k)
        unit = np.array([1, 0, 0], k.dtype)
        return Expansion(mean(k), 0.5 * mean(k, 2) * unit, second * np.outer(unit, unit))

    def pair(self, k_aa, k_bb, k_ab):
        x, w = self._rule(k_aa.dtype)

        def mean(k, r=0, s=0):
            phi_a = jnp.sqrt(k[0]) * x
            phi_b = (k[2] / k[0] * phi_a)[:, None] + jnp.sqrt(k[1] - k[2] ** 2 / k[0]) * x[None, :]
            return (_derivative(self.fn, r)(phi_a) * w) @ (_derivative(self.fn, s)(phi_b) @ w)

        k = jnp.stack([k_aa, k_bb, k_ab])
        gradient = jnp.stack([0.5 * mean(k, 2, 0), 0.5 * mean(k, 0, 2), mean(k, 1, 1)])
        return Expansion(mean(k), gradient, jax.hessian(mean)(k))

    def error(self, k):
        """The error of the rule against converged expectations, of E[s^2] and of its first derivative in k."""

        def one(k):
            rule, exact = self.expansion(k[None]), self.fn.expansion(k[None])
            gradient = jnp.sum(rule.gradient - exact.gradient)
            return (jnp.abs(rule.value[0] - exact.value[0]) + k * jnp.abs(gradient)) / exact.value[0]

        return jnp.vectorize(one)(k)

    def _rule(self, dtype):
        x, w = np.polynomial.hermite_e.hermegauss(self.points)
        return x.astype(dtype), (w / np.sqrt(2 * np.pi)).astype(dtype)


def _derivative(f, order):
    """The derivative of an elementwise function."""
    for _ in range(order):
        f = jax.grad(f)
    return jnp.vectorize(f)


def tanh_squared(
    activation: keft.Activation, k: Float[ArrayLike, " M"]
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """E[s^2] and E[(s^2)''] of s = tanh at each variance: Q and twice chi of one input for C_W = 1. The `activation`
    decides how expectations are taken."""
    model, K = keft.Model(activation, 1.0), jnp.asarray(k)[:, None, None]
    return np.ravel(jax.vmap(model.Q)(K)), 2 * np.ravel(jax.vmap(model.chi)(K, jnp.ones_like(K)))
