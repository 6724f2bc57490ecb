r"""Errors of the moments of an activation, measured by comparison with a second evaluation.

An error is the largest of those of the value, of k times the gradient and of k^2 times the hessian, relative to E[s^2].
At the correlations 1, -1 and 0 a moment is one integral or a product of two, $E[f_a g_b] = E[f g]$,
$E[f(\phi) g(-\phi)]$ and $E[f] E[g]$. There closed forms are compared with quadrature, and quadrature with a rule of
one and a half times as many nodes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..quadrature import REACH, centred_rule, normal_density
from .base import Activation, Expansion, between_sides, centres, enough_points, rule
from .pair_quadrature import (
    FIRST,
    FOURTH,
    SECOND,
    THIRD,
    VALUE,
    assemble,
    factors,
    floored,
    kink_deltas,
    kinks_with_itself,
)

CAUTION = 3  # multiplies the difference of two rules, since neither is exact
ROUNDINGS = 100  # so many rounding errors of one operation are allowed for
# (correlation, phi_a / sqrt(k)) at which averages over phi_b given phi_a are tested.
GIVEN = [(rho, z) for rho in (0.3, 0.9, 0.999) for z in (0.0, 0.7, 2.9)]

# Factors that meet in a moment, first and second.
MEETING = [(VALUE, VALUE), (FIRST, FIRST), (SECOND, SECOND)] + [
    pair for x, y in ((SECOND, VALUE), (FOURTH, VALUE), (THIRD, FIRST)) for pair in ((x, y), (y, x))
]


class TwoRules(NamedTuple):
    """Expansions at the correlations 1, 0 and (without kinks) -1 by two rules, and two more errors of quadrature:
    `inner`, of averages over phi_b given phi_a, and `parts`, by which Stein's identity fails."""

    coarse: Expansion
    fine: Expansion
    inner: Float[Array, ""]
    parts: Float[Array, ""]


