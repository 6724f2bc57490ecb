r"""Moments of one pair of inputs by quadrature, for any activation, and how wrong they are.

With Price's theorem, for the pair ab,

$$\partial_{aa} m = \tfrac12 E[s''_a s_b], \quad \partial_{ab} m = E[s'_a s'_b], \quad
  \partial_{aa}^2 m = \tfrac14 E[s^{(4)}_a s_b],$$

$$\partial_{aa} \partial_{ab} m = \tfrac12 E[s^{(3)}_a s'_b],$$

$$\partial_{aa} \partial_{bb} m = \tfrac14 \partial_{ab}^2 m = \tfrac14 E[s''_a s''_b]$$

Where s has kinks, and where k is large beside the scale on which s changes (there derivatives are local and cancel in
the integral), orders three and four are taken off it, by parts, so that s'' is the highest:

$$k_{aa} E[s^{(3)}_a s'_b] = E[\phi s''_a s'_b] - k_{ab} E[s''_a s''_b], \quad
  k_{aa}^2 E[s^{(4)}_a s_b] = E[(\phi^2 - k_{aa}) s''_a s_b] - 2 k_{ab} E[\phi s''_a s'_b] + k_{ab}^2 E[s''_a s''_b]$$

One input with itself, $m = E[F(\phi)]$, F = s^2, needs no more than $m'$ and $m''$: by parts

$$m' = E[\phi F'] / 2 k, \qquad m'' = E[(\phi^3 - 3 k \phi) F'] / 4 k^3$$

where k is large or s has kinks, and $E[F''] / 2$ and $E[F''''] / 4$ where k is small.

At kinks s'' is a delta function times the jump of s'. Where two kinks meet (one input with itself) that diverges; it
multiplies what vanishes for every change of a kernel, and is left out.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..quadrature import centred_rule, derivatives, normal_density, remaining_share, steepness
from .base import (
    Activation,
    Expansion,
    along,
    at_zero,
    between_sides,
    centres,
    enough_points,
    kink_jumps,
    kink_places,
    rule,
)

S, DS, DDS, THIRD, FOURTH = range(5)


def by_parts(activation: Activation, k: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Whether derivatives are taken off s at variance k."""
    if activation.kinks:
        return jnp.ones_like(k, bool)
    return k * jnp.asarray(activation.sharpness, k.dtype) ** 2 > 1


def factors(activation: Activation, phi: Float[Array, "*shape"], parts: Bool[Array, ""]) -> Float[Array, "5 *shape"]:
    """s and its derivatives to order four at phi; by parts s, s', s'', phi s'', phi^2 s'', away from kinks."""
    return jnp.stack(_factors(activation, phi, parts))


def _factors(activation, phi, parts):
    if activation.kinks:
        s, ds, dds = derivatives(activation, 2)(phi)
        return [s, ds, dds, phi * dds, phi * phi * dds]
    s, ds, dds, third, fourth = derivatives(activation, 4)(phi)
    return [s, ds, dds, jnp.where(parts, phi * dds, third), jnp.where(parts, phi * phi * dds, fourth)]


def floored(k: Float[Array, ""]) -> Float[Array, ""]:
    """A variance, or one so small that it changes nothing where it is zero."""
    return jnp.where(k > 0, k, jnp.finfo(k.dtype).tiny ** 0.25)


def outer_rule(
    activation: Activation,
    roots: tuple[Float[Array, ""], Float[Array, ""]],
    across: Float[Array, ""],
    rest: Float[Array, ""],
    *points: int,
) -> tuple[Float[Array, " X"], Float[Array, " X"]]:
    """Nodes for functions of phi_a = roots[0] x and of phi_b = across x + rest y averaged over y.

    A kink of s_b becomes a corner as narrow as rest / across: a place of its own, next to that of s_a.
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
    """phi_b = across x + rest y given phi_a; if `regular`, rest is above its rounding error and can be
    differentiated."""
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
    parts = by_parts(activation, k_aa), by_parts(activation, k_bb)
    a, b = factors(activation, roots[0] * x, parts[0]), averages(activation, across * x, rest, parts[1])
    moments = _product(a * w[None], b)
    if activation.kinks:
        moments = moments + _kink_moments(activation, roots, (k_aa, k_bb, k_ab), regular)
    return assemble(moments, k_aa, k_bb, k_ab, parts)


def single_by_quadrature(activation: Activation, k: Float[Array, ""]) -> Expansion:
    """The expansion of one input with itself."""
    k = floored(k)
    root = jnp.sqrt(k)
    x, w = rule(activation, jnp.zeros_like(k), root)
    parts = by_parts(activation, k)
    return along(*jnp.sum(on_line(activation, k, x, factors(activation, root * x, parts)) * w[None], axis=-1))


def on_line(
    activation: Activation, k: Float[Array, ""], x: Float[Array, " M"], f: Float[Array, "5 M"]
) -> Float[Array, "3 M"]:
    """What has the means E[s^2] and its two derivatives in k, from `factors` f at sqrt(k) x."""
    slope = x * f[S] * f[DS] / jnp.sqrt(k)
    bend = slope * (0.5 * (x**2 - 3) / k)
    if not activation.kinks:
        parts, local = by_parts(activation, k), 1.5 * f[DDS] ** 2 + 2 * f[DS] * f[THIRD] + 0.5 * f[S] * f[FOURTH]
        slope = jnp.where(parts, slope, f[DS] ** 2 + f[S] * f[DDS])
        bend = jnp.where(parts, bend, local)
    return jnp.stack([f[S] ** 2, slope, bend])


def kinks_with_itself(activation: Activation, root: Float[Array, ""]) -> Float[Array, "5 5"]:
    """Moments of one input with itself where the first factor's s'' is a delta function."""
    here = partial(factors, activation, parts=by_parts(activation, root**2))
    return _product(kink_deltas(activation, root), between_sides(here, activation, root.dtype))


