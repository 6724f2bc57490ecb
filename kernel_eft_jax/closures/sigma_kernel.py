r"""The closure that the paper suggests: the state is the kernel G and the sigma-kernel S together.

Let z = (g, y) be the scaled fluctuations of G and S. Their equations contain one more fluctuation, that of
$\tau = \tfrac12 Q : \nabla^2 (s_a s_b)$. The closure replaces it by its projection on phi_c phi_d and s_c s_d under
N(0, K0), $\tau \to R_g g + R_y y$ with R = Cov(tau, z) Cov(z, z)^+ and cd in (aa, bb, ab). These are functions of the
same two inputs, so that the law of some inputs never depends on the other inputs.

$$\dot z = A z + \mathrm{noise}, \quad A = \begin{pmatrix} 0 & C_W \\ R_g & R_y + \chi \end{pmatrix}, \quad
  \dot V = A V + V A^T + D, \quad \dot K_1 = C_W m_S, \quad \dot m_S = R_g K_1 + (R_y + \chi) m_S + J$$

V(0) = Cov(z, z) under N(0, K0(0)); $D_{fg} = E[\nabla f \cdot Q \nabla g]$ is each neuron's own noise; J is the hessian
of s s along the covariance with y, $\tfrac12 C_W \mathrm{Cov}(Y(\nabla^2 ss), y)$, projected in the same way.

A layer has two steps. First free neurons flow, $z \to F z$ + noise with F = exp(eps^2 A), A without C_W and chi. The
kernel is that in the middle of the layer, which makes the noise of G exact. Then the neurons respond to
$\delta = \epsilon^2 C_W y$, the fluctuation of the covariance of the increments. For this response chi, Hess and the
projection B of $\nabla^2 ss$ are taken at the next kernel K':

$$z' = F z + (\delta, \chi' \delta) + \mathrm{noise}, \qquad
  m_S' = (F m)_S + \epsilon^2 C_W \big(\chi' m_S + \tfrac12 B' F\, \mathrm{Cov}(z, y)\big)
    + \tfrac12 \mathrm{Hess}' : \mathrm{Cov}(\delta, \delta)$$
"""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..activations import Activation
from ..activations.base import kink_jumps, kink_places
from ..checks import check_count, is_concrete
from ..expectations.conditional import Conditional
from ..expectations.four_point import nodes_error, products, products_error, products_noise
from ..kernel_maps import apply_gradient, contract_hessian
from ..linear import matmul
from ..model import Model
from ..pairs import diagonal, input_count, off_diagonal, pair_count, sigma_product, triples, wick
from ..quadrature import remaining_share
from .base import COPIES, Closure, Moments, pair_units
from .sigma_regression import Regression, regression, regression_error

# A layer is cut into 2^24 parts: rates of up to 10^7 a layer are stable, and those of order one exact to rounding.
DOUBLINGS = 24
REST_OF_NOISE = 5.0  # the rest of the noise was found to be up to 4.6 times that of the products (ReLU, two copies)


class SigmaState(NamedTuple):
    """K0, the joint covariance of (g, y), and the means' corrections; blocks of V in the order G, S."""

    k: Float[Array, " P"]
    V: Float[Array, "2*P 2*P"]
    K1: Float[Array, " P"]
    m_S: Float[Array, " P"]


