r"""Maps of kernels: what a matrix, a layer of fresh neurons, a gate and a norm do to the kernel of the features that
they read.

A kernel X with a correction $m / n$ of its mean and a covariance $C / n$ goes through a map F, pair by pair, with
gradient J and hessian H:

$$X \to F(X), \qquad m \to J m + \tfrac12 H : C, \qquad C \to J C J^T + N, \qquad h \to J h$$

N is the covariance that averaging over a finite number of fresh neurons adds, and h is any fluctuation. A branch is a
list of such maps.
"""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .activations import Activation, Expansion
from .activations.base import array
from .checks import is_concrete
from .expectations.conditional import Conditional
from .expectations.four_point import largest_share, nodes_error, products, products_rests
from .fields import parameter
from .pairs import diagonal, input_count, pairs, triples, unpack, wick
from .showing import shown_fields

SERIES = 40  # terms of the series in the correlation of two inputs given a third


class Affine(NamedTuple):
    """The response of a matrix: $X \\to C_b + C_W X$ in pair space."""

    value: Float[Array, " P"]
    scale: Float[Array, ""]

    def apply(self, h: Float[Array, "P *rest"]) -> Float[Array, "P *rest"]:
        """J h."""
        return self.scale * h

    def carry(self, m: Float[Array, " P"], C: Float[Array, "P P"]) -> tuple[Float[Array, " P"], Float[Array, "P P"]]:
        """The correction of the mean and the covariance after the map."""
        return self.scale * m, self.scale**2 * C

    def absolute(self) -> "Affine":
        """The map that carries bounds of errors."""
        return self

    def without_noise(self) -> "Affine":
        """The map of infinitely many neurons."""
        return self

    def first_order(self) -> "Affine":
        """The map without what only the second order needs."""
        return self

    def of_each(self) -> "Affine":
        """The map of each input alone, on one more axis in front."""
        value = self.value[diagonal(input_count(self.value.shape[0])), None]
        return Affine(value, jnp.broadcast_to(self.scale, value.shape[:1]))


class Local(NamedTuple):
    """The response of any other map: derivatives of each pair in its (k_aa, k_bb, k_ab), and the noise of fresh
    neurons."""

    value: Float[Array, " P"]
    gradient: Float[Array, "P 3"]
    hessian: Float[Array, "P 3 3"]
    noise: Float[Array, "P P"] | Float[Array, ""]

    def apply(self, h: Float[Array, "P *rest"]) -> Float[Array, "P *rest"]:
        """J h."""
        return apply_gradient(self.gradient, h)

    def carry(self, m: Float[Array, " P"], C: Float[Array, "P P"]) -> tuple[Float[Array, " P"], Float[Array, "P P"]]:
        """The correction of the mean and the covariance after the map."""
        half = apply_gradient(self.gradient, C)
        later = apply_gradient(self.gradient, half.T) + self.noise
        return apply_gradient(self.gradient, m) + 0.5 * contract_hessian(self.hessian, C), later

    def absolute(self) -> "Local":
        """The map that carries bounds of errors. On the diagonal the three variables are one variable: their
        derivatives are added before absolute values are taken."""
        a, b = pairs(input_count(self.value.shape[0]))
        same = (a == b)[:, None]
        gradient = jnp.where(same, jnp.sum(self.gradient, 1, keepdims=True) / 3, self.gradient)
        hessian = jnp.sum(self.hessian, (1, 2), keepdims=True) / 9
        hessian = jnp.where(same[:, None], hessian, self.hessian)
        return Local(self.value, jnp.abs(gradient), jnp.abs(hessian), jnp.zeros_like(self.value[0]))

    def without_noise(self) -> "Local":
        """The map of infinitely many neurons."""
        return self._replace(noise=jnp.zeros_like(self.value[0]))

    def first_order(self) -> "Local":
        """The map without hessian and noise, which only the second order needs."""
        zero = jnp.zeros_like(self.value[0])
        return self._replace(hessian=zero, noise=zero)

    def of_each(self) -> "Local":
        """The map of each input alone to first order, on one more axis in front."""
        own = diagonal(input_count(self.value.shape[0]))
        zero = jnp.zeros(own.size, self.value.dtype)
        return Local(self.value[own, None], self.gradient[own, None], zero, zero)


Response = Affine | Local


def apply_all(responses: list[Response], h: Float[Array, "P *rest"]) -> Float[Array, "P *rest"]:
    """The fluctuation h after it went through all maps."""
    for response in responses:
        h = response.apply(h)
    return h


def carry_all(
    responses: list[Response], m: Float[Array, " P"], C: Float[Array, "P P"]
) -> tuple[Float[Array, " P"], Float[Array, "P P"]]:
    """The correction of the mean and the covariance after all maps."""
    for response in responses:
        m, C = response.carry(m, C)
    return m, C


