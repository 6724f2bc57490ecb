"""How does cost grow? CPU time and memory against inputs, degree, layers, width and networks, each with its exponent
and the law behind it.

    python benchmarks/scaling.py [--out benchmarks/results/scaling_cpu.json]

Each row doubles one number and holds the others. Times are CPU seconds (user and system, all cores), the least of three
calls after the one that compiles; memory is what XLA allots to the compiled program beside its arguments. The exponent
is that of the last doubling. It prints the table of docs/how-to/scaling.md.
"""

import argparse
import json
import math
import os
import pathlib
import time

import jax
import numpy as np

import kernel_eft_jax as keft

MODEL = keft.Model(keft.Tanh(), C_W=2.0)
LAYERS = {"layers": [8], "eps": 0.5}


def kernel(inputs):
    """Random features: variances about two, correlations about 0.1."""
    return np.asarray(keft.input_kernel(np.random.default_rng(0).standard_normal((inputs, 64)), C_W=2.0))


def theory(closure, inputs, layers=8):
    """CPU time and memory of a solve layer by layer."""
    K0 = jax.numpy.asarray(kernel(inputs))

    def solve(K0):
        return keft.solve(MODEL, K0, layers=[layers], eps=2.0 / layers**0.5 / 2, closure=closure, throw=False).packed

    compiled = jax.jit(solve).lower(K0).compile()
    memory = compiled.memory_analysis()
    return cpu_time(lambda: compiled(K0)), memory.temp_size_in_bytes + memory.output_size_in_bytes


def networks(inputs, width, depth, count):
    """CPU time of sampling, in blocks of bounded memory."""

    def sample():
        key = jax.random.key(0)
        return keft.estimate(
            MODEL,
            kernel(inputs),
            width=width,
            depth=depth,
            eps=0.25,
            networks=count,
            key=key,
            save_at=[depth],
            progress=False,
        ).G

    return cpu_time(sample), None


def cpu_time(function):
    jax.block_until_ready(function())
    times = []
    for _ in range(3):
        start = time.process_time()
        jax.block_until_ready(function())
        times.append(time.process_time() - start)
    return min(times)


CASES = (
    (
        "GOnly",
        "inputs N",
        "$N^4$",
        (16, 32, 64),
        lambda n: theory(keft.GOnly(), n),
    ),
    ("GOnly", "layers", "$L$", (16, 32, 64), lambda n: theory(keft.GOnly(), 4, n)),
    (
        "HermiteTower(10)",
        "inputs N",
        "$N^4 J^3$",
        (2, 4, 8),
        lambda n: theory(keft.HermiteTower(10), n),
    ),
    (
        "HermiteTower(J), N = 2",
        "degree J",
        "$J^3$",
        (20, 40, 80),
        lambda n: theory(keft.HermiteTower(n), 2),
    ),
    (
        "HermiteTower(10), N = 2",
        "layers",
        "$L$",
        (16, 32, 64),
        lambda n: theory(keft.HermiteTower(10), 2, n),
    ),
    (
        "estimate, n = 64, N = 2",
        "networks B",
        "$B$",
        (1024, 2048, 4096),
        lambda n: networks(2, 64, 16, n),
    ),
    ("estimate, N = 2", "width n", "$n$", (64, 128, 256), lambda n: networks(2, n, 16, 1024)),
    ("estimate, n = 64, N = 2", "layers", "$L$", (16, 32, 64), lambda n: networks(2, 64, n, 1024)),
    (
        "estimate, n = 64",
        "inputs N",
        "$n N^2 + N^4$",
        (2, 4, 8),
        lambda n: networks(n, 64, 16, 1024),
    ),
)


def pairs_row():
    """`solve_pairs` against inputs: as many problems of two inputs as there are pairs."""

    def solve(inputs):
        def found():
            return keft.solve_pairs(MODEL, kernel(inputs), **LAYERS, closure=keft.HermiteTower(10), progress=False).K1

        return cpu_time(found), None

    return ("solve_pairs, HermiteTower(10)", "inputs N", "$N^2$", (9, 17, 33), solve)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/scaling_cpu.json"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print("| what | doubled | from | to | CPU, s | exponent | memory, MiB | exponent | work grows as |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---|")
    rows = []
    for what, against, law, values, measure in (*CASES[:5], pairs_row(), *CASES[5:]):
        seconds, sizes = zip(*map(measure, values), strict=True)
        row = {"what": what, "against": against, "law": law, "values": values, "cpu_s": seconds, "bytes": sizes}
        row |= {"time_exponent": exponent(values, seconds), "memory_exponent": exponent(values, sizes)}
        rows.append(row)
        memory = (
            ("", "")
            if sizes[-1] is None
            else (f"{float(f'{sizes[-1] / 2**20:.2g}'):g}", f"{row['memory_exponent']:.1f}")
        )
        cells = (
            what,
            against,
            values[0],
            values[-1],
            f"{seconds[-1]:.3g}",
            f"{row['time_exponent']:.1f}",
            *memory,
            law,
        )
        print("|", " | ".join(map(str, cells)), "|", flush=True)
    machine = {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def exponent(values, measured):
    """d log measured / d log value over the last doubling."""
    if measured[-1] is None:
        return None
    return math.log(measured[-1] / measured[-2]) / math.log(values[-1] / values[-2])


if __name__ == "__main__":
    main()
