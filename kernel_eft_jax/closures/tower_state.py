"""What a tower carries, what the branch reads of the stream in Hermite modes, and how modes turn in a layer."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..activations import Activation
from ..expectations.hermite_modes import PairFunctions, frame, pair_functions
from ..kernel_maps import Local
from ..linear import matmul
from ..selecting import safe_root
from .tower_bounds import Bounds


class TowerState(NamedTuple):
    """Covariances with h, and bounds of what the modes beyond the degree would add."""

    k: Float[Array, " P"]
    u: Float[Array, "P ... J S"]
    v: Float[Array, "P P"]
    K1: Float[Array, " P"]
    bounds: Bounds


class TowerRead(NamedTuple):
    """What the branch reads at a kernel: E[s s] with its derivatives, and s s in Hermite modes."""

    response: Local
    functions: PairFunctions


def read_in_modes(activation: Activation, k: Float[Array, " P"], degree: int) -> TowerRead:
    """What a branch that begins with `activation` reads at the packed kernel k."""
    response = Local(*activation.expansion(k), jnp.zeros((), k.dtype))
    return TowerRead(response, pair_functions(activation, frame(k), degree))


def frame_turn(k: Float[Array, " P"], k_next: Float[Array, " P"], shrink: Float[Array, ""]) -> Float[Array, "P 2 2"]:
    """The turn of each pair's frame in a layer that takes the kernel k to k_next and multiplies the stream by a, a^2 =
    `shrink`; its derivative is finite at a = 0, since plain networks are differentiated too."""
    return matmul(frame(k_next).M, safe_root(shrink) * frame(k).L)


def contract_modes(functions: Float[Array, "P J S"], modes: Float[Array, "P P J S"]) -> Float[Array, "P P"]:
    """Cov(F_p, g_q) for functions F_p of each pair p, from their Hermite coefficients and the covariances of g_q with
    the modes of p."""
    return jnp.einsum("pms,qpms->pq", functions, modes, precision="highest")


def product_modes(state: TowerState) -> Float[Array, "P J S"]:
    """Hermite coefficients of phi_a phi_b = L11 psi_1 (L21 psi_1 + L22 psi_2), of degree two."""
    L = frame(state.k).L
    modes = jnp.zeros((L.shape[0], *state.u.shape[2:]), L.dtype)
    modes = modes.at[:, 1, 0].set(jnp.sqrt(2.0).astype(L.dtype) * L[:, 0, 0] * L[:, 1, 0])
    return modes if modes.shape[-1] == 1 else modes.at[:, 1, 1].set(L[:, 0, 0] * L[:, 1, 1])
