"""Messages of the library in the words of the command line: `--degree 60`, not `reference=HermiteTower(60)`."""

import argparse
import re

# What the library says about its own arguments, and what a person at the command line can do.
WORDS = (
    (r"`?(?:reference|closure)=HermiteTower\((\d+)\)`?", r"--degree \1"),
    (r"`?HermiteTower\((\d+)\)`?", r"--closure hermite-tower --degree \1"),
    (r"Argument `reference`", "The tower of this `--degree`"),
    (r"`?with_V4=True`?", "--with-V4"),
    (r"Try increasing `max_steps`\.", "Take a smaller `--T`, or layers with `--eps` and `--depth`."),
    (r",? or `?throw=False`?[^.]*(?=\.)", ""),
    (r"Argument `data`", "The file"),
    (r"Argument `experiment`", "The setting"),
    (r"Argument `ts`", "The list of depths"),
)


def in_options(message: str, arguments: argparse.Namespace) -> str:
    """The message with the library's arguments replaced by the options of this command."""
    for pattern, words in WORDS:
        message = re.sub(pattern, words, message)
    return re.sub(r"`(\w+)`", lambda found: f"`{_option(found[1], arguments)}`", message)


def _option(name: str, arguments: argparse.Namespace) -> str:
    """--off-diagonal for off_diagonal, if the command has it; else the name itself."""
    option = "--" + (name if name in ("C_W", "C_b") else name.replace("_", "-"))
    return option if name in arguments else name
