r"""Four-point Gaussian expectations of an activation and its derivatives, E[f_a g_b u_c v_d].

If an input occurs twice, they are averages given this input (`conditional`). For four different inputs the expectation
is a sum over the modes of `hermite_modes`. `products_rests` bounds the rests of both series, and `nodes_error` says
what the nodes miss.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..activations import Activation
from ..activations.base import enough_points, rule
from ..pairs import input_count, pair_table, pairs, triples
from ..quadrature import derivatives
from ..selecting import safe_ratio
from .conditional import Conditional
from .hermite_modes import frame, overlaps, rotate

# Orders of differentiation of (s_a, s_b) in the second derivatives of s_a s_b by (aa, bb, ab), the last counted twice.
SECOND_ORDERS = ((2, 0), (0, 2), (1, 1))
SECOND_WEIGHTS = np.array([1.0, 1.0, 2.0])


def products(given: Conditional) -> Float[Array, "P P"]:
    """E[s_a s_b s_c s_d] for all pairs ab, cd."""
    P, R = _with_repeats(given.k)
    return _by_modes(given, given.k)[0].at[P, R].set(_factors(given, P, R, (0, 0, 0, 0)))


def products_noise(given: Conditional, q: Float[Array, " P"]) -> Float[Array, "P P"]:
    r"""$E[\nabla(s_a s_b) \cdot Q \nabla(s_c s_d)]$ for all pairs ab, cd: the noise that increments of covariance Q add
    to the products."""
    (P, R), ends = _with_repeats(given.k), pairs(input_count(given.k.shape[0]))
    Q, noise = q[pair_table(input_count(given.k.shape[0]))], jnp.zeros(P.size, given.k.dtype)
    for i, j in product((0, 1), repeat=2):  # s' of the one or of the other factor of each pair
        noise = noise + Q[ends[i][P], ends[j][R]] * _factors(given, P, R, (1 - i, i, 1 - j, j))
    return _by_modes(given, q)[1].at[P, R].set(noise)


def _factors(given, P, R, orders):
    """E[s_a s_b s_c s_d] for the pairs ab in P and cd in R, each factor differentiated as often as `orders` says."""
    a, b = pairs(input_count(given.k.shape[0]))
    inputs = np.stack([a[P], b[P], a[R], b[R]], axis=1).tolist()
    return given.expect([tuple(zip(four, orders, strict=True)) for four in inputs])


def _with_repeats(k):
    """The places (ab, cd) of pairs of pairs in which an input occurs twice."""
    a, b = pairs(input_count(k.shape[0]))
    every = product(range(k.shape[0]), repeat=2)
    return np.array([(p, r) for p, r in every if len({a[p], b[p], a[r], b[r]}) < 4]).T


def local_products(given: Conditional) -> tuple[Float[Array, "P 3 3"], Float[Array, "P 3 3"]]:
    """Averages of X s_c s_d, the last axis cd in (aa, bb, ab). In the first result X is a second derivative of s_a s_b:
    by aa, by bb, and twice that by ab. In the second result X is s_e s_f, ef in (aa, bb, ab)."""
    count = given.k.shape[0]
    inputs = input_count(count)
    (a, b), triple = (index.tolist() for index in pairs(inputs)), triples(inputs).tolist()

    def average(first):
        """Averages of s_c s_d times the factors that `first` gives for each pair."""
        entries = [
            (*f, (a[triple[p][u]], 0), (b[triple[p][u]], 0)) for p in range(count) for f in first(p) for u in range(3)
        ]
        return given.expect(entries).reshape(-1, 3, 3)

    second = average(lambda p: [((a[p], i), (b[p], j)) for i, j in SECOND_ORDERS])
    straight = average(lambda p: [((a[r], 0), (b[r], 0)) for r in triple[p]])
    return jnp.asarray(SECOND_WEIGHTS, given.k.dtype)[None, :, None] * second, straight


def _four_different(inputs):
    """Pairs of pairs ab, cd of four different inputs, each once: their places in the packed kernel, and among the pairs
    a < b."""
    a, b = np.triu_indices(inputs, 1)
    p, q = np.triu_indices(a.size, 1)
    apart = (a[p] != a[q]) & (a[p] != b[q]) & (b[p] != a[q]) & (b[p] != b[q])
    p, q = p[apart], q[apart]
    place = pair_table(inputs)[a, b]
    return (place[p], place[q]), (p, q)


def _by_modes(given, q):
    """`products` and `products_noise` of four different inputs, zero elsewhere. The noise is the derivative of the
    products as the overlaps of two pairs' variables change along Q."""
    k = given.k
    zero = jnp.zeros((k.shape[0], k.shape[0]), k.dtype)
    if input_count(k.shape[0]) < 4:
        return zero, zero
    (P, R), (p, r) = _four_different(input_count(k.shape[0]))
    f, value, means = frame(k), given.pair_modes(), given.activation.moments(k)

    def sums(overlap):
        return jnp.einsum("ems,ems->e", rotate(overlap, value[p]), value[r], precision="highest")

    covariance, noise = jax.jvp(sums, (overlaps(k, f)[R, P],), (overlaps(q, f)[R, P],))
    return tuple(zero.at[P, R].set(found).at[R, P].set(found) for found in (covariance + means[P] * means[R], noise))


