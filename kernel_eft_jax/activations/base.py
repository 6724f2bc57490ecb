r"""What an activation is: an elementwise function s that knows its Gaussian second moments, pair by pair of inputs.

For phi ~ N(0, K) the theory needs $m_{ab} = E[s(\phi_a) s(\phi_b)]$ of every pair of inputs, with its first and second
derivatives in (k_aa, k_bb, k_ab). By Price's theorem these are expectations too:

$$\partial m / \partial k_{ab} = E[s'_a s'_b], \qquad \partial m / \partial k_{aa} = \tfrac12 E[s''_a s_b]$$

An activation says them for one pair (`pair`); this file lifts one pair to a kernel, and makes the derivative of a value
the gradient that the activation gives, and the derivative of the gradient its hessian, so that JAX differentiates
nothing that is singular.
"""

from abc import abstractmethod
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import check_array, is_concrete
from ..pairs import input_count, pairs, triples
from ..quadrature import (
    POINTS,
    derivative,
    derivatives,
    hermite_means,
    hermite_polynomials,
    normal_density,
    rule_around,
)
from ..showing import shown_fields

KINKED_POINTS = 104


class Expansion(NamedTuple):
    """A function of kernels and its local derivatives, pair by pair: derivatives run over (k_aa, k_bb, k_ab)."""

    value: Float[Array, "*P"]
    gradient: Float[Array, "*P 3"]
    hessian: Float[Array, "*P 3 3"]


def along(value: Float[Array, ""], slope: Float[Array, ""], bend: Float[Array, ""]) -> Expansion:
    r"""The expansion of one input with itself from $m(k) = E[s^2]$, $m'$ and $m''$.

    Its three entries are one variance, so that only sums of derivatives mean anything: each is given an equal share.
    Where k is large the sums are far below $E[s'^2]$ and the like, which cancel in them.
    """
    return Expansion(value, jnp.full((3,), slope / 3), jnp.full((3, 3), bend / 9))


