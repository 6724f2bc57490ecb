r"""Gaussian expectations of functions, at any variance and correlation, smooth or with kinks.

Every expectation here is an integral over one standard normal variable y of a function of $\mu + w y$. What makes it
hard are the places where the function changes quickly: poles near the real axis, about one unit wide in
$\phi = \mu + w y$, and kinks. The line is divided into one cell around each such place, and each half of a cell is
covered by Gauss and Legendre's nodes in u, with

$$y = y_* + \delta \sinh u, \qquad y_* = (c - \mu) / w, \quad \delta = 1 / w$$

so that nodes crowd towards the place c on the scale that the function has there, whatever the variance is, and kinks
lie on ends of cells. Two inputs are one such integral inside another: over phi_a, and over what phi_b has left given
phi_a.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .checks import check_function, check_kernel
from .selecting import selected

POINTS = 64  # nodes of half a cell
EVEN_REACH = 10.5  # of nodes that are equidistant
REACH = 10.0  # |y| beyond has no nodes: the density there matters only to functions that grow like exponentials
Function = Callable[[Array], Array]


@lru_cache
def _unit_rule(*points):
    """Gauss and Legendre's rules on (0, 1), one behind the other."""
    x, w = np.concatenate([np.polynomial.legendre.leggauss(n) for n in points], axis=1)
    return (x + 1) / 2, w / 2


def centred_rule(
    centres: Float[Array, "*batch C"], width: Float[Array, "*#batch"], *points: int
) -> tuple[Float[Array, "*batch M"], Float[Array, "*batch M"]]:
    """Nodes y and weights for averages over a standard normal y of a function that may have kinks at the centres and
    that changes within 1 / width of each centre; width may be zero.

    Each of the C centres has a cell of two halves. `points` are the numbers of nodes of one or several rules, by
    default POINTS of one rule. Every half of a cell holds the nodes of all rules, one rule behind the other, so that
    M = 2 C sum(points).
    """
    t, weight = (v.astype(centres.dtype) for v in _unit_rule(*(points or (POINTS,))))
    inside = jnp.abs(centres) < 7.5  # beyond, the density is negligible
    delta = jnp.where(inside, 1 / jnp.clip(width, 1 / REACH, 1e9)[..., None], REACH)
    places, delta = _sorted(jnp.clip(centres, -REACH, REACH), delta)
    ends = jnp.full_like(places[..., :1], REACH)
    borders = jnp.concatenate([-ends, 0.5 * (places[..., 1:] + places[..., :-1]), ends], axis=-1)
    # Halves of cells, below and above each place: (..., C, 2, points).
    sign = _last_axis(np.array([-1, 1]), places.ndim + 1, places.dtype)
    length = sign * (jnp.stack([borders[..., :-1], borders[..., 1:]], axis=-1) - places[..., None])
    delta = delta[..., None]
    reach = length / delta
    span = jnp.log(reach + jnp.sqrt(1 + reach**2))[..., None]
    e = jnp.exp(span * _last_axis(t, span.ndim, span.dtype))
    half = 0.5 * delta[..., None]
    y = places[..., None, None] + sign[..., None] * half * (e - 1 / e)
    w = half * span * (e + 1 / e) * _last_axis(weight, span.ndim, span.dtype) * normal_density(y)
    flat = (*places.shape[:-1], -1)
    y, w = jnp.reshape(y, flat), jnp.reshape(w, flat)
    # The exact sum of the weights is known. Division by the sum removes the rounding error that all weights have in
    # common.
    total = jax.lax.stop_gradient(jnp.sum(w, axis=-1, keepdims=True)) / max(len(points), 1)
    return y, w / total


def _sorted(places, delta):
    if places.shape[-1] == 1:
        return places, delta
    order = jnp.argsort(places, axis=-1)
    return jnp.take_along_axis(places, order, -1), jnp.take_along_axis(jnp.broadcast_to(delta, places.shape), order, -1)


