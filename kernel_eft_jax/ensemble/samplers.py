r"""Two samplers with one law: how a layer's increment eta is drawn, given s = sigma(phi).

$$\phi' = \phi + \epsilon \eta, \qquad \eta = W s + b \quad \text{or, given } \phi, \text{ exactly} \quad
  \eta_i \sim N(0, \hat Q), \quad \hat Q = C_b + C_W S$$

so that n x N normals replace n x n weights. Arrays are (inputs, neurons, networks) with networks innermost. Samplers never
call a Gaussian expectation: they are the oracle of the theory.
"""

from abc import abstractmethod
from functools import reduce
from operator import add
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, UInt32

from ..model import Model
from ..network import UNROLLED, semidefinite_cholesky
from ..pairs import pack, pair_table
from .normals import Words, normals, real_and_imaginary

WRITTEN_OUT = 2 * UNROLLED  # up to this many inputs, factors and their products are written out with networks innermost


class Sampler(eqx.Module):
    """How the increments of one layer are drawn; `uses_S`: whether they depend on the sigma-kernel of the layer before."""

    uses_S: ClassVar[bool]

    @abstractmethod
    def draw(self, keys: Words, layer: UInt32[Array, ""], inputs: int, width: int) -> Any:
        """The random numbers of one layer, a function of each network's key and the layer only."""

    @abstractmethod
    def increment(self, model: Model, phi: Float[Array, "N n B"], S: Any, noise: Any) -> Float[Array, "N n B"]:
        """eta from phi, S (packed, or None if it is not used) and the layer's random numbers."""

    @abstractmethod
    def numbers(self, inputs: int, width: int) -> int:
        """How many numbers a network holds in memory at once, roughly."""


class BlockSampler(Sampler):
    """Sample increments from their exact law given the layer before, n x N normals a layer, without weights."""

    uses_S = True

    def draw(self, keys, layer, inputs, width) -> Complex[Array, "half B"]:
        return draw_rows(keys, layer, inputs, width)

    def increment(self, model, phi, S, noise):
        inputs, z = phi.shape[0], as_rows(noise, phi.shape)
        Q = (model.C_b + model.C_W * S)[pair_table(inputs)]
        if inputs > WRITTEN_OUT:
            return mix(jax.vmap(semidefinite_cholesky, -1, -1)(Q), z)
        if inputs <= UNROLLED:
            return mix(cholesky(Q), z)
        # Barriers, here and below: without them the compiler works out factors and normals again for every neuron.
        L, z = jax.lax.optimization_barrier((cholesky(Q), z))
        return jax.lax.optimization_barrier(mix(L, z))

    def numbers(self, inputs, width):
        return 6 * inputs * width + 4 * inputs**2


class WeightSampler(Sampler):
    """Draw every layer's weights and biases and use them once: the definition of the model, n x n normals a layer."""

    uses_S = False

    def draw(self, keys, layer, inputs, width) -> Complex[Array, "B n_plus_one half"]:
        """Column i of W and, below it, b_i: real parts for the first half of the neurons i, imaginary parts for the rest."""
        half = (width + 1) // 2
        index = jnp.arange((width + 1) * half, dtype=jnp.uint32)
        return normals((keys[0][:, None], keys[1][:, None]), layer, index[None]).reshape(-1, width + 1, half)

    def increment(self, model, phi, S, noise):
        width = phi.shape[1]
        s = jnp.moveaxis(model.activation(phi), -1, 0)

        def neurons(z):
            Ws = jnp.matmul(s, z[:, :-1], precision="highest")
            return jnp.sqrt(model.C_W / width) * Ws + jnp.sqrt(model.C_b) * z[:, -1:]

        eta = jnp.concatenate([neurons(noise.real), neurons(noise.imag)], axis=2)[:, :, :width]
        return jnp.moveaxis(eta, 0, -1)

    def numbers(self, inputs, width):
        return 5 * inputs * width + 3 * width**2


def draw_rows(keys: Words, layer: UInt32[Array, ""], inputs: int, width: int) -> Complex[Array, "half B"]:
    """The n x N standard normals of a layer, in pairs."""
    index = jnp.arange((inputs * width + 1) // 2, dtype=jnp.uint32)
    return normals((keys[0][None, :], keys[1][None, :]), layer, index[:, None])


def as_rows(noise: Complex[Array, "half B"], shape: tuple[int, ...]) -> Float[Array, "N n B"]:
    """The normals of `draw_rows` in the shape of phi."""
    if shape[0] % 2 == 0:  # the same, cut between inputs: then the compiler sees through it
        return jnp.concatenate([x.reshape(shape[0] // 2, *shape[1:]) for x in (noise.real, noise.imag)])
    return real_and_imaginary(noise, shape[0] * shape[1], axis=0).reshape(shape)


def gram(s: Float[Array, "N n B"]) -> Float[Array, "P B"]:
    r"""$\frac1n \sum_i s_i(a) s_i(b)$ of every network, packed."""
    inputs, width, networks = s.shape
    if inputs <= WRITTEN_OUT:
        # Neurons in eight parts, summed elementwise: as wide as vectors are, which a reduction over all of them is not.
        rows = width // 8
        x, rest = s[:, : 8 * rows].reshape(inputs, 8, rows, networks), s[:, 8 * rows :]
        sums = [
            jnp.concatenate([reduce(add, (x[a, i] * x[a:, i] for i in range(8))), rest[a] * rest[a:]], axis=1)
            for a in range(inputs)
        ]
        return jnp.sum(jnp.concatenate(sums), axis=1) / width
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
