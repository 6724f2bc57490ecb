"""Kernels of sampled networks from any framework: what must hold of them before anything is concluded from them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..checks import LEAST_NETWORKS


def check_networks(
    G: np.ndarray, name: str, width: float, depths: Sequence[str], where: str = "", zeros: bool = False
) -> Float[np.ndarray, "B T N N"]:
    """Kernels (networks, depths, inputs, inputs) in float64, after a check that they are finite and symmetric, with
    variances on their diagonal, and of different networks.

    `name` and `where` say in the message which kernels these are, and `depths` at which depths. With `zeros` a variance
    may be zero, as in a network without an active neuron.
    """
    if not jnp.issubdtype(G.dtype, jnp.floating) and not jnp.issubdtype(G.dtype, jnp.integer):
        raise ValueError(f"Argument `{name}` must be real numbers, but has dtype {G.dtype}: give kernels as floats.")
    # The rounding allowed is that of float32, since programs that compute in float32 often store in float64.
    eps = max(float(jnp.finfo(d).eps) for d in (jnp.float32, G.dtype) if jnp.issubdtype(d, jnp.floating))
    G = G.astype(np.float64)

    def refuse(wrong, law, remedy):
        if wrong.any():
            i, depth, a, b = np.argwhere(wrong)[0]
            transpose = f" and G[{b}, {a}] is {G[i, depth, b, a]:.6g}" if a != b else ""
            raise ValueError(
                f"Argument `{name}` must be {law}, but G[{a}, {b}] of network {i}{where} at {depths[depth]} is "
                f"{G[i, depth, a, b]:.6g}{transpose}. {remedy}"
            )

    remedy = "Use only the layers before kernels overflow, or leave out a network that is damaged."
    refuse(~np.isfinite(G), "finite", remedy)
    remedy = "Give the kernels phi @ phi.T / width themselves, not their deviations from a mean."
    refuse(np.eye(G.shape[-1], dtype=bool) & (G < 0), "kernels with variances on their diagonal", remedy)
    remedy = "No neuron was active, or these entries were filled in: leave such networks or inputs out."
    refuse(np.eye(G.shape[-1], dtype=bool) & (G == 0) & (not zeros), "kernels with positive variances", remedy)
    # In thousands of kernels the sums over n neurons in two orders differed by 0.7 eps sqrt(n) at most.
    variance = np.diagonal(G, axis1=2, axis2=3)
    rounding = 8 * eps * np.sqrt(width * variance[..., :, None] * variance[..., None, :])
    remedy = "Check the order of its axes; if this is rounding, give the mean of G and its transpose."
    refuse(np.abs(G - G.swapaxes(2, 3)) > rounding, "symmetric", remedy)
    different = len({network.tobytes() for network in G})
    if different < LEAST_NETWORKS or different <= len(G) / 2:
        raise ValueError(
            f"Argument `{name}` must hold the kernels of different networks, but of its {len(G)} networks{where} only "
            f"{different} differ: draw each with weights of its own, and give each once."
        )
    return G
