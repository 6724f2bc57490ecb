r"""A theory compared with sampled networks, in standard errors: every quantity that both know, at the depths that both
saved.

At the width n of the networks the mean kernel of a theory is $K_0 + K_1 / n$. A theory to order 1/n leaves out relative
errors of order 1/n.
"""

from collections.abc import Mapping

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from ..checks import check_kind
from ..depths import first_steps
from ..ensemble import Estimate
from ..showing import Shown
from ..trajectory import Solution

COMPARED_QUANTITIES = ("G", "K1", "V4", "U1", "V_GS", "V_SS")
ROUNDING = 1e-4  # of kernels of infinite width that float32 and float64 carried through many layers


class Compared(eqx.Module):
    """One quantity at the common depths, by a theory and sampled; and what rounding of the networks, which are float32,
    leaves of an entry that does not vary, as the mean square behind a norm."""

    theory: Float[np.ndarray, "T *entry"]
    sampled: Float[np.ndarray, "T *entry"]
    stderr: Float[np.ndarray, "T *entry"]
    rounding: Float[np.ndarray, "T *entry"]

    @property
    def deviation(self) -> Float[np.ndarray, "T *entry"]:
        """Sampled minus theory in standard errors; zero where both are equal up to rounding, also without scatter."""
        gap = self.sampled - self.theory
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(np.abs(gap) <= self.rounding, 0.0, gap / self.stderr)


class Comparison(Shown):
    """What `compare` found: the common depths, and each quantity there."""

    layers: Int[np.ndarray, " T"]
    ts: Float[np.ndarray, " T"]
    quantities: Mapping[str, Compared]

    def __repr__(self) -> str:
        first, last = self.layers[0], self.layers[-1]
        lines = [f"Comparison of a theory with networks at {len(self.layers)} layers from {first} to {last}"]
        for name, one in self.quantities.items():
            largest, count = np.abs(one.deviation).max(), one.deviation.size
            lines.append(f"  largest difference of {name} = {largest:.2g} standard errors, of {count} numbers")
        return "\n".join(lines)


def compare(theory: Solution, sampled: Estimate) -> Comparison:
    """Compare a theory with an ensemble of the same model and input kernel.

    Raises ValueError if the two have other inputs, input kernels, models or step sizes, or no depth in common. Where
    the input kernels were not saved, the kernels of infinite width at the common layers tell them apart. A theory of
    the continuum has no step size, and differs from layers by terms of order eps^2.
    """
    check_kind(theory, Solution, "theory")
    check_kind(sampled, Estimate, "sampled")
    _check_comparable(theory, sampled)
    here, there = _common(theory, sampled)
    _check_kernels(theory, sampled, here, there)
    quantities = {}
    for name in COMPARED_QUANTITIES:
        if name == "G":
            values = theory.K0 + theory.K1 / sampled.width
        else:
            values = theory.significant(name)[0] if name in ("K1", "V4") else getattr(theory, name)
        if values is not None:
            own, stderr = (np.asarray(getattr(x, name))[here] for x in (sampled, sampled.stderr))
            quantities[name] = Compared(np.asarray(values)[there], own, stderr, _rounding(sampled, name)[here])
    return Comparison(sampled.layers[here], sampled.ts[here], quantities)


def _rounding(sampled, name):
    """Four units in the last place of float32, of G or S; n times that for corrections of the mean, and n times the
    square for covariances."""
    unit, n = 4 * np.finfo(np.float32).eps, sampled.width
    roots = {K: np.sqrt(np.einsum("taa->ta", np.asarray(getattr(sampled, K), np.float64))) for K in ("G", "S")}
    G, S = (np.einsum("ta,tb->tab", root, root) for root in roots.values())
    if not name.startswith("V"):
        return unit * {"G": G, "K1": n * G, "U1": n * S}[name]
    first, second = {"V4": (G, G), "V_GS": (G, S), "V_SS": (S, S)}[name]
    return n * unit**2 * np.einsum("tab,tcd->tabcd", first, second)


def _common(theory, sampled):
    """Places of the depths that both saved. Layers are matched by number, a theory of the continuum by depth time."""
    times = np.asarray(theory.ts, np.float64)
    if theory.layers is None:
        near = np.isclose(sampled.ts[:, None], times, rtol=1e-6, atol=1e-12)
    else:
        near = sampled.layers[:, None] == np.array(theory.layers)
    here, there = np.nonzero(near)
    if not (sampled.ts[here] > 0).any():
        raise ValueError(
            f"The theory and the networks have no depth in common but zero: t = {_few(times)} there, "
            f"{_few(sampled.ts)} here. Solve at the layers that were sampled."
        )
    gaps = ~np.isclose(sampled.ts[here], times[there], rtol=1e-6, atol=1e-12)
    if gaps.any():
        i = int(gaps.argmax())
        raise ValueError(
            f"The step sizes differ: layer {sampled.layers[here][i]} is at t = {times[there][i]:.6g} of the theory, "
            f"and at {sampled.ts[here][i]:.6g} of the networks. Solve with the eps that was sampled."
        )
    if theory.layers is not None:
        _check_steps(theory, sampled, int(sampled.layers[here[-1]]))
    return here, there


def _check_steps(theory, sampled, layers):
    """Check that each of the first `layers` layers has one eps: other steps may add up to the same depth time."""
    own, other = (first_steps(x.eps, layers) for x in (theory, sampled))
    wrong = np.flatnonzero(~np.isclose(own, other, rtol=1e-6, atol=0))
    if wrong.size:
        i = wrong[0]
        raise ValueError(
            f"The step sizes differ: layer {i + 1} has eps = {own[i]:.6g} in the theory and {other[i]:.6g} in the "
            "networks. Solve with the eps that was sampled."
        )


def _check_comparable(theory, sampled):
    inputs, others = theory.K0.shape[-1], sampled.K0.shape[-1]
    if inputs != others:
        raise ValueError(
            f"The theory has {inputs} inputs and the networks {others}: compare results of the same inputs."
        )
    models = theory.model, sampled.model
    if any(model is None for model in models):  # of a file that cannot hold it
        return
    if not eqx.tree_equal(*(jax.tree.map(_wide, m) for m in models), rtol=1e-6):  # in float32 a model is the same
        models = " and ".join(eqx.tree_pformat(m, width=10**6, short_arrays=False) for m in models)
        raise ValueError(f"The models of theory and networks differ: {models}.")


def _wide(x):
    return np.asarray(x, np.float64) if eqx.is_inexact_array(x) else x


def _check_kernels(theory, sampled, here, there):
    """Check that the kernels of infinite width agree at the common depths, in the continuum at depth zero alone."""
    K0, own = np.asarray(theory.K0, np.float64)[there], sampled.K0[here]
    inputs = sampled.ts[here] == 0
    allowed = np.where(inputs, 1e-6, ROUNDING if theory.layers is not None else np.inf)[:, None, None]
    size = np.sqrt(np.einsum("taa,tbb->tab", own, own))
    wrong = np.argwhere(np.abs(K0 - own) > allowed * size)
    if wrong.size:
        i, a, b = wrong[0]
        where = "The input kernels differ" if inputs[i] else f"The kernels at layer {sampled.layers[here][i]} differ"
        raise ValueError(
            f"{where}: entry [{a}, {b}] is {K0[i, a, b]:.6g} of the theory and {own[i, a, b]:.6g} of the networks. "
            "Solve from the input kernel that was sampled."
        )


def _few(ts):
    return ", ".join(f"{t:.4g}" for t in ts[:4]) + (f", ... {ts[-1]:.4g}" if len(ts) > 4 else "")
