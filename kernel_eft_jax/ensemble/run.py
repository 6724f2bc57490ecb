r"""The part of an ensemble that runs on the host: which blocks are computed where and when.

Blocks (see `plan`) are dealt to processes in turn, in rounds of GROUPS. Each of the equal parts of a block in a round
adds to a group of its own. A process computes its blocks on all its devices and adds them in order. So the sums are the
same bits for any threads, devices or processes, and the state of a run is its sums over whole blocks with the number of
their parts.
"""

import contextlib
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from ..model import Model
from ..pairs import pairs
from .checkpoint import Checkpoint
from .observables import recorded
from .plan import Plan, amount, plan_run
from .processes import across, meet
from .simulate import Problem, compiled, moments_of_blocks
from .statistics import GROUPS, CentredSums, Group, Sums, jackknife

Target = tuple[Callable[[Group], Any], float]


def begin(problem: Problem, networks: int, checkpoint: Checkpoint | None) -> tuple[Plan, Sums]:
    """The plan of a run and the sums it begins with: those of the checkpoint, if there is one, in blocks of its
    size."""
    size, sums = (checkpoint and checkpoint.load()) or (0, None)
    plan = plan_run(problem, networks, size=int(across(np.array([size])).max()) or None)
    return plan, sums or Sums.zeros(problem.layers.size, plan.means, plan.squared, GROUPS * plan.parts)


