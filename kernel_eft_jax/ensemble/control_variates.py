r"""The control variates: free copies of each network, which interact with nothing, and their linear response.

Free neurons are independent. They are driven by the network's own normals, hidden neurons too, but with the
deterministic covariances of infinite width: so the mean of their kernel is exactly known. Beside them runs the linear
response h of the infinite-width limit. With $E_S$ the kernel that the last matrix reads at infinite width, and $C_S$
that of the free neurons with its response,

$$h' = a^2 h + \epsilon^2 C_W (C_S - E_S), \qquad C_G = G_\text{free} + h$$

$C_S$ starts from what the branch reads of the stream, $C = S_\text{free} + \chi_S h$, and goes through the maps of the
branch: behind a matrix or a norm $C - E \to J (C - E)$, behind fresh neurons $C = S'_\text{free} + J (C - E)$. So $C_G$
and $C_S$ have means K0 and $E_S$ at every width, and follow G and S up to O(1/n). The mean of G moves by the mean of S
alone, $E[G'] = a^2 E[G] + \epsilon^2 (C_b + C_W E[S])$, so that the sum

$$R' = a^2 R + \epsilon^2 C_W (S - C_S), \qquad n E[R] = n (E[G] - K_0) = K_1$$

gives K1 without the noise of the increments: several times smaller an error than n E[G - C_G]. The fourth moment
$F_{ab} = \frac1n \sum_i \phi_i(a)^2 \phi_i(b)^2$ has a control of its own, of mean $K_{aa} K_{bb} + 2 K_{ab}^2$ (K for
K0):

$$C_F = F_\text{free} + K_{bb} h_{aa} + K_{aa} h_{bb} + 4 K_{ab} h_{ab}$$

**Which normals.** The network's outputs are L z. A free copy of all inputs takes $L_0 U z$, with U the rotation that
brings $L_0 U$ near to L (`near_factor`), so that no input comes first. A free copy of one input alone can follow the
network more closely, in the very direction of that input's outputs: $\sqrt{Q_{aa} / \hat Q_{aa}}\, (L z)_a$. The copy
of one input knows nothing of pairs. But let X be $C_S$, R or $C_F$ of all inputs: the mean of
$\Delta_a = X^\text{alone}_{aa} - X_{aa}$ is zero, so that any $X_{ab} + w \Delta_a + w' \Delta_b$ has the mean that
$X_{ab}$ has. The weights are $w = \tfrac12 \rho_{ab}^2 E_{ab} / E_{aa}$ for $C_S$ and R, E that of $E_S$, and
$w = \tfrac12 \rho_{ab}^2 K_{bb} / K_{aa}$ for $C_F$; in w' a and b are exchanged. For b = a both weights are one half,
and the sum is the copy of a alone. For repeated inputs the sum is the mean of both copies alone. For inputs of
correlation zero it is the copy of all inputs.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..cholesky import semidefinite_cholesky
from ..kernel_maps import Affine
from ..model import Model
from ..network import shapes
from ..pairs import diagonal, input_count, triples, unpack
from ..selecting import safe_ratio
from .factors import gram, lower_inverse, mix, near_factor, unit_rows
from .samplers import BlockRead, as_rows


class InfiniteLayers(NamedTuple):
    """The network of infinite width, layer by layer: K0, the kernel E_S that the last matrix reads, and the responses
    (without hessian and noise) of all maps from K0 to Q."""

    K0: Float[Array, "layers P"]
    S: Float[Array, "layers P"]
    responses: list[Any]

    def of_each(self) -> "InfiniteLayers":
        """The same for networks of one input alone, for every input: one more axis behind the layers."""
        own = diagonal(input_count(self.K0.shape[-1]))
        responses = jax.vmap(lambda responses: [r.of_each() for r in responses])(self.responses)
        return InfiniteLayers(self.K0[:, own, None], self.S[:, own, None], responses)


class Limits(NamedTuple):
    """What control variates need of infinite width: the layers of all inputs together; those of each input alone, if
    there are several; and for each matrix the factor of the covariance of its outputs, with the inverse."""

    joint: InfiniteLayers
    alone: InfiniteLayers | None
    factors: list[tuple[Float[Array, "layers N N"], Float[Array, "layers N N"]]]


@eqx.filter_jit
def find_limits(model: Model, k0: Float[Array, " P"], dt: Float[Array, " depth"]) -> Limits:
    """All depths of the recursion K0' = a^2 K0 + dt Q(K0), dt = eps^2 of each layer."""

    def layer(k, dt):
        responses = model.responses(k)
        factors = [semidefinite_cholesky(unpack(r.value)) for r in responses if isinstance(r, Affine)]
        path = InfiniteLayers(k, responses[-2].value, [r.first_order() for r in responses])
        return model.shrink(dt) * k + dt * responses[-1].value, (path, [(L, lower_inverse(L)) for L in factors])

    path, factors = jax.lax.scan(layer, k0, jnp.append(dt, 0))[1]  # there is no layer after the last depth
    return Limits(path, path.of_each() if input_count(k0.size) > 1 else None, factors)


