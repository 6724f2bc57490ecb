r"""Covariance of the kernel between depths, $n\, \mathrm{Cov}(G(l), G(m))$, for each closure.

What later layers remember of g(m) moves by the closure's own linear equations. Where the closure is Markovian that is the
response of its state, $X' = X + \epsilon^2 A X$ from X = V4(m). The Hermite tower remembers more: with its modes W of xi,

$$F = \mathrm{Cov}(g(m), W) \text{ carried along}, \qquad c' = c + \epsilon^2 (C_W\, \mathrm{Cov}(\xi(ss), g(m)) + \chi c), \qquad
  n\, \mathrm{Cov}(G(l), G(m)) = \mathrm{Cov}(\xi(\phi\phi), g(m)) + c, \quad c = \mathrm{Cov}(h(l), g(m))$$
"""

from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..closures import Closure, HermiteTower, SigmaKernel
from ..closures.hermite_modes import frame, mode_covariances, pair_functions, rotate
from ..model import Model, apply_slope


@singledispatch
def remember(closure: Closure, model: Model, state: Any) -> Any:
    """What the layers to come will know of the kernel now."""
    return closure.moments(model, state).V4


@singledispatch
def advance(closure: Closure, model: Model, state: Any, memory: Any, dt: Float[Array, ""]) -> Any:
    """A memory one layer on, from the state before that layer."""
    _, slope, _ = model.expansion(closure.moments(model, state).K0)
    return memory + dt * apply_slope(slope, memory)


@singledispatch
def recall(closure: Closure, model: Model, state: Any, memory: Any) -> Float[Array, "P P"]:
    """Width times the covariance of the kernel now (first axis) with the one remembered."""
    return memory


@remember.register
def _(closure: SigmaKernel, model, state):
    return state.V[:, : state.k.shape[0]]


@advance.register
def _(closure: SigmaKernel, model, state, memory, dt):
    # Fluctuations and the corrections of the means, (g, y) and (K1, m_S), obey one linear equation.
    P = state.k.shape[0]

    def means(z):
        after = closure.step(model, state._replace(K1=z[:P], m_S=z[P:]), dt)
        return jnp.concatenate([after.K1, after.m_S])

    response = jax.linearize(means, jnp.zeros_like(memory[:, 0]))[1]
    return jax.vmap(response, in_axes=1, out_axes=1)(memory)


@recall.register
def _(closure: SigmaKernel, model, state, memory):
    return memory[: state.k.shape[0]]


class Memory(NamedTuple):
    """Covariances of the remembered g (first axis of `modes`, last of `response`) with the modes of xi and with h."""

    modes: Float[Array, "P P J S"]
    response: Float[Array, "P P"]


@remember.register
def _(closure: HermiteTower, model, state):
    f, product = frame(state.k), _product(state)
    modes = state.u + mode_covariances(state.k, f, product)
    return Memory(modes, state.v[0] + _contract(product, state.u).T)


@advance.register
def _(closure: HermiteTower, model, state, memory, dt):
    f = frame(state.k)
    C_W = model.C_W.astype(state.k.dtype)
    q, slope, _ = model.expansion(state.k)
    value = pair_functions(model.activation, f, closure.degree).value
    drive = C_W * _contract(value, memory.modes) + apply_slope(slope, memory.response)
    later = frame(state.k + dt * q).M @ f.L
    return Memory(rotate(later, memory.modes), memory.response + dt * drive)


@recall.register
def _(closure: HermiteTower, model, state, memory):
    return memory.response + _contract(_product(state), memory.modes)


def _contract(functions, modes):
    """Cov(F_p, g_q) of functions of each pair p, from their Hermite coefficients and the covariances of g_q with its modes."""
    return jnp.einsum("pms,qpms->pq", functions, modes, precision="highest")


def _product(state):
    """Hermite coefficients of phi_a phi_b = L11 psi_1 (L21 psi_1 + L22 psi_2), of degree two."""
    L = frame(state.k).L
    product = jnp.zeros((L.shape[0], *state.u.shape[2:]), L.dtype)
    product = product.at[:, 1, 0].set(jnp.sqrt(2.0).astype(L.dtype) * L[:, 0, 0] * L[:, 1, 0])
    return product if product.shape[-1] == 1 else product.at[:, 1, 1].set(L[:, 0, 0] * L[:, 1, 1])
