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

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..activations import Activation
from ..checks import check_count
from ..expectations.hermite_modes import frame, mode_covariances, modes, rotate
from ..kernel_maps import Response, apply_all, carry_all
from ..model import Model
from ..pairs import input_count, pair_count, triples, wick
from .base import COPIES, Closure, Moments, pair_units
from .pair_tower import PairTower
from .tower_bounds import bound_units, decayed, decaying, next_bounds, no_bounds, read_errors
from .tower_degree import DEGREES, DEGREES_OF_ONE, UNDECIDED, enough_degree, last_degree, rule_error
from .tower_state import TowerRead, TowerState, contract_modes, frame_turn, product_modes, read_in_modes


class ReadCovariances(NamedTuple):
    """Covariances of y_p, the fluctuation of what the branch reads (the pair p is the first axis), and the correction
    of its mean."""

    with_modes: Float[Array, "P P J S"]
    with_h: Float[Array, "P P"]
    with_y: Float[Array, "P P"]
    mean: Float[Array, " P"]


class TowerMemory(NamedTuple):
    """Covariances of the remembered g (first axis of `modes`, last of `response`) with the modes of xi and with h."""

    modes: Float[Array, "P P J S"]
    response: Float[Array, "P P"]


class HermiteTower(Closure[TowerState]):
    """V4 and K1 exact at order 1/n as the degree grows, for every block, layer by layer for the real network at any
    eps.

    Without a `degree`, `solve`, `fit`, `fisher` and `sensitivity` choose the lowest of 4, 8, 12, 16, 24, 32, 48, 64
    (and for one input 96, 128, 192, 256) whose truncation is small enough, or the last of them. Small enough is a bound
    of a thousandth of V4 and of a hundredth of K1 (or of K0 / 100, where K1 is smaller) at every depth, for the inputs
    of least and of largest variance alone. `Solution.closure` holds the chosen degree, and `Solution.truncation` the
    bounds. Inside jit, grad or vmap the values are not known, no degree can be chosen, and the degree is 30.

    Analytic activations converge like the square of their Hermite coefficients, exp(-c sqrt(degree)); at the paper's
    settings degree 20 is right to 2e-4 in V4 and degree 40 to 1e-5. ReLU converges like a power of the degree: 10 is
    right to 1e-4, 40 to 1e-6 (one input). Where the branch reads the stream with a matrix or a norm, or with a
    polynomial, the hierarchy ends by itself, at twice the degree of the polynomial, and nothing is computed beyond.
    `Solution.truncation` bounds what is missing, from the exact norms of the functions that are expanded, kinks or not.
    In the continuum the V4 of degree 2 is that of `GOnly` for odd activations; for others it also depends on the mean
    of phi, degree 1. The state grows as N^4 degree^2: for more than a few inputs solve sub-kernels, since V4_ab,cd
    needs a, b, c, d alone.
    """

    degree: int | None = eqx.field(
        static=True, default=None, converter=lambda degree: None if degree is None else check_count(degree, "degree", 2)
    )

    def settled(self, model: Model, k, dt) -> "HermiteTower":
        if self.degree is not None:
            return self
        degrees = DEGREES if k.shape[0] > 1 else DEGREES + DEGREES_OF_ONE
        ends = last_degree(model.read)
        if ends <= degrees[-1]:
            return HermiteTower(int(ends))
        return HermiteTower(enough_degree(HermiteTower(degrees[-1]), model, k, dt, degrees))

    def for_two_inputs(self) -> PairTower:
        return PairTower() if self.degree is None else PairTower(self.degree)

    def init(self, model: Model, k):
        inputs, count = input_count(k.shape[-1]), k.shape[-1]
        J, s = modes(self._degree(model.read), inputs)
        u, square = jnp.zeros((count, count, J.size, s.size), k.dtype), jnp.zeros((count, count), k.dtype)
        return TowerState(k, u, square, jnp.zeros_like(k), no_bounds(k))

    def error(self, model: Model, k) -> Float[Array, ""]:
        variances = k[triples(input_count(k.shape[0]))[:, 0]]
        own = jax.lax.map(lambda k: rule_error(model.read, k, self._degree(model.read)), variances)
        return jnp.maximum(model.error(k), jnp.max(own))

    def numbers(self, model: Model, inputs: int) -> int:
        J, s = modes(self._degree(model.read), inputs)
        return COPIES * pair_count(inputs) ** 2 * J.size * s.size

    def step(self, model: Model, state: TowerState, dt) -> TowerState:
        after, turn = self._unforgotten(model, state, dt)
        return after._replace(bounds=decayed(after.bounds, turn, self._degree(model.read)))

    def drift(self, model: Model, state: TowerState) -> TowerState:
        zero = jnp.zeros((), state.k.dtype)
        rate, d_turn = jax.jvp(lambda dt: self._unforgotten(model, state, dt), (zero,), (jnp.ones_like(zero),))[1]
        return rate._replace(bounds=decaying(rate.bounds, state.bounds, d_turn, self._degree(model.read)))

    def _unforgotten(self, model: Model, state: TowerState, dt):
        """The state one layer on, its bounds not yet decayed, and the turn of the frame."""
        read, shrink = self._read(model.read, state), model.shrink(dt)
        y, responses = read_covariances(state, read), model.responses_of_read(read.response.value)
        transport = apply_all(responses, y.with_h)
        m_Q, C_Q = carry_all(responses, y.mean, y.with_y)
        k = shrink * state.k + dt * responses[-1].value
        u = shrink * state.u + dt * apply_all(responses, y.with_modes)
        turn = frame_turn(state.k, k, shrink)
        after = TowerState(
            k,
            rotate(turn[None], u),
            shrink**2 * state.v + shrink * dt * (transport + transport.T) + dt**2 * C_Q,
            shrink * state.K1 + dt * m_Q,
            next_bounds(state.bounds, read.response, read.functions, responses, shrink, dt),
        )
        return after, turn

    def moments(self, model: Model, state: TowerState) -> Moments:
        return self.readings(model, state)[0]

    def truncation(self, model: Model, state: TowerState) -> Moments:
        return self.readings(model, state)[1]

    def readings(self, model: Model, state: TowerState) -> tuple[Moments, Moments]:
        read = self._read(model.read, state)
        to_S = model.responses_of_read(read.response.value)[:-1]
        return self._moments(state, read, to_S), self._moment_bounds(state, read, to_S)

    def _moments(self, state: TowerState, read: TowerRead, to_S: list[Response]) -> Moments:
        y = read_covariances(state, read)
        response = contract_modes(product_modes(state), state.u).T  # Cov(h_p, xi(phi phi)_q)
        cross = read.response.apply(wick(state.k) + response) + y.with_h
        mean, with_S = carry_all(to_S, y.mean, y.with_y)
        V4 = wick(state.k) + response + response.T + state.v
        return Moments(state.k, V4, state.K1, apply_all(to_S, cross).T, with_S, mean)

    def _moment_bounds(self, state: TowerState, at: TowerRead, to_S: list[Response]) -> Moments:
        errors, bounds = read_errors(state.bounds, at.response, at.functions), [r.absolute() for r in to_S]
        mean, with_S = carry_all(bounds, errors.mean, errors.with_y)
        cross = apply_all(bounds, errors.with_h).T
        return Moments(jnp.zeros_like(state.k), state.bounds.v, state.bounds.K1, cross, with_S, mean)

    def units(self, model: Model, k) -> TowerState:
        unit = pair_units(k)
        square = unit[:, None] * unit[None, :]
        return TowerState(unit, unit[:, None, None, None], square, unit, bound_units(unit))

    def remember(self, model: Model, state: TowerState) -> TowerMemory:
        coefficients = product_modes(state)
        modes = state.u + mode_covariances(state.k, frame(state.k), coefficients)
        return TowerMemory(modes, state.v + contract_modes(coefficients, state.u).T)

    def follow(self, model: Model, state: TowerState, memory: TowerMemory, dt) -> TowerMemory:
        read, shrink = self._read(model.read, state), model.shrink(dt)
        responses = model.responses_of_read(read.response.value)
        with_y = contract_modes(read.functions.value, memory.modes) + read.response.apply(memory.response)
        k = shrink * state.k + dt * responses[-1].value
        modes = rotate(frame_turn(state.k, k, shrink)[None], memory.modes)
        return TowerMemory(modes, shrink * memory.response + dt * apply_all(responses, with_y))

    def recall(self, model: Model, state: TowerState, memory: TowerMemory):
        return memory.response + contract_modes(product_modes(state), memory.modes)

    def _degree(self, read: Activation) -> int:
        """The degree of the hierarchy, lower where it ends by itself."""
        return int(min(UNDECIDED if self.degree is None else self.degree, last_degree(read)))

    def _read(self, read: Activation, state: TowerState) -> TowerRead:
        return read_in_modes(read, state.k, self._degree(read))


def read_covariances(state: TowerState, read: TowerRead) -> ReadCovariances:
    """The covariances of y at a state, and the correction of its mean."""
    k, u, triple = state.k, state.u, triples(input_count(state.k.shape[0]))
    chi, value = read.response.apply, read.functions.value
    free = mode_covariances(k, frame(k), value)
    X = contract_modes(value, u)  # Cov(xi(s s)_p, h_q)
    with_h = X + chi(state.v)
    with_y = jnp.einsum("qms,pqms->pq", value, free, precision="highest") + chi(with_h.T).T + chi(X.T)
    second = read.functions.second, u[triple, np.arange(k.shape[0])[:, None]]
    mean, _ = read.response.carry(state.K1, state.v)
    mean = mean + 0.5 * jnp.einsum("ptms,ptms->p", *second, precision="highest")
    return ReadCovariances(free + chi(u), with_h, with_y, mean)
