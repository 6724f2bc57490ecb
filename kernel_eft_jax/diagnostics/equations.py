r"""The equations of the kernel-only theory, term by term, on sampled networks or on another closure's solution.

One layer moves the covariance of the kernel, exactly and at any width, by

$$(V_4' - V_4) / \epsilon^2 = C_W (V_{GS} + V_{GS}^T) + E[\Sigma(G, \hat Q)]
  + \epsilon^2 \left( C_W^2 V_{SS} + E[\hat Q_{ac} \hat Q_{bd} + \hat Q_{ad} \hat Q_{bc}] \right)$$

and its mean by C_b + C_W E[S]. The closure of Kawase and Ota (2026) puts $\chi V_4 + V_4 \chi^T$ and $\Sigma(K_0, Q(K_0))$ for the first two
terms, nothing for the third, and $\chi K_1 + \tfrac12 \mathrm{Hess} : V_4$ for n C_W (E[S] - E_K0[ss]). Each difference is a number that needs no
derivative in depth: one saved depth of an ensemble is enough.

Every function takes an `Estimate`, and gives value and standard error by the jackknife; or a `Solution`, and gives the prediction
of its closure at leading order in 1/n, for small eps, with errors of zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..activations import Expansion
from ..ensemble import Estimate
from ..model import Model
from ..pairs import input_count, pack, pair_table, pairs, sigma_product, triples, unpack, unpack_covariance
from ..trajectory import Solution

Parts = TypeVar("Parts")
# Pair space, for NumPy arrays here.
_pack: Callable[[Any], Any] = pack
_unpack: Callable[[Any], Any] = unpack
_unpack_covariance: Callable[[Any], Any] = unpack_covariance
_sigma: Callable[[Any, Any], Any] = sigma_product


class CovarianceResidual(NamedTuple):
    """The exact rate of V4 less that of the kernel-only closure, in three parts that add up to it."""

    transport: Float[np.ndarray, "T N N N N"]  # C_W (V_GS + V_GS^T) - chi V4 - V4 chi^T
    source: Float[np.ndarray, "T N N N N"]  # E[Sigma(G, Qhat)] - Sigma(K0, Q(K0)), of order 1/n
    layer: Float[np.ndarray, "T N N N N"]  # what a layer adds beyond the continuum, of order eps^2
    total: Float[np.ndarray, "T N N N N"]  # the sum


def covariance_residual(
    result: Estimate | Solution, model: Model, K0: Float[ArrayLike, "T N N"] | None = None
) -> tuple[CovarianceResidual, CovarianceResidual]:
    r"""The residual of the V4 equation of the kernel-only closure, V4 that of `result`, and its standard error.

    The expectations Q and chi are those of `model`, at the kernels `K0` (by default those of `result`): give a model with
    `GaussHermite` and its own K0 to see what a quadrature rule does. For a Solution only the transport part is of leading order.
    Raises ValueError if shapes do not fit.
    """
    k0 = _packed_kernels(result, K0)
    q, slope, _ = expansions(model, k0)
    C_W, C_b = float(model.C_W), float(model.C_b)
    triple = triples(input_count(k0.shape[-1]))

    def both_ways(response):
        return response + np.swapaxes(response, 1, 2)

    def transport(V4, V_GS):
        return both_ways(C_W * V_GS) - both_ways(np.einsum("tps,tpsq->tpq", slope, V4[:, triple]))

    def sampled(x: Any, width: int, dt: float) -> CovarianceResidual:
        V4, V_GS, V_SS = (_pack_covariance(V) for V in (x.V4, x.V_GS, x.V_SS))
        G, Q = _pack(x.G), C_b + C_W * _pack(x.S)
        source = _sigma(G, Q) + C_W / width * _exchange(V_GS, both=True) - _sigma(k0, q)
        square = 0.5 * _sigma(Q, Q) + C_W**2 / width * _exchange(V_SS, both=False)
        parts = transport(V4, V_GS), source, dt * (C_W**2 * V_SS + square)
        return CovarianceResidual(*(_unpack_covariance(part) for part in (*parts, sum(parts))))

    if isinstance(result, Estimate):
        step = float(result.ts[-1] / max(result.layers[-1], 1))  # eps^2
        return result.jackknife(lambda x: sampled(x, result.width, step))
    V4 = np.asarray(result.packed.V4)
    part = np.zeros_like(V4)
    if result.packed.V_GS is not None:  # else the closure is one of the kernel alone, and has none
        part = transport(V4, np.asarray(result.packed.V_GS))
    full, zero = _unpack_covariance(part), np.zeros_like(_unpack_covariance(part))
    return CovarianceResidual(full, zero, zero, full), CovarianceResidual(zero, zero, zero, zero)


class MeanSource(NamedTuple):
    """n (E[S] - E_K0[ss]), what drives K1: dK1/dt = C_W U1."""

    exact: Float[np.ndarray, "T N N"]  # U1 itself
    closure: Float[
        np.ndarray, "T N N"
    ]  # (chi K1 + 1/2 Hess : V4) / C_W, the kernel-only model of it, from K1 and V4 of the result


def mean_source(
    result: Estimate | Solution, model: Model, K0: Float[ArrayLike, "T N N"] | None = None
) -> tuple[MeanSource, MeanSource]:
    r"""The source of K1 and the kernel-only model of it, and their standard errors.

    At depth zero the neurons are independent and the exact source is 0, while the model gives $\tfrac12 \mathrm{Hess} : V_4 / C_W$ with V4 the
    Wishart covariance: it counts the sampling noise of G itself, which does not move S. See `covariance_residual` for the arguments.
    """
    k0 = _packed_kernels(result, K0)
    _, slope, curvature = expansions(model, k0)
    triple = triples(input_count(k0.shape[-1]))

    def sources(x: Any) -> MeanSource:
        K1, V4 = _pack(np.asarray(x.K1)), _pack_covariance(np.asarray(x.V4))
        bend = np.einsum("tpsu,tpsu->tp", curvature, V4[:, triple[:, :, None], triple[:, None, :]])
        closure = (np.einsum("tps,tps->tp", slope, K1[:, triple]) + 0.5 * bend) / float(model.C_W)
        exact = closure if x.U1 is None else _pack(np.asarray(x.U1))
        return MeanSource(_unpack(exact), _unpack(closure))

    return _evaluate(sources, result)


def driven_K1(
    result: Estimate | Solution, model: Model
) -> tuple[Float[np.ndarray, "T N N"], Float[np.ndarray, "T N N"]]:
    r"""K1 driven by the exact source, $K_1(t) = C_W \int_0^t U_1$ by the trapezoid of the saved depths, and its standard error.

    It must be K1 up to the spacing of the depths, which begin at zero. Raises ValueError if they do not, or if the closure of a
    Solution does not carry U1.
    """
    ts = np.asarray(result.ts)
    if ts[0] != 0:
        raise ValueError(f"The result must begin at depth zero, but begins at t = {ts[0]:.4g}: save that depth too.")
    if result.U1 is None:
        raise ValueError(
            "The closure of this Solution carries no U1: solve with `HermiteTower` or `SigmaKernel`, or sample."
        )

    def integral(x):
        U1 = np.asarray(x.U1)
        steps = 0.5 * np.diff(ts)[:, None, None] * (U1[1:] + U1[:-1])
        return float(model.C_W) * np.concatenate([np.zeros_like(U1[:1]), np.cumsum(steps, axis=0)])

    return _evaluate(integral, result)


def kurtosis(result: Estimate | Solution) -> tuple[Float[np.ndarray, "T N"], Float[np.ndarray, "T N"]]:
    r"""n times the excess kurtosis of the pre-activation of one neuron, for each input, and its standard error.

    Neurons are Gaussian given the fluctuating covariance, so that at leading order
    $n\, \kappa_4(\phi_a) / E[\phi_a^2]^2 = 3 (V_{4;aa,aa} - 2 K_{0;aa}^2) / K_{0;aa}^2$: three times what the covariance of the kernel has
    beyond that of independent Gaussian neurons. Zero at depth zero.
    """

    def measured(x):
        return np.einsum("taa->ta", x.kappa4) / np.einsum("taa->ta", x.G) ** 2

    if isinstance(result, Estimate):
        return result.jackknife(measured)
    K0 = np.einsum("taa->ta", np.asarray(result.K0))
    predicted = 3 * (np.einsum("taaaa->ta", np.asarray(result.V4)) / K0**2 - 2)
    return predicted, np.zeros_like(predicted)


@eqx.filter_jit
def _expansions(model: Model, k: Float[Array, "T P"]) -> Expansion:
    return jax.vmap(model.expansion)(k)


def expansions(model: Model, k: Any) -> tuple[Any, Any, Any]:
    """Q, chi and Hess at a sequence of kernels, in pair space, as NumPy arrays."""
    value, slope, curvature = (np.asarray(x) for x in _expansions(model, jnp.asarray(k)))
    return value, slope, curvature


def _evaluate(function: Callable[[Any], Parts], result: Estimate | Solution) -> tuple[Parts, Parts]:
    """Value and standard error of a function of the moments: by the jackknife, or of a theory, which has none."""
    if isinstance(result, Estimate):
        return result.jackknife(function)
    value = function(result)
    return value, jax.tree.map(np.zeros_like, value)


def _packed_kernels(result, K0) -> Any:
    own = np.asarray(result.K0, np.float64)
    K0 = own if K0 is None else np.asarray(K0, np.float64)
    if K0.shape != own.shape:
        raise ValueError(
            f"Argument `K0` must hold a kernel for each saved depth, shape {own.shape}, but has shape {K0.shape}."
        )
    return _pack(K0)


def _pack_covariance(V: Any) -> Any:
    a, b = pairs(V.shape[-1])
    return V[..., a[:, None], b[:, None], a, b]


def _exchange(V: Any, *, both: bool) -> Any:
    """V_ac,bd + V_ad,bc, and with `both` V_bc,ad + V_bd,ac too: n times the covariances in E[Sigma(G, Qhat)]."""
    inputs = input_count(V.shape[-1])
    table, (a, b) = pair_table(inputs), pairs(inputs)
    ac, ad = table[a[:, None], a], table[a[:, None], b]
    bc, bd = table[b[:, None], a], table[b[:, None], b]
    half = V[:, ac, bd] + V[:, ad, bc]
    return half + V[:, bc, ad] + V[:, bd, ac] if both else half
