r"""Two samplers with one law: how the outputs u of a matrix are drawn, given the features x that it reads.

$$u = W x + b \quad \text{or, given } x, \text{ exactly} \quad u_i \sim N(0, C_b + C_W S),
  \quad S_{ab} = \frac1m \sum_j x_j(a) x_j(b)$$

so that a few normals for each output replace a row of weights. A branch is a sequence of such draws, and the outputs of
its last matrix are the increment of the stream. Arrays are (inputs, neurons, networks) with networks innermost.
Samplers never call a Gaussian expectation, because they are the oracle of the theory.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, UInt32

from ..cholesky import UNROLLED
from ..kernel_maps import Dense
from ..linear import matmul
from ..model import Model
from ..network import shapes
from .factors import WRITTEN_OUT, features_factor, gram, mix
from .normals import KeyWords, normals, real_and_imaginary


class Sampler(eqx.Module):
    """How the outputs of one matrix are drawn. A matrix has the shape (outputs, features)."""

    @abstractmethod
    def pairs(self, inputs: int, shape: tuple[int, int]) -> int:
        """Pairs of normals that a matrix takes in each layer."""

    @abstractmethod
    def draw(self, keys: KeyWords, layer: UInt32[Array, ""], first: int, inputs: int, shape: tuple[int, int]) -> Any:
        """The random numbers of a matrix in one layer, a function of each network's key and of the layer; they are the
        pairs of normals from number `first` on."""

    @abstractmethod
    def reads(self, dense: Dense, features: Callable[[], Float[Array, "N m B"]]) -> Any:
        """What the sampler keeps of the features that a matrix reads. `features` is a function that computes them: it
        may be called more than once, and its result need not be kept."""

    @abstractmethod
    def kernel(self, read: Any) -> Float[Array, "P B"]:
        """The kernel S of the features, packed, from what `reads` gave."""

    @abstractmethod
    def outputs(self, dense: Dense, read: Any, noise: Any, shape: tuple[int, int]) -> Float[Array, "N outputs B"]:
        """The outputs of a matrix, from what `reads` gave and its random numbers."""

    @abstractmethod
    def numbers(self, model: Model, inputs: int, width: int) -> int:
        """How many numbers a network holds in memory at once, roughly."""


class BlockRead(NamedTuple):
    """What the block law keeps of the features that a matrix reads: their kernel S, and the factor L of C_b + C_W S."""

    S: Float[Array, "P B"]
    L: Float[Array, "N N B"]


class BlockSampler(Sampler):
    """Sample outputs from their exact law given the features, one normal for each output and input, without weights."""

    def pairs(self, inputs, shape):
        return (inputs * shape[0] + 1) // 2

    def draw(self, keys, layer, first, inputs, shape) -> Complex[Array, "half B"]:
        return draw_rows(keys, layer, inputs, shape[0], first)

    def reads(self, dense, features) -> BlockRead:
        S = gram(features())
        return BlockRead(S, features_factor(dense, S, features))

    def kernel(self, read):
        return read.S

    def outputs(self, dense, read, noise, shape):
        inputs = read.L.shape[0]
        z = as_rows(noise, (inputs, shape[0], read.L.shape[2]))
        if not UNROLLED < inputs <= WRITTEN_OUT:
            return mix(read.L, z)
        # Without the barriers here and in `cholesky_written_out` the compiler computes factors and normals again for
        # every neuron.
        L, z = jax.lax.optimization_barrier((read.L, z))
        return jax.lax.optimization_barrier(mix(L, z))

    def numbers(self, model, inputs, width):
        *hidden, _ = shapes(model, width)
        return 6 * inputs * width + 4 * inputs**2 + 3 * inputs * sum(outputs for outputs, _ in hidden)


class WeightSampler(Sampler):
    """Draw the weights and biases of every layer and use them once: the definition of the model, n x n normals for each
    matrix."""

    def pairs(self, inputs, shape):
        return (shape[1] + 1) * ((shape[0] + 1) // 2)

    def draw(self, keys, layer, first, inputs, shape) -> Complex[Array, "B features_plus_one half"]:
        """Column j of W and, below the last, b: real parts for the first half of the outputs, imaginary parts for the
        rest."""
        index = jnp.uint32(first) + jnp.arange(self.pairs(inputs, shape), dtype=jnp.uint32)
        z = normals((keys[0][:, None], keys[1][:, None]), layer, index[None])
        return z.reshape(-1, shape[1] + 1, (shape[0] + 1) // 2)

    def reads(self, dense, features) -> Float[Array, "N m B"]:
        return features()

    def kernel(self, read):
        return gram(read)

    def outputs(self, dense, read, noise, shape):
        x = jnp.moveaxis(read, -1, 0)

        def neurons(z):
            Wx = matmul(x, z[:, :-1])
            return jnp.sqrt(dense.C_W / shape[1]) * Wx + jnp.sqrt(dense.C_b) * z[:, -1:]

        u = jnp.concatenate([neurons(noise.real), neurons(noise.imag)], axis=2)[:, :, : shape[0]]
        return jnp.moveaxis(u, 0, -1)

    def numbers(self, model, inputs, width):
        *hidden, _ = matrices = shapes(model, width)
        weights = sum(outputs * features for outputs, features in matrices)
        return 5 * inputs * width + 3 * weights + 3 * inputs * sum(outputs for outputs, _ in hidden)


def draw_last(sampler: Sampler, model: Model, keys: KeyWords, layer: UInt32[Array, ""], inputs: int, width: int) -> Any:
    """The random numbers of a layer's last matrix, whose outputs move the stream. Layers count from one; the inputs are
    layer zero."""
    return sampler.draw(keys, layer, 0, inputs, shapes(model, width)[-1])


def draw_hidden(
    sampler: Sampler, model: Model, keys: KeyWords, layer: UInt32[Array, ""], inputs: int, width: int
) -> tuple[Any, ...]:
    """The random numbers of a layer's other matrices, which come after those of the last."""
    *hidden, last = shapes(model, width)
    noise, first = [], sampler.pairs(inputs, last)
    for shape in hidden:
        noise.append(sampler.draw(keys, layer, first, inputs, shape))
        first += sampler.pairs(inputs, shape)
    return tuple(noise)


