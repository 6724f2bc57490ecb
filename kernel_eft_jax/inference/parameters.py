r"""What an experiment is, and its parameters by name: the leaves of its tree.

A block of one matrix has `C_W`, `C_b` and `activation.slope`; other blocks have `branch[1].C_W` or `branch[0].slope`,
with the place of the part in the branch. All have `decay`, `width`, `K0_scale` and `eps`. Each field declares what its
parameter may be (`fields`): variances of weights, eps, width and K0_scale are greater than zero, and fits search in
their logarithm; variances of biases (which may be zero), decay and most parameters of activations are searched as they
are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..checks import check_kernel, check_kind, check_layers, check_positive, is_concrete
from ..closures import Closure
from ..depths import check_eps
from ..fields import Parameter, declared, parameter
from ..model import Model
from ..pairs import pack

Tree = TypeVar("Tree", "Experiment", Model)
POSITIVE = parameter(positive=True)


class Experiment(eqx.Module):
    """Networks of one width, observed after some of their layers: all that determines the law of the observed kernels
    G.

    All but `layers` are array leaves and can be fitted, except an `eps` of each layer: a common factor of all eps
    changes the law as C_W, C_b and decay together do, so free those.

    Args:
        model: The block.
        K0: Times `K0_scale`, the kernel of the pre-activations at depth zero.
        width: Neurons of the stream, n.
        layers: The observed layers, in increasing order, counted from depth zero.
        eps: The step of a layer, one number or one for each layer up to the last observed one.
        K0_scale: A factor of the input kernel, for inputs of unknown scale.

    Raises:
        ValueError: For a kernel that is none, for layers not in increasing order, for width, eps or K0_scale that are
            not positive, and for decay eps^2 > 1.
    """

    model: Model
    K0: Float[Array, "N N"]
    width: Float[Array, ""] = eqx.field(metadata=POSITIVE)
    eps: Float[Array, "..."] = eqx.field(metadata=POSITIVE)
    K0_scale: Float[Array, ""] = eqx.field(metadata=POSITIVE)
    layers: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        model: Model,
        K0: Float[ArrayLike, "N N"],
        *,
        width: Float[ArrayLike, ""],
        layers: Sequence[int] | np.ndarray,
        eps: Float[ArrayLike, "..."] = 1.0,
        K0_scale: Float[ArrayLike, ""] = 1.0,
    ):
        check_kind(model, Model, "model")
        for name, value in (("width", width), ("K0_scale", K0_scale)):
            check_positive(value, name)
        self.layers = check_layers(layers)
        if self.layers[-1] == 0:
            raise ValueError(
                "Argument `layers` must name a layer behind the input: no parameter of the model has an effect at "
                "layer 0."
            )
        self.model = model
        self.K0 = check_kernel(K0)
        eps = check_eps(eps, model.decay, self.layers[-1])
        self.width, self.eps, self.K0_scale = (jnp.asarray(x, dtype=self.K0.dtype) for x in (width, eps, K0_scale))


class Place(NamedTuple):
    """Where a parameter is: the number of its leaf in the tree, the number of its entry if the leaf has several, and
    the number of the part of the branch.

    `module` is the module whose field holds the parameter, `said` what this field declares.
    """

    leaf: int
    entry: int | None
    part: int | None
    module: Any
    said: Parameter


def places(tree: Experiment | Model) -> dict[str, Place]:
    """The place of each parameter in the tree, by its name."""
    model = tree.model if isinstance(tree, Experiment) else tree
    found: dict[str, Place] = {}
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        name = jax.tree_util.keystr(path).removeprefix(".model").removeprefix(".")
        if not eqx.is_inexact_array(leaf) or name == "K0" or (name == "eps" and leaf.ndim):
            continue
        if model.one_matrix:
            name = name.replace("branch[0]", "activation").replace("branch[1].", "")
        held = _part_and_holder(tree, path)
        if leaf.ndim == 0:
            found[name] = Place(i, None, *held)
        else:
            found |= {f"{name}[{j}]": Place(i, j, *held) for j in range(leaf.size)}
    return found


def _part_and_holder(tree: Any, path: tuple[Any, ...]) -> tuple[int | None, Any, Parameter]:
    """The number of the part on a path, the last module on it, and what the field of this module declares."""
    node, part, module, said = tree, None, tree, Parameter()
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            module, said = node, next(declared(field) for field in fields(node) if field.name == key.name)
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            part = key.idx if part is None else part  # the first tuple on the way is the branch
            node = node[key.idx]
        else:  # inside a function of the user's own
            break
    return part, module, said


def parameter_names(experiment: Experiment) -> list[str]:
    """The names of all parameters that can be free, without the input kernel's entries."""
    return list(places(experiment))


def get_parameters(tree: Experiment | Model, names: Sequence[str]) -> Float[Array, " parameters"]:
    """The values of the named parameters, in the precision of an experiment's kernel or of a model's decay."""
    dtype = tree.K0.dtype if isinstance(tree, Experiment) else tree.decay.dtype
    leaves, known = jax.tree.leaves(tree), places(tree)
    found = ((leaves[known[name].leaf], known[name].entry) for name in names)
    return jnp.stack([(leaf if j is None else leaf.reshape(-1)[j]).astype(dtype) for leaf, j in found])


