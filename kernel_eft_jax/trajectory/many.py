"""Many inputs: each pair is a problem of two inputs, and each chosen quadruple a problem of at most four.

K1_ab involves the inputs a and b alone, and V4_ab,cd the inputs a, b, c and d alone. So K0, K1 and the variances
V4_ab,ab of N inputs are N(N - 1)/2 small problems. They are solved in blocks, one block on each core at a time, so that
only the result grows with N.
"""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float
from tqdm import tqdm

from ..checks import check_flag, check_kernel, check_kind, check_layers, check_untraced
from ..closures import Closure, GOnly
from ..compiling import compiled_soon
from ..depths import check_times, squares, times_of_layers
from ..machine import cores, host_memory
from ..model import Model
from ..pairs import pack, pair_count, pair_table
from .failures import LARGEST_ERROR, underflows
from .pair_solution import PairSolution
from .solve import EXACT, continuum_steps, solve

BATCH, CHUNK = 4, 32  # problems that are vectorised together, and problems of one call


class Entries(eqx.Module):
    """K0, V4, K1 and truncation errors of each small problem of a block, and whether its solve succeeded."""

    moments: tuple[Float[Array, "B T M"], Float[Array, "B T M M"], Float[Array, "B T M"]]
    errors: tuple[Float[Array, "B T M M"], Float[Array, "B T M"]] | None
    expectation_error: Float[Array, " B"]
    good: Bool[Array, " B"]


def solve_pairs(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    ts: Float[ArrayLike, " T"] | None = None,
    *,
    layers: Sequence[int] | int | None = None,
    eps: Float[ArrayLike, "..."] | None = None,
    closure: Closure = EXACT,
    quadruples: Sequence[tuple[int, int, int, int]] = (),
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    progress: bool = True,
) -> PairSolution:
    r"""K0, K1 and the variances V4_ab,ab of every pair of many inputs, and V4_ab,cd of chosen `quadruples` (a, b, c,
    d).

    The numbers are those of `solve` for the two inputs alone by a closure of the same degree (an open degree is chosen
    once, for all inputs), at depth times `ts` of the continuum or after `layers` of step `eps`. In the continuum steps
    are accurate to 1e-6 of each quantity's own size (1e-5 in float32), which is less than the truncation of the exact
    closure; pass a `stepsize_controller` for another accuracy. All cores share the pairs; `progress` shows a bar, and
    the memory that is needed. This is a loop on the host: for the full V4 of a few dozen inputs take `solve` with
    `GOnly`, and for derivatives `solve` for the pairs that matter.

    Raises ValueError for arguments that make no sense and MemoryError for more inputs than fit, both before any work.
    Raises RuntimeError with the inputs, the depth and the entry if a solve fails.
    """
    check_untraced("solve_pairs", "it is a loop on the host. Call `solve` for two inputs.", model, K0, ts, eps)
    check_kind(model, Model, "model")
    check_kind(closure, Closure, "closure")
    check_flag(progress, "progress")
    K0 = check_kernel(K0)
    chosen = _check_quadruples(quadruples, K0.shape[0])
    steps = None if layers is None else check_layers(layers)
    ts = None if ts is None else check_times(ts)
    if stepsize_controller is None and ts is not None:
        tolerance = 1e-6 if K0.dtype == jnp.float64 else 1e-5
        stepsize_controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    where = {"layers": steps, "stepsize_controller": stepsize_controller}

    def check(K):  # what `solve` says of its arguments
        return solve(model, K, ts, eps=eps, closure=GOnly(), throw=False, **where).ts

    depths = eqx.filter_eval_shape(check, jax.ShapeDtypeStruct((1, 1), K0.dtype)).shape[0]
    times, eps = (None if x is None else jnp.asarray(x, K0.dtype) for x in (ts, eps))
    if times is not None:
        dt = continuum_steps(times)
    else:
        assert steps is not None
        assert eps is not None
        dt = squares(eps, steps[-1], K0.dtype)
    closure = closure.settled(model, pack(K0), dt)
    groups = _groups(K0.shape[0], chosen)
    need = _memory(closure, model, K0.shape[0], depths, groups, K0.dtype.itemsize)
    run = _Run(model, K0, times, eps, where, closure)
    with tqdm(desc=f"inputs, {need / 2**20:.0f} MiB", unit=" problems", disable=not progress) as bar:
        bar.total = sum(len(group) for group in groups.values())
        found = {key: run(key, members, bar) for key, members in groups.items()}
    return _assemble(model, K0, times, eps, steps, closure, chosen, found)


