r"""`HermiteTower` for two inputs a, b, in the modes of the pair ab alone: those of a and of b are among them.

Modes of a are the ones without psi_2, and modes of b are a combination of all ($he_m$ of a combination of psi_1 and
psi_2). So every function of a pair, (aa, ab, bb), is a row over one set of modes, covariances are inner products of
rows, and u = Cov(h, xi(W)) has three rows in place of nine.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..expectations.hermite_modes import frame, modes
from ..expectations.two_inputs import read_pair, rotate_lower, rotate_lower_rate
from ..kernel_maps import Local
from ..model import Model
from ..pairs import pair_count, triples, wick
from .base import Moments
from .tower import Tower
from .tower_state import TowerRead, TowerState

# Half the nodes of psi_1, and the nodes of psi_2: tanh and GELU are right to 1e-10 at variances up to 5, to 1e-6 at 16.
PAIR_NODES = (48, 192)
FINER_NODES = (64, 512)  # show the error of those above
NUMBERS_A_NODE = 10  # how many numbers a solve holds for each node of the plane


class PairTower(Tower):
    """The exact closure of two inputs: equal to `HermiteTower` to rounding, and cheaper (`benchmarks/inputs.py`
    measures by how much)."""

    degree: int | None = eqx.field(static=True, default=None)

    def numbers(self, model: Model, inputs: int) -> int:
        return super().numbers(model, inputs) + NUMBERS_A_NODE * 2 * math.prod(FINER_NODES)

    def moments(self, model: Model, state: TowerState) -> Moments:
        response = self._contract(self._product(state), state.u).T
        return Moments(state.k, wick(state.k) + response + response.T + state.v, state.K1)

    def truncation(self, model: Model, state: TowerState) -> Moments:
        return Moments(jnp.zeros_like(state.k), state.bounds.v, state.bounds.K1)

    def error(self, model: Model, k) -> Float[Array, ""]:
        if model.read.kinks:  # read with the nodes of the expectations or more, and not with these
            return model.error(k)
        # By how much more nodes change the functions that are read, relative to their norms.
        (_, here), (expansion, finer) = (
            read_pair(model.read, k, self._degree(model), nodes) for nodes in (PAIR_NODES, FINER_NODES)
        )

        def change(x, y, norm):
            return jnp.sqrt(jnp.sum((x - y) ** 2, axis=(-2, -1))) / norm

        norm = jnp.sqrt(jnp.sum(finer.value**2, axis=(-2, -1)) + finer.value_tail**2 + expansion.value**2)
        largest = jnp.sqrt(jnp.sum(finer.second**2, axis=(-2, -1)) + finer.second_tail**2)
        worst = jnp.max(change(here.second, finer.second, jnp.max(largest)))
        return jnp.stack([model.error(k), jnp.max(change(here.value, finer.value, norm)), worst]).max()

    def _sizes(self, model, inputs):
        J, s = modes(self._degree(model), 2)
        return pair_count(2), J.size, s.size

    def _read(self, model, k):
        expansion, functions = read_pair(model.read, k, self._degree(model), PAIR_NODES)
        return TowerRead(Local(*expansion, jnp.zeros((), k.dtype)), functions)

    def _with_modes(self, k, functions):
        return functions

    def _contract(self, functions, modes):
        return jnp.einsum("pms,qms->pq", functions, modes, precision="highest")

    def _of_triples(self, modes):
        return modes[triples(2)]

    def _product(self, state):
        """phi_a phi_a, phi_a phi_b, phi_b phi_b in the modes of the pair, all of degree two."""
        (L11, _), (L21, L22) = frame(state.k).L[1]
        root, zero = np.sqrt(2.0).astype(state.k.dtype), jnp.zeros_like(L11)
        rows = [
            [root * L11**2, zero, zero],
            [root * L11 * L21, L11 * L22, zero],
            [root * L21**2, 2 * L21 * L22, root * L22**2],
        ]
        return jnp.zeros_like(state.u).at[:, 1, :3].set(jnp.stack([jnp.stack(row) for row in rows]))

    def _turned(self, turn, modes):
        return rotate_lower(turn[1], modes)

    def _turning(self, turn, d_turn, modes):
        return rotate_lower_rate(d_turn[1], modes)
