"""The output of a command: one table, each number rounded to its error, as text or as JSON."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..showing import rounded


class Value(NamedTuple):
    """A number with its standard error, or with an estimate of what is missing."""

    value: float
    error: float


class Table(NamedTuple):
    """A title, which says what was computed and how; rows of numbers or text under the columns; and sentences below."""

    title: Mapping[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()


def show(table: Table, arguments: argparse.Namespace) -> None:
    """Print a table, as JSON with --json, or not at all with --quiet."""
    if arguments.json:
        files = [str(file) for file in arguments.files if file is not None]
        print(json.dumps({"command": arguments.command, **as_record(table), "files": files}, indent=1))
    elif not arguments.quiet:
        written = arguments.files.names()
        print(as_text(table._replace(notes=[*table.notes, *([f"Written to {written}."] if written else [])])))


def say_sampling(arguments: argparse.Namespace) -> None:
    """Why bars of other widths than the asked one follow."""
    if not arguments.quiet:
        print("Networks of several widths are sampled: from which width on is order 1/n right?", file=sys.stderr)


def as_text(table: Table) -> str:
    """The table for a person."""
    cells = [list(table.columns), *([_cell(value) for value in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells]
    title = [f"{name}: {value}" for name, value in table.title.items()]
    return "\n".join([*title, *lines, *table.notes])


def as_record(table: Table) -> dict[str, Any]:
    """The table for a program: numbers in full, null for what is not finite."""
    rows = [dict(zip(table.columns, map(_plain, row), strict=True)) for row in table.rows]
    return {**{name: _plain(value) for name, value in table.title.items()}, "rows": rows, "notes": list(table.notes)}


def _cell(value):
    if isinstance(value, Value):
        return rounded(*value)
    return value if isinstance(value, str) else f"{value:.6g}"


def _plain(value):
    if isinstance(value, Value):
        return {"value": _plain(value.value), "error": _plain(value.error)}
    if isinstance(value, np.generic | np.ndarray):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
