r"""The layer of the hierarchy that is exact at order 1/n, truncated at a degree.

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

from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..kernel_maps import apply_all, carry_all
from ..model import Model
from ..pairs import input_count, pair_count
from .base import COPIES, Closure, pair_units
from .tower_bounds import bound_units, decayed, decaying, next_bounds, no_bounds
from .tower_degree import UNDECIDED, last_degree
from .tower_state import TowerRead, TowerState, frame_turn


class ReadCovariances(NamedTuple):
    """Covariances of y_p, the fluctuation of what the branch reads (the pair p is the first axis), and the correction
    of its mean."""

    with_modes: Float[Array, "P ... J S"]
    with_h: Float[Array, "P P"]
    with_y: Float[Array, "P P"]
    mean: Float[Array, " P"]


class TowerMemory(NamedTuple):
    """Covariances of the remembered g (first axis of `modes`, last of `response`) with the modes of xi and with h."""

    modes: Float[Array, "P ... J S"]
    response: Float[Array, "P P"]


class Tower(Closure[TowerState]):
    """The equations of one layer. A subclass chooses the modes, says what the branch reads in them, and how covariances
    with them are taken and turned."""

    degree: eqx.AbstractVar[int | None]

    @abstractmethod
    def _sizes(self, model: Model, inputs: int) -> tuple[int, ...]:
        """The shape of the covariances of all h with all modes."""

    @abstractmethod
    def _read(self, model: Model, k: Float[Array, " P"]) -> TowerRead:
        """What the branch reads at the kernel k."""

    @abstractmethod
    def _with_modes(self, k: Float[Array, " P"], functions: Float[Array, "P J S"]) -> Float[Array, "P ... J S"]:
        """The covariances of xi(F_p) with all modes of xi, for functions F_p given by their Hermite coefficients."""

    @abstractmethod
    def _contract(self, functions: Float[Array, "P J S"], modes: Float[Array, "P ... J S"]) -> Float[Array, "P P"]:
        """Cov(xi(F_p), g_q) for functions F_p given by their Hermite coefficients, from the covariances of g_q with the
        modes of xi."""

    @abstractmethod
    def _of_triples(self, modes: Float[Array, "P ... J S"]) -> Float[Array, "P 3 J S"]:
        """The covariances of h_aa, h_bb and h_ab with the modes of the pair ab, for every pair."""

    @abstractmethod
    def _product(self, state: TowerState) -> Float[Array, "P J S"]:
        """The Hermite coefficients of phi_a phi_b for every pair."""

    @abstractmethod
    def _turned(self, turn: Float[Array, "P 2 2"], modes: Float[Array, "P ... J S"]) -> Float[Array, "P ... J S"]:
        """Covariances with the modes of the frames as they are after `turn`."""

    def _turning(
        self, turn: Float[Array, "P 2 2"], d_turn: Float[Array, "P 2 2"], modes: Float[Array, "P ... J S"]
    ) -> Float[Array, "P ... J S"]:
        """The rate of change of `_turned(turn, modes)` where `turn` is 1 and changes at the rate `d_turn`."""
        return jax.jvp(lambda turn: self._turned(turn, modes), (turn,), (d_turn,))[1]

    def _degree(self, model: Model) -> int:
        """The degree of the hierarchy, lower where it ends by itself."""
        return int(min(UNDECIDED if self.degree is None else self.degree, last_degree(model.read)))

    def numbers(self, model: Model, inputs: int) -> int:
        *_, J, S = self._sizes(model, inputs)
        return COPIES * pair_count(inputs) ** 2 * J * S

    def init(self, model: Model, k) -> TowerState:
        u = jnp.zeros(self._sizes(model, input_count(k.shape[0])), k.dtype)
        square = jnp.zeros((k.shape[0], k.shape[0]), k.dtype)
        return TowerState(k, u, square, jnp.zeros_like(k), no_bounds(k))

    def units(self, model: Model, k) -> TowerState:
        unit = pair_units(k)
        of_modes = unit.reshape(-1, *[1] * (len(self._sizes(model, input_count(k.shape[0]))) - 1))
        return TowerState(unit, of_modes, unit[:, None] * unit[None, :], unit, bound_units(unit))

    def step(self, model: Model, state: TowerState, dt) -> TowerState:
        after, turn = self._unturned(model, state, dt)
        bounds = decayed(after.bounds, turn, self._degree(model))
        return after._replace(u=self._turned(turn, after.u), bounds=bounds)

    def drift(self, model: Model, state: TowerState) -> TowerState:
        zero = jnp.zeros((), state.k.dtype)
        (_, turn), (rate, d_turn) = jax.jvp(
            lambda dt: self._unturned(model, state, dt), (zero,), (jnp.ones_like(zero),)
        )
        bounds = decaying(rate.bounds, state.bounds, d_turn, self._degree(model))
        return rate._replace(u=rate.u + self._turning(turn, d_turn, state.u), bounds=bounds)

    def _unturned(self, model: Model, state: TowerState, dt) -> tuple[TowerState, Float[Array, "P 2 2"]]:
        """The state one layer on, u still in the modes of the layer's beginning and bounds not yet decayed; and the
        turn of these modes into those of its end."""
        read, shrink = self._read(model, state.k), model.shrink(dt)
        y, responses = self._covariances(state, read), model.responses_of_read(read.response.value)
        transport = apply_all(responses, y.with_h)
        m_Q, C_Q = carry_all(responses, y.mean, y.with_y)
        k = shrink * state.k + dt * responses[-1].value
        after = TowerState(
            k,
            shrink * state.u + dt * apply_all(responses, y.with_modes),
            shrink**2 * state.v + shrink * dt * (transport + transport.T) + dt**2 * C_Q,
            shrink * state.K1 + dt * m_Q,
            next_bounds(state.bounds, read.response, read.functions, responses, shrink, dt),
        )
        return after, frame_turn(state.k, k, shrink)

    def _covariances(self, state: TowerState, read: TowerRead) -> ReadCovariances:
        """The covariances of y at a state, and the correction of its mean."""
        chi, value = read.response.apply, read.functions.value
        free = self._with_modes(state.k, value)
        X = self._contract(value, state.u)  # Cov(xi(s s)_p, h_q)
        with_h = X + chi(state.v)
        with_y = self._contract(value, free).T + chi(with_h.T).T + chi(X.T)
        second = read.functions.second, self._of_triples(state.u)
        mean, _ = read.response.carry(state.K1, state.v)
        mean = mean + 0.5 * jnp.einsum("ptms,ptms->p", *second, precision="highest")
        return ReadCovariances(free + chi(state.u), with_h, with_y, mean)

    def remember(self, model: Model, state: TowerState) -> TowerMemory:
        product = self._product(state)
        modes = state.u + self._with_modes(state.k, product)
        return TowerMemory(modes, state.v + self._contract(product, state.u).T)

    def follow(self, model: Model, state: TowerState, memory: TowerMemory, dt) -> TowerMemory:
        read, shrink = self._read(model, state.k), model.shrink(dt)
        responses = model.responses_of_read(read.response.value)
        with_y = self._contract(read.functions.value, memory.modes) + read.response.apply(memory.response)
        k = shrink * state.k + dt * responses[-1].value
        modes = self._turned(frame_turn(state.k, k, shrink), memory.modes)
        return TowerMemory(modes, shrink * memory.response + dt * apply_all(responses, with_y))

    def recall(self, model: Model, state: TowerState, memory: TowerMemory):
        return memory.response + self._contract(self._product(state), memory.modes)
