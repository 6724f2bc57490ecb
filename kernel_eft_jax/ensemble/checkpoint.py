"""Sums of a run on disk: written whole or not at all, by one run at a time, and continued only by a run with the same
settings."""

import contextlib
import hashlib
import io
import json
import numbers
import os
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..writing import check_writable, held, target_of, write_whole
from .statistics import Sums

ARRAYS = ("count", "first", "second", "parts", "size")


class Checkpoint:
    """A file that holds the sums so far and the settings of the run, written every `seconds` at most; one for each
    process.

    `with checkpoint`, before the run, tests that the file can be written, and holds the file against other runs. If the
    file can no longer be written later, one warning says so and the run goes on.
    """

    def __init__(self, path: str | os.PathLike, settings: dict, seconds: float):
        if not isinstance(path, str | os.PathLike):
            raise ValueError(f"Argument `checkpoint` must be the name of a file, but is {path!r:.200}.")
        if not isinstance(seconds, numbers.Real) or not float(seconds) >= 0:
            raise ValueError(f"Argument `checkpoint_seconds` must be a number of seconds, but is {seconds!r}.")
        path = Path(path).expanduser()
        target_of(path, "checkpoint")
        first = path.with_name(path.name + ".0")
        several = jax.process_count() > 1
        self.path = path.with_name(f"{path.name}.{jax.process_index()}") if several else path
        self.other = path if several else first  # the file of a run with another number of processes
        target_of(self.path, "checkpoint")
        self.settings = json.loads(json.dumps(settings))
        self.seconds = float(seconds)
        self.written = time.monotonic()
        self.warned = False
        self.holding = contextlib.ExitStack()

    def __enter__(self) -> "Checkpoint":
        check_writable(self.path, "checkpoint")
        self.holding.enter_context(held(self.path))
        return self

    def __exit__(self, *_: Any) -> None:
        self.holding.close()

    def is_due(self) -> bool:
        return time.monotonic() - self.written > self.seconds

    def save(self, size: int, sums: Sums) -> None:
        """Replace the file in one step: whatever happens, the old file or the new one is there, whole. Warns if the
        file cannot be written."""
        arrays: dict[str, Any] = dict(zip(ARRAYS[:3], sums.stacked(), strict=True)) | {
            "parts": np.array(sums.parts),
            "size": np.array(size),
        }
        buffer = io.BytesIO()
        settings = json.dumps(self.settings)
        np.savez(buffer, **arrays, settings=settings, digest=_digest(arrays, settings))
        try:
            write_whole(self.path, buffer.getbuffer(), "checkpoint")
        except (OSError, ValueError) as error:
            if not self.warned:
                self.warned = True
                warnings.warn(
                    f"The checkpoint cannot be written: {error}. The run goes on without and returns its result; once "
                    "interrupted, it begins again from an older checkpoint or from nothing.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self.written = time.monotonic()

    def load(self) -> tuple[int, Sums] | None:
        """The number of networks in a block and the sums on disk, or None if there is no file yet."""
        if not self.path.exists():
            if self.other.exists():
                raise ValueError(
                    f"The checkpoint {self.other} is of a run with another number of processes than "
                    f"{jax.process_count()}: go on with as many as then, or use another file to start from the "
                    "beginning."
                )
            return None
        try:
            with open(self.path, "rb") as raw:
                if raw.read(2) != b"PK":  # NumPy would speak of pickles
                    raise ValueError("it is of another format")
                raw.seek(0)
                file: Any = np.load(raw, allow_pickle=False)
                arrays = {name: file[name] for name in ARRAYS}
                settings, digest = str(file["settings"]), str(file["digest"])
            if digest != _digest(arrays, settings):
                raise ValueError("its numbers are not those that a run wrote")
            settings = dict(json.loads(settings))
        except OSError:  # it may be whole, but cannot be read now
            raise
        except Exception as error:
            raise ValueError(
                f"The checkpoint {self.path} is truncated or not a checkpoint ({error}). Delete it to start from the "
                "beginning, or name another file."
            ) from error
        self._check(settings)
        networks, first, second = (arrays[name] for name in ARRAYS[:3])
        return int(arrays["size"]), Sums.of(networks, first, second, int(arrays["parts"]))

    def _check(self, settings: dict) -> None:
        names = sorted(k for k in self.settings.keys() | settings.keys() if self.settings.get(k) != settings.get(k))
        if names:
            differences = "; ".join(f"{k} is {settings.get(k)} there and {self.settings.get(k)} here" for k in names)
            raise ValueError(
                f"The checkpoint {self.path} belongs to another run: {differences}. Use the settings of that run to "
                "go on with it, or another file to start from the beginning."
            )


def _digest(arrays, settings):
    """A digest of all that the file holds: names, shapes, numbers and settings."""
    digest = hashlib.sha256(settings.encode())
    for name in ARRAYS:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
