"""Smooth activations whose moments are summed numerically: Tanh, SiLU, Softplus, Mish, Polynomial, and any of your
own."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import check_function, is_concrete
from ..selecting import selected
from ..showing import shown
from .accuracy import MeasuredActivation, quadrature_errors
from .base import array, finite
from .pair_quadrature import pair_by_quadrature, single_by_quadrature
from .series import between_many

MANY = 28  # from so many pairs on (eight inputs) `between_many` is cheaper than one sum over the plane for each pair


class Summed(MeasuredActivation):
    """An activation whose moments are taken by quadrature, from the function and its kinks alone."""

    def pair(self, k_aa, k_bb, k_ab):
        return pair_by_quadrature(self, k_aa, k_bb, k_ab)

    def regular_pair(self, k_aa, k_bb, k_ab):
        return pair_by_quadrature(self, k_aa, k_bb, k_ab, regular=True)

    def single(self, k):
        return single_by_quadrature(self, k)

    def between(self, k):
        many = k.shape[0] >= MANY and not self.kinks
        return between_many(self, k) if many else super().between(k)

    def errors(self, k):
        return quadrature_errors(self, k)


class Tanh(Summed):
    r"""$s(x) = \tanh x$."""

    def __call__(self, x):
        return jnp.tanh(x)


class SiLU(Summed):
    r"""$s(x) = x / (1 + e^{-x})$, also called swish."""

    def __call__(self, x):
        return jax.nn.silu(x)


class Mish(Summed):
    r"""$s(x) = x \tanh(\log(1 + e^x))$."""

    def __call__(self, x):
        return x * jnp.tanh(jax.nn.softplus(x))


class Softplus(Summed):
    r"""$s(x) = \log(1 + e^{\beta x}) / \beta$, for $\beta \ne 0$."""

    beta: Float[Array, ""] = eqx.field(converter=array("beta"), default=1.0)

    def __check_init__(self):
        finite("beta", self.beta)
        if is_concrete(self.beta) and not np.all(np.asarray(self.beta) != 0):
            raise ValueError("Parameter `beta` of Softplus must not be zero: log(2) / beta has no value there.")

    def __call__(self, x):
        beta = self.beta.astype(x.dtype)
        return jax.nn.softplus(beta * x) / beta

    @property
    def sharpness(self):
        return jnp.abs(self.beta)


class Polynomial(Summed):
    r"""$s(x) = \sum_i c_i x^i$, degree 12 at most."""

    coefficients: Float[Array, " degree_plus_one"] = eqx.field(converter=array("coefficients"))

    def __check_init__(self):
        shape = self.coefficients.shape
        if len(shape) != 1 or not 1 <= shape[0] <= 13:
            raise ValueError(f"Argument `coefficients` must hold 1 to 13 numbers c_0, c_1, ..., but has shape {shape}.")
        finite("coefficients", self.coefficients, axes=1)

    @property
    def sharpness(self):
        return 0.0

    @property
    def polynomial_degree(self):
        return self.coefficients.size - 1

    def __call__(self, x):
        coefficients = self.coefficients.astype(x.dtype)
        result = jnp.full_like(x, coefficients[-1])
        for i in reversed(range(coefficients.shape[0] - 1)):
            result = result * x + coefficients[i]
        return result


class OfFunction(Summed):
    """An activation made of a function that JAX can trace.

    The arrays inside the function (the parameters of an Equinox module) are the leaves of `fn`, which is None for a
    plain function. The rest of the function is static and lies in `rest`. So every JAX transformation accepts the
    activation as an argument.
    """

    fn: Any
    rest: Any = eqx.field(static=True)

    def __init__(self, fn: Callable[[Array], Array]):
        if not callable(fn):
            check_function(fn, "fn")
        arrays, rest = eqx.partition(fn, eqx.is_array)
        self.fn = arrays
        leaves, structure = jax.tree.flatten(rest)
        self.rest = tuple(leaves), structure

    @property
    def function(self) -> Callable[[Array], Array]:
        """The function, whole."""
        leaves, structure = self.rest
        return eqx.combine(self.fn, jax.tree.unflatten(structure, leaves))

    def __call__(self, x):
        return selected(self.function)(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown(self.function)})"

    def __check_init__(self):
        if is_concrete(self):
            check_function(self.function, "fn")


class Smooth(OfFunction):
    """Any smooth elementwise function of your own that JAX can trace; an Equinox module keeps its parameters.

    The moments are summed numerically; `error` measures how accurately. The nodes are made for a function that changes
    near zero on a scale of one: `Scaled(Smooth(fn), ...)` stretches a function that changes on another scale. For a
    function with kinks use `Piecewise`. Raises ValueError for a function that is not elementwise, such as a softmax or
    a layer norm.
    """
