"""Maxima, minima, roots and ratios as selections, whose derivatives rounding and zeros do not touch.

JAX takes the derivative of max(x, y) by x where x equals the maximum. XLA may compute x twice, once with a fused
multiply-add and once without, and then x differs from its own maximum in the last digit: the derivative is zero at
nodes that lie far from the kink. A selection asks on which side of the kink x lies. A root or a ratio at zero would
make derivatives infinite, and 0 times infinity is not a number: the selection is zero there, and so is its derivative.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float

SELECTIONS = {
    "max": lambda x, y: jnp.where(x > y, x, y),
    "min": lambda x, y: jnp.where(x < y, x, y),
    "clamp": lambda low, x, high: jnp.where(x > low, jnp.where(x < high, x, high), low),
}


def safe_root(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root of x where x is greater than zero, and zero elsewhere."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def root_of_rest(norm: Float[Array, "*shape"], held: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The root of what a squared norm has beyond the part that is held, which is no less than rounding."""
    return safe_root(jnp.maximum(norm - held, 8 * jnp.finfo(norm.dtype).eps * norm))


def safe_ratio(x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x / y where y is greater than zero, and zero elsewhere."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1.0), 0.0)


def selected(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function of one array with every max, min and clamp written as a selection."""

    def with_selections(x):
        program = jax.make_jaxpr(f)(x)
        return _evaluate(program.jaxpr, program.consts, [x])[0] if _compares(program.jaxpr) else f(x)

    return with_selections


def _called(equation) -> Any:
    """The program that an equation calls as it stands, or None."""
    return equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit", "closed_call") else None


def _compares(jaxpr):
    calls = [called for called in map(_called, jaxpr.eqns) if called is not None]
    return any(e.primitive.name in SELECTIONS for e in jaxpr.eqns) or any(_compares(called.jaxpr) for called in calls)


def _evaluate(jaxpr, consts, arguments):
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    for equation in jaxpr.eqns:
        inputs = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
        primitive, called = equation.primitive, _called(equation)
        if called is not None:
            found = _evaluate(called.jaxpr, called.consts, inputs)
        elif primitive.name in SELECTIONS:
            found = [SELECTIONS[primitive.name](*inputs)]
        else:
            bound = primitive.get_bind_params(equation.params)
            functions, options = bound if isinstance(bound, tuple) else ((), bound)  # a pair in older JAX
            found = primitive.bind(*functions, *inputs, **options)
            found = found if primitive.multiple_results else [found]
        values.update(zip(equation.outvars, found, strict=True))
    return [x.val if isinstance(x, Literal) else values[x] for x in jaxpr.outvars]
