"""Errors of a trajectory that fails: they name the quantity, the entry, the depth and the remedy."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import is_concrete
from ..closures import HermiteTower
from ..pairs import diagonal, input_count, pairs, unpack
from .solution import Solution

LARGEST_ERROR = 0.01  # of the estimated relative error of the Gaussian expectations


def checked(solution: Solution, k: Float[Array, " P"]) -> Solution:
    """The solution, if it is finite and complete and its expectations are right to LARGEST_ERROR.

    Raises RuntimeError for any other solution.
    """
    if not is_concrete((solution.packed, solution.stats, solution.ts)):
        return _checked_inside_jit(solution)
    if not np.isfinite(np.asarray(k)).all():
        raise RuntimeError(
            f"The input kernel is not finite in {k.dtype}: take float64, or multiply the inputs by a number that "
            "brings their variances nearer to one."
        )
    _check_squares(solution, k)
    successful = bool(solution.result == diffrax.RESULTS.successful)
    if not (successful and all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(solution.packed))):
        _check_start(solution, k)
    if not successful:
        _check_error(float(_error_at(solution.closure, solution.model, k)))  # rates that are noise let no step succeed
        raise RuntimeError(
            f"The solve stopped at depth t = {float(solution.stats['reached']):.6g} of {float(solution.ts[-1]):.6g}, "
            f"where its steps became too small or too many: {diffrax.RESULTS[solution.result]} Variances may diverge "
            "there, or be so large that rounding is larger than the tolerance of a step: look at smaller depths, or "
            "solve layers (`layers` and `eps`), whose steps are given."
        )
    _check_entries(solution)
    _check_error(float(solution.stats["expectation_error"]))
    return solution


@eqx.filter_jit
def _error_at(closure, model, k):
    return closure.error(model, k)


def _check_error(error):
    if not error <= LARGEST_ERROR:
        raise RuntimeError(
            f"The Gaussian expectations have an estimated relative error of {error:.2g}, above {LARGEST_ERROR}: the "
            "numbers are not reliable. The activation changes too sharply for its variance, or inputs are nearly equal "
            "at a variance too large for the dtype. Take float64, a class with closed forms or with kinks (ReLU, "
            "Piecewise) for a function with kinks, smaller variances, a higher degree of the closure, or throw=False "
            "to see the numbers all the same."
        )


def underflows(K0: Float[Array | np.ndarray, "*batch P"], V4: Float[Array | np.ndarray, "*batch P P"]) -> Any:
    """Whether V4_aa,aa, of the size of K0_aa^2, is below the smallest positive number of its dtype, (*batch,
    inputs)."""
    own = diagonal(input_count(K0.shape[-1]))
    return (K0[..., own] > 0) & (V4[..., own, own] < float(jnp.finfo(V4.dtype).tiny))


def _check_squares(solution, k):
    """Check that each V4_aa,aa is positive, and none is lost to underflow; and where the solve is not finite, that
    K0_aa^2 at the start is neither too small nor too large a number."""
    K0, V4 = np.asarray(solution.packed.K0), np.asarray(solution.packed.V4)
    finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(solution.packed))
    lost = np.asarray(underflows(K0, V4))
    if finite and not lost.any():
        return
    start = np.asarray(unpack(k)).diagonal()
    if lost.any():
        i, a = np.argwhere(lost)[0]
        p = diagonal(len(start))[a]
        if V4[i, p, p] < 0:
            raise _below_zero(solution, "V4", i, p)
        variance, where, beyond = unpack(K0)[i, a, a], _depth(solution, i), "below the smallest"
    else:
        known, where = jnp.finfo(k.dtype), "depth zero"
        roots = float(known.tiny) ** 0.5, (float(known.max) / 2) ** 0.5
        if roots[0] <= start.min() and start.max() <= roots[1]:
            return
        small = start.min() < roots[0]
        a, beyond = (int(start.argmin()), "below the smallest") if small else (int(start.argmax()), "above the largest")
        variance = start[a]
    raise RuntimeError(
        f"V4 is of the size of K0^2, and the square of K0[{a}, {a}] = {variance:.6g}, at {where}, is {beyond} "
        f"number of {k.dtype}. {'Take float64, or multiply' if k.dtype == jnp.float32 else 'Multiply'} the inputs by a "
        "number that brings their variances nearer to one"
        f"{', or look at smaller depths, where variances are larger' * bool(lost.any())}."
    )


def _checked_inside_jit(solution):
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(solution.packed)]
    bad = ~jnp.stack(finite).all() | (solution.result != diffrax.RESULTS.successful)
    bad = bad | underflows(solution.packed.K0, solution.packed.V4).any()
    bad = bad | ~(solution.stats["expectation_error"] <= LARGEST_ERROR)
    packed = eqx.error_if(
        solution.packed,
        bad,
        "The solve failed, is no longer finite, or its expectations are not accurate. Run the same call outside jit: "
        "its error names the depth and the entry.",
    )
    return eqx.tree_at(lambda s: s.packed, solution, packed)


def _check_start(solution, k):
    """Check that Q is finite at the input kernel. If it is not, the model is wrong, and not the depth."""
    try:
        solution.model.Q(unpack(k))
    except FloatingPointError as error:
        raise RuntimeError(f"The solve is not finite from the input kernel on. {error}") from error


def _check_entries(solution):
    known = [(name, np.asarray(v)) for name, v in solution.packed._asdict().items() if v is not None]
    for i in range(len(solution.ts)):
        for name, values in known:
            wrong = np.argwhere(~np.isfinite(values[i]))
            if wrong.size:
                raise RuntimeError(
                    f"The solve is no longer finite: {_entry(solution, name, i, wrong[0])} is "
                    f"{values[i][tuple(wrong[0])]}. Variances may grow without bound for this activation: look at "
                    f"smaller depths{', or take float64' * (values.dtype == np.float32)}."
                )
            if name in ("V4", "V_SS"):
                variances = np.diagonal(values[i])
                p = int(variances.argmin())
                if variances[p] < -1e-6 * np.abs(variances).max() and variances[p] < -_rounding(solution, name, i):
                    raise _below_zero(solution, name, i, p)


def _below_zero(solution, name, i, p):
    """The error for the variance of pair p at one saved depth."""
    exact = isinstance(solution.closure, HermiteTower)
    return RuntimeError(
        f"The solve is no longer valid: the variance {_entry(solution, name, i, (p, p))} is "
        f"{getattr(solution.packed, name)[i, p, p]:.6g}, below zero. Take "
        f"{'a higher degree' if exact else 'the closure HermiteTower()'}, or smaller steps."
    )


def _entry(solution, name, i, place):
    """The entry of a packed quantity at one saved depth, in words."""
    a, b = pairs(input_count(solution.packed.K0.shape[-1]))
    return f"{name}[{', '.join(f'{a[p]}, {b[p]}' for p in place)}] at {_depth(solution, i)}"


def _depth(solution, i):
    return f"t = {solution.ts[i]:.6g}" if solution.layers is None else f"layer {solution.layers[i]}"


def _rounding(solution, name, i):
    """Rounding of V4 or V_SS at one saved depth, where all variances may be zero: S behind a norm does not
    fluctuate."""
    K, last = solution.K0[i], solution.model.last
    of = K if name == "V4" else (solution.model.Q(K) - last.C_b) / last.C_W
    return 1e3 * float(jnp.finfo(K.dtype).eps) * float(jnp.max(jnp.abs(of))) ** 2