def normal_density(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The density of a standard normal variable."""
    return jnp.exp(-0.5 * y**2) * (2 * math.pi) ** -0.5


def even_rule(points: int, dtype: Any) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    r"""Equidistant nodes and weights for a standard normal variable. The trapezoidal rule converges like
    $e^{-2 \pi d / h}$, d the distance of the nearest pole."""
    y = jnp.linspace(-EVEN_REACH, EVEN_REACH, points, dtype=dtype)
    return y, normal_density(y) * (y[1] - y[0])


def steepness(width: Float[Array, "*shape"], sharpness: Float[ArrayLike, ""]) -> Float[Array, "*shape"]:
    """1 / (the scale of y) of a function of (width y) that changes within 1 / sharpness; one for functions without a
    scale."""
    sharpness = jnp.asarray(sharpness, width.dtype)
    return jnp.where(sharpness > 0, width * sharpness, 1)


def rule_around(
    kinks: Float[Array, " C"],
    mean: Float[Array, "*batch"],
    width: Float[Array, "*#batch"],
    sharpness: Float[Array, ""],
    *points: int,
) -> tuple[Float[Array, "*batch M"], Float[Array, "*batch M"]]:
    r"""`centred_rule` for a function of $\phi = \mathrm{mean} + \mathrm{width}\, y$ that changes within 1 / sharpness
    near kinks."""
    width = jnp.broadcast_to(width, mean.shape)
    apart = jnp.reshape(kinks, (1,) * mean.ndim + kinks.shape) - mean[..., None]
    centres = apart / jnp.maximum(width, jnp.finfo(mean.dtype).tiny ** 0.5)[..., None]
    return centred_rule(centres, steepness(width, sharpness), *points)


def remaining_share(
    k_aa: Float[Array, "*shape"], k_bb: Float[Array, "*shape"], k_ab: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """1 - rho^2, and one where a variance is zero. It is computed from differences, which are exact for inputs that
    nearly repeat."""
    size = jnp.where(k_ab < 0, -k_ab, k_ab)
    safe_a, safe_b = (jnp.where(k > 0, k, 1.0) for k in (k_aa, k_bb))
    gap_a, gap_b, p = (safe_a - size) / safe_a, (safe_b - size) / safe_b, size / safe_a
    alike = (jnp.abs(gap_a) < 0.5) & (jnp.abs(gap_b) < 0.5)
    share = jnp.where(alike, gap_a + p * gap_b, 1 - p * (size / safe_b))
    return jnp.where((k_aa > 0) & (k_bb > 0), share, 1.0)


def remaining_scale(rest: Float[Array, "*shape"], variance: Float[Array, "*#shape"]) -> Float[Array, "*shape"]:
    """The square root of the remaining variance `rest`; where nothing remains, a scale above the rounding error of
    `rest`.

    In float64 functions of this scale are right to 1e-9. Their derivatives are too, but only to 1e-7 where nothing
    remains.
    """
    return jnp.sqrt(above_rounding(rest, jnp.finfo(rest.dtype).eps ** 0.6 * variance))


def above_rounding(x: Float[Array, "*shape"], least: Float[Array, "*#shape"]) -> Float[Array, "*shape"]:
    """x where x is far above `least`, a size of its rounding error, and elsewhere a number of that size above zero. The
    derivative is that of x."""
    ratio = jax.lax.stop_gradient(x / least)
    return x + least * jnp.where(ratio > 0, jnp.exp(-ratio), 1 - 2 * ratio)


def hermite_means(values: Float[Array, "F X M"], y: Float[Array, "X M"], terms: int) -> Float[Array, "F X terms"]:
    """Sums of weighted values times orthonormal Hermite polynomials he_j(y), j < terms, for several functions at
    once."""
    sums = _along_degrees(y, terms, jnp.ones_like(y), lambda he: jnp.sum(values * he[None], axis=-1))
    return jnp.moveaxis(sums, 0, -1)


def hermite_polynomials(
    x: Float[Array, " M"], terms: int, weight: Float[Array, " M"] | None = None
) -> Float[Array, "terms M"]:
    """he_0 ... he_(terms - 1) at x, orthonormal; with a `weight` times this number, which may be so small that the
    polynomials alone would overflow."""
    return _along_degrees(x, terms, jnp.ones_like(x) if weight is None else weight, lambda he: he)


def _along_degrees(x, terms, lowest, read):
    """read(he_j(x)) for j < terms, along the first axis; he_0 is `lowest`."""

    def raise_degree(last_two, j):
        older, old = last_two
        return (old, (x * old - jnp.sqrt(j) * older) / jnp.sqrt(j + 1)), read(old)

    return jax.lax.scan(raise_degree, (jnp.zeros_like(x), lowest), jnp.arange(terms, dtype=x.dtype))[1]


def derivative(f: Function, order: int) -> Function:
    """The elementwise derivative of an elementwise function."""
    return (lambda x: derivatives(f, order)(x)[-1]) if order else f


def derivatives(f: Function, order: int) -> Callable[[Array], list[Array]]:
    """f and its elementwise derivatives up to an order, each computed once."""
    all_orders = partial(lambda f, x: [f(x)], selected(f))
    for _ in range(order):
        all_orders = partial(_one_more, all_orders)
    return all_orders


def _one_more(lower, x):
    found, slopes = jax.jvp(lower, (x,), (jnp.ones_like(x),))
    return [*found, slopes[-1]]


def powers(rho: Float[Array, "*shape"], count: int) -> Float[Array, "*shape count"]:
    """1, rho, rho^2, ... as products, whose derivatives of every order are right everywhere, zero included."""
    found, step = jnp.ones_like(rho)[..., None], rho[..., None]
    while found.shape[-1] < count:
        found, step = jnp.concatenate([found, step * found], axis=-1), step * step
    return found[..., :count]


def _last_axis(numbers, ndim, dtype):
    return numbers.astype(dtype).reshape((1,) * (ndim - 1) + (-1,))


def pair_mean(
    f: Function, g: Function, k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]
) -> Float[Array, ""]:
    """E[f(phi_a) g(phi_b)] of smooth functions at one pair of inputs; its derivatives are Price's theorem, at any
    correlation."""
    arrays, static = eqx.partition((f, g), eqx.is_inexact_array)
    return _pair_mean(static, arrays, (k_aa, k_bb, k_ab))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pair_mean(static, arrays, k):
    return _pair_sum(static, arrays, k)


def _pair_sum(static, arrays, k):
    (f, g), (k_aa, k_bb, k_ab) = eqx.combine(arrays, static), k
    least = jnp.finfo(k_ab.dtype).tiny ** 0.25
    k_aa, k_bb = jnp.maximum(k_aa, least), jnp.maximum(k_bb, least)
    zero = jnp.zeros((1,), k_ab.dtype)
    x, w = rule_around(zero, jnp.zeros_like(k_aa), jnp.sqrt(jnp.maximum(k_aa, k_bb)), jnp.ones_like(k_aa))
    phi_a = jnp.sqrt(k_aa) * x
    rest = jnp.sqrt(k_bb * jnp.maximum(remaining_share(k_aa, k_bb, k_ab), 0))
    mean = k_ab / jnp.sqrt(k_aa) * x
    y, v = rule_around(zero, mean, rest, jnp.ones_like(k_aa))
    return jnp.sum(f(phi_a) * w * jnp.sum(g(mean[:, None] + rest * y) * v, axis=-1))


@_pair_mean.defjvp
def _pair_mean_jvp(static, primals, tangents):
    (arrays, k), (d_arrays, d_k) = primals, tangents
    f, g = eqx.combine(arrays, static)
    _, change = jax.jvp(lambda arrays: _pair_sum(static, arrays, k), (arrays,), (d_arrays,))
    for weight, d, (r, s) in zip((0.5, 0.5, 1.0), d_k, ((2, 0), (0, 2), (1, 1)), strict=True):
        change = change + weight * d * pair_mean(derivative(f, r), derivative(g, s), *k)
    return _pair_mean(static, arrays, k), change


def expect(f: Function, g: Function, K: Float[ArrayLike, "N N"]) -> Float[Array, "N N"]:
    r"""Gaussian expectations of two functions at every pair of inputs.

    $$E_{ab} = E[f(\phi_a)\, g(\phi_b)], \qquad \phi \sim N(0, K)$$

    f and g are smooth elementwise functions that change on a scale of one and near zero, as tanh does. In float64 the
    result and its derivatives are accurate to 1e-10 for variances up to 1000, for every correlation from -1 to 1. Do
    not use it for functions with kinks (ReLU): the activations have their own expectations, and `Model.Q` uses them.
    """
    check_function(f, "f")
    check_function(g, "g")
    return _expect(f, g, check_kernel(K, "K", zeros=True))


@eqx.filter_jit
def _expect(f, g, K):
    a, b = np.indices(K.shape).reshape(2, -1)
    means = jax.lax.map(lambda k: pair_mean(f, g, *k), (K[a, a], K[b, b], K[a, b]))
    return means.reshape(K.shape)
