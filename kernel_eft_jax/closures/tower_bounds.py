"""Bounds of what the modes beyond the degree would add to `HermiteTower`, carried from layer to layer.

The functions that are expanded have known norms, so the norm of what their coefficients miss is known too. For h and
the missing modes the inequality of Cauchy and Schwarz bounds each covariance, and the triangle inequality each sum. A
layer multiplies the covariances of h with the modes of a pair q beyond the degree J by the (J + 1)-th power at most of
the largest factor by which the layer shrinks a mode of degree one in the frame of q (`slowest`).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..expectations.hermite_modes import PairFunctions
from ..kernel_maps import Response, apply_all, carry_all
from ..pairs import input_count, pairs, triples
from ..selecting import safe_root

BOUNDS = 1e4  # the tolerance for bounds of errors, relative to that for the numbers themselves


class Bounds(NamedTuple):
    """Bounds of what is left out.

    `tail[p, q]` bounds the norm of the covariances of h_p with all modes of the pair q beyond the degree. If the
    activation has kinks, `steep[p, q]` bounds the same norm with each covariance multiplied by sqrt(m), m the degree of
    its mode (`PairFunctions`); otherwise `steep` equals `tail`. `v` and `K1` bound the errors of v and K1 that follow.
    """

    tail: Float[Array, "P P"]
    steep: Float[Array, "P P"]
    v: Float[Array, "P P"]
    K1: Float[Array, " P"]


class ReadErrors(NamedTuple):
    """Bounds of the errors of `ReadCovariances`; for the modes beyond the degree a bound of their norm."""

    with_modes: Float[Array, "P P"]
    with_steep: Float[Array, "P P"]
    with_h: Float[Array, "P P"]
    with_y: Float[Array, "P P"]
    mean: Float[Array, " P"]


def no_bounds(k: Float[Array, " P"]) -> Bounds:
    """The bounds at depth zero, where nothing is missing yet."""
    square = jnp.zeros((k.shape[0], k.shape[0]), k.dtype)
    return Bounds(square, square, square, jnp.zeros_like(k))


def bound_units(unit: Float[Array, " P"]) -> Bounds:
    """The size of each bound where `unit` is that of the kernel; the tolerance for bounds is wide."""
    square = BOUNDS * unit[:, None] * unit[None, :]
    return Bounds(BOUNDS * unit[:, None], BOUNDS * unit[:, None], square, BOUNDS * unit)


def read_errors(bounds: Bounds, read: Response, beyond: PairFunctions) -> ReadErrors:
    """The errors of y and of its mean's correction; `read` is the response of E[s s], `beyond` the functions that are
    expanded."""
    read = read.absolute()
    X = beyond.value_tail[:, None] * bounds.tail.T  # Cov(xi(s s)_p, h_q) beyond the degree, in the frame of p
    with_h = X + read.apply(bounds.v)
    with_y = beyond.value_tail[:, None] * beyond.value_tail[None, :] + read.apply(with_h.T).T + read.apply(X.T)
    mean, _ = read.carry(bounds.K1, bounds.v)
    triple = triples(input_count(beyond.value_tail.shape[0]))
    second = beyond.second_tail * bounds.steep[triple, jnp.arange(triple.shape[0])[:, None]]
    with_modes = beyond.value_tail[:, None] + read.apply(bounds.tail)
    with_steep = beyond.steep_tail[:, None] + read.apply(bounds.steep)
    return ReadErrors(with_modes, with_steep, with_h, with_y, mean + 0.5 * jnp.sum(second, axis=1))


def next_bounds(
    bounds: Bounds,
    read: Response,
    beyond: PairFunctions,
    responses: list[Response],
    shrink: Float[Array, ""],
    dt: Float[Array, ""],
) -> Bounds:
    """The bounds one layer on, the tails without their decay."""
    errors, rest = read_errors(bounds, read, beyond), [r.absolute() for r in responses]
    transport = apply_all(rest, errors.with_h)
    m_Q, C_Q = carry_all(rest, errors.mean, errors.with_y)
    return Bounds(
        shrink * bounds.tail + dt * apply_all(rest, errors.with_modes),
        shrink * bounds.steep + dt * apply_all(rest, errors.with_steep),
        shrink**2 * bounds.v + shrink * dt * (transport + transport.T) + dt**2 * C_Q,
        shrink * bounds.K1 + dt * m_Q,
    )


def decayed(bounds: Bounds, turn: Float[Array, "P 2 2"], degree: Float[Array, ""] | int) -> Bounds:
    """The bounds after a layer that turns the frames."""
    decay = slowest(turn)[None, :] ** (degree + 1)
    return bounds._replace(tail=decay * bounds.tail, steep=decay * bounds.steep)


def decaying(rate: Bounds, bounds: Bounds, d_turn: Float[Array, "P 2 2"], degree: int) -> Bounds:
    """The rate of change of the bounds, with that of the decay added, where the frames turn at the rate `d_turn`."""
    decay = (degree + 1) * slowest_rate(d_turn)[None, :]
    return rate._replace(tail=rate.tail + decay * bounds.tail, steep=rate.steep + decay * bounds.steep)


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
    return safe_root(x**2 + y**2)