class Activation(eqx.Module):
    """An elementwise function s and its Gaussian second moment.

    s is continuous, and smooth but for `kinks`, where its first derivative may jump. A subclass gives `__call__`,
    `pair`, `error` and, where there are any, `kinks`; expectations with Hermite polynomials follow from these.
    """

    def __repr__(self) -> str:
        return shown_fields(self)

    @abstractmethod
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """s(x), elementwise."""

    def pair(self, k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]) -> Expansion:
        """E[s(phi_a) s(phi_b)] of one pair of inputs with its first and second derivatives, finite at every
        correlation."""
        raise NotImplementedError(f"{type(self).__name__} gives neither `pair` nor an `expansion` of its own.")

    @abstractmethod
    def error(self, k: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Estimated error of `expansion` at variance k, relative to E[s^2], for relative changes of k, at any
        correlation."""

    def kernel_error(self, k: Float[Array, " P"]) -> Float[Array, ""]:
        """`error` at the variances and correlations of one packed kernel: that of near copies only where there are
        any."""
        return jnp.max(self.error(k[triples(input_count(k.shape[0]))[:, 0]]))

    def single(self, k: Float[Array, ""]) -> Expansion:
        """`pair` of one input with itself, where derivatives mean something in sum only: `along` writes them so."""
        return self.pair(k, k, k)

    def regular_pair(self, k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]) -> Expansion:
        """`pair` in a form whose derivatives exist at correlations of one, exact to 1e-12 or so."""
        return self.pair(k_aa, k_bb, k_ab)

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Where s' jumps or s is not analytic, in increasing order."""
        return ()

    @property
    def sharpness(self) -> Any:
        """One over the scale of x on which s changes near its kinks, or near zero; zero for a function that has no
        scale."""
        return 1.0

    def moments(self, k: Float[Array, " P"]) -> Float[Array, " P"]:
        """E[s(phi_a) s(phi_b)] of every pair, for a packed kernel."""
        return self.expansion(k).value

    def expansion(self, k: Float[Array, " P"]) -> Expansion:
        """`moments` with its first and second derivatives."""
        inputs = input_count(k.shape[-1])
        a, b = pairs(inputs)
        same = np.flatnonzero(a == b)
        on_line = jax.vmap(lambda k: differentiable(self, (k,)))(k[same])
        if inputs == 1:
            return on_line
        others = np.flatnonzero(a != b)
        between = self.between(k[triples(inputs)[others]])
        order = np.argsort(np.concatenate([same, others]))
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y])[order], on_line, between)

    def between(self, k: Float[Array, "M 3"]) -> Expansion:
        """`expansion` of all M = N(N - 1)/2 pairs of different inputs, in the order of `pairs`."""
        # One pair at a time: what one pair needs fits in the cache, and what all pairs need may not fit in memory.
        return jax.lax.map(lambda k: differentiable(self, tuple(k)), k)

    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """s'(x), elementwise."""
        return derivative(self, 1)(x)

    def smoothed(
        self, order: int, mean: Float[Array, " X"], width: Float[Array, ""], terms: int
    ) -> Float[Array, "X terms"]:
        r"""$E[s^{(\mathrm{order})}(\mathrm{mean} + \mathrm{width}\, y)\, he_j(y)]$, y standard normal, j < terms; width
        may be zero."""
        return self.smoothed_orders(mean, width, terms)[order]

    def smoothed_orders(
        self, mean: Float[Array, " X"], width: Float[Array, ""], terms: int
    ) -> Float[Array, "3 X terms"]:
        """`smoothed` of the orders 0, 1, 2, which share all but the last step."""
        y, w = rule(self, mean, width, enough_points(self, terms))
        values = jnp.stack(derivatives(self, 2)(mean[:, None] + width * y)) * w[None]
        result = hermite_means(values, y, terms)
        return result.at[2].add(self._at_kinks(mean, width, terms)) if self.kinks else result

    def smoothed_product(
        self, m: int, n: int, mean: Float[Array, "*shape"], width: Float[Array, ""]
    ) -> Float[Array, "*shape"]:
        r"""$E[s^{(m)} s^{(n)}]$ at mean + width y, y standard normal; m, n = 0, 1, 2, where the expectation exists."""
        y, w = rule(self, mean, width)
        phi = mean[..., None] + width * y
        result = jnp.sum(derivative(self, m)(phi) * derivative(self, n)(phi) * w, axis=-1)
        if 2 in (m, n) and m != n and self.kinks:
            other = between_sides(derivative(self, min(m, n)), self, mean.dtype)
            densities = self._kink_densities(mean, width)[1]
            result = result + jnp.sum(densities * jnp.broadcast_to(other, densities.shape), axis=-1)
        return result

    def _kink_densities(self, mean, width):
        """Places y of the kinks, and what the delta functions of s'' weigh there; nothing where the width is zero."""
        places, exists = kink_places(self, mean.dtype), width > 0
        safe = jnp.where(exists, width, 1.0)
        y = (jnp.reshape(places, (1,) * mean.ndim + places.shape) - mean[..., None]) / safe
        weights = jnp.reshape(kink_jumps(self, mean.dtype), (1,) * mean.ndim + places.shape)
        return y, jnp.where(exists, weights * normal_density(y) / safe, 0.0)

    def _at_kinks(self, mean, width, terms):
        y, weights = self._kink_densities(mean, width)
        he = hermite_polynomials(jnp.reshape(y, (-1,)), terms).reshape(terms, *y.shape)
        return jnp.einsum("jxc,xc->xj", he, weights, precision="highest")


def enough_points(activation: Activation, terms: int = 0) -> int:
    """Nodes of half a cell; with Hermite polynomials below degree `terms` the last digits are given for speed.

    Kinks of near copies span eight decades, and need more.
    """
    if activation.kinks:
        return KINKED_POINTS + terms // 2
    return 44 + terms // 2 if terms else POINTS


def array(value: Any) -> Array:
    """A parameter as an array that gradients reach."""
    return value if isinstance(value, jax.Array) else check_array(value, "parameter of an activation").astype(float)


