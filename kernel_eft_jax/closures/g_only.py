r"""The paper's closure (Kawase and Ota 2026): the state is the kernel alone, neurons stay Gaussian given G.

One layer, $a^2 = 1 - c \epsilon^2$, with chi and Hess the derivatives of Q at K0 and $C_Q = \chi V_4 \chi^T$ + the
noise of hidden neurons:

$$K_0' = a^2 K_0 + \epsilon^2 Q, \qquad
  V_4' = a^4 V_4 + a^2 \epsilon^2 (\chi V_4 + V_4 \chi^T + \Sigma(K_0, Q)) + \epsilon^4 (C_Q + \mathrm{Wick}(Q)), \qquad
  K_1' = a^2 K_1 + \epsilon^2 (\chi K_1 + \tfrac12 \mathrm{Hess} : V_4)$$

from the Wishart covariance $V_4(0) = K_{ac} K_{bd} + K_{ad} K_{bc}$ and K1(0) = 0. In the continuum these are the
paper's equations.
"""

from typing import ClassVar

import jax.numpy as jnp

from ..kernel_maps import apply_all, carry_all
from ..model import Model
from ..pairs import sigma_product, wick
from .base import Closure, Moments, pair_units


class GOnly(Closure[Moments]):
    """State (K0, V4, K1), N(N+1)/2 + (N(N+1)/2)^2 + N(N+1)/2 numbers: cheap at any N.

    Exact at order 1/n if the branch begins with a matrix or a norm (two matrices, the MLP block of a transformer): then
    G alone determines the law of the next G. For one matrix it is an approximation. Its V4 is off by a few per cent for
    odd activations, where it is that of HermiteTower(2) in the continuum, and by 30 per cent for GELU, SiLU or ReLU at
    t = 1. Its K1 is the paper's K1_EFT, off by a factor of two and more. `validity_window` measures these errors for
    your setting; use `HermiteTower` where they matter.
    """

    cheaper: ClassVar[str] = ""

    def init(self, model: Model, k):
        return Moments(k, wick(k), jnp.zeros_like(k))

    def step(self, model: Model, state: Moments, dt) -> Moments:
        responses, shrink = model.responses(state.K0), model.shrink(dt)
        q = responses[-1].value
        transport = apply_all(responses, state.V4)
        m_Q, C_Q = carry_all(responses, state.K1, state.V4)
        rate = transport + transport.T + sigma_product(state.K0, q)
        return Moments(
            shrink * state.K0 + dt * q,
            shrink**2 * state.V4 + shrink * dt * rate + dt**2 * (C_Q + wick(q)),
            shrink * state.K1 + dt * m_Q,
        )

    def drift(self, model: Model, state: Moments) -> Moments:
        # Written out: a rate has no terms of order dt^2, which at many inputs are most of the work of a layer.
        responses, c = model.responses(state.K0), model.decay.astype(state.K0.dtype)
        q = responses[-1].value
        transport = apply_all(responses, state.V4)
        rate = transport + transport.T + sigma_product(state.K0, q) - 2 * c * state.V4
        m_Q, _ = carry_all(responses, state.K1, state.V4)
        return Moments(q - c * state.K0, rate, m_Q - c * state.K1)

    def moments(self, model: Model, state: Moments) -> Moments:
        return state

    def units(self, model: Model, k):
        unit = pair_units(k)
        return Moments(unit, unit[:, None] * unit[None, :], unit)

    def remember(self, model: Model, state: Moments):
        return state.V4

    def follow(self, model: Model, state: Moments, memory, dt):
        return model.shrink(dt) * memory + dt * apply_all(model.responses(state.K0), memory)

    def recall(self, model: Model, state: Moments, memory):
        return memory
