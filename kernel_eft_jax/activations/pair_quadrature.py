r"""Moments of one pair of inputs by quadrature, for any activation.

With Price's theorem, for the pair ab,

$$\partial_{aa} m = \tfrac12 E[s''_a s_b], \quad \partial_{ab} m = E[s'_a s'_b], \quad
  \partial_{aa}^2 m = \tfrac14 E[s^{(4)}_a s_b],$$

$$\partial_{aa} \partial_{ab} m = \tfrac12 E[s^{(3)}_a s'_b],$$

$$\partial_{aa} \partial_{bb} m = \tfrac14 \partial_{ab}^2 m = \tfrac14 E[s''_a s''_b]$$

If s has kinks, integration by parts removes its third and fourth derivatives, so that s'' is the highest:

$$k_{aa} E[s^{(3)}_a s'_b] = E[\phi s''_a s'_b] - k_{ab} E[s''_a s''_b], \quad
  k_{aa}^2 E[s^{(4)}_a s_b] = E[(\phi^2 - k_{aa}) s''_a s_b] - 2 k_{ab} E[\phi s''_a s'_b] + k_{ab}^2 E[s''_a s''_b]$$

At a kink s'' is a delta function times the jump of s'. For one input with itself two such delta functions meet at every
kink, and their product diverges. It is left out, because its coefficient vanishes for every change of a kernel.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..quadrature import centred_rule, derivatives, normal_density, remaining_share, steepness
from .base import Activation, Expansion, at_zero, between_sides, centres, enough_points, kink_jumps, kink_places, rule

VALUE, FIRST, SECOND, THIRD, FOURTH = range(5)


def factors(activation: Activation, phi: Float[Array, "*shape"]) -> Float[Array, "5 *shape"]:
    """s and its derivatives to order four at phi. If s has kinks: s, s', s'', phi s'' and phi^2 s'', without the delta
    functions at kinks."""
    return jnp.stack(_factors(activation, phi))


def _factors(activation, phi):
    if not activation.kinks:
        return derivatives(activation, 4)(phi)
    s, ds, dds = derivatives(activation, 2)(phi)
    return [s, ds, dds, phi * dds, phi * phi * dds]


def floored(k: Float[Array, ""]) -> Float[Array, ""]:
    """The variance k, or, where k is zero, a variance so small that no result changes."""
    return jnp.where(k > 0, k, jnp.finfo(k.dtype).tiny ** 0.25)


def outer_rule(
    activation: Activation,
    roots: tuple[Float[Array, ""], Float[Array, ""]],
    across: Float[Array, ""],
    rest: Float[Array, ""],
    *points: int,
) -> tuple[Float[Array, " X"], Float[Array, " X"]]:
    """Nodes for functions of phi_a = roots[0] x and of phi_b = across x + rest y averaged over y.

    By the average over y a kink of s_b becomes a corner of width rest / across. This corner has a cell of its own
    beside that of the kink of s_a.
    """
    places = centres(activation, across.dtype)
    width = steepness(jnp.maximum(*roots), activation.sharpness)
    least = jnp.finfo(across.dtype).tiny ** 0.5
    all_places = places / roots[0]
    if activation.kinks:
        sharp = jnp.abs(across) / jnp.maximum(rest, least)
        width = jnp.maximum(width, jnp.where(rest > 0, sharp, 0.0))
    if not at_zero(activation.kinks):
        safe = jnp.where(jnp.abs(across) > least, across, least)
        all_places = jnp.concatenate([all_places, places / safe])
    return centred_rule(all_places, width, *(points or (enough_points(activation),)))


def remaining(
    k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""], regular: bool = False
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The numbers `across` and `rest` of phi_b = across x + rest y given phi_a = sqrt(k_aa) x. If `regular`, rest stays
    above its rounding error, so that it can be differentiated."""
    share = remaining_share(k_aa, k_bb, k_ab)
    least = jnp.finfo(share.dtype).eps ** 0.8
    if regular:
        x = jax.lax.stop_gradient(share / least)
        share = share + least * jnp.where(x > 0, jnp.exp(-x), 1 - 2 * x)
    root = jnp.where(share > 0, jnp.sqrt(jnp.where(share > 0, share, 1.0)), 0.0)
    return k_ab / jnp.sqrt(k_aa), jnp.sqrt(k_bb) * root


