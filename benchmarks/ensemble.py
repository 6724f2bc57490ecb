"""How fast are ensembles, and how near to what the machine can do?
`python benchmarks/ensemble.py [seconds per measurement]`

The unit is the sample-layer: one network advanced one layer, statistics included. Ceilings are measured with the same
shapes and threads: drawing a layer's normals alone, tanh alone, reading and writing phi once, and for weights the rate
of large matrix products. "of ceiling" is the rate over that of all of them in turn, each as often as a layer needs it.
"M/core s" counts processor time instead of time: on a CPU that others use too, it is the better number, and "of
ceiling" and "of naive" are ratios of it there. "Gop/s" and "GB/s" are that rate times the operations and bytes that a
sample-layer needs at least (`needed`). Compile times are apart. Before that, runs of `estimate` at the published
setting, with the time that each told beforehand, and the same run on 1, 2, 4 and 8 devices: forced ones on a CPU, which
share its cores, so that only the numbers tell, and on an accelerator in two processes. All is also written as JSON.

On an accelerator compiling takes longer than most measurements: so the sizes there are few. Rates are given there as
shares of the card too: of the bytes that it copies in a second, and of the float32 operations of one long loop over
large arrays.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kernel_eft_jax.activations import Tanh
from kernel_eft_jax.ensemble.estimate import add_theory, estimate, prepare
from kernel_eft_jax.ensemble.normals import network_keys
from kernel_eft_jax.ensemble.plan import block_size, plan_run
from kernel_eft_jax.ensemble.run import block_sums
from kernel_eft_jax.ensemble.samplers import BlockSampler, WeightSampler, draw_last
from kernel_eft_jax.ensemble.simulate import compiled, kernels_of_networks
from kernel_eft_jax.model import Model

MODEL, EPS, DEPTH = Model(Tanh(), 2.0), 0.05, 40
GRID = [(1, 128), (4, 64), (4, 256), (16, 64), (64, 256), (64, 4096), (256, 1024)]
GRID_OF_ACCELERATORS = GRID[:2]
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


def needed(inputs, width, route):
    """Operations and bytes that a sample-layer takes at least, with nothing fused across layers.

    A pair of normals is 117 integer operations of Threefry and about 50 of Box and Muller, tanh is about 25; S and the
    product with the Cholesky factor take N (N + 1) for each neuron, the product with weights 2 N n, a layer's sum 2 N.
    Normals are written and read, phi is read and written.
    """
    if route == "weights":
        operations = 84 * (width + 1) + 2 * inputs * width + 27 * inputs
        return {"operations": width * operations, "bytes": 8 * width * (width + 1 + inputs)}
    copies = 1 + (min(inputs, 2) if route.endswith("control") else 0)  # of all inputs, and of each alone
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
    list(block_sums(problem, key, plan, [0]))
    first, blocks, clock = clock.seconds(), 2 * plan.workers, Clock()
    list(block_sums(problem, key, plan, list(range(blocks))))
    while clock.seconds() < seconds:
        blocks, clock = math.ceil(blocks * 1.1 * max(1, min(10, seconds / clock.seconds()))), Clock()
        list(block_sums(problem, key, plan, list(range(blocks))))
    return {"block": plan.size, **with_compilation(first, plan.size * DEPTH, clock.rates(blocks * plan.size * DEPTH))}


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
        return G.mean(axis=0), G.T @ G if inputs <= MOMENTS else None

    keys = jax.random.split(jax.random.key(0), networks)
    return {"block": networks, **repeat(lambda: jax.block_until_ready(moments(keys)), networks * DEPTH, 1, seconds)}


def alone(operation, start, size, workers, seconds):
    """Sample-layers a second of one operation in blocks of `size` networks: x -> operation(layer, x), layer after
    layer."""
    loop = compiled(lambda x: jax.lax.fori_loop(0, DEPTH, lambda layer, x: operation(layer.astype(jnp.uint32), x), x))
    return repeat(lambda: jax.block_until_ready(loop(start)), size * DEPTH, workers, seconds)[SPEED]


def ceilings(inputs, width, blocks, workers, seconds):
    """Rates of normals, tanh and copying alone, of the normals of weights, and of large matrix products."""
    rates = {}
    for name, sampler in (("normals", BlockSampler()), ("weights", WeightSampler())):
        size = blocks[name]
        keys = network_keys(jax.random.key(0), jnp.arange(size, dtype=jnp.uint32))
        draw = partial(draw_last, sampler, MODEL, keys, inputs=inputs, width=width)
        again = lambda layer, x, draw=draw: draw(layer) + 0 * x  # noqa: E731
        rates[name] = alone(again, draw(jnp.uint32(0)), size, workers, seconds)
    x = jnp.ones((inputs, width, blocks["normals"]), jnp.float32)
    for name, operation in (("tanh", lambda _, x: jnp.tanh(x) + 0.1), ("copy", lambda _, x: x + 1e-3)):
        rates[name] = alone(operation, x, blocks["normals"], workers, seconds)
    matrix, product = jnp.ones((2048, 2048), jnp.float32), jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    flops = repeat(lambda: jax.block_until_ready(product(matrix)), 2 * 2048**3, 1, seconds)[SPEED]
    return rates | {"products": flops / (2 * inputs * width**2)}


def card():
    """Bytes and float32 operations a second that an accelerator reaches with large arrays."""
    x = jax.random.normal(jax.random.key(0), (2**28,), jnp.float32)

    @jax.jit
    def chains(x):
        sums = [x, x + 1, x + 2, x + 3]
        for _ in range(256):
            sums = [y * x + 0.5 for y in sums]
        return sum(sums)

    copies = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, x: x + 1, x))  # in one program, as layers are
    return {
        "bytes_per_s": repeat(lambda: jax.block_until_ready(copies(x)), 100 * 8 * x.size, 1, 1.0)["rate"],
        "operations_per_s": repeat(lambda: jax.block_until_ready(chains(x)), 2048 * x.size, 1, 1.0)["rate"],
    }


def of_card(rate, inputs, width, route, limits):
    """Shares of the card's bytes and operations that the least work at this rate of sample-layers takes."""
    needs = needed(inputs, width, route)
    return {what: rate * needs[what] / limits[f"{what}_per_s"] for what in ("bytes", "operations")}


