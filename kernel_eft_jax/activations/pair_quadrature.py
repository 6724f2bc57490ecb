r"""Moments of one pair of inputs by quadrature, for any activation.

With Price's theorem, for the pair ab,

$$\partial_{aa} m = \tfrac12 E[s''_a s_b], \quad \partial_{ab} m = E[s'_a s'_b], \quad
  \partial_{aa}^2 m = \tfrac14 E[s^{(4)}_a s_b],$$

$$\partial_{aa} \partial_{ab} m = \tfrac12 E[s^{(3)}_a s'_b],$$

$$\partial_{aa} \partial_{bb} m = \tfrac14 \partial_{ab}^2 m = \tfrac14 E[s''_a s''_b]$$

If s has kinks, or if k is large beside the scale on which s changes, integration by parts removes the third and fourth
derivatives of s, so that s'' is the highest. At large k these derivatives differ from zero at few phi only, and their
integrals lose digits by cancellation:

$$k_{aa} E[s^{(3)}_a s'_b] = E[\phi s''_a s'_b] - k_{ab} E[s''_a s''_b], \quad
  k_{aa}^2 E[s^{(4)}_a s_b] = E[(\phi^2 - k_{aa}) s''_a s_b] - 2 k_{ab} E[\phi s''_a s'_b] + k_{ab}^2 E[s''_a s''_b]$$

For one input with itself, $m(k) = E[F(\phi)]$ with F = s^2, only $m'$ and $m''$ are needed. They are computed by parts
if s has kinks or k is large, and otherwise from the derivatives of F:

$$m' = \frac{E[\phi F']}{2 k} = \tfrac12 E[F''], \qquad
  m'' = \frac{E[(\phi^3 - 3 k \phi) F']}{4 k^3} = \tfrac14 E[F^{(4)}]$$

At a kink s'' is a delta function times the jump of s'. For one input with itself two such delta functions meet at every
kink, and their product diverges. It is left out, because its coefficient vanishes for every change of a kernel.
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..linear import matmul
from ..quadrature import above_rounding, centred_rule, derivatives, normal_density, remaining_share, steepness
from ..selecting import safe_root
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

VALUE, FIRST, SECOND, THIRD, FOURTH = range(5)


def by_parts(activation: Activation, k: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Whether integration by parts removes the highest derivatives of s at variance k."""
    if activation.kinks:
        return jnp.ones_like(k, bool)
    return k * jnp.asarray(activation.sharpness, k.dtype) ** 2 > 1


def factors(activation: Activation, phi: Float[Array, "*shape"], parts: Bool[Array, ""]) -> Float[Array, "5 *shape"]:
    """s and its derivatives to order four at phi. If `parts`: s, s', s'', phi s'' and phi^2 s'', without the delta
    functions at kinks."""
    return jnp.stack(_factors(activation, phi, parts))


