"""Sums of a run on disk: written whole or not at all, and taken up only by the same run."""

import json
import numbers
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .statistics import Group, Sums


class Checkpoint:
    """A file that holds the sums so far and the settings of the run, written every `seconds` at most; one for each process."""

    def __init__(self, path: str | os.PathLike, settings: dict, seconds: float):
        path = Path(path)
        if not path.parent.is_dir() or path.is_dir():
            raise ValueError(f"Argument `checkpoint` must name a file in a folder that exists, but is {str(path)!r}.")
        if not isinstance(seconds, numbers.Real) or not seconds >= 0:
            raise ValueError(f"Argument `checkpoint_seconds` must be a number of seconds, but is {seconds!r}.")
        first = path.with_name(path.name + ".0")
        several = jax.process_count() > 1
        self.path = path.with_name(f"{path.name}.{jax.process_index()}") if several else path
        self.other = path if several else first  # what a run with another number of processes would have written
        self.settings = json.loads(json.dumps(settings))
        self.seconds = seconds
        self.written = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self.written > self.seconds

    def save(self, size: int, sums: Sums) -> None:
        """Replace the file in one step: whatever happens, the old one or the new one is there, whole."""
        temporary = self.path.with_name(self.path.name + ".part")
        count, first, second = (np.stack([group[i] for group in sums.groups]) for i in range(3))
        arrays = {"count": count, "first": first, "second": second, "parts": sums.parts, "size": size}
        with open(temporary, "wb") as file:
            np.savez(file, **arrays, settings=json.dumps(self.settings))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self.written = time.monotonic()

    def load(self) -> tuple[int, Sums] | None:
        """The number of networks in a block and the sums on disk, or None if there is no file yet."""
        if not self.path.exists():
            if self.other.exists():
                raise ValueError(
                    f"The checkpoint {self.other} is of a run with another number of processes than {jax.process_count()}: go on with "
                    "as many as then, or use another file to start from the beginning."
                )
            return None
        try:
            with open(self.path, "rb") as raw:
                file: Any = np.load(raw, allow_pickle=False)
                count, first, second, parts, size, settings = (
                    file[k] for k in ("count", "first", "second", "parts", "size", "settings")
                )
            settings = dict(json.loads(str(settings)))
        except OSError:  # it may be whole, but cannot be read now
            raise
        except Exception as error:
            raise ValueError(
                f"The checkpoint {self.path} is truncated or not a checkpoint ({error}). Delete it to start from the beginning, or "
                "name another file."
            ) from error
        self._check(settings)
        groups = (Group(int(c), f, s) for c, f, s in zip(count, first, second, strict=True))
        return int(size), Sums(tuple(groups), int(parts))

    def _check(self, settings: dict) -> None:
        names = sorted(k for k in self.settings.keys() | settings.keys() if self.settings.get(k) != settings.get(k))
        if names:
            differences = "; ".join(f"{k} is {settings.get(k)} there and {self.settings.get(k)} here" for k in names)
            raise ValueError(
                f"The checkpoint {self.path} belongs to another run: {differences}. Use the settings of that run to go on with it, "
                "or another file to start from the beginning."
            )