def least(limits, route, inputs):
    """Seconds that a sample-layer takes at the ceilings, all in turn."""
    once = 1 / limits["tanh"] + 1 / limits["copy"]
    if route == "weights":
        return once + 1 / limits["weights"] + 1 / limits["products"]
    copies = 1 + (min(inputs, 2) if route.endswith("control") else 0)
    return copies * once + 1 / limits["normals"]


def measure(seconds, limits_of_card):
    """One row for each route at each size."""
    rows, every_layer = [], range(1, DEPTH + 1)
    print(
        f"{'inputs':>6} {'width':>6}  {'route':22} {'M/s':>10} {'M/core s':>10} {'of ceiling':>10} {'of naive':>8} "
        f"{'Gop/s':>8} {'GB/s':>8} {'block':>6} {'compile, s':>10}"
    )
    workers = plan_run(prepare(MODEL, kernel(1), 1, DEPTH, EPS, BlockSampler(), [DEPTH]), 2**30).workers
    for inputs, width in GRID if ON_CPU else GRID_OF_ACCELERATORS:
        problems = [
            prepare(MODEL, kernel(inputs), width, DEPTH, EPS, sampler, [DEPTH])
            for sampler in (BlockSampler(), WeightSampler())
        ]
        blocks = dict(zip(("normals", "weights"), (block_size(p, 2**30) for p in problems), strict=True))
        limits = ceilings(inputs, width, blocks, workers, seconds / 2)
        size = inputs, width
        routes = {
            "vmapped, naive": lambda: vmapped(*size, seconds),  # noqa: B023
            "block law": lambda: ensemble(*size, BlockSampler(), False, workers, seconds),  # noqa: B023
            "block law, control": lambda: ensemble(*size, BlockSampler(), True, workers, seconds),  # noqa: B023
            "block law, every layer": lambda: ensemble(*size, BlockSampler(), False, workers, seconds, every_layer),  # noqa: B023
            "weights": lambda: ensemble(*size, WeightSampler(), False, workers, seconds),  # noqa: B023
        }
        if inputs > MOMENTS:
            del routes["block law, control"], routes["block law, every layer"]
        naive = 0.0
        for route, run in routes.items():
            row = {"inputs": inputs, "width": width, "route": route, **run()}
            naive = row[SPEED] if route == "vmapped, naive" else naive
            row |= {"of_ceiling": row[SPEED] * least(limits, route, inputs), "of_naive": row[SPEED] / naive}
            counts = needed(inputs, width, route)
            row |= {f"{what}_per_s": number * row[SPEED] for what, number in counts.items()}
            if limits_of_card:
                row["of_card"] = of_card(row["rate"], inputs, width, route, limits_of_card)
            rows.append(row | {"needed": counts, "ceilings": limits})
            speed = f"{row['rate'] / 1e6:10.4f} {row['rate_core'] / 1e6:10.4f} "
            speed += f"{row['of_ceiling']:10.0%} {row['of_naive']:8.2f}"
            work = f"{row['operations_per_s'] / 1e9:8.2f} {row['bytes_per_s'] / 1e9:8.2f}"
            shares = "".join(f"  {share:.0%} of {what}" for what, share in row.get("of_card", {}).items())
            print(
                f"{inputs:6} {width:6}  {route:22} {speed} {work} {row['block']:6} {row['compile_s']:10.2f}{shares}",
                flush=True,
            )
        print(
            f"{'':15}ceilings (M per {'core ' if ON_CPU else ''}s): "
            + ", ".join(f"{k} {v / 1e6:.4g}" for k, v in limits.items())
        )
    return rows


