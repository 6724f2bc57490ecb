"""Long runs: the same bits on any number of devices and processes, after any interruption, and only as many networks as a target needs.

The runs happen in processes of their own, which print a digest of all their results.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

from kernel_eft_jax.activations import Tanh
from kernel_eft_jax.ensemble import estimate, run
from kernel_eft_jax.ensemble.checkpoint import Checkpoint
from kernel_eft_jax.ensemble.statistics import Sums
from kernel_eft_jax.model import Model

WORKER = """
import hashlib, json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell that started the tests
import jax
import numpy as np
jax.config.update("jax_enable_x64", True)
settings = json.loads(sys.argv[1])
if "process" in settings:
    address, processes, process = settings.pop("process")
    jax.distributed.initialize(address, processes, process)
from kernel_eft_jax.activations import Tanh
from kernel_eft_jax.ensemble import estimate
from kernel_eft_jax.model import Model
if "wanted" in settings:
    settings["target"] = (lambda q: q.K1[-1, 0, 0], settings.pop("wanted"))
print("ready", flush=True)
K0 = np.array([[2.0, 0.6], [0.6, 2.0]])
est = estimate(Model(Tanh(), 2.0), K0, eps=0.3, key=jax.random.key(5), progress=False, **settings)
parts = [np.asarray(x).tobytes() for x in jax.tree.leaves((est.G, est.stderr, est.sums.groups, est.K1))]
print(hashlib.sha256(b"".join(parts)).hexdigest(), est.networks, flush=True)
"""
SHORT = {"width": 8, "depth": 6, "networks": 3333, "save_at": [0, 6]}
LONG = {"width": 32, "depth": 40, "networks": 40_000, "save_at": [0, 20, 40]}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a worker; compiled code is kept from one to the next, since starting is most of what these tests do."""
    cache = tmp_path_factory.mktemp("cache")

    def start(settings, devices=1):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-c", WORKER, json.dumps(settings)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finish(worker):
    """Digest and number of networks that a worker printed."""
    out, err = worker.communicate(timeout=300)
    assert worker.returncode == 0, err
    return out.splitlines()[-1]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def test_same_bits_on_any_number_of_devices_and_processes(start, tmp_path):
    address = f"localhost:{free_port()}"
    settings = SHORT | {"wanted": 1e-9}
    shared = settings | {"checkpoint": str(tmp_path / "run")}
    pair = [start(shared | {"process": [address, 2, process]}, devices=2) for process in (0, 1)]
    single = [start(settings, devices) for devices in (1, 8)]
    results = {finish(worker) for worker in pair + single}
    assert len(results) == 1
    assert results.pop().endswith(" 3333")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.0", "run.1"]


@pytest.mark.slow
def test_same_bits_on_1_2_4_8_devices_and_4_processes(start):
    results = {finish(start(LONG, devices)) for devices in (1, 2, 4, 8)}
    address = f"localhost:{free_port()}"
    results |= {finish(w) for w in [start(LONG | {"process": [address, 4, process]}) for process in range(4)]}
    assert len(results) == 1


SINGLE = """
import json
import jax
import numpy as np
from kernel_eft_jax.activations import Tanh
from kernel_eft_jax.ensemble import estimate, sample_kernels
from kernel_eft_jax.model import Model
run = (Model(Tanh(), 2.0), np.array([[2.0, 0.6], [0.6, 2.0]]), 8, 20, 0.3, 64, jax.random.key(5))
est = estimate(*run, save_at=[20], progress=False)
print(json.dumps([sample_kernels(*run, save_at=[20]).tobytes().hex(), est.K0.tolist(), est.K1.tolist(), str(est.K1.dtype)]))
"""


def test_networks_are_float32_with_and_without_x64():
    """Networks differ by no bit, statistics by the float32 rounding of the theory."""
    outputs = []
    for flag in ("0", "1"):
        command = [sys.executable, "-c", SINGLE]
        outputs.append(
            json.loads(subprocess.check_output(command, env=os.environ | {"JAX_ENABLE_X64": flag}, text=True))
        )
    (G, K0, K1, dtype), (G64, K0_64, K1_64, dtype_64) = outputs
    assert G == G64
    assert np.allclose(K0, K0_64, rtol=1e-5)
    assert np.allclose(K1, K1_64, atol=1e-3)
    assert dtype == dtype_64 == "float64"


def run_with_kills(start, path, settings, kills, seed):
    """Run to the end through kills -9 at random moments, each a moment after the run has written its file again."""
    rng = np.random.default_rng(seed)
    settings = settings | {"checkpoint": str(path), "checkpoint_seconds": 0.0}
    for _ in range(kills):
        worker = start(settings)
        before, deadline = written(path), time.monotonic() + 120
        while written(path) == before and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        assert worker.poll() is None, "the run ended before it was killed: make it longer"
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    return finish(start(settings))


