r"""Four-point Gaussian expectations of an activation and its derivatives, E[f_a g_b u_c v_d].

If an input x occurs twice, the average over the other two inputs given phi_x comes first: they are two normals of
conditional correlation r, and the average is a Mehler series in r, or one sum if both are the same input. Then phi_x is
averaged over by quadrature:

$$E[F(\phi_x) f(\phi_y) g(\phi_z)] = E_x\Big[ F(\phi_x) \sum_s f_s(\phi_x)\, g_s(\phi_x)\, r^s \Big],
  \qquad f_s = E[f(\phi_y)\, he_s \,|\, \phi_x]$$

For four different inputs the expectation is a sum over the modes of `hermite_modes`. `products_error` bounds the rests
of both series.
"""

from collections import defaultdict
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..activations import Activation
from ..activations.base import at_zero, between_sides, centres, enough_points
from ..activations.pair_quadrature import SECOND, kink_deltas
from ..pairs import input_count, pair_table, pairs, triples
from ..quadrature import centred_rule, derivative, powers, remaining_scale, steepness
from .hermite_modes import frame, overlaps, pair_blocks_between, pair_functions, rotate

# Orders of differentiation of (s_a, s_b) in the second derivatives of s_a s_b by (aa, bb, ab), the last counted twice.
SECOND_ORDERS = ((2, 0), (0, 2), (1, 1))
SECOND_WEIGHTS = np.array([1.0, 1.0, 2.0])
REST_OF_NOISE = 5.0  # the rest of the noise was found to be up to 4.6 times that of the products (ReLU, two copies)
FourFactors = tuple[tuple[int, int], ...]


def products(activation: Activation, k: Float[Array, " P"], degree: int) -> Float[Array, "P P"]:
    """E[s_a s_b s_c s_d] for all pairs ab, cd."""
    (a, b), where = (index.tolist() for index in pairs(input_count(k.shape[0]))), _with_repeats(k)
    entries = [((a[p], 0), (b[p], 0), (a[r], 0), (b[r], 0)) for p, r in zip(*where, strict=True)]
    values = _Conditional(activation, k, degree)(entries)
    if len(values) == k.shape[0] ** 2:
        return values.reshape(k.shape[0], -1)
    return _by_modes(activation, k, k, degree)[0].at[where].set(values)


def products_and_noise(
    activation: Activation, k: Float[Array, " P"], q: Float[Array, " P"], degree: int
) -> tuple[Float[Array, "P P"], Float[Array, "P P"]]:
    r"""E[s_a s_b s_c s_d] and the noise $E[\nabla(s_a s_b) \cdot Q \nabla(s_c s_d)]$ for all pairs ab, cd."""
    inputs, count = input_count(k.shape[0]), k.shape[0]
    Q = q[pair_table(inputs)]
    ends, conditional, where = pairs(inputs), _Conditional(activation, k, degree), _with_repeats(k)
    (a, b), repeated = (index.tolist() for index in ends), list(zip(*where, strict=True))
    values = conditional([((a[p], 0), (b[p], 0), (a[r], 0), (b[r], 0)) for p, r in repeated])
    noise = jnp.zeros_like(values)
    for i, j in product((0, 1), repeat=2):
        gradients = [((a[p], 1 - i), (b[p], i), (a[r], 1 - j), (b[r], j)) for p, r in repeated]
        noise = noise + Q[ends[i][where[0]], ends[j][where[1]]] * conditional(gradients)
    result = jnp.zeros((2, count, count), k.dtype)
    if inputs >= 4:
        result = jnp.stack(_by_modes(activation, k, q, degree))
    return result[0].at[where].set(values), result[1].at[where].set(noise)


def _with_repeats(k):
    """The places (ab, cd) of pairs of pairs in which an input occurs twice."""
    a, b = pairs(input_count(k.shape[0]))
    every = product(range(k.shape[0]), repeat=2)
    return tuple(np.array([(p, r) for p, r in every if len({a[p], b[p], a[r], b[r]}) < 4]).T)


def local_products(
    activation: Activation, k: Float[Array, " P"], degree: int
) -> tuple[Float[Array, "P 3 3"], Float[Array, "P 3 3"]]:
    """Averages of X s_c s_d, the last axis cd in (aa, bb, ab). In the first result X is a second derivative of s_a s_b:
    by aa, by bb, and twice that by ab. In the second result X is s_e s_f, ef in (aa, bb, ab)."""
    inputs = input_count(k.shape[0])
    (a, b), triple = (index.tolist() for index in pairs(inputs)), triples(inputs).tolist()
    conditional, places = _Conditional(activation, k, degree), range(k.shape[0])

    def average(first):
        """Averages of s_c s_d times the factors that `first` gives for each pair."""
        entries = [(*f, (a[triple[p][u]], 0), (b[triple[p][u]], 0)) for p in places for f in first(p) for u in range(3)]
        return conditional(entries).reshape(-1, 3, 3)

    second = average(lambda p: [((a[p], i), (b[p], j)) for i, j in SECOND_ORDERS])
    straight = average(lambda p: [((a[r], 0), (b[r], 0)) for r in triple[p]])
    return jnp.asarray(SECOND_WEIGHTS, k.dtype)[None, :, None] * second, straight


