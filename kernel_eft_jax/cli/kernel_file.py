"""The input kernel from a file: NumPy's, or text as spreadsheets and other programs write it.

Text is read if it has one meaning only. Between numbers there may be commas, semicolons, tabs or spaces; above and
before the numbers there may be names; a byte-order mark is ignored. With semicolons a comma is a decimal point, as
spreadsheets write it in half of the world.
"""

import csv
import math
import re
from pathlib import Path

import numpy as np

THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


def read_input_kernel(path: Path) -> np.ndarray:
    """The matrix in a .npy or .csv file. Raises ValueError that names the line and the remedy."""
    if path.suffix.lower() == ".npy":
        try:
            with open(path, "rb") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no array of numbers as numpy.save writes it: {error}.") from None
    if path.suffix.lower() == ".csv":
        return _read_text(path)
    raise ValueError(f"Argument `--K0` must name a .npy or .csv file, but is {path}.")


def _read_text(path):
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8: save it again as CSV in UTF-8.") from None
    lines = [(i, line.split("#")[0].strip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line]
    if not lines:
        raise ValueError(f"{path} holds no numbers: write one row of the kernel a line, with commas between numbers.")
    separator = next((mark for mark in ";,\t" if any(mark in line for _, line in lines)), " ")
    rows = [(i, [field.strip() for field in _fields(line, separator)]) for i, line in lines]
    rows = _without_names(rows)
    if separator == ";":
        rows = _with_points(path, rows)
    values = [[_entry(path, i, field) for field in fields] for i, fields in rows]
    for (i, _), row in zip(rows, values, strict=True):
        if len(row) != len(values[0]):
            raise ValueError(f"{path}, line {i}, has {len(row)} numbers where the first row has {len(values[0])}.")
    return np.array(values)


def _fields(line, separator):
    return line.split() if separator == " " else next(csv.reader([line], delimiter=separator))


def _without_names(rows):
    """The rows without a line of names above, and without names before the numbers."""
    (_, first), *rest = rows
    # pandas leaves the corner empty and counts columns from 0. In any other table an empty corner is a missing number.
    counted = first[0] == "" and first[1:] == [str(i) for i in range(len(rest))]
    above = counted or (bool(rest) and not any(map(_is_number, first)))
    rows = rest if above else rows
    before = counted or not any(_is_number(fields[0]) for _, fields in rows)
    return [(i, fields[1:]) for i, fields in rows] if before else rows


def _with_points(path, rows):
    """Decimal commas become points. A kernel in which every comma could separate thousands has two meanings and is
    refused."""
    commas = [(i, field) for i, fields in rows for field in fields if "," in field]
    if commas and any("." in field for _, fields in rows for field in fields):
        raise ValueError(
            f"{path}, line {commas[0][0]}, has commas and points in its numbers: write decimal points only."
        )
    if commas and all(THOUSANDS.fullmatch(field) for _, field in commas):
        raise ValueError(
            f"{path}, line {commas[0][0]}: {commas[0][1]} may be a fraction or thousands: write decimal points only."
        )
    return [(i, [field.replace(",", ".") for field in fields]) for i, fields in rows]


def _is_number(field):
    try:
        float(field.replace(",", "."))
    except ValueError:
        return False
    return True


def _entry(path, line, field):
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        shown = f"{field!r} where a finite number is due" if field else "an empty field"
        raise ValueError(f"{path}, line {line}, has {shown}: write rows of numbers with commas between them.")
    return value
