"""The command as a process: compiled programs are kept, interruptions and closed pipes end quietly; and how numbers are
shown."""

import importlib
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import pytest

from kernel_eft_jax.cli import startup
from kernel_eft_jax.cli.outputs import write
from kernel_eft_jax.showing import rounded

MAIN = "import sys; from kernel_eft_jax.cli import main; sys.exit(main())"
THEORY = "theory --activation linear --inputs 1 --closure GOnly --T 1 --times 2 --out -"
LAYERS = "theory --activation linear --inputs 1 --closure GOnly --depth 1 --eps 0.5 --times 2 --out -"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder in which programs are kept from one process to the next."""
    return tmp_path_factory.mktemp("kept")


def environment(tmp_path, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return kept | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "LOCALAPPDATA": str(tmp_path / "cache")} | more


# The command, and how many programs it asked the cache for in vain.
COUNTED = """
import collections, sys
from kernel_eft_jax import cli
load, count = cli.load_command, collections.Counter()

def counted(*args):
    module = load(*args)
    import jax
    jax.monitoring.register_event_listener(lambda name, **_: count.update([name]))
    return module

cli.load_command = counted
assert cli.main() == 0
print(count["/jax/compilation_cache/cache_hits"], count["/jax/compilation_cache/cache_misses"], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "there/kernel-eft-jax"),
        ("linux", None, "home/.cache/kernel-eft-jax"),
        ("darwin", None, "home/Library/Caches/kernel-eft-jax"),
        ("win32", "LOCALAPPDATA", "there/kernel-eft-jax"),
        ("win32", None, "home/AppData/Local/kernel-eft-jax"),
    ],
)
def test_each_system_keeps_programs_in_its_own_place(platform, variable, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "there"))
    assert startup.cache_folder() == tmp_path / expected


def test_a_command_keeps_its_programs_where_it_can(tmp_path, monkeypatch):
    """In the folder of the system, which is made; not where a file is in its place, where a variable names another
    folder, or where nothing is to be kept. Another thread than the main one may load a command."""
    importlib.import_module("kernel_eft_jax.cli.commands.compare")  # libraries that are loaded may set options too
    set_to = {}
    monkeypatch.setattr(type(jax.config), "update", lambda self, name, value: set_to.update({name: value}))
    monkeypatch.setenv("EQX_ON_ERROR", "raise")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(startup, "cache_folder", lambda: tmp_path / "deep" / "folder")
    (tmp_path / "file").write_text("")

    def kept(cache):
        set_to.clear()
        assert startup.load_command("compare", cache).__name__ == "kernel_eft_jax.cli.commands.compare"
        assert set_to.pop("jax_enable_x64") is True
        assert set_to.pop("jax_persistent_cache_min_compile_time_secs", 0.0) == 0
        return set_to.get("jax_compilation_cache_dir")

    assert kept(True) == str(tmp_path / "deep" / "folder")
    assert kept(False) is None
    monkeypatch.setattr(startup, "cache_folder", lambda: tmp_path / "file" / "folder")
    assert kept(True) is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    assert kept(True) is None
    with ThreadPoolExecutor() as pool:
        assert pool.submit(kept, False).result() is None


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "darwin", reason="no variable moves the cache folder")
def test_the_second_call_compiles_nothing_anew(kept):
    """All programs of the first call are kept, the solve itself too."""
    command = [sys.executable, "-c", COUNTED, *THEORY.split()]
    options: Any = {"check": True, "capture_output": True, "text": True}
    first, second = (subprocess.run(command, env=environment(kept), **options) for _ in range(2))
    assert first.stdout == second.stdout
    hits, misses = map(int, second.stderr.split())
    assert hits > 0
    assert misses == 0


def test_old_programs_are_removed(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}").write_bytes(bytes(100))
        os.utime(tmp_path / f"{i}", (i, i))
    startup.prune(tmp_path, 250)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.thorough
def test_a_closed_pipe_ends_quietly(tmp_path):
    """As in `kernel-eft theory | head -1`: the reader goes before anything is printed. --no-cache keeps no programs."""
    command = [sys.executable, "-c", MAIN, *LAYERS.split(), "--no-cache"]
    with subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141
    assert not (tmp_path / "cache").exists()


def test_interrupting_the_imports_ends_quietly():
    """Ctrl-C during the imports ends the process quietly, also where a library would turn the interruption into an
    error of its own."""
    script = (
        "import os, signal, time\nfrom kernel_eft_jax.cli import startup\n"
        "with startup._leaving_at_once():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(60)\n"
        "    except BaseException as error:\n        raise ImportError('broken') from error\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (130, "kernel-eft: Interrupted.\n")


@pytest.mark.thorough
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that Linux has")
def test_a_full_disk_is_named(kept):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", MAIN, *LAYERS.split()]
        run = subprocess.run(command, env=environment(kept), stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2
    assert run.stderr == "kernel-eft: A file or standard output: No space left on device.\n"


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("before")

    def fails(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(file, fails)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "before"
    write(file, lambda stream: stream.write(b"after"))
    assert file.read_text() == "after"
    gone = tmp_path / "gone" / "b.json"
    with pytest.raises(ValueError, match=rf"must name a file in a folder that exists, but is '{gone}'"):
        write(gone, lambda stream: stream.write(b""))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456789, 0.0046, "1.235 ± 0.005"),
        (1.23456789, 0.0123, "1.235 ± 0.012"),
        (-0.45, 0.0996, "-0.45 ± 0.10"),
        (0.96, 0.96, "1.0 ± 1.0"),
        (42.88, 3.2, "43 ± 3"),
        (4288.0, 170.0, "4290 ± 170"),
        (4288.0, 320.0, "4300 ± 300"),
        (0.00001234, 0.0000031, "(1.2 ± 0.3)e-05"),
        (4.894e10, 2e8, "(4.89 ± 0.02)e+10"),
        (1.23456789, 1e-9, "1.23457"),
        (1.23456789, 0.0, "1.23457"),
        (1.23456789, None, "1.23457"),
        (1.5, math.nan, "1.5 ± ?"),
        (1.5, math.inf, "1.5 ± inf"),
        (math.nan, 1.0, "nan"),
        (0.0, 0.02, "0.00 ± 0.02"),
    ],
)
def test_numbers_are_rounded_to_their_errors(value, error, text):
    assert rounded(value, error) == text
