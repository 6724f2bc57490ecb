r"""Activations, and the Gaussian second moment that each of them knows.

For phi ~ N(0, K) the theory needs $m_{ab} = E[s(\phi_a) s(\phi_b)]$ of every pair of inputs, with its first and second derivatives
in (k_aa, k_bb, k_ab). Erf, GELU, Sin, Linear and the ReLU family give a closed form of one pair, which JAX differentiates
and lifts; all others are summed (see `quadrature`), where Price's theorem turns derivatives in k into derivatives of s:

$$\partial m / \partial k_{ab} = E[s'_a s'_b], \qquad \partial m / \partial k_{aa} = \tfrac12 E[s''_a s_b]$$
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .pairs import input_count, pair_table, pairs, triples
from .quadrature import TERMS, derivative, hermite_table, kernel_moments, line_rule, moment_error


class Expansion(NamedTuple):
    """A function of kernels and its local derivatives, pair by pair: derivatives run over (k_aa, k_bb, k_ab)."""

    value: Float[Array, " P"]
    slope: Float[Array, "P 3"]
    curvature: Float[Array, "P 3 3"]


def _array(value: Any) -> Array:
    return value if isinstance(value, jax.Array) else jnp.asarray(value, dtype=float)


class Activation(eqx.Module):
    """An elementwise function s and its Gaussian second moment."""

    @abstractmethod
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """s(x), elementwise."""

    @abstractmethod
    def moments(self, k: Float[Array, " P"]) -> Float[Array, " P"]:
        """E[s(phi_a) s(phi_b)] of every pair, for a packed kernel."""

    @abstractmethod
    def expansion(self, k: Float[Array, " P"]) -> Expansion:
        """`moments` with its first and second derivatives."""

    @abstractmethod
    def error(self, k: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Estimated error of `expansion` at variance k relative to E[s^2]; rounding error where the form is closed."""

    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """s'(x), elementwise."""
        return derivative(self, 1)(x)

    def smoothed(
        self, order: int, mean: Float[Array, " X"], width: Float[Array, ""], terms: int
    ) -> Float[Array, "X terms"]:
        r"""$E[s^{(\mathrm{order})}(\mathrm{mean} + \mathrm{width}\, y)\, he_j(y)]$, y standard normal, j < terms; width may be zero."""
        y, _ = line_rule(1 / 8)
        table = hermite_table(terms, 1 / 8).T.astype(mean.dtype)
        values = derivative(self, order)(mean[:, None] + width * y.astype(mean.dtype))
        return jnp.matmul(values, table, precision="highest")


class _Closed(Activation):
    """The moment of a pair is a closed form of (k_aa, k_bb, k_ab)."""

    @abstractmethod
    def moment(self, k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]) -> Float[Array, ""]:
        """E[s(phi_a) s(phi_b)] of one pair of inputs."""

    def moments(self, k):
        return jax.vmap(self._moment)(k[triples(input_count(k.shape[-1]))])

    def expansion(self, k):
        k = k[triples(input_count(k.shape[-1]))]
        value, slope = jax.vmap(jax.value_and_grad(self._moment))(k)
        return Expansion(value, slope, jax.vmap(jax.hessian(self._moment))(k))

    def _moment(self, k):
        return self.moment(k[0], k[1], k[2])

    def error(self, k):
        return jnp.full_like(k, jnp.finfo(k.dtype).eps)


# Derivatives (r, s) of s(phi_a), s(phi_b) behind the moment, its slope and its curvature, and their places below.
_ORDERS = ((0, 0), (2, 0), (0, 2), (1, 1), (4, 0), (2, 2), (3, 1), (0, 4), (1, 3))
_SLOPE = (np.array([1, 2, 3]), np.array([0.5, 0.5, 1.0]))
_CURVATURE = (
    np.array([[4, 5, 6], [5, 7, 8], [6, 8, 5]]),
    np.array([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5], [0.5, 0.5, 1.0]]),
)


class _Series(Activation):
    """The moments are summed numerically."""

    @property
    def terms(self) -> int:
        """How many Hermite coefficients represent s."""
        return TERMS

    def moments(self, k):
        return self._derivative_moments(k, ((0, 0),))[0]

    def expansion(self, k):
        moments = self._derivative_moments(k, _ORDERS).T
        (slope, s), (curvature, c) = _SLOPE, _CURVATURE
        return Expansion(
            moments[:, 0], jnp.asarray(s, k.dtype) * moments[:, slope], jnp.asarray(c, k.dtype) * moments[:, curvature]
        )

    def _derivative_moments(self, k, orders):
        inputs = input_count(k.shape[-1])
        variances = k[np.diagonal(pair_table(inputs))]
        return kernel_moments(self, self, variances, *pairs(inputs), k, orders, self.terms)

    def error(self, k):
        return moment_error(self, k, self.terms)


class Linear(_Closed):
    r"""$s(x) = x$, $m = k_{ab}$."""

    def __call__(self, x):
        return x

    def moment(self, k_aa, k_bb, k_ab):
        return k_ab