def published(networks, limits_of_card):
    """`estimate` at the published setting, with control variates: seconds told beforehand, and taken."""
    words, depth = io.StringIO(), 800
    with contextlib.redirect_stderr(words):
        start = time.perf_counter()
        est = estimate(MODEL, kernel(4), width=64, depth=depth, eps=EPS, networks=networks, key=jax.random.key(0))
        seconds = time.perf_counter() - start
    told = words.getvalue()
    told = re.search(r"need about (?:(\d+):)?(\d+):(\d+)", told)
    told = sum(int(x or 0) * 60**i for i, x in enumerate(reversed(told.groups())))
    error = est.stderr.K1[-1, 0, 0]
    found = {"networks": networks, "seconds": seconds, "told_seconds": told, "stderr_K1": error}
    if limits_of_card:
        found["of_card"] = of_card(networks * depth / seconds, 4, 64, "block law, control", limits_of_card)
    print(
        f"published setting: {networks:,} networks, control variates, in {seconds:.1f} s with compilation; "
        f"{told} s told beforehand; standard error of K1[00] {error:.4f}"
    )
    return found


SAME = """
import sys, time, jax, numpy as np
from benchmarks.ensemble import EPS, MODEL, digest, kernel
from kernel_eft_jax.ensemble import estimate
def run():
    start = time.perf_counter()
    result = estimate(
        MODEL, kernel(2), width=64, depth=40, eps=EPS, networks=65_536, key=jax.random.key(0), save_at=[20, 40],
        progress=False,
    )
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
    for count in (1, 2, 4, 8) if ON_CPU else 2 * (jax.local_device_count(),):
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits_of_card = None if ON_CPU else card()
    found = {
        "unit": "sample-layers per second",
        "machine": {
            "device": device.device_kind, "devices": jax.local_device_count(), "cpu": cpu_name(), "cores": cores,
            "python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__, "depth": DEPTH,
            "seconds_per_measurement": seconds, "load_before": LOAD,
        },
        "card": limits_of_card,
    }  # fmt: skip
    parts = {
        "published_setting": lambda: [published(count, limits_of_card) for count in NETWORKS],
        "devices": devices,
        "rows": lambda: measure(seconds, limits_of_card),
    }
    path = Path(__file__).parent / "results" / f"ensemble_{device.platform}.json"
    for name, part in parts.items():  # written after each part: a run that is cut short keeps what it has
        found[name] = part()
        found["machine"]["load_after"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {path}")


ON_CPU = jax.local_devices()[0].platform == "cpu"
SPEED = "rate_core" if ON_CPU else "rate"
NETWORKS = (20_000,) if ON_CPU else (20_000, 5_000_000)
LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

if __name__ == "__main__":
    main()
