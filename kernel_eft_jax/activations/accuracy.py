r"""Errors of the moments of an activation, measured by comparison with a second evaluation.

An error is the largest of those of the value, of k times the gradient and of k^2 times the hessian, relative to E[s^2].
At the correlations 1, -1 and 0 a moment is one integral or a product of two, $E[f_a g_b] = E[f g]$,
$E[f(\phi) g(-\phi)]$ and $E[f] E[g]$. There closed forms are compared with quadrature, and quadrature with a rule of
one and a half times as many nodes.

The error of rounding is added. It is proportional to the largest entry of the expansion. For two nearly equal inputs
the hessian holds $E[s''_a s''_b]$, which at large variances is far above the derivatives of one input.
"""

from abc import abstractmethod
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import check_variances
from ..linear import matmul
from ..pairs import diagonal, input_count, off_diagonal, pairs, triples
from ..quadrature import REACH, centred_rule, normal_density, remaining_share
from .base import Activation, Expansion, between_sides, centres, enough_points, kink_jumps, kink_places, rule
from .pair_quadrature import (
    FIRST,
    FOURTH,
    SECOND,
    THIRD,
    VALUE,
    assemble,
    by_parts,
    factors,
    floored,
    kink_deltas,
    kinks_with_itself,
    on_line,
    to_average,
)

CAUTION = 3  # multiplies the difference of two rules, since neither is exact
ROUNDED_SHARE = 16  # so many roundings change 1 - rho^2 in a layer
ROUNDINGS = 100  # so many rounding errors of one operation are allowed for
# (correlation, phi_a / sqrt(k)) at which averages over phi_b given phi_a are tested.
GIVEN = [(rho, z) for rho in (0.3, 0.9, 0.999) for z in (0.0, 0.7, 2.9)]

# Factors that meet in a moment, first and second.
MEETING = [(VALUE, VALUE), (FIRST, FIRST), (SECOND, SECOND)] + [
    pair for x, y in ((SECOND, VALUE), (FOURTH, VALUE), (THIRD, FIRST)) for pair in ((x, y), (y, x))
]


class TwoRules(NamedTuple):
    """What a coarse rule and one of one and a half times as many nodes find at one variance k.

    `coarse` and `fine` are expansions of two inputs of this variance at the correlations 1, 0 and, without kinks, -1.
    Each row of `alone` belongs to a rule, the coarse one first: E[s^2] of one input, k times its first derivative and
    k^2 times its second. `inner` estimates the error of averages over phi_b given phi_a, which these correlations do
    not test. `parts` is the gap in Stein's identity, which betrays a jump, or a kink that `kinks` does not name.
    """

    coarse: Expansion
    fine: Expansion
    alone: Float[Array, "2 3"]
    inner: Float[Array, ""]
    parts: Float[Array, ""]


class Errors(NamedTuple):
    """Errors at one variance, divided by E[s^2], which is `scale`: `alone` is that of one input with itself, `between`
    that of two inputs at any correlation without rounding, and `rounding` what rounding adds to `between`."""

    alone: Float[Array, "*shape"]
    between: Float[Array, "*shape"]
    rounding: Float[Array, "*shape"]
    scale: Float[Array, "*shape"]

    @property
    def total(self) -> Float[Array, "*shape"]:
        """The error of two inputs at any correlation, with rounding."""
        return self.between + self.rounding


class MeasuredActivation(Activation):
    """An activation whose errors are measured at each variance."""

    @abstractmethod
    def errors(self, k: Float[Array, "*shape"]) -> Errors:
        """The errors at variance k."""

    def error(self, k):
        return self.errors(check_variances(k)).total

    def kernel_error(self, k):
        return _kernel_error(self, k)


