r"""Models in the conventions of other libraries: what C_W and C_b an initialiser means, and what eps a depth.

$$\phi' = \phi + \epsilon (W s(\phi) + b), \qquad \mathrm{Var}\, W_{ij} = C_W / n, \quad \mathrm{Var}\, b_i = C_b$$

so $C_W = n\, \mathrm{Var}\, W_{ij}$ with n the number of neurons that feed a layer. Only variances are matched. Weights that are not
Gaussian (uniform, truncated) have the same K0 and V4; their fourth cumulant moves K1 by a share of order eps^2 (see the
documentation, "Conventions").
"""

import math

import numpy as np
from jaxtyping import ArrayLike, Float

from .activations import Activation
from .checks import check_count, check_positive, is_concrete
from .model import Model


def from_sigmas(activation: Activation, sigma_w: Float[ArrayLike, ""], sigma_b: Float[ArrayLike, ""] = 0.0) -> Model:
    r"""Standard deviations, as the literature on signal propagation and the NTK parametrisation give them.

    $$C_W = \sigma_w^2, \qquad C_b = \sigma_b^2$$

    Raises ValueError for a standard deviation that is negative or not finite. Do not use it for variances: those are what
    `Model` takes.
    """
    _check_deviation(sigma_w, "sigma_w")
    _check_deviation(sigma_b, "sigma_b")
    return Model(activation, sigma_w**2, sigma_b**2)


def pytorch_linear(activation: Activation, width: int) -> Model:
    r"""The default of `torch.nn.Linear(width, width)` and `equinox.nn.Linear`: uniform in $\pm 1 / \sqrt{n}$, biases too.

    $$C_W = \tfrac13, \qquad C_b = \frac{1}{3 n}$$

    The bias variance depends on the width, so a model belongs to one width. Raises ValueError for a width that is no whole
    number. Do not use it for layers without bias, whose model is `Model(activation, C_W=1 / 3)` at every width.
    """
    check_count(width, "width")
    return Model(activation, 1 / 3, 1 / (3 * width))


def lecun(activation: Activation) -> Model:
    r"""LeCun's variance, normal or uniform, biases zero: the default of Flax's `Dense`, `lecun_normal` in JAX.

    $$C_W = 1, \qquad C_b = 0$$
    """
    return Model(activation, 1.0)


def he(activation: Activation) -> Model:
    r"""He's variance, normal or uniform, biases zero: `he_normal` in JAX, `kaiming_normal_` in PyTorch with its defaults.

    $$C_W = 2, \qquad C_b = 0$$

    Do not use it for a gain of your own g, which is `Model(activation, C_W=g**2)`.
    """
    return Model(activation, 2.0)


def glorot(activation: Activation) -> Model:
    r"""Glorot's variance 2 / (fan_in + fan_out), normal or uniform, biases zero: `glorot_normal` in JAX, `xavier_normal_` in PyTorch.

    $$C_W = 1, \qquad C_b = 0$$

    since a residual layer has as many neurons going out as coming in: the same as `lecun` here.
    """
    return Model(activation, 1.0)


def eps_of_depth(T: float, depth: int) -> float:
    r"""The step at which a network of `depth` layers ends at depth time T.

    $$\epsilon = \sqrt{T / L}$$

    A branch multiplied by $\alpha / \sqrt{L}$ has $T = \alpha^2$ at every depth. Raises ValueError for a T that is not greater than
    zero. Do not use it for branches multiplied by 1 / L: their eps is 1 / L, and T = 1 / L vanishes with depth.
    """
    check_positive(T, "T")
    check_count(depth, "depth")
    return math.sqrt(T / depth)


def _check_deviation(value, name):
    if is_concrete(value) and not (np.ndim(value) == 0 and np.isfinite(value) and value >= 0):
        raise ValueError(
            f"Argument `{name}` must be a standard deviation, one finite number not below zero, but is {value}. "
            f"If it is a variance, pass it to Model instead."
        )
