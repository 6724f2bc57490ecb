r"""A residual network of finite width with real weights, at initialisation.

$$\phi^{l+1} = \phi^l + \epsilon (W^l s(\phi^l) + b^l), \qquad W_{ij} \sim N(0, C_W / n), \quad b_i \sim N(0, C_b)$$

The rows of phi are inputs, its columns neurons. Networks vmap: `eqx.filter_vmap` over keys makes an ensemble. To sample
many networks for their statistics only, `estimate` is faster by orders of magnitude and never stores weights.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .checks import check_count, check_features, check_kernel, check_positive
from .model import Model

UNROLLED = 8  # up to this many inputs, N x N algebra is written out; beyond, it is a loop or a batched product


class ResNet(eqx.Module):
    """A network of `depth` residual layers of `width` neurons; weights and biases are array leaves."""

    model: Model
    W: Float[Array, "depth n n"]
    b: Float[Array, "depth n"]
    eps: Float[Array, ""]

    def __init__(self, model: Model, width: int, depth: int, eps: float | Float[Array, ""], *, key: PRNGKeyArray):
        check_count(width, "width")
        check_count(depth, "depth")
        check_positive(eps, "eps")
        key_W, key_b = jax.random.split(key)
        W, b = jax.random.normal(key_W, (depth, width, width)), jax.random.normal(key_b, (depth, width))
        self.model = model
        self.W = jnp.sqrt(model.C_W / width).astype(W.dtype) * W
        self.b = jnp.sqrt(model.C_b).astype(b.dtype) * b
        self.eps = jnp.asarray(eps, dtype=W.dtype)

    def __call__(self, phi0: Float[Array, "N n"]) -> Float[Array, "N n"]:
        """Pre-activations after the last layer."""
        return jax.lax.scan(lambda phi, layer: (self._layer(phi, *layer), None), self._check(phi0), (self.W, self.b))[0]

    def trajectory(self, phi0: Float[Array, "N n"]) -> Float[Array, "depth_plus_one N n"]:
        """Pre-activations of every layer, the input first; `empirical_kernel` of it is the kernel at every depth."""

        def layer(phi, weights):
            phi = self._layer(phi, *weights)
            return phi, phi

        phi0 = self._check(phi0)
        return jnp.concatenate([phi0[None], jax.lax.scan(layer, phi0, (self.W, self.b))[1]])

    def _layer(self, phi, W, b):
        s = self.model.activation(phi)
        return phi + self.eps * (jnp.matmul(s, W.T, precision="highest") + b[None])

    def _check(self, phi0):
        phi0 = check_features(phi0, "phi0")
        width = self.W.shape[-1]
        if phi0.ndim != 2 or phi0.shape[1] != width:
            raise ValueError(f"Argument `phi0` must have shape (inputs, {width}), but has shape {phi0.shape}.")
        return phi0.astype(self.W.dtype)


def empirical_kernel(phi: Float[ArrayLike, "*batch N n"]) -> Float[Array, "*batch N N"]:
    r"""$G_{ab} = \frac1n \sum_i \phi_i(a) \phi_i(b)$; of s(phi) it is the kernel S."""
    phi = check_features(phi, "phi", axes=None)
    return jnp.matmul(phi, phi.mT, precision="highest") / phi.shape[-1]


def draw_inputs(K0: Float[ArrayLike, "N N"], width: int, *, key: PRNGKeyArray) -> Float[Array, "N n"]:
    """Pre-activations at depth zero, N(0, K0) independently over neurons: a random linear embedding of the data."""
    K0 = check_kernel(K0)
    check_count(width, "width")
    z = jax.random.normal(key, (K0.shape[0], width), K0.dtype)
    return jnp.matmul(semidefinite_cholesky(K0), z, precision="highest")


def semidefinite_cholesky(Q: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """Lower-triangular L with L L^T = Q, for positive semi-definite Q of any rank.

    A pivot that is zero to rounding (an input that depends on earlier ones) gives a column of zeros, which is exact for
    a rank-deficient Q; nothing is added to Q. Columns come in panels, written out, so that they fuse over a batch.
    """
    inputs = Q.shape[0]
    rows, floor = jnp.arange(inputs), 10 * inputs * jnp.finfo(Q.dtype).eps * jnp.diagonal(Q)

    def eliminate(columns, first):
        for j in range(len(columns)):
            pivot = columns[j][first + j]
            regular = pivot > floor[first + j]
            scale = jnp.where(regular, 1 / jnp.sqrt(jnp.where(regular, pivot, 1)), 0)
            columns[j] = jnp.where(rows >= first + j, columns[j] * scale, 0)
            for i in range(j + 1, len(columns)):
                columns[i] = columns[i] - columns[j] * columns[j][first + i]
        return jnp.stack(columns, axis=1)

    def panel(first, width, L):
        done = jax.lax.dynamic_slice_in_dim(L, first, width, axis=0)
        rest = jax.lax.dynamic_slice_in_dim(Q, first, width, axis=1) - jnp.matmul(L, done.T, precision="highest")
        columns = eliminate([rest[:, j] for j in range(width)], first)
        return jax.lax.dynamic_update_slice_in_dim(L, columns, first, axis=1)

    if inputs <= UNROLLED:
        return eliminate([Q[:, j] for j in range(inputs)], 0)
    whole, last = divmod(inputs, UNROLLED)
    L = jax.lax.fori_loop(0, whole, lambda k, L: panel(k * UNROLLED, UNROLLED, L), jnp.zeros_like(Q))
    return panel(whole * UNROLLED, last, L) if last else L
