r"""The hierarchy that is exact at order 1/n, truncated at a degree.

At leading order the fluctuation of any average over neurons is that of independent neurons, xi, plus a linear response:
$Y(f) = \xi(f) + \tfrac12 E[\nabla^2 f] : h$. With s what the branch reads of the stream,
$y = Y(s s) = \xi(s s) + \chi_S h$, J the response of Q to y through the rest of the branch and nu the noise of hidden
neurons, one layer is

$$h' = a^2 h + \epsilon^2 (J y + \nu), \qquad
  v' = a^4 v + a^2 \epsilon^2 (J\, \mathrm{Cov}(y, h) + \mathrm{transpose}) + \epsilon^4 C_Q, \qquad
  K_1' = a^2 K_1 + \epsilon^2 m_Q$$

for v = Cov(h, h). Wick monomials W are martingales of xi, hence u = Cov(h, xi(W)) closes degree by degree,
$u' = a^2 u + \epsilon^2 J\, \mathrm{Cov}(y, W)$, and $V_4 = \mathrm{Wick} + u_{\phi\phi} + u_{\phi\phi}^T + v$. Given
the path, the effect of h on the mean is that of a random extra covariance h / sqrt(n):

$$m_S = \chi_S K_1 + \tfrac12 \mathrm{Hess}_S : v + \tfrac12 \mathrm{Cov}(\xi(\nabla^2 s s), h)$$

for E[s s]; the maps of the branch carry m_S and Cov(y, y) on to m_Q and C_Q. (K1_EFT has V4 in place of v, and no last
term.)
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..activations import Activation, Linear, Polynomial
from ..activations.base import enough_points, rule
from ..checks import check_count
from ..expectations.hermite_modes import PairFunctions, frame, mode_covariances, modes, pair_functions, rotate, without
from ..model import Model
from ..pairs import input_count, pair_count, pairs, triples, wick
from ..parts import Local, Response, apply_all, carry_all
from .base import COPIES, Closure, Moments, pair_units

DEGREES = (4, 8, 12, 16, 24, 32, 48, 64)  # few, so that a sweep over parameters compiles few programs
DEGREES_OF_ONE = (96, 128, 192, 256)  # one input costs a power of the degree less than several do
UNDECIDED = 30
V4_SHARE, K1_SHARE = 1e-3, 1e-2  # what a truncation may be bounded by where the degree is chosen
KINKED_DEGREE = 6
BOUNDS = 1e4  # the accuracy that bounds of errors need, in that of the numbers themselves


class TowerState(NamedTuple):
    """Covariances with h, and bounds of what the modes beyond the degree would add.

    `tail` bounds the norm of Cov(h_p, xi(W)) over all W beyond the degree; `v_error` and `K1_error` the errors of v and
    K1.
    """

    k: Float[Array, " P"]
    u: Float[Array, "P P J S"]
    v: Float[Array, "P P"]
    K1: Float[Array, " P"]
    tail: Float[Array, " P"]
    v_error: Float[Array, "P P"]
    K1_error: Float[Array, " P"]


class ReadCovariances(NamedTuple):
    """Covariances of y, the fluctuation of what the branch reads (pair p, first), and its mean's correction."""

    with_modes: Float[Array, "P P J S"]
    with_h: Float[Array, "P P"]
    with_y: Float[Array, "P P"]
    mean: Float[Array, " P"]


class ReadErrors(NamedTuple):
    """Bounds of the errors of `ReadCovariances`; of the modes beyond the degree a bound of their norm."""

    with_modes: Float[Array, " P"]
    with_h: Float[Array, "P P"]
    with_y: Float[Array, "P P"]
    mean: Float[Array, " P"]


class Memory(NamedTuple):
    """Covariances of the remembered g (first axis of `modes`, last of `response`) with the modes of xi and with h."""

    modes: Float[Array, "P P J S"]
    response: Float[Array, "P P"]


