r"""A residual network of finite width with real weights, at initialisation.

$$\phi^{l+1} = a \phi^l + \epsilon f^l(\phi^l), \qquad f = W s(\phi) + b,
  \quad W_{ij} \sim N(0, C_W / m), \quad b_i \sim N(0, C_b)$$

for one matrix, which reads m features; `Model` has other branches. The rows of phi are inputs, its columns neurons.
`eqx.filter_vmap` over keys makes an ensemble of networks. For the statistics of many networks use `estimate`: it is
faster by orders of magnitude and stores no weights.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from .checks import check_count, check_features, check_kernel, check_key, check_kind
from .cholesky import semidefinite_cholesky
from .depths import check_eps
from .linear import matmul
from .model import Model


def shapes(model: Model, width: int) -> tuple[tuple[int, int], ...]:
    """Outputs and features of each matrix of the branch. Raises ValueError if a `ratio` times the width is no whole
    number of neurons."""
    sections, found, features = model.sections, [], width
    arities = [*(section.neurons.arity for section in sections[1:]), 1]  # of what reads each matrix; last, the stream
    for section, arity in zip(sections, arities, strict=True):
        ratio = section.dense.ratio
        neurons = round(ratio * width)
        if not whole(ratio * width):
            raise ValueError(
                f"Argument `width` times the `ratio` of a Dense must be a whole number of neurons, but {width} x "
                f"{ratio:.10g} is {ratio * width:.10g}: take another width, or Dense(..., ratio={max(neurons, 1)} / "
                f"{width})."
            )
        found.append((arity * neurons, features))
        features = neurons
    return tuple(found)


def fitting_width(model: Model, least: int) -> int:
    """The smallest width from `least` on that gives every matrix a whole number of neurons; `least` if none of the next
    ten thousand does."""
    ratios = np.array([section.dense.ratio for section in model.sections])
    fits = np.all(whole(ratios * np.arange(least, least + 10_000)[:, None]), axis=1)
    return least + int(np.argmax(fits))


def whole(neurons: Float[np.ndarray, "*shape"] | float) -> Bool[np.ndarray, "*shape"] | np.bool:
    """Whether a ratio times a width is a whole number of neurons, at least one, to rounding."""
    nearest = np.round(neurons)
    return (nearest >= 1) & (np.abs(neurons - nearest) <= 1e-9 * nearest)


def skip(model: Model, eps: Float[Array, "..."]) -> Float[Array, "..."]:
    """The factor a by which a layer multiplies the stream; 0 where c eps^2 exceeds 1 by rounding, which `check_eps`
    allows."""
    return jnp.sqrt(jnp.maximum(model.shrink(eps**2), 0))


class ResNet(eqx.Module):
    """A network of `depth` residual layers of `width` neurons. Weights, biases and steps are array leaves; weights and
    biases are tuples with one entry for each matrix.

    Args:
        model: The block.
        width: Neurons of the stream, n.
        depth: Number of layers.
        eps: The step of a layer, one number or one for each layer.
        key: Of `jax.random`, for weights and biases.

    Raises:
        ValueError: For sizes that are no whole numbers of neurons, and for decay eps^2 > 1.
    """

    model: Model
    W: tuple[Float[Array, "depth outputs features"], ...]
    b: tuple[Float[Array, "depth outputs"], ...]
    eps: Float[Array, " depth"]

    def __init__(self, model: Model, *, width: int, depth: int, eps: Float[ArrayLike, "..."], key: PRNGKeyArray):
        check_kind(model, Model, "model")
        width = check_count(width, "width")
        depth = check_count(depth, "depth")
        eps = check_eps(eps, model.decay, depth)
        matrices = tuple(zip(model.sections, shapes(model, width), strict=True))
        check_key(key)
        keys = jax.random.split(key, 2 * len(matrices))
        W = [jax.random.normal(k, (depth, *shape)) for k, (_, shape) in zip(keys[::2], matrices, strict=True)]
        b = [jax.random.normal(k, (depth, shape[0])) for k, (_, shape) in zip(keys[1::2], matrices, strict=True)]
        self.model = model
        self.W = tuple(
            jnp.sqrt(section.dense.C_W / shape[1]).astype(z.dtype) * z
            for z, (section, shape) in zip(W, matrices, strict=True)
        )
        self.b = tuple(
            jnp.sqrt(section.dense.C_b).astype(z.dtype) * z for z, (section, _) in zip(b, matrices, strict=True)
        )
        self.eps = jnp.broadcast_to(jnp.asarray(eps, W[0].dtype), (depth,))

    def __call__(self, phi0: Float[Array, "N n"]) -> Float[Array, "N n"]:
        """Pre-activations after the last layer."""
        layers = self.eps, self.W, self.b
        return jax.lax.scan(lambda phi, layer: (self._layer(phi, *layer), None), self._check(phi0), layers)[0]

    def trajectory(self, phi0: Float[Array, "N n"]) -> Float[Array, "depth_plus_one N n"]:
        """Pre-activations of every layer, the input first; `empirical_kernel` of it is the kernel at every depth."""

        def layer(phi, weights):
            phi = self._layer(phi, *weights)
            return phi, phi

        phi0 = self._check(phi0)
        return jnp.concatenate([phi0[None], jax.lax.scan(layer, phi0, (self.eps, self.W, self.b))[1]])

    def _layer(self, phi, eps, weights, biases):
        x = phi
        for section, W, b in zip(self.model.sections, weights, biases, strict=True):
            x = matmul(section.features(x), W.T) + b[None]
        return skip(self.model, eps) * phi + eps * x

    def _check(self, phi0):
        phi0 = check_features(phi0, "phi0")
        width = self.W[-1].shape[1]
        if phi0.ndim != 2 or phi0.shape[1] != width:
            raise ValueError(f"Argument `phi0` must have shape (inputs, {width}), but has shape {phi0.shape}.")
        return phi0.astype(self.eps.dtype)


def empirical_kernel(phi: Float[ArrayLike, "*batch N n"]) -> Float[Array, "*batch N N"]:
    r"""$G_{ab} = \frac1n \sum_i \phi_i(a) \phi_i(b)$; of s(phi) it is the kernel S."""
    phi = check_features(phi, "phi", axes=None)
    return matmul(phi, phi.mT) / phi.shape[-1]


def draw_inputs(K0: Float[ArrayLike, "N N"], *, width: int, key: PRNGKeyArray) -> Float[Array, "N n"]:
    """Pre-activations at depth zero, N(0, K0) independently over neurons: a random linear embedding of the data."""
    K0 = check_kernel(K0)
    width = check_count(width, "width")
    check_key(key)
    z = jax.random.normal(key, (K0.shape[0], width), K0.dtype)
    return matmul(semidefinite_cholesky(K0), z)