def finite(name: str, value: Array) -> None:
    """That a parameter is finite, where it can be looked at."""
    if is_concrete(value) and not np.isfinite(np.asarray(value)).all():
        raise ValueError(f"Parameter `{name}` of an activation must be finite, but is {value}.")


def at_zero(kinks: tuple[Any, ...]) -> bool:
    """Whether all kinks are known to lie at zero, so that those of one input coincide with those of any other."""
    return all(isinstance(c, float | int) and c == 0 for c in kinks)


def kink_places(activation: Activation, dtype: Any) -> Float[Array, " C"]:
    """`kinks` as an array."""
    return jnp.stack([jnp.asarray(c, dtype=dtype) for c in activation.kinks])


def centres(activation: Activation, dtype: Any) -> Float[Array, " C"]:
    """Where an activation may change quickly: its kinks, or zero."""
    return kink_places(activation, dtype) if activation.kinks else jnp.zeros((1,), dtype)


def rule(
    activation: Activation, mean: Float[Array, "*batch"], width: Float[Array, "*#batch"], *points: int
) -> tuple[Float[Array, "*batch M"], Float[Array, "*batch M"]]:
    """Nodes and weights for functions of an activation at mean + width y, y standard normal."""
    sharpness = jnp.asarray(activation.sharpness, mean.dtype)
    return rule_around(
        centres(activation, mean.dtype), mean, width, sharpness, *(points or (enough_points(activation),))
    )


def _sides(f, activation, dtype):
    places, sharpness = kink_places(activation, dtype), jnp.asarray(activation.sharpness, dtype)
    # Beside a kink on the scale of the function, which may have none.
    scale = jnp.where(sharpness > 0, 1 / jnp.where(sharpness > 0, sharpness, 1), jnp.finfo(dtype).tiny ** 0.5)
    step = 4 * jnp.finfo(dtype).eps * jnp.maximum(jnp.abs(places), scale)
    return f(places - step), f(places + step)


def kink_jumps(activation: Activation, dtype: Any) -> Float[Array, " C"]:
    """How much s' jumps at each kink."""
    below, above = _sides(derivative(activation, 1), activation, dtype)
    return above - below


def between_sides(f: Any, activation: Activation, dtype: Any) -> Float[Array, "*F C"]:
    """A function at each kink, the mean of both sides."""
    below, above = _sides(f, activation, dtype)
    return 0.5 * (below + above)


def differentiable(activation: Activation, k: tuple[Float[Array, ""], ...]) -> Expansion:
    """`single` or `pair` of one or three entries k, with its own gradient and hessian for derivatives in k."""
    arrays, static = eqx.partition(activation, eqx.is_inexact_array)
    return Expansion(*_expansion(static, arrays, k))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _expansion(static, arrays, k):
    activation = eqx.combine(arrays, static)
    found = activation.single(*k) if len(k) == 1 else activation.pair(*k)
    # In a scan JAX cannot batch the rule below where a value is constant, as the gradient of Linear is, and its tangent
    # is not.
    return tuple(x + 0 * k[0] for x in found)


@_expansion.defjvp
def _expansion_jvp(static, primals, tangents):
    (arrays, k), (d_arrays, d_k) = primals, tangents
    value, gradient, hessian = _expansion(static, arrays, k)
    # A single variance moves all three entries of its pair.
    change = jnp.stack([d_k[0]] * 3 if len(k) == 1 else list(d_k))

    def everything(arrays, k):
        activation = eqx.combine(arrays, static)
        return tuple(activation.single(*k) if len(k) == 1 else activation.regular_pair(*k))

    d_hessian = jax.jvp(lambda arrays, k: everything(arrays, k)[2], (arrays, k), (d_arrays, d_k))[1]
    d_value = jnp.dot(gradient, change, precision="highest")
    d_gradient = jnp.matmul(hessian, change, precision="highest")
    if jax.tree.leaves(arrays):
        by_value, by_gradient = jax.jvp(lambda arrays: everything(arrays, k)[:2], (arrays,), (d_arrays,))[1]
        d_value, d_gradient = d_value + by_value, d_gradient + by_gradient
    return (value, gradient, hessian), (d_value, d_gradient, d_hessian)