# Compiled, as `differentiable` is.
@eqx.filter_jit
def _kernel_error(activation: MeasuredActivation, k: Float[Array, " P"]) -> Float[Array, ""]:
    """The largest error at a packed kernel, from the `errors` of its variances. The error of rounding is that at the
    correlations of the kernel."""
    inputs = input_count(k.shape[0])
    of_each = activation.errors(k[diagonal(inputs)])
    worst = jnp.max(of_each.alone)
    if inputs == 1:
        return worst
    (a, b), others = pairs(inputs), off_diagonal(inputs)
    k_aa, k_bb, _ = k[triples(inputs)[others]].T
    units = jnp.stack([k_aa, k_bb, jnp.sqrt(k_aa) * jnp.sqrt(k_bb)], axis=1)
    found = activation.between(k[triples(inputs)[others]])
    size = jnp.sqrt(of_each.scale[a[others]]) * jnp.sqrt(of_each.scale[b[others]])
    rounding = _rounding(_size(found, units)) + _rounding_of_kinks(activation, *k[triples(inputs)[others]].T)
    rounding = rounding + _rounding_of_copies(activation, *k[triples(inputs)[others]].T)
    rounding = jnp.max(rounding / jnp.where(size > 0, size, 1))
    return jnp.maximum(worst, jnp.max(of_each.between) + rounding)


def rounding_of_entries(activation: Activation, k: Float[Array, " P"]) -> Float[Array, ""]:
    """What a rounding of each entry of a packed kernel changes, relative to E[s^2]: where inputs are nearly equal, the
    expansion changes as 1 - rho^2 does. Inputs that repeat do so after rounding too."""
    inputs = input_count(k.shape[0])
    others = triples(inputs)[off_diagonal(inputs)]
    if inputs == 1:
        return jnp.zeros((), k.dtype)
    k_aa, k_bb, k_ab = k[others].T
    size = _size(activation.between(k[others]), jnp.stack([k_aa, k_bb, jnp.sqrt(k_aa) * jnp.sqrt(k_bb)], axis=1))
    share = remaining_share(k_aa, k_bb, k_ab)
    scale = jnp.sqrt(
        jax.lax.map(lambda pair: activation.single(pair[0]).value * activation.single(pair[1]).value, k[others])
    )
    known = (share > 0) & (scale > 0)
    change = 2 * jnp.finfo(k.dtype).eps * size / jnp.where(known, share * scale, 1)
    return jnp.max(jnp.where(known, change, 0))


@eqx.filter_jit
def quadrature_errors(activation: Activation, k: Float[Array, "*shape"]) -> Errors:
    """Estimated errors of `pair_by_quadrature` at variance k: those of its nodes, of kinks that the activation does not
    name, and of rounding."""

    def one(k):
        k = floored(k)
        lines = _by_two_rules(activation, k)
        nodes = jnp.max(_beyond(lines.coarse, lines.fine, k)) + _unsure_alone(lines)
        return _errors(activation, CAUTION * nodes + lines.parts, CAUTION * lines.inner, lines, k)

    return _mapped(one, k)


@eqx.filter_jit
def closed_form_errors(activation: Activation, k: Float[Array, "*shape"]) -> Errors:
    """By how much a closed form and quadrature differ at variance k, beyond the error of quadrature, and the error of
    rounding."""

    def one(k):
        k = floored(k)
        lines = _by_two_rules(activation, k)
        signs = jnp.asarray(_signs(activation), k.dtype)
        closed = jax.vmap(lambda sign: Expansion(*activation.pair(k, k, sign * k)))(signs)
        expected, unsure = lines.fine, _apart(lines.coarse, lines.fine)
        if activation.kinks:
            closed, expected, unsure = (_along_ray(x) for x in (closed, expected, unsure))
        beyond = jnp.maximum(_beyond(closed, expected, k) - CAUTION * _size(unsure, _units(k)), 0)
        own = activation.single(k)
        own = jnp.stack([own.value, k * jnp.sum(own.gradient), k * (k * jnp.sum(own.hessian))])
        off = jnp.max(jnp.abs(own - lines.alone[1])) - CAUTION * _unsure_alone(lines)
        return _errors(activation, jnp.maximum(jnp.max(beyond), off), jnp.zeros_like(k), lines, k)

    return _mapped(one, k)


def _unsure_alone(lines):
    return jnp.max(jnp.abs(lines.alone[0] - lines.alone[1]))


def _mapped(one, k):
    found = jax.vmap(one)(jnp.reshape(k, (-1,)))
    return Errors(*(jnp.reshape(x, k.shape) for x in found))