class Erf(_Closed):
    r"""$s(x) = \mathrm{erf}(x)$, $m = \frac{2}{\pi} \arcsin \frac{2 k_{ab}}{\sqrt{(1 + 2 k_{aa})(1 + 2 k_{bb})}}$ (Williams 1997)."""

    def __call__(self, x):
        return jax.lax.erf(x)

    def moment(self, k_aa, k_bb, k_ab):
        return 2 / jnp.pi * jnp.arcsin(2 * k_ab / jnp.sqrt((1 + 2 * k_aa) * (1 + 2 * k_bb)))


class Sin(_Closed):
    r"""$s(x) = \sin x$, $m = e^{-(k_{aa} + k_{bb})/2} \sinh k_{ab}$."""

    def __call__(self, x):
        return jnp.sin(x)

    def moment(self, k_aa, k_bb, k_ab):
        mean = 0.5 * (k_aa + k_bb)
        return -0.5 * jnp.exp(k_ab - mean) * jnp.expm1(-2 * k_ab)


class GELU(_Closed):
    r"""Exact GELU, $s(x) = x \Phi(x)$ with Phi the normal distribution function.

    With $D = (1 + k_{aa})(1 + k_{bb}) - k_{ab}^2$, Stein's identity twice gives

    $$2\pi m = k_{ab} \left(\frac{\pi}{2} + \arctan \frac{k_{ab}}{\sqrt{D}}\right)
      + \frac{1}{\sqrt{D}} \left(k_{aa} k_{bb} - k_{ab}^2 + \frac{k_{ab}^2}{1 + k_{aa}} + \frac{k_{ab}^2}{1 + k_{bb}}\right)$$
    """

    def __call__(self, x):
        return 0.5 * x * (1 + jax.lax.erf(x * (0.5**0.5)))

    def moment(self, k_aa, k_bb, k_ab):
        square = k_ab**2
        root = jnp.sqrt((1 + k_aa) * (1 + k_bb) - square)
        bracket = k_aa * k_bb - square + square / (1 + k_aa) + square / (1 + k_bb)
        return (k_ab * (0.5 * jnp.pi + jnp.arctan2(k_ab, root)) + bracket / root) / (2 * jnp.pi)


class LeakyReLU(_Closed):
    r"""$s(x) = \max(x, 0) + \text{slope} \min(x, 0)$, from the arc-cosine kernel A (Cho and Saul 2009).

    $$m = \text{slope}\, k_{ab} + (1 - \text{slope})^2 A, \qquad 2\pi A = r + k_{ab} (\pi - \theta), \quad
      r = \sqrt{k_{aa} k_{bb} - k_{ab}^2}, \quad \theta = \mathrm{arctan2}(r, k_{ab})$$

    First derivatives are finite everywhere. The second, $\partial^2 A / \partial k_{ab}^2 = 1 / (2 \pi r)$, diverges at a repeated
    input, where only its contraction with the covariance of a kernel means anything: that vanishes with r like $r^3$.
    So derivatives of r are set to zero where r is zero to rounding, and the contraction is exact there too.
    """

    slope: Float[Array, ""] = eqx.field(converter=_array, default=0.01)

    def __call__(self, x):
        return jnp.where(x > 0, x, self.slope.astype(x.dtype) * x)

    def moment(self, k_aa, k_bb, k_ab):
        slope = self.slope.astype(k_ab.dtype)
        return slope * k_ab + (1 - slope) ** 2 * arc_cosine(k_aa, k_bb, k_ab)

    def smoothed(self, order, mean, width, terms):
        slope = self.slope.astype(mean.dtype)
        return slope * _smoothed_line(order, mean, width, terms) + (1 - slope) * _smoothed_ramp(
            order, mean, width, terms
        )


class ReLU(_Closed):
    """$s(x) = max(x, 0)$: `LeakyReLU` of slope zero, without a parameter."""

    def __call__(self, x):
        return jnp.maximum(x, 0)

    def moment(self, k_aa, k_bb, k_ab):
        return arc_cosine(k_aa, k_bb, k_ab)

    def smoothed(self, order, mean, width, terms):
        return _smoothed_ramp(order, mean, width, terms)


@jax.custom_jvp
def arc_cosine(k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]) -> Float[Array, ""]:
    """E[max(phi_a, 0) max(phi_b, 0)]; the derivative rule is Price's theorem, finite at rho = +-1."""
    r = _area(k_aa, k_bb, k_ab)
    return (r + k_ab * (jnp.pi - jnp.arctan2(r, k_ab))) / (2 * jnp.pi)


@arc_cosine.defjvp
def _arc_cosine_jvp(primals, tangents):
    k_aa, k_bb, k_ab = primals
    d_aa, d_bb, d_ab = tangents
    r = _area(k_aa, k_bb, k_ab)
    slope = 0.5 * r * (d_aa / k_aa + d_bb / k_bb) + (jnp.pi - jnp.arctan2(r, k_ab)) * d_ab
    return arc_cosine(k_aa, k_bb, k_ab), slope / (2 * jnp.pi)


