"""Are derivatives right, are intervals honest, and what does a fit cost?

    python benchmarks/gradients.py            # the gradient tables and the time of a fit: ten minutes
    python benchmarks/gradients.py --coverage # and the coverage table: about ten minutes more

Prints, for every parameter, quantity and adjoint, the largest relative deviation from central differences of fourth
order; the share of 100 simulated data sets whose intervals hold the truth; and a fit of four parameters with its
compilation. Results go to benchmarks/results/gradients.json.
"""

import argparse
import json
import os
import pathlib
import platform
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import kernel_eft_jax as keft
from kernel_eft_jax.ensemble import sample_kernels
from kernel_eft_jax.inference import Experiment, fit

RESULTS = pathlib.Path(__file__).parent / "results" / "gradients.json"
PARAMETERS = ("C_W", "C_b", "activation scale", "K0[0, 0]", "K0[0, 1]")
QUANTITIES = ("K0", "V4", "K1")
POINT = np.array([1.8, 0.2, 1.1, 1.5, 0.4])
MODES = {
    "layers, forward": (jax.jacfwd, {"layers": [8], "eps": 0.25}),
    "layers, reverse": (jax.jacrev, {"layers": [8], "eps": 0.25}),
    "continuum, ForwardMode": (jax.jacfwd, {"adjoint": diffrax.ForwardMode()}),
    "continuum, RecursiveCheckpoint": (jax.jacrev, {"adjoint": diffrax.RecursiveCheckpointAdjoint()}),
    "continuum, Direct, forward": (jax.jacfwd, {"adjoint": diffrax.DirectAdjoint()}),
    "continuum, Direct, reverse": (jax.jacrev, {"adjoint": diffrax.DirectAdjoint()}),
    "continuum, Backsolve": (jax.jacrev, {"adjoint": diffrax.BacksolveAdjoint()}),
}


def final(point, closure, options):
    """K0, V4 and K1 at t = 0.5 for two inputs, one number each."""
    C_W, C_b, scale, k_00, k_01 = point
    K0 = jnp.array([[k_00, k_01], [k_01, 1.0]])
    if "eps" not in options:
        options = options | {"ts": [0.5], "stepsize_controller": diffrax.PIDController(rtol=1e-11, atol=1e-11)}
    model = keft.Model(keft.Scaled(keft.Erf(), scale), C_W, C_b)
    solution = keft.solve(model, K0, closure=closure, throw=False, **options)
    return jnp.stack([solution.K0[0, 0, 1], solution.V4[0, 0, 0, 0, 1], solution.K1[0, 0, 1]])


def differences(function, point, step=2e-3):
    """Central differences of fourth order, (quantities, parameters)."""
    columns = []
    for h in step * np.eye(len(point)):
        near = np.asarray(function(point + h) - function(point - h))
        far = np.asarray(function(point + 2 * h) - function(point - 2 * h))
        columns.append((8 * near - far) / (12 * step))
    return np.stack(columns, axis=1)


def gradient_table(closure):
    table = {}
    for mode, (ask, options) in MODES.items():
        expected = differences(jax.jit(lambda p, options=options: final(p, closure, options)), POINT)
        got = np.asarray(jax.jit(ask(lambda p, options=options: final(p, closure, options)))(jnp.asarray(POINT)))
        error = np.abs(got - expected) / np.abs(expected).max(axis=1, keepdims=True)
        table[mode] = {
            q: dict(zip(PARAMETERS, row.tolist(), strict=True)) for q, row in zip(QUANTITIES, error, strict=True)
        }
        for q, row in table[mode].items():
            print(f"{mode:32} {q}  " + "  ".join(f"{name} {value:.0e}" for name, value in row.items()), flush=True)
    return table


def fit_time():
    """Four parameters from 2,000 networks of 20 layers, two inputs, by the exact closure."""
    truth = {"C_W": 2.0, "C_b": 0.2, "K0_scale": 1.0, "activation.input_scale": 1.0}
    K0, layers, eps = np.array([[1.0, 0.3], [0.3, 0.4]]), (5, 10, 20), 0.3
    true = Experiment(keft.Model(keft.Scaled(keft.Tanh()), 2.0, 0.2), K0, width=64, layers=layers, eps=eps)
    G = sample_kernels(
        true.model, K0, width=64, depth=20, eps=eps, networks=2000, key=jax.random.key(1), save_at=layers
    )
    start = Experiment(
        keft.Model(keft.Scaled(keft.Tanh(), 0.8), 1.0, 0.5), K0, width=64, layers=layers, eps=eps, K0_scale=0.7
    )

    def timed():
        begin = time.perf_counter()
        result = fit(G, start, tuple(truth), closure=keft.HermiteTower(20), progress=False)
        return time.perf_counter() - begin, result

    first, _ = timed()
    again, result = timed()
    print(f"fit of four parameters: {first:.1f} s with compilation, {again:.1f} s without, {len(result.history)} steps")
    print(result)
    return {
        "seconds": again,
        "seconds with compilation": first,
        "steps": len(result.history),
        "truth": truth,
        "values": dict(zip(result.names, result.values.tolist(), strict=True)),
        "stderr": dict(zip(result.names, result.stderr.tolist(), strict=True)),
        "chi2 per degree of freedom": result.chi2 / result.dof,
    }


def coverage_table(sets=100, networks=20_000):
    """Deep tanh networks of width 32: the share of intervals for C_W and C_b that hold the truth, by closure."""
    K0, layers, width, eps, truth = np.array([[2.0, 0.2], [0.2, 0.5]]), (10, 20), 32, 0.1**0.5, np.array([2.0, 0.1])
    e = Experiment(keft.Model(keft.Tanh(), *truth), K0, width=width, layers=layers, eps=eps)
    closures, key = {"GOnly": keft.GOnly(), "HermiteTower(12)": keft.HermiteTower(12)}, jax.random.key(7)
    fits = {name: [] for name in closures}
    for i in range(sets):
        run = {"width": width, "depth": 20, "eps": eps, "networks": networks, "key": jax.random.fold_in(key, i)}
        G = sample_kernels(e.model, K0, **run, save_at=layers)
        for name, closure in closures.items():
            fits[name].append(fit(G, e, ("C_W", "C_b"), closure=closure, progress=False))
    table = {}
    for name, results in fits.items():
        inside = {level: [(f.interval(level).T - truth) * [[-1], [1]] > 0 for f in results] for level in (0.68, 0.95)}
        table[name] = {
            f"{100 * level:.0f} %": np.all(held, axis=1).mean(axis=0).tolist() for level, held in inside.items()
        }
        pulls = np.array([(f.values - truth) / f.stderr for f in results])
        table[name] |= {"mean pull": pulls.mean(axis=0).tolist(), "chi2": np.mean([f.chi2 for f in results])}
        table[name] |= {"degrees of freedom": results[0].dof, "data sets": sets}
        print(
            f"{name:18} " + "  ".join(f"{key}: {np.round(value, 3)}" for key, value in table[name].items()), flush=True
        )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coverage", action="store_true", help="also the coverage table")
    with_coverage = parser.parse_args().coverage
    jax.config.update("jax_enable_x64", True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["machine"] = {"cores": os.cpu_count(), "processor": platform.machine(), "jax": jax.__version__}
    results["fit"] = fit_time()
    results["gradients"] = {}
    for name, closure in {"GOnly": keft.GOnly(), "HermiteTower(10)": keft.HermiteTower(10)}.items():
        print(name)
        results["gradients"][name] = gradient_table(closure)
    if with_coverage:
        results["coverage of C_W and C_b"] = coverage_table()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
