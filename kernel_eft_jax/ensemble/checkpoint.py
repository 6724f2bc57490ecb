"""Sums of a run on disk: written whole or not at all, and taken up only by the same run."""

import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np

from .statistics import Group, Sums


class Checkpoint:
    """A file that holds the sums so far and the settings of the run, written every `seconds` at most."""

    def __init__(self, path: str | os.PathLike, settings: dict, seconds: float):
        self.path = Path(path)
        if not self.path.parent.is_dir() or self.path.is_dir():
            raise ValueError(f"Argument `checkpoint` must name a file in a folder that exists, but is {str(path)!r}.")
        self.settings = json.loads(json.dumps(settings))
        self.seconds = seconds
        self.written = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self.written > self.seconds

    def save(self, sums: Sums) -> None:
        """Replace the file in one step: whatever happens, the old one or the new one is there, whole."""
        temporary = self.path.with_name(self.path.name + ".part")
        count, first, second = (np.stack([group[i] for group in sums.groups]) for i in range(3))
        with open(temporary, "wb") as file:
            np.savez(
                file, count=count, first=first, second=second, parts=sums.parts, settings=json.dumps(self.settings)
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self.written = time.monotonic()

    def load(self, zeros: Sums) -> Sums:
        """The sums on disk, or `zeros` if there is no file yet."""
        if not self.path.exists():
            return zeros
        try:
            with open(self.path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                count, first, second, parts, settings = (
                    file[k] for k in ("count", "first", "second", "parts", "settings")
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"The checkpoint {self.path} is truncated or not a checkpoint ({error}). Delete it to start from the beginning."
            ) from error
        self._check(json.loads(str(settings)))
        groups = (Group(int(c), f, s) for c, f, s in zip(count, first, second, strict=True))
        return Sums(tuple(groups), int(parts))

    def _check(self, settings: dict) -> None:
        names = sorted(k for k in self.settings.keys() | settings.keys() if self.settings.get(k) != settings.get(k))
        if names:
            differences = "; ".join(f"{k} is {settings.get(k)} there and {self.settings.get(k)} here" for k in names)
            raise ValueError(
                f"The checkpoint {self.path} belongs to another run: {differences}. Use the settings of that run to go on with it, "
                "or another file to start from the beginning."
            )