class Free(NamedTuple):
    """State of a free copy: its neurons, C_S, the linear response, and the sum R."""

    phi: Float[Array, "N n B"]
    S: Float[Array, "P B"]
    h: Float[Array, "P B"]
    R: Float[Array, "P B"]


class Control(NamedTuple):
    """The free copy of all inputs, and the free copies of each input alone on one more axis in front (None for one
    input)."""

    joint: Free
    alone: Free | None


def start(
    phi: Float[Array, "N n B"], model: Model, limits: Limits, reads: tuple[BlockRead, ...], hidden: tuple[Any, ...]
) -> Control:
    """The free copies at depth zero: their neurons are the network's own, and the response is zero."""

    def begin(phi, path, x):
        zero = jnp.zeros((path.K0.shape[0], phi.shape[2]), phi.dtype)
        return Free(phi, read_free(phi, zero, model, path, x), zero, zero)

    x, each = free_outputs(limits.factors, reads, hidden, shapes(model, phi.shape[1]))
    if limits.alone is None:
        return Control(begin(phi, limits.joint, x), None)
    return Control(begin(phi, limits.joint, x), jax.vmap(begin)(phi[:, None], limits.alone, each))


def advance(
    control: Control,
    model: Model,
    limits: tuple[Limits, Limits],
    reads: tuple[BlockRead, tuple[BlockRead, ...]],
    noise: tuple[Any, tuple[Any, ...]],
    eps: Float[Array, ""],
    a: Float[Array, ""],
) -> Control:
    """The free copies one layer on. Three arguments are pairs: the infinite width before and behind the layer; what the
    last matrix of this layer read, and what all matrices behind it read; the normals of both."""
    (before, behind), (read, later), (noise, hidden) = limits, reads, noise
    matrices = shapes(model, control.joint.phi.shape[1])
    increments, increments_alone = free_outputs(before.factors[-1:], (read,), (noise,), matrices[-1:])
    x, x_alone = free_outputs(behind.factors, later, hidden, matrices)
    step = eps**2 * model.C_W

    def move(free, S, increments, before, behind, x):
        phi = a * free.phi + eps * increments
        h = a**2 * free.h + step * (free.S - before.S[:, None])
        R = a**2 * free.R + step * (S - free.S)
        return Free(phi, read_free(phi, h, model, behind, x), h, R)

    joint = move(control.joint, read.S, increments[0], before.joint, behind.joint, x)
    if control.alone is None or before.alone is None or behind.alone is None:
        return Control(joint, None)
    S = read.S[diagonal(len(control.alone.phi)), None]
    return Control(joint, jax.vmap(move)(control.alone, S, increments_alone[0], before.alone, behind.alone, x_alone))


