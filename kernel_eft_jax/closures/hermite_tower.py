r"""The hierarchy that is exact at order 1/n, truncated at a degree.

At leading order the fluctuation of any average over neurons is that of independent neurons, xi, plus a linear response:
$Y(f) = \xi(f) + \tfrac12 E[\nabla^2 f] : h$. With s what the branch reads of the stream, $y = Y(s s) = \xi(s s) + \chi_S h$, J the response
of Q to y through the rest of the branch and nu the noise of hidden neurons, one layer is

$$h' = a^2 h + \epsilon^2 (J y + \nu), \qquad v' = a^4 v + a^2 \epsilon^2 (J\, \mathrm{Cov}(y, h) + \mathrm{transpose}) + \epsilon^4 C_Q, \qquad
  K_1' = a^2 K_1 + \epsilon^2 m_Q$$

for v = Cov(h, h). Wick monomials W are martingales of xi, hence u = Cov(h, xi(W)) closes degree by degree,
$u' = a^2 u + \epsilon^2 J\, \mathrm{Cov}(y, W)$, and $V_4 = \mathrm{Wick} + u_{\phi\phi} + u_{\phi\phi}^T + v$. Given the path, the effect of h
on the mean is that of a random extra covariance h / sqrt(n):

$$m_S = \chi_S K_1 + \tfrac12 \mathrm{Hess}_S : v + \tfrac12 \mathrm{Cov}(\xi(\nabla^2 s s), h)$$

for E[s s]; the maps of the branch carry m_S and Cov(y, y) on to m_Q and C_Q. (K1_EFT has V4 in place of v, and no last term.)
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..activations import Activation, Linear, Polynomial
from ..checks import check_count
from ..expectations.hermite_modes import frame, mode_covariances, modes, pair_functions, rotate
from ..maps import Response, apply_all, apply_slope, carry_all
from ..model import Model
from ..pairs import input_count, triples, wick
from .base import Closure, Moments


class TowerState(NamedTuple):
    """Covariances with h; the leading axis of v and K1 holds the full degree and a lower one to compare with."""

    k: Float[Array, " P"]
    u: Float[Array, "P P J S"]
    v: Float[Array, "2 P P"]
    K1: Float[Array, "2 P"]


class ReadCovariances(NamedTuple):
    """Covariances of y, the fluctuation of what the branch reads (pair p, first), at both levels; and its mean's correction."""

    value: Float[Array, " P"]
    slope: Float[Array, "P 3"]
    with_modes: Float[Array, "P P J S"]
    with_h: Float[Array, "2 P P"]
    with_y: Float[Array, "2 P P"]
    mean: Float[Array, "2 P"]


class Memory(NamedTuple):
    """Covariances of the remembered g (first axis of `modes`, last of `response`) with the modes of xi and with h."""

    modes: Float[Array, "P P J S"]
    response: Float[Array, "P P"]


