"""Labelled arrays: dimensions t (depth time), a, b, c, d (inputs), each variable with its meaning; read back by name,
not by position."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

KIND = "kernel_eft_jax_result"
INPUT_AXES = "abcd"
MEANING = {  # of what theories and networks both know
    "K0": "mean kernel at infinite width",
    "K1": "width times the finite-width correction of the mean kernel: n (E[G] - K0)",
    "U1": "width times the finite-width correction of the mean sigma-kernel: n (E[S] - E_K0[s s])",
    "V4": "width times the covariance of the kernel: n Cov(G_ab, G_cd)",
    "variance": "width times the variance of the kernel: n Var(G_ab)",
    "K1_truncation": "estimated truncation error of K1",
    "variance_truncation": "estimated truncation error of the variance",
    "V_GS": "width times the covariance of kernel and sigma-kernel: n Cov(G_ab, S_cd)",
    "V_SS": "width times the covariance of the sigma-kernel: n Cov(S_ab, S_cd)",
}


def labelled(
    values: Mapping[str, Any], meaning: Mapping[str, str] = MEANING, suffix: str = "", prefix: str = ""
) -> dict[str, Any]:
    """Variables over (t, a, b) or (t, a, b, c, d), each with its meaning; None is left out."""
    return {
        name + suffix: (tuple("tabcd"[: value.ndim]), np.asarray(value), {"long_name": prefix + meaning[name]})
        for name, value in values.items()
        if value is not None
    }


def dataset(kind: str, ts: Any, inputs: int, variables: Mapping[str, Any], attributes: dict[str, Any]) -> "xr.Dataset":
    """A result of a class `kind` over its depth times and inputs, with the versions that made it."""
    time = ("t", np.asarray(ts), {"long_name": "depth time, eps^2 times layer"})
    versions = {f"version_{name}": _version(name) for name in ("kernel_eft_jax", "jax", "diffrax", "numpy")}
    own = {KIND: kind, "variables": " ".join(["t", *variables])}
    import xarray as xr  # here, since it takes half the time that importing this package would take

    return xr.Dataset(
        dict(variables), {"t": time} | dict.fromkeys(INPUT_AXES, np.arange(inputs)), versions | own | attributes
    )


def check_dimensions(data: "xr.Dataset") -> None:
    """Check that depth and inputs are dimensions, with all inputs in their order. Raises ValueError where inputs were
    selected or sorted."""
    remedy = "Load the file that `save` wrote, and select from the result."
    for dimension in "t" + INPUT_AXES:
        if dimension not in data.sizes:
            raise ValueError(f"It lacks the dimension {dimension}. {remedy}")
        if dimension in INPUT_AXES and not np.array_equal(data[dimension].values, np.arange(data.sizes["a"])):
            raise ValueError(
                f"Its dimension {dimension} must hold all inputs in their order, but holds {data[dimension].values}. "
                f"{remedy}"
            )


def axes(data: "xr.Dataset", name: str, dimensions: str) -> np.ndarray:
    """The values of a variable with its dimensions in this order, whatever their order there; ValueError if it has
    others."""
    wanted, there = dimensions.split(), data[name].dims
    if set(wanted) != set(there):
        raise ValueError(
            f"Its variable {name} must have the dimensions {', '.join(wanted)}, but has {', '.join(map(str, there))}."
        )
    return data[name].transpose(*wanted).values


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