def _factors(activation, phi, parts):
    if activation.kinks:
        s, ds, dds = derivatives(activation, 2)(phi)
        return [s, ds, dds, phi * dds, phi * phi * dds]
    s, ds, dds, third, fourth = derivatives(activation, 4)(phi)
    return [s, ds, dds, jnp.where(parts, phi * dds, third), jnp.where(parts, phi * phi * dds, fourth)]


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
    k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""], regular: bool
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The numbers `across` and `rest` of phi_b = across x + rest y given phi_a = sqrt(k_aa) x. If `regular`, rest stays
    above its rounding error, so that it can be differentiated."""
    share = remaining_share(k_aa, k_bb, k_ab)
    if regular:
        share = above_rounding(share, jnp.asarray(jnp.finfo(share.dtype).eps ** 0.8, share.dtype))
    return k_ab / jnp.sqrt(k_aa), jnp.sqrt(k_bb) * safe_root(share)


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
    a, b = factors(activation, roots[0] * x, parts[0]), average_factors(activation, across * x, rest, parts[1])
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
    """Functions of x whose means are E[s^2] and its first and second derivative in k, from `factors` f at
    sqrt(k) x."""
    gradient = x * f[VALUE] * f[FIRST] / jnp.sqrt(k)
    hessian = gradient * (0.5 * (x**2 - 3) / k)
    if not activation.kinks:
        parts, local = (
            by_parts(activation, k),
            1.5 * f[SECOND] ** 2 + 2 * f[FIRST] * f[THIRD] + 0.5 * f[VALUE] * f[FOURTH],
        )
        gradient = jnp.where(parts, gradient, f[FIRST] ** 2 + f[VALUE] * f[SECOND])
        hessian = jnp.where(parts, hessian, local)
    return jnp.stack([f[VALUE] ** 2, gradient, hessian])


def kinks_with_itself(activation: Activation, root: Float[Array, ""]) -> Float[Array, "5 5"]:
    """The part of the moments of one input with itself in which s'' of the first factor is a delta function."""
    here = partial(factors, activation, parts=by_parts(activation, root**2))
    return _product(kink_deltas(activation, root), between_sides(here, activation, root.dtype))


def average_factors(
    activation: Activation, mean: Float[Array, " X"], width: Float[Array, ""], parts: Bool[Array, ""]
) -> Float[Array, "5 X"]:
    """`factors` at mean + width y averaged over y, without the delta functions at kinks."""
    y, w = rule(activation, mean, width)
    # One sum for each factor: XLA computes them in one pass, which it does not for the sum of an array of all factors.
    rows = to_average(activation, mean[:, None], width, y, parts)
    return jnp.stack([jnp.sum(row * w, axis=-1) for row in rows])


def to_average(
    activation: Activation,
    mean: Float[Array, "#X 1"],
    width: Float[Array, "*#X"],
    y: Float[Array, "X M"],
    parts: Bool[Array, ""],
) -> list[Float[Array, "X M"]]:
    """Functions of y whose averages over y are those of `factors` at mean + width y.

    If width is large, s'' differs from zero at few y only, and its integral loses digits by cancellation. There
    $E[f s''] = E[(f y / width - f') s']$ replaces it.
    """
    phi = mean + width * y
    rows = _factors(activation, phi, parts)
    if activation.kinks:
        return rows
    wide = by_parts(activation, width**2)
    lift, ds = y / jnp.where(wide, width, 1.0), rows[FIRST]
    local = [lift * ds, (lift * phi - 1) * ds, (lift * phi - 2) * phi * ds]
    return rows[:SECOND] + [jnp.where(wide, x, row) for x, row in zip(local, rows[SECOND:], strict=True)]


def _product(a, b):
    return matmul(a, b.T)


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
    given_a = _on_both_sides(activation, across * (c / roots[0]), rest)
    given_b = _on_both_sides(activation, back * (c / roots[1]), back_rest)
    apart = (rest / roots[1]) ** 2 > 64 * jnp.finfo(rest.dtype).eps
    safe = jnp.where(apart, rest, 1.0)
    gap = (c[None, :] - across * (c / roots[0])[:, None]) / safe
    density = jnp.where(apart, normal_density(gap) / safe, 0.0)
    both = jnp.einsum("i,ij,j->", deltas[0][SECOND], density, kink_jumps(activation, k_ab.dtype), precision="highest")
    moments = _product(deltas[0], given_a) + _product(given_b, deltas[1])
    return moments.at[SECOND, SECOND].add(both)


def _on_both_sides(activation, mean, width):
    """`average_factors` where the mean may lie at a kink and the width be zero, as for inputs that repeat: the mean
    over both sides, since the product of s' and a delta function at its jump is that of the mean of s'."""
    step = 8 * jnp.finfo(mean.dtype).eps * jnp.abs(mean)
    below, above = (average_factors(activation, x, width, jnp.ones((), bool)) for x in (mean - step, mean + step))
    return 0.5 * (below + above)


def assemble(
    M: Float[Array, "5 5"],
    k_aa: Float[Array, ""],
    k_bb: Float[Array, ""],
    k_ab: Float[Array, ""],
    parts: tuple[Bool[Array, ""], Bool[Array, ""]],
) -> Expansion:
    """Value, gradient and hessian from the moments M[i, j] of the factors of phi_a and phi_b."""

    def by_one(M, k, parts):
        third, fourth = M[THIRD, FIRST], M[FOURTH, VALUE]
        mixed = third - k_ab * M[SECOND, SECOND]
        apart = ((fourth - k * M[SECOND, VALUE] - k_ab * (third + mixed)) / k) / k
        return 0.5 * M[SECOND, VALUE], 0.25 * jnp.where(parts, apart, fourth), 0.5 * jnp.where(parts, mixed / k, third)

    (a, aa, aa_ab), (b, bb, bb_ab) = by_one(M, k_aa, parts[0]), by_one(M.T, k_bb, parts[1])
    aa_bb = 0.25 * M[SECOND, SECOND]
    hessian = [[aa, aa_bb, aa_ab], [aa_bb, bb, bb_ab], [aa_ab, bb_ab, M[SECOND, SECOND]]]
    gradient = jnp.stack([a, b, M[FIRST, FIRST]])
    return Expansion(M[VALUE, VALUE], gradient, jnp.stack([jnp.stack(row) for row in hessian]))
