"""The exact closure of any number of inputs: each pair has Hermite modes of its own, from degree 1 to `degree`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import check_count
from ..expectations.hermite_modes import frame, mode_covariances, modes, rotate
from ..kernel_maps import Response, apply_all, carry_all
from ..model import Model
from ..pairs import diagonal, input_count, pair_count, triples, wick
from .base import Moments
from .pair_tower import PairTower
from .tower import Tower
from .tower_bounds import read_errors
from .tower_degree import DEGREES, DEGREES_OF_ONE, enough_degree, last_degree, rule_error
from .tower_state import TowerRead, TowerState, contract_modes, product_modes, read_in_modes


class HermiteTower(Tower):
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
        return PairTower(self.degree)

    def error(self, model: Model, k) -> Float[Array, ""]:
        variances = k[diagonal(input_count(k.shape[0]))]
        own = jax.lax.map(lambda k: rule_error(model.read, k, self._degree(model)), variances)
        return jnp.maximum(model.error(k), jnp.max(own))

    def moments(self, model: Model, state: TowerState) -> Moments:
        return self.readings(model, state)[0]

    def truncation(self, model: Model, state: TowerState) -> Moments:
        return self.readings(model, state)[1]

    def readings(self, model: Model, state: TowerState) -> tuple[Moments, Moments]:
        read = self._read(model, state.k)
        to_S = model.responses_of_read(read.response.value)[:-1]
        return self._moments(state, read, to_S), self._moment_bounds(state, read, to_S)

    def _moments(self, state: TowerState, read: TowerRead, to_S: list[Response]) -> Moments:
        y = self._covariances(state, read)
        response = self._contract(self._product(state), state.u).T  # Cov(h_p, xi(phi phi)_q)
        cross = read.response.apply(wick(state.k) + response) + y.with_h
        mean, with_S = carry_all(to_S, y.mean, y.with_y)
        V4 = wick(state.k) + response + response.T + state.v
        return Moments(state.k, V4, state.K1, apply_all(to_S, cross).T, with_S, mean)

    def _moment_bounds(self, state: TowerState, at: TowerRead, to_S: list[Response]) -> Moments:
        errors, bounds = read_errors(state.bounds, at.response, at.functions), [r.absolute() for r in to_S]
        mean, with_S = carry_all(bounds, errors.mean, errors.with_y)
        cross = apply_all(bounds, errors.with_h).T
        return Moments(jnp.zeros_like(state.k), state.bounds.v, state.bounds.K1, cross, with_S, mean)

    def _sizes(self, model, inputs):
        J, s = modes(self._degree(model), inputs)
        return pair_count(inputs), pair_count(inputs), J.size, s.size

    def _read(self, model, k):
        return read_in_modes(model.read, k, self._degree(model))

    def _with_modes(self, k, functions):
        return mode_covariances(k, frame(k), functions)

    def _contract(self, functions, modes):
        return contract_modes(functions, modes)

    def _of_triples(self, modes):
        return modes[triples(input_count(modes.shape[0])), np.arange(modes.shape[0])[:, None]]

    def _product(self, state):
        return product_modes(state)

    def _turned(self, turn, modes):
        return rotate(turn[None], modes)
