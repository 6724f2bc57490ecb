"""How fast are ensembles, and how near to what the machine can do?  `python benchmarks/ensemble.py [seconds per measurement]`

The unit is the sample-layer: one network advanced one layer, statistics included. Three ceilings are measured with the same shapes and
threads: drawing the layer's normals alone, tanh alone, and reading and writing phi once. "of ceiling" is the rate over that of
all three in turn, each as often as a layer needs it. "M/core s" counts processor time instead of time: on a CPU that others use too, it
is the better number, and "of ceiling" and "of naive" are ratios of it there. "Gop/s" and "GB/s" are that rate times the operations and
bytes that a sample-layer needs at least (`needed`). Compile times are apart. Last, the same run on 1, 2, 4 and 8 devices: forced ones on
a CPU, which share its cores, so that only the numbers tell. All is also written as JSON.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kernel_eft_jax.activations import Tanh
from kernel_eft_jax.ensemble.estimate import add_theory, prepare
from kernel_eft_jax.ensemble.normals import network_keys
from kernel_eft_jax.ensemble.plan import block_size, plan_run
from kernel_eft_jax.ensemble.run import results
from kernel_eft_jax.ensemble.samplers import BlockSampler, WeightSampler, as_rows, draw_rows
from kernel_eft_jax.ensemble.simulate import compiled, kernels_of_networks
from kernel_eft_jax.model import Model

MODEL, EPS, DEPTH = Model(Tanh(), 2.0), 0.05, 40
GRID = [(1, 128), (4, 64), (4, 256), (16, 64), (64, 256), (64, 4096)]
MOMENTS = 16  # second moments of the kernels of more inputs than this are larger than the networks: kernels only


def kernel(inputs):
    return 0.6 + 1.4 * jnp.eye(inputs)


class Clock:
    """Sample-layers done, over time and over processor time."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def rates(self, count):
        return {"rate": count / self.seconds(), "rate_core": count / (time.process_time() - self.cpu)}

    def seconds(self):
        return time.perf_counter() - self.wall


def repeat(call, count, workers, seconds):
    """Rates of calls of `count` sample-layers, from `workers` threads at once, and the time that the first took."""
    clock = Clock()
    call()
    first, clock, calls = clock.seconds(), Clock(), 0
    with ThreadPoolExecutor(workers) as pool:
        while clock.seconds() < seconds:
            list(pool.map(lambda _: call(), range(2 * workers)))
            calls += 2 * workers
    return with_compilation(first, count, clock.rates(calls * count))


def with_compilation(first, count, rates):
    """Rates, and what the first call of `count` sample-layers took beyond its computation."""
    return {"compile_s": max(0.0, first - count / rates[SPEED]), **rates}


def needed(inputs, width, control):
    """Operations and bytes that a sample-layer takes at least, with nothing fused across layers.

    A pair of normals is 117 integer operations of Threefry and about 50 of Box and Muller, tanh is about 25; S and the product with the
    Cholesky factor take N (N + 1) for each neuron, a layer's sum 2 N. Normals are written and read, phi is read and written.
    """
    copies = 1 + control
    operations = 84 * inputs + copies * (27 * inputs + 2 * inputs * (inputs + 1))
    return {"operations": width * operations, "bytes": 8 * width * inputs * (1 + copies)}