class SigmaKernel(Closure[SigmaState]):
    """V4, K1 and the joint covariances of G and S; for odd activations V4 is right to a fraction of a per cent.

    Four-point expectations of two different inputs are exact to about 1e-11. Those of three and four are series to
    `degree`, whose errors fall like a correlation to that power: for three inputs the correlation of two given the
    third, which is close to 1 for near copies (`expectation_error` counts both). The pseudo-inverse of Cov(z, z),
    scaled to unit diagonal, drops eigenvalues below 1e-9 of the largest (1e-4 in float32): they belong to directions
    that are redundant because of a linear activation, of the diagonal, or of repeated inputs. Where s is nearly |x|, as
    x tanh x is at large variances, they are not: `expectation_error` counts what K1 loses, and float32 is refused.
    Inputs that are multiples of each other, such as copies and opposite inputs, are refused if s of the one is not zero
    where the other is at a kink (HardTanh, ReLU6, HardSwish).
    Do not differentiate along a direction that separates identical or opposite inputs: the derivative lacks up to 1e-3
    of V4 and all of K1_ab. For GELU, SiLU and ReLU at t = 1 V4 is right to 2 % and K1 to 20 %, because S depends on the
    mean of phi, which this closure does not carry. K1 is less accurate where a layer adds as much as the stream holds:
    for erf, C_W = 2, K0 = 1 and eps = 1 layer 10 has V4 = 551.0 and K1 = -1.39, where 550.1 and -1.68 are exact. The
    closure takes blocks of one matrix without decay; others raise ValueError. Inside jit the value of a decay is not
    known: there a decay that is not zero gives NaN. Derivatives by decay are zero, which is not that of networks: `fit`
    and `fisher` refuse it among the free parameters, and `sensitivity` leaves it out. Use `HermiteTower` for others.
    """

    degree: int = eqx.field(static=True, default=20, converter=lambda degree: check_count(degree, "degree", 2))
    has_decay: ClassVar[bool] = False

    def settled(self, model: Model, k, dt) -> "SigmaKernel":
        _one_matrix(model)
        return self

    def init(self, model: Model, k):
        activation = _one_matrix(model)
        # Inside jit no decay can be looked at: one that is not zero gives NaN, not the numbers of another network.
        k = jnp.where(model.decay == 0, k, jnp.nan)
        value, gradient, _ = activation.expansion(k)
        fourth = products(Conditional(activation, k, self.degree))
        V = _joint_covariance(k, gradient, fourth - value[:, None] * value[None, :])
        return SigmaState(k, V, jnp.zeros_like(k), jnp.zeros_like(k))

    def step(self, model: Model, state: SigmaState, dt) -> SigmaState:
        k, q = state.k, model.q(state.k)
        middle, end = (Conditional(model.activation, k + share * dt * q, self.degree) for share in (0.5, 1.0))
        return self._layer(model, state, dt, q, _free_field(middle, regression(middle), q), regression(end))

    def drift(self, model: Model, state: SigmaState) -> SigmaState:
        # The place in the layer at which expectations are taken matters at second order only: here they are taken once,
        # and not differentiated.
        given = Conditional(model.activation, state.k, self.degree)
        here = regression(given)
        q = model.last.value(here.value)
        field, zero = _free_field(given, here, q), jnp.zeros((), state.k.dtype)
        return jax.jvp(lambda dt: self._layer(model, state, dt, q, field, here), (zero,), (jnp.ones_like(zero),))[1]

    def _layer(self, model: Model, state: SigmaState, dt, q, field, end: Regression) -> SigmaState:
        """`step`, from the field of free neurons in the middle of the layer and expectations at its end."""
        k, V, K1, m_S = state
        P, drive, (generator, noise) = k.shape[0], dt * model.C_W.astype(k.dtype), field
        free, noise = _flow(generator, noise, dt)
        free = jnp.eye(2 * P, dtype=k.dtype) + free
        # (g, y) respond at the next kernel, since the covariance of the layer's increments has moved by `drive` times
        # y.
        one = jnp.eye(P, dtype=k.dtype)
        layer = free.at[:, P:].add(drive * jnp.concatenate([one, apply_gradient(end.gradient, one)]))
        local, triple = _local(P), triples(input_count(P))
        with_y = matmul(free, V[:, P:])[local[:, :, None], triple[:, None, :]]  # (P, 6, 3)
        source = 0.5 * drive * jnp.einsum("ptz,pzt->p", end.projection, with_y, precision="highest")
        source = source + 0.5 * drive**2 * contract_hessian(end.hessian, V[P:, P:])
        mean = matmul(layer, jnp.concatenate([K1, m_S]))
        V = matmul(matmul(layer, V), layer.T) + noise
        return SigmaState(k + dt * q, V, mean[:P], mean[P:] + source)

    def numbers(self, model: Model, inputs: int) -> int:
        # (g, y) of all pairs, and from four inputs on the modes of every pair in the frame of every other.
        series = 6 * self.degree * (self.degree + 1) if inputs >= 4 else 0
        return (4 * COPIES + series) * pair_count(inputs) ** 2

    def error(self, model: Model, k) -> Float[Array, ""]:
        variances = k[diagonal(input_count(k.shape[0]))]
        nodes = jax.lax.map(lambda k: nodes_error(model.activation, k, self.degree), variances)
        given = Conditional(model.activation, k, self.degree)
        # What the regression on several inputs makes of rounding, measured for near copies.
        copies = jnp.asarray(jnp.finfo(k.dtype).eps ** 0.7 if k.shape[0] > 1 else 0, k.dtype)
        lost = jnp.where(_loses_kinks(model.activation, k), 1.0, 0.0).astype(k.dtype)
        errors = [
            model.error(k),
            REST_OF_NOISE * products_error(given),
            jnp.max(nodes),
            regression_error(given),
            copies,
            lost,
        ]
        return jnp.max(jnp.stack(errors))

    def moments(self, model: Model, state: SigmaState) -> Moments:
        P = state.k.shape[0]
        V = state.V
        return Moments(state.k, V[:P, :P], state.K1, V[:P, P:], V[P:, P:], state.m_S)

    def units(self, model: Model, k):
        unit = pair_units(k)
        unit_S = pair_units(model.activation.moments(k))
        both = jnp.concatenate([unit, jnp.where(unit_S > 0, unit_S, 1)])
        return SigmaState(unit, both[:, None] * both[None, :], unit, both[unit.size :])

    def remember(self, model: Model, state: SigmaState):
        return state.V[:, : state.k.shape[0]]

    def follow(self, model: Model, state: SigmaState, memory, dt):
        # Fluctuations (g, y) obey the same linear equation as the corrections of the means, (K1, m_S).
        P = state.k.shape[0]

        def means(z):
            after = self.step(model, state._replace(K1=z[:P], m_S=z[P:]), dt)
            return jnp.concatenate([after.K1, after.m_S])

        response = jax.linearize(means, jnp.zeros_like(memory[:, 0]))[1]
        return jax.vmap(response, in_axes=1, out_axes=1)(memory)

    def recall(self, model: Model, state: SigmaState, memory):
        return memory[: state.k.shape[0]]


