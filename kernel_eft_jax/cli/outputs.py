"""Where results go: the suffix gives the format, no file is replaced without --overwrite, and a file is written whole
or not at all."""

import argparse
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..writing import target_of, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
# The suffixes of the result that `--out` names, and of the file that is written beside it.
SUFFIXES = {
    "theory": ((".nc",), ".png"),
    "sample": ((".nc",), ".png"),
    "fit": ((".json",), ".png"),
    "sensitivity": ((".npz",), ".png"),
    "validity": (FIGURE_SUFFIXES, ".json"),
    "network": (FIGURE_SUFFIXES, ".json"),
    "compare": (FIGURE_SUFFIXES, None),
}
CHECKPOINT = "main-job.checkpoint"  # of `kernel-eft paper --all`; there as long as a run is unfinished
INPUT_OPTIONS = ("data", "theory", "sample", "K0", "settings")


class Outputs(NamedTuple):
    """The files that a command writes; None for a file that is not written. Links are followed, so that a link stays a
    link."""

    result: Path | None
    beside: Path | None

    def names(self) -> str:
        """The files, for a sentence."""
        return " and ".join(os.path.relpath(file) for file in self if file is not None)


def check_outputs(arguments: argparse.Namespace) -> Outputs:
    """The files that a command will write, if they have the right suffixes, differ, and may be written."""
    if arguments.command == "paper":
        _check_folder(arguments.out, arguments.overwrite)
        return Outputs(arguments.out, None)
    suffixes, other = SUFFIXES[arguments.command]
    figure = getattr(arguments, "figure", None)
    result = None if arguments.out == "-" else _file("--out", arguments.out, suffixes)
    beside = None
    if figure is not None:
        beside = _file("--figure", figure, FIGURE_SUFFIXES)
    elif result is not None and other is not None:
        beside = result.with_suffix(other)
    checkpoint = getattr(arguments, "checkpoint", None)
    named = {"--out": result, "--figure": beside, "--checkpoint": checkpoint}
    named |= {name: getattr(arguments, name, None) for name in INPUT_OPTIONS}
    _check_apart({name: file for name, file in named.items() if file is not None})
    if checkpoint is not None:
        _file("--checkpoint", str(checkpoint), (".npz",))
    for option, file in (("--out", result), ("--figure" if figure is not None else "--out", beside)):
        if file is not None:
            _check_free(option, file, arguments.overwrite)
    return Outputs(*(None if file is None else file.resolve() for file in (result, beside)))


def write(file: Path, fill: Callable[[Any], object]) -> None:
    """Put what `fill` writes into a file, at once or not at all."""
    content = io.BytesIO()
    fill(content)
    write_whole(file, content.getbuffer())


def write_figure(file: Path, figure: "Figure") -> None:
    """Put a figure into a file, as `write` does, in the format that its suffix says."""
    write(file, lambda stream: figure.savefig(stream, format=file.suffix[1:].lower(), dpi=200))


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Put a record into a file, as `write` does."""
    write_whole(file, (json.dumps(record, indent=1) + "\n").encode())


def _file(option: str, text: str, suffixes: tuple[str, ...]) -> Path:
    file = Path(text).expanduser()
    if file.suffix.lower() not in suffixes:
        raise ValueError(f"Argument `{option}` must end in {' or '.join(suffixes)}, but is {text}.")
    return file


def _check_apart(named: dict[str, Path]) -> None:
    seen: dict[Path, str] = {}
    for name, file in named.items():
        place = file.expanduser().resolve()
        if place in seen:
            raise ValueError(
                f"Arguments `{seen[place]}` and `{name}` name one file, {file}: give them different names."
            )
        seen[place] = name


def _check_free(option: str, file: Path, overwrite: bool) -> None:
    place = target_of(file, option)
    if place.exists() and not overwrite:
        raise ValueError(f"{file} exists already: give --overwrite to replace it, or another name by `{option}`.")
    if not os.access(place.parent, os.W_OK) or (place.exists() and not os.access(place, os.W_OK)):
        raise ValueError(f"Argument `{option}` must name a file that can be written, but {file} cannot.")


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Argument `--out` must name a folder, but {folder} is a file.")
    if (folder / "table.md").exists() and not overwrite and not (folder / CHECKPOINT).exists():
        raise ValueError(f"{folder} holds results already: give --overwrite to replace them, or another `--out`.")
