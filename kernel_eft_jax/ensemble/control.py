r"""The control variate: a copy of each network that interacts with nothing, and its linear response.

Independent neurons driven by the network's own normals, but with the deterministic covariance Q(K0), have kernels G_free and S_free of
exactly known mean. Along the same path runs the linear response h of the infinite-width limit,

$$h' = h + \epsilon^2 (C_W \xi + \chi h), \qquad \xi = S_\text{free} - E_{K_0}[s s], \qquad E[h] = 0$$

so that $C_G = G_\text{free} + h$ and $C_S = S_\text{free} + \chi h / C_W$ have means K0 and E[ss] at every width, and follow G and S up to O(1/n).
The mean of G moves by the mean of S alone, $E[G'] = E[G] + \epsilon^2 (C_b + C_W E[S])$, so that the sum

$$R' = R + \epsilon^2 C_W (S - C_S), \qquad n E[R] = n (E[G] - K_0) = K_1$$

gives K1 without the noise of the increments: several times smaller an error than n E[G - C_G]. The fourth moment
$F_{ab} = \frac1n \sum_i \phi_i(a)^2 \phi_i(b)^2$ has a control of its own, of mean $K_{aa} K_{bb} + 2 K_{ab}^2$ (K for K0):

$$C_F = F_\text{free} + K_{bb} h_{aa} + K_{aa} h_{bb} + 4 K_{ab} h_{ab}$$
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from ..maps import apply_slope
from ..model import Model
from ..network import semidefinite_cholesky
from ..pairs import triples, unpack
from .samplers import as_rows, gram, mix


class Path(NamedTuple):
    """The network of infinite width, layer by layer: kernel, E[ss], its slope, and the factor of Q(K0)."""

    K0: Float[Array, "layers P"]
    moment: Float[Array, "layers P"]
    slope: Float[Array, "layers P 3"]
    factor: Float[Array, "layers N N"]


@eqx.filter_jit
def infinite_width(model: Model, k0: Float[Array, " P"], eps: Float[Array, ""], depth: int) -> Path:
    """Depths 0 to `depth` of the recursion K0' = K0 + eps^2 Q(K0)."""

    def layer(k, _):
        moment, slope, _ = model.activation.expansion(k)
        q = model.C_b + model.C_W * moment
        return k + eps**2 * q, Path(k, moment, slope, semidefinite_cholesky(unpack(q)))

    return jax.lax.scan(layer, k0, None, length=depth + 1)[1]


class Free(NamedTuple):
    """State of the control: the free neurons and their sigma-kernel, the linear response, and the sum R."""

    phi: Float[Array, "N n B"]
    S: Float[Array, "P B"]
    h: Float[Array, "P B"]
    R: Float[Array, "P B"]


def start(phi: Float[Array, "N n B"], S: Float[Array, "P B"]) -> Free:
    """At depth zero the free neurons are the network's own."""
    return Free(phi, S, jnp.zeros_like(S), jnp.zeros_like(S))


def advance(
    free: Free, S: Float[Array, "P B"], model: Model, path: Path, noise: Complex[Array, "half B"], eps: Float[Array, ""]
) -> Free:
    """One layer, with `path` at that layer and S of the network."""
    response = apply_slope(path.slope, free.h)
    phi = free.phi + eps * mix(path.factor[:, :, None], as_rows(noise, free.phi.shape))
    step = eps**2 * model.C_W
    return Free(
        phi,
        gram(model.activation(phi)),
        free.h + step * (free.S - path.moment[:, None] + response),
        free.R + step * (S - free.S - response),
    )


def differences(
    free: Free, G: Float[Array, "P B"], S: Float[Array, "P B"], F: Float[Array, "P B"], path: Path
) -> tuple[Float[Array, "P B"], Float[Array, "P B"], Float[Array, "P B"], Float[Array, "P B"]]:
    """G - C_G, S - C_S, R and F - C_F, all of order 1/n, at the depth of `path`."""
    C_S = free.S + apply_slope(path.slope, free.h)
    aa, bb, ab = triples(free.phi.shape[0]).T
    K, h = path.K0[:, None], free.h
    C_F = gram(free.phi**2) + K[bb] * h[aa] + K[aa] * h[bb] + 4 * K[ab] * h[ab]
    return G - gram(free.phi) - h, S - C_S, free.R, F - C_F
