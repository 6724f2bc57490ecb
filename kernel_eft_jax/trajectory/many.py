"""Many inputs: each pair is a problem of two inputs, and each chosen quadruple a problem of at most four.

K1_ab involves the inputs a and b alone, and V4_ab,cd the inputs a, b, c and d alone. So K0, K1 and the variances
V4_ab,ab of N inputs are N(N - 1)/2 small problems. They are solved in blocks, one block on each core at a time, so that
only the result grows with N.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

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
    with tqdm(desc=f"inputs, {need / 2**20:.0f} MiB", unit=" problems", disable=not progress) as bar:
        bar.total = sum(map(len, groups))
        found = [(group, _run(model, K0, times, eps, where, closure, group, bar)) for group in groups]
    return _assemble(model, K0, times, eps, steps, closure, chosen, found)


def _run(model, K0, ts, eps, where, closure, members, bar):
    """The entries of a group of small problems, in blocks that all cores share."""
    own = _for_inputs(closure, members.shape[1])
    count = min(CHUNK, -(-len(members) // BATCH) * BATCH)
    padded = np.concatenate([members, np.repeat(members[-1:], -len(members) % count, axis=0)])
    kernels = np.asarray(K0)[padded[:, :, None], padded[:, None, :]]

    def block(i):
        layers, controller = where["layers"], where["stepsize_controller"]
        entries = _block(model, kernels[i : i + count], ts, eps, own, layers, controller)
        entries = jax.tree.map(np.asarray, entries)
        bar.update(min(count, len(members) - i))
        return entries

    first = block(0)  # compiles
    with ThreadPoolExecutor(cores()) as pool:
        blocks = [first, *pool.map(block, range(count, len(kernels), count))]
    entries = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(members)], *blocks)
    _check(model, K0, ts, eps, where, closure, members, entries)
    return entries


def _check(model, K0, ts, eps, where, closure, members, entries):
    """Raises RuntimeError, with the sentence of `solve`, for the first of the problems that failed."""
    finite = np.all([np.isfinite(x).reshape(len(members), -1).all(1) for x in entries.moments], axis=0)
    lost = underflows(*entries.moments[:2]).reshape(len(members), -1).any(1)
    good = finite & ~lost & entries.good & (entries.expectation_error <= LARGEST_ERROR)
    if good.all():
        return
    failed = np.argmin(good)
    alone = members[failed]
    names = " and ".join(map(str, alone))
    try:
        solve(model, K0[alone[:, None], alone], ts, eps=eps, closure=closure, **where)
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
    """The inputs of all small problems, one group for each number of inputs: the pairs first, then the inputs of the
    quadruples."""
    pairs = np.stack(np.triu_indices(inputs, 1), axis=1) if inputs > 1 else np.zeros((1, 1), int)
    distinct = sorted({tuple(sorted(set(quadruple))) for quadruple in chosen.tolist()}, key=lambda q: (len(q), q))
    return [pairs, *(np.array(list(group)) for _, group in groupby(distinct, len))]


def _memory(closure, model, inputs, times, groups, itemsize):
    """Bytes of the result, of the parts that it is assembled from, and of the problems at work. Raises MemoryError if
    they do not fit."""
    need, workers = 8 * itemsize * times * inputs**2, cores()
    for members in groups:
        size = members.shape[1]
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
    members, entries = found[0]
    (k, V, m), times = entries.moments, entries.moments[0].shape[1]
    size, table = members.shape[1], pair_table(members.shape[1])

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
        expectation_error=jnp.asarray(max(entries.expectation_error.max() for _, entries in found)),
        model=model,
        closure=closure,
        eps=eps,
        layers=layers,
    )


def _chosen(chosen, found, times, read):
    """V4_ab,cd of the chosen quadruples, (T, quadruples)."""
    place = {tuple(row): (read(entries), i) for members, entries in found for i, row in enumerate(members.tolist())}
    values = np.zeros((times, len(chosen)), read(found[0][1]).dtype)
    for column, quadruple in enumerate(chosen.tolist()):
        own = sorted(set(quadruple))
        (V, i), table, (a, b, c, d) = place[tuple(own)], pair_table(len(own)), map(own.index, quadruple)
        values[:, column] = V[i, :, table[a, b], table[c, d]]
    return jnp.asarray(values)
