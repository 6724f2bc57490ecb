r"""The control variate: a copy of each network that interacts with nothing, and its linear response.

Independent neurons driven by the network's own normals, but with the deterministic covariance Q(K0), have kernels G_free and S_free of
exactly known mean. Along the same path runs the linear response h of the infinite-width limit,

$$h' = h + \epsilon^2 (C_W \xi + \chi h), \qquad \xi = S_\text{free} - E_{K_0}[s s], \qquad E[h] = 0$$

so that $C_G = G_\text{free} + h$ and $C_S = S_\text{free} + \chi h / C_W$ have means K0 and E[ss] at every width, and follow G and S up to O(1/n).
"""

from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Complex, Float

from ..model import Model, apply_slope
from ..network import semidefinite_cholesky
from ..pairs import unpack
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
    """State of the control: the free neurons and the linear response."""

    phi: Float[Array, "N n B"]
    h: Float[Array, "P B"]


def advance(free: Free, model: Model, path: Path, noise: Complex[Array, "half B"], eps: Float[Array, ""]) -> Free:
    """One layer, with `path` at that layer."""
    S = gram(model.activation(free.phi))
    response = model.C_W * (S - path.moment[:, None] + apply_slope(path.slope, free.h))
    eta = mix(path.factor[:, :, None], as_rows(noise, free.phi.shape))
    return Free(free.phi + eps * eta, free.h + eps**2 * response)


def controls(free: Free, model: Model, path: Path) -> tuple[Float[Array, "P B"], Float[Array, "P B"]]:
    """C_G and C_S, whose means are exactly K0 and E[ss]."""
    return gram(free.phi) + free.h, gram(model.activation(free.phi)) + apply_slope(path.slope, free.h)
