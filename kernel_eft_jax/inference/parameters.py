r"""What an experiment is, and its parameters by name: `C_W`, `C_b`, `eps`, `width`, `K0_scale`, `activation.slope`, ...

Positive parameters are moved in their logarithm; C_b, which may be zero, and activation parameters as they are.
"""

import re
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..activations import Activation
from ..checks import check_count, check_kernel, check_positive, is_concrete
from ..model import Model

POSITIVE = ("C_W", "eps", "width", "K0_scale")
PLACES = {
    "C_W": lambda e: e.model.C_W,
    "C_b": lambda e: e.model.C_b,
    "eps": lambda e: e.eps,
    "width": lambda e: e.width,
    "K0_scale": lambda e: e.K0_scale,
}


class Experiment(eqx.Module):
    """Networks of one width, observed after some of their layers: what decides the law of the observed kernels G.

    `K0_scale` times `K0` is the kernel of the pre-activations at depth zero, of which `layers` counts from; `width` is n, `eps`
    the step of a layer. All but `layers` are array leaves, free to be fitted. Raises ValueError for a kernel that is none,
    for layers not in increasing order, and for width, eps or K0_scale that are not positive.
    """

    model: Model
    K0: Float[Array, "N N"]
    width: Float[Array, ""]
    eps: Float[Array, ""]
    K0_scale: Float[Array, ""]
    layers: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        model: Model,
        K0: Float[ArrayLike, "N N"],
        *,
        width: Float[ArrayLike, ""],
        layers: Sequence[int] | np.ndarray,
        eps: Float[ArrayLike, ""] = 1.0,
        K0_scale: Float[ArrayLike, ""] = 1.0,
    ):
        if not isinstance(model, Model):
            raise ValueError(f"Argument `model` must be a Model, but is {model!r}.")
        for name, value in (("width", width), ("eps", eps), ("K0_scale", K0_scale)):
            check_positive(value, name)
        steps = [*np.atleast_1d(np.asarray(layers)).tolist()]
        for layer in steps:
            check_count(layer, "layers", 0)
        if steps != sorted(set(steps)) or not steps:
            raise ValueError(f"Argument `layers` must count layers in increasing order, but is {layers}.")
        self.model = model
        self.K0 = check_kernel(K0)
        self.width, self.eps, self.K0_scale = (jnp.asarray(x, dtype=self.K0.dtype) for x in (width, eps, K0_scale))
        self.layers = tuple(steps)


def parameter_names(experiment: Experiment) -> list[str]:
    """The names of all parameters that can be free, without the input kernel's entries."""
    return [*PLACES, *activation_names(experiment.model.activation)]


def activation_names(activation: Activation) -> list[str]:
    """The names of an activation's parameters, entry by entry."""
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(activation):
        if eqx.is_inexact_array(leaf):
            name = "activation" + jax.tree_util.keystr(path)
            names += [name] if leaf.ndim == 0 else [f"{name}[{i}]" for i in range(leaf.size)]
    return names


def get_parameters(experiment: Experiment, names: tuple[str, ...]) -> Float[Array, " parameters"]:
    """The values of the named parameters."""
    dtype = experiment.K0.dtype
    values = []
    for name in names:
        leaf, index = _locate(experiment, name)
        values.append((leaf if index is None else leaf.reshape(-1)[index]).astype(dtype))
    return jnp.stack(values)


def set_parameters(experiment: Experiment, names: tuple[str, ...], values: Float[Array, " parameters"]) -> Experiment:
    """The experiment with the named parameters at new values, differentiable in them."""
    for name, value in zip(names, values, strict=True):
        leaf, index = _locate(experiment, name)
        value = value.astype(leaf.dtype)
        if index is not None:
            value = leaf.reshape(-1).at[index].set(value).reshape(leaf.shape)
        experiment = eqx.tree_at(lambda e, name=name: _locate(e, name)[0], experiment, value)
    return experiment


def check_names(experiment: Experiment, free: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, if they are different parameters of this experiment with values that can move."""
    known = parameter_names(experiment)
    names = (free,) if isinstance(free, str) else tuple(free)
    unknown = [name for name in names if name not in known]
    if not names or unknown or len(set(names)) < len(names):
        raise ValueError(f"Argument `free` must name different parameters among {known}, but is {names}.")
    for name, value in zip(names, np.asarray(get_parameters(experiment, names)), strict=True):
        if name in POSITIVE and is_concrete(value) and not value > 0:
            raise ValueError(
                f"Parameter `{name}` is free and must start from a value greater than zero, but is {value}."
            )
    return names


def to_coordinates(names: tuple[str, ...], values: Float[Array, " parameters"]) -> Float[Array, " parameters"]:
    """Logarithms of positive parameters, others as they are: the coordinates in which fits move."""
    return jnp.stack([jnp.log(v) if name in POSITIVE else v for name, v in zip(names, values, strict=True)])


def from_coordinates(names: tuple[str, ...], values: Float[Array, " parameters"]) -> Float[Array, " parameters"]:
    """Inverse of `to_coordinates`."""
    return jnp.stack([jnp.exp(v) if name in POSITIVE else v for name, v in zip(names, values, strict=True)])


def coordinate_slopes(
    names: tuple[str, ...], values: Float[np.ndarray, " parameters"]
) -> Float[np.ndarray, " parameters"]:
    """Derivative of each parameter by its coordinate."""
    return np.array([value if name in POSITIVE else 1.0 for name, value in zip(names, values, strict=True)])


def typical_scales(experiment: Experiment, names: tuple[str, ...]) -> Float[np.ndarray, " parameters"]:
    """What a change of order one of each parameter is: of positive ones their value, of C_b the variance Q of an increment.

    Parameters of activations, such as a slope of 0.01, have one for their unit if they are smaller.
    """
    Q = float(jnp.mean(jnp.diagonal(experiment.model.Q(experiment.K0_scale * experiment.K0))))
    values = np.abs(np.asarray(get_parameters(experiment, names), np.float64))
    least = {"C_b": Q} | dict.fromkeys(POSITIVE, 0.0)
    return np.array([max(value, least.get(name, 1.0)) or 1.0 for name, value in zip(names, values, strict=True)])


def _locate(experiment, name):
    """The leaf a name stands for, and the index of one entry where the leaf has many."""
    if name in PLACES:
        return PLACES[name](experiment), None
    for path, leaf in jax.tree_util.tree_leaves_with_path(experiment.model.activation):
        whole = "activation" + jax.tree_util.keystr(path)
        entry = re.fullmatch(re.escape(whole) + r"\[(\d+)\]", name)
        if name == whole or entry:
            return leaf, None if entry is None else int(entry[1])
    raise ValueError(f"There is no parameter `{name}`; there are {parameter_names(experiment)}.")
