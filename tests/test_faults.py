"""Faults, one after the other, in processes of their own: nothing is lost, and a sentence says what happened. Run by
`make slow`.

Quick versions of these are in test_writing, test_storage and test_ensemble_runs.
"""

import errno
import functools
import os
import re
import resource
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from workers import LONG, SHORT, digest, finish, free_port, start_worker

import kernel_eft_jax as keft

pytestmark = pytest.mark.slow

SAVER = """
import json, sys
import numpy as np
import jax
import kernel_eft_jax as keft
jax.config.update("jax_enable_x64", True)
settings = json.loads(sys.argv[1])
results = [keft.solve(keft.Model(keft.Erf(), C_W), np.eye(3), [0.5], closure=keft.GOnly()) for C_W in (1.0, 2.0)]
print("ready", flush=True)
for i in range(settings["times"]):
    results[i % 2].save(settings["path"])
"""
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return functools.partial(start_worker, cache=tmp_path_factory.mktemp("cache"))


def until(condition, worker):
    """Wait for a condition, as long as the worker lives."""
    while not condition():
        assert worker.poll() is None, worker.communicate()
        time.sleep(0.01)


def test_a_saver_killed_at_any_moment_leaves_a_whole_file(start, tmp_path):
    """Ten times: the file is one of the two results, and the parts of killed savers are gone after the next."""
    path, rng = tmp_path / "result.nc", np.random.default_rng(0)
    models = [keft.Model(keft.Erf(), C_W) for C_W in (1.0, 2.0)]
    right = [keft.solve(model, np.eye(3), [0.5], closure=keft.GOnly()).V4 for model in models]
    for _ in range(10):
        worker = start({"path": str(path), "times": 10**9}, code=SAVER)
        assert worker.stdout.readline() == "ready\n"
        until(path.exists, worker)
        time.sleep(rng.uniform(0, 0.2))
        worker.kill()
        worker.communicate()
        assert any(np.array_equal(keft.load(path).V4, V4) for V4 in right)
        assert len(list(tmp_path.iterdir())) <= 2
    finish_saving = start({"path": str(path), "times": 1}, code=SAVER)
    assert finish(finish_saving) == "ready"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["full disk", "full device", "folder"])