class KernelMap(eqx.Module):
    """A map of kernels with its derivatives, and with the noise that the map adds."""

    def __repr__(self) -> str:
        return shown_fields(self)

    @abstractmethod
    def value(self, k: Float[Array, " P"]) -> Float[Array, " P"]:
        """F(X) in pair space."""

    @abstractmethod
    def response(self, k: Float[Array, " P"]) -> Response:
        """The value F(X), and how fluctuations of X go through F."""

    def error(self, k: Float[Array, " P"]) -> Float[Array, ""]:
        """Estimated relative error of the Gaussian expectations in `response`."""
        return jnp.zeros((), k.dtype)


class Dense(KernelMap):
    r"""A matrix and a bias: $u = W x + b$, $W_{ij} \sim N(0, C_W / m)$ for m features x, $b_i \sim N(0, C_b)$.

    $$A_{ab} = C_b + C_W S_{ab}$$

    is the covariance of each output, S the kernel of the features. `ratio` is the number of neurons that the outputs
    feed, over the width n of the stream: the last matrix of a branch feeds the stream itself and has ratio 1. In front
    of a `GLU` a Dense stands for two matrices side by side, of `ratio` n rows each.
    """

    C_W: Float[Array, ""] = eqx.field(metadata=parameter(positive=True))
    C_b: Float[Array, ""] = eqx.field(
        metadata=parameter(least=0.0, unit=lambda dense, k: mean_variance(dense.value(k)))
    )
    ratio: float = eqx.field(static=True)

    def __init__(self, C_W: Real[ArrayLike, ""], C_b: Real[ArrayLike, ""] = 0.0, *, ratio: float = 1):
        self.C_W, self.C_b = variance_leaf("C_W", C_W), variance_leaf("C_b", C_b)
        number = isinstance(ratio, int | float | np.integer | np.floating) and not isinstance(ratio, bool)
        if not number or not np.isfinite(ratio) or ratio <= 0:
            raise ValueError(f"Argument `ratio` must be a number greater than zero, but is {ratio!r}.")
        self.ratio = int(ratio) if ratio == int(ratio) else float(ratio)

    def value(self, k):
        return self.C_b.astype(k.dtype) + self.C_W.astype(k.dtype) * k

    def response(self, k):
        return Affine(self.value(k), self.C_W.astype(k.dtype))


class RMSNorm(KernelMap):
    r"""Each input's features divided by their root mean square, $x_i(a) \to x_i(a) / \sqrt{S_{aa}}$.

    $$S_{ab} \to S_{ab} / \sqrt{S_{aa} S_{bb}}$$

    LayerNorm, which also removes the mean over the features, is the same at order 1/n on the stream, behind a matrix
    and behind a GLU, where features have mean zero. Behind an activation it is another map. Gains of a norm belong to
    the C_W of the matrix behind it. The small number that libraries add to the mean square (1e-5 in GPT-2) is left out:
    it counts where the mean square is no larger than a hundred times that number. So features that are all zero, as
    those of a ReLU in narrow networks can be, have no norm: such networks are not finite.
    """

    def __call__(self, x: Float[Array, "N m *batch"]) -> Float[Array, "N m *batch"]:
        return x * jax.lax.rsqrt(jnp.mean(x**2, axis=1, keepdims=True))

    def value(self, k):
        return self.response(k).value

    def response(self, k):
        k_aa, k_bb, k_ab = k[triples(input_count(k.shape[0]))].T
        scale = jax.lax.rsqrt(k_aa) * jax.lax.rsqrt(k_bb)
        rho = k_ab * scale
        # On the diagonal the three derivatives of k / sqrt(k k) add up to zero, and so do the nine.
        gradient = jnp.stack([-0.5 * rho / k_aa, -0.5 * rho / k_bb, scale], axis=1)
        by_aa = [0.75 * rho / k_aa**2, 0.25 * rho / (k_aa * k_bb), -0.5 * scale / k_aa]
        by_bb = [by_aa[1], 0.75 * rho / k_bb**2, -0.5 * scale / k_bb]
        hessian = jnp.stack([*by_aa, *by_bb, by_aa[2], by_bb[2], jnp.zeros_like(rho)], axis=1)
        return Local(rho, gradient, hessian.reshape(-1, 3, 3), jnp.zeros((), k.dtype))


