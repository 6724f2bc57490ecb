"""The parser of the command line: the messages for mistakes, and the layout of help."""

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ValueErrors of one sentence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with which option, and what would be right."""
        message = re.sub(r"^argument (\S+?): must ", r"Argument `\1` must ", message)
        message = re.sub(r"^argument (\S+?): expected ", r"Argument `\1` expects ", message)
        message = re.sub(r"^argument (\S+?): ", r"Argument `\1`: ", message)
        choice = re.match(r"Argument `(\S+)`: invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w-]+", choice[3])
            message = (
                f"argument `{choice[1]}` must be one of {', '.join(known)}, but is "
                f"{choice[2]}{_close(choice[2], known)}"
            )
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown and unknown[1].startswith("-"):
            begin = [name for name in self.options() if name.startswith(unknown[1])]
            hint = f"; did you mean {begin[0]}?" if begin else _close(unknown[1], self.options())
            message = f"there is no option {unknown[1]}{hint}"
        elif unknown:
            message = (
                f"the word {unknown[1]} belongs to no option: write the values of one option without spaces, or in "
                "quotes"
            )
        if message == "the following arguments are required: command":
            message = f"name a command, one of {', '.join(self._commands())}: `kernel-eft --help` says what each does"
        raise ValueError(f"{message[0].upper()}{message[1:]}{'' if message.endswith('?') else '.'}")

    def options(self) -> dict[str, argparse.Action]:
        """The options by their names."""
        return {name: action for action in self._actions for name in action.option_strings if name.startswith("--")}

    def _commands(self) -> list[str]:
        return [name for action in self._actions if action.dest == "command" for name in action.choices or ()]


def _close(text: str, known: Iterable[str]) -> str:
    """The name that was probably meant, as the end of a sentence."""
    spelt = {re.sub(r"[-_]", "", name.lower()): name for name in known}
    close = difflib.get_close_matches(re.sub(r"[-_]", "", text.lower()), spelt, 1, 0.5)
    return f"; did you mean {spelt[close[0]]}?" if close else ""


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there are any, and examples as they are written."""

    def _get_help_string(self, action):
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(action.default)})"
        return action.help if action.default in (None, False, True) else super()._get_help_string(action)
