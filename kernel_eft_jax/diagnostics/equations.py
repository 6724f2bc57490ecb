r"""The equations of GOnly, term by term, on sampled networks or on another closure's solution.

One layer moves the covariance of the kernel, exactly and at any width, by ($a^2 = 1 - c \epsilon^2$)

$$V_4' = a^4 V_4 + a^2 \epsilon^2 \left( C_W (V_{GS} + V_{GS}^T) + E[\Sigma(G, \hat Q)] \right)
  + \epsilon^4 \left( C_W^2 V_{SS} + E[\hat Q_{ac} \hat Q_{bd} + \hat Q_{ad} \hat Q_{bc}] \right)$$

and its mean by $a^2 E[G] + \epsilon^2 (C_b + C_W E[S])$, where S is what the last matrix reads. The closure of Kawase
and Ota (2026) replaces the two terms of order eps^2 by $\chi V_4 + V_4 \chi^T$ and $\Sigma(K_0, Q(K_0))$, drops those
of order eps^4, and replaces $n\, C_W (E[S] - S(K_0))$ by the response of S to G,
$\chi K_1 + \tfrac12 \mathrm{Hess} : V_4$ for one matrix. Each difference is measured without a derivative in depth: one
saved depth of an ensemble is enough. For branches that begin with a matrix or a norm the closure is exact at leading
order.

Every function takes an `Estimate` or a `Solution`. From an `Estimate` it measures value and standard error, by the
jackknife. For a `Solution` it gives the prediction of the closure at leading order in 1/n, with errors of zero. The
model is that of the result unless another one is given.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..checks import ON_HOST, check_kind, check_untraced
from ..depths import times_of_layers
from ..ensemble import Estimate
from ..kernel_maps import apply_all, carry_all
from ..model import Model
from ..pairs import input_count, pack, pack_covariance, pair_table, pairs, sigma_product, unpack, unpack_covariance
from ..trajectory import Solution

Diagnostic = TypeVar("Diagnostic")


class Measured(eqx.Module, Generic[Diagnostic]):
    """A diagnostic and its standard error, which has the same shape; zero for theories."""

    value: Diagnostic
    stderr: Diagnostic


class CovarianceResidual(eqx.Module):
    """The exact rate of V4 minus that of `GOnly`: three parts and their sum."""

    transport: Float[np.ndarray, "T N N N N"]  # C_W (V_GS + V_GS^T) - chi V4 - V4 chi^T
    source: Float[np.ndarray, "T N N N N"]  # E[Sigma(G, Qhat)] - Sigma(K0, Q(K0)), of order 1/n
    layer: Float[np.ndarray, "T N N N N"]  # what a layer adds beyond the continuum, of order eps^2
    total: Float[np.ndarray, "T N N N N"]  # the sum


class MeanSource(eqx.Module):
    """n (E[S] - S(K0)), the source of K1: dK1/dt = C_W U1 - c K1."""

    exact: Float[np.ndarray, "T N N"]  # U1 itself
    closure: Float[np.ndarray, "T N N"]  # that of GOnly, from K1 and V4 of the result


class OfGOnly(NamedTuple):
    """The values of GOnly at one depth: Q, chi V4, the mean correction of S, and the covariance of Q."""

    q: Float[Array, " P"]
    transport: Float[Array, "P P"]
    m_S: Float[Array, " P"]
    C_Q: Float[Array, "P P"]


def covariance_residual(
    result: Estimate | Solution, model: Model | None = None, K0: Float[ArrayLike, "T N N"] | None = None
) -> Measured[CovarianceResidual]:
    r"""The residual of the V4 equation of `GOnly`, with the V4 of `result`.

    The expectations Q and chi are those of `model` at the kernels `K0`, by default those of `result`. To see the effect
    of a quadrature rule, give a model with this rule and its own K0. The layer part is that of the layer which follows
    the saved depth (of the last layer, where none follows); it is zero in the continuum. For a Solution the source is
    zero, being of order 1/n. Raises ValueError if shapes do not fit.
    """
    check_untraced("covariance_residual", ON_HOST, result.K0, model, K0)
    model = _model_of(result, model)
    k0 = _packed_kernels(result, K0)
    responses = responses_along(model, k0)
    last, C_W, c = model.last, float(model.C_W), float(model.decay)
    dt = _following_steps(result)[:, None, None]

    def residual(G, Q, K1, V4, V_GQ, V_QQ, inverse_width) -> CovarianceResidual:
        kernel = of_g_only(responses, K1, V4)
        exact = _both_ways(V_GQ)
        noise = sigma_product(G, Q) + inverse_width * _exchange(V_GQ, both=True)
        square = 0.5 * sigma_product(Q, Q) + inverse_width * _exchange(V_QQ, both=False)
        layer = dt * (V_QQ + square - c * (exact + noise) + c**2 * V4)
        transport, source = exact - _both_ways(kernel.transport), noise - sigma_product(k0, kernel.q)
        parts = transport, source, layer, transport + source + layer
        return CovarianceResidual(*map(unpack_covariance, parts))

    def sampled(x: Any) -> CovarianceResidual:
        V4, V_GS, V_SS = (pack_covariance(V) for V in (x.V4, x.V_GS, x.V_SS))
        Q = np.asarray(last.value(jnp.asarray(pack(x.S))), np.float64)
        return residual(pack(x.G), Q, pack(x.K1), V4, C_W * V_GS, C_W**2 * V_SS, 1 / result.width)  # pyright: ignore

    def predicted(x: Any) -> CovarianceResidual:
        K1, V4 = np.asarray(x.packed.K1), np.asarray(x.packed.V4)
        kernel = of_g_only(responses, K1, V4)
        V_GQ, V_QQ = kernel.transport, kernel.C_Q
        if x.packed.V_GS is not None:  # else the closure is GOnly
            V_GQ, V_QQ = C_W * np.asarray(x.packed.V_GS), C_W**2 * np.asarray(x.packed.V_SS)
        return residual(k0, kernel.q, K1, V4, V_GQ, V_QQ, 0.0)

    return _evaluate(sampled if isinstance(result, Estimate) else predicted, result)


def mean_source(
    result: Estimate | Solution, model: Model | None = None, K0: Float[ArrayLike, "T N N"] | None = None
) -> Measured[MeanSource]:
    r"""The source of K1, exact and by `GOnly`.

    For one matrix the source of `GOnly` is $(\chi K_1 + \tfrac12 \mathrm{Hess} : V_4) / C_W$. At depth zero the neurons
    are independent and the exact source is 0. There `GOnly` takes the Wishart covariance for V4: it counts the sampling
    noise of G itself, which does not move S. If the branch begins with a matrix or a norm, this noise does move S, and
    both sources are the same. See `covariance_residual` for the arguments.
    """
    check_untraced("mean_source", ON_HOST, result.K0, model, K0)
    model = _model_of(result, model)
    responses = responses_along(model, _packed_kernels(result, K0))

    def sources(x: Any) -> MeanSource:
        closure = of_g_only(responses, pack(np.asarray(x.K1)), pack_covariance(np.asarray(x.V4))).m_S
        exact = closure if x.U1 is None else pack(np.asarray(x.U1))
        return MeanSource(unpack(exact), unpack(closure))

    return _evaluate(sources, result)


def driven_K1(result: Estimate | Solution, model: Model | None = None) -> Measured[Float[np.ndarray, "T N N"]]:
    r"""K1 driven by the exact source, $K_1' = a^2 K_1 + \epsilon^2 C_W U_1$ layer by layer, or
    $\dot K_1 = C_W U_1 - c K_1$.

    Between the saved depths, which must begin at zero, U1 is a straight line. So the result is K1 up to the spacing of
    the depths, and exactly K1 where all layers are saved. Raises ValueError if the depths do not begin at zero, or if
    the closure of a Solution does not carry U1.
    """
    check_untraced("driven_K1", ON_HOST, result.K0, model)
    model = _model_of(result, model)
    ts = np.asarray(result.ts)
    if ts[0] != 0:
        raise ValueError(f"The result must begin at depth zero, but begins at t = {ts[0]:.4g}: save that depth too.")
    if result.U1 is None:
        raise ValueError(
            "The closure of this Solution carries no U1: solve with `HermiteTower` or `SigmaKernel`, or sample."
        )
    weights = float(model.C_W) * _response(result, ts, float(model.decay))
    return _evaluate(lambda x: np.tensordot(weights, np.asarray(x.U1), 1), result)


def kurtosis(result: Estimate | Solution) -> Measured[Float[np.ndarray, "T N"]]:
    r"""n times the excess kurtosis of the pre-activation of one neuron, for each input.

    Neurons are Gaussian given the fluctuating covariance, so that at leading order
    $n\, \kappa_4(\phi_a) / E[\phi_a^2]^2 = 3 (V_{4;aa,aa} - 2 K_{0;aa}^2) / K_{0;aa}^2$: three times what the
    covariance of the kernel has beyond that of independent Gaussian neurons. Zero at depth zero.
    """

    check_untraced("kurtosis", ON_HOST, result.K0)

    def measured(x):
        return np.einsum("taa->ta", x.kappa4) / np.einsum("taa->ta", x.G) ** 2

    def predicted(x):
        K0 = np.einsum("taa->ta", np.asarray(x.K0))
        return 3 * (np.einsum("taaaa->ta", np.asarray(x.V4)) / K0**2 - 2)

    return _evaluate(measured if isinstance(result, Estimate) else predicted, result)


@eqx.filter_jit
def responses_along(model: Model, k0: Any) -> Any:
    """The responses of the block's maps at a sequence of packed kernels.

    They depend on the kernels alone, so all groups of the jackknife share them.
    """
    return jax.vmap(lambda k: list(model.responses(k)))(jnp.asarray(k0))


def of_g_only(responses: Any, K1: Any, V4: Any) -> Any:
    """GOnly at a sequence of kernels, as NumPy arrays."""
    return jax.tree.map(np.asarray, _of_g_only(responses, jnp.asarray(K1), jnp.asarray(V4)))


@jax.jit
def _of_g_only(responses, K1, V4) -> OfGOnly:
    def at(responses, K1, V4):
        *to_S, last = responses
        m_S, C_S = carry_all(to_S, K1, V4)
        return OfGOnly(last.value, apply_all([*to_S, last], V4), m_S, last.carry(m_S, C_S)[1])

    return jax.vmap(at)(responses, K1, V4)


def _response(result: Estimate | Solution, ts: Any, c: float) -> Float[np.ndarray, "T T"]:
    """The matrix that turns a source at the saved depths (a straight line between them) into the K1 that it drives."""
    basis, driven = np.eye(len(ts)), np.zeros((len(ts), len(ts)))
    if result.eps is None:
        for i, step in enumerate(np.diff(ts)):
            lost = np.exp(-c * step)
            driven[i + 1] = lost * driven[i] + 0.5 * step * (lost * basis[i] + basis[i + 1])
        return driven
    layers = np.asarray(result.layers)
    times = times_of_layers(np.arange(layers[-1] + 1), np.asarray(result.eps))
    now = driven[0]
    for layer in range(int(layers[-1])):
        dt = times[layer + 1] - times[layer]
        source = np.array([np.interp(times[layer], times[layers], line) for line in basis])
        now = (1 - c * dt) * now + dt * source
        driven[np.flatnonzero(layers == layer + 1)] = now
    return driven


def _model_of(result: Estimate | Solution, model: Model | None) -> Model:
    model = result.model if model is None else model
    if model is None:
        raise ValueError("Argument `model` is missing, and this result comes from a file that does not hold it.")
    check_kind(model, Model, "model")
    return model


def _following_steps(result: Any) -> Float[np.ndarray, " T"]:
    """dt = eps^2 of the layer behind each saved depth, or of the last layer if none is behind; zero in the
    continuum."""
    if result.eps is None:
        return np.zeros(len(result.ts))
    eps = np.asarray(result.eps, np.float64)
    return np.broadcast_to(eps if eps.ndim == 0 else eps[np.minimum(result.layers, eps.size - 1)], len(result.ts)) ** 2


def _evaluate(function: Callable[[Any], Diagnostic], result: Estimate | Solution) -> Measured[Diagnostic]:
    """Value and standard error of a function of the moments: by the jackknife for an ensemble; a theory has error
    zero."""
    if isinstance(result, Estimate):
        return Measured(*result.jackknife(function))
    value = function(result)
    return Measured(value, jax.tree.map(np.zeros_like, value))


def _both_ways(V: Any) -> Any:
    return V + np.swapaxes(V, 1, 2)


def _packed_kernels(result, K0) -> Any:
    own = np.asarray(result.K0, np.float64)
    K0 = own if K0 is None else np.asarray(K0, np.float64)
    if K0.shape != own.shape:
        raise ValueError(
            f"Argument `K0` must hold a kernel for each saved depth, shape {own.shape}, but has shape {K0.shape}."
        )
    return pack(K0)


def _exchange(V: Any, *, both: bool) -> Any:
    """V_ac,bd + V_ad,bc, and with `both` V_bc,ad + V_bd,ac too: n times the covariances in E[Sigma(G, Qhat)]."""
    inputs = input_count(V.shape[-1])
    table, (a, b) = pair_table(inputs), pairs(inputs)
    ac, ad = table[a[:, None], a], table[a[:, None], b]
    bc, bd = table[b[:, None], a], table[b[:, None], b]
    half = V[:, ac, bd] + V[:, ad, bc]
    return half + V[:, bc, ad] + V[:, bd, ac] if both else half