def quadrature_error(activation: Activation, k: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Estimated error of `pair_by_quadrature` at variance k: the errors of its nodes, of kinks that the activation does
    not name, and of rounding."""

    def one(k):
        k = floored(k)
        lines = _by_two_rules(activation, k)
        nodes = jnp.max(_size(_apart(lines.coarse, lines.fine), k)) + lines.inner
        return CAUTION * nodes + lines.parts + _rounding(lines.fine, k), lines.fine.value[0]

    return _relative(one, k)


def closed_form_error(activation: Activation, k: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """By how much a closed form and quadrature differ, beyond the error of quadrature, and the error of rounding."""

    def one(k):
        k = floored(k)
        lines = _by_two_rules(activation, k)
        signs = jnp.asarray(_signs(activation), k.dtype)
        closed = jax.vmap(lambda sign: Expansion(*activation.pair(k, k, sign * k)))(signs)
        apart, unsure = _apart(closed, lines.fine), _apart(lines.coarse, lines.fine)
        if activation.kinks:
            apart, unsure = _along_ray(apart), _along_ray(unsure)
        beyond = jnp.maximum(_size(apart, k) - CAUTION * _size(unsure, k), 0)
        return jnp.max(beyond) + _rounding(closed, k), lines.fine.value[0]

    return _relative(one, k)


def _relative(one, k):
    error, scale = jax.vmap(one)(jnp.reshape(k, (-1,)))
    return jnp.reshape(jnp.where(scale > 0, error / jnp.where(scale > 0, scale, 1.0), error), k.shape)


def _signs(activation):
    return np.array([1, 0] if activation.kinks else [1, 0, -1])


def _apart(x: Expansion, y: Expansion) -> Expansion:
    return jax.tree.map(jnp.subtract, x, y)


def _size(x: Expansion, k: Float[Array, ""]) -> Float[Array, "*signs"]:
    """The largest entry of each expansion, the gradient multiplied by k and the hessian by k^2."""
    gradient, hessian = jnp.max(jnp.abs(x.gradient), axis=-1), jnp.max(jnp.abs(x.hessian), axis=(-2, -1))
    return jnp.maximum(jnp.abs(x.value), jnp.maximum(k * gradient, k * (k * hessian)))


def _rounding(x: Expansion, k: Float[Array, ""]) -> Float[Array, ""]:
    return ROUNDINGS * jnp.finfo(k.dtype).eps * jnp.max(_size(x, k))


def _along_ray(x: Expansion) -> Expansion:
    """At correlation 1 (the first entry) the hessian of a function with kinks diverges. Only its part along changes
    that keep the correlation has a meaning, and only this part is kept."""
    gradient, hessian = (v.at[0].set(jnp.sum(v[0])) for v in (x.gradient, x.hessian))
    return Expansion(x.value, gradient, hessian)


def _by_two_rules(activation, k):
    root = jnp.sqrt(k)
    rho, z = (np.array(v) for v in zip(*GIVEN, strict=True))
    mean = root * jnp.asarray(np.append(0, rho * z), k.dtype)
    width = root * jnp.asarray(np.append(1, np.sqrt(1 - rho**2)), k.dtype)
    points = enough_points(activation)
    finer = 3 * points // 2
    y, w = rule(activation, mean, width, points, finer)
    phi = mean[:, None] + width[:, None] * y
    f = factors(activation, phi)  # (5, cases, M): case 0 is one input with itself
    halves = y.shape[1] // (points + finer)
    rules = jnp.asarray(np.tile(np.repeat(np.eye(2), (points, finer), axis=1), halves), k.dtype)
    means = jnp.matmul(f * w[None], rules.T, precision="highest")  # (5, cases, 2)
    one = jnp.ones_like(k)
    units = jnp.stack([one, root, k, *((root, one) if activation.kinks else (k * root, k * k))])
    gaps = units[:, None] * jnp.abs(means[..., 0] - means[..., 1])
    ends = jnp.max(jnp.square(units[:, None] * factors(activation, root * jnp.asarray([-REACH, REACH], k.dtype))))
    here, weights = f[:, 0], w[0][None] * rules
    coarse, fine = _expansions(activation, k, here, weights, means[:, 0])
    scale = jnp.sqrt(jnp.sum(here[VALUE] ** 2 * weights[1]))
    # In a moment the error `gaps` of one mean is multiplied by the other factor, here by the mean of its absolute
    # value.
    other = units * jnp.sum(jnp.abs(here) * weights[0][None], axis=-1)
    worst = jnp.max(gaps, axis=1)
    inner = jnp.max(jnp.stack([other[i] * worst[j] for i, j in MEETING])) + ends * normal_density(
        jnp.asarray(REACH, k.dtype)
    )
    if activation.kinks:
        inner = inner + jnp.max(_size(_apart(_deeply_graded(activation, k), jax.tree.map(lambda x: x[0], fine)), k))
    return TwoRules(coarse, fine, inner, _by_parts(activation, k, here, phi[0], weights[0], scale))


def _deeply_graded(activation, k):
    """The expansion of one input with itself by the nodes that are used for two nearly equal inputs."""
    root = jnp.sqrt(k)
    x, w = centred_rule(centres(activation, k.dtype) / root, 1e8 * jnp.ones_like(k), enough_points(activation))
    here, delta = factors(activation, root * x), kinks_with_itself(activation, root)
    moments = jnp.einsum("fm,gm->fg", here * w[None], here, precision="highest") + delta + delta.T
    return Expansion(*assemble(moments, k, k, k, True))


def _expansions(activation, k, here, weights, means):
    """Expansions at each correlation by each of the two rules."""
    delta = jnp.zeros((5, 5), k.dtype)
    if activation.kinks:
        delta = kinks_with_itself(activation, jnp.sqrt(k))
        delta = delta + delta.T
        means = means + jnp.sum(kink_deltas(activation, jnp.sqrt(k)), axis=-1)[:, None]
    product = partial(jnp.einsum, "fm,gm,rm->rfg", precision="highest")
    moments = [product(here, here, weights) + delta[None], jnp.einsum("fr,gr->rfg", means, means)]
    if not activation.kinks:  # nodes are symmetric: their two halves change places
        opposite = jnp.reshape(jnp.flip(jnp.reshape(here, (5, 2, -1)), axis=1), here.shape)
        moments.append(product(here, opposite, weights))
    signs = jnp.asarray(_signs(activation), k.dtype)
    along = jax.vmap(lambda M, sign: Expansion(*assemble(M, k, k, sign * k, bool(activation.kinks))))
    both = jax.vmap(along, in_axes=(0, None))(jnp.stack(moments, axis=1), signs)
    return (jax.tree.map(lambda x, r=r: x[r], both) for r in (0, 1))


def _by_parts(activation, k, f, phi, w, scale):
    """By how much Stein's identity fails for s, s s', s' and s'': it fails at a jump of s, and at a kink that `kinks`
    does not name."""
    s, ds, dds = f[VALUE], f[FIRST], f[SECOND]
    once = jnp.sum((k * dds - phi * ds) * w)
    twice = jnp.sum((k * (s * dds + ds**2) - phi * s * ds) * w)
    if activation.kinks:
        delta = k * kink_deltas(activation, jnp.sqrt(k))[SECOND]
        once, twice = once + jnp.sum(delta), twice + jnp.sum(delta * between_sides(activation, activation, k.dtype))
        higher = jnp.zeros_like(k)
    else:
        higher = jnp.abs(jnp.sum((k * k * f[FOURTH] - (phi**2 - k) * dds) * w))
        higher = higher + jnp.abs(jnp.sum((k * f[THIRD] - phi * dds) * w)) * jnp.sqrt(k)
    jump = jnp.sum((k * ds - phi * s) * w) / jnp.sqrt(k)
    return jnp.abs(twice) + scale * (jnp.abs(once) + jnp.abs(jump) + higher)
