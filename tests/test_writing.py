"""Files are whole or absent, whatever happens while they are written; two runs never write to one."""

import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_eft_jax import writing
from kernel_eft_jax.writing import Busy, check_writable, held, target_of, write_whole

ROOT = Path(__file__).parent.parent


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    path = tmp_path / "a.nc"
    assert write_whole(path, b"one") == path
    path.chmod(0o640)
    write_whole(str(path), memoryview(b"two"))
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["a.nc"]


def test_links_are_written_through_and_stay(tmp_path):
    """Relative, dangling, and a link to a link."""
    (tmp_path / "far").mkdir()
    for link, to in (("one", "far/real"), ("two", "one"), ("new", "far/fresh")):
        (tmp_path / link).symlink_to(to)
    (tmp_path / "far" / "real").write_bytes(b"old")
    write_whole(tmp_path / "two", b"new")
    write_whole(tmp_path / "new", b"fresh")
    assert (tmp_path / "far" / "real").read_bytes() == b"new"
    assert (tmp_path / "far" / "fresh").read_bytes() == b"fresh"
    assert all((tmp_path / link).is_symlink() for link in ("one", "two", "new"))


def test_what_is_no_file_is_refused_and_stays(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for path, says in (
        ("/dev/null", "is a device"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is a device, pipe or socket"),
        (tmp_path / "nowhere" / "a", "make the folder first"),
        (tmp_path / ("a" * 300), "cannot be one: File name too long"),
        (tmp_path / "circle", "cannot be one: Too many levels"),
    ):
        for function in (lambda p: write_whole(p, b"x", "out"), lambda p: check_writable(p, "out")):
            with pytest.raises(ValueError, match=f"Argument `out` must name a file.*{says}"):
                function(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert target_of("~/a") == Path(os.path.realpath(tmp_path)) / "a"
    write_whole(tmp_path / ("a" * 255), b"as long as a name may be")


@pytest.fixture
def full_disk():
    """Files of this process end at 1 MiB, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file_and_a_sentence(tmp_path, full_disk):
    path = tmp_path / "a.nc"
    with pytest.raises(
        OSError, match="Nothing was written, because the disk or a quota is full; no file was left behind"
    ):
        write_whole(path, bytes(2**21))
    assert names(tmp_path) == []
    write_whole(path, b"old")
    with pytest.raises(OSError, match="the file that was there is unchanged"):
        write_whole(path, bytes(2**21))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.nc"]


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    """Tests may run as root, whom no mode stops, so the system's answer is played."""
    path = tmp_path / "a.nc"
    assert check_writable(path) == Path(os.path.realpath(path))
    assert names(tmp_path) == []

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"cannot: Permission denied\. Nothing was computed yet: choose another place"):
        check_writable(path)
    with pytest.raises(OSError, match="Nothing was written, because Permission denied"):
        write_whole(path, b"x")


def test_a_write_protected_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.nc"
    path.write_bytes(b"precious")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(OSError, match="Permission denied; the file that was there is unchanged"):
        write_whole(path, b"x")
    assert path.read_bytes() == b"precious"


KILLED = """
import os, signal, sys
from kernel_eft_jax import writing
os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
writing.write_whole(sys.argv[1], b"never seen")
"""
HOLDER = """
import sys
from kernel_eft_jax.writing import held
with held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.thorough
def test_the_parts_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path):
    path = tmp_path / "a[1].nc"
    path.write_bytes(b"old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    left = [name for name in names(tmp_path) if name.endswith(".part")]
    assert len(left) == 1
    assert path.read_bytes() == b"old"
    write_whole(tmp_path / "b.nc", b"another")
    assert left[0] in names(tmp_path)
    write_whole(path, b"new")
    assert names(tmp_path) == ["a[1].nc", "b.nc"]


@pytest.mark.parametrize(("fault", "free"), [(BlockingIOError, False), (OSError, True)])
def test_a_file_is_free_unless_somebody_holds_it(fault, free, tmp_path, monkeypatch):
    """Also on a file system that knows no locks."""

    def refuse(*_):
        raise fault

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / "a").open("wb") as file:
        assert writing._lock(file.fileno()) == free


def test_files_are_whole_where_nothing_can_be_locked(tmp_path, monkeypatch):
    """As on Windows: parts of others are left alone."""
    monkeypatch.setattr(writing, "fcntl", None)
    path = tmp_path / "a.nc"
    left = writing._short(path, "other.part")
    left.write_bytes(b"half")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert left.exists()


def test_a_part_goes_unless_its_writer_holds_it(tmp_path):
    """What a killed writer left is removed by the next one; the part of a living writer is locked, and stays."""
    path = tmp_path / "a[1].nc"
    for writer in ("dead", "living"):
        writing._short(path, f"{writer}.part").write_bytes(b"half")
    with writing._short(path, "living.part").open("rb+") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        write_whole(path, b"new")
        assert names(tmp_path) == sorted(["a[1].nc", Path(living.name).name])
    write_whole(path, b"newer")
    assert names(tmp_path) == ["a[1].nc"]


def test_a_file_is_held_by_one_and_let_go_with_its_process(tmp_path):
    path = tmp_path / "run.npz"
    with held(path):
        with (
            pytest.raises(Busy, match=rf"run\.npz is in use by process {os.getpid()} on .*: wait until that run ends"),
            held(path),
        ):
            pass
        with held(tmp_path / "run.npz.1"):
            pass
    assert names(tmp_path) == []
    worker = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=f"process {worker.pid} on"), held(path):
        pass
    worker.kill()
    worker.communicate()
    with held(path):
        pass
    assert names(tmp_path) == []
