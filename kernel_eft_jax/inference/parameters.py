r"""What an experiment is, and its parameters by name: the leaves of its tree.

A block of one matrix has `C_W`, `C_b` and `activation.slope`, other blocks `branch[1].C_W`, `branch[0].slope`, by the place of a part in the
branch; all have `decay`, `width`, `K0_scale` and `eps`. Variances of weights, eps, width and K0_scale are greater than zero and move in
their logarithm; variances of biases, which may be zero, decay and the parameters of activations move as they are.
"""

from collections.abc import Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..checks import check_kernel, check_layers, check_positive, is_concrete
from ..depths import check_eps
from ..maps import Dense
from ..model import Model
from ..pairs import pack, unpack

Place = tuple[int, int | None]
Tree = TypeVar("Tree", "Experiment", Model)


class Experiment(eqx.Module):
    """Networks of one width, observed after some of their layers: what decides the law of the observed kernels G.

    All but `layers` are array leaves, free to be fitted, but for an `eps` of each layer: a common factor of them moves the law as C_W, C_b
    and decay together do, so free those.

    Args:
        model: The block.
        K0: Times `K0_scale`, the kernel of the pre-activations at depth zero.
        width: Neurons of the stream, n.
        layers: The observed layers, in increasing order, counted from depth zero.
        eps: The step of a layer, one number or one for each layer up to the last observed one.
        K0_scale: A factor of the input kernel, for inputs of unknown scale.

    Raises:
        ValueError: For a kernel that is none, for layers not in increasing order, for width, eps or K0_scale that are not positive, and
            for decay eps^2 > 1.
    """

    model: Model
    K0: Float[Array, "N N"]
    width: Float[Array, ""]
    eps: Float[Array, "..."]
    K0_scale: Float[Array, ""]
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
        if not isinstance(model, Model):
            raise ValueError(f"Argument `model` must be a Model, but is {model!r}.")
        for name, value in (("width", width), ("K0_scale", K0_scale)):
            check_positive(value, name)
        self.layers = check_layers(layers)
        if self.layers[-1] == 0:
            raise ValueError(
                "Argument `layers` must name a layer behind the input, layer 0, which no parameter of the model moves."
            )
        self.model = model
        self.K0 = check_kernel(K0)
        eps = check_eps(eps, model.decay, self.layers[-1])
        self.width, self.eps, self.K0_scale = (jnp.asarray(x, dtype=self.K0.dtype) for x in (width, eps, K0_scale))


def places(tree: Experiment | Model) -> dict[str, Place]:
    """Where each parameter is: the number of its leaf in the tree, and of one entry where the leaf has several."""
    model = tree.model if isinstance(tree, Experiment) else tree
    found: dict[str, Place] = {}
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        name = jax.tree_util.keystr(path).removeprefix(".model").removeprefix(".")
        if not eqx.is_inexact_array(leaf) or name == "K0" or (name == "eps" and leaf.ndim):
            continue
        if hasattr(model, "activation"):  # one matrix
            name = name.replace("branch[0]", "activation").replace("branch[1].", "")
        found |= {name: (i, None)} if leaf.ndim == 0 else {f"{name}[{j}]": (i, j) for j in range(leaf.size)}
    return found


def parameter_names(experiment: Experiment) -> list[str]:
    """The names of all parameters that can be free, without the input kernel's entries."""
    return list(places(experiment))


def get_parameters(tree: Experiment | Model, names: Sequence[str]) -> Float[Array, " parameters"]:
    """The values of the named parameters, in the precision of an experiment's kernel or of a model's decay."""
    dtype = tree.K0.dtype if isinstance(tree, Experiment) else tree.decay.dtype
    leaves, known = jax.tree.leaves(tree), places(tree)
    found = (known[name] for name in names)
    return jnp.stack([(leaves[i] if j is None else leaves[i].reshape(-1)[j]).astype(dtype) for i, j in found])


def set_parameters(tree: Tree, names: Sequence[str], values: Float[Array, " parameters"]) -> Tree:
    """The tree with the named parameters at new values, differentiable in them."""
    leaves, structure = jax.tree.flatten(tree)
    known = places(tree)
    for name, value in zip(names, values, strict=True):
        i, j = known[name]
        value = value.astype(leaves[i].dtype)
        leaves[i] = value if j is None else leaves[i].reshape(-1).at[j].set(value).reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves)


