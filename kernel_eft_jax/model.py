r"""The model: an activation with its weight and bias variances, and the kernel map that all theory is built on.

$$Q(K)_{ab} = C_b + C_W\, E_{\phi \sim N(0, K)}[s(\phi_a) s(\phi_b)]$$

for networks $\phi' = \phi + \epsilon (W s(\phi) + b)$ with $W_{ij} \sim N(0, C_W / n)$ and $b_i \sim N(0, C_b)$ (Kawase and Ota, arXiv 2604.15742).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .activations import Activation, Expansion
from .checks import check_array, check_features, check_kernel, check_unstacked, is_concrete
from .pairs import input_count, pack, triples, unpack


class Model(eqx.Module):
    """A pre-activation residual network at initialisation, width and depth left open.

    `C_W` and `C_b` are the variances of weights (times width) and biases; in terms of standard deviations they are
    sigma_w^2 and sigma_b^2. Both, and the activation's parameters, are array leaves: gradients reach them and changing
    them does not recompile.
    """

    activation: Activation
    C_W: Float[Array, ""]
    C_b: Float[Array, ""]

    def __init__(self, activation: Activation, C_W: Float[ArrayLike, ""], C_b: Float[ArrayLike, ""] = 0.0):
        if not isinstance(activation, Activation):
            raise ValueError(
                f"Argument `activation` must be an activation object such as Tanh() or Smooth(fn), but is {activation!r}."
            )
        self.activation = activation
        self.C_W = _variance("C_W", C_W)
        self.C_b = _variance("C_b", C_b)

    def Q(self, K: Float[ArrayLike, "N N"]) -> Float[Array, "N N"]:
        r"""Covariance of the next increment at infinite width: $Q(K)_{ab} = C_b + C_W E[s(\phi_a) s(\phi_b)]$."""
        return _Q(self, self._check(K))

    def chi(self, K: Float[ArrayLike, "N N"], h: Float[ArrayLike, "N N"]) -> Float[Array, "N N"]:
        r"""First derivative of Q at K along the symmetric matrix h.

        $$(\chi h)_{ab} = C_W \left( E[s'_a s'_b] h_{ab} + \tfrac12 E[s''_a s_b] h_{aa} + \tfrac12 E[s_a s''_b] h_{bb} \right)$$
        """
        K = self._check(K)
        return _chi(self, K, check_array(h, "h").astype(K.dtype))

    def hess(self, K: Float[ArrayLike, "N N"], V: Float[ArrayLike, "N N N N"]) -> Float[Array, "N N"]:
        r"""Second derivative of Q at K contracted with a covariance V of kernels.

        $$(\mathrm{Hess}:V)_{ab} = \sum_{p, q} \frac{\partial^2 Q_{ab}}{\partial K_p\, \partial K_q} V_{pq}, \qquad p, q \in \{aa, bb, ab\}$$

        V must be a covariance of kernels: at a repeated input it has no component that would separate the two copies. (For
        kinked activations the second derivative along such a component is infinite and is left out.)
        """
        K = self._check(K)
        return _hess(self, K, check_array(V, "V").astype(K.dtype))

    def _check(self, K):
        check_unstacked(self)
        return check_kernel(K, "K", zeros=True)

    def q(self, k: Float[Array, " P"]) -> Float[Array, " P"]:
        """Q in pair space."""
        return self.C_b.astype(k.dtype) + self.C_W.astype(k.dtype) * self.activation.moments(k)

    def expansion(self, k: Float[Array, " P"]) -> Expansion:
        """Q in pair space with its first and second derivatives."""
        value, slope, curvature = self.activation.expansion(k)
        C_W, C_b = self.C_W.astype(k.dtype), self.C_b.astype(k.dtype)
        return Expansion(C_b + C_W * value, C_W * slope, C_W * curvature)


@eqx.filter_jit
def _Q(model, K):
    return unpack(model.q(pack(K)))


@eqx.filter_jit
def _chi(model, K, h):
    return unpack(apply_slope(model.expansion(pack(K)).slope, pack(h)))


@eqx.filter_jit
def _hess(model, K, V):
    a, b = np.triu_indices(K.shape[-1])
    packed = V[a[:, None], b[:, None], a, b]
    return unpack(contract_curvature(model.expansion(pack(K)).curvature, 0.5 * (packed + packed.T)))


def apply_slope(slope: Float[Array, "P 3"], h: Float[Array, "P *rest"]) -> Float[Array, "P *rest"]:
    """chi h in pair space, for h with any further axes."""
    return jnp.einsum("ps,ps...->p...", slope, h[triples(input_count(h.shape[0]))], precision="highest")


def contract_curvature(curvature: Float[Array, "P 3 3"], V: Float[Array, "P P"]) -> Float[Array, " P"]:
    """Hess:V in pair space."""
    triple = triples(input_count(V.shape[0]))
    return jnp.einsum("pst,pst->p", curvature, V[triple[:, :, None], triple[:, None, :]], precision="highest")


def input_kernel(
    x: Float[ArrayLike, "N d"], C_W: Float[ArrayLike, ""] = 1.0, C_b: Float[ArrayLike, ""] = 0.0
) -> Float[Array, "N N"]:
    r"""Kernel of a random linear embedding of data, $K_{ab} = C_b + C_W\, x_a \cdot x_b / d$."""
    x = check_features(x)
    gram = jnp.matmul(x, x.T, precision="highest") / x.shape[1]
    return _variance("C_b", C_b).astype(gram.dtype) + _variance("C_W", C_W).astype(gram.dtype) * gram


def _variance(name, value):
    value = jnp.asarray(value, dtype=float) if not isinstance(value, jax.Array) else value
    if value.shape != ():
        raise ValueError(f"Argument `{name}` must be one number, but has shape {value.shape}.")
    if is_concrete(value) and not (np.isfinite(value) and value >= 0):
        raise ValueError(f"Argument `{name}` is a variance and must be finite and not negative, but is {value}.")
    return value
