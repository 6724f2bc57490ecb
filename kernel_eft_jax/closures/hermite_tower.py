r"""The hierarchy that is exact at order 1/n, truncated at a degree.

At leading order the fluctuation of any average over neurons is that of independent neurons, xi, plus a linear response:
$Y(f) = \xi(f) + \tfrac12 E[\nabla^2 f] : h$ with $\dot h = C_W y$ and $y = Y(s s)$. Wick monomials W are martingales of xi, hence
covariances u = Cov(h, xi(W)), v = Cov(h, h) close, degree by degree:

$$\dot u = C_W \mathrm{Cov}(y, \xi(W)), \qquad \dot v = C_W (\mathrm{Cov}(y, h) + \mathrm{Cov}(h, y)), \qquad
  V_4 = \mathrm{Wick} + u_{\phi\phi} + u_{\phi\phi}^T + v$$

Given the path, the effect of h on the mean is that of a random extra covariance h / sqrt(n), to second order:

$$\dot K_1 = C_W m_S, \qquad m_S = \chi K_1 + \tfrac12 \mathrm{Hess} : v + \tfrac12 \mathrm{Cov}(\xi(\nabla^2 s s), h)$$

with chi and Hess those of E[s s]. (K1_EFT has V4 in place of v, and no last term.) One layer adds eps^4 C_W^2 Cov(y, y) to v.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import check_count
from ..model import Model, apply_slope
from ..pairs import input_count, triples, wick
from .base import Closure, Moments
from .hermite_modes import (
    frame,
    frame_drift,
    mode_covariances,
    modes,
    pair_functions,
    rotate,
    rotation_drift,
)


class TowerState(NamedTuple):
    """Covariances with h; the leading axis of v and K1 holds the full degree and a lower one to compare with."""

    k: Float[Array, " P"]
    u: Float[Array, "P P J S"]
    v: Float[Array, "2 P P"]
    K1: Float[Array, "2 P"]


class SigmaCovariances(NamedTuple):
    """Covariances of y, the fluctuation of the sigma-kernel (pair p, first), at both levels; and its mean's correction."""

    slope: Float[Array, "P 3"]
    with_modes: Float[Array, "P P J S"]
    with_h: Float[Array, "2 P P"]
    with_y: Float[Array, "2 P P"]
    mean: Float[Array, "2 P"]


class HermiteTower(Closure[TowerState]):
    """V4 and K1 exact at order 1/n as the degree grows, in the layer recursion for the real network at any eps.

    Analytic activations converge like the square of their Hermite coefficients, exp(-c sqrt(degree)); at the paper's settings
    degree 20 is right to 2e-4 in V4 and degree 40 to 1e-5. ReLU converges like a power of the degree: 10 is right to 1e-4,
    40 to 1e-6 (one input). `Solution.truncation` estimates what is missing, from the same run at three quarters of the
    degree. For odd activations degree 2 has the V4 of `GOnly` in the continuum; others also feel the mean of phi, degree 1.
    The state grows as N^4 degree^2: for more than a few inputs solve sub-kernels, since V4_ab,cd needs a, b, c, d alone.
    """

    degree: int = eqx.field(static=True, default=30)

    def __check_init__(self):
        check_count(self.degree, "degree", 2)

    def init(self, model: Model, k):
        inputs, count = input_count(k.shape[-1]), k.shape[-1]
        each = (self.degree, modes(self.degree, inputs)[1].size)
        shapes = ((count, count, *each), (2, count, count), (2, count))
        zeros = [jnp.zeros(shape, k.dtype) for shape in shapes]
        return TowerState(k, *zeros)

    def drift(self, model: Model, state: TowerState) -> TowerState:
        rate = self._rates(model, state, 0.0)
        return rate._replace(u=rate.u + rotation_drift(frame_drift(state.k, rate.k), state.u))

    def step(self, model: Model, state: TowerState, dt) -> TowerState:
        new = TowerState(*(y + dt * dy for y, dy in zip(state, self._rates(model, state, dt), strict=True)))
        return new._replace(u=rotate(frame(new.k).M @ frame(state.k).L, new.u))

    def moments(self, model: Model, state: TowerState) -> Moments:
        return Moments(*(x[0] for x in self._both_levels(model, state)))

    def truncation(self, model: Model, state: TowerState) -> Moments:
        return Moments(*(jnp.abs(x[0] - x[1]) for x in self._both_levels(model, state)))

    def _both_levels(self, model: Model, state: TowerState) -> tuple[Array, ...]:
        y = self._sigma_covariances(model, state)
        response = self._response(state)
        V4 = wick(state.k) + response + response.T + state.v
        cross = apply_slope(y.slope, wick(state.k) + response) + y.with_h
        return jnp.stack([state.k, state.k]), V4, state.K1, jnp.swapaxes(cross, 1, 2), y.with_y, y.mean

    def _response(self, state) -> Float[Array, "P P"]:
        """Cov(h_p, xi(phi phi)_q): phi_c phi_d = L11 psi_1 (L21 psi_1 + L22 psi_2) has modes of degree two only."""
        L = frame(state.k).L
        root = np.sqrt(2).astype(L.dtype)
        response = state.u[:, :, 1, 0] * root * L[:, 0, 0] * L[:, 1, 0]
        if state.u.shape[-1] > 1:
            response = response + state.u[:, :, 1, 1] * L[:, 0, 0] * L[:, 1, 1]
        return response

    def _sigma_covariances(self, model: Model, state: TowerState) -> SigmaCovariances:
        k, u, v, K1 = state
        f, triple = frame(k), triples(input_count(k.shape[0]))
        _, slope, curvature = model.activation.expansion(k)
        functions = pair_functions(model.activation, f, self.degree)
        m = np.arange(1, self.degree + 1)
        levels = (m <= np.array([[self.degree], [max(2, 3 * self.degree // 4)]])).astype(k.dtype)  # (2, J)
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
        with_bend = einsum("lm,ptms,ptms->lp", levels, functions.bend, u[triple, np.arange(k.shape[0])[:, None]])
        hess_v = einsum("ptu,lptu->lp", curvature, v[:, triple[:, :, None], triple[:, None, :]])
        mean = chi(K1) + 0.5 * (hess_v + with_bend)
        return SigmaCovariances(slope, free + apply_slope(slope, u), with_h, with_y, mean)

    def _rates(self, model: Model, state: TowerState, dt) -> TowerState:
        """Increments over one layer divided by dt, or the drift at dt = 0, in the frames at hand."""
        C_W = model.C_W.astype(state.k.dtype)
        y = self._sigma_covariances(model, state)
        return TowerState(
            model.q(state.k),
            C_W * y.with_modes,
            C_W * (y.with_h + jnp.swapaxes(y.with_h, 1, 2)) + dt * C_W**2 * y.with_y,
            C_W * y.mean,
        )
