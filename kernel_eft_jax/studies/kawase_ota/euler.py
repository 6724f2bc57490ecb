r"""The paper's layers: explicit Euler steps of its equations, dt = eps^2, without the terms of order eps^4 of a real
layer.

$$K_0' = K_0 + dt\, Q, \qquad V_4' = V_4 + dt\, (\chi V_4 + V_4 \chi^T + \Sigma(K_0, Q)), \qquad
  K_1' = K_1 + dt\, (\chi K_1 + \tfrac12 \mathrm{Hess} : V_4)$$
"""

import jax
import jax.numpy as jnp

import kernel_eft_jax as keft
from kernel_eft_jax.pairs import pack, sigma_product, unpack, unpack_covariance


class Euler(keft.GOnly):
    """GOnly with the published step from layer to layer; its state is packed, K0 (P,), V4 (P, P), K1 (P,)."""

    def step(self, model: keft.Model, state, dt):
        K0 = unpack(state.K0)

        def chi(h):
            return pack(model.chi(K0, unpack(h)))

        q, transport = pack(model.Q(K0)), jax.vmap(chi, 1, 1)(state.V4)
        hess = pack(model.hess(K0, unpack_covariance(state.V4)))
        return state._replace(
            K0=state.K0 + dt * q,
            V4=state.V4 + dt * (transport + transport.T + sigma_product(state.K0, q)),
            K1=state.K1 + dt * (chi(state.K1) + 0.5 * hess),
        )


class SourceOnly(keft.GOnly):
    """The V4 that the paper calculates from the sources alone: chi is left out, so that only the sampling noise of each
    layer adds up. K1 stays zero."""

    def step(self, model: keft.Model, state, dt):
        q = pack(model.Q(unpack(state.K0)))
        return state._replace(
            K0=state.K0 + dt * q, V4=state.V4 + dt * sigma_product(state.K0, q), K1=jnp.zeros_like(state.K1)
        )