class _Run:
    """Solves groups of small problems, block by block, on all cores."""

    def __init__(self, model, K0, ts, eps, where, closure):
        self.model, self.K0, self.ts, self.eps, self.where, self.closure = model, K0, ts, eps, where, closure

    def __call__(self, key, members, bar):
        """(members, entries) of a group, entries joined over its blocks."""
        size, _ = key
        closure = _for_inputs(self.closure, size)
        count = min(CHUNK, -(-len(members) // BATCH) * BATCH)
        padded = np.concatenate([members, np.repeat(members[-1:], -len(members) % count, axis=0)])
        K = np.asarray(self.K0)
        kernels = K[padded[:, :, None], padded[:, None, :]].reshape(-1, count, size, size)

        def block(i):
            layers, controller = self.where["layers"], self.where["stepsize_controller"]
            entries = _block(self.model, kernels[i], self.ts, self.eps, closure, layers, controller)
            entries = jax.tree.map(np.asarray, entries)
            bar.update(min(count, len(members) - i * count))
            return entries

        first = [block(0)]  # compiles
        with ThreadPoolExecutor(cores()) as pool:
            blocks = first + list(pool.map(block, range(1, len(kernels))))
        entries = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(members)], *blocks)
        self._check(members, entries)
        return members, entries

    def _check(self, members, entries):
        finite = np.all([np.isfinite(x).reshape(len(members), -1).all(1) for x in entries.moments], axis=0)
        lost = underflows(*entries.moments[:2]).reshape(len(members), -1).any(1)
        good = finite & ~lost & entries.good & (entries.expectation_error <= LARGEST_ERROR)
        if good.all():
            return
        failed = np.argmin(good)
        alone = members[failed]
        names = " and ".join(map(str, alone))
        try:
            solve(self.model, self.K0[alone[:, None], alone], self.ts, eps=self.eps, closure=self.closure, **self.where)
        except RuntimeError as error:
            raise RuntimeError(f"Of the inputs {names} alone: {error}") from error
        by_which = " by the table of nodes" if len(alone) == 2 else ""
        raise RuntimeError(
            f"For the inputs {names} alone `solve` succeeds, and here it does not: the expectations{by_which} have an "
            f"estimated relative error of {entries.expectation_error[failed]:.2g}. Take `solve` for them."
        )


@compiled_soon
def _block(model, kernels, ts, eps, closure, layers, stepsize_controller):
    def one(K):
        solution = solve(
            model, K, ts, layers=layers, eps=eps, closure=closure, stepsize_controller=stepsize_controller, throw=False
        )
        moments, truncation = solution.packed, solution.packed_truncation
        error = solution.stats["expectation_error"]
        return Entries(
            (moments.K0, moments.V4, moments.K1),
            None if truncation is None else (truncation.V4, truncation.K1),
            error,
            solution.result == diffrax.RESULTS.successful,
        )

    return jax.lax.map(one, kernels, batch_size=BATCH if kernels.shape[-1] < 3 else 1)


def _for_inputs(closure, size):
    return closure.for_two_inputs() if size == 2 else closure


def _check_quadruples(quadruples, inputs):
    chosen = np.asarray(quadruples)
    if chosen.size == 0:
        return np.zeros((0, 4), int)
    if chosen.ndim != 2 or chosen.shape[1] != 4 or chosen.dtype.kind not in "iu":
        raise ValueError(
            f"Argument `quadruples` must be a list of four inputs (a, b, c, d) each, but has shape {chosen.shape} and "
            f"dtype {chosen.dtype}."
        )
    if chosen.min() < 0 or chosen.max() >= inputs:
        raise ValueError(
            f"Argument `quadruples` must name inputs from 0 to {inputs - 1}, but holds {chosen.min()} to "
            f"{chosen.max()}."
        )
    return chosen