def is_positive(name: str) -> bool:
    """Whether a parameter is greater than zero and moves in its logarithm."""
    return name in ("eps", "width", "K0_scale") or name.split(".")[-1] == "C_W"


def is_bounded(name: str) -> bool:
    """Whether a parameter may be zero but not less: the variance of biases."""
    return name.split(".")[-1] == "C_b"


def check_names(experiment: Experiment, free: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, if they are different parameters of this experiment with values that can move."""
    known = parameter_names(experiment)
    names = (free,) if isinstance(free, str) else tuple(free)
    unknown = [name for name in names if name not in known]
    if "eps" in unknown and experiment.eps.ndim:
        raise ValueError(
            "Argument `free` names eps, of which the experiment has one for each layer. A common factor of them moves the law as C_W, C_b and "
            "decay together do: free those, or give the experiment one number."
        )
    if not names or unknown or len(set(names)) < len(names):
        raise ValueError(f"Argument `free` must name different parameters among {known}, but is {names}.")
    for name, value in zip(names, np.asarray(get_parameters(experiment, names)), strict=True):
        if is_positive(name) and is_concrete(value) and not value > 0:
            raise ValueError(
                f"Parameter `{name}` is free and must start from a value greater than zero, but is {value}."
            )
    moves_skip = [name for name in ("decay", "eps") if name in names]
    if moves_skip and no_skip(experiment.model, experiment.eps):
        raise ValueError(
            f"Argument `free` names {moves_skip[0]}, but decay eps^2 is 1: there is no skip, and the law has no derivative by it. Start from a "
            f"decay below 1 / eps^2, or hold {moves_skip[0]} fixed."
        )
    return names


def no_skip(model: Model, eps: Float[ArrayLike, "..."]) -> bool:
    """Whether a^2 = 1 - decay eps^2 is zero in a layer, where a has no derivative."""
    if not (is_concrete(model.decay) and is_concrete(eps)):
        return False
    return bool(float(model.decay) * np.max(np.asarray(eps, np.float64)) ** 2 > 1 - 1e-6)


def to_coordinates(names: tuple[str, ...], values: Float[Array, " parameters"]) -> Float[Array, " parameters"]:
    """Logarithms of positive parameters, others as they are: the coordinates in which fits move."""
    return jnp.stack([jnp.log(v) if is_positive(name) else v for name, v in zip(names, values, strict=True)])


def from_coordinates(names: tuple[str, ...], values: Float[Array, " parameters"]) -> Float[Array, " parameters"]:
    """Inverse of `to_coordinates`."""
    return jnp.stack([jnp.exp(v) if is_positive(name) else v for name, v in zip(names, values, strict=True)])


def coordinate_slopes(
    names: tuple[str, ...], values: Float[np.ndarray, " parameters"]
) -> Float[np.ndarray, " parameters"]:
    """Derivative of each parameter by its coordinate."""
    return np.array([value if is_positive(name) else 1.0 for name, value in zip(names, values, strict=True)])


def typical_scales(experiment: Experiment, names: tuple[str, ...]) -> Float[np.ndarray, " parameters"]:
    """What a change of order one of each parameter is: of positive ones their value.

    Of the variance of biases the variance of what they are added to, of decay that which balances growth, Q / K0; parameters of
    activations, such as a slope of 0.01, have one for their unit if they are smaller.
    """
    model, k = experiment.model, experiment.K0_scale * pack(experiment.K0)
    one_matrix = hasattr(model, "activation")
    least, x = {}, model.read.moments(k)
    denses = (i for i, part in enumerate(model.branch) if isinstance(part, Dense))
    for kernel_map in model.maps:
        x = kernel_map.value(x)
        if isinstance(kernel_map, Dense):
            i = next(denses)
            least["C_b" if one_matrix else f"branch[{i}].C_b"] = _mean_variance(x)
    least["decay"] = _mean_variance(x) / _mean_variance(k)
    values = np.abs(np.asarray(get_parameters(experiment, names), np.float64))
    return np.array(
        [
            max(value, 0.0 if is_positive(name) else least.get(name, 1.0)) or 1.0
            for name, value in zip(names, values, strict=True)
        ]
    )


def _mean_variance(k):
    return float(jnp.mean(jnp.diagonal(unpack(k))))
