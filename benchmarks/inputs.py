"""How long do many inputs take? K0, K1 and variances of all pairs by the exact theory, and the full V4 of `GOnly`.

    python benchmarks/inputs.py [inputs] [--out benchmarks/results/inputs_cpu.json]

tanh, C_W = 2, continuum to t = 2, float64: `HermiteTower(30)` for all pairs of 100 inputs to 1e-6, and for comparison
one pair by `solve` to 1e-8; `GOnly` for 32 inputs to 1e-8. Compilation is told apart. CPU seconds are those of all
cores together; on an idle machine with c cores the pairs take that over c.
"""

import argparse
import json
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

import kernel_eft_jax as keft

MODEL, T, EXACT = keft.Model(keft.Tanh(), C_W=2.0), 2.0, keft.HermiteTower(30)


def kernel(inputs):
    """Random features: variances about two, correlations about 0.1."""
    x = np.random.default_rng(0).standard_normal((inputs, 64))
    return np.asarray(keft.input_kernel(x, C_W=2.0))


def timed(name, inputs, function):
    """Wall and CPU time of the first call, which compiles, and of the second."""
    rows = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(function())
        rows.append((time.perf_counter() - wall, time.process_time() - cpu))
    (first, _), (seconds, cpu) = rows
    row = {"case": name, "inputs": inputs, "first_s": first, "run_s": seconds, "run_cpu_s": cpu}
    print("{case:40s} {inputs:4d} {first_s:9.1f} {run_s:9.3f} {run_cpu_s:9.3f}".format(**row), flush=True)
    return row, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", type=int, nargs="?", default=100)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/inputs_cpu.json"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"{'case':40s}    N   first, s    run, s  CPU, s")
    rows, full = [], kernel(args.inputs)
    row, _ = timed("GOnly, full V4", 32, lambda: keft.solve(MODEL, kernel(32), [T], closure=keft.GOnly()).packed)
    rows.append(row)
    row, one = timed(
        "HermiteTower(30), one pair by solve", 2, lambda: keft.solve(MODEL, full[:2, :2], [T], closure=EXACT).packed
    )
    rows.append(row)
    few = keft.solve_pairs(MODEL, full[:9, :9], [T], closure=EXACT, progress=False)  # compiles what all pairs run
    wall, cpu = time.perf_counter(), time.process_time()
    pairs = keft.solve_pairs(MODEL, full, [T], closure=EXACT)
    count = args.inputs * (args.inputs - 1) // 2
    row = {
        "case": "HermiteTower(30), all pairs",
        "inputs": args.inputs,
        "run_s": time.perf_counter() - wall,
        "run_cpu_s": time.process_time() - cpu,
        "pairs": count,
        "K1_difference": float(jnp.abs(pairs.K1[0, 0, 1] - one.K1[0, 1])),
        "V4_relative_difference": float(jnp.abs(pairs.variance[0, 0, 1] / one.V4[0, 1, 1] - 1)),
        "K1_truncation": float(jnp.max(pairs.K1_truncation)),
        "expectation_error": float(pairs.expectation_error),
    }
    row["cpu_ms_a_pair"] = 1e3 * row["run_cpu_s"] / count
    assert np.allclose(few.K1, pairs.K1[:, :9, :9], atol=1e-4)
    print(
        "{case:40s} {inputs:4d}           {run_s:9.1f} {run_cpu_s:9.1f}   {cpu_ms_a_pair:.2f} ms a pair; "
        "K1[01] is {K1_difference:.1e} and "
        "V4[0101] {V4_relative_difference:.1e} from one pair by `solve`".format(**row)
    )
    rows.append(row)
    machine = {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