class HermiteTower(Closure[TowerState]):
    """V4 and K1 exact at order 1/n as the degree grows, for every block, layer by layer for the real network at any
    eps.

    Without a `degree`, `solve`, `fit`, `fisher` and `sensitivity` choose the lowest of 4, 8, 12, 16, 24, 32, 48, 64
    (and for one input 96, 128, 192, 256) whose truncation, for the inputs of least and of largest variance alone, is
    bounded by a thousandth of V4 and a hundredth of K1 (or of K0 / 100, where K1 is smaller) at every depth; or the
    last of them. `Solution.closure` says which, and `Solution.truncation` how far it reaches. Where values are traced
    (inside jit, grad, vmap) nothing can be chosen, and the degree is 30.

    Analytic activations converge like the square of their Hermite coefficients, exp(-c sqrt(degree)); at the paper's
    settings degree 20 is right to 2e-4 in V4 and degree 40 to 1e-5. ReLU converges like a power of the degree: 10 is
    right to 1e-4, 40 to 1e-6 (one input). Where the branch reads the stream with a matrix or a norm, or with a
    polynomial, the hierarchy ends by itself, at twice the degree of the polynomial, and nothing is computed beyond.
    `Solution.truncation` bounds what is missing, from the exact norms of the functions that are expanded; it is NaN for
    K1 and U1 of a kinked activation below degree 6, which is too low to tell. For odd activations degree 2 has the V4
    of `GOnly` in the continuum; others also feel the mean of phi, degree 1. The state grows as N^4 degree^2: for more
    than a few inputs solve sub-kernels, since V4_ab,cd needs a, b, c, d alone.
    """

    degree: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.degree is not None:
            check_count(self.degree, "degree", 2)

    def settled(self, model: Model, k, dt) -> "HermiteTower":
        degrees = DEGREES if k.shape[0] > 1 else DEGREES + DEGREES_OF_ONE
        ends = 2 * polynomial_degree(model.read)
        if self.degree is not None or ends <= degrees[-1]:
            return self if self.degree is not None else HermiteTower(max(2, int(ends)))
        variances = np.asarray(k)[triples(input_count(k.shape[0]))[:, 0]]
        extremes = jnp.asarray([variances.min(), variances.max()], k.dtype)
        # Layers of dt = 0 change nothing, and few lengths compile few programs.
        length = 64 * 4 ** math.ceil(max(math.log(dt.shape[0] / 64, 4), 0))
        shares = np.asarray(_shares(model, extremes, jnp.pad(dt, (0, length - dt.shape[0])), degrees))
        if not np.isfinite(shares[-1]):
            return HermiteTower(UNDECIDED)
        return HermiteTower(next((d for d, share in zip(degrees, shares, strict=True) if share <= 1), degrees[-1]))

    def init(self, model: Model, k):
        inputs, count = input_count(k.shape[-1]), k.shape[-1]
        J, s = modes(self._degree(model.read), inputs)
        shapes = ((count, count, J.size, s.size), (count, count), (count,), (count,), (count, count), (count,))
        return TowerState(k, *(jnp.zeros(shape, k.dtype) for shape in shapes))

    def error(self, model: Model, k) -> Float[Array, ""]:
        variances = k[triples(input_count(k.shape[0]))[:, 0]]
        own = jax.lax.map(lambda k: _rule_error(model.read, k, self._degree(model.read)), variances)
        return jnp.maximum(model.error(k), jnp.max(own))

    def numbers(self, model: Model, inputs: int) -> int:
        J, s = modes(self._degree(model.read), inputs)
        return COPIES * pair_count(inputs) ** 2 * J.size * s.size

    def step(self, model: Model, state: TowerState, dt) -> TowerState:
        after, turn = self._unforgotten(model, state, dt)
        return after._replace(tail=slowest(turn) ** (self._degree(model.read) + 1) * after.tail)

    def drift(self, model: Model, state: TowerState) -> TowerState:
        zero = jnp.zeros((), state.k.dtype)
        rate, d_turn = jax.jvp(lambda dt: self._unforgotten(model, state, dt), (zero,), (jnp.ones_like(zero),))[1]
        return rate._replace(tail=rate.tail + (self._degree(model.read) + 1) * slowest_rate(d_turn) * state.tail)

    def _unforgotten(self, model: Model, state: TowerState, dt):
        """One layer, but for the decay of `tail`, and how the frame turns."""
        read, shrink, f = self._read(model.read, state), model.shrink(dt), frame(state.k)
        y, responses = self._covariances(state, read), model.responses_of_read(read.response.value)
        transport = apply_all(responses, y.with_h)
        m_Q, C_Q = carry_all(responses, y.mean, y.with_y)
        k = shrink * state.k + dt * responses[-1].value
        u = shrink * state.u + dt * apply_all(responses, y.with_modes)
        turn = frame(k).M @ (_root(shrink) * f.L)
        after = TowerState(
            k,
            rotate(turn[None], u),
            shrink**2 * state.v + shrink * dt * (transport + transport.T) + dt**2 * C_Q,
            shrink * state.K1 + dt * m_Q,
            *self._bounds(state, read, responses, shrink, dt),
        )
        return after, turn

    def _bounds(self, state: TowerState, read: "Read", responses, shrink, dt):
        """`tail` (without its decay), `v_error` and `K1_error` one layer on."""
        errors, bounds = self._errors(state, read), [r.absolute() for r in responses]
        transport_error = apply_all(bounds, errors.with_h)
        m_error, C_error = carry_all(bounds, errors.mean, errors.with_y)
        tail = shrink * state.tail + dt * apply_all(bounds, errors.with_modes)
        v_error = shrink**2 * state.v_error + shrink * dt * (transport_error + transport_error.T) + dt**2 * C_error
        return tail, v_error, shrink * state.K1_error + dt * m_error

    def moments(self, model: Model, state: TowerState) -> Moments:
        return self.readings(model, state)[0]

    def truncation(self, model: Model, state: TowerState) -> Moments:
        return self.readings(model, state)[1]

    def readings(self, model: Model, state: TowerState) -> tuple[Moments, Moments]:
        read = self._read(model.read, state)
        to_S = model.responses_of_read(read.response.value)[:-1]
        return self._moments(state, read, to_S), self._truncation(model.read, state, read, to_S)

    def _moments(self, state: TowerState, read: "Read", to_S: list[Response]) -> Moments:
        y = self._covariances(state, read)
        response = _contract(_product(state), state.u).T  # Cov(h_p, xi(phi phi)_q)
        cross = read.response.apply(wick(state.k) + response) + y.with_h
        mean, with_S = carry_all(to_S, y.mean, y.with_y)
        V4 = wick(state.k) + response + response.T + state.v
        return Moments(state.k, V4, state.K1, apply_all(to_S, cross).T, with_S, mean)

    def _truncation(self, activation: Activation, state: TowerState, read: "Read", to_S: list[Response]) -> Moments:
        errors, bounds = self._errors(state, read), [r.absolute() for r in to_S]
        mean, with_S = carry_all(bounds, errors.mean, errors.with_y)
        cross = apply_all(bounds, errors.with_h).T
        # The tails of second derivatives are extrapolated where they have no norm: from a few degrees they cannot be.
        known = jnp.nan if activation.kinks and self._degree(activation) < KINKED_DEGREE else 1.0
        return Moments(jnp.zeros_like(state.k), state.v_error, known * state.K1_error, cross, with_S, known * mean)

    def units(self, model: Model, k) -> TowerState:
        unit = pair_units(k)
        square = unit[:, None] * unit[None, :]
        bounds = (BOUNDS * unit, BOUNDS * square, BOUNDS * unit)
        return TowerState(unit, unit[:, None, None, None], square, unit, *bounds)

    def remember(self, model: Model, state: TowerState) -> Memory:
        product = _product(state)
        modes = state.u + mode_covariances(state.k, frame(state.k), product)
        return Memory(modes, state.v + _contract(product, state.u).T)

    def follow(self, model: Model, state: TowerState, memory: Memory, dt) -> Memory:
        read, shrink = self._read(model.read, state), model.shrink(dt)
        responses = model.responses_of_read(read.response.value)
        with_y = _contract(read.functions.value, memory.modes) + read.response.apply(memory.response)
        k = shrink * state.k + dt * responses[-1].value
        turn = frame(k).M @ (_root(shrink) * frame(state.k).L)
        turned = rotate(turn[None], memory.modes)
        return Memory(turned, shrink * memory.response + dt * apply_all(responses, with_y))

    def recall(self, model: Model, state: TowerState, memory: Memory):
        return memory.response + _contract(_product(state), memory.modes)

    def _degree(self, read: Activation) -> int:
        """The degree of the hierarchy, lower where it ends by itself."""
        return int(min(UNDECIDED if self.degree is None else self.degree, max(2, 2 * polynomial_degree(read))))

    def _read(self, read: Activation, state: TowerState) -> "Read":
        """What the branch reads at the kernel of a state: E[s s] with its derivatives, and s s in modes."""
        response = Local(*read.expansion(state.k), jnp.zeros((), state.k.dtype))
        return Read(response, pair_functions(read, frame(state.k), self._degree(read)))

    def _covariances(self, state: TowerState, read: "Read") -> ReadCovariances:
        k, u, triple = state.k, state.u, triples(input_count(state.k.shape[0]))
        chi, value = read.response.apply, read.functions.value
        free = mode_covariances(k, frame(k), value)
        X = _contract(value, u)  # Cov(xi(s s)_p, h_q)
        with_h = X + chi(state.v)
        with_y = jnp.einsum("qms,pqms->pq", value, free, precision="highest") + chi(with_h.T).T + chi(X.T)
        second = read.functions.second, u[triple, np.arange(k.shape[0])[:, None]]
        mean, _ = read.response.carry(state.K1, state.v)
        mean = mean + 0.5 * jnp.einsum("ptms,ptms->p", *second, precision="highest")
        return ReadCovariances(free + chi(u), with_h, with_y, mean)

    def _errors(self, state: TowerState, read: "Read") -> ReadErrors:
        """The same by the triangle inequality and that of Cauchy and Schwarz, for the modes beyond the degree."""
        bound, tail = read.response.absolute(), read.functions.value_tail
        X = tail[:, None] * state.tail[None, :]
        with_h = X + bound.apply(state.v_error)
        with_y = tail[:, None] * tail[None, :] + bound.apply(with_h.T).T + bound.apply(X.T)
        mean, _ = bound.carry(state.K1_error, state.v_error)
        second = read.functions.second_tail * state.tail[triples(input_count(state.k.shape[0]))]
        return ReadErrors(tail + bound.apply(state.tail), with_h, with_y, mean + 0.5 * jnp.sum(second, axis=1))


