"""The command `kernel-eft`: arguments in, library calls, files out.

`arguments` reads the command line without loading JAX, so that help and mistakes are answered at once. `commands/`
holds one file a command, loaded when it is run, and `printing` shows what was found. Works in float64.

Exit codes: 0 done, 1 the run failed, 2 bad arguments, 130 interrupted, 141 the reader of the output has gone.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from .arguments import read
from .messages import in_options
from .startup import load_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = argparse.Namespace()
    try:
        try:
            arguments = read(sys.argv[1:] if argv is None else argv)
            if not arguments.quiet and arguments.command != "compare" and sys.stderr.isatty():
                print(
                    "The first call of a command compiles for up to a minute; later calls are faster.", file=sys.stderr
                )
            load_command(arguments.command, arguments.cache).run(arguments)
        except SystemExit:  # after --help and --version
            pass
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more when it ends
        return 141
    except ValueError as error:
        return _fail(in_options(str(error), arguments), 2)
    except OSError as error:
        return _fail(f"{error.filename or 'A file or standard output'}: {error.strerror or error}.", 2)
    except (RuntimeError, FloatingPointError, MemoryError) as error:
        return _fail(in_options(str(error), arguments), 1)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "Interrupted.", 130)
    return 0


def _fail(why: str, code: int) -> int:
    print(f"kernel-eft: {why}", file=sys.stderr)
    return code
