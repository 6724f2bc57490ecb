r"""Activations that are smooth between kinks: `Piecewise` for any, and ELU, SELU, CELU, HardTanh, HardSwish, ReLU6,
Softsign."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import check_positive, is_concrete, to_numpy
from ..fields import parameter
from ..showing import shown
from .base import array, finite
from .smooth import OfFunction, Summed


class Piecewise(OfFunction):
    """Any continuous elementwise function that JAX can trace and that is smooth between the given kinks.

    At a kink the first derivative may jump, or only a higher one: name each place where the formula changes. In
    expectations the second derivative has a delta function at each jump of the first. Raises ValueError for a function
    that is not elementwise, or that jumps itself.
    """

    places: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, fn: Callable[[Array], Array], kinks: Sequence[float]):
        super().__init__(fn)
        places = to_numpy(kinks, "kinks")
        if places.size == 0 or places.dtype.kind not in "iuf" or not np.isfinite(places).all():
            raise ValueError(f"Argument `kinks` must hold one finite number or more, but is {kinks}.")
        self.places = tuple(sorted(set(places.astype(float).ravel().tolist())))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown(self.function)}, kinks={list(self.places)})"

    def __check_init__(self):
        if not is_concrete(self.fn):
            return
        places = np.asarray(self.places, np.float32)
        step = 1e-4 * (1 + np.abs(places))
        below, above = (np.asarray(self(jnp.asarray(places + shift))) for shift in (-step, step))
        for place, jump in zip(self.places, np.abs(above - below), strict=True):
            if not jump < 0.1:
                raise ValueError(
                    f"Argument `fn` must be continuous, but jumps by {jump:.2g} at its kink {place}: the derivatives "
                    "of its moments diverge where inputs repeat."
                )

    @property
    def kinks(self):
        return self.places


class _Kinked(Summed):
    """A function with kinks that do not depend on its parameters."""

    places: ClassVar[tuple[float, ...]] = (0.0,)

    @property
    def kinks(self):
        return self.places


class ELU(_Kinked):
    r"""$s(x) = x$ for $x > 0$, $\alpha (e^x - 1)$ else."""

    alpha: Float[Array, ""] = eqx.field(converter=array("alpha"), default=1.0)

    def __check_init__(self):
        finite("alpha", self.alpha)

    def __call__(self, x):
        return jnp.where(x > 0, x, self.alpha.astype(x.dtype) * jnp.expm1(jnp.where(x > 0, 0, x)))


class CELU(_Kinked):
    r"""$s(x) = x$ for $x > 0$, $\alpha (e^{x / \alpha} - 1)$ else, for $\alpha > 0$."""

    alpha: Float[Array, ""] = eqx.field(converter=array("alpha"), default=1.0, metadata=parameter(positive=True))

    def __check_init__(self):
        check_positive(self.alpha, "alpha")

    def __call__(self, x):
        alpha = self.alpha.astype(x.dtype)
        return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0, x) / alpha))

    @property
    def sharpness(self):
        return 1 / self.alpha


class SELU(_Kinked):
    r"""$s(x) = 1.0507\, x$ for $x > 0$, $1.7581 (e^x - 1)$ else: mean 0 and variance 1 are a fixed point (Klambauer et
    al. 2017)."""

    def __call__(self, x):
        return jax.nn.selu(x)


class HardTanh(_Kinked):
    r"""$s(x) = \min(\max(x, -1), 1)$."""

    places = (-1.0, 1.0)

    def __call__(self, x):
        return jnp.where(jnp.abs(x) < 1, x, jnp.sign(x))


class ReLU6(_Kinked):
    r"""$s(x) = \min(\max(x, 0), 6)$."""

    places = (0.0, 6.0)

    def __call__(self, x):
        return jnp.where(x > 0, jnp.where(x < 6, x, 6), 0)


class HardSwish(_Kinked):
    r"""$s(x) = x \min(\max(x + 3, 0), 6) / 6$."""

    places = (-3.0, 3.0)

    def __call__(self, x):
        return jnp.where(jnp.abs(x) < 3, x * (x + 3) / 6, jnp.where(x > 0, x, 0))


class Softsign(_Kinked):
    r"""$s(x) = x / (1 + |x|)$."""

    def __call__(self, x):
        return x / (1 + jnp.abs(x))