def _by_modes(activation, k, q, degree):
    """`products_and_noise` of four different inputs. The noise is the derivative of the products as the overlaps of two
    pairs' variables change along Q."""
    f = frame(k)
    value = pair_functions(activation, f, degree).value
    means = activation.moments(k)
    along = jnp.einsum("pij,pqjk,qlk->pqil", f.M, pair_blocks_between(q), f.M, precision="highest")

    def products(R):
        return jnp.einsum("pqms,qms->pq", rotate(jnp.swapaxes(R, 0, 1), value[:, None]), value, precision="highest")

    covariance, noise = jax.jvp(products, (overlaps(k, f),), (along,))
    return covariance + means[:, None] * means[None, :], noise


def products_error(activation: Activation, k: Float[Array, " P"], degree: int) -> Float[Array, ""]:
    r"""The largest bound of the errors of Cov(s_a s_b, s_c s_d) of three or four different inputs, relative to
    $\sqrt{\mathrm{Var}(s_a s_b) \mathrm{Var}(s_c s_d)}$.

    The norm that the modes of a pair p miss is known, $\tau_p^2 = \mathrm{Var}(s_a s_b) - \sum_{m \le J} |c_m|^2$, and
    modes of degree m of two pairs correlate by $|R|^m$ at most. So the rest of the series of four inputs is below
    $\tau_p \tau_q |R|^{J+1}$. If an input x occurs twice, the series is one of two inputs given x, and its rest is
    below $\tau_y \tau_z |r|^{J+1}$ with $\tau_y^2 = E[s_x^2 (E[s_y^2 | x] - \sum_{s \le J} f_s^2)]$. The factor
    `REST_OF_NOISE` covers the noise of free neurons, whose series falls more slowly.
    """
    inputs, count = input_count(k.shape[0]), k.shape[0]
    if inputs < 3:
        return jnp.zeros((), k.dtype)
    (a, b), conditional = (index.tolist() for index in pairs(inputs)), _Conditional(activation, k, degree)
    squares = conditional([((x, 0), (x, 0), (y, 0), (y, 0)) for x, y in zip(a, b, strict=True)])
    variances = jnp.maximum(squares - activation.moments(k) ** 2, 0)
    size = jnp.sqrt(variances)
    worst = _largest_share(_around(conditional.rests()), size)
    if inputs >= 4:
        f = frame(k)
        value = pair_functions(activation, f, degree).value
        missing = jnp.sqrt(jnp.maximum(variances - jnp.sum(value**2, axis=(1, 2)), 0))
        most = jnp.minimum(jnp.linalg.norm(overlaps(k, f), ord=2, axis=(-2, -1)), 1)
        four = np.array([[len({a[p], b[p], a[q], b[q]}) == 4 for q in range(count)] for p in range(count)])
        rest = jnp.where(four, missing[:, None] * missing[None, :] * most ** (degree + 1), 0)
        worst = jnp.maximum(worst, _largest_share(rest, size))
    return REST_OF_NOISE * worst


def _largest_share(rest, size):
    both = size[:, None] * size[None, :]
    return jnp.max(jnp.where(both > 0, rest / jnp.where(both > 0, both, 1), 0))


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


def _around_repeated(factors: FourFactors):
    """((both orders at x), order at y, order at z) and (x, y, z), x the input that occurs twice. If two inputs do, x is
    the one with more derivatives."""
    choices = []
    for first in range(4):
        for second in range(first + 1, 4):
            (x, i), (other, j) = factors[first], factors[second]
            if x == other:
                rest = (factors[f] for f in range(4) if f not in (first, second))
                (y, m), (z, n) = sorted(rest, key=lambda factor: -factor[1])
                choices.append((((max(i, j), min(i, j)), m, n), (x, y, z)))
    return max(choices, key=lambda choice: sum(choice[0][0]))


