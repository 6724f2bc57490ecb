r"""How deep a closure holds, and how wide a network must be for order 1/n to be enough.

An error is the largest over all entries: V4_ab,cd in units of $\sqrt{V_{4;ab,ab} V_{4;cd,cd}}$, K1 in units of its
largest entry (or of K0 / 100, if K1 is smaller). The reference is a closure that is exact at order 1/n, in the layer
recursion of the network at hand. What order 1/n leaves out falls like 1/n: a pilot ensemble measures the coefficient,
which gives the width, and an ensemble of this width confirms it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray
from scipy.special import ndtr, ndtri

from ..activations import Linear
from ..checks import ON_HOST, check_count, check_flag, check_key, check_kind, check_positive, check_untraced
from ..closures import Closure, GOnly, HermiteTower, SigmaKernel
from ..depths import check_eps
from ..ensemble import Estimate, estimate
from ..ensemble.estimate import LEAST_ENSEMBLE
from ..model import Model
from ..network import fitting_width, shapes
from ..showing import Shown
from ..trajectory import Solution, solve

WINDOW_QUANTITIES = ("V4", "K1")
ATTEMPTS = 3
REFERENCE = HermiteTower(40)
PILOT = 64  # neurons of the first ensemble's networks, if these give every matrix a whole number
TRUNCATION = 0.25  # of the tolerance: the most that a reference may leave out


class Reach(eqx.Module):
    """Relative error of one quantity of a closure at each depth but zero, and the depth time up to which it is
    tolerable."""

    error: Float[np.ndarray, " T-1"]
    t_star: float  # infinite if no saved depth is beyond it

    @property
    def where(self) -> str:
        """The depths at which the error is tolerable, in words."""
        return "everywhere" if np.isinf(self.t_star) else f"up to t* = {self.t_star:.3g}" if self.t_star else "nowhere"


class Width(eqx.Module):
    """Relative deviation of networks of one width from order 1/n at the last depth, by its worst entry."""

    width: int
    deviation: float
    stderr: float
    needed: int  # width * deviation / tolerance: from here on order 1/n is enough, if the deviation falls like 1/n

    def confirms(self, tolerance: float) -> bool:
        """Whether the deviation of this width exceeds the tolerance by no more than two standard errors."""
        return self.deviation <= tolerance + 2 * self.stderr

    def resolves(self, tolerance: float) -> bool:
        """Whether the standard error is at most half of the tolerance: else a width that confirms may be too small."""
        return self.stderr <= tolerance / 2

    def suffices(self, tolerance: float) -> bool:
        """Whether order 1/n is right to the tolerance from this width on: it confirms and resolves."""
        return self.confirms(tolerance) and self.resolves(tolerance)

    def where(self, tolerance: float) -> str:
        """The widths from which order 1/n is right to the tolerance, in words."""
        if self.suffices(tolerance):
            return f"from n* = {self.width}"
        few = self.confirms(tolerance)
        return f"too few networks to tell at n = {self.width}" if few else f"not yet at n = {self.width}"


def least_sufficient(sampled: Sequence[Width], tolerance: float) -> Width | None:
    """$n^*$: the least of the sampled widths that suffices, if one does."""
    enough = (width for width in sampled if width.suffices(tolerance))
    return min(enough, key=lambda width: width.width, default=None)


def answer(sampled: Sequence[Width], tolerance: float) -> Width:
    """$n^*$, or the last of the sampled widths, where none suffices."""
    return least_sufficient(sampled, tolerance) or sampled[-1]


class Window(Shown):
    """Where the theories hold to one tolerance: closures up to depths $t^*$, order 1/n from widths $n^*$ on.

    `reach[closure][quantity]` holds the depths. `widths[quantity]` holds the sampled widths: the pilot, then the width
    that the pilot asked for. If networks of this width deviate too much (narrow networks, where the next order
    matters), they ask for a larger width in turn. Networks whose scatter alone explains the deviation, and exceeds the
    tolerance, ask for no width. The least width that `suffices` is $n^*$. Without a key nothing is sampled.
    """

    ts: Float[np.ndarray, " T-1"]
    tolerance: float
    reference: Solution
    reach: Mapping[str, Mapping[str, Reach]]
    widths: Mapping[str, tuple[Width, ...]]

    @property
    def expectation_error(self) -> float:
        """Estimated relative error of the Gaussian expectations behind the reference."""
        return float(self.reference.stats["expectation_error"])

    def record(self) -> dict[str, Any]:
        """The window as plain numbers, lists and dictionaries, as a JSON file holds them; no $t^*$ is null."""
        return {
            "tolerance": self.tolerance,
            "expectation_error": self.expectation_error,
            "ts": self.ts.tolist(),
            "reach": {
                closure: {
                    q: {"error": r.error.tolist(), "t_star": r.t_star if np.isfinite(r.t_star) else None}
                    for q, r in rs.items()
                }
                for closure, rs in self.reach.items()
            },
            "widths": {
                q: [
                    vars(w) | {name: getattr(w, name)(self.tolerance) for name in ("confirms", "resolves", "suffices")}
                    for w in ws
                ]
                for q, ws in self.widths.items()
            },
        }

    def __repr__(self) -> str:
        lines = [f"Relative errors up to {self.tolerance:.3g}, depth times up to {self.ts[-1]:.4g}:"]
        for closure, reaches in self.reach.items():
            for quantity, reach in reaches.items():
                lines.append(f"  {quantity} of {closure}: {reach.where} (at the last depth {reach.error[-1]:.2g})")
        for quantity, sampled in self.widths.items():
            seen = ", ".join(f"{w.deviation:.2g} ± {w.stderr:.1g} at n = {w.width}" for w in sampled)
            where = answer(sampled, self.tolerance).where(self.tolerance)
            lines.append(f"  {quantity} to order 1/n: {where} (sampled deviations: {seen})")
        return "\n".join(lines)


def closures_of(model: Model) -> Mapping[str, Closure]:
    """The closures worth comparing for a block: `GOnly`, and `SigmaKernel` where it is defined."""
    defined = model.one_matrix and float(model.decay) == 0
    return {"GOnly": GOnly()} | ({"SigmaKernel": SigmaKernel()} if defined else {})


def validity_window(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    *,
    depth: int,
    eps: Float[ArrayLike, "..."],
    tolerance: float = 0.05,
    key: PRNGKeyArray | None = None,
    networks: int = 16384,
    pilot_width: int | None = None,
    closures: Mapping[str, Closure] | None = None,
    reference: Closure = REFERENCE,
    progress: bool = True,
) -> Window:
    r"""The depth $t^*$ up to which closures stay within a relative tolerance of exact order 1/n, and the width $n^*$
    from which that is enough.

    $t^*$ is the depth at which the error of a closure first leaves the tolerance; between saved layers the error is a
    straight line. With a `key`, a pilot ensemble of `networks` networks of `pilot_width` measures the deviation d from
    order 1/n at the last depth, and $n^*$ is pilot_width times d / tolerance. An ensemble of this width confirms $n^*$,
    or asks for a larger one, at most three times. Where the pilot's standard error exceeds half of the tolerance and d
    is what scatter alone gives, no other width is sampled, and the answer says that the networks are too few. If the
    branch begins with a matrix or a norm, `GOnly` is exact, and its $t^*$ is infinite. Do not use it for tolerances
    below the sampling error, `Width.stderr`.

    Args:
        model: The block.
        K0: Kernel of the inputs at layer 0.
        depth: Number of layers.
        eps: The step of a layer, one number or one for each layer.
        tolerance: The largest relative error of V4 and K1 that is tolerable.
        key: Of `jax.random`; without it nothing is sampled.
        networks: How many networks each ensemble has.
        pilot_width: Neurons of the first ensemble's networks; by default 64, or the next width that gives every matrix
            of the branch a whole number of neurons.
        closures: The closures to judge, by name; by default those of the paper that are defined for the block
            (`closures_of`).
        reference: The closure that is taken as exact at order 1/n.
        progress: Whether ensembles show a bar.

    Returns:
        The depths by closure and quantity, and the widths that were sampled.

    Raises:
        ValueError: For arguments that make no sense, and if the reference's own truncation error is not known or not
            small beside the tolerance: pass a higher degree.
    """
    check_untraced("validity_window", ON_HOST, model, K0, eps)
    check_kind(model, Model, "model")
    check_positive(tolerance, "tolerance")
    if key is not None:
        check_key(key)
    if closures is not None and not isinstance(closures, Mapping):
        raise ValueError(
            f"Argument `closures` must map names to closures, such as {{'GOnly': GOnly()}}, but is {closures!r:.200}."
        )
    for name, closure in (closures or {}).items():
        check_kind(closure, Closure, f"closures[{name!r}]")
    check_kind(reference, Closure, "reference")
    check_flag(progress, "progress")
    networks = check_count(networks, "networks", least=LEAST_ENSEMBLE)
    pilot_width = fitting_width(model, PILOT) if pilot_width is None else check_count(pilot_width, "pilot_width")
    shapes(model, pilot_width)
    depth = check_count(depth, "depth")
    eps = check_eps(eps, model.decay, depth)
    layers = np.unique(np.round(np.linspace(0, depth, min(depth, 100) + 1)).astype(int)).tolist()
    exact = solve(model, K0, layers=layers, eps=eps, closure=reference)
    ts = np.asarray(exact.ts)
    _check_reference(exact, tolerance)
    reach: dict[str, dict[str, Reach]] = {}
    for name, closure in (closures_of(model) if closures is None else closures).items():
        errors = relative_errors(solve(model, K0, layers=layers, eps=eps, closure=closure), exact)
        reach[name] = {quantity: Reach(e, _leaves(ts[1:], e, tolerance)) for quantity, e in errors.items()}
    sizes = {"pilot_width": pilot_width, "networks": networks, "tolerance": tolerance}
    widths = {} if key is None else sufficient_widths(exact, K0, key=key, **sizes, progress=progress)
    return Window(ts[1:], tolerance, exact, reach, widths)


def sufficient_widths(
    exact: Solution,
    K0: Float[ArrayLike, "N N"],
    *,
    pilot_width: int,
    networks: int,
    tolerance: float,
    key: PRNGKeyArray,
    progress: bool,
) -> dict[str, tuple[Width, ...]]:
    """The widths that were sampled to find the one from which order 1/n, `exact`, is right at the last depth to the
    tolerance, for V4 and for K1."""
    assert exact.layers is not None
    keys = iter(jax.random.split(key, 1 + ATTEMPTS * len(WINDOW_QUANTITIES)))
    depth = exact.layers[-1]
    settings = {"depth": depth, "eps": exact.eps, "networks": networks, "save_at": [depth], "progress": progress}

    def sample(width):
        return estimate(exact.model, K0, width=width, key=next(keys), **settings)

    pilot, widths = sample(pilot_width), {}
    for quantity in WINDOW_QUANTITIES:
        scatter = largest_of(_entries(exact, quantity))
        sampled = [_deviation(pilot, exact, quantity, tolerance)]
        done = not sampled[0].resolves(tolerance) and sampled[0].deviation <= scatter * sampled[0].stderr
        while not done and len(sampled) <= ATTEMPTS:
            last = _deviation(sample(sampled[-1].needed), exact, quantity, tolerance)
            sampled.append(last)
            done = last.confirms(tolerance) or last.deviation <= scatter * last.stderr
        widths[quantity] = tuple(sampled)
    return widths


def largest_of(entries: int) -> float:
    """In standard errors: what the largest of so many independent deviations exceeds by scatter alone, as rarely as one
    deviation exceeds two."""
    return float(-ndtri(ndtr(-2) / entries))


def _entries(exact: Solution, quantity: str) -> int:
    """How many entries of K1 or V4 are different numbers."""
    pairs = exact.packed.K0.shape[-1]
    return pairs if quantity == "K1" else pairs * (pairs + 1) // 2


def relative_errors(solution: Solution, exact: Solution) -> dict[str, Float[np.ndarray, " T-1"]]:
    """Relative errors of V4 and K1 of a solution at each depth but zero, the worst over all entries."""
    errors = {}
    for quantity in WINDOW_QUANTITIES:
        value, reference = (np.asarray(getattr(s, quantity)) for s in (solution, exact))
        relative = np.abs(value - reference) / unit(exact, quantity)
        errors[quantity] = relative.reshape(len(relative), -1).max(axis=1)[1:]
    return errors


def unit(exact: Solution, quantity: str) -> Float[np.ndarray, "T *entry"]:
    """The unit in which deviations of V4 or K1 are measured."""
    if quantity == "K1":
        K1, K0 = (np.max(np.abs(np.asarray(x)), axis=(1, 2), keepdims=True) for x in (exact.K1, exact.K0))
        return np.maximum(K1, 0.01 * K0)
    root = np.sqrt(np.einsum("tabab->tab", np.asarray(exact.V4)))
    return root[:, :, :, None, None] * root[:, None, None]


def _leaves(ts, error, tolerance) -> float:
    """Where the error first exceeds the tolerance: zero if it does so from the start."""
    beyond = np.flatnonzero(error > tolerance)
    if beyond.size == 0:
        return np.inf
    i = beyond[0]
    if i == 0:
        return 0.0
    return float(ts[i - 1] + (ts[i] - ts[i - 1]) * (tolerance - error[i - 1]) / (error[i] - error[i - 1]))


def _deviation(sampled: Estimate, exact: Solution, quantity: str, tolerance: float) -> Width:
    """The worst deviation of an ensemble at its one depth from order 1/n."""
    if quantity == "V4":
        gap, stderr = sampled.V4_excess, sampled.stderr.V4_excess
    else:
        gap, stderr = sampled.K1 - np.asarray(exact.K1)[-1:], sampled.stderr.K1
    value, error = (x / unit(exact, quantity)[-1:] for x in (gap, stderr))
    worst = np.unravel_index(np.abs(value).argmax(), value.shape)
    deviation = float(abs(value[worst]))
    needed = fitting_width(exact.model, max(2, round(sampled.width * deviation / tolerance)))
    return Width(sampled.width, deviation, float(error[worst]), needed)


def _check_reference(exact: Solution, tolerance: float) -> None:
    """Check that the reference is exact, or that its truncation is known and small; a truncation of NaN is refused."""
    if exact.truncation is None:
        if isinstance(exact.closure, GOnly | SigmaKernel) and not isinstance(exact.model.read, Linear):
            name = type(exact.closure).__name__
            raise ValueError(
                f"Argument `reference` must be exact at order 1/n, which {name} is not for a block that begins with "
                "an activation: take HermiteTower()."
            )
        return
    for quantity, errors in truncation_shares(exact).items():
        error = float(np.max(errors))
        if not error <= TRUNCATION * tolerance:
            about = f"its truncation error is about {error:.2g} of {quantity}"
            unknown = f"its degree is too low to tell the truncation error of {quantity}"
            raise ValueError(
                f"Argument `reference` is not exact enough: {about if np.isfinite(error) else unknown}, and it must "
                f"be at most a quarter of the tolerance {tolerance:.2g}. Pass a higher degree, such as "
                "reference=HermiteTower(60)."
            )


def truncation_shares(exact: Solution) -> dict[str, Float[np.ndarray, " T"]]:
    """The truncation error of V4 and of K1 at each depth in units of theirs, the worst over entries."""
    assert exact.truncation is not None
    shares = {q: np.abs(np.asarray(getattr(exact.truncation, q))) / unit(exact, q) for q in WINDOW_QUANTITIES}
    return {q: share.reshape(len(share), -1).max(axis=1) for q, share in shares.items()}
