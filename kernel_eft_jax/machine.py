"""The memory and the cores that this process may use: a run that cannot fit is refused before any work."""

import contextlib
import os
from pathlib import Path

LARGEST_COUNT = 2**31 - 1  # layers, neurons and networks are counted in 32 bits
OWN_GROUPS = Path("/proc/self/cgroup")
CGROUPS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}


def host_memory() -> int:
    """Bytes of memory of the machine, or fewer if a container, a group of processes or this process has a limit."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**34]
    for limit in _group_limits():
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            sizes.append(int(limit.read_text()))
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        space = resource.getrlimit(resource.RLIMIT_AS)[0]
        if space != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            sizes.append(max(0, space - used))
    return min(sizes)


def _group_limits() -> list[Path]:
    """The files with the memory limits of this process's control groups, from its own up to the root."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in ["0::/", "1:memory:/", *OWN_GROUPS.read_text().splitlines()]:
            _, controllers, path = line.split(":", 2)
            for controller in set(controllers.split(",")) & set(CGROUPS):
                root, name = CGROUPS[controller]
                group = Path(path.lstrip("/"))
                found += [Path(root, part, name) for part in (group, *group.parents)]
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