class Read(NamedTuple):
    """What the branch reads at a kernel."""

    response: Local
    functions: PairFunctions


def _rule_error(activation: Activation, k: Float[Array, ""], degree: int) -> Float[Array, ""]:
    r"""What the nodes of the modes make of $E[s^2]$ and $E[s^2 he_2] = \sqrt2\, k\, \partial_k E[s^2]$, less what these
    are, relative to E[s^2].

    An oscillation that the nodes of a low degree miss shows here, where no closed form tells of it.
    """
    x, w = rule(activation, jnp.zeros_like(k), jnp.sqrt(k), enough_points(activation, degree + 2))
    square = activation(jnp.sqrt(k) * x) ** 2 * w
    value, gradient, _ = activation.expansion(k[None])
    by_k = jnp.sum(square * (x**2 - 1)) - 2 * k * jnp.sum(gradient)
    off = jnp.maximum(jnp.abs(jnp.sum(square) - value[0]), 0.5 * jnp.abs(by_k))
    return off / jnp.where(value[0] > 0, value[0], 1)


@eqx.filter_jit
def _shares(model: Model, variances: Float[Array, " N"], dt: Float[Array, " L"], degrees: tuple[int, ...]):
    """Bounds of the truncation at each degree over what is allowed, for each variance alone: the largest over layers,
    (degrees,).

    One tower of the highest degree has the modes of all: what a lower one misses are the modes that it lacks.
    """
    tower, each = HermiteTower(degrees[-1]), jnp.asarray(degrees)
    too_low = jnp.where((each < KINKED_DEGREE) & bool(model.read.kinks), jnp.inf, 0.0).astype(dt.dtype)

    def layer(carry, dt):
        state, bounds, worst = carry
        read = tower._read(model.read, state)
        responses, after = model.responses_of_read(read.response.value), tower.step(model, state, dt)
        turn = frame(after.k).M @ (_root(model.shrink(dt)) * frame(state.k).L)

        def bound(degree, bounds):
            cut = Read(read.response, without(read.functions, degree, model.read))
            tail, v_error, K1_error = bounds
            lower = state._replace(tail=tail, v_error=v_error, K1_error=K1_error)
            tail, *others = tower._bounds(lower, cut, responses, model.shrink(dt), dt)
            return slowest(turn) ** (degree.astype(dt.dtype) + 1) * tail, *others

        bounds = jax.vmap(bound)(each, bounds)
        V4 = tower.moments(model, after).V4[0, 0]
        K1 = jnp.maximum(jnp.abs(after.K1[0]), 0.01 * after.k[0])
        shares = jnp.maximum(bounds[1][:, 0, 0] / (V4_SHARE * V4), bounds[2][:, 0] / (K1_SHARE * K1))
        return (after, bounds, jnp.maximum(worst, shares)), None

    def alone(variance):
        state = tower.init(model, variance[None])
        bounds = tuple(jnp.zeros((each.size, *b.shape), b.dtype) for b in (state.tail, state.v_error, state.K1_error))
        (_, _, worst), _ = jax.lax.scan(layer, (state, bounds, too_low), dt)
        return worst

    return jnp.max(jax.lax.map(alone, variances), axis=0)


