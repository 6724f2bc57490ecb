r"""What an activation is: an elementwise function s that knows its Gaussian second moments, pair by pair of inputs.

For phi ~ N(0, K) the theory needs $m_{ab} = E[s(\phi_a) s(\phi_b)]$ of every pair of inputs, with its first and second
derivatives in (k_aa, k_bb, k_ab). By Price's theorem these are expectations too:

$$\partial m / \partial k_{ab} = E[s'_a s'_b], \qquad \partial m / \partial k_{aa} = \tfrac12 E[s''_a s_b]$$

An activation gives the moment and its derivatives for one pair of inputs (`pair`). This file applies `pair` to all
pairs of a kernel. To JAX it gives the activation's own gradient as the derivative of the moment, and the activation's
own hessian as the derivative of the gradient: so JAX never differentiates a singular formula.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import check_array, is_concrete
from ..linear import matmul
from ..pairs import diagonal, from_diagonal_first, input_count, off_diagonal, triples
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

KINKED_POINTS = 104  # nodes of half a cell, where there are kinks


class Expansion(NamedTuple):
    """A function of kernels and its local derivatives, pair by pair: derivatives run over (k_aa, k_bb, k_ab)."""

    value: Float[Array, "*P"]
    gradient: Float[Array, "*P 3"]
    hessian: Float[Array, "*P 3 3"]


def along(value: Float[Array, ""], gradient: Float[Array, ""], hessian: Float[Array, ""]) -> Expansion:
    r"""The expansion of one input with itself from $m(k) = E[s^2]$, $m'$ and $m''$.

    For one input k_aa, k_bb and k_ab are the same variance. Only sums of derivatives have a meaning, and every entry is
    an equal share of a sum. At large k a sum is far below the terms of a pair, such as $E[s'^2]$, which would lose its
    digits by cancellation.
    """
    return Expansion(value, jnp.full((3,), gradient / 3), jnp.full((3, 3), hessian / 9))


class Activation(eqx.Module):
    """An elementwise function s and its Gaussian second moment.

    s is continuous, and smooth between its `kinks`, where the first derivative may jump. A subclass gives `__call__`,
    `pair`, `error` and, if s has kinks, `kinks`; expectations with Hermite polynomials follow from these four.
    """

    arity: ClassVar[int] = 1  # pre-activations that a neuron reads

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
        """Estimated error of `expansion` at variance k and any correlation: of the value, of k times the gradient and
        of k^2 times the hessian, relative to E[s^2]."""

    def kernel_error(self, k: Float[Array, " P"]) -> Float[Array, ""]:
        """Estimated error of `expansion` at one packed kernel: the largest `error` of its variances.

        A subclass may return less if the kernel has no nearly equal inputs, whose error of rounding is the largest.
        """
        return jnp.max(self.error(k[diagonal(input_count(k.shape[0]))]))

    def single(self, k: Float[Array, ""]) -> Expansion:
        """`pair` of one input with itself. Only sums of its derivatives have a meaning; `along` returns an expansion
        with given sums."""
        return self.pair(k, k, k)

    def regular_pair(self, k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]) -> Expansion:
        """`pair` in a form that JAX can differentiate at a correlation of one; its values are right to about 1e-12."""
        return self.pair(k_aa, k_bb, k_ab)

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Where s' jumps or s is not analytic, in any order."""
        return ()

    @property
    def sharpness(self) -> Any:
        """1 / (the scale of x on which s changes near its kinks, or without kinks near zero); zero for a function that
        has no scale."""
        return 1.0

    @property
    def elementwise(self) -> "Activation":
        """The function s of a neuron's feature: s(u) here, and w s(u) behind a gate."""
        return self

    def gated(self, fourth: Float[Array, "P P"], k: Float[Array, " P"]) -> Float[Array, "P P"]:
        """E[f_a f_b f_c f_d] of the features f, from `fourth`, that of s. No gate multiplies s here."""
        return fourth

    @property
    def polynomial_degree(self) -> float:
        """The degree of s, if s is a polynomial; infinite for other functions."""
        return math.inf

    def moments(self, k: Float[Array, " P"]) -> Float[Array, " P"]:
        """E[s(phi_a) s(phi_b)] of every pair, for a packed kernel."""
        return self.expansion(k).value

    def expansion(self, k: Float[Array, " P"]) -> Expansion:
        """`moments` with its first and second derivatives."""
        inputs = input_count(k.shape[-1])
        on_line = jax.vmap(lambda k: differentiable(self, (k,)))(k[diagonal(inputs)])
        if inputs == 1:
            return on_line
        between, order = self.between(k[triples(inputs)[off_diagonal(inputs)]]), from_diagonal_first(inputs)
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y])[order], on_line, between)

    def between(self, k: Float[Array, "M 3"]) -> Expansion:
        """`expansion` of all M = N(N - 1)/2 pairs of different inputs, in the order of `pairs`."""
        # One pair at a time: the arrays of one pair fit in the cache, and those of all pairs may be larger than the
        # memory.
        return jax.lax.map(lambda k: differentiable(self, tuple(k)), k)

    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """s'(x), elementwise."""
        return derivative(self, 1)(x)

    def smoothed_orders(
        self, mean: Float[Array, " X"], width: Float[Array, ""], terms: int
    ) -> Float[Array, "3 X terms"]:
        r"""$E[s^{(m)}(\mathrm{mean} + \mathrm{width}\, y)\, he_j(y)]$ of an s with kinks, y standard normal, m = 0, 1,
        2 and j < terms; width may be zero."""
        y, w = rule(self, mean, width, enough_points(self, terms))
        values = jnp.stack(derivatives(self, 2)(mean[:, None] + width * y)) * w[None]
        return hermite_means(values, y, terms).at[2].add(self._at_kinks(mean, width, terms))

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
        """Places y of the kinks, and the weights of the delta functions of s'' there; a weight is zero where the width
        is zero."""
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
    """How many nodes half a cell needs for a function of s times Hermite polynomials below degree `terms`.

    Without kinks half a cell has 64 nodes without polynomials, and 44 + terms / 2 with them: with fewer than 40 terms
    these are fewer, which is faster and costs the last digits. An activation with kinks needs 104 nodes and more,
    because the nodes of two nearly equal inputs cover eight decades.
    """
    if activation.kinks:
        return KINKED_POINTS + terms // 2
    return 44 + terms // 2 if terms else POINTS