class HermiteTower(Closure[TowerState]):
    """V4 and K1 exact at order 1/n as the degree grows, for every block, layer by layer for the real network at any eps.

    Analytic activations converge like the square of their Hermite coefficients, exp(-c sqrt(degree)); at the paper's settings
    degree 20 is right to 2e-4 in V4 and degree 40 to 1e-5. ReLU converges like a power of the degree: 10 is right to 1e-4,
    40 to 1e-6 (one input). Where the branch reads the stream with a matrix or a norm, or with a polynomial, the hierarchy ends by itself, at
    twice the degree of the polynomial, and nothing is computed beyond. `Solution.truncation` estimates what is missing, from the same run at
    three quarters of the degree. For odd activations degree 2 has the V4 of `GOnly` in the continuum; others also feel the mean of phi, degree 1.
    The state grows as N^4 degree^2: for more than a few inputs solve sub-kernels, since V4_ab,cd needs a, b, c, d alone.
    """

    degree: int = eqx.field(static=True, default=30)

    def __check_init__(self):
        check_count(self.degree, "degree", 2)

    def init(self, model: Model, k):
        inputs, count = input_count(k.shape[-1]), k.shape[-1]
        J, s = modes(self._levels(model.read)[0], inputs)
        shapes = ((count, count, J.size, s.size), (2, count, count), (2, count))
        return TowerState(k, *(jnp.zeros(shape, k.dtype) for shape in shapes))

    def step(self, model: Model, state: TowerState, dt) -> TowerState:
        y, shrink = self._read_covariances(model.read, state), model.shrink(dt)
        responses = model.responses_of_read(y.value)
        transport = _each(responses, y.with_h)
        m_Q, C_Q = jax.vmap(lambda m, C: carry_all(responses, m, C))(y.mean, y.with_y)
        k = shrink * state.k + dt * responses[-1].value
        u = shrink * state.u + dt * apply_all(responses, y.with_modes)
        return TowerState(
            k,
            rotate(frame(k).M @ (jnp.sqrt(shrink) * frame(state.k).L), u),
            shrink**2 * state.v + shrink * dt * (transport + transport.mT) + dt**2 * C_Q,
            shrink * state.K1 + dt * m_Q,
        )

    def moments(self, model: Model, state: TowerState) -> Moments:
        return Moments(*(x[0] for x in self._both_levels(model, state)))

    def truncation(self, model: Model, state: TowerState) -> Moments:
        return Moments(*(jnp.abs(x[0] - x[1]) for x in self._both_levels(model, state)))

    def remember(self, model: Model, state: TowerState) -> Memory:
        product = _product(state)
        modes = state.u + mode_covariances(state.k, frame(state.k), product)
        return Memory(modes, state.v[0] + _contract(product, state.u).T)

    def follow(self, model: Model, state: TowerState, memory: Memory, dt) -> Memory:
        f, read, shrink = frame(state.k), model.read, model.shrink(dt)
        value, slope, _ = read.expansion(state.k)
        responses = model.responses_of_read(value)
        functions = pair_functions(read, f, self._levels(read)[0])
        with_y = _contract(functions.value, memory.modes) + apply_slope(slope, memory.response)
        k = shrink * state.k + dt * responses[-1].value
        turned = rotate(frame(k).M @ (jnp.sqrt(shrink) * f.L), memory.modes)
        return Memory(turned, shrink * memory.response + dt * apply_all(responses, with_y))

    def recall(self, model: Model, state: TowerState, memory: Memory):
        return memory.response + _contract(_product(state), memory.modes)

    def _levels(self, read: Activation) -> tuple[int, int]:
        """The degree of the hierarchy and a lower one to compare with; the same where the hierarchy ends by itself."""
        last = max(2, 2 * polynomial_degree(read))
        return (last, last) if last <= self.degree else (self.degree, max(2, 3 * self.degree // 4))

    def _both_levels(self, model: Model, state: TowerState) -> tuple[Array, ...]:
        y = self._read_covariances(model.read, state)
        to_S = model.responses_of_read(y.value)[:-1]
        response = _contract(_product(state), state.u).T  # Cov(h_p, xi(phi phi)_q)
        V4 = wick(state.k) + response + response.T + state.v
        cross = apply_slope(y.slope, wick(state.k) + response) + y.with_h
        mean, with_S = jax.vmap(lambda m, C: carry_all(to_S, m, C))(y.mean, y.with_y)
        return jnp.stack([state.k, state.k]), V4, state.K1, _each(to_S, cross).mT, with_S, mean

    def _read_covariances(self, read: Activation, state: TowerState) -> ReadCovariances:
        k, u, v, K1 = state
        f, triple = frame(k), triples(input_count(k.shape[0]))
        expectation, slope, curvature = read.expansion(k)
        degrees = self._levels(read)
        functions = pair_functions(read, f, degrees[0])
        m = np.arange(1, degrees[0] + 1)
        levels = (m <= np.array(degrees)[:, None]).astype(k.dtype)  # (2, J)
        value = levels[:, None, :, None] * functions.value  # (2, P, J, S)
        free = mode_covariances(k, f, functions.value)

        def chi(y):  # the response E[grad^2 s s] : h / 2, on the pair axis of (2, P, ...)
            return jnp.swapaxes(apply_slope(slope, jnp.swapaxes(y, 0, 1)), 0, 1)

        def einsum(formula, *operands):
            return jnp.einsum(formula, *operands, precision="highest")

        X = einsum("lpms,qpms->lpq", value, u)  # Cov(xi(s s)_p, h_q)
        with_h = X + chi(v)
        response = chi(jnp.swapaxes(with_h, 1, 2))  # Cov(chi h, y)
        with_y = einsum("lqms,pqms->lpq", value, free) + jnp.swapaxes(response, 1, 2) + chi(jnp.swapaxes(X, 1, 2))
        with_second = einsum("lm,ptms,ptms->lp", levels, functions.bend, u[triple, np.arange(k.shape[0])[:, None]])
        hess_v = einsum("ptu,lptu->lp", curvature, v[:, triple[:, :, None], triple[:, None, :]])
        mean = chi(K1) + 0.5 * (hess_v + with_second)
        return ReadCovariances(expectation, slope, free + apply_slope(slope, u), with_h, with_y, mean)


def polynomial_degree(activation: Activation) -> float:
    """Degree of an activation that is a polynomial, infinite for others."""
    if isinstance(activation, Linear):
        return 1
    return activation.coefficients.size - 1 if isinstance(activation, Polynomial) else np.inf


def _each(responses: list[Response], x: Float[Array, "2 P P"]) -> Float[Array, "2 P P"]:
    """Both levels behind all maps, on their first pair axis."""
    return jax.vmap(lambda h: apply_all(responses, h))(x)


def _contract(functions: Float[Array, "P J S"], modes: Float[Array, "P P J S"]) -> Float[Array, "P P"]:
    """Cov(F_p, g_q) of functions of each pair p, from their Hermite coefficients and the covariances of g_q with its modes."""
    return jnp.einsum("pms,qpms->pq", functions, modes, precision="highest")


def _product(state: TowerState) -> Float[Array, "P J S"]:
    """Hermite coefficients of phi_a phi_b = L11 psi_1 (L21 psi_1 + L22 psi_2), of degree two."""
    L = frame(state.k).L
    product = jnp.zeros((L.shape[0], *state.u.shape[2:]), L.dtype)
    product = product.at[:, 1, 0].set(jnp.sqrt(2.0).astype(L.dtype) * L[:, 0, 0] * L[:, 1, 0])
    return product if product.shape[-1] == 1 else product.at[:, 1, 1].set(L[:, 0, 0] * L[:, 1, 1])