class _Conditional:
    """Expectations of four factors s^(order)(phi_input) among which an input occurs twice."""

    def __init__(self, activation, k, degree):
        self.activation, self.terms = activation, degree + 1
        K = k[pair_table(input_count(k.shape[0]))]
        self.roots = jnp.sqrt(jnp.diagonal(K))
        self.across = K / self.roots[:, None]  # phi_y = across psi_x + rest
        covariance = K[None] - self.across[:, :, None] * self.across[:, None, :]  # of the rests of y and z given x
        left = jnp.diagonal(covariance, axis1=1, axis2=2)
        self.width = jnp.where(np.eye(K.shape[0], dtype=bool), 0.0, remaining_scale(left, jnp.diagonal(K)[None]))
        self.inverse = jnp.where(np.eye(K.shape[0], dtype=bool), 0.0, 1 / self.width)
        self.correlation = covariance * self.inverse[:, :, None] * self.inverse[:, None, :]
        self.nodes, self.weights = self._rules(K)
        self._smoothed = None

    def _rules(self, K):
        """Nodes and weights for each input x, (x, nodes). The kinks of all other inputs given x have cells of their
        own; the kinks of x itself are the last nodes."""
        activation, dtype = self.activation, K.dtype
        places = centres(activation, dtype)
        width = jnp.broadcast_to(steepness(jnp.max(self.roots), activation.sharpness), self.roots.shape)
        around = places[None, :] / self.roots[:, None]
        if activation.kinks:
            width = jnp.maximum(width, jnp.max(jnp.abs(self.across) * self.inverse, axis=1))
            across = jnp.where(jnp.abs(self.across) > jnp.finfo(dtype).tiny ** 0.5, self.across, 1.0)
            others = places[None, None, :] / across[:, :, None]
            if not at_zero(activation.kinks):
                around = jnp.reshape(others, (self.roots.size, -1))
        nodes, weights = centred_rule(around, width, enough_points(activation, self.terms))
        if activation.kinks:
            at_kinks = places[None, :] / self.roots[:, None]
            nodes = jnp.concatenate([nodes, at_kinks], axis=1)
            weights = jnp.concatenate([weights, jnp.zeros_like(at_kinks)], axis=1)
        return nodes, weights

    def __call__(self, entries: list[FourFactors]) -> Float[Array, " entries"]:
        groups = defaultdict(list)
        for place, factors in enumerate(entries):
            orders, inputs = _around_repeated(factors)
            groups[orders, inputs[1] == inputs[2]].append((place, *inputs))
        result = jnp.zeros(len(entries), self.roots.dtype)
        for (orders, same), members in groups.items():
            places, x, y, z = np.array(members).T
            values = self._one(orders)[x, y] if same else self._two(orders)[x, y, z]
            result = result.at[places].set(values)
        return result

    def _weight(self, i, j):
        """The product of both factors at x and the weight of each node; at kinks s'' is a delta function."""
        phi = self.roots[:, None] * self.nodes
        s = self.activation
        weight = derivative(s, i)(phi) * derivative(s, j)(phi) * self.weights
        if not s.kinks or (i, j) not in ((2, 0), (2, 1)):
            return weight
        other = between_sides(derivative(s, j), s, phi.dtype)
        delta = jax.vmap(lambda root: kink_deltas(s, root)[SECOND])(self.roots) * other[None]
        return weight.at[:, -delta.shape[1] :].set(delta)

    def _one(self, orders):
        """y and z the same input: (x, y)."""
        (i, j), m, n = orders

        def mean(across, nodes, width):
            return self.activation.smoothed_product(m, n, across * nodes, width)

        given_x = jax.vmap(jax.vmap(mean, in_axes=(0, None, 0)))(self.across, self.nodes, self.width)
        return jnp.einsum("ax,ayx->ay", self._weight(i, j), given_x, precision="highest")

    def _two(self, orders):
        """y and z different: (x, y, z)."""
        (i, j), m, n = orders
        series = powers(self.correlation, self.terms)
        left = self._weight(i, j)[:, None, :, None] * self._given(m)
        N = left.shape[0]
        moments = jnp.einsum("ayxs,azxs->asyz", left, self._given(n), precision="highest").reshape(N, -1, N, N)
        return jnp.einsum("asyz,ayzs->ayz", moments, series, precision="highest")

    def rests(self):
        """Bounds of what the series of E[s_x^2 s_y s_z] leave out, (x, y, z)."""

        def square(across, nodes, width):
            return self.activation.smoothed_product(0, 0, across * nodes, width)

        whole = jax.vmap(jax.vmap(square, in_axes=(0, None, 0)))(self.across, self.nodes, self.width)
        beyond = jnp.maximum(whole - jnp.sum(self._given(0) ** 2, axis=-1), 0)
        rest = jnp.sqrt(jnp.einsum("ax,ayx->ay", self._weight(0, 0), beyond, precision="highest"))
        least = jnp.minimum(jnp.abs(self.correlation), 1) ** self.terms
        return rest[:, :, None] * rest[:, None, :] * least

    def _given(self, order):
        """Hermite coefficients, given psi_x, of the `order`-th derivative of s at y: (x, y, nodes, coefficients)."""
        if self._smoothed is None:

            def modes(across, nodes, width):
                return self.activation.smoothed_orders(across * nodes, width, self.terms)

            each = jax.vmap(jax.vmap(modes, in_axes=(0, None, 0)))(self.across, self.nodes, self.width)
            self._smoothed = jnp.moveaxis(each, 2, 0)
        return self._smoothed[order]
