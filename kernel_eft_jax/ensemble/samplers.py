r"""Two samplers with one law: how a layer's increment eta is drawn, given s = sigma(phi).

$$\phi' = \phi + \epsilon \eta, \qquad \eta = W s + b \quad \text{or, given } \phi, \text{ exactly} \quad
  \eta_i \sim N(0, \hat Q), \quad \hat Q = C_b + C_W S$$

so that n x N normals replace n x n weights. Arrays are (inputs, neurons, networks) with networks innermost. Samplers never
call a Gaussian expectation: they are the oracle of the theory. Random numbers are drawn a layer ahead (`draw` now,
`increment` in the next turn of the loop): as loop state they are computed once and not again in every expression that uses them.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, UInt32

from ..model import Model
from ..network import UNROLLED, semidefinite_cholesky
from ..pairs import pack, pairs, unpack
from .normals import Words, normals, real_and_imaginary

WRITTEN_OUT = 2 * UNROLLED  # up to this many inputs, factors and their products are written out with networks innermost


class Sampler(eqx.Module):
    """How the increments of one layer are drawn."""

    @abstractmethod
    def draw(self, keys: Words, layer: UInt32[Array, ""], inputs: int, width: int) -> Any:
        """The random numbers of one layer, a function of each network's key and the layer only."""

    @abstractmethod
    def increment(self, model: Model, s: Float[Array, "N n B"], noise: Any) -> Float[Array, "N n B"]:
        """eta from s = sigma(phi) and the layer's random numbers."""

    @abstractmethod
    def numbers(self, inputs: int, width: int) -> int:
        """How many numbers a network holds in memory at once, roughly."""


class BlockSampler(Sampler):
    """Sample increments from their exact law given the layer before, n x N normals a layer, without weights."""

    def draw(self, keys, layer, inputs, width) -> Complex[Array, "half B"]:
        return draw_rows(keys, layer, inputs, width)

    def increment(self, model, s, noise):
        Q, z = unpack((model.C_b + model.C_W * gram(s)).T), as_rows(noise, s.shape)
        if not UNROLLED < s.shape[0] <= WRITTEN_OUT:
            return mix(jax.vmap(semidefinite_cholesky, out_axes=-1)(Q), z)
        # Barriers, here and below: without them the compiler works out factors and normals again for every neuron.
        L, z = jax.lax.optimization_barrier((cholesky(jnp.moveaxis(Q, 0, -1)), z))
        return jax.lax.optimization_barrier(mix(L, z))

    def numbers(self, inputs, width):
        return 6 * inputs * width + 4 * inputs**2


class WeightSampler(Sampler):
    """Draw every layer's weights and biases and use them once: the definition of the model, n x n normals a layer."""

    def draw(self, keys, layer, inputs, width) -> tuple[Float[Array, "B n n"], Float[Array, "n B"]]:
        half, rest = (width**2 + 1) // 2, (width + 1) // 2
        index = jnp.arange(half + rest, dtype=jnp.uint32)
        W = normals((keys[0][:, None], keys[1][:, None]), layer, index[None, :half])
        b = normals((keys[0][None, :], keys[1][None, :]), layer, index[half:, None])
        W = real_and_imaginary(W, width**2, axis=1).reshape(-1, width, width)
        return W, real_and_imaginary(b, width, axis=0)

    def increment(self, model, s, noise):
        W, b = noise
        eta = jnp.einsum("Bij,ajB->aiB", W, s, precision="highest")
        return jnp.sqrt(model.C_W / s.shape[1]) * eta + jnp.sqrt(model.C_b) * b[None]

    def numbers(self, inputs, width):
        return 5 * inputs * width + 3 * width**2


def draw_rows(keys: Words, layer: UInt32[Array, ""], inputs: int, width: int) -> Complex[Array, "half B"]:
    """The n x N standard normals of a layer, in pairs."""
    index = jnp.arange((inputs * width + 1) // 2, dtype=jnp.uint32)
    return normals((keys[0][None, :], keys[1][None, :]), layer, index[:, None])


def as_rows(noise: Complex[Array, "half B"], shape: tuple[int, ...]) -> Float[Array, "N n B"]:
    """The normals of `draw_rows` in the shape of phi."""
    return real_and_imaginary(noise, shape[0] * shape[1], axis=0).reshape(shape)


def gram(s: Float[Array, "N n B"]) -> Float[Array, "P B"]:
    r"""$\frac1n \sum_i s_i(a) s_i(b)$ of every network, packed."""
    inputs, width, _ = s.shape
    if inputs <= UNROLLED:
        return jnp.stack([jnp.sum(s[a] * s[b], axis=0) for a, b in zip(*pairs(inputs), strict=True)]) / width
    s = jnp.moveaxis(s, -1, 0)
    return pack(jnp.matmul(s, s.mT, precision="highest")).T / width


def cholesky(Q: Float[Array, "N N B"]) -> Float[Array, "N N B"]:
    """`semidefinite_cholesky` of every network, written out with networks innermost: several times faster for 16 inputs.

    Not for many more: compile time grows like their square.
    """
    inputs, columns = Q.shape[0], []
    Q = rest = jax.lax.optimization_barrier(Q)
    for first in range(0, inputs, UNROLLED):
        panel = [rest[j:, j] for j in range(min(UNROLLED, inputs - first))]
        for j, column in enumerate(panel):
            for k in range(j):
                column = column - panel[k][j - k :] * panel[k][j - k]
            regular = column[0] > 10 * inputs * jnp.finfo(Q.dtype).eps * Q[first + j, first + j]
            panel[j] = column * jnp.where(regular, 1 / jnp.sqrt(jnp.where(regular, column[0], 1)), 0)
        panel = jax.lax.optimization_barrier(panel)
        below = [column[len(panel) - j :] for j, column in enumerate(panel)]
        rest = rest[len(panel) :, len(panel) :] - sum(x[:, None] * x[None] for x in below)
        rest = jax.lax.optimization_barrier(rest)
        columns += panel
    return jnp.stack([jnp.pad(column, ((j, 0), (0, 0))) for j, column in enumerate(columns)], axis=1)


def mix(L: Float[Array, "N N #B"], z: Float[Array, "N n B"]) -> Float[Array, "N n B"]:
    """L z for every network, L lower triangular."""
    inputs = z.shape[0]
    if inputs <= WRITTEN_OUT:
        return jnp.stack(
            [sum(L[a, b][None] * z[b] for b in range(1, a + 1)) + L[a, 0][None] * z[0] for a in range(inputs)]
        )
    return jnp.moveaxis(jnp.matmul(jnp.moveaxis(L, -1, 0), jnp.moveaxis(z, -1, 0), precision="highest"), 0, -1)