def _errors(activation, own, inner, lines, k):
    scale = lines.fine.value[0]
    unit = jnp.where(scale > 0, scale, 1.0)
    alone, anywhere = _rounding(jnp.max(jnp.abs(lines.alone[1]))), jnp.max(_rounding(_size(lines.fine, _units(k))))
    anywhere = anywhere + _rounding_of_kinks(activation, k, k, jnp.zeros_like(k))
    return Errors((own + alone) / unit, (own + inner) / unit, anywhere / unit, scale)


def _signs(activation):
    return np.array([1, 0] if activation.kinks else [1, 0, -1])


def _apart(x: Expansion, y: Expansion) -> Expansion:
    return jax.tree.map(jnp.subtract, x, y)


def _units(k: Float[Array, ""]) -> Float[Array, "1 3"]:
    return jnp.full((1, 3), k)


def _size(x: Expansion, units: Float[Array, "#pairs 3"]) -> Float[Array, " pairs"]:
    """The largest entry of each expansion, the gradient multiplied by `units` and the hessian by their products."""
    gradient = jnp.max(units * jnp.abs(x.gradient), axis=-1)
    hessian = jnp.max(units[:, :, None] * (units[:, None, :] * jnp.abs(x.hessian)), axis=(-2, -1))
    return jnp.maximum(jnp.abs(x.value), jnp.maximum(gradient, hessian))


def _rounding(size):
    return ROUNDINGS * jnp.finfo(size.dtype).eps * size


def _rounding_of_kinks(activation, k_aa, k_bb, k_ab):
    r"""The error of rounding of $k_{aa} k_{bb} E[s''_a s''_b]$, in which the delta functions of several kinks cancel at
    large variances: a few roundings of the sum of their absolute values, with a bound of the density of phi_a, phi_b at
    both kinks."""
    if len(activation.kinks) < 2:
        return jnp.zeros_like(k_ab)
    places, jumps = kink_places(activation, k_ab.dtype), jnp.abs(kink_jumps(activation, k_ab.dtype))

    def at_kinks(k):
        squares = jnp.square(places) / (4 * jnp.where(k > 0, k, 1))
        return jnp.sum(jumps * jnp.exp(-squares))

    share = remaining_share(k_aa, k_bb, k_ab)
    width = 2 * jnp.pi * jnp.sqrt(jnp.where(share > 0, share, jnp.inf))
    at_both = jnp.vectorize(at_kinks)(k_aa) * jnp.vectorize(at_kinks)(k_bb)
    return 4 * jnp.finfo(k_ab.dtype).eps * jnp.sqrt(k_aa) * jnp.sqrt(k_bb) * at_both / width


def _rounding_of_copies(activation, k_aa, k_bb, k_ab):
    r"""The change of $k_{ab} E[s'_a s'_b]$ by rounding of the kernel, if s has kinks and two inputs nearly repeat; zero
    without kinks.

    A kink lies between phi_a and phi_b with a probability proportional to sqrt(1 - rho^2). A layer rounds 1 - rho^2 by
    ROUNDED_SHARE times eps, and near rho = 1 the root makes this small error large.
    """
    if not activation.kinks:
        return jnp.zeros_like(k_ab)
    places, jumps = kink_places(activation, k_ab.dtype), kink_jumps(activation, k_ab.dtype)
    squares = jnp.square(places)[None, :] / (2 * jnp.where(k_aa > 0, k_aa, 1))[:, None]
    share = jnp.maximum(remaining_share(k_aa, k_bb, k_ab), 0)
    change = jnp.sqrt(share + ROUNDED_SHARE * jnp.finfo(k_ab.dtype).eps) - jnp.sqrt(share)
    at_kinks = jnp.sum(jnp.square(jumps)[None, :] * jnp.exp(-squares), axis=1)
    return jnp.sqrt(k_aa) * jnp.sqrt(k_bb) * at_kinks * change / (2 * jnp.pi)


