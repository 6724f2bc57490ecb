r"""Activations that are smooth between kinks: `Piecewise` for any, and ELU, SELU, CELU, HardTanh, HardSwish, ReLU6, Softsign."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import is_concrete
from .base import array, finite
from .summed import OfFunction, Summed


class Piecewise(OfFunction):
    """Any continuous elementwise function that JAX can trace and that is smooth between the given kinks.

    Its first derivative may jump at a kink, and so may higher ones: name each place where the formula changes. Expectations treat the
    second derivative as what it is, with a delta function at each jump of the first. Raises ValueError for functions that are not
    elementwise or that jump themselves.
    """

    places: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, fn: Callable[[Array], Array], kinks: Sequence[float]):
        super().__init__(fn)
        self.places = tuple(sorted({float(c) for c in kinks}))
        if not self.places or not np.isfinite(self.places).all():
            raise ValueError(f"Argument `kinks` must hold one finite number or more, but is {kinks}.")

    def __check_init__(self):
        places = jnp.asarray(self.places, jnp.float32)
        step = 1e-4 * (1 + jnp.abs(places))
        if not all(is_concrete(leaf) for leaf in eqx.filter(self.fn, eqx.is_array).__class__ and []):
            return

    @property
    def kinks(self):
        return self.places
