r"""The closure that the paper suggests: the state is the kernel G and the sigma-kernel S together.

With z = (g, y) the scaled fluctuations of G and S, one quantity does not close, the fluctuation of $\tau = \tfrac12 Q : \nabla^2 (s_a s_b)$.
It is projected on phi_c phi_d and s_c s_d under N(0, K0), $\tau \to R_g g + R_y y$ with R = Cov(tau, z) Cov(z, z)^+, cd in (aa, bb, ab):
functions of the same two inputs, so that the law of some inputs never depends on which others are there.

$$\dot z = A z + \mathrm{noise}, \quad A = \begin{pmatrix} 0 & C_W \\ R_g & R_y + \chi \end{pmatrix}, \quad
  \dot V = A V + V A^T + D, \quad \dot K_1 = C_W m_S, \quad \dot m_S = R_g K_1 + (R_y + \chi) m_S + J$$

V(0) = Cov(z, z) under N(0, K0(0)); $D_{fg} = E[\nabla f \cdot Q \nabla g]$ is each neuron's own noise; J is the curvature of s s along
the covariance with y, $\tfrac12 C_W \mathrm{Cov}(Y(\nabla^2 ss), y)$, projected in the same way.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks import check_count
from ..model import Model, apply_slope
from ..pairs import input_count, sigma_product, triples, wick
from .base import Closure, Moments
from .four_point import bends, products_and_noise


class SigmaState(NamedTuple):
    """K0, the joint covariance of (g, y), and the means' corrections; blocks of V in the order G, S."""

    k: Float[Array, " P"]
    V: Float[Array, "2P 2P"]
    K1: Float[Array, " P"]
    m_S: Float[Array, " P"]


class SigmaKernel(Closure[SigmaState]):
    """V4, K1 and the joint covariances of G and S; for odd activations to a fraction of a per cent of the exact V4.

    Four-point expectations are exact to about 1e-9 where an input occurs twice; those of four different inputs are a series
    to `degree`, whose error falls like the correlation to that power. The pseudo-inverse of Cov(z, z), scaled to unit
    diagonal, drops eigenvalues below 1e-9 of the largest (1e-4 in float32): directions that a linear activation, the
    diagonal or repeated inputs make redundant. Derivatives along directions that separate copies or opposites leave out what it
    gains there: up to 1e-3 of V4, but all of K1_ab. For GELU, SiLU and ReLU it keeps V4 to 2 % at t = 1 and K1 to 20 %, since
    S feels the mean of phi, which it does not carry itself. With `eps` it is an Euler recursion, without the eps^4 terms of a
    real layer. Use `HermiteTower` where that matters.
    """

    degree: int = eqx.field(static=True, default=20)

    def __check_init__(self):
        check_count(self.degree, "degree", 2)

    def init(self, model: Model, k):
        value, slope, _ = model.activation.expansion(k)
        products, _ = products_and_noise(model.activation, k, value, self.degree)
        V = _joint_covariance(k, slope, products - value[:, None] * value)
        return SigmaState(k, V, jnp.zeros_like(k), jnp.zeros_like(k))

    def drift(self, model: Model, state: SigmaState) -> SigmaState:
        k, V, K1, m_S = state
        P = k.shape[0]
        C_W, C_b = model.C_W.astype(k.dtype), model.C_b.astype(k.dtype)
        value, slope, curvature = model.activation.expansion(k)
        q = C_b + C_W * value
        products, noise_y = products_and_noise(model.activation, k, q, self.degree)
        C = _joint_covariance(k, slope, products - value[:, None] * value)
        bend_R = self._bend_regression(model, k, C, value, slope, curvature)  # (P, 3, 6)
        triple = triples(input_count(P))
        R = 0.5 * jnp.einsum("pt,ptz->pz", q[triple], bend_R, precision="highest")

        def A(z):  # (2P, ...)
            g, y = z[:P], z[P:]
            return jnp.concatenate([C_W * y, apply_slope(R[:, :3], g) + apply_slope(R[:, 3:] + C_W * slope, y)])

        noise_g = sigma_product(k, q)
        cross = apply_slope(slope, noise_g)
        AV = A(V)
        local = jnp.concatenate([triple, triple + P], axis=1)  # (P, 6), the places of z for each pair
        covariance_with_y = V[local[:, :, None], triple[:, None, :] + P]  # (P, 6, 3)
        J = 0.5 * C_W * jnp.einsum("ptz,pzt->p", bend_R, covariance_with_y, precision="highest")
        mean = A(jnp.concatenate([K1, m_S]))
        noise = jnp.block([[noise_g, cross.T], [cross, noise_y]])
        return SigmaState(q, AV + AV.T + noise, mean[:P], mean[P:] + J)

    def moments(self, model: Model, state: SigmaState) -> Moments:
        P = state.k.shape[0]
        V = state.V
        return Moments(state.k, V[:P, :P], state.K1, V[:P, P:], V[P:, P:], state.m_S)

    def _bend_regression(self, model, k, C, value, slope, curvature) -> Float[Array, "P 3 6"]:
        """Regression of the second derivatives of s_a s_b (by aa, bb, and ab twice) on the local z."""
        P = k.shape[0]
        triple = triples(input_count(P))
        # The mean of each second derivative is twice a slope (Price), and Cov(f, phi phi) is how it moves with K.
        local_wick = wick(k)[triple[:, :, None], triple[:, None, :]]
        with_g = 2 * jnp.einsum("ptu,puv->ptv", curvature, local_wick, precision="highest")
        with_y = bends(model.activation, k, self.degree) - 2 * slope[:, :, None] * value[triple][:, None, :]
        local = jnp.concatenate([triple, triple + P], axis=1)
        inverse = _pseudo_inverse(C[local[:, :, None], local[:, None, :]])
        return jnp.matmul(jnp.concatenate([with_g, with_y], axis=-1), inverse, precision="highest")


def _joint_covariance(k, slope, ss) -> Float[Array, "2P 2P"]:
    """Cov(z, z) of one neuron under N(0, K0), blocks phi phi and s s."""
    pp = wick(k)
    sp = apply_slope(slope, pp)
    return jnp.block([[pp, sp.T], [sp, 0.5 * (ss + ss.T)]])


def _pseudo_inverse(C):
    threshold = 1e-9 if C.dtype == jnp.float64 else 1e-4
    scale = jnp.sqrt(jnp.diagonal(C, axis1=-2, axis2=-1))
    scale = 1 / jnp.where(scale > 0, scale, 1.0)
    both = scale[..., :, None] * scale[..., None, :]
    return jnp.linalg.pinv(C * both, rtol=threshold, hermitian=True) * both
