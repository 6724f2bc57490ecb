"""Options from a TOML file: keys are the names of options, as in

    activation = "gelu"
    C_W = 2.0

    [sample]
    networks = 5000
    checkpoint = "run.npz"

Keys at the top hold for every command; a table named after a command holds for that one only.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def words(file: Path, command: str, parsers: Mapping[str, Any]) -> list[str]:
    """The settings of a command as words of a command line."""
    try:
        table = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a TOML file: {error}.") from None
    own = {key: value for key, value in table.items() if not isinstance(value, dict)}
    for name, part in table.items():
        if isinstance(part, dict) and name not in parsers:
            raise ValueError(f"{file} has a table [{name}], but tables are named after commands: {', '.join(parsers)}.")
    own |= table.get(command, {})
    options = parsers[command].options()
    return [word for key, value in own.items() for word in _words(file, command, key, value, options)]


def _words(file, command, key, value, options):
    known = [name[2:] for name in options if name not in ("--help", "--settings")]
    if key not in known:
        close = difflib.get_close_matches(key.replace("_", "-"), known, 1)
        hint = f" Did you mean {close[0]}?" if close else f" Known: {', '.join(known)}."
        raise ValueError(f"{file} has a key {key!r}, which is no option of `kernel-eft {command}`.{hint}")
    if options[f"--{key}"].nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{file}: {key} is a switch and must be true or false, but is {value!r}.")
        return [f"--{key}"] if value else []
    several = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool | dict | list) for item in several) or not several:
        raise ValueError(f"{file}: {key} must be a number, a text or a list of them, but is {value!r}.")
    return [f"--{key}={several[0]}"] if len(several) == 1 else [f"--{key}", *map(str, several)]