def test_a_save_that_fails_ends_in_a_sentence(fault, start, tmp_path):
    """Exit code 1 and not a segmentation fault; `/dev/full` is Linux's full disk, and no file."""
    path = {"full disk": tmp_path / "result.nc", "full device": Path("/dev/full"), "folder": tmp_path}[fault]
    code = (LIMITED if fault == "full disk" else "") + SAVER
    worker = start({"path": str(path), "times": 1}, code=code)
    _, err = worker.communicate(timeout=300)
    assert worker.returncode == 1
    says = {"full disk": "the disk or a quota is full", "full device": "is a device", "folder": "is a folder"}[fault]
    assert says in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_turns_read_only(start, tmp_path):
    """The first thing that is tried is to write there. Root may write whatever the mode: then nothing can be seen, and
    the test is left out."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    worker = start(SHORT | {"checkpoint": str(folder / "run.npz")})
    _, err = worker.communicate(timeout=300)
    assert worker.returncode == 1
    assert "Permission denied. Nothing was computed yet: choose another place" in err
    folder.chmod(0o700)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_bits(number, start, tmp_path):
    path = tmp_path / "run.npz"
    settings = LONG | {"checkpoint": str(path), "checkpoint_seconds": 0.0, "pause": 0.05}
    worker = start(settings)
    until(path.exists, worker)
    time.sleep(0.5)
    worker.send_signal(number)
    _, err = worker.communicate(timeout=300)
    assert worker.returncode != 0
    if number != signal.SIGKILL:
        assert f"KeyboardInterrupt: Stopped; the same call goes on from {path}" in err
    with np.load(path) as file:
        assert 0 < file["count"].sum() < LONG["networks"]
    assert finish(start(LONG | {"checkpoint": str(path)})) == digest(**LONG)
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_on_one_checkpoint(start, tmp_path):
    """Of two processes on one checkpoint one runs and the other is refused, in each of three tries; the file belongs to
    the first."""
    path = tmp_path / "run.npz"
    short = SHORT | {"networks": 1000}
    settings = short | {"checkpoint": str(path), "checkpoint_seconds": 0.0}
    for _ in range(3):
        first = start(settings | {"pause": 0.1})
        until(path.exists, first)
        second = start(settings)
        _, err = second.communicate(timeout=300)
        assert second.returncode == 1
        assert re.search(rf"Busy: .*run\.npz is in use by process {first.pid} on .*: wait until that run ends", err), (
            err
        )
        assert finish(first) == finish(start(settings)) == digest(**short)
        path.unlink()


def test_flipped_bits_of_results_and_checkpoints(tmp_path):
    """A file with a flipped bit raises an error or gives the same numbers: 3000 flips of results and of checkpoints."""
    run = {
        "width": 4,
        "depth": 3,
        "eps": 0.3,
        "networks": 64,
        "key": jax.random.key(0),
        "progress": False,
        "save_at": [3],
    }
    model, K0 = keft.Model(keft.Erf(), 1.0), np.eye(2)
    checkpoint, saved = tmp_path / "run.npz", tmp_path / "result.nc"
    right = keft.estimate(model, K0, **run, checkpoint=checkpoint)
    right.save(saved)
    rng = np.random.default_rng(1)
    for path, read, count in (
        (saved, lambda: keft.load(saved), 3000),
        (checkpoint, lambda: keft.estimate(model, K0, **run, checkpoint=checkpoint), 300),
    ):
        whole, seen = path.read_bytes(), 0
        for bit in rng.choice(8 * len(whole), count, replace=False):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                result = read()
            except ValueError as error:
                seen += path.name in str(error)
                continue
            for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(right), strict=True):
                np.testing.assert_array_equal(a, b)
        assert seen > 0.9 * count if path is saved else seen > 0.5 * count
        path.write_bytes(whole)


@pytest.mark.parametrize("differs", [{"wanted": 1e-9}, {"networks": 4000}, {"eps": 0.2}, {"checkpoint": "run"}])
def test_processes_that_differ(differs, start, tmp_path):
    """Processes with different targets or settings stop with an error, instead of hanging or mixing two runs."""
    name = {"wanted": "target"}.get(*differs, *differs)
    if "checkpoint" in differs:
        differs = {"checkpoint": str(tmp_path / "run")}
    address = f"localhost:{free_port()}"
    pair = [start(SHORT | {"process": [address, 2, p]} | (differs if p else {})) for p in (0, 1)]
    for worker in pair:
        _, err = worker.communicate(timeout=300)
        assert worker.returncode != 0
        assert re.search(
            rf"processes of this run differ in `{name}` \(here .*: start all of them with the same", err
        ), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_stops_the_others_and_all_go_on(number, start, tmp_path):
    """Each has saved what it has, and the run goes on to the bits of one process alone."""
    settings = LONG | {"checkpoint": str(tmp_path / "run"), "checkpoint_seconds": 0.0}

    def pair(**more):
        address = f"localhost:{free_port()}"
        return [start(settings | more | {"process": [address, 2, p]}) for p in (0, 1)]

    workers = pair(pause=0.05)
    for p, worker in enumerate(workers):
        until((tmp_path / f"run.{p}").exists, worker)
    workers[1].send_signal(number)
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert all(worker.returncode != 0 for worker in workers)
    assert "because process 1 failed or was interrupted: its own error says why" in errors[0]
    assert "KeyboardInterrupt: Stopped; the same call goes on from" in errors[1]
    assert {finish(worker) for worker in pair()} == {digest(**LONG)}


def test_memory_that_a_process_may_not_take_is_not_taken(start):
    """With 2 GiB of address space left, less what JAX's threads reserve until then, a run of 27 GiB is refused in a
    sentence."""
    code = """
import json, resource, sys
import jax, numpy as np
import kernel_eft_jax as keft
from pathlib import Path
jax.devices()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, resource.RLIM_INFINITY))
sizes = {"width": 4, "depth": 40, "eps": 0.1, "networks": 1000}
keft.estimate(keft.Model(keft.Linear(), 1.0), np.eye(24), **sizes, key=jax.random.key(0), progress=False)
"""
    worker = start({}, code=code)
    _, err = worker.communicate(timeout=300)
    assert worker.returncode == 1
    told = re.search(r"MemoryError: This run needs about .* on the host, which has (\S+) GiB", err)
    assert told, err
    assert float(told[1]) <= 2


def test_errors_of_a_full_disk_are_known_by_their_number():
    """What RLIMIT_FSIZE plays (EFBIG) is told like a full disk (ENOSPC) and a full quota (EDQUOT)."""
    from kernel_eft_jax.writing import DISK_IS_FULL

    assert {errno.EFBIG, errno.ENOSPC, errno.EDQUOT} == DISK_IS_FULL
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 0