def written(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def test_killed_and_resumed_runs_give_the_same_bits(start, tmp_path):
    run = LONG | {"networks": 150_000}
    assert run_with_kills(start, tmp_path / "run.npz", run, kills=2, seed=0) == finish(start(run))


@pytest.mark.slow
def test_twenty_kills(start, tmp_path):
    run = LONG | {"networks": 1_500_000}
    assert run_with_kills(start, tmp_path / "run.npz", run, kills=20, seed=1) == finish(start(run))


def test_interrupt_saves_and_passes_on(start, tmp_path):
    path = tmp_path / "run.npz"
    settings = LONG | {"networks": 10_000_000, "checkpoint": str(path), "checkpoint_seconds": 0.2}
    worker = start(settings)
    deadline = time.monotonic() + 120
    while not path.exists() and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first = path.stat().st_mtime_ns
    worker.send_signal(signal.SIGINT)
    _, err = worker.communicate(timeout=300)
    assert worker.returncode != 0
    assert "KeyboardInterrupt: Stopped; the same call goes on from" in err
    assert path.stat().st_mtime_ns > first
    assert not path.with_name("run.npz.part").exists()
    with np.load(path) as file:
        assert 0 < file["count"].sum() < 10_000_000


def small(key, path=None, networks=640, width=4, control=True, progress=False, **settings):
    K0 = jnp.array([[2.0]])
    return estimate(
        Model(Tanh(), 2.0),
        K0,
        width,
        3,
        0.3,
        networks,
        key,
        control=control,
        checkpoint=path,
        save_at=[3],
        progress=progress,
        **settings,
    )


def test_foreign_and_broken_checkpoints_are_refused(key, tmp_path):
    path = tmp_path / "run.npz"
    est = small(key, path)
    again = small(key, path)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(est), jax.tree.leaves(again), strict=True))
    with pytest.raises(ValueError, match="belongs to another run: width is 4 there and 5 here"):
        small(key, path, width=5)
    with pytest.raises(ValueError, match="belongs to another run: key is"):
        small(jax.random.key(0), path)
    with pytest.raises(ValueError, match=r"another run: .*control is True there and False here"):
        small(key, path, control=False)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or not a checkpoint"):
            small(key, path)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(ValueError, match="truncated or not a checkpoint"):
        small(key, path)


def test_checkpoint_of_another_activation_is_refused(key, tmp_path):
    """Functions have no name that lasts: a model is recognised by its values."""
    path = tmp_path / "run.npz"
    small(key, path)
    with pytest.raises(ValueError, match="model and inputs is"):
        estimate(
            Model(Tanh(), 2.1), jnp.array([[2.0]]), 4, 3, 0.3, 640, key, checkpoint=path, save_at=[3], progress=False
        )


def test_a_folder_that_is_not_there_is_refused_before_the_run(key, tmp_path):
    with pytest.raises(ValueError, match="`checkpoint`"):
        small(key, tmp_path / "nowhere" / "run.npz")


def test_sums_survive_the_disk(tmp_path):
    rng = np.random.default_rng(0)
    zeros = Sums.zeros(2, 3, 3)
    sums = Sums(tuple(g._replace(networks=i, first=rng.normal(size=(2, 3))) for i, g in enumerate(zeros.groups)), 7)
    file = Checkpoint(tmp_path / "x", {"a": 1}, 10.0)
    assert file.load(zeros) is zeros
    file.save(sums)
    loaded = file.load(zeros)
    assert loaded.parts == 7
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(sums), strict=True))


def test_target_stops_the_run_where_it_said(key, capsys):
    """The error falls like one over the root of the number of networks, and the run ends as soon as it is small enough.

    256 groups tell an error to 4.4 %, and the number of networks to 9 %: what is told after the first round, and what
    it takes, are within 40 % of each other and of a quarter of the number for half the error. Three standard errors, and the 10 %
    between two looks at the target: false alarm 1e-3.
    """
    full = small(key, networks=100_000, width=512)
    wanted = 2 * full.stderr.K1[-1, 0, 0]
    est = small(key, networks=100_000, width=512, target=(lambda q: q.K1[-1, 0, 0], wanted), progress=True)
    assert est.stderr.K1[-1, 0, 0] <= wanted
    told = re.search(r"needs about ([\d,]+) \(to 9%\): [\d,]+ more networks take 00:\d\d\n", capsys.readouterr().err)
    assert told is not None
    for expected in (25_000, int(told[1].replace(",", ""))):
        assert 0.6 * expected < est.networks < 1.4 * expected
    assert small(key, networks=1000, target=(lambda q: q.V4[-1, 0, 0, 0, 0], 1e-9)).networks == 1000


def test_time_left_is_that_of_the_blocks_after_the_first(monkeypatch, capsys):
    """Three blocks under way at once arrive together, after a minute of compilation; then one comes every two seconds."""
    clock = iter([60, 60, 60, 62, 64, 66])
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    pace = run.Pace(lead=3, processes=1)
    with tqdm(total=250) as bar:
        for _ in range(6):
            pace.add(10)
            bar.update(10)
        pace.tell(bar)
        pace.tell(bar)
    assert capsys.readouterr().err.count("190 more networks take 00:38\n") == 1


def test_target_is_looked_at_in_the_same_places_after_an_interruption(key, tmp_path):
    """A finished run with a target, resumed, stops where it is."""
    target = (lambda q: q.K1[-1, 0, 0], 0.02)
    first = small(key, tmp_path / "run", networks=50_000, target=target)
    assert first.networks < 50_000
    assert small(key, tmp_path / "run", networks=50_000, target=target).networks == first.networks
    assert small(key, tmp_path / "run", networks=50_000).networks == 50_000
