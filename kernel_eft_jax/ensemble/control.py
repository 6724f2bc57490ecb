r"""The control variate: a copy of each network that interacts with nothing, and its linear response.

Independent neurons driven by the network's own normals, hidden ones too, but with the deterministic covariances of infinite width, have
kernels of exactly known mean. Along the same path runs the linear response h of the infinite-width limit: with $E_S$ the kernel that the
last matrix reads at infinite width and $C_S$ that of the free neurons with its response,

$$h' = a^2 h + \epsilon^2 C_W (C_S - E_S), \qquad C_G = G_\text{free} + h$$

$C_S$ starts from what the branch reads of the stream, $C = S_\text{free} + \chi_S h$, and goes through the maps of the branch: behind a
matrix or a norm $C - E \to J (C - E)$, behind fresh neurons $C = S'_\text{free} + J (C - E)$. So $C_G$ and $C_S$ have means K0 and $E_S$ at
every width, and follow G and S up to O(1/n). The mean of G moves by the mean of S alone,
$E[G'] = a^2 E[G] + \epsilon^2 (C_b + C_W E[S])$, so that the sum

$$R' = a^2 R + \epsilon^2 C_W (S - C_S), \qquad n E[R] = n (E[G] - K_0) = K_1$$

gives K1 without the noise of the increments: several times smaller an error than n E[G - C_G]. The fourth moment
$F_{ab} = \frac1n \sum_i \phi_i(a)^2 \phi_i(b)^2$ has a control of its own, of mean $K_{aa} K_{bb} + 2 K_{ab}^2$ (K for K0):

$$C_F = F_\text{free} + K_{bb} h_{aa} + K_{aa} h_{bb} + 4 K_{ab} h_{ab}$$
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from ..maps import Affine, Local, Response
from ..model import Model
from ..network import semidefinite_cholesky, shapes
from ..pairs import triples, unpack
from .samplers import as_rows, gram, mix


class Path(NamedTuple):
    """The network of infinite width, layer by layer: K0, the kernel E_S that the last matrix reads, the responses of all maps from K0 to
    Q, without curvature and noise, and the factors of the covariances of every matrix's outputs."""

    K0: Float[Array, "layers P"]
    S: Float[Array, "layers P"]
    responses: list[Any]
    factors: list[Float[Array, "layers N N"]]


@eqx.filter_jit
def infinite_width(model: Model, k0: Float[Array, " P"], dt: Float[Array, " depth"]) -> Path:
    """All depths of the recursion K0' = a^2 K0 + dt Q(K0), dt = eps^2 of each layer."""

    def layer(k, dt):
        responses = model.responses(k)
        factors = [semidefinite_cholesky(unpack(r.value)) for r in responses if isinstance(r, Affine)]
        path = Path(k, responses[-2].value, [first_order(r) for r in responses], factors)
        return model.shrink(dt) * k + dt * responses[-1].value, path

    return jax.lax.scan(layer, k0, jnp.append(dt, 0))[1]  # after the last depth comes no layer


def first_order(response: Response) -> Response:
    """A response without what only the second order needs."""
    zero = jnp.zeros((), response.value.dtype)
    return response._replace(curvature=zero, noise=zero) if isinstance(response, Local) else response


class Free(NamedTuple):
    """State of the control: the free neurons, C_S, the linear response, and the sum R."""

    phi: Float[Array, "N n B"]
    S: Float[Array, "P B"]
    h: Float[Array, "P B"]
    R: Float[Array, "P B"]


def start(phi: Float[Array, "N n B"], model: Model, path: Path, hidden: tuple[Complex[Array, "half B"], ...]) -> Free:
    """At depth zero the free neurons are the network's own, and nothing responds."""
    zero = jnp.zeros((path.K0.shape[0], phi.shape[2]), phi.dtype)
    return Free(phi, read_free(phi, zero, model, path, hidden), zero, zero)


def advance(
    free: Free,
    S: Float[Array, "P B"],
    model: Model,
    path: tuple[Path, Path],
    noise: tuple[Complex[Array, "half B"], tuple[Complex[Array, "half B"], ...]],
    eps: Float[Array, ""],
    a: Float[Array, ""],
) -> Free:
    """One layer, with S of the network before it, the path before and behind it, and the normals of the last matrix in it and of the hidden
    neurons behind it."""
    before, behind = path
    phi = a * free.phi + eps * mix(before.factors[-1][:, :, None], as_rows(noise[0], free.phi.shape))
    step = eps**2 * model.C_W
    h = a**2 * free.h + step * (free.S - before.S[:, None])
    R = a**2 * free.R + step * (S - free.S)
    return Free(phi, read_free(phi, h, model, behind, noise[1]), h, R)


def read_free(
    phi: Float[Array, "N n B"],
    h: Float[Array, "P B"],
    model: Model,
    path: Path,
    hidden: tuple[Complex[Array, "half B"], ...],
) -> Float[Array, "P B"]:
    """C_S of free neurons phi and response h, with the normals of the hidden neurons."""
    x, C, responses = phi, h, iter(path.responses)
    outputs, networks = [shape[0] for shape in shapes(model, phi.shape[1])], phi.shape[2]
    for i, section in enumerate(model.sections):
        if i:
            C = next(responses).apply(C)  # through the matrix in front
            z = as_rows(hidden[i - 1], (phi.shape[0], outputs[i - 1], networks))
            x = mix(path.factors[i - 1][:, :, None], z)
        response = next(responses)
        C, E = gram(section.neurons(x)) + response.apply(C), response.value[:, None]
        for _ in section.norms:
            response = next(responses)
            C, E = response.value[:, None] + response.apply(C - E), response.value[:, None]
        if i == len(outputs) - 1:
            break
        C = C - E
    return C


class Differences(NamedTuple):
    """Less their controls, all of order 1/n: G, S and F; and the sum R."""

    G: Float[Array, "P B"]
    S: Float[Array, "P B"]
    R: Float[Array, "P B"]
    F: Float[Array, "P B"]


def differences(
    free: Free, G: Float[Array, "P B"], S: Float[Array, "P B"], F: Float[Array, "P B"], path: Path
) -> "Differences":
    """G - C_G, S - C_S, R and F - C_F, all of order 1/n, at the depth of `path`."""
    aa, bb, ab = triples(free.phi.shape[0]).T
    K, h = path.K0[:, None], free.h
    C_F = gram(free.phi**2) + K[bb] * h[aa] + K[aa] * h[bb] + 4 * K[ab] * h[ab]
    return Differences(G - gram(free.phi) - h, S - free.S, free.R, F - C_F)