def pair_by_quadrature(
    activation: Activation,
    k_aa: Float[Array, ""],
    k_bb: Float[Array, ""],
    k_ab: Float[Array, ""],
    regular: bool = False,
) -> Expansion:
    """The expansion of one pair of inputs."""
    k_aa, k_bb = floored(k_aa), floored(k_bb)
    roots = jnp.sqrt(k_aa), jnp.sqrt(k_bb)
    across, rest = remaining(k_aa, k_bb, k_ab, regular)
    x, w = outer_rule(activation, roots, across, rest)
    moments = _product(factors(activation, roots[0] * x) * w[None], averages(activation, across * x, rest))
    if activation.kinks:
        moments = moments + _kink_moments(activation, roots, (k_aa, k_bb, k_ab), regular)
    return assemble(moments, k_aa, k_bb, k_ab, bool(activation.kinks))


def single_by_quadrature(activation: Activation, k: Float[Array, ""]) -> Expansion:
    """The expansion of one input with itself."""
    k = floored(k)
    root = jnp.sqrt(k)
    x, w = rule(activation, jnp.zeros_like(k), root)
    here = factors(activation, root * x)
    moments = _product(here * w[None], here)
    if activation.kinks:
        meeting = kinks_with_itself(activation, root)
        moments = moments + meeting + meeting.T
    return assemble(moments, k, k, k, bool(activation.kinks))


def kinks_with_itself(activation: Activation, root: Float[Array, ""]) -> Float[Array, "5 5"]:
    """The part of the moments of one input with itself in which s'' of the first factor is a delta function."""
    return _product(kink_deltas(activation, root), between_sides(partial(factors, activation), activation, root.dtype))


def averages(activation: Activation, mean: Float[Array, " X"], width: Float[Array, ""]) -> Float[Array, "5 X"]:
    """`factors` at mean + width y averaged over y, without the delta functions at kinks."""
    y, w = rule(activation, mean, width)
    phi = mean[:, None] + width * y
    # One sum for each factor: XLA computes them in one pass, which it does not for the sum of an array of all factors.
    return jnp.stack([jnp.sum(factor * w, axis=-1) for factor in _factors(activation, phi)])


def _product(a, b):
    return jnp.matmul(a, b.T, precision="highest")


def kink_deltas(activation, root):
    """Weights of the delta functions of s'', phi s'' and phi^2 s'' at each kink for phi ~ N(0, root^2), (5, C); zero
    for s and s'."""
    c = kink_places(activation, root.dtype)
    weight = kink_jumps(activation, root.dtype) * normal_density(c / root) / root
    zeros = jnp.zeros((SECOND, c.size), root.dtype)
    return jnp.concatenate([zeros, jnp.stack([weight, weight * c, weight * c * c])])


def _kink_moments(activation, roots, k, regular):
    """The part of the moments where s'' of one input, or of both, is a delta function."""
    k_aa, k_bb, k_ab = k
    c, deltas = kink_places(activation, k_ab.dtype), [kink_deltas(activation, root) for root in roots]
    (across, rest), (back, back_rest) = remaining(k_aa, k_bb, k_ab, regular), remaining(k_bb, k_aa, k_ab, regular)
    given_a = averages(activation, across * (c / roots[0]), rest)
    given_b = averages(activation, back * (c / roots[1]), back_rest)
    apart = (rest / roots[1]) ** 2 > 64 * jnp.finfo(rest.dtype).eps
    safe = jnp.where(apart, rest, 1.0)
    gap = (c[None, :] - across * (c / roots[0])[:, None]) / safe
    density = jnp.where(apart, normal_density(gap) / safe, 0.0)
    both = jnp.einsum("i,ij,j->", deltas[0][SECOND], density, kink_jumps(activation, k_ab.dtype), precision="highest")
    moments = _product(deltas[0], given_a) + _product(given_b, deltas[1])
    return moments.at[SECOND, SECOND].add(both)


def assemble(
    M: Float[Array, "5 5"], k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""], by_parts: bool
) -> Expansion:
    """Value, gradient and hessian from the moments M[i, j] of the factors of phi_a and phi_b."""

    def by_one(M, k):
        third, fourth = M[THIRD, FIRST], M[FOURTH, VALUE]
        if by_parts:
            mixed = third - k_ab * M[SECOND, SECOND]
            fourth = ((fourth - k * M[SECOND, VALUE] - k_ab * (third + mixed)) / k) / k
            third = mixed / k
        return 0.5 * M[SECOND, VALUE], 0.25 * fourth, 0.5 * third

    (a, aa, aa_ab), (b, bb, bb_ab), aa_bb = by_one(M, k_aa), by_one(M.T, k_bb), 0.25 * M[SECOND, SECOND]
    hessian = [[aa, aa_bb, aa_ab], [aa_bb, bb, bb_ab], [aa_ab, bb_ab, M[SECOND, SECOND]]]
    gradient = jnp.stack([a, b, M[FIRST, FIRST]])
    return Expansion(M[VALUE, VALUE], gradient, jnp.stack([jnp.stack(row) for row in hessian]))
