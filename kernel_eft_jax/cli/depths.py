"""The depths of a command: layers with their step, or depth times of the continuum."""

import argparse
from typing import Any

import numpy as np

DEFAULT_T = 2.0


def at_depths(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `solve` for depths: --times of them, evenly up to --T or up to layer --depth."""
    if arguments.eps is None:
        return {"ts": np.linspace(0, arguments.T or DEFAULT_T, arguments.times)}
    return {"layers": saved_layers(arguments), "eps": arguments.eps}


def saved_layers(arguments: argparse.Namespace) -> list[int]:
    """The layers to save: --times of them, evenly from 0 to --depth."""
    return np.unique(np.round(np.linspace(0, arguments.depth, arguments.times)).astype(int)).tolist()


def describe_depths(arguments: argparse.Namespace) -> str:
    """The depths in words."""
    if arguments.eps is None:
        return f"continuum to t = {arguments.T or DEFAULT_T:.6g}"
    return f"{arguments.depth:,} layers of eps = {arguments.eps:.6g}"