def array(name: str) -> Callable[[Any], Array]:
    """The converter that makes the parameter of this name a floating-point array, which gradients reach. Arrays of JAX
    keep their precision; other numbers get the default one."""

    def convert(value: Any) -> Array:
        checked = check_array(value, name)
        return checked if isinstance(value, jax.Array) else checked.astype(float)

    return convert


def finite(name: str, value: Array, axes: int = 0) -> None:
    """Check that a parameter is one number, or an array with so many axes, and finite; the value of a traced parameter
    is not known and passes."""
    if value.ndim != axes:
        want = "one number" if axes == 0 else "a list of numbers"
        raise ValueError(f"Parameter `{name}` of an activation must be {want}, but has shape {value.shape}.")
    if is_concrete(value) and not np.isfinite(np.asarray(value)).all():
        raise ValueError(f"Parameter `{name}` of an activation must be finite, but is {value}.")


def at_zero(kinks: tuple[Any, ...]) -> bool:
    """Whether all kinks are known to lie at zero. Then the kinks of all inputs lie at the same place."""
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
    # The step away from a kink is small on the scale of the function; a function without a scale gets a step that is
    # small at any scale.
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


# Compiled: outside programs each of its hundred operations would be compiled alone, and inside programs JAX traces it
# once for all calls.
@eqx.filter_jit
def differentiable(activation: Activation, k: tuple[Float[Array, ""], ...]) -> Expansion:
    """`single` for one entry k, `pair` for three. Its derivatives in k are the gradient and the hessian that the
    activation gives."""
    arrays, static = eqx.partition(activation, eqx.is_inexact_array)
    return Expansion(*_expansion(static, arrays, k))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _expansion(static, arrays, k):
    activation = eqx.combine(arrays, static)
    found = activation.single(*k) if len(k) == 1 else activation.pair(*k)
    # `0 * k` makes a constant value, such as the gradient of Linear, depend on k. In a scan JAX cannot batch the rule
    # below if a value is constant and its tangent is not.
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
    d_value = matmul(gradient, change)
    d_gradient = matmul(hessian, change)
    if jax.tree.leaves(arrays):
        by_value, by_gradient = jax.jvp(lambda arrays: everything(arrays, k)[:2], (arrays,), (d_arrays,))[1]
        d_value, d_gradient = d_value + by_value, d_gradient + by_gradient
    return (value, gradient, hessian), (d_value, d_gradient, d_hessian)
