"""How XLA is asked to compile: options that hold where they are known, on the CPU."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .checks import is_concrete


@functools.cache
def compiled_with(function: Callable, **options: str | bool) -> Callable:
    """`function` by `eqx.filter_jit`, compiled with these options of XLA; without them if its release does not know
    them."""
    try:
        jax.jit(jnp.negative, compiler_options=options)(1.0)
    except jax.errors.JaxRuntimeError as error:
        if any(cause in str(error) for cause in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")):  # says nothing of the options
            raise
        options = {}
    return eqx.filter_jit(function, compiler_options=options or None)  # pyright: ignore[reportCallIssue]


def compiled_soon(function: Callable) -> Callable:
    """`function` by `eqx.filter_jit`, for a program of many small operations: on a CPU, XLA's older emitter of fused
    loops compiles it in two thirds to three quarters of the time, and the program runs as fast. The XLA of JAX 0.12 has
    no option for this emitter.

    JAX takes options for the outermost program only: inside jit and where derivatives are taken there are none.
    """
    plain = eqx.filter_jit(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        outermost = is_concrete((jnp.zeros(()), args, kwargs))
        program = compiled_with(function, xla_cpu_use_fusion_emitters=False) if outermost else plain
        return program(*args, **kwargs)

    return call
