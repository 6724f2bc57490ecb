r"""How wrong the moments of an activation are: measured against another evaluation, not promised.

All errors are relative to E[s^2] and for relative changes of k: of the value, k times the slope, k^2 times the curvature. Inputs of
correlation 1, -1 and 0 need one integral only, $E[f_a g_b] = E[f g]$, $E[f(\phi) g(-\phi)]$ and $E[f] E[g]$; that is where
closed forms are compared with quadrature, and quadrature with one and a half times its nodes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..quadrature import POINTS, derivatives, rule_around
from .base import Activation, Expansion, between_sides, centres
from .summation import assemble, averages, factors, floored, kink_bends, single_by_quadrature

FINER = 3 * POINTS // 2
CAUTION = 3  # errors of two rules are compared: neither is exact


def quadrature_error(activation: Activation, k: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Estimated error of `pair_by_quadrature` at variance k: of its nodes, of kinks that nobody named, and of rounding."""

    def one(k):
        k = floored(k)
        signs = (1,) if activation.kinks else (1, -1)
        pairs = [
            [single_by_quadrature(activation, k, points, sign) for points in (POINTS, FINER)] for sign in signs
        ]
        scale = pairs[0][1].value
        nodes = sum(distance(*pair, k) for pair in pairs) + _inner_gap(activation, k) * jnp.sqrt(scale)
        parts = _by_parts_gap(activation, k)
        rounding = 8 * jnp.finfo(k.dtype).eps * sum(size(pair[0], k) for pair in pairs)
        return _relative(CAUTION * nodes + parts + rounding, scale)

    return _each(one, k)


def closed_form_error(activation: Activation, k: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """What a closed form differs from quadrature by, beyond the error of the quadrature, and rounding."""

    def one(k):
        k = floored(k)
        closed = {sign: activation.pair(k, k, sign * k) for sign in (1, 0, -1)}
        coarse, fine = (_on_lines(activation, k, points) for points in (POINTS, FINER))
        scale = fine[1].value
        apart = jnp.zeros_like(k)
        for sign, exact in fine.items():
            compare = _along_ray if sign and activation.kinks else lambda x, y, k: distance(x, y, k)
            unsure = CAUTION * compare(coarse[sign], exact, k)
            apart = jnp.maximum(apart, compare(closed[sign], exact, k) - unsure)
        rounding = 8 * jnp.finfo(k.dtype).eps * sum(size(x, k) for x in closed.values())
        return _relative(apart + rounding, scale)

    return _each(one, k)


def distance(x: Expansion, y: Expansion, k: Float[Array, ""]) -> Float[Array, ""]:
    """The largest difference of two expansions, for relative changes of k."""
    return size(jax.tree.map(jnp.subtract, x, y), k)


def size(x: Expansion, k: Float[Array, ""]) -> Float[Array, ""]:
    """The largest entry of an expansion, for relative changes of k."""
    return jnp.maximum(
        jnp.abs(x.value), jnp.maximum(k * jnp.max(jnp.abs(x.slope)), k * (k * jnp.max(jnp.abs(x.curvature))))
    )


def _along_ray(x, y, k):
    """Where the curvature diverges, its part along changes that keep the correlation: all that has a meaning."""
    d = jax.tree.map(jnp.subtract, x, y)
    return jnp.abs(d.value) + jnp.abs(k * jnp.sum(d.slope)) + jnp.abs(k * (k * jnp.sum(d.curvature)))


def _each(one, k):
    return jnp.reshape(jax.vmap(one)(jnp.reshape(k, (-1,))), k.shape)


def _relative(x, scale):
    return jnp.where(scale > 0, x / jnp.where(scale > 0, scale, 1.0), x)


def _on_lines(activation, k, points):
    """Expansions at correlation 1, 0 and (without kinks) -1."""
    root = jnp.sqrt(k)
    x, w = rule_around(centres(activation, k.dtype), jnp.zeros_like(k), root, points)
    mean = jnp.sum(factors(activation, root * x) * w[None], axis=-1)
    if activation.kinks:
        mean = mean + jnp.sum(kink_bends(activation, root), axis=-1)
    result = {
        1: single_by_quadrature(activation, k, points),
        0: assemble(mean[:, None] * mean[None, :], k, k, jnp.zeros_like(k)),
    }
    if not activation.kinks:
        result[-1] = single_by_quadrature(activation, k, points, -1)
    return result


def _inner_gap(activation, k):
    """Error of averages over what phi_b has left, at three correlations and given three values of phi_a."""
    root, result = jnp.sqrt(k), jnp.zeros_like(k)
    units = jnp.stack([jnp.ones_like(k), root, root, jnp.ones_like(k), k, root, jnp.ones_like(k)])
    for rho in (0.3, 0.9, 0.999):
        mean, width = rho * root * jnp.asarray([0.0, 0.7, 2.9], k.dtype), (1 - rho**2) ** 0.5 * root
        coarse, fine = (averages(activation, mean, width, points) for points in (POINTS, FINER))
        result = jnp.maximum(result, jnp.max(jnp.abs(coarse - fine) * units[:, None]))
    return result


def _by_parts_gap(activation, k):
    """Stein's identity for s' and for s s': fails at a kink that is not named, and for s at a jump."""
    root = jnp.sqrt(k)
    x, w = rule_around(centres(activation, k.dtype), jnp.zeros_like(k), root)
    phi = root * x
    s, slope, bend = derivatives(activation, 2)(phi)
    weights = jnp.stack([jnp.ones_like(s), s])
    gap = jnp.sum((weights * (k * bend - phi * slope)[None] + jnp.stack([0 * s, k * slope**2])) * w[None], axis=-1)
    if activation.kinks:
        delta = k * kink_bends(activation, root)[4]
        here = between_sides(activation, activation, k.dtype)
        gap = gap + jnp.stack([jnp.sum(delta), jnp.sum(delta * here)])
    scale = jnp.sqrt(jnp.sum(s**2 * w))
    return jnp.abs(gap[0]) * scale + jnp.abs(gap[1]) + jnp.abs(jnp.sum((root * slope - x * s) * w)) * scale