def products_error(given: Conditional) -> Float[Array, ""]:
    r"""The largest bound of the errors of Cov(s_a s_b, s_c s_d) of three or four different inputs, relative to
    $\sqrt{\mathrm{Var}(s_a s_b) \mathrm{Var}(s_c s_d)}$."""
    if input_count(given.k.shape[0]) < 3:
        return jnp.zeros((), given.k.dtype)
    size = jnp.sqrt(_variances(given))
    return largest_share(products_rests(given), size)


def products_rests(given: Conditional) -> Float[Array, "P P"]:
    r"""Bounds of what the series of three and four different inputs leave out of `products`.

    The norm that the modes of a pair p miss is known, $\tau_p^2 = \mathrm{Var}(s_a s_b) - \sum_{m \le J} |c_m|^2$, and
    modes of degree m of two pairs correlate by $|R|^m$ at most. So the rest of the series of four inputs is below
    $\tau_p \tau_q |R|^{J+1}$. If an input x occurs twice, the series is one of two inputs given x, and its rest is
    below $\tau_y \tau_z |r|^{J+1}$ with $\tau_y^2 = E[s_x^2 (E[s_y^2 | x] - \sum_{s \le J} f_s^2)]$.
    """
    k = given.k
    inputs = input_count(k.shape[0])
    if inputs < 3:
        return jnp.zeros((k.shape[0], k.shape[0]), k.dtype)
    found = _around(given.rests())
    if inputs < 4:
        return found
    (P, R), (p, r) = _four_different(inputs)
    held = jnp.sum(given.pair_modes() ** 2, axis=(1, 2))
    variances = _variances(given)[pair_table(inputs)[np.triu_indices(inputs, 1)]]
    missing = jnp.sqrt(jnp.maximum(variances - held, 0))
    most = jnp.minimum(jnp.linalg.norm(overlaps(k, frame(k))[P, R], ord=2, axis=(-2, -1)), 1)
    rest = missing[p] * missing[r] * most ** (given.degree + 1)
    return found.at[P, R].set(rest).at[R, P].set(rest)


def largest_share(errors: Float[Array, "P P"], size: Float[Array, " P"]) -> Float[Array, ""]:
    """The largest error of two pairs relative to the product of their sizes, where it is not zero."""
    return jnp.max(safe_ratio(errors, size[:, None] * size[None, :]))


def _variances(given):
    """Var(s_a s_b) of every pair."""
    a, b = (index.tolist() for index in pairs(input_count(given.k.shape[0])))
    squares = given.expect([((x, 0), (x, 0), (y, 0), (y, 0)) for x, y in zip(a, b, strict=True)])
    return jnp.maximum(squares - given.activation.moments(given.k) ** 2, 0)


def nodes_error(activation: Activation, k: Float[Array, ""], degree: int) -> Float[Array, ""]:
    """By how much one and a half times as many nodes change $E[s^4]$ and $k E[s^2 (s^2)'']$, relative to E[s^4].
    Products change more quickly than s."""

    def means(points):
        x, w = rule(activation, jnp.zeros_like(k), jnp.sqrt(k), points)
        s, ds, dds = derivatives(activation, 2)(jnp.sqrt(k) * x)
        return jnp.stack([jnp.sum(s**4 * w), jnp.sum(2 * k * s**2 * (ds**2 + s * dds) * w)])

    points = enough_points(activation, degree + 1)
    finer = means(3 * points // 2)
    return jnp.max(jnp.abs(means(points) - finer)) / jnp.where(finer[0] > 0, finer[0], 1)


def _around(rests):
    """The rests [x, y, z] of averages in which x occurs twice, as a matrix over pairs: at (xx, yz) and (xy, xz)."""
    inputs = rests.shape[0]
    a, b = pairs(inputs)
    found = np.full((a.size, a.size, 3), -1)
    for p, q in product(range(a.size), repeat=2):
        four = [a[p], b[p], a[q], b[q]]
        twice = [x for x in set(four) if four.count(x) == 2]
        others = [x for x in four if four.count(x) == 1]
        if len(twice) == 1 and len(others) == 2:
            found[p, q] = twice[0], *others
    x, y, z = np.moveaxis(found, -1, 0)
    return jnp.where(found[..., 0] < 0, 0, rests[x, y, z])