def _beyond(x: Expansion, y: Expansion, k: Float[Array, ""]) -> Float[Array, "*signs"]:
    """By how much two expansions differ, less the error of rounding."""
    return jnp.maximum(_size(_apart(x, y), _units(k)) - _rounding(_size(y, _units(k))), 0)


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
    parts = by_parts(activation, k)
    here = factors(activation, phi[0], parts)
    # (5, cases, M): case 0 is one input with itself
    over = jnp.stack(to_average(activation, mean[:, None], width[:, None], y, parts))
    halves = y.shape[1] // (points + finer)
    rules = jnp.asarray(np.tile(np.repeat(np.eye(2), (points, finer), axis=1), halves), k.dtype)
    means = matmul(over * w[None], rules.T)  # (5, cases, 2)
    one = jnp.ones_like(k)
    units = jnp.stack([one, root, k, jnp.where(parts, root, k * root), jnp.where(parts, one, k * k)])
    gaps = units[:, None] * jnp.abs(means[..., 0] - means[..., 1])
    outermost = factors(activation, root * jnp.asarray([-REACH, REACH], k.dtype), parts)
    ends = jnp.max(jnp.square(units[:, None] * outermost))
    weights = w[0][None] * rules
    coarse, fine = _expansions(activation, k, here, weights, means[:, 0])
    alone = matmul(weights, on_line(activation, k, y[0], here).T) * jnp.stack([one, k, k**2])[None]
    scale = jnp.sqrt(jnp.sum(here[VALUE] ** 2 * weights[1]))
    # In a moment the error `gaps` of one mean is multiplied by the other factor, here by the mean of its absolute
    # value.
    other = units * jnp.sum(jnp.abs(here) * weights[0][None], axis=-1)
    worst = jnp.max(gaps, axis=1)
    inner = jnp.max(jnp.stack([other[i] * worst[j] for i, j in MEETING])) + ends * normal_density(
        jnp.asarray(REACH, k.dtype)
    )
    if activation.kinks:
        deep = _apart(_deeply_graded(activation, k), jax.tree.map(lambda x: x[0], fine))
        inner = inner + jnp.max(_size(jax.tree.map(lambda x: x[None], deep), _units(k)))
    return TwoRules(coarse, fine, alone, inner, _stein_gaps(activation, k, here, phi[0], weights[0], scale))


def _deeply_graded(activation, k):
    """The expansion of one input with itself by the nodes that are used for two nearly equal inputs."""
    root = jnp.sqrt(k)
    x, w = centred_rule(centres(activation, k.dtype) / root, 1e8 * jnp.ones_like(k), enough_points(activation))
    parts = by_parts(activation, k)
    here, delta = factors(activation, root * x, parts), kinks_with_itself(activation, root)
    moments = jnp.einsum("fm,gm->fg", here * w[None], here, precision="highest") + delta + delta.T
    return Expansion(*assemble(moments, k, k, k, (parts, parts)))


def _expansions(activation, k, here, weights, means):
    """Expansions at each correlation by each of the two rules."""
    delta = jnp.zeros((5, 5), k.dtype)
    if activation.kinks:
        delta = kinks_with_itself(activation, jnp.sqrt(k))
        delta = delta + delta.T
        means = means + jnp.sum(kink_deltas(activation, jnp.sqrt(k)), axis=-1)[:, None]
    product = partial(jnp.einsum, "fm,gm,rm->rfg", precision="highest")
    moments = [product(here, here, weights) + delta[None], jnp.einsum("fr,gr->rfg", means, means, precision="highest")]
    if not activation.kinks:  # nodes are symmetric: their two halves change places
        opposite = jnp.reshape(jnp.flip(jnp.reshape(here, (5, 2, -1)), axis=1), here.shape)
        moments.append(product(here, opposite, weights))
    signs = jnp.asarray(_signs(activation), k.dtype)
    parts = by_parts(activation, k)
    at_each = jax.vmap(lambda M, sign: Expansion(*assemble(M, k, k, sign * k, (parts, parts))))
    both = jax.vmap(at_each, in_axes=(0, None))(jnp.stack(moments, axis=1), signs)
    return (jax.tree.map(lambda x, r=r: x[r], both) for r in (0, 1))


def _stein_gaps(activation, k, f, phi, w, scale):
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
        higher = jnp.where(by_parts(activation, k), 0, higher)  # s is not differentiated so often
    jump = jnp.sum((k * ds - phi * s) * w) / jnp.sqrt(k)
    return jnp.abs(twice) + scale * (jnp.abs(once) + jnp.abs(jump) + higher)
