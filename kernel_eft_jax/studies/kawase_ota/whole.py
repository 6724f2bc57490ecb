"""The whole study, one item after the other, so that each can be written as soon as it is done."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from .activations import activation_item, activation_studies
from .equations import equations_item
from .item import Item
from .main_job import MAIN_NETWORKS, SWEEP_NETWORKS, main_item, main_job
from .quadrature import quadrature_item
from .sweeps import sweep, sweep_item


class Sizes(NamedTuple):
    """Numbers of networks: of the main job, of each of the five sweeps, of each of the four activations."""

    main: int
    sweep: int
    activation: int


LAPTOP = Sizes(40_000, 10_000, 20_000)
FULL = Sizes(MAIN_NETWORKS, SWEEP_NETWORKS, SWEEP_NETWORKS)


def everything(
    sizes: Sizes, key: PRNGKeyArray, *, checkpoint: str | os.PathLike | None = None, progress: bool = True
) -> Iterator[tuple[str, Item]]:
    """Name and content of each part of the study, computed as they are asked for; the main job goes on from a
    checkpoint.

    The networks of the main job, the first part, do not depend on whether other parts are asked for.
    """
    main, sweeps, activations = jax.random.split(key, 3)
    study = main_job(sizes.main, main, checkpoint=checkpoint, progress=progress)
    yield "main job", main_item(study)
    yield "equations", equations_item(study)
    yield "quadrature", quadrature_item(study)
    yield "sweeps", sweep_item(sweep(sizes.sweep, sweeps, progress=progress))
    yield "activations", activation_item(activation_studies(sizes.activation, activations, progress=progress))
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
