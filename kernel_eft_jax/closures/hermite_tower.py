r"""The hierarchy that is exact at order 1/n, truncated at a degree.

At leading order the fluctuation of any average over neurons is that of independent neurons, xi, plus the response to
$h = C_W \int y\, ds$ with y the fluctuation of S: $Y(f) = \xi(f) + \tfrac12 E[\nabla^2 f] : h$, so that $\dot h = C_W \xi(ss) + \chi h$. Wick
monomials W are martingales of xi, hence covariances close degree by degree (p, q pairs; W_q the modes of pair q):

$$\dot u = \mathrm{Cov}(\dot h, \xi(W)) = \chi u + C_W \mathrm{Cov}(ss, W), \qquad \dot v = \mathrm{Cov}(\dot h, h) + \mathrm{transpose}, \qquad V_4 = \mathrm{Wick} + u_{\phi\phi} + u_{\phi\phi}^T + v$$

with u = Cov(h, xi(W)), v = Cov(h, h). The mean follows from the curvature of ss along the accumulated covariance of y,
$\dot b = \tfrac12 \mathrm{Cov}(Y(W), \dot h)$ and $\dot K_1 = \chi K_1 + C_W \sum E[\partial\partial(ss)\, W]\, b$. One layer adds terms of second order in eps^2.
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


class HermiteTower(Closure[TowerState]):
    """V4 and K1 exact at order 1/n as the degree grows; degree 2 has the V4 of `GOnly`.

    For analytic activations the degree converges geometrically: at the paper's settings degree 20 is right to 2e-4 in V4,
    degree 40 to 1e-5. `Solution.truncation` estimates what is missing, from the same run at three quarters of the degree.
    In the layer recursion it is exact at order 1/n for the real network at any eps. The state grows as N^4 degree^2: for
    more than a few inputs solve sub-kernels, since V4_ab,cd needs the inputs a, b, c, d alone.
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
        rate, B = self._rates(model, state, 0.0)
        return rate._replace(
            u=rate.u + rotation_drift(B, state.u), b=rate.b + self._per_pair(rotation_drift, B, state.b)
        )

    def step(self, model: Model, state: TowerState, dt) -> TowerState:
        rate, _ = self._rates(model, state, dt)
        k, u, v, b, K1 = (y + dt * dy for y, dy in zip(state, rate, strict=True))
        G = frame(k).M @ frame(state.k).L
        return TowerState(k, rotate(G, u), v, self._per_pair(rotate, G, b), K1)

    def moments(self, model: Model, state: TowerState) -> Moments:
        return Moments(state.k, self._V4(state)[0], state.K1[0])

    def truncation(self, model: Model, state: TowerState) -> Moments:
        V4 = self._V4(state)
        return Moments(jnp.zeros_like(state.k), jnp.abs(V4[0] - V4[1]), jnp.abs(state.K1[0] - state.K1[1]))

    def _V4(self, state):
        """Both levels of V4, (2, P, P)."""
        L = frame(state.k).L
        # phi_c phi_d = L11 psi_1 (L21 psi_1 + L22 psi_2) in the modes of its pair: degree two only.
        product = jnp.sqrt(2.0).astype(L.dtype) * L[:, 0, 0] * L[:, 1, 0]
        response = state.u[:, :, 1, 0] * product
        if state.u.shape[-1] > 1:
            response = response + state.u[:, :, 1, 1] * L[:, 0, 0] * L[:, 1, 1]
        return wick(state.k) + response + response.T + state.v

    def _per_pair(self, move, G, b):
        """A map on the modes of pair c, applied to the accumulators b[level, c, aa bb ab, modes]."""
        return jnp.swapaxes(move(G, jnp.swapaxes(b, 1, 2)), 1, 2)

    def _rates(self, model: Model, state: TowerState, dt) -> tuple[TowerState, Float[Array, "P 2 2"]]:
        """Increments over one layer divided by dt, or the drift at dt = 0, in the frames at hand; and the frames' own drift."""
        k, u, v, b, K1 = state
        C_W = model.C_W.astype(k.dtype)
        q, slope, _ = model.expansion(k)
        f = frame(k)
        functions = pair_functions(model.activation, f, self.degree)
        m = np.arange(1, self.degree + 1)
        levels = (m <= np.array([[self.degree], [max(2, 3 * self.degree // 4)]])).astype(k.dtype)  # (2, J)
        value = levels[:, None, :, None] * functions.value  # (2, P, J, S)
        free = mode_covariances(k, f, functions.value)

        def chi(y):  # chi on the pair axis of (2, P, ...)
            return jnp.swapaxes(apply_slope(slope, jnp.swapaxes(y, 0, 1)), 0, 1)

        def einsum(formula, *operands):
            return jnp.einsum(formula, *operands, precision="highest")

        # Covariances of dh/dt (pair p) with modes W, with h, and with itself.
        with_modes = C_W * free + apply_slope(slope, u)
        X = C_W * einsum("lpms,qpms->lpq", value, u)
        with_h = X + chi(v)
        mixed = jnp.swapaxes(chi(jnp.swapaxes(with_h, 1, 2)), 1, 2)  # Cov(X + chi v, chi h)
        with_self = (
            C_W**2 * einsum("lqms,pqms->lpq", value, free) + mixed + jnp.swapaxes(chi(jnp.swapaxes(X, 1, 2)), 1, 2)
        )
        b_rate = 0.5 * self._curvature_sources(f, with_modes, with_h + 0.5 * dt * with_self)
        K1_rate = chi(K1) + C_W * einsum("lm,ptms,lptms->lp", levels, functions.bend, b)
        rate = TowerState(q, with_modes, with_h + jnp.swapaxes(with_h, 1, 2) + dt * with_self, b_rate, K1_rate)
        return rate, frame_drift(f, q)

    def _curvature_sources(self, f, with_modes, with_h):
        r"""$\mathrm{Cov}(Y(W_{ab}), \dot h_{cd})$ for cd in (aa, bb, ab): xi, and at degree two the response $\tfrac12 E[\nabla^2 W] : h$."""
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
        h_pairs = with_h[:, triple[:, :, None], triple[:, None, :]]  # (2, P, 3 of dh, 3 of h)
        response = jnp.einsum("lpts,psk->lptk", h_pairs, stacked, precision="highest")
        everything = jnp.broadcast_to(from_modes, (2, *from_modes.shape))
        return everything.at[..., 1, :columns].add(response)
