"""What an ensemble needs before it runs: how it is divided into blocks, and whether it fits the memory there is.

The size of a block follows from the problem, the number of networks and the kind of device, and never from the number
of devices: the order in which compiled code sums over neurons depends on the size, and results must not depend on the
devices.
"""

from typing import NamedTuple

import equinox as eqx
import jax

from ..machine import cores, host_memory
from ..pairs import pair_count
from .observables import lengths
from .samplers import WeightSampler
from .simulate import Problem
from .statistics import GROUPS


class Plan(NamedTuple):
    """How a run is divided into blocks, parts and calls."""

    networks: int
    size: int  # networks in a block
    parts: int  # equal parts of a block, each for another group
    workers: int  # calls under way at once
    means: int  # length of the vector x whose mean is taken
    squared: int  # how many of its first entries have second moments
    memory: int  # bytes, host and one device together


def block_size(problem: Problem, networks: int) -> int:
    """Networks in a block, a power of two, from the problem, their number and the kind of device.

    On a CPU there are at least two blocks for each group. An accelerator, which small blocks leave idle, has at least
    four blocks, and enough for their parts to fill GROUPS groups.
    """
    size = power_of_two(min(_block_memory() // _network(problem), networks // (2 * GROUPS if _on_cpu() else 4)))
    while networks // size * part_count(problem, size) < GROUPS:
        size //= 2
    return size


def power_of_two(number: int) -> int:
    """The largest power of two that is not above `number`, and at least 1."""
    return 2 ** max(0, number.bit_length() - 1)


def plan_run(problem: Problem, networks: int, size: int | None = None) -> Plan:
    """Divide a run, into blocks of `size` networks if that is given; raise `MemoryError` if it cannot fit."""
    depths, devices = problem.layers.size, jax.local_device_count()
    means, moments = _lengths(problem)
    size = size or block_size(problem, networks)
    parts = part_count(problem, size)
    workers = max(1, 2 * cores() // devices) if _on_cpu() else 2  # two for a core: one works while another waits
    matrices = depths * moments**2
    blocks, results = workers * size * _network(problem), 4 * workers * parts * matrices
    # On the host: the group sums, the same again for standard errors, and results that wait to be added.
    groups = 8 * matrices * (parts * (GROUPS + workers * devices) + 24)
    host = (devices * blocks, groups + devices * results) if _on_cpu() else (0, groups)
    for where, (simulation, statistics), limit in (
        ("host", host, host_memory()),
        ("device", (blocks, results), _device_memory()),
    ):
        if simulation + statistics > limit:
            remedy = "Save fewer layers with `save_at`, or take `sample_kernels`, which keeps kernels and no moments."
            raise MemoryError(
                f"This run needs about {amount(simulation + statistics)} of memory on the {where}, which has "
                f"{amount(limit)}: {amount(statistics)} for second moments of {moments} numbers at {depths} depths, "
                f"and {amount(simulation)} for blocks of {size} networks, {workers} at once. "
                f"{remedy if statistics > simulation else smaller_network(problem)}"
            )
    return Plan(networks, size, parts, workers, means, moments, sum(host) + (0 if _on_cpu() else blocks + results))


def check_run(problem: Problem, networks: int, depth: int, control: bool) -> None:
    """Raise `MemoryError`, before anything is computed, for a run whose statistics or whose tables of the infinite
    width cannot fit.

    For each layer the tables hold K0, E[ss], three derivatives a pair, the factor of Q and its inverse: once as
    computed, and for control variates once more in float32 on the device.
    """
    planned = eqx.tree_at(lambda p: p.limits, problem, () if control else None, is_leaf=lambda x: x is None)
    plan_run(planned, networks)
    inputs = problem.factor.shape[0]
    layer = 5 * pair_count(inputs) + 2 * inputs**2
    needed, limit = (depth + 1) * layer * (12 if control else 8), min(host_memory(), _device_memory())
    if needed > limit:
        raise MemoryError(
            f"This run needs about {amount(needed)} of memory for the infinite-width values of {depth} layers and "
            f"{inputs} inputs, and there is {amount(limit)}. Take fewer layers with a larger `eps`, or fewer inputs; "
            "`sample_kernels` needs no such table."
        )


def sample_size(problem: Problem, networks: int) -> int:
    """Networks that `sample_kernels` simulates at once; raise `MemoryError` if their kernels cannot fit.

    It does not depend on `networks`: the order in which compiled code sums over neurons depends on how many networks
    run at once, and the draws must not.
    """
    inputs, depths = problem.factor.shape[0], problem.layers.size
    one = _network(problem) + 4 * depths * pair_count(inputs)
    size = power_of_two(_block_memory() // one)
    kernels = 4 * depths * networks * (inputs**2 + pair_count(inputs))
    for where, simulation, output, limit in (
        ("host", size * one if _on_cpu() else 0, kernels, host_memory()),
        ("device", size * one, 0, _device_memory()),
    ):
        if simulation + output > limit:
            remedy = "Take fewer networks at a time, by several keys, or save fewer layers with `save_at`."
            raise MemoryError(
                f"These samples need about {amount(simulation + output)} of memory on the {where}, which has "
                f"{amount(limit)}: {amount(output)} for kernels of {networks} networks at {depths} depths, and "
                f"{amount(simulation)} for {size} networks at once. "
                f"{remedy if output > simulation else smaller_network(problem)}"
            )
    return size


def amount(number: int) -> str:
    """A number of bytes in words."""
    return f"{number / 2**30:.3g} GiB" if number >= 2**27 else f"{number / 2**20:.3g} MiB"


def smaller_network(problem: Problem) -> str:
    """The remedy where a single network is too large."""
    if isinstance(problem.sampler, WeightSampler):
        return "Take a smaller `width`, or `sampler=BlockSampler()`, which holds no weights."
    return "Take a smaller `width` or fewer inputs."


def part_count(problem: Problem, size: int) -> int:
    """Parts of a block of `size` networks, a power of two.

    More groups estimate the standard error better, but each needs enough networks, and the jackknife's time grows with
    the number of groups.
    """
    group = 8 * problem.layers.size * _lengths(problem)[1] ** 2  # bytes
    return power_of_two(min(8, size // 16, 2**26 // (GROUPS * group)))


def _lengths(problem):
    return lengths(pair_count(problem.factor.shape[0]), problem.control)


def _network(problem: Problem) -> int:
    """Bytes that one network takes on its device."""
    numbers = problem.sampler.numbers(problem.model, problem.factor.shape[0], problem.width)
    copies = min(2, problem.factor.shape[0]) if problem.control else 0
    return 4 * numbers * (1 + copies)


def _block_memory() -> int:
    """Bytes of a block that fits the cache of a core, or keeps an accelerator busy."""
    return 2**22 if _on_cpu() else min(2**32, _device_memory() // 8)


def _on_cpu() -> bool:
    return jax.local_devices()[0].platform == "cpu"


def _device_memory() -> int:
    return host_memory() if _on_cpu() else (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 2**34)