class GLU(eqx.Module):
    r"""A gated linear unit: two matrices side by side give u and w, and the feature is $w\, s(u)$.

    $$E[f_a f_b] = A_{ab}\, E_A[s_a s_b], \qquad f = w\, s(u)$$

    with u and w independent, both N(0, A). `GLU(SiLU())` is SwiGLU (Shazeer 2020), `GLU(GELU())` is GEGLU.
    """

    activation: Activation
    arity: ClassVar[int] = 2  # pre-activations that a neuron reads: u and w

    def __check_init__(self):
        if not isinstance(self.activation, Activation):
            raise ValueError(
                f"Argument `activation` of GLU must be an activation object such as SiLU(), but is {self.activation!r}."
            )

    def __repr__(self) -> str:
        return shown_fields(self)

    def __call__(self, x: Float[Array, "N two_m *batch"]) -> Float[Array, "N m *batch"]:
        u, w = jnp.split(x, 2, axis=1)
        return w * self.activation(u)

    def moments(self, k: Float[Array, " P"]) -> Float[Array, " P"]:
        """E[f_a f_b] of every pair."""
        return k * self.activation.moments(k)

    def expansion(self, k: Float[Array, " P"]) -> Expansion:
        """`moments` with its first and second derivatives."""
        value, gradient, hessian = self.activation.expansion(k)
        ab = jnp.zeros_like(gradient).at[:, 2].set(1)
        mixed = ab[:, :, None] * gradient[:, None, :]
        hessian = k[:, None, None] * hessian + mixed + mixed.mT
        return Expansion(k * value, k[:, None] * gradient + value[:, None] * ab, hessian)

    def error(self, k: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Estimated relative error of `expansion` at variance k."""
        return self.activation.error(k)

    def kernel_error(self, k: Float[Array, " P"]) -> Float[Array, ""]:
        """Estimated relative error of `expansion` at one packed kernel."""
        return self.activation.kernel_error(k)

    @property
    def elementwise(self) -> Activation:
        """The function s that a gate multiplies."""
        return self.activation

    def gated(self, fourth: Float[Array, "P P"], k: Float[Array, " P"]) -> Float[Array, "P P"]:
        """E[f_a f_b f_c f_d] of all pairs ab, cd: `fourth`, that of s, times E[w_a w_b w_c w_d]."""
        return (k[:, None] * k[None, :] + wick(k)) * fourth


class Fresh(KernelMap):
    r"""The average over $m = \mathrm{ratio}\, n$ neurons that are independent given the covariance A of their
    pre-activations.

    $$S_{ab} = \frac1m \sum_i f_i(a) f_i(b), \qquad
      N_{ab,cd} = \frac{1}{\mathrm{ratio}} \mathrm{Cov}_A(f_a f_b, f_c f_d)$$
    """

    neurons: Activation | GLU
    ratio: float = eqx.field(static=True)

    def value(self, k):
        return self.neurons.moments(k)

    def response(self, k):
        value, gradient, hessian = self.neurons.expansion(k)
        fourth = self.neurons.gated(products(self._given(k)), k)
        return Local(value, gradient, hessian, (fourth - value[:, None] * value[None, :]) / self.ratio)

    def error(self, k):
        given, triple = self._given(k), triples(input_count(k.shape[0]))
        nodes = jax.lax.map(lambda k: nodes_error(given.activation, k, SERIES), k[triple[:, 0]])
        k_aa, k_bb, _ = self.value(k)[triple].T
        rests = largest_share(self.neurons.gated(products_rests(given), k), jnp.sqrt(k_aa) * jnp.sqrt(k_bb))
        return jnp.max(jnp.stack([self.neurons.kernel_error(k), jnp.max(nodes), rests]))

    def _given(self, k):
        return Conditional(self.neurons.elementwise, k, SERIES)


def apply_gradient(gradient: Float[Array, "P 3"], h: Float[Array, "P *rest"]) -> Float[Array, "P *rest"]:
    """J h in pair space, for h with any further axes."""
    return jnp.einsum("ps,ps...->p...", gradient, h[triples(input_count(h.shape[0]))], precision="highest")


def contract_hessian(hessian: Float[Array, "P 3 3"], C: Float[Array, "P P"]) -> Float[Array, " P"]:
    """H:C in pair space."""
    triple = triples(input_count(C.shape[0]))
    return jnp.einsum("pst,pst->p", hessian, C[triple[:, :, None], triple[:, None, :]], precision="highest")


def mean_variance(k: Float[Array, " P"]) -> Float[Array, ""]:
    """The mean of a kernel's variances."""
    return jnp.mean(jnp.diagonal(unpack(k)))


def variance_leaf(name: str, value: Real[ArrayLike, ""]) -> Float[Array, ""]:
    """A variance as an array leaf, if it is one number, finite and not negative."""
    value = array(name)(value)
    if value.shape != ():
        raise ValueError(f"Argument `{name}` must be one number, but has shape {value.shape}.")
    if is_concrete(value) and not (np.isfinite(value) and value >= 0):
        raise ValueError(f"Argument `{name}` is a variance and must be finite and not negative, but is {value}.")
    return value
