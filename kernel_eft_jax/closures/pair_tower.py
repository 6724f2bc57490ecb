r"""`HermiteTower` for two inputs a, b, in the modes of the pair ab alone: those of a and of b are among them.

Modes of a are the ones without psi_2, and modes of b are a combination of all ($he_m$ of a combination of psi_1 and
psi_2). So every function of a pair, (aa, ab, bb), is a row over one set of modes, covariances are inner products of
rows, and u = Cov(h, xi(W)) has three rows in place of nine. The equations are those of `hermite_tower.py`, bounds of
truncation included.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..expectations.hermite_modes import frame, modes
from ..expectations.two_inputs import read_pair, rotate_lower, rotate_lower_rate
from ..kernel_maps import Local, apply_all, carry_all
from ..model import Model
from ..pairs import pair_count, triples, wick
from .base import COPIES, Closure, Moments, pair_units
from .tower_bounds import Bounds, bound_units, decayed, decaying, next_bounds, no_bounds
from .tower_degree import UNDECIDED, last_degree
from .tower_state import frame_turn

# Half the nodes of psi_1, and the nodes of psi_2: tanh and GELU are right to 1e-10 at variances up to 5, to 1e-6 at 16.
PAIR_NODES = (48, 192)
FINER_NODES = (64, 512)  # show the error of those above
NUMBERS_A_NODE = 10  # how many numbers a solve holds for each node of the plane
TRIPLES = triples(2)


class PairState(NamedTuple):
    """Covariances with h = (h_aa, h_ab, h_bb), and bounds of what the modes beyond the degree would add."""

    k: Float[Array, " 3"]
    u: Float[Array, "3 J S"]
    v: Float[Array, "3 3"]
    K1: Float[Array, " 3"]
    bounds: Bounds


class PairMemory(NamedTuple):
    """Covariances of the remembered g (first axis of `modes`, last of `response`) with the modes of xi and with h."""

    modes: Float[Array, "3 J S"]
    response: Float[Array, "3 3"]


class PairTower(Closure[PairState]):
    """The exact closure of two inputs: equal to `HermiteTower` to rounding, and cheaper (`benchmarks/inputs.py`
    measures by how much)."""

    degree: int = eqx.field(static=True, default=UNDECIDED)
    nodes: tuple[int, int] = eqx.field(static=True, default=PAIR_NODES)

    def numbers(self, model: Model, inputs: int) -> int:
        J, s = modes(self._degree(model), 2)
        return COPIES * pair_count(2) ** 2 * J.size * s.size + NUMBERS_A_NODE * 2 * math.prod(FINER_NODES)

    def init(self, model: Model, k):
        J, s = modes(self._degree(model), 2)
        u, square = jnp.zeros((3, J.size, s.size), k.dtype), jnp.zeros((3, 3), k.dtype)
        return PairState(k, u, square, jnp.zeros_like(k), no_bounds(k))

    def step(self, model: Model, state: PairState, dt) -> PairState:
        after, turn = self._unturned(model, state, dt)
        bounds = decayed(after.bounds, turn, self._degree(model))
        return after._replace(u=rotate_lower(turn[1], after.u), bounds=bounds)

    def drift(self, model: Model, state: PairState) -> PairState:
        zero = jnp.zeros((), state.k.dtype)
        rate, d_turn = jax.jvp(lambda dt: self._unturned(model, state, dt), (zero,), (jnp.ones_like(zero),))[1]
        bounds = decaying(rate.bounds, state.bounds, d_turn, self._degree(model))
        return rate._replace(u=rate.u + rotate_lower_rate(d_turn[1], state.u), bounds=bounds)

    def _unturned(self, model, state, dt):
        """The state one layer on, u still in the modes of the layer's beginning and bounds not yet decayed; and the
        turn of these modes into those of its end."""
        (read, response, responses), shrink = self._read(model, state.k), model.shrink(dt)
        with_modes, with_h, with_y, mean = _covariances(state, read, response)
        transport = apply_all(responses, with_h)
        m_Q, C_Q = carry_all(responses, mean, with_y)
        k = shrink * state.k + dt * responses[-1].value
        turn = frame_turn(state.k, k, shrink)
        after = PairState(
            k,
            shrink * state.u + dt * apply_all(responses, with_modes),
            shrink**2 * state.v + shrink * dt * (transport + transport.T) + dt**2 * C_Q,
            shrink * state.K1 + dt * m_Q,
            next_bounds(state.bounds, response, read, responses, shrink, dt),
        )
        return after, turn

    def moments(self, model: Model, state: PairState) -> Moments:
        response = _inner_products(state.u, _product_rows(state))
        return Moments(state.k, wick(state.k) + response + response.T + state.v, state.K1)

    def truncation(self, model: Model, state: PairState) -> Moments:
        return Moments(jnp.zeros_like(state.k), state.bounds.v, state.bounds.K1)

    def units(self, model: Model, k) -> PairState:
        unit = pair_units(k)
        square = unit[:, None] * unit[None]
        return PairState(unit, unit[:, None, None], square, unit, bound_units(unit))

    def remember(self, model: Model, state: PairState) -> PairMemory:
        product = _product_rows(state)
        return PairMemory(state.u + product, state.v + _inner_products(state.u, product))

    def follow(self, model: Model, state: PairState, memory: PairMemory, dt) -> PairMemory:
        (read, response, responses), shrink = self._read(model, state.k), model.shrink(dt)
        with_y = _inner_products(read.value, memory.modes) + response.apply(memory.response)
        k = shrink * state.k + dt * responses[-1].value
        turn = frame_turn(state.k, k, shrink)[1]
        return PairMemory(
            rotate_lower(turn, memory.modes), shrink * memory.response + dt * apply_all(responses, with_y)
        )

    def recall(self, model: Model, state: PairState, memory: PairMemory):
        return memory.response + _inner_products(_product_rows(state), memory.modes)

    def error(self, model: Model, k) -> Float[Array, ""]:
        if model.read.kinks:  # read with the nodes of the expectations or more, and not with these
            return model.error(k)
        # By how much more nodes change the functions that are read, relative to their norms.
        here, finer = (read_pair(model.read, k, self._degree(model), nodes) for nodes in (self.nodes, FINER_NODES))

        def change(x, y, norm):
            return jnp.sqrt(jnp.sum((x - y) ** 2, axis=(-2, -1))) / norm

        norm = jnp.sqrt(jnp.sum(finer.value**2, axis=(-2, -1)) + finer.value_tail**2 + finer.expansion.value**2)
        largest = jnp.sqrt(jnp.sum(finer.second**2, axis=(-2, -1)) + finer.second_tail**2)
        worst = jnp.max(change(here.second, finer.second, jnp.max(largest)))
        return jnp.stack([model.error(k), jnp.max(change(here.value, finer.value, norm)), worst]).max()

    def _degree(self, model):
        return int(min(self.degree, last_degree(model.read)))

    def _read(self, model, k):
        """What the branch reads, the response of E[s s], and the responses of all maps behind it."""
        read = read_pair(model.read, k, self._degree(model), self.nodes)
        return read, Local(*read.expansion, jnp.zeros((), k.dtype)), model.responses_of_read(read.expansion.value)


def _covariances(state, read, response):
    """The covariances of y with the modes, with h and with itself, and the correction of the mean of y."""
    X = _inner_products(read.value, state.u)
    with_h = X + response.apply(state.v)
    with_y = _inner_products(read.value, read.value) + response.apply(with_h.T).T + response.apply(X.T)
    mean, _ = response.carry(state.K1, state.v)
    mean = mean + 0.5 * jnp.einsum("ptms,ptms->p", read.second, state.u[TRIPLES], precision="highest")
    return read.value + response.apply(state.u), with_h, with_y, mean


def _inner_products(F: Float[Array, "3 J S"], G: Float[Array, "3 J S"]) -> Float[Array, "3 3"]:
    return jnp.einsum("pms,qms->pq", F, G, precision="highest")


def _product_rows(state: PairState) -> Float[Array, "3 J S"]:
    """phi_a phi_a, phi_a phi_b, phi_b phi_b in the modes of the pair, all of degree two."""
    (L11, _), (L21, L22) = frame(state.k).L[1]
    root, zero = np.sqrt(2.0).astype(state.k.dtype), jnp.zeros_like(L11)
    rows = [
        [root * L11**2, zero, zero],
        [root * L11 * L21, L11 * L22, zero],
        [root * L21**2, 2 * L21 * L22, root * L22**2],
    ]
    return jnp.zeros_like(state.u).at[:, 1, :3].set(jnp.stack([jnp.stack(row) for row in rows]))