def _free_field(given: Conditional, at: Regression, q):
    """The generator and the noise of free neurons' (g, y) at a kernel."""
    P, k = q.shape[0], given.k
    R = 0.5 * jnp.einsum("pt,ptz->pz", q[triples(input_count(P))], at.projection, precision="highest")
    free = jnp.zeros((2 * P, 2 * P), k.dtype).at[np.arange(P)[:, None] + P, _local(P)].add(R)
    noise_g = sigma_product(k, q)
    cross = apply_gradient(at.gradient, noise_g)
    return free, jnp.block([[noise_g, cross.T], [cross, products_noise(given, q)]])


def _loses_kinks(activation: Activation, k: Float[Array, " P"]) -> Bool[Array, ""]:
    """Whether an input is a multiple of another one to rounding, and s is not zero at the one where the other is at a
    kink.

    Averages given an input lack the delta function of s'' of an input that follows from it.
    """
    inputs = input_count(k.shape[0])
    if inputs == 1 or not activation.kinks:
        return jnp.zeros((), bool)
    k_aa, k_bb, k_ab = k[triples(inputs)[off_diagonal(inputs)]].T
    ratio = jnp.sign(k_ab) * jnp.sqrt(k_bb) / jnp.sqrt(k_aa)
    others = jnp.stack([ratio, 1 / ratio], axis=1)[:, :, None] * kink_places(activation, k.dtype)[None, None]
    jumps = kink_jumps(activation, k.dtype)
    at_kinks = jnp.max(jnp.abs(activation(others) * jumps[None, None]), axis=(1, 2))
    follows = remaining_share(k_aa, k_bb, k_ab) <= jnp.finfo(k.dtype).eps ** 0.7
    return jnp.any(follows & (at_kinks > 1e-3 * jnp.sqrt(jnp.max(activation.moments(k)))))


def _one_matrix(model: Model) -> Activation:
    """The activation of a block of one matrix without decay; others are refused, where the decay can be looked at."""
    if not model.one_matrix or (is_concrete(model.decay) and np.asarray(model.decay) != 0):
        raise ValueError(
            "Argument `closure` is SigmaKernel, the paper's extension for one matrix and decay 0: for other blocks "
            "take HermiteTower(), which is exact for all."
        )
    return model.activation


def _local(P):
    """The places of z = (g, y) that each pair's functions are projected on, (P, 6)."""
    triple = triples(input_count(P))
    return np.concatenate([triple, triple + P], axis=1)


def _flow(generator, noise, dt):
    """Flow less identity and noise of z' = generator z + noise over a time dt, by doubling a short time.

    Right for stiff generators too, such as that of nearly equal inputs, whose difference decays within a fraction of a
    layer.
    """
    shorter = (0.5**DOUBLINGS) * dt
    E, N = shorter * generator, shorter * noise
    EN = matmul(E, N)
    short = E + 0.5 * matmul(E, E), N + 0.5 * (EN + EN.T)  # to second order

    def twice(_, over):
        E, N = over
        EN = matmul(E, N)
        return 2 * E + matmul(E, E), 2 * N + EN + EN.T + matmul(EN, E.T)

    return jax.lax.fori_loop(0, DOUBLINGS, twice, short)


def _joint_covariance(
    k: Float[Array, " P"], gradient: Float[Array, "P 3"], ss: Float[Array, "P P"]
) -> Float[Array, "2*P 2*P"]:
    """Cov(z, z) of one neuron under N(0, K0), blocks phi phi and s s."""
    sp = apply_gradient(gradient, wick(k))
    return jnp.block([[wick(k), sp.T], [sp, 0.5 * (ss + ss.T)]])
