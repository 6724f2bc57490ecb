"""Results in files: `save` one as labelled netCDF, `load` it back, with the model that made it."""

from .labels import MEANING, axes, dataset, labelled
from .results import Result, load, save
from .values import describe, read_origin, rebuild, write_origin

__all__ = [
    "MEANING",
    "Result",
    "axes",
    "dataset",
    "describe",
    "labelled",
    "load",
    "read_origin",
    "rebuild",
    "save",
    "write_origin",
]