def slowest(turn: Float[Array, "P 2 2"]) -> Float[Array, " P"]:
    """The largest singular value of each pair's turn, lower triangular: covariances with modes of degree m shrink by
    its m-th power or more.

    Never above one but for rounding, as kernels only grow by what a layer adds.
    """
    first, across, second = turn[:, 0, 0], turn[:, 1, 0], turn[:, 1, 1]
    half = 0.5 * (first**2 - across**2 - second**2)
    return jnp.sqrt(0.5 * (first**2 + across**2 + second**2) + _length(half, first * across))


def slowest_rate(d_turn: Float[Array, "P 2 2"]) -> Float[Array, " P"]:
    """The rate of change of `slowest` where turn is one and changes at a rate: the largest eigenvalue of its symmetric
    part.

    (One is the largest singular value twice, so that JAX's derivative would be that of either, by chance.)
    """
    first, across, second = d_turn[:, 0, 0], d_turn[:, 1, 0], d_turn[:, 1, 1]
    a, b = pairs(input_count(d_turn.shape[0]))
    both = 0.5 * (first + second) + _length(0.5 * (first - second), 0.5 * across)
    return jnp.where(a == b, first, both)  # one input with itself has no psi_2


def _length(x, y):
    square = x**2 + y**2
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _root(shrink: Float[Array, ""]) -> Float[Array, ""]:
    """a from a^2, with a finite derivative where there is no skip: plain networks are differentiated in all but a."""
    return jnp.where(shrink > 0, jnp.sqrt(jnp.where(shrink > 0, shrink, 1.0)), 0.0)


def polynomial_degree(activation: Activation) -> float:
    """Degree of an activation that is a polynomial, infinite for others."""
    if isinstance(activation, Linear):
        return 1.0
    return float(activation.coefficients.size - 1) if isinstance(activation, Polynomial) else np.inf


def _contract(functions: Float[Array, "P J S"], modes: Float[Array, "P P J S"]) -> Float[Array, "P P"]:
    """Cov(F_p, g_q) of functions of each pair p, from their Hermite coefficients and the covariances of g_q with its
    modes."""
    return jnp.einsum("pms,qpms->pq", functions, modes, precision="highest")


def _product(state: TowerState) -> Float[Array, "P J S"]:
    """Hermite coefficients of phi_a phi_b = L11 psi_1 (L21 psi_1 + L22 psi_2), of degree two."""
    L = frame(state.k).L
    product = jnp.zeros((L.shape[0], *state.u.shape[2:]), L.dtype)
    product = product.at[:, 1, 0].set(jnp.sqrt(2.0).astype(L.dtype) * L[:, 0, 0] * L[:, 1, 0])
    return product if product.shape[-1] == 1 else product.at[:, 1, 1].set(L[:, 0, 0] * L[:, 1, 1])
