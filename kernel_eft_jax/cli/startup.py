"""Done once between reading the arguments and running the command: the libraries are loaded and JAX is configured."""

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

CACHE_BYTES = 2**30  # bytes of compiled programs that are kept; one program takes some ten million


def load_command(command: str, cache: bool) -> ModuleType:
    """The module of a command, in float64, with compiled programs kept for the next call.

    JAX's own environment variables take precedence: JAX_COMPILATION_CACHE_DIR names another folder,
    JAX_ENABLE_COMPILATION_CACHE=false switches the cache off.
    """
    if cache:
        # A compiled program that can raise holds an address of this process and cannot be kept. With this variable,
        # which Equinox reads when it is loaded, the program gives NaN instead, and the library looks for NaN when the
        # program has run.
        os.environ.setdefault("EQX_ON_ERROR", "nan")
    with _leaving_at_once():
        import jax

        module = importlib.import_module(f".commands.{command}", __package__)
    jax.config.update("jax_enable_x64", True)
    if cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder()
        with contextlib.suppress(OSError):  # a home that cannot be written to costs time and nothing else
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                prune(folder)
                jax.config.update("jax_compilation_cache_dir", str(folder))
                jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return module


def cache_folder() -> Path:
    """The folder in which this system keeps files that can be made again."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kernel-eft-jax"


def prune(folder: Path, largest: int = CACHE_BYTES) -> None:
    """Remove the oldest files until the others are small enough together."""
    files = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in folder.iterdir() if file.is_file())
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total <= largest:
            break
        file.unlink(missing_ok=True)
        total -= size


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """While libraries are loaded, Ctrl-C ends the process: some of the libraries would turn the interruption into
    errors of their own.

    Nothing is lost, because no file has been opened yet.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_) -> None:
        os.write(2, b"kernel-eft: Interrupted.\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
