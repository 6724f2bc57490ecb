"""Results in files: `save` a Solution or an Estimate as labelled netCDF, `load` it back.

The file opens in plain xarray: dimensions t (depth time), a, b, c, d (inputs), with what each variable means, the settings and
the versions as attributes. It is complete at once or not there at all. An Estimate's file also holds its sums over groups
of networks, so that a loaded one can do all that the original could.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
import xarray as xr

from .closures import Moments
from .ensemble import Estimate
from .ensemble.statistics import Group, Limit, Quantities, Sums
from .pairs import input_count, pairs, unpack, unpack_covariance
from .trajectory import Solution

KIND = "kernel_eft_jax_result"
OUTCOMES = (
    "successful",
    "max_steps_reached",
    "dt_min_reached",
    "max_steps_rejected",
    "nonlinear_divergence",
    "nonlinear_max_steps_reached",
    "nonfinite",
    "event_occurred",
    "internal_error",
)
MEANING = {
    "K0": "mean kernel at infinite width",
    "K1": "width times the finite-width correction of the mean kernel: n (E[G] - K0)",
    "U1": "width times the finite-width correction of the mean sigma-kernel: n (E[S] - E_K0[s s])",
    "V4": "width times the covariance of the kernel: n Cov(G_ab, G_cd)",
    "V_GS": "width times the covariance of kernel and sigma-kernel: n Cov(G_ab, S_cd)",
    "V_SS": "width times the covariance of the sigma-kernel: n Cov(S_ab, S_cd)",
    "kappa4": "width times the fourth cumulant of one neuron: n (E[phi_a^2 phi_b^2] - E[phi_a^2] E[phi_b^2] - 2 E[phi_a phi_b]^2)",
    "V4_excess": "V4 at this width less V4 at infinite width, by control variates",
    "G": "mean of the empirical kernel, (1/n) sum_i phi_i(a) phi_i(b)",
    "S": "mean of the empirical sigma-kernel, (1/n) sum_i s(phi_i(a)) s(phi_i(b))",
}


def save(result: Solution | Estimate, path: str | os.PathLike, **settings: Any) -> Path:
    """Write a result to a netCDF file, replacing it at once, never in part.

    `settings` are kept as attributes: numbers and text as they are, anything else (a model, a key, True) as its text. A result knows its depth
    times, and an Estimate its layers, width and networks, but not the model, nor the key: pass what you want to find again. Raises
    ValueError for a setting with a name that the file itself uses.
    """
    path = Path(path)
    data = to_dataset(result)
    taken = sorted(name for name in settings if name in data.attrs or name.startswith("stats_"))
    if taken:
        raise ValueError(
            f"Argument `{taken[0]}` has a name that the file itself uses: leave it out, or give it another name."
        )
    data = data.assign_attrs({name: _attribute(value) for name, value in settings.items()})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        data.to_netcdf(part, engine="h5netcdf")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def load(path: str | os.PathLike) -> Solution | Estimate:
    """Read back what `save` wrote. Raises ValueError for a file that is damaged or holds something else."""
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            data = file.load()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"File {path} cannot be read as netCDF: it is cut short or of another format. Make it again with `save`."
        ) from error
    read = {"Solution": _read_solution, "Estimate": _read_estimate}.get(data.attrs.get(KIND, ""))
    if read is None:
        raise ValueError(f"File {path} is netCDF but holds no Solution or Estimate: it was not written by `save`.")
    missing = sorted(set(data.attrs["variables"].split()) - set(data.variables))
    if missing:
        raise ValueError(f"File {path} lacks {', '.join(missing)}: it was changed since `save` wrote it.")
    return read(data)


def to_dataset(result: Solution | Estimate) -> xr.Dataset:
    """A result as an xarray Dataset over t and the inputs a, b, c, d."""
    variables, attributes = (_write_solution if isinstance(result, Solution) else _write_estimate)(result)
    inputs = np.arange(result.K0.shape[-1])
    time = ("t", np.asarray(result.ts), {"long_name": "depth time, eps^2 times layer"})
    versions = {f"version_{name}": _version(name) for name in ("kernel_eft_jax", "jax", "diffrax", "numpy")}
    attributes["variables"] = " ".join(["t", *variables])
    return xr.Dataset(variables, {"t": time} | dict.fromkeys("abcd", inputs), versions | attributes)


def _write_solution(solution):
    variables = _labelled(_full(solution.packed))
    if solution.truncation is not None:
        variables |= _labelled(_full(solution.truncation), "_truncation", "estimated truncation error of ")
    stats = {f"stats_{name}": np.asarray(value)[()] for name, value in solution.stats.items()}
    outcome = next(name for name in OUTCOMES if solution.result == getattr(diffrax.RESULTS, name))
    return variables, stats | {KIND: "Solution", "result": outcome}


def _full(moments):
    """Packed moments as full arrays; None where the closure carries none."""
    unpacked = {2: unpack, 3: unpack_covariance}
    return {n: None if m is None else unpacked[m.ndim](m) for n, m in zip(Moments._fields, moments, strict=True)}


def _read_solution(data):
    a, b = pairs(data.sizes["a"])

    def moments(suffix):
        corners = {3: np.s_[:, a, b], 5: np.s_[:, a[:, None], b[:, None], a, b]}
        present = {name: data[name + suffix].values for name in Moments._fields if name + suffix in data}
        return Moments(**{name: jnp.asarray(full[corners[full.ndim]]) for name, full in present.items()})

    stats = {name[6:]: jnp.asarray(value) for name, value in data.attrs.items() if name.startswith("stats_")}
    truncation = moments("_truncation") if "V4_truncation" in data else None
    result = getattr(diffrax.RESULTS, data.attrs["result"])
    return Solution(jnp.asarray(data["t"].values), moments(""), truncation, stats, result)


def _write_estimate(estimate):
    limit, groups = estimate.limit, estimate.sums.groups
    upper = np.triu_indices(groups[0].second.shape[-1])
    variables = _labelled({name: getattr(estimate, name) for name in ("K0", *Quantities._fields)})
    variables |= _labelled(estimate.stderr._asdict(), "_stderr", "standard error of ")
    variables |= {
        name: (dimensions, value, {"long_name": meaning})
        for name, dimensions, value, meaning in (
            ("layer", "t", estimate.layers, "layer"),
            ("limit_K0", ("t", "pair"), limit.K0, "K0 over pairs a <= b"),
            ("limit_moment", ("t", "pair"), limit.moment, "E_K0[s s] over pairs a <= b"),
            ("sum_networks", "group", [g.networks for g in groups], "networks of a group"),
            ("sum_first", ("group", "t", "x"), [g.first for g in groups], "sum of x over the networks of a group"),
            (
                "sum_second",
                ("group", "t", "xx"),
                [g.second[:, *upper] for g in groups],
                "sum of x x^T of the first entries, upper triangle",
            ),
        )
    }
    attributes = {"networks": estimate.networks, "width": estimate.width, "parts": estimate.sums.parts}
    return variables, {KIND: "Estimate"} | attributes


def _read_estimate(data):
    def quantities(suffix) -> dict[str, Any]:
        return {name: data[name + suffix].values if name + suffix in data else None for name in Quantities._fields}

    packed = data["sum_second"].values
    size = input_count(packed.shape[-1])
    second, (i, j) = np.empty((*packed.shape[:-1], size, size)), np.triu_indices(size)
    second[..., i, j] = second[..., j, i] = packed
    groups = map(Group, data["sum_networks"].values.tolist(), data["sum_first"].values, second)
    return Estimate(
        layers=data["layer"].values,
        ts=data["t"].values,
        K0=data["K0"].values,
        **quantities(""),
        stderr=Quantities(**quantities("_stderr")),
        networks=int(data.attrs["networks"]),
        width=int(data.attrs["width"]),
        sums=Sums(tuple(groups), int(data.attrs["parts"])),
        limit=Limit(data["limit_K0"].values, data["limit_moment"].values),
        **dict.fromkeys(("model", "sampler", "eps", "key")),
    )


def _labelled(values, suffix="", prefix=""):
    """Variables over (t, a, b) or (t, a, b, c, d), each with its meaning; None is left out."""
    return {
        name + suffix: (tuple("tabcd"[: value.ndim]), np.asarray(value), {"long_name": prefix + MEANING[name]})
        for name, value in values.items()
        if value is not None
    }


def _attribute(value):
    if isinstance(value, eqx.Module):
        return eqx.tree_pformat(value, short_arrays=False, width=10**6)
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else str(value)


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