def read_stream(sampler: Sampler, model: Model, phi: Float[Array, "N n B"], hidden: tuple[Any, ...]) -> tuple[Any, ...]:
    """What `Sampler.reads` gives for each matrix of the branch, from the stream and the random numbers of all matrices
    but the last."""
    reads, stream = [], (lambda: phi)
    for section, noise, shape in zip(model.sections, (*hidden, None), shapes(model, phi.shape[1]), strict=True):
        reads.append(sampler.reads(section.dense, lambda section=section, x=stream: section.features(x())))
        stream = partial(sampler.outputs, section.dense, reads[-1], noise, shape)
    return tuple(reads)


def draw_rows(
    keys: KeyWords, layer: UInt32[Array, ""], inputs: int, width: int, first: int = 0
) -> Complex[Array, "half B"]:
    """The n x N standard normals of a matrix, in pairs, from pair number `first` of its layer on."""
    index = jnp.uint32(first) + jnp.arange((inputs * width + 1) // 2, dtype=jnp.uint32)
    return normals((keys[0][None, :], keys[1][None, :]), layer, index[:, None])


def as_rows(noise: Complex[Array, "half B"], shape: tuple[int, ...]) -> Float[Array, "N n B"]:
    """The normals of `draw_rows` in the shape of phi."""
    if shape[0] % 2 == 0:  # the same result, cut between inputs, which the compiler can fuse
        return jnp.concatenate([x.reshape(shape[0] // 2, *shape[1:]) for x in (noise.real, noise.imag)])
    return real_and_imaginary(noise, shape[0] * shape[1]).reshape(shape)