def set_parameters(tree: Tree, names: Sequence[str], values: Float[Array, " parameters"]) -> Tree:
    """The tree with the named parameters at new values, differentiable in them."""
    leaves, structure = jax.tree.flatten(tree)
    known = places(tree)
    for name, value in zip(names, values, strict=True):
        i, j, *_ = known[name]
        value = value.astype(leaves[i].dtype)
        leaves[i] = value if j is None else leaves[i].reshape(-1).at[j].set(value).reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves)


def said_of(tree: Experiment | Model, names: Sequence[str]) -> list[Parameter]:
    """What the fields of the named parameters declare."""
    known = places(tree)
    return [known[name].said for name in names]


def least_values(experiment: Experiment, names: Sequence[str]) -> Float[np.ndarray, " parameters"]:
    """The lower bound of each parameter: zero for variances of biases, minus infinity for most."""
    return np.array([said.least for said in said_of(experiment, names)])


def check_names(experiment: Experiment, free: Any) -> tuple[str, ...]:
    """The names as a tuple, after a check that they are different parameters of this experiment with values that can
    move."""
    known = parameter_names(experiment)
    names = (free,) if isinstance(free, str) else tuple(free) if isinstance(free, Iterable) else ()
    unknown = [name for name in names if name not in known]
    if "eps" in unknown and experiment.eps.ndim:
        raise ValueError(
            "Argument `free` names eps, of which the experiment has one for each layer. A common factor of them "
            "moves the law as C_W, C_b and decay together do: free those, or give the experiment one number."
        )
    if not names or unknown or len(set(names)) < len(names):
        raise ValueError(f"Argument `free` must name different parameters among {known}, but is {names or free}.")
    values = np.asarray(get_parameters(experiment, names))
    for name, value, said in zip(names, values, said_of(experiment, names), strict=True):
        if said.positive and is_concrete(value) and not value > 0:
            raise ValueError(
                f"Parameter `{name}` is free and must start from a value greater than zero, but is {value}."
            )
    moves_skip = [name for name in ("decay", "eps") if name in names]
    if moves_skip and no_skip(experiment.model, experiment.eps):
        raise ValueError(
            f"Argument `free` names {moves_skip[0]}, but decay eps^2 is 1: there is no skip, and the law has no "
            f"derivative by it. Start from a decay below 1 / eps^2, or hold {moves_skip[0]} fixed."
        )
    return names


def check_theory_has(names: Sequence[str], closure: Closure) -> None:
    """Refuse a free decay with a closure that has none."""
    if "decay" in names and not closure.has_decay:
        raise ValueError(
            f"Argument `free` names decay, which {type(closure).__name__} does not have: take HermiteTower() as "
            "`closure`, or hold decay fixed at 0."
        )


def no_skip(model: Model, eps: Float[ArrayLike, "..."]) -> bool:
    """Whether a^2 = 1 - decay eps^2 is zero in a layer, where a has no derivative."""
    if not (is_concrete(model.decay) and is_concrete(eps)):
        return False
    return bool(float(model.decay) * np.max(np.asarray(eps, np.float64)) ** 2 > 1 - 1e-6)


def to_coordinates(
    experiment: Experiment, names: Sequence[str], values: Float[Array, " parameters"]
) -> Float[Array, " parameters"]:
    """The coordinates in which fits search: logarithms of positive parameters, others as they are."""
    pairs = zip(said_of(experiment, names), values, strict=True)
    return jnp.stack([jnp.log(value) if said.positive else value for said, value in pairs])


def from_coordinates(
    experiment: Experiment, names: Sequence[str], coordinates: Float[Array, " parameters"]
) -> Float[Array, " parameters"]:
    """Inverse of `to_coordinates`."""
    pairs = zip(said_of(experiment, names), coordinates, strict=True)
    return jnp.stack([jnp.exp(x) if said.positive else x for said, x in pairs])


def coordinate_derivatives(
    experiment: Experiment, names: Sequence[str], values: Float[np.ndarray, " parameters"]
) -> Float[np.ndarray, " parameters"]:
    """Derivative of each parameter by its coordinate."""
    return np.array(
        [value if said.positive else 1.0 for said, value in zip(said_of(experiment, names), values, strict=True)]
    )


def typical_scales(experiment: Experiment, names: Sequence[str]) -> Float[np.ndarray, " parameters"]:
    """The scale of each parameter, in its own units: see `fields.Parameter`."""
    values = np.abs(np.asarray(get_parameters(experiment, names), np.float64))
    positive = np.array([said.positive for said in said_of(experiment, names)])
    scales = np.where(positive, values, np.maximum(values, np.asarray(_units(experiment, tuple(names)))))
    return np.where(scales > 0, scales, 1.0)


@eqx.filter_jit
def _units(experiment, names):
    known, along = places(experiment), experiment.model.kernels_along(experiment.K0_scale * pack(experiment.K0))
    held = [known[name] for name in names]
    units = [place.said.unit(place.module, along[place.part or 0]) for place in held]
    return jnp.stack([jnp.asarray(unit, dtype=experiment.K0.dtype) for unit in units])
