r"""The paper's closure (Kawase and Ota 2026): the state is the kernel alone, neurons stay Gaussian given G.

$$\dot K_0 = Q(K_0), \qquad \dot V_4 = \chi V_4 + V_4 \chi^T + \Sigma(K_0, Q(K_0)), \qquad \dot K_1 = \chi K_1 + \tfrac12 \mathrm{Hess} : V_4$$

from the Wishart covariance $V_4(0) = K_{ac} K_{bd} + K_{ad} K_{bc}$ and K1(0) = 0. K1 is the paper's K1_EFT.
"""

import jax.numpy as jnp

from ..model import Model, apply_slope, contract_curvature
from ..pairs import sigma_product, wick
from .base import Closure, Moments


class GOnly(Closure[Moments]):
    """State (K0, V4, K1), N(N+1)/2 + (N(N+1)/2)^2 + N(N+1)/2 numbers: cheap at any N.

    Its V4 is off by a few per cent for odd activations, where it is that of HermiteTower(2) in the continuum, and by 30 per cent for GELU,
    SiLU or ReLU at t = 1; its K1 by a factor of two and more (`validity_window` says for your setting). With `eps` it is the paper's Euler
    recursion, without the eps^4 terms of a real layer. Use `HermiteTower` where that matters.
    """

    def init(self, model: Model, k):
        return Moments(k, wick(k), jnp.zeros_like(k))

    def drift(self, model: Model, state: Moments) -> Moments:
        q, slope, curvature = model.expansion(state.K0)
        transport = apply_slope(slope, state.V4)
        return Moments(
            q,
            transport + transport.T + sigma_product(state.K0, q),
            apply_slope(slope, state.K1) + 0.5 * contract_curvature(curvature, state.V4),
        )

    def moments(self, model: Model, state: Moments) -> Moments:
        return state
