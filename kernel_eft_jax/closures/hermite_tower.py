r"""The hierarchy that is exact at order 1/n, truncated at a degree.

At leading order the fluctuation of any average over neurons is that of independent neurons, xi, plus a linear response:
$Y(f) = \xi(f) + \tfrac12 E[\nabla^2 f] : h$ with $\dot h = C_W y$ and $y = Y(s s)$. Wick monomials W are martingales of xi, hence
covariances u = Cov(h, xi(W)), v = Cov(h, h) close, degree by degree:

$$\dot u = C_W \mathrm{Cov}(y, \xi(W)), \qquad \dot v = C_W (\mathrm{Cov}(y, h) + \mathrm{Cov}(h, y)), \qquad V_4 = \mathrm{Wick} + u_{\phi\phi} + u_{\phi\phi}^T + v$$

The mean follows from the curvature of s s along the accumulated covariance b of y with the modes,
$\dot b = \tfrac12 C_W \mathrm{Cov}(Y(W), y)$, $\dot K_1 = C_W (\chi K_1 + \sum E[\partial\partial(s s) W]\, b)$, chi here without C_W. One layer adds
$\epsilon^4 C_W^2 \mathrm{Cov}(y, y)$ to v and half of that to the h in Y(W).
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import check_count
from ..model import Model, apply_slope
from ..pairs import input_count, pairs, triples, wick
from .base import Closure, Moments
from .chaos import (
    frame,
    frame_drift,
    mode_covariances,
    modes,
    pair_functions,
    rotate,
    rotation_drift,
)


class TowerState(NamedTuple):
    """Covariances with h; the leading axis of v, b and K1 holds the full degree and a lower one to compare with."""

    k: Float[Array, " P"]
    u: Float[Array, "P P J S"]
    v: Float[Array, "2 P P"]
    b: Float[Array, "2 P 3 J S"]
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
    Where two inputs are copies of each other, derivatives along directions that would separate them are left out.
    """

    degree: int = eqx.field(static=True, default=30)

    def __check_init__(self):
        check_count(self.degree, "degree", 2)

    def init(self, model: Model, k):
        inputs, count = input_count(k.shape[-1]), k.shape[-1]
        each = (self.degree, modes(self.degree, inputs)[1].size)
        shapes = ((count, count, *each), (2, count, count), (2, count, 3, *each), (2, count))
        zeros = [jnp.zeros(shape, k.dtype) for shape in shapes]
        return TowerState(k, *zeros)

    def drift(self, model: Model, state: TowerState) -> TowerState:
        rate = self._rates(model, state, 0.0)
        B = frame_drift(frame(state.k), rate.k)
        return rate._replace(
            u=rate.u + rotation_drift(B, state.u), b=rate.b + self._per_pair(rotation_drift, B, state.b)
        )

    def step(self, model: Model, state: TowerState, dt) -> TowerState:
        k, u, v, b, K1 = super_step = TowerState(
            *(y + dt * dy for y, dy in zip(state, self._rates(model, state, dt), strict=True))
        )
        G = frame(k).M @ frame(state.k).L
        return super_step._replace(u=rotate(G, u), b=self._per_pair(rotate, G, b))

    def moments(self, model: Model, state: TowerState) -> Moments:
        y = self._sigma_covariances(model, state)
        response = self._response(state)
        cross = apply_slope(y.slope, wick(state.k) + response) + y.with_h[0]
        return Moments(state.k, self._V4(state)[0], state.K1[0], cross.T, y.with_y[0], y.mean[0])

    def truncation(self, model: Model, state: TowerState) -> Moments:
        V4 = self._V4(state)
        return Moments(jnp.zeros_like(state.k), jnp.abs(V4[0] - V4[1]), jnp.abs(state.K1[0] - state.K1[1]))

    def _response(self, state) -> Float[Array, "P P"]:
        """Cov(h_p, xi(phi phi)_q): phi_c phi_d = L11 psi_1 (L21 psi_1 + L22 psi_2) has modes of degree two only."""
        L = frame(state.k).L
        root = np.sqrt(2).astype(L.dtype)
        response = state.u[:, :, 1, 0] * root * L[:, 0, 0] * L[:, 1, 0]
        if state.u.shape[-1] > 1:
            response = response + state.u[:, :, 1, 1] * L[:, 0, 0] * L[:, 1, 1]
        return response

    def _V4(self, state) -> Float[Array, "2 P P"]:
        response = self._response(state)
        return wick(state.k) + response + response.T + state.v

    def _per_pair(self, move, G, b):
        """A map on the modes of pair c, applied to the accumulators b[level, c, aa bb ab, modes]."""
        return jnp.swapaxes(move(G, jnp.swapaxes(b, 1, 2)), 1, 2)

    def _sigma_covariances(self, model: Model, state: TowerState) -> SigmaCovariances:
        k, u, v, b, K1 = state
        f = frame(k)
        slope = model.activation.expansion(k).slope
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
        mean = chi(K1) + einsum("lm,ptms,lptms->lp", levels, functions.bend, b)
        return SigmaCovariances(slope, free + apply_slope(slope, u), with_h, with_y, mean)

    def _rates(self, model: Model, state: TowerState, dt) -> TowerState:
        """Increments over one layer divided by dt, or the drift at dt = 0, in the frames at hand."""
        C_W = model.C_W.astype(state.k.dtype)
        y = self._sigma_covariances(model, state)
        halfway = y.with_h + 0.5 * dt * C_W * y.with_y
        return TowerState(
            model.q(state.k),
            C_W * y.with_modes,
            C_W * (y.with_h + jnp.swapaxes(y.with_h, 1, 2)) + dt * C_W**2 * y.with_y,
            0.5 * C_W * self._curvature_sources(frame(state.k), y.with_modes, halfway),
            C_W * y.mean,
        )

    def _curvature_sources(self, f, with_modes, with_h):
        r"""$\mathrm{Cov}(Y(W_{ab}), y_{cd})$ for cd in (aa, bb, ab): xi, and at degree two the response $\tfrac12 E[\nabla^2 W] : h$."""
        count = f.M.shape[0]
        triple = triples(input_count(count))
        from_modes = with_modes[triple, np.arange(count)[:, None]]  # (P, 3, J, S)
        (m11, _), (m21, m22) = jnp.moveaxis(f.M, 0, -1)
        zero, root = jnp.zeros_like(m11), np.sqrt(2).astype(f.M.dtype)
        weights = [  # of (h_aa, h_bb, h_ab) in M h M^T, for the modes (2, 0), (1, 1), (0, 2)
            (m11**2 / root, zero, zero),
            (m11 * m21, zero, m11 * m22),
            (m21**2 / root, m22**2 / root, root * m21 * m22),
        ]
        columns = min(3, with_modes.shape[-1])
        stacked = jnp.stack([jnp.stack(row, -1) for row in weights[:columns]], -1)  # (P, 3, columns)
        h_pairs = with_h[:, triple[:, :, None], triple[:, None, :]]  # (2, P, 3 of y, 3 of h)
        response = jnp.einsum("lpts,psk->lptk", h_pairs, stacked, precision="highest")
        everything = jnp.broadcast_to(from_modes, (2, *from_modes.shape))
        return everything.at[..., 1, :columns].add(response)
