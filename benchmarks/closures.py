"""How long does the theory take? CPU time of the first call of `solve`, which compiles, and of the next ones, for each
closure.

    python benchmarks/closures.py [--out benchmarks/results/closures_cpu.json]

Paper's settings (tanh, C_W = 2, C_b = 0, K0 = 2 on the diagonal and 0.6 off it, T = 2), float64, tolerance 1e-8. CPU
time is that of all threads, so that other programs on the machine matter little; times of a run are medians of three.
Errors are against the leading order in 1/n of one input, known without any closure.
"""

import argparse
import json
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import kernel_eft_jax as keft

T = 2.0
EXACT_V4, EXACT_K1 = 48.482031, -0.454211  # sums over layers, extrapolated to the continuum: tests/problems.py


def measure(closure, inputs, depth):
    model = keft.Model(keft.Tanh(), C_W=2.0)
    K0 = np.full((inputs, inputs), 0.6) + 1.4 * np.eye(inputs)
    where = {"ts": [T]} if depth is None else {"layers": depth, "eps": (T / depth) ** 0.5}

    def run():
        start = time.process_time()
        solution = jax.block_until_ready(keft.solve(model, K0, **where, closure=closure))
        return time.process_time() - start, solution

    first, _ = run()
    times, solution = zip(*(run() for _ in range(3)), strict=True)
    seconds = statistics.median(times)
    V4, K1 = float(solution[0].V4[0, 0, 0, 0, 0]), float(solution[0].K1[0, 0, 0])
    row = {
        "case": repr(closure) if depth is None else f"{closure!r}, {depth} layers",
        "inputs": inputs,
        "first_call_cpu_s": first,
        "run_cpu_s": seconds,
        "V4_0000": V4,
        "V4_error": V4 / EXACT_V4 - 1,
        "K1_00": K1,
        "K1_error": K1 - EXACT_K1,
    }
    print(
        "{case:34s} {inputs:3d} {first_call_cpu_s:8.1f} {run_cpu_s:9.4f} "
        "{V4_0000:10.4f} {V4_error:9.1e} {K1_00:9.4f} {K1_error:9.1e}".format(**row),
        flush=True,
    )
    return row


def chosen_pairs(inputs, count):
    """V4_ab,cd and K1 of chosen pairs of many inputs: a batch of small problems, four inputs each."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((inputs, 64))
    K0 = np.asarray(keft.input_kernel(x, C_W=2.0))
    subsets = np.stack([rng.choice(inputs, 4, replace=False) for _ in range(count)])
    kernels = jnp.asarray(np.stack([K0[np.ix_(s, s)] for s in subsets]))
    model = keft.Model(keft.Tanh(), C_W=2.0)
    # One at a time: memory stays that of one problem.
    solve = jax.jit(
        lambda kernels: jax.lax.map(lambda K: keft.solve(model, K, [T], closure=keft.HermiteTower(20)).packed, kernels)
    )
    memory = solve.lower(kernels).compile().memory_analysis()
    jax.block_until_ready(solve(kernels))
    start = time.perf_counter()
    jax.block_until_ready(solve(kernels))
    seconds = time.perf_counter() - start
    megabytes = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20
    print(f"{count} sets of four out of {inputs} inputs, degree 20: {seconds:.1f} s, {megabytes:.0f} MiB")
    return {"case": "chosen pairs", "inputs": inputs, "sets": count, "run_s": seconds, "memory_MiB": megabytes}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/closures_cpu.json"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"{'case':34s}   N    first       run       V4     error        K1     error")
    machine = {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "jax": jax.__version__,
    }
    cases = [
        *((keft.HermiteTower(30), inputs, None) for inputs in (1, 2, 4)),
        *((keft.HermiteTower(30), inputs, 800) for inputs in (1, 2)),
        *((keft.SigmaKernel(), inputs, None) for inputs in (1, 2, 4)),
        *((keft.GOnly(), inputs, None) for inputs in (1, 2, 4, 16)),
        *((keft.GOnly(), inputs, 800) for inputs in (1, 2)),
        (keft.SigmaKernel(), 1, 800),
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for closure, inputs, depth in cases:
        rows.append(measure(closure, inputs, depth))
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    rows.append(chosen_pairs(16, 8))
    args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
