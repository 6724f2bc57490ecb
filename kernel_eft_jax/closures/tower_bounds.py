"""Bounds of what the modes beyond the degree would add to `HermiteTower`, carried from layer to layer.

The functions that are expanded have known norms, so the norm of what their coefficients miss is known too. For h and
the missing modes the inequality of Cauchy and Schwarz bounds each covariance, and the triangle inequality each sum. The
bound of Cov(h, xi(W)) over all W beyond the degree J decays in a layer like the (J + 1)-th power of `slowest`, the
largest factor by which the layer shrinks a mode of degree one in the frame of the pair of h. Where W belongs to another
pair, whose modes decay more slowly, the bound may be too small: V_GS of two pairs was found 1.14 times its bound.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..activations import Activation
from ..pairs import input_count, pairs, triples
from ..parts import Response, apply_all, carry_all
from .base import Moments
from .tower_state import TowerRead, TowerState

KINKED_DEGREE = 6  # of a kinked activation the lowest degree that bounds the errors of K1 and U1
BOUNDS = 1e4  # the tolerance for bounds of errors, relative to that for the numbers themselves


class ReadErrors(NamedTuple):
    """Bounds of the errors of `ReadCovariances`; for the modes beyond the degree a bound of their norm."""

    with_modes: Float[Array, " P"]
    with_h: Float[Array, "P P"]
    with_y: Float[Array, "P P"]
    mean: Float[Array, " P"]


def read_errors(state: TowerState, read: TowerRead) -> ReadErrors:
    """The errors of y and of its mean's correction at a state."""
    bound, tail = read.response.absolute(), read.functions.value_tail
    X = tail[:, None] * state.tail[None, :]
    with_h = X + bound.apply(state.v_error)
    with_y = tail[:, None] * tail[None, :] + bound.apply(with_h.T).T + bound.apply(X.T)
    mean, _ = bound.carry(state.K1_error, state.v_error)
    second = read.functions.second_tail * state.tail[triples(input_count(state.k.shape[0]))]
    return ReadErrors(tail + bound.apply(state.tail), with_h, with_y, mean + 0.5 * jnp.sum(second, axis=1))


def next_bounds(
    state: TowerState, read: TowerRead, responses: list[Response], shrink: Float[Array, ""], dt: Float[Array, ""]
) -> tuple[Float[Array, " P"], Float[Array, "P P"], Float[Array, " P"]]:
    """`tail` (without its decay), `v_error` and `K1_error` one layer on."""
    errors, bounds = read_errors(state, read), [r.absolute() for r in responses]
    transport_error = apply_all(bounds, errors.with_h)
    m_error, C_error = carry_all(bounds, errors.mean, errors.with_y)
    tail = shrink * state.tail + dt * apply_all(bounds, errors.with_modes)
    v_error = shrink**2 * state.v_error + shrink * dt * (transport_error + transport_error.T) + dt**2 * C_error
    return tail, v_error, shrink * state.K1_error + dt * m_error


def moment_bounds(
    activation: Activation, degree: int, state: TowerState, read: TowerRead, to_S: list[Response]
) -> Moments:
    """The errors of the moments at a state; `to_S` are the responses from E[s s] to S."""
    errors, bounds = read_errors(state, read), [r.absolute() for r in to_S]
    mean, with_S = carry_all(bounds, errors.mean, errors.with_y)
    cross = apply_all(bounds, errors.with_h).T
    # The second derivatives of a kinked function have no norm. Their tails are extrapolated, for which a few degrees
    # are not enough.
    known = jnp.nan if activation.kinks and degree < KINKED_DEGREE else 1.0
    return Moments(jnp.zeros_like(state.k), state.v_error, known * state.K1_error, cross, with_S, known * mean)


def slowest(turn: Float[Array, "P 2 2"]) -> Float[Array, " P"]:
    """The largest singular value of each pair's turn, a lower-triangular matrix: a layer multiplies covariances with
    modes of degree m by its m-th power at most.

    It is at most one, up to rounding, because a layer only adds to a kernel.
    """
    first, across, second = turn[:, 0, 0], turn[:, 1, 0], turn[:, 1, 1]
    half = 0.5 * (first**2 - across**2 - second**2)
    return jnp.sqrt(0.5 * (first**2 + across**2 + second**2) + _hypotenuse(half, first * across))


def slowest_rate(d_turn: Float[Array, "P 2 2"]) -> Float[Array, " P"]:
    """The rate of change of `slowest` at turn = 1, as the turn changes at the rate `d_turn`: the largest eigenvalue of
    the symmetric part of `d_turn`.

    (JAX cannot find it: both singular values are one there, and JAX's derivative would be that of either, by chance.)
    """
    first, across, second = d_turn[:, 0, 0], d_turn[:, 1, 0], d_turn[:, 1, 1]
    a, b = pairs(input_count(d_turn.shape[0]))
    both = 0.5 * (first + second) + _hypotenuse(0.5 * (first - second), 0.5 * across)
    return jnp.where(a == b, first, both)  # one input with itself has no psi_2


def _hypotenuse(x, y):
    square = x**2 + y**2
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