def _area(k_aa, k_bb, k_ab):
    """sqrt(k_aa k_bb - k_ab^2): zero where that is zero to rounding, and its derivative already a little before."""
    square = k_aa * k_bb - k_ab**2
    rounding = jnp.finfo(square.dtype).eps * k_aa * k_bb
    floor = 64 * rounding
    constant = jnp.sqrt(jax.lax.stop_gradient(jnp.where(square > 4 * rounding, square, 0)))
    regular = square > floor
    return jnp.where(regular, jnp.sqrt(jnp.where(regular, square, 1.0)), constant)


def _smoothed_line(order, mean, width, terms):
    """`Activation.smoothed` of s(x) = x."""
    lowest = (mean, jnp.ones_like(mean), jnp.zeros_like(mean))[order]
    next_one = jnp.full_like(mean, width) if order == 0 else jnp.zeros_like(mean)
    columns = jnp.stack([lowest, next_one], -1)[:, :terms]
    return jnp.pad(columns, ((0, 0), (0, max(terms - 2, 0))))


def _smoothed_ramp(order, mean, width, terms):
    r"""`Activation.smoothed` of max(x, 0), by parts: $E[s^{(j)}(\mu + w y)]$ are derivatives of a normal distribution function."""
    exists = width > 0
    w = jnp.where(exists, width, 1.0)
    z = mean / w
    bell = jnp.exp(-0.5 * z**2) / jnp.sqrt(2 * jnp.pi).astype(z.dtype)

    def raise_degree(last_two, j):
        older, old = last_two
        new = (-z * old - jnp.sqrt(j) * older) / jnp.sqrt(j + 1)
        return (old, new), old

    degrees = jnp.arange(terms, dtype=z.dtype)
    _, waves = jax.lax.scan(raise_degree, (jnp.zeros_like(bell), bell), degrees)  # (-1)^j he_j(z) bell
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


class Tanh(_Series):
    r"""$s(x) = \tanh x$."""

    def __call__(self, x):
        return jnp.tanh(x)


class SiLU(_Series):
    r"""$s(x) = x / (1 + e^{-x})$, also called swish."""

    def __call__(self, x):
        return jax.nn.silu(x)


class Softplus(_Series):
    r"""$s(x) = \log(1 + e^{\beta x}) / \beta$. The sharper the bend, the larger its `error` at a given variance."""

    beta: Float[Array, ""] = eqx.field(converter=_array, default=1.0)

    def __call__(self, x):
        beta = self.beta.astype(x.dtype)
        return jax.nn.softplus(beta * x) / beta


class Polynomial(_Series):
    r"""$s(x) = \sum_i c_i x^i$: its Hermite series ends, so the moment is exact. Degree 12 at most."""

    coefficients: Float[Array, " degree_plus_one"] = eqx.field(converter=_array)

    def __check_init__(self):
        shape = self.coefficients.shape
        if len(shape) != 1 or not 1 <= shape[0] <= 13:
            raise ValueError(f"Argument `coefficients` must hold 1 to 13 numbers c_0, c_1, ..., but has shape {shape}.")

    def __call__(self, x):
        return jnp.polyval(self.coefficients[::-1].astype(x.dtype), x)

    @property
    def terms(self):
        return self.coefficients.shape[0]


class Smooth(_Series):
    """Any smooth elementwise function of your own that JAX can trace; an Equinox module keeps its parameters.

    The moment is summed numerically, and `error` says how well: compare it with the accuracy you need. Do not use it for a
    function with kinks or jumps; take `ReLU` or `LeakyReLU` there.
    """

    fn: Callable[[Array], Array]

    def __call__(self, x):
        return self.fn(x)


class Scaled(Activation):
    r"""$s(x) = \text{output\_scale} \cdot \text{activation}(\text{input\_scale} \cdot x)$, both scales differentiable."""

    activation: Activation
    input_scale: Float[Array, ""] = eqx.field(converter=_array, default=1.0)
    output_scale: Float[Array, ""] = eqx.field(converter=_array, default=1.0)

    def __call__(self, x):
        inner = self.activation(self.input_scale.astype(x.dtype) * x)
        return self.output_scale.astype(x.dtype) * inner

    def moments(self, k):
        inner, outer = self._squares(k)
        return outer * self.activation.moments(inner * k)

    def expansion(self, k):
        inner, outer = self._squares(k)
        value, slope, curvature = self.activation.expansion(inner * k)
        return Expansion(outer * value, outer * inner * slope, outer * inner**2 * curvature)

    def error(self, k):
        return self.activation.error(self._squares(k)[0] * k)

    def smoothed(self, order, mean, width, terms):
        inner, outer = self.input_scale.astype(mean.dtype), self.output_scale.astype(mean.dtype)
        return outer * inner**order * self.activation.smoothed(order, inner * mean, inner * width, terms)

    def _squares(self, k):
        return self.input_scale.astype(k.dtype) ** 2, self.output_scale.astype(k.dtype) ** 2