def free_outputs(
    factors: list[tuple[Float[Array, "N N"], Float[Array, "N N"]]],
    reads: tuple[BlockRead, ...],
    noise: tuple[Any, ...],
    shapes: tuple[tuple[int, int], ...],
) -> tuple[tuple[Float[Array, "N _ B"], ...], tuple[Float[Array, "N 1 _ B"], ...]]:
    """Outputs of matrices in the free copies, from the network's normals: of all inputs, and of each alone.

    Both have the covariances of infinite width in every network: given L, rows of unit length and orthogonal matrices
    turn normals into normals. The copy of an input alone takes the network's own outputs for this input, rescaled.
    """
    joint, alone = [], []
    for (L0, inverse), read, numbers, shape in zip(factors, reads, noise, shapes, strict=False):
        inputs = read.L.shape[0]
        z = as_rows(numbers, (inputs, shape[0], read.L.shape[2]))
        if inputs == 1:
            joint.append(mix(L0[:, :, None], z))
            continue
        deviations = jnp.sqrt(jnp.sum(L0**2, axis=1))[:, None, None]
        found = near_factor(L0, inverse, read.L), deviations * unit_rows(read.L)
        turned_L0, rows = jax.lax.optimization_barrier(found)  # else they are computed again for every neuron
        joint.append(mix(turned_L0, z, full=True))
        alone.append(mix(rows, z)[:, None])
    return tuple(joint), tuple(alone)


def read_free(
    phi: Float[Array, "N n B"],
    h: Float[Array, "P B"],
    model: Model,
    path: InfiniteLayers,
    hidden: tuple[Float[Array, "N _ B"], ...],
) -> Float[Array, "P B"]:
    """C_S of free neurons, phi in the stream and `hidden`, with the response h."""
    x, C, E, responses = phi, h, jnp.zeros_like(h), iter(path.responses)
    for i, section in enumerate(model.sections):
        if i:
            C, x = next(responses).apply(C - E), hidden[i - 1]  # through the matrix in front
        response = next(responses)
        C, E = gram(section.neurons(x)) + response.apply(C), response.value[:, None]
        for _ in section.norms:
            response = next(responses)
            C, E = response.value[:, None] + response.apply(C - E), response.value[:, None]
    return C


class Differences(NamedTuple):
    """G, S and F minus their control variates, and the sum R, all of order 1/n. In `G_alone` the control of G_aa is the
    copy of a alone."""

    G: Float[Array, "P B"]
    G_alone: Float[Array, "P B"]
    S: Float[Array, "P B"]
    R: Float[Array, "P B"]
    F: Float[Array, "P B"]


def differences(
    control: Control, G: Float[Array, "P B"], S: Float[Array, "P B"], F: Float[Array, "P B"], limits: Limits
) -> Differences:
    """G - C_G, S - C_S, R and F - C_F, all of order 1/n, at one depth.

    In G - C_G the copy is that of all inputs together, since the covariance of this C_G is known; of a copy alone only
    the variance is known. The other differences also use the copies of each input alone.
    """
    C_G, *parts = uses(control.joint, limits.joint)
    C_alone = C_G
    if control.alone is not None and limits.alone is not None:
        C_each, *each = jax.vmap(uses)(control.alone, limits.alone)
        aa, bb, ab = triples(len(control.alone.phi)).T
        K, E = limits.joint.K0[:, None], limits.joint.S[:, None]
        near = 0.5 * safe_ratio(K[ab], K[aa]) * safe_ratio(K[ab], K[bb])
        by_S = near * safe_ratio(E[ab], E[aa]), near * safe_ratio(E[ab], E[bb])
        by_F = near * safe_ratio(K[bb], K[aa]), near * safe_ratio(K[aa], K[bb])
        own, inputs = diagonal(len(control.alone.phi)), np.triu_indices(len(control.alone.phi))
        C_alone = C_G.at[own].set(C_each[:, 0])
        for i, (weights, alone) in enumerate(zip((by_S, by_S, by_F), each, strict=True)):
            gain = alone[:, 0] - parts[i][own]
            parts[i] = parts[i] + sum(w * gain[place] for w, place in zip(weights, inputs, strict=True))
    C_S, R, C_F = parts
    return Differences(G - C_G, G - C_alone, S - C_S, R, F - C_F)


def uses(free: Free, path: InfiniteLayers) -> tuple[Float[Array, "P B"], ...]:
    """C_G, C_S, R and C_F of a free copy."""
    aa, bb, ab = triples(free.phi.shape[0]).T
    K, h = path.K0[:, None], free.h
    C_F = gram(free.phi**2) + K[bb] * h[aa] + K[aa] * h[bb] + 4 * K[ab] * h[ab]
    return gram(free.phi) + h, free.S, free.R, C_F
