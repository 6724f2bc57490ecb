r"""The host's side of an ensemble: which blocks are computed where and when, and what a run needs.

The size of a block depends on the problem and the kind of device alone. Blocks are dealt in rounds of GROUPS, to processes in turn, and
each of the equal parts of a block in a round has a group of its own; a process computes its blocks on all its devices and adds them in
order. So the sums do not depend, to the bit, on threads, devices or processes, and the state of a run is its sums and their number of parts.
"""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from ..pairs import pairs
from .checkpoint import Checkpoint
from .simulate import Problem, fields, moments_of_blocks
from .statistics import GROUPS, Group, Moments, Sums, jackknife

Target = tuple[Callable[[Group], Any], float]


class Plan(NamedTuple):
    """How a run is divided."""

    networks: int
    size: int  # networks in a block
    parts: int  # equal parts of a block, each for another group
    workers: int  # calls under way at once
    means: int  # length of the vector x whose mean is taken
    squared: int  # how many of its first entries have second moments
    memory: int  # bytes, host and one device together


def block_size(problem: Problem, networks: int) -> int:
    """Networks in a block, a power of two, from the problem and the kind of device alone.

    A block fits the cache of a core, or is large enough to keep an accelerator busy; and there are enough to fill the groups.
    """
    most = 2**22 if _on_cpu() else min(2**30, _device_memory() // 4)
    return 2 ** max(0, min(most // _network(problem), networks // (2 * GROUPS)).bit_length() - 1)


def plan_run(problem: Problem, networks: int) -> Plan:
    """Divide a run; raise `MemoryError` if it cannot fit."""
    inputs, depths, devices = problem.factor.shape[0], problem.layers.size, jax.local_device_count()
    pair_count = len(pairs(inputs)[0])
    names, squared = fields(problem)
    means, moments = len(names) * pair_count, squared * pair_count
    size = block_size(problem, networks)
    parts = part_count(size, 8 * depths * moments**2)
    workers = max(1, _cores() // devices) if _on_cpu() else 2
    device = workers * (size * _network(problem) + 4 * depths * moments**2 * parts)
    # On the host: the group sums, as much again for standard errors, and results that wait to be added.
    host = 8 * depths * moments**2 * (parts * (GROUPS + workers * devices) + 24) + (
        devices * device if _on_cpu() else 0
    )
    for where, need, limit in (("host", host, _host_memory()), ("device", device, _device_memory())):
        if need > limit:
            raise MemoryError(
                f"This run needs about {need / 2**30:.1f} GiB of memory on the {where}, which has {limit / 2**30:.1f} GiB: second "
                f"moments of {moments} numbers at {depths} depths, and blocks of {size} networks of "
                f"{_network(problem) / 2**20:.3g} MiB each. Save fewer layers with `save_at`, or take `sample_kernels`, which "
                "keeps kernels and no moments."
            )
    return Plan(networks, size, parts, workers, means, moments, host if _on_cpu() else host + device)


def part_count(size: int, group: int) -> int:
    """Parts of a block of `size` networks, a power of two, where the sums of a group take `group` bytes.

    More groups tell the standard error better; but each must hold networks enough, and all of them must be quick to leave out in turn.
    """
    return 2 ** max(0, min(8, size // 16, 2**26 // (GROUPS * group)).bit_length() - 1)


def _network(problem: Problem) -> int:
    """Bytes that one network takes on its device."""
    numbers = problem.sampler.numbers(problem.factor.shape[0], problem.width)
    return 4 * numbers * (1 if problem.path is None else 2)


def _on_cpu() -> bool:
    return jax.local_devices()[0].platform == "cpu"


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**34


def _device_memory() -> int:
    return _host_memory() if _on_cpu() else (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 2**34)


def accumulate(
    problem: Problem, key: PRNGKeyArray, plan: Plan, bar: tqdm, target: Target | None, checkpoint: Checkpoint | None
) -> Sums:
    """Sums over all networks, or over as many as the target needs; tells the bar how long that takes, once it can be known."""
    total, processes = -(-plan.networks // plan.size), jax.process_count()
    mine = [b for b in range(total) if b % GROUPS % processes == jax.process_index()]
    sums = Sums.zeros(problem.layers.size, plan.means, plan.squared, GROUPS * plan.parts)
    if checkpoint is not None:
        sums = checkpoint.load(sums)
    bar.initial = bar.n = sums.total().networks * processes
    done = sums.parts // plan.parts
    checks = _checks(total // GROUPS, mine[done - 1] // GROUPS if done else 0)
    pace = Pace(plan.workers * jax.local_device_count(), processes)
    arriving = results(problem, key, plan, mine[done:])
    try:
        while True:
            complete = mine[done] // GROUPS if done < len(mine) else total // GROUPS
            if checks and complete >= checks[0]:
                checks.popleft()
                if target is None:
                    pace.tell(bar)
                elif reached(target, gather(sums), plan, bar, pace):
                    break
            elif done == len(mine):
                break
            else:
                block, moments = next(arriving)
                sums = add_block(sums, block, moments, problem, plan)
                done += 1
                count = min(plan.size, plan.networks - block * plan.size)
                bar.update(count * processes)
                pace.add(count)
                if checkpoint is not None and checkpoint.is_due():
                    checkpoint.save(sums)
    except KeyboardInterrupt as stop:
        if checkpoint is None:
            raise
        raise KeyboardInterrupt(f"Stopped; the same call goes on from {checkpoint.path}.") from stop
    finally:
        arriving.close()
        if checkpoint is not None:
            checkpoint.save(sums)
    return gather(sums)


def add_block(sums: Sums, block: int, moments: Moments, problem: Problem, plan: Plan) -> Sums:
    """With one more block, part by part."""
    size = plan.size // plan.parts
    for i in range(plan.parts):
        part, first = jax.tree.map(lambda x, i=i: x[:, i], moments), block * plan.size + i * size
        check_finite(part, problem, first)
        sums = sums.add(block * plan.parts + i, min(size, max(0, plan.networks - first)), part)
    return sums


def _checks(rounds: int, begun: int) -> deque[int]:
    """Numbers of whole rounds, a block for each group, after which to look at the target: ever further apart.

    Not those that any process has gone beyond already: they were looked at before the interruption.
    """
    begun = int(_across(np.array([begun])).max())
    checks = [1]
    while checks[-1] < rounds:
        checks.append(math.ceil(1.1 * checks[-1]))
    return deque(r for r in checks if begun < r <= rounds)


def results(problem: Problem, key: PRNGKeyArray, plan: Plan, blocks: list[int]) -> Generator[tuple[int, Moments]]:
    """Number and moments (T, parts, ...) of each block, in order, computed a few ahead."""
    mesh = Mesh(np.array(jax.local_devices()), ("networks",), axis_types=(AxisType.Auto,))
    beyond = -(-plan.networks // plan.size)

    def compute(batch):
        padded = jnp.array(batch + [beyond] * (mesh.size - len(batch)), dtype=jnp.uint32)
        moments = moments_of_blocks(problem, key, padded, jnp.uint32(plan.networks), plan.size, plan.parts, mesh)
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


class Pace:
    """How fast networks arrive, from the first blocks on: what comes before is compilation."""

    def __init__(self, lead: int, processes: int):
        self.lead, self.processes = lead, processes  # blocks under way at once, which arrive together
        self.blocks = self.networks = 0
        self.start = self.now = 0.0
        self.told = False

    def add(self, networks: int) -> None:
        """Count a block that has just arrived."""
        self.blocks += 1
        self.now = time.perf_counter()
        if self.blocks <= self.lead:
            self.start = self.now
        else:
            self.networks += networks * self.processes

    def tell(self, bar: tqdm, why: str = "") -> None:
        """Say once, above the bar, how many networks there are to its end and how long they take."""
        if self.told or self.networks == 0 or bar.disable:
            return
        self.told = True
        left = max(0, bar.total - bar.n)
        seconds = left * (self.now - self.start) / self.networks
        bar.write(f"{why}{left:,} more networks take {tqdm.format_interval(seconds)}", file=sys.stderr)


def reached(target: Target, sums: Sums, plan: Plan, bar: tqdm, pace: Pace) -> bool:
    """Whether the standard error is small enough; tells how many networks that will take.

    From g groups an error is known to one part in sqrt(2 (g - 1)), and that number to twice this: it is told again, by the bar, at every check.
    """
    function, wanted = target
    error = np.asarray(jackknife(function, sums)[1])
    if error.shape != ():
        raise ValueError(f"The function in `target` must give one number, but gives an array of shape {error.shape}.")
    count = sums.total().networks
    needed = max(count, math.ceil(count * float(error / wanted) ** 2))
    scatter = math.sqrt(2 / (sum(group.networks > 0 for group in sums.groups) - 1))
    why = f"error {error:.3g} after {count:,} networks, {wanted:.3g} needs about {needed:,} (to {scatter:.0%}): "
    if needed > plan.networks:
        why += f"it will be about {error * math.sqrt(count / plan.networks):.3g} when `networks` ends the run, "
    bar.total = min(plan.networks, needed)
    bar.set_postfix_str(f"error {error:.3g}, wanted {wanted:.3g}")
    if error > wanted:
        pace.tell(bar, why)
    return bool(error <= wanted)


def gather(sums: Sums) -> Sums:
    """The sums of all processes: each group belongs to one of them."""
    if jax.process_count() == 1:
        return sums
    parts = [np.stack([group[i] for group in sums.groups]).astype(np.float64) for i in range(3)]
    count, first, second = (_across(part).sum(axis=0) for part in parts)
    return Sums(tuple(Group(int(c), f, s) for c, f, s in zip(count, first, second, strict=True)), sums.parts)


def _across(array: np.ndarray) -> np.ndarray:
    """An array of every process, stacked; sent as words, because JAX may not have 64-bit types switched on."""
    if jax.process_count() == 1:
        return array[None]
    words = multihost_utils.process_allgather(np.ascontiguousarray(array).view(np.uint32))
    return np.asarray(words).view(array.dtype)


def check_finite(moments: Moments, problem: Problem, first: int) -> None:
    """Raise if the moments of a block are not finite, saying where."""
    variances = np.einsum("tmm->tm", np.asarray(moments.second))
    finite = np.isfinite(np.asarray(moments.centre))
    finite[:, : variances.shape[1]] &= np.isfinite(variances)
    bad = np.argwhere(~finite)
    if bad.size == 0:
        return
    t, m = bad[0]
    a, b = pairs(problem.factor.shape[0])
    field, p = divmod(int(m), len(a))
    raise FloatingPointError(
        f"The ensemble turned non-finite: entry [{a[p]}, {b[p]}] of {fields(problem)[0][field]} at layer {problem.layers[t]}, in the block of "
        f"networks from number {first} on. Variances grow with depth: take a smaller eps, depth or C_W."
    )