def ensemble(inputs, width, sampler, control, workers, seconds, save_at=(DEPTH // 2, DEPTH)):
    """Rate of the ensemble's own loop."""
    problem = prepare(MODEL, kernel(inputs), width, DEPTH, EPS, sampler, list(save_at))
    key = jax.random.key(0)
    if inputs > MOMENTS:
        size = block_size(problem, 2**30)
        networks = jnp.arange(size, dtype=jnp.uint32)
        call = lambda: jax.block_until_ready(compiled(kernels_of_networks)(problem, key, networks))  # noqa: E731
        return {"block": size, **repeat(call, size * DEPTH, workers, seconds)}
    problem, _ = add_theory(problem, MODEL, kernel(inputs), DEPTH, EPS, control)
    plan = plan_run(problem, 2**30)
    clock = Clock()
    list(results(problem, key, plan, [0]))
    first, clock, count = clock.seconds(), Clock(), 0
    for _ in results(problem, key, plan, list(range(100_000))):
        count += plan.size * DEPTH
        if clock.seconds() > seconds:
            break
    return {"block": plan.size, **with_compilation(first, plan.size * DEPTH, clock.rates(count))}


def vmapped(inputs, width, seconds, networks=1024):
    """The block law as one would first write it: one network, `jax.random.normal`, `jnp.linalg.cholesky`, and vmap."""
    networks = min(networks, max(1, 2**20 // (inputs * width)))
    L0 = jnp.linalg.cholesky(kernel(inputs).astype(jnp.float32))

    def network(key):
        def layer(phi, key):
            s = jnp.tanh(phi)
            L = jnp.linalg.cholesky(MODEL.C_W.astype(s.dtype) * s @ s.T / width)
            return phi + jnp.float32(EPS) * L @ jax.random.normal(key, phi.shape, phi.dtype), None

        keys = jax.random.split(key, DEPTH + 1)
        phi, _ = jax.lax.scan(layer, L0 @ jax.random.normal(keys[0], (inputs, width), jnp.float32), keys[1:])
        return phi @ phi.T / width

    @jax.jit
    def moments(keys):
        G = jax.vmap(network)(keys).reshape(networks, -1)
        return G.mean(axis=0), G.T @ G

    keys = jax.random.split(jax.random.key(0), networks)
    return {"block": networks, **repeat(lambda: jax.block_until_ready(moments(keys)), networks * DEPTH, 1, seconds)}


def ceilings(inputs, width, size, workers, seconds):
    """Sample-layers a second of normals, tanh and copying alone."""
    keys = network_keys(jax.random.key(0), jnp.arange(size, dtype=jnp.uint32))
    shape = (inputs, width, size)

    def normals(layer, state):
        return draw_rows(keys, layer.astype(jnp.uint32), inputs, width) + 0 * state

    operations = {
        "normals": (normals, draw_rows(keys, jnp.uint32(0), inputs, width)),
        "tanh": (lambda _, x: jnp.tanh(x) + 0.1, as_rows(draw_rows(keys, jnp.uint32(0), inputs, width), shape)),
        "copy": (lambda _, x: x + 1e-3, jnp.ones(shape, jnp.float32)),
    }
    rates = {}
    for name, (operation, start) in operations.items():
        loop = jax.jit(lambda x, operation=operation: jax.lax.fori_loop(0, DEPTH, operation, x))
        call = lambda loop=loop, start=start: jax.block_until_ready(loop(start))  # noqa: E731
        rates[name] = repeat(call, size * DEPTH, workers, seconds / 2)[SPEED]
    return rates


def measure(seconds):
    """One row for each route at each size."""
    rows = []
    for inputs, width in GRID:
        problem = prepare(MODEL, kernel(inputs), width, DEPTH, EPS, BlockSampler(), [DEPTH])
        workers = plan_run(problem, 2**30).workers
        limits = ceilings(inputs, width, block_size(problem, 2**30), workers, seconds)
        once = sum(1 / rate for rate in limits.values())
        both = once + 1 / limits["tanh"] + 1 / limits["copy"]
        routes = {
            "vmapped, naive": (lambda: vmapped(inputs, width, seconds), once),  # noqa: B023
            "block law": (lambda: ensemble(inputs, width, BlockSampler(), False, workers, seconds), once),  # noqa: B023
            "block law, control": (lambda: ensemble(inputs, width, BlockSampler(), True, workers, seconds), both),  # noqa: B023
            "block law, every layer": (
                lambda: ensemble(inputs, width, BlockSampler(), False, workers, seconds, range(1, DEPTH + 1)),  # noqa: B023
                once,
            ),
            "weights": (lambda: ensemble(inputs, width, WeightSampler(), False, workers, seconds), None),  # noqa: B023
        }
        if inputs > MOMENTS:
            del routes["block law, control"], routes["block law, every layer"]
        if width > 1000:
            del routes["weights"]  # minutes a block on a CPU
        naive = 0.0
        for route, (run, least) in routes.items():
            row = {"inputs": inputs, "width": width, "route": route, **run()}
            row["of_ceiling"] = row[SPEED] * least if least else None
            naive = row[SPEED] if route == "vmapped, naive" else naive
            row["of_naive"] = row[SPEED] / naive
            counts = needed(inputs, width, route.endswith("control")) if least else {}
            row |= {f"{what}_per_s": number * row[SPEED] for what, number in counts.items()}
            rows.append(row | {"needed": counts, "ceilings": limits})
            share = f"{row['of_ceiling']:10.0%}" if least else f"{'':>10}"
            work = f"{row['operations_per_s'] / 1e9:6.2f} {row['bytes_per_s'] / 1e9:6.2f}" if least else f"{'':>13}"
            speed = f"{row['rate'] / 1e6:10.4f} {row['rate_core'] / 1e6:10.4f}"
            size = f"{row['block']:6} {row['compile_s']:10.2f}"
            print(f"{inputs:6} {width:6}  {route:22} {speed} {share} {row['of_naive']:8.2f} {work} {size}", flush=True)
        print(
            f"{'':15}ceilings (M per {'core ' if ON_CPU else ''}s): "
            + ", ".join(f"{k} {v / 1e6:.2f}" for k, v in limits.items())
        )
    return rows


SAME = """
import sys, time, jax, numpy as np
from benchmarks.ensemble import EPS, MODEL, digest, kernel
from kernel_eft_jax.ensemble import estimate
def run():
    start = time.perf_counter()
    result = estimate(MODEL, kernel(2), 64, 40, EPS, 65_536, jax.random.key(0), save_at=[20, 40], progress=False)
    return time.perf_counter() - start, result
run()
seconds, result = run()
print(jax.device_count(), 65_536 * 40 / seconds, digest(result))
"""


def digest(result):
    """A short name for the bits of an ensemble's sums."""
    sums = hashlib.sha256()
    for leaf in jax.tree.leaves(result.sums):
        sums.update(np.asarray(leaf).tobytes())
    return sums.hexdigest()[:16]


def devices():
    """The same ensemble on 1, 2, 4 and 8 devices: rates, and a digest of all bits."""
    rows = []
    for count in (1, 2, 4, 8) if ON_CPU else (jax.local_device_count(),):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"} if ON_CPU else {}
        place = Path(__file__).parents[1]
        out = subprocess.run(
            [sys.executable, "-c", SAME], env=os.environ | flags, cwd=place, capture_output=True, text=True, check=True
        ).stdout.split()
        rows.append({"devices": int(out[0]), "rate": float(out[1]), "digest": out[2]})
        print(
            f"{rows[-1]['devices']} devices: {rows[-1]['rate'] / 1e6:.3f} M/s, all bits {rows[-1]['digest']}",
            flush=True,
        )
    return rows


def cpu_name():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    device = jax.local_devices()[0]
    print(
        f"{'inputs':>6} {'width':>6}  {'route':22} {'M/s':>10} {'M/core s':>10} {'of ceiling':>10} {'of naive':>8} {'Gop/s':>6} {'GB/s':>6} "
        f"{'block':>6} {'compile, s':>10}"
    )
    rows = measure(seconds)
    same = devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = [LOAD, os.getloadavg()[0] if hasattr(os, "getloadavg") else None]
    machine = {
        "device": device.device_kind, "devices": jax.local_device_count(), "cpu": cpu_name(), "cores": cores, "load_before_and_after": load,
        "python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__, "depth": DEPTH,
        "seconds_per_measurement": seconds,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / f"ensemble_{device.platform}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"unit": "sample-layers per second", "machine": machine, "rows": rows, "devices": same}, indent=1)
        + "\n"
    )
    print(f"written to {path}")


ON_CPU = jax.local_devices()[0].platform == "cpu"
SPEED = "rate_core" if ON_CPU else "rate"
LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

if __name__ == "__main__":
    main()