def averages(
    activation: Activation, mean: Float[Array, " X"], width: Float[Array, ""], parts: Bool[Array, ""]
) -> Float[Array, "5 X"]:
    """`factors` at mean + width y averaged over y, without the delta functions at kinks."""
    y, w = rule(activation, mean, width)
    # Sums of their own, which XLA computes in one pass, and not the sum of an array of all factors.
    rows = to_average(activation, mean[:, None], width, y, parts)
    return jnp.stack([jnp.sum(row * w, axis=-1) for row in rows])


def to_average(
    activation: Activation,
    mean: Float[Array, "#X 1"],
    width: Float[Array, "*#X"],
    y: Float[Array, "X M"],
    parts: Bool[Array, ""],
) -> list[Float[Array, "X M"]]:
    """`factors` at mean + width y, or what has the same averages over y: where width is large s'' is local and cancels,
    and $E[f s''] = E[(f y / width - f') s']$ does not."""
    phi = mean + width * y
    rows = _factors(activation, phi, parts)
    if activation.kinks:
        return rows
    wide = by_parts(activation, width**2)
    lift, ds = y / jnp.where(wide, width, 1.0), rows[DS]
    local = [lift * ds, (lift * phi - 1) * ds, (lift * phi - 2) * phi * ds]
    return rows[:DDS] + [jnp.where(wide, x, row) for x, row in zip(local, rows[DDS:], strict=True)]


def _product(a, b):
    return jnp.matmul(a, b.T, precision="highest")


def kink_deltas(activation, root):
    """What s'', phi s'' and phi^2 s'' weigh at each kink for phi ~ N(0, root^2), (5, C)."""
    c = kink_places(activation, root.dtype)
    weight = kink_jumps(activation, root.dtype) * normal_density(c / root) / root
    zeros = jnp.zeros((DDS, c.size), root.dtype)
    return jnp.concatenate([zeros, jnp.stack([weight, weight * c, weight * c * c])])


def _kink_moments(activation, roots, k, regular):
    """The part of the moments where s'' of one input, or of both, is a delta function."""
    k_aa, k_bb, k_ab = k
    c, deltas = kink_places(activation, k_ab.dtype), [kink_deltas(activation, root) for root in roots]
    (across, rest), (back, back_rest) = remaining(k_aa, k_bb, k_ab, regular), remaining(k_bb, k_aa, k_ab, regular)
    parts = jnp.ones((), bool)
    given_a = averages(activation, across * (c / roots[0]), rest, parts)
    given_b = averages(activation, back * (c / roots[1]), back_rest, parts)
    apart = (rest / roots[1]) ** 2 > 64 * jnp.finfo(rest.dtype).eps
    safe = jnp.where(apart, rest, 1.0)
    gap = (c[None, :] - across * (c / roots[0])[:, None]) / safe
    density = jnp.where(apart, normal_density(gap) / safe, 0.0)
    both = jnp.einsum("i,ij,j->", deltas[0][DDS], density, kink_jumps(activation, k_ab.dtype), precision="highest")
    moments = _product(deltas[0], given_a) + _product(given_b, deltas[1])
    return moments.at[DDS, DDS].add(both)


def assemble(
    M: Float[Array, "5 5"],
    k_aa: Float[Array, ""],
    k_bb: Float[Array, ""],
    k_ab: Float[Array, ""],
    parts: tuple[Bool[Array, ""], Bool[Array, ""]],
) -> Expansion:
    """Value, gradient and hessian from the moments M[i, j] of the factors of phi_a and phi_b."""

    def by_one(M, k, parts):
        third, fourth = M[THIRD, DS], M[FOURTH, S]
        mixed = third - k_ab * M[DDS, DDS]
        apart = ((fourth - k * M[DDS, S] - k_ab * (third + mixed)) / k) / k
        return 0.5 * M[DDS, S], 0.25 * jnp.where(parts, apart, fourth), 0.5 * jnp.where(parts, mixed / k, third)

    (a, aa, aa_ab), (b, bb, bb_ab) = by_one(M, k_aa, parts[0]), by_one(M.T, k_bb, parts[1])
    aa_bb = 0.25 * M[DDS, DDS]
    hessian = [[aa, aa_bb, aa_ab], [aa_bb, bb, bb_ab], [aa_ab, bb_ab, M[DDS, DDS]]]
    gradient = jnp.stack([a, b, M[DS, DS]])
    return Expansion(M[S, S], gradient, jnp.stack([jnp.stack(row) for row in hessian]))
