"""Kernels from a file of yours, and results as plain records: what the command line needs."""

import os
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Float

from .fit import Fit
from .sensitivity import Sensitivity

NEEDED = ("G", "K0", "layers", "width", "eps")


def read_kernels(path: str | os.PathLike) -> tuple[Float[np.ndarray, "B T N N"], dict[str, Any]]:
    """Kernels G and the settings of their `Experiment` from an .npz file with arrays G, K0, layers, width and eps.

    From any framework: `np.savez("kernels.npz", G=G, K0=K0, layers=[2, 6, 12], width=64, eps=0.3)`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{os.fspath(path)} is not an .npz file of numbers: {error}") from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise ValueError(
            f"{os.fspath(path)} must hold the arrays {', '.join(NEEDED)}, but {', '.join(missing)} is missing."
        )
    settings = {"K0": arrays["K0"], "layers": np.atleast_1d(arrays["layers"]).tolist()}
    return arrays["G"], settings | {name: float(arrays[name]) for name in ("width", "eps")}


def fit_record(fit: Fit) -> dict[str, Any]:
    """A fit as numbers and strings, for JSON."""
    rows = zip(fit.names, fit.values, fit.stderr, fit.interval(0.68), fit.interval(0.95), strict=True)
    return {
        "parameters": {
            name: {"value": float(v), "stderr": float(e), "68 %": i68.tolist(), "95 %": i95.tolist()}
            | ({"at bound": True} if name in fit.at_bound else {})
            for name, v, e, i68, i95 in rows
        },
        "covariance": fit.covariance.tolist(),
        "chi2": fit.chi2,
        "degrees of freedom": fit.dof,
        "p value": fit.p_value if fit.dof else None,
        "converged": bool(fit.converged),
        "message": fit.message,
        "history": fit.history,
        "networks": fit.observed.networks,
    }


def sensitivity_arrays(sensitivity: Sensitivity) -> dict[str, np.ndarray]:
    """The trajectory and its derivatives by every parameter, (parameters, T, N, N, ...), for `np.savez`."""
    every = [sensitivity[name] for name in sensitivity.names]
    solution = sensitivity.solution
    arrays = {
        "names": np.array(sensitivity.names),
        "values": np.asarray(sensitivity.values),
        "ts": np.asarray(solution.ts),
    }
    for field in ("K0", "V4", "K1"):
        arrays[field] = np.asarray(getattr(solution, field))
        arrays[f"d{field}"] = np.stack([np.asarray(getattr(kernels, field)) for kernels in every])
    return arrays