def _groups(inputs, chosen):
    """The inputs of all small problems, by (number of inputs, purpose)."""
    pairs = np.stack(np.triu_indices(inputs, 1), axis=1) if inputs > 1 else np.zeros((1, 1), int)
    groups: dict[tuple[int, str], Any] = {(pairs.shape[1], "pairs"): pairs}
    distinct = defaultdict(set)
    for quadruple in chosen:
        members = tuple(sorted(set(quadruple.tolist())))
        distinct[len(members)].add(members)
    return groups | {(size, "quadruples"): np.array(sorted(sets)) for size, sets in sorted(distinct.items())}


def _memory(closure, model, inputs, times, groups, itemsize):
    """Bytes of the result, of the parts that it is assembled from, and of the problems at work. Raises MemoryError if
    they do not fit."""
    need, workers = 8 * itemsize * times * inputs**2, cores()
    for (size, _), members in groups.items():
        P = pair_count(size)
        need += itemsize * len(members) * (times * (2 * P * P + 3 * P) + size**2)
        at_once = BATCH if size < 3 else 1
        need += workers * at_once * itemsize * _for_inputs(closure, size).numbers(model, size)
    there = host_memory()
    if need > there:
        raise MemoryError(
            f"All pairs of {inputs} inputs at {times} depths need about {need / 2**30:.3g} GiB, and there are "
            f"{there / 2**30:.3g} GiB: take fewer depths, or parts of the inputs one after another."
        )
    return need


def _assemble(model, K0, ts, eps, layers, closure, chosen, found):
    inputs = K0.shape[0]
    (size, _), (members, entries) = next(iter(found.items()))
    (k, V, m), times, table = entries.moments, entries.moments[0].shape[1], pair_table(size)

    def matrix(values):  # (B, T, P) to (T, N, N)
        full = np.zeros((times, inputs, inputs), values.dtype)
        for i, j in np.ndindex(size, size):
            full[:, members[:, i], members[:, j]] = values[:, :, table[i, j]].T
        return jnp.asarray(full)

    def variances(values):
        return matrix(np.diagonal(values, axis1=-2, axis2=-1))

    errors = entries.errors
    ts = ts if layers is None else jnp.asarray(times_of_layers(layers, np.asarray(eps)), K0.dtype)
    return PairSolution(
        ts=ts,
        K0=matrix(k),
        K1=matrix(m),
        variance=variances(V),
        K1_truncation=None if errors is None else matrix(errors[1]),
        variance_truncation=None if errors is None else variances(errors[0]),
        V4=_chosen(chosen, found, times, lambda entries: entries.moments[1]),
        V4_truncation=None if errors is None else _chosen(chosen, found, times, lambda entries: entries.errors[0]),
        quadruples=jnp.asarray(chosen),
        expectation_error=jnp.asarray(max(entries.expectation_error.max() for _, entries in found.values())),
        model=model,
        closure=closure,
        eps=eps,
        layers=layers,
    )


def _chosen(chosen, found, times, read):
    """V4_ab,cd of the chosen quadruples, (T, quadruples)."""
    dtype = next(iter(found.values()))[1].moments[1].dtype
    values = np.zeros((times, len(chosen)), dtype)
    for (size, purpose), (members, entries) in found.items():
        if purpose == "quadruples":
            place = {tuple(row.tolist()): i for i, row in enumerate(members)}
            table, V = pair_table(size), read(entries)
            for column, quadruple in enumerate(chosen):
                own = tuple(sorted(set(quadruple.tolist())))
                if own in place:
                    a, b, c, d = (own.index(x) for x in quadruple)
                    values[:, column] = V[place[own], :, table[a, b], table[c, d]]
    return jnp.asarray(values)
