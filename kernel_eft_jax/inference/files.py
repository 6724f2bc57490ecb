"""Kernels from a file of the user's, and results as plain records, for the command line."""

import json
import os
import zipfile
import zlib
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.lib.npyio import NpzFile

from ..storage import describe
from .fit import Fit
from .parameters import get_parameters, parameter_names
from .sensitivity import Sensitivity

NEEDED = ("G", "K0", "layers", "width", "eps")


def read_kernels(path: str | os.PathLike) -> tuple[Float[np.ndarray, "B T N N"], dict[str, Any]]:
    """Kernels G and the settings of their `Experiment` from an .npz file with arrays G, K0, layers, width and eps.

    From any framework: `np.savez("kernels.npz", G=G, K0=K0, layers=[2, 6, 12], width=64, eps=0.3)`; eps may be one
    number for each layer. Raises ValueError for other files, and for arrays that are missing, of another kind, or of
    several numbers instead of one; `fit` checks the values.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(2)
            if start not in (b"PK", b"\x93N", b""):  # NumPy would speak of pickles
                raise ValueError("it holds something else: save the arrays with numpy.savez.")
            stream.seek(0)
            file = np.load(stream, allow_pickle=False)
            # An .npy file holds one array without a name.
            arrays = {n: file[n] for n in NEEDED if n in file} if isinstance(file, NpzFile) else {}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{os.fspath(path)} is not an .npz file of numbers: {error}") from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise ValueError(
            f"{os.fspath(path)} must be an .npz file with the arrays {', '.join(NEEDED)}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    for name, array in arrays.items():
        kinds, remedy = ("iu", "integers") if name == "layers" else ("fiu", "float64")
        if array.dtype.kind not in kinds:  # bfloat16 comes back as raw bytes, |V2
            raise ValueError(f"{name} in {os.fspath(path)} has dtype {array.dtype}: save it as {remedy}.")
        if array.size != 1 and (name == "width" or (name == "eps" and array.ndim != 1)):
            more = ", or one for each layer" if name == "eps" else ""
            raise ValueError(f"{name} in {os.fspath(path)} must be one number{more}, but has shape {array.shape}.")
    eps, layers = arrays["eps"], np.atleast_1d(arrays["layers"]).tolist()
    last = max(layers, default=0)
    if eps.size not in (1, last):
        raise ValueError(f"eps in {os.fspath(path)} must be one number, or {last} of them, but holds {eps.size}.")
    settings = {"K0": arrays["K0"], "layers": layers}
    return arrays["G"], settings | {"width": arrays["width"].item(), "eps": eps.item() if eps.size == 1 else eps}


def fit_record(fit: Fit) -> dict[str, Any]:
    """A fit as numbers and strings, for JSON."""
    rows = zip(fit.names, fit.values, fit.stderr, fit.interval(0.68), fit.interval(0.95), strict=True)
    held = tuple(name for name in parameter_names(fit.experiment) if name not in fit.names)
    return {
        "parameters": {
            name: {"value": float(v), "stderr": float(e), "68 %": i68.tolist(), "95 %": i95.tolist()}
            | ({"at bound": True} if name in fit.at_bound else {})
            for name, v, e, i68, i95 in rows
        },
        "held": dict(zip(held, get_parameters(fit.experiment, held).tolist(), strict=True)) if held else {},
        "model in full": json.loads(describe(fit.experiment.model)),
        "closure": {"name": type(fit.closure).__name__, **vars(fit.closure)},
        "with V4": fit.with_V4,
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
