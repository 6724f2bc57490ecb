"""Messages of the library in the words of the command line: `--degree 60`, not `reference=HermiteTower(60)`."""

import argparse
import re

# Patterns of the library's messages, and the words of the command line for them.
IN_OPTIONS = (
    (r"`?(?:reference|closure)=HermiteTower\((\d+)\)`?", r"--degree \1"),
    (r"`?HermiteTower\((\d+)\)`?", r"--closure HermiteTower --degree \1"),
    (r"`?\b(GOnly|HermiteTower)\(\)`?", r"--closure \1"),
    (r"HermiteTower\(degree=(\d+)\)", r"HermiteTower of degree \1"),
    (r"`solve_pairs`", "`solve_pairs` of the Python package"),
    (
        r"Save fewer layers with `save_at`, or take `sample_kernels`, which keeps kernels and no moments",
        "Save fewer depths with --times",
    ),
    (r"Argument `branch`", "Argument `--block`"),
    (r"Argument `(own|kernels)`", "Argument `--own`"),
    (r"Dense\(\.\.\., ratio=([^)]*)\)", r"ratio=\1"),
    (r"Dense\((\w+)\)", r"dense:\1"),
    (r"put a Dense", "put a dense:C_W"),
    (r"Make it again with `save`\.", "Make it again with `kernel-eft`."),
    (r"Argument `reference`", "The tower of this `--degree`"),
    (r": the kernel of one input is \[\[2\.0\]\], and that of features is input_kernel\(x\)", ""),
    (r"solve layers \(`layers` and `eps`\)", "solve layers (`--eps` and `--depth`)"),
    (r"`?with_V4=True`?", "--with-V4"),
    (r"Try increasing `max_steps`\.", "Take a smaller `--T`, or layers with `--eps` and `--depth`."),
    (r",? or `?throw=False`?[^.]*(?=\.)", ""),
    (r", or an Estimate, but", ", but"),
    (r"Argument `experiment`", "The setting"),
    (r"Argument `ts`", "The list of depths"),
)


def in_options(message: str, arguments: argparse.Namespace) -> str:
    """The message with the library's arguments replaced by the options of this command."""
    message = message.replace("Argument `data`", str(getattr(arguments, "data", "The file")))
    for pattern, words in IN_OPTIONS:
        message = re.sub(pattern, words, message)
    return re.sub(r"`(\w+)`", lambda found: f"`{_option(found[1], arguments)}`", message)


def _option(name: str, arguments: argparse.Namespace) -> str:
    """--off-diagonal for off_diagonal, if the command has it; else the name itself."""
    option = "--" + (name if name in ("C_W", "C_b") else name.replace("_", "-"))
    return option if name in arguments else name
