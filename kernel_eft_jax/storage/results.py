"""A result in a file: netCDF that opens in plain xarray, whole or absent, and sealed by a digest of all its bytes.

The seal lies behind the end of the HDF5 data, where readers of HDF5 do not look. A file that another program has
written again has no seal: it is read if its dimensions and variables are those of a result.
"""

import hashlib
import importlib
import io
import os
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import equinox as eqx
import numpy as np

from ..writing import write_whole
from .labels import KIND, check_dimensions
from .values import attribute

if TYPE_CHECKING:
    import xarray as xr

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SEAL = b"\nkernel_eft_jax sha256 "


class Result(eqx.Module):
    """A result that can be saved: a public class of this package that turns into a labelled Dataset and back."""

    @abstractmethod
    def to_xarray(self) -> "xr.Dataset":
        """The result as a labelled Dataset."""

    @classmethod
    @abstractmethod
    def from_xarray(cls, data: "xr.Dataset") -> Self:
        """The result that `to_xarray` gave, its dimensions in any order. Raises ValueError for parts of one."""

    def save(self, path: str | os.PathLike, **settings: Any) -> Path:
        """`save` this result."""
        return save(self, path, **settings)


def save(result: Result, path: str | os.PathLike, **settings: Any) -> Path:
    """Write a result to a netCDF file, replacing it in one step, never in part.

    The file also holds what made the result: model, closure or sampler, eps, width, key.

    Args:
        result: A `Solution`, a `PairSolution` or an `Estimate`.
        path: The file.
        **settings: Notes of yours, kept as attributes: numbers and text as they are, anything else as its text.

    Returns:
        The file that was written.

    Raises:
        ValueError: For a setting with a name that the file itself uses.
        OSError: With a sentence, if the file cannot be written; an old file is then untouched.
    """
    if not isinstance(result, Result):
        raise ValueError(
            f"Argument `result` must be a Solution, a PairSolution or an Estimate, but is {result!r:.200}."
        )
    data = result.to_xarray()
    notes = {name: attribute(value) for name, value in settings.items()}
    for name, note in notes.items():
        if name.startswith("stats_") or data.attrs.get(name, note) != note:
            raise ValueError(
                f"Argument `{name}` has a name that the file itself uses: leave it out, or give it another name."
            )
    content = to_bytes(data.assign_attrs(notes))
    return write_whole(path, content + _seal(content))


def load(path: str | os.PathLike) -> Any:
    """Read back what `save` wrote; a result's model is the one that made it, or None for functions that no file can
    hold.

    Args:
        path: The file.

    Returns:
        The result.

    Raises:
        ValueError: For a file that is damaged, by one bit or by more, or holds something else.
    """
    content = Path(path).expanduser().read_bytes()
    end = _end_of_data(content)
    content, rest = content[:end], content[end:]
    if rest and rest != _seal(content):
        raise ValueError(
            f"File {path} is damaged: its bytes are not those that `save` wrote. Take a copy of it, or make it again."
        )
    import xarray as xr  # here, since it takes half the time that importing this package would take

    try:
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as file:
            data = file.load()
    except Exception as error:
        raise ValueError(
            f"File {path} cannot be read as netCDF: it is cut short or of another format. Make it again with `save`."
        ) from error
    kind = getattr(importlib.import_module(__name__.split(".")[0]), str(data.attrs.get(KIND, "")), None)
    if not (isinstance(kind, type) and issubclass(kind, Result)):
        raise ValueError(f"File {path} is netCDF but holds no result: it was not written by `save`.")
    missing = sorted(set(str(data.attrs.get("variables", "")).split()) - set(data.variables))
    if missing:
        raise ValueError(f"File {path} lacks {', '.join(missing)}: it was changed since `save` wrote it.")
    try:
        check_dimensions(data)
        return kind.from_xarray(data)
    except Exception as error:
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"File {path} was changed since `save` wrote it. {why}") from error


def _seal(content):
    return SEAL + hashlib.sha256(content).hexdigest().encode()


def _end_of_data(content):
    """Where the HDF5 data end, as the superblock says; the end of the file for files of other formats."""
    if not content.startswith(SIGNATURE):
        return len(content)
    version = content[len(SIGNATURE) : len(SIGNATURE) + 1]  # of the superblock
    place = {b"\0": 40, b"\1": 44}.get(version, 28)
    return int.from_bytes(content[place : place + 8], "little")


def to_bytes(data: "xr.Dataset") -> bytes:
    """A Dataset as the bytes of a netCDF file. It is made in memory, since HDF5 ends the process if a disk is full."""
    buffer: Any = io.BytesIO()
    import h5netcdf

    with h5netcdf.File(buffer, "w") as file:
        file.dimensions = dict(data.sizes)
        for name, variable in data.variables.items():
            stored = file.create_variable(name, variable.dims, data=np.asarray(variable.values))
            stored.attrs.update(variable.attrs)
        file.attrs.update(data.attrs)
    return buffer.getvalue()
