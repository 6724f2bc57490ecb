"""The degree of `HermiteTower`: where the hierarchy ends by itself, which degree is enough, how right its nodes are.

A truncation is small enough where its bound is at most `V4_SHARE` of V4 and `K1_SHARE` of K1 (or of K0 / 100, where K1
is smaller) at every depth. This is tried for one input alone, at the least and at the largest variance of the inputs.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..activations import Activation
from ..activations.base import enough_points, rule
from ..compiling import compiled_soon
from ..expectations.hermite_modes import without
from ..model import Model
from ..pairs import diagonal, input_count
from .base import Closure
from .tower_bounds import decayed, next_bounds
from .tower_state import TowerState, frame_turn, read_in_modes

DEGREES = (4, 8, 12, 16, 24, 32, 48, 64)  # few, so that a sweep over parameters compiles few programs
DEGREES_OF_ONE = (96, 128, 192, 256)  # for one input the cost grows with a lower power of the degree
UNDECIDED = 30  # the degree where the kernel or the steps are traced, so that none can be chosen
V4_SHARE, K1_SHARE = 1e-3, 1e-2


def last_degree(activation: Activation) -> float:
    """The degree at which the hierarchy ends by itself: twice that of a polynomial, at least 2, infinite for others."""
    return max(2, 2 * activation.polynomial_degree)


def enough_degree(
    tower: Closure[TowerState], model: Model, k: Float[Array, " P"], dt: Float[Array, " L"], degrees: Sequence[int]
) -> int:
    """The lowest of `degrees` whose truncation is small enough for layers of steps dt from the kernel k, or the last of
    them. `tower` has the last of them, the highest."""
    variances = np.asarray(k)[diagonal(input_count(k.shape[0]))]
    extremes = jnp.asarray([variances.min(), variances.max()], k.dtype)
    # Layers of dt = 0 change nothing, and few lengths compile few programs.
    length = 64 * 4 ** math.ceil(math.log(max(dt.shape[0], 64) / 64, 4))
    shares = np.asarray(_shares(tower, model, extremes, jnp.pad(dt, (0, length - dt.shape[0])), tuple(degrees)))
    if not np.isfinite(shares[-1]):
        return UNDECIDED
    return next((d for d, share in zip(degrees, shares, strict=True) if share <= 1), degrees[-1])


@compiled_soon
def _shares(
    tower: Closure[TowerState],
    model: Model,
    variances: Float[Array, " N"],
    dt: Float[Array, " L"],
    degrees: tuple[int, ...],
):
    """Bounds of the truncation at each degree divided by what is allowed, for one input of each variance: the largest
    over layers and variances, (degrees,).

    One tower of the highest degree is enough: a lower degree misses those of its modes that lie beyond.
    """
    each = jnp.asarray(degrees)

    def layer(carry, dt):
        state, bounds, worst = carry
        read, shrink = read_in_modes(model.read, state.k, degrees[-1]), model.shrink(dt)
        responses, after = model.responses_of_read(read.response.value), tower.step(model, state, dt)
        turn = frame_turn(state.k, after.k, shrink)

        def bound(degree, bounds):
            cut = without(read.functions, degree, model.read)
            bounds = next_bounds(bounds, read.response, cut, responses, shrink, dt)
            return decayed(bounds, turn, degree.astype(dt.dtype))

        bounds = jax.vmap(bound)(each, bounds)
        V4 = tower.moments(model, after).V4[0, 0]
        K1 = jnp.maximum(jnp.abs(after.K1[0]), 0.01 * after.k[0])
        shares = jnp.maximum(bounds.v[:, 0, 0] / (V4_SHARE * V4), bounds.K1[:, 0] / (K1_SHARE * K1))
        return (after, bounds, jnp.maximum(worst, shares)), None

    def alone(variance):
        state = tower.init(model, variance[None])
        bounds = jax.tree.map(lambda b: jnp.zeros((each.size, *b.shape), b.dtype), state.bounds)
        (_, _, worst), _ = jax.lax.scan(layer, (state, bounds, jnp.zeros(each.size, dt.dtype)), dt)
        return worst

    return jnp.max(jax.lax.map(alone, variances), axis=0)


def rule_error(activation: Activation, k: Float[Array, ""], degree: int) -> Float[Array, ""]:
    r"""The error of the nodes of the modes for $E[s^2]$ and for $E[s^2 he_2] = \sqrt2\, k\, \partial_k E[s^2]$,
    relative to E[s^2].

    An oscillation of s that the nodes of a low degree miss shows in this error, and not in the error of a closed form.
    """
    x, w = rule(activation, jnp.zeros_like(k), jnp.sqrt(k), enough_points(activation, degree + 2))
    square = activation(jnp.sqrt(k) * x) ** 2 * w
    value, gradient, _ = activation.expansion(k[None])
    by_k = jnp.sum(square * (x**2 - 1)) - 2 * k * jnp.sum(gradient)
    off = jnp.maximum(jnp.abs(jnp.sum(square) - value[0]), 0.5 * jnp.abs(by_k))
    return off / jnp.where(value[0] > 0, value[0], 1)
