"""Runs in processes of their own, to be killed or to have several devices: each prints a digest of all its results."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from kernel_eft_jax.activations import Erf
from kernel_eft_jax.ensemble import estimate, sample_kernels
from kernel_eft_jax.model import Model

WORKER = """
import json, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell that started the tests
import jax
import numpy as np
jax.config.update("jax_enable_x64", True)
settings = json.loads(sys.argv[1])
if "process" in settings:
    address, processes, process = settings.pop("process")
    jax.distributed.initialize(address, processes, process)
from kernel_eft_jax.ensemble.checkpoint import Checkpoint
from tests.workers import digest
if "pause" in settings:  # so long after each block
    pause, is_due = settings.pop("pause"), Checkpoint.is_due
    Checkpoint.is_due = lambda file: time.sleep(pause) or is_due(file)
print("ready", flush=True)
print(digest(**settings), flush=True)
"""
# Two processes and several runs: what each run gives, or the error with which it stops, is a line.
PAIR = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
address, process, runs = json.loads(sys.argv[1])
jax.distributed.initialize(address, 2, process)
from tests.workers import digest
for settings in runs:
    try:
        line = digest(**settings)
    except (Exception, KeyboardInterrupt) as error:
        line = f"{type(error).__name__}: {error}".replace("\\n", " ")
    print(line, flush=True)
"""
ROOT = Path(__file__).parent.parent
SHORT = {"width": 8, "depth": 6, "networks": 3333, "save_at": [0, 6]}
LONG = {"width": 32, "depth": 40, "networks": 40_000, "save_at": [0, 20, 40]}


def digest(wanted=None, seed=5, **settings):
    """Of all results of a run, and its number of networks."""
    K0 = np.array([[2.0]])
    target = None if wanted is None else (lambda q: q.K1[-1, 0, 0], wanted)
    settings = {"eps": 0.3, "key": jax.random.key(seed), "progress": False, "target": target} | settings
    est = estimate(Model(Erf(), 2.0), K0, **settings)
    parts = [np.asarray(x).tobytes() for x in jax.tree.leaves((est.G, est.stderr, est.sums.groups, est.K1))]
    return f"{hashlib.sha256(b''.join(parts)).hexdigest()} {est.networks}"


def of_one_draw():
    """Kernels of single networks, and K0 and K1 of their ensemble."""
    run = {"width": 8, "depth": 20, "eps": 0.3, "networks": 64, "key": jax.random.key(5), "save_at": [20]}
    model, K0 = Model(Erf(), 2.0), np.array([[2.0]])
    est = estimate(model, K0, **run, progress=False)
    return sample_kernels(model, K0, **run), est.K0, est.K1


def compiled_alike():
    """The setting with which another process compiles as this one does: only then are results the same bits."""
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.read("jax_disable_most_optimizations")))}


def start_worker(settings, cache, devices=1, code=WORKER):
    """Start a worker; compiled code is kept in `cache` from one to the next, since starting is most of what these tests
    do."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        **compiled_alike(),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", code, json.dumps(settings)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)


def finish(worker):
    """Digest and number of networks that a worker printed."""
    return worker_lines(worker)[-1]


def worker_lines(worker):
    """What a worker printed, when it has ended well."""
    out, err = worker.communicate(timeout=300)
    assert worker.returncode == 0, err
    return out.splitlines()


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
