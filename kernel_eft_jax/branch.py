"""The branch of a block: its parts in the order in which data flows, matrix by matrix, and as maps of kernels."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from .activations import Activation, Linear
from .checks import written
from .kernel_maps import GLU, Dense, Fresh, KernelMap, RMSNorm

Part = Activation | GLU | RMSNorm | Dense


class Section(NamedTuple):
    """One matrix of a branch with what makes the features that the matrix reads: neurons, then norms."""

    neurons: Activation | GLU
    norms: tuple[RMSNorm, ...]
    dense: Dense

    def features(self, x: Float[Array, "N m *batch"]) -> Float[Array, "N features *batch"]:
        """What the matrix reads of pre-activations x, inputs first and neurons second."""
        x = self.neurons(x)
        for norm in self.norms:
            x = norm(x)
        return x


def in_sections(parts: Sequence[Part]) -> tuple[Section, ...]:
    """A branch matrix by matrix."""
    sections, neurons, norms = [], None, []
    for part in parts:
        if isinstance(part, Dense):
            sections.append(Section(neurons or Linear(), tuple(norms), part))
            neurons, norms = None, []
        elif isinstance(part, RMSNorm):
            norms.append(part)
        else:
            neurons = part
    return tuple(sections)


def kernel_maps(sections: Sequence[Section]) -> tuple[KernelMap, ...]:
    """The maps of kernels that lead from E[s s] to Q, s the first neurons."""
    maps = [*sections[0].norms, sections[0].dense]
    for before, section in pairwise(sections):
        maps += [Fresh(section.neurons, before.dense.ratio), *section.norms, section.dense]
    return tuple(maps)


def _made(part):
    """The remedy for a class, the name of one, or a function in place of an object."""
    function = callable(part) and not isinstance(part, type)
    return ": write Smooth(fn) for a function fn" if function else written(part, Activation, GLU, RMSNorm, Dense)


def check_branch(parts: Any) -> tuple[Part, ...]:
    """The parts of a branch as a tuple, if they make a block; ValueError with the remedy if not."""
    kinds = "activations, Dense, GLU and RMSNorm"
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise ValueError(
            f"Argument `branch` must be an activation object such as Tanh() or Smooth(fn), or a list of {kinds}, but "
            f"is {parts!r}{_made(parts)}."
        )
    for part in parts:
        if not isinstance(part, Part):
            raise ValueError(f"Argument `branch` must consist of {kinds}, but holds {part!r}{_made(part)}.")
    if not isinstance(parts[-1], Dense):
        raise ValueError(
            "Argument `branch` must end in a matrix, which makes the increments independent: add Dense(C_W) at its end."
        )
    if parts[-1].ratio != 1:
        raise ValueError(
            f"The last Dense of a branch feeds the stream and has ratio 1, but has {parts[-1].ratio}: leave `ratio` "
            "out."
        )
    for here, behind in zip((None, *parts), parts, strict=False):
        if isinstance(behind, GLU) and not isinstance(here, Dense):
            raise ValueError("A GLU gates the outputs of a matrix: put a Dense directly in front of it.")
        if isinstance(behind, Activation) and isinstance(here, RMSNorm):
            raise ValueError(
                "A norm directly in front of an activation scales single neurons by a fluctuating number, which is "
                "no map of kernels: put a Dense between them."
            )
        if isinstance(behind, Activation) and isinstance(here, Activation | GLU):
            raise ValueError(
                "Two activations in a row act as one elementwise function: put a Dense between them, or take "
                "Smooth(fn) of both."
            )
    return tuple(parts)