@contextlib.contextmanager
def terminable(checkpoint: Checkpoint | None) -> Iterator[None]:
    """SIGTERM, which clusters send, stops a run as Ctrl-C does. A handler that the caller has set is kept instead."""
    mine = checkpoint is not None and threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def accumulate(
    problem: Problem,
    key: PRNGKeyArray,
    plan: Plan,
    sums: Sums,
    bar: tqdm,
    target: Target | None,
    checkpoint: Checkpoint | None,
) -> Sums:
    """Sums over all networks, or over as many as the target needs. A line above the bar says how long the run takes.

    A checkpoint holds whole blocks only. A last block that is cut short is computed again when the run goes on: so any
    run can go on to more networks.
    """
    total, processes = -(-plan.networks // plan.size), jax.process_count()
    mine = [b for b in range(total) if b % GROUPS % processes == jax.process_index()]
    done = sums.parts // plan.parts
    last = -1 if done == 0 else mine[done - 1] if done <= len(mine) else total
    lasts, held = across(np.array([last, sums.total().networks])).T
    furthest = int(lasts.max())  # block of any process
    if (furthest + 1) * plan.size > plan.networks:
        raise ValueError(
            f"Argument `networks` must be {held.sum()} or more to go on from the checkpoint, which holds that many, "
            f"but is {plan.networks}. Ask for more, or use another file to start from the beginning."
        )
    bar.initial = bar.n = int(held.sum())
    checks = _checks(total, furthest, plan.parts) if target else []
    stops = deque(sorted({*checks, *(_rounds(total, furthest) if processes > 1 else ())}))
    arriving, whole, pace = block_sums(problem, key, plan, mine[done:]), sums, 0.0
    try:
        if not bar.disable and bar.n < plan.networks:
            pace = announce(problem, key, plan, bar, target)
        while True:
            complete = mine[done] if done < len(mine) else total  # all blocks below this one are in
            if stops and complete >= stops[0]:
                blocks = stops.popleft()
                meet()
                later = [check for check in checks if check > blocks]
                if target and blocks in checks and reached(target, sums_of_processes(sums), plan, later, bar, pace):
                    break
            elif done == len(mine):
                break
            else:
                block, moments = next(arriving)
                sums = add_block(sums, block, moments, problem, plan)
                done += 1
                count = min(plan.size, plan.networks - block * plan.size)
                whole = sums if count == plan.size else whole
                bar.update(count * processes)
                if checkpoint is not None and checkpoint.is_due():
                    checkpoint.save(plan.size, whole)
    except KeyboardInterrupt as stop:
        if checkpoint is None or checkpoint.warned:
            raise
        raise KeyboardInterrupt(f"Stopped; the same call goes on from {checkpoint.path}.") from stop
    finally:
        try:
            if checkpoint is not None:
                checkpoint.save(plan.size, whole)
        finally:
            arriving.close()  # last: it waits for blocks under way, and can be interrupted again
    return sums_of_processes(sums)


def add_block(sums: Sums, block: int, moments: CentredSums, problem: Problem, plan: Plan) -> Sums:
    """The sums with one more block, added part by part."""
    size = plan.size // plan.parts
    for i in range(plan.parts):
        part, first = jax.tree.map(lambda x, i=i: x[:, i], moments), block * plan.size + i * size
        check_finite(part, problem, first)
        sums = sums.add(block * plan.parts + i, min(size, max(0, plan.networks - first)), part)
    return sums


def _rounds(total: int, last: int) -> range:
    """The numbers of blocks after which processes meet, so that all processes stop soon after one fails: whole rounds
    of GROUPS beyond block `last`."""
    return range((last // GROUPS + 1) * GROUPS, total + 1, GROUPS)


def _checks(total: int, last: int, parts: int) -> list[int]:
    """The numbers of blocks after which the target is checked: as soon as there are GROUPS groups, then at growing
    distances.

    At these points all non-empty groups hold equally many blocks. Points up to block `last`, the furthest block of any
    process, are skipped: the target was checked there before the interruption.
    """
    checks, rounds = [blocks for blocks in (4, 8, 16) if blocks * parts >= GROUPS], 1
    while rounds * GROUPS <= total:
        checks.append(rounds * GROUPS)
        rounds = math.ceil(1.1 * rounds)
    return [blocks for blocks in checks if last < blocks <= total]


def block_sums(
    problem: Problem, key: PRNGKeyArray, plan: Plan, blocks: list[int]
) -> Generator[tuple[int, CentredSums]]:
    """The number of each block with its sums (T, parts, ...), in order; a few blocks are computed ahead."""
    mesh = Mesh(np.array(jax.local_devices()), ("networks",), axis_types=(AxisType.Auto,))
    beyond, program = -(-plan.networks // plan.size), compiled(moments_of_blocks)

    def compute(batch):
        padded = jnp.array(batch + [beyond] * (mesh.size - len(batch)), dtype=jnp.uint32)
        moments = program(problem, key, padded, jnp.uint32(plan.networks), plan.size, plan.parts, mesh)
        moments = jax.tree.map(np.asarray, moments)
        return [(block, jax.tree.map(lambda part, d=d: part[d], moments)) for d, block in enumerate(batch)]

    batches = [blocks[first : first + mesh.size] for first in range(0, len(blocks), mesh.size)]
    waiting = deque()
    pool = ThreadPoolExecutor(plan.workers)
    try:
        for batch in batches:
            waiting.append(pool.submit(compute, batch))
            if len(waiting) > 2 * plan.workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def rehearse(problem: Problem, key: PRNGKeyArray, plan: Plan) -> float:
    """Seconds that one network takes in this process, measured on more and more layers of the first blocks, whose
    results are thrown away.

    The layers are an argument of the compiled program, so that the program is ready for the run afterwards. The bar's
    own estimate would come with the first blocks: late in deep networks and falsified by compilation, too late to
    choose fewer networks.
    """
    depth, count = int(problem.layers[-1]), plan.workers * jax.local_device_count()

    def seconds(layers):
        short = eqx.tree_at(lambda p: p.layers, problem, jnp.minimum(problem.layers, layers))
        start = time.perf_counter()
        list(block_sums(short, key, plan, list(range(count))))
        return time.perf_counter() - start

    seconds(0)  # compiles
    none, few = seconds(0), 1
    while (some := seconds(few)) < 2 * none + 0.2 and few < depth:  # until layers outweigh the rest
        few = min(2 * few, depth)
    return (none + max(0.0, some - none) * depth / few) / (count * plan.size)


def announce(problem: Problem, key: PRNGKeyArray, plan: Plan, bar: tqdm, target: Target | None) -> float:
    """Say before the run how long it takes and how much memory it needs. Returns the seconds for each network; the
    clock of the bar starts afterwards."""
    left, pace = plan.networks - bar.n, rehearse(problem, key, plan) / jax.process_count()
    unless = ", unless the target comes first" if target else ""
    bar.write(
        f"{left:,} networks in blocks of {plan.size:,} need about "
        f"{tqdm.format_interval(max(1, left * pace))}{unless}, and {amount(plan.memory)} of memory",
        file=sys.stderr,
    )
    bar.unpause()
    return pace


def reached(target: Target, sums: Sums, plan: Plan, checks: Sequence[int], bar: tqdm, pace: float) -> bool:
    """Whether the standard error is small enough; if not, says how many networks are needed.

    g groups determine an error to one part in sqrt(2 (g - 1)), and the number of networks to twice that. So the bar
    shows a new number after every check.
    """
    function, wanted = target
    error = np.asarray(jackknife(function, sums)[1])
    count = sums.total().networks
    if not np.isfinite(error):
        raise ValueError(
            f"The function in `target` has standard error {error} after {count} networks: take a function that stays "
            "finite."
        )
    needed = max(count, math.ceil(count * min(float(error) / wanted, 1e6) ** 2))
    scatter = math.sqrt(2 / (sum(group.networks > 0 for group in sums.groups) - 1))
    later = (blocks * plan.size for blocks in checks if blocks * plan.size >= needed)
    end = next(later, plan.networks) if error > wanted else count
    if error > wanted and not bar.disable and not bar.postfix:  # at the first look
        why = f"error {error:.3g} after {count:,} networks, {wanted:.3g} needs about {needed:,} (to {scatter:.0%}): "
        if needed > plan.networks:
            why += f"it will be about {error * math.sqrt(count / plan.networks):.3g} when `networks` ends the run, "
        left = end - count
        bar.write(f"{why}{left:,} more networks take {tqdm.format_interval(left * pace)}", file=sys.stderr)
    bar.total = end
    bar.set_postfix_str(f"error {error:.3g}, wanted {wanted:.3g}")
    return bool(error <= wanted)


def sums_of_processes(sums: Sums) -> Sums:
    """The sums of all processes; each group belongs to one process."""
    if jax.process_count() == 1:
        return sums
    networks, first, second = (across(part.astype(np.float64)).sum(axis=0) for part in sums.stacked())
    return Sums.of(networks, first, second, sums.parts)


def check_finite(moments: CentredSums, problem: Problem, first: int) -> None:
    """Raise FloatingPointError, with layer and entry, if the sums of a block are not finite."""
    variances = np.einsum("tmm->tm", np.asarray(moments.second))
    finite = np.isfinite(np.asarray(moments.centre))
    finite[:, : variances.shape[1]] &= np.isfinite(variances)
    bad = np.argwhere(~finite)
    if bad.size == 0:
        return
    t, m = bad[0]
    a, b = pairs(problem.factor.shape[0])
    number, p = divmod(int(m), len(a))
    name = recorded(problem.control)[0][number].name
    raise FloatingPointError(
        f"The ensemble turned non-finite: entry [{a[p]}, {b[p]}] of {name} at layer {problem.layers[t]}, in the block "
        f"of networks from number {first} on. {remedy_for_non_finite(problem.model)}"
    )


def remedy_for_non_finite(model: Model) -> str:
    """What to do about networks that turn non-finite."""
    growth = "Variances may grow with depth: take a smaller eps, depth or C_W."
    if not any(section.norms for section in model.sections):
        return growth
    return (
        f"A norm of neurons that are all zero, as of a ReLU in narrow networks, is 0/0: take a larger width. {growth}"
    )
