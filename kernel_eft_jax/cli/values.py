"""The values of options: each function turns text into a value, or raises an error that says what would be right."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number in a range."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ArgumentTypeError(f"must be a whole number from {least:,} to {most:,}, but is {text}")
        return value

    return read


def one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    """A name, in capital or small letters, with hyphens or without."""
    known = {name.lower(): name for name in names}
    return lambda text: known.get(text.replace("-", "").lower(), text)


def _number(law: str, holds: Callable[[float], bool], kind: str = "finite number") -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise ArgumentTypeError(f"must be a {kind}{law}, but is {text}")
        return value

    return read


number = _number("", lambda value: True)
positive = _number(" greater than zero", lambda value: value > 0)
variance = _number(" not below zero", lambda value: value >= 0, "variance, a finite number")


def path(text: str) -> Path:
    """A path, with ~ for the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ArgumentTypeError(f"must be a path, but nobody's home folder is {text.split('/')[0]}") from None
