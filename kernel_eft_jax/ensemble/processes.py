"""Several processes, one run: they meet at the same points, compare what they run, and stop together.

The processes of JAX learn of each other only when they exchange arrays. So in every exchange each process first sends a
word that says whether it goes on. A process that fails sends at its next exchange that it stops, and all others then
stop with a message.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

GOES_ON, STOPS = 0, 1
P = ParamSpec("P")
Answer = TypeVar("Answer")


class Stopped(RuntimeError):
    """Another process of the run failed or was interrupted."""


class _Meeting:
    """Whether this process is in an exchange with the others: all processes notice a failure during an exchange."""

    on = False


def together(function: Callable[P, Answer]) -> Callable[P, Answer]:
    """`function`, run by all processes at once: if it fails in one process, it stops in all."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Answer:
        try:
            result = function(*args, **kwargs)
            meet()
            return result
        except BaseException:
            if jax.process_count() > 1 and not _Meeting.on:
                with contextlib.suppress(Exception):
                    _gather(np.array([STOPS], np.uint32))
            raise
        finally:
            _Meeting.on = False

    return run


def meet() -> None:
    """Wait for all processes. Raises Stopped if one of them has failed."""
    if jax.process_count() == 1:
        return
    _Meeting.on = True
    try:
        words = _gather(np.array([GOES_ON], np.uint32))[:, 0]
    except Exception as error:
        raise Stopped(
            "Another process of the run has ended. Start all of them again: with `checkpoint` they go on."
        ) from error
    if words.any():
        which = ", ".join(map(str, np.flatnonzero(words)))
        raise Stopped(
            f"The run stopped here because process {which} failed or was interrupted: its own error says why."
        )
    _Meeting.on = False


def across(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, stacked."""
    if jax.process_count() == 1:
        return array[None]
    meet()
    _Meeting.on = True
    stacked = _gather(array)
    _Meeting.on = False
    return stacked


def check_alike(settings: Mapping[str, Any]) -> None:
    """Check that all processes have the same settings. If not, every process raises ValueError with the names of the
    settings that differ."""
    digests = [hashlib.sha256(json.dumps(value, default=str).encode()).digest()[:8] for value in settings.values()]
    every = across(np.frombuffer(b"".join(digests), np.uint64))
    differ = [
        f"`{name}` (here {value!r:.100})"
        for name, value, one in zip(settings, settings.values(), every.T, strict=True)
        if np.ptp(one)
    ]
    if differ:
        raise ValueError(
            f"The processes of this run differ in {', '.join(differ)}: start all of them with the same arguments."
        )


def _gather(array):
    """The arrays of all processes, sent as 32-bit words because JAX may not have 64-bit types switched on."""
    words = multihost_utils.process_allgather(np.ascontiguousarray(array).view(np.uint32))
    return np.asarray(words).view(array.dtype)
