r"""Activations with closed forms: Linear, Erf, Sin, GELU. Gradients follow Price's theorem, in forms that lose no
digits by cancellation.

$A = 1 + k_{aa}$ for GELU and $1 + 2 k_{aa}$ for Erf. The determinant $k_{aa} k_{bb} - k_{ab}^2$ is computed from
ratios, so that it is exact for repeated inputs. One input with itself has closed forms of its own, because the sums of
the derivatives of a pair lose digits by cancellation if k is large.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..quadrature import remaining_share
from .base import along
from .pair import PairActivation


@jax.custom_jvp
def determinant(k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]) -> Float[Array, ""]:
    """k_aa k_bb - k_ab^2, zero where inputs repeat and never negative."""
    return k_aa * k_bb * jnp.maximum(remaining_share(k_aa, k_bb, k_ab), 0)


@determinant.defjvp
def _determinant_jvp(primals, tangents):
    (k_aa, k_bb, k_ab), (d_aa, d_bb, d_ab) = primals, tangents
    return determinant(*primals), k_bb * d_aa + k_aa * d_bb - 2 * k_ab * d_ab


class Linear(PairActivation):
    r"""$s(x) = x$, $m = k_{ab}$."""

    def __call__(self, x):
        return x

    @property
    def sharpness(self):
        return 0.0

    @property
    def polynomial_degree(self):
        return 1

    def moment(self, k_aa, k_bb, k_ab):
        return k_ab

    def gradient(self, k_aa, k_bb, k_ab):
        return jnp.stack([0 * k_aa, 0 * k_bb, 1 + 0 * k_ab])


class Erf(PairActivation):
    r"""$s(x) = \mathrm{erf}(x)$, $m = \frac{2}{\pi} \arcsin \frac{2 k_{ab}}{\sqrt{A B}}$, $A = 1 + 2 k_{aa}$ (Williams
    1997).

    With $D = A B - 4 k_{ab}^2$ the derivatives are $-4 k_{ab} / (\pi A \sqrt{D})$, likewise with B, and
    $4 / (\pi \sqrt{D})$.
    """

    def __call__(self, x):
        return jax.lax.erf(x)

    def moment(self, k_aa, k_bb, k_ab):
        return 2 / jnp.pi * jnp.arctan2(2 * k_ab, jnp.sqrt(self._D(k_aa, k_bb, k_ab)))

    def gradient(self, k_aa, k_bb, k_ab):
        ab = 4 / jnp.pi / jnp.sqrt(self._D(k_aa, k_bb, k_ab))
        return jnp.stack([-k_ab * ab / (1 + 2 * k_aa), -k_ab * ab / (1 + 2 * k_bb), ab])

    def single(self, k):
        A, D = 1 + 2 * k, 1 + 4 * k
        gradient = 4 / jnp.pi / (A * jnp.sqrt(D))
        return along(self.moment(k, k, k), gradient, -2 * gradient * (1 / A + 1 / D))

    def _D(self, k_aa, k_bb, k_ab):
        return 1 + 2 * (k_aa + k_bb) + 4 * determinant(k_aa, k_bb, k_ab)


class Sin(PairActivation):
    r"""$s(x) = \sin x$, $m = e^{-(k_{aa} + k_{bb})/2} \sinh k_{ab}$, derivatives $-m/2$, $-m/2$ and
    $e^{-(k_{aa} + k_{bb})/2} \cosh k_{ab}$."""

    def __call__(self, x):
        return jnp.sin(x)

    def moment(self, k_aa, k_bb, k_ab):
        negative = k_ab < 0
        size = jnp.where(negative, -k_ab, k_ab)
        half = -0.5 * jnp.exp(size - 0.5 * (k_aa + k_bb)) * jnp.expm1(-2 * size)
        return jnp.where(negative, -half, half)

    def gradient(self, k_aa, k_bb, k_ab):
        mean, by_one = 0.5 * (k_aa + k_bb), -0.5 * self.moment(k_aa, k_bb, k_ab)
        return jnp.stack([by_one, by_one, 0.5 * (jnp.exp(k_ab - mean) + jnp.exp(-k_ab - mean))])

    def single(self, k):
        return along(-0.5 * jnp.expm1(-2 * k), jnp.exp(-2 * k), -2 * jnp.exp(-2 * k))


class GELU(PairActivation):
    r"""Exact GELU, $s(x) = x \Phi(x)$ with Phi the normal distribution function.

    With $A = 1 + k_{aa}$, $B = 1 + k_{bb}$, $d = k_{aa} k_{bb} - k_{ab}^2$, $D = A B - k_{ab}^2$ and
    $\theta = \mathrm{arctan2}(\sqrt{D}, -k_{ab})$, Stein's identity twice gives

    $$2\pi m = k_{ab} \theta + \frac{1}{\sqrt{D}} \left(d + \frac{k_{ab}^2}{A} + \frac{k_{ab}^2}{B}\right), \qquad
      2\pi \frac{\partial m}{\partial k_{ab}}
      = \theta + \frac{k_{ab}}{\sqrt{D}} \left(\frac{1}{A} + \frac{1}{B} + \frac{1}{D}\right)$$

    $$2\pi \frac{\partial m}{\partial k_{aa}}
      = \frac{1}{\sqrt{D}} \left(\frac{k_{bb} + d}{2 A} \left(1 + \frac{B}{D}\right) - \frac{k_{ab}^2}{A^2}\right)$$

    and for one input, D = 1 + 2 k,

    $$2\pi m' = \theta + \frac{k}{\sqrt{D}} \left(\frac{2}{D} + \frac{3 + k}{A^2}\right), \qquad
      2\pi m'' = \frac{6 + 18 k + 11 k^2 - 5 k^3}{A^3 D^{5/2}}$$
    """

    def __call__(self, x):
        return 0.5 * x * (1 + jax.lax.erf(x * (0.5**0.5)))

    def moment(self, k_aa, k_bb, k_ab):
        d = determinant(k_aa, k_bb, k_ab)
        root = jnp.sqrt(1 + k_aa + k_bb + d)
        theta = jnp.arctan2(root, -k_ab)
        return (k_ab * theta + (d + k_ab**2 / (1 + k_aa) + k_ab**2 / (1 + k_bb)) / root) / (2 * jnp.pi)

    def gradient(self, k_aa, k_bb, k_ab):
        A, B, d = 1 + k_aa, 1 + k_bb, determinant(k_aa, k_bb, k_ab)
        D = 1 + k_aa + k_bb + d
        root = jnp.sqrt(D)

        def by_one(k_bb, A, B):
            return (0.5 * (k_bb + d) / A * (1 + B / D) - (k_ab / A) ** 2) / root

        ab = jnp.arctan2(root, -k_ab) + k_ab / root * (1 / A + 1 / B + 1 / D)
        return jnp.stack([by_one(k_bb, A, B), by_one(k_aa, B, A), ab]) / (2 * jnp.pi)

    def single(self, k):
        A, D = 1 + k, 1 + 2 * k
        root, p, q = jnp.sqrt(D), k / A, 1 / A
        gradient = jnp.arctan2(root, -k) + k / root * (2 / D + (3 + k) * q**2)
        hessian = (6 * q**3 + 18 * p * q**2 + 11 * p**2 * q - 5 * p**3) / (D**2 * root)
        return along(self.moment(k, k, k), gradient / (2 * jnp.pi), hessian / (2 * jnp.pi))
