r"""Blocks and steps in the conventions of papers and libraries: the C_W and C_b of an initialiser, and the eps of a
depth.

$$\phi' = \sqrt{1 - c \epsilon^2}\, \phi + \epsilon f(\phi), \qquad
  \mathrm{Var}\, W_{ij} = C_W / \text{fan-in}, \quad \mathrm{Var}\, b_i = C_b$$

so $C_W = \text{fan-in} \cdot \mathrm{Var}\, W_{ij}$ for each matrix of the branch f. Only variances are matched.
Weights that are not Gaussian (uniform, truncated) have the same K0 and V4; their fourth cumulant moves K1 by a share of
order eps^2 (see the documentation, "Conventions"). Rules for eps give one number, or one for each layer.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float

from .activations import GELU, Activation, ReLU, SiLU
from .activations.base import array
from .checks import check_count, check_positive, is_concrete
from .kernel_maps import GLU, Dense, RMSNorm
from .model import Model


def from_sigmas(activation: Activation, sigma_w: Float[ArrayLike, ""], sigma_b: Float[ArrayLike, ""] = 0.0) -> Model:
    r"""Standard deviations, as the literature on signal propagation and the NTK parametrisation give them.

    $$C_W = \sigma_w^2, \qquad C_b = \sigma_b^2$$

    Raises ValueError for a standard deviation that is negative or not finite. Do not use it for variances: those are
    what `Model` takes.
    """
    return _model_of_one_matrix(activation, _deviation("sigma_w", sigma_w) ** 2, _deviation("sigma_b", sigma_b) ** 2)


def pytorch_linear(activation: Activation, *, width: int) -> Model:
    r"""The default of `torch.nn.Linear(width, width)` and `equinox.nn.Linear`: weights and biases uniform in
    $\pm 1 / \sqrt{n}$.

    $$C_W = \tfrac13, \qquad C_b = \frac{1}{3 n}$$

    The bias variance depends on the width, so that a model belongs to one width. Raises ValueError for a width that is
    no whole number. Do not use it for layers without bias, whose model is `Model(activation, C_W=1 / 3)` at every
    width.
    """
    width = check_count(width, "width")
    return _model_of_one_matrix(activation, 1 / 3, 1 / (3 * width))


def lecun(activation: Activation) -> Model:
    r"""LeCun's variance, normal or uniform, biases zero: the default of Flax's `Dense`, `lecun_normal` in JAX.

    $$C_W = 1, \qquad C_b = 0$$
    """
    return _model_of_one_matrix(activation, 1.0)


def he(activation: Activation) -> Model:
    r"""He's variance, normal or uniform, biases zero: `he_normal` in JAX, `kaiming_normal_` in PyTorch with its
    defaults.

    $$C_W = 2, \qquad C_b = 0$$

    Do not use it for a gain of your own g, which is `Model(activation, C_W=g**2)`.
    """
    return _model_of_one_matrix(activation, 2.0)


def glorot(activation: Activation) -> Model:
    r"""Glorot's variance 2 / (fan_in + fan_out), normal or uniform, biases zero: `glorot_normal` in JAX,
    `xavier_normal_` in PyTorch.

    $$C_W = 1, \qquad C_b = 0$$

    since a residual layer has as many outputs as inputs: here this is the same as `lecun`.
    """
    return _model_of_one_matrix(activation, 1.0)


def plain(activation: Activation, C_W: Float[ArrayLike, ""], C_b: Float[ArrayLike, ""] = 0.0) -> Model:
    r"""The feed-forward network without skips, $\phi' = W s(\phi) + b$ (Poole et al. 2016, arXiv 1606.05340): decay 1,
    to be run with eps = 1.

    At its critical point variances do not change: C_W = 2 for ReLU, C_W = 1 for tanh and vanishing variance. Do not use
    it with another eps: a part of the stream would remain.
    """
    return _model_of_one_matrix(activation, C_W, C_b, decay=1.0)


def resnet_v2(activation: Activation | None = None, C_W: Float[ArrayLike, ""] = 2.0) -> Model:
    r"""Full pre-activation with two matrices, $f = W_2 s(W_1 s(\phi))$ (He et al. 2016, arXiv 1603.05027), ReLU and
    He's variance by default.

    Both matrices have the variance C_W / n and no biases. The original has batch normalisation in front of each
    activation. It is left out here, because it couples the inputs of a batch and is no map of the kernel of two of
    them. The eps of the original is 1.
    """
    activation = ReLU() if activation is None else activation
    return Model([activation, Dense(C_W), activation, Dense(C_W)])


def transformer_mlp(
    activation: Activation | None = None, C_W: tuple[float, float] = (1.0, 1.0), *, ratio: float = 4
) -> Model:
    r"""The MLP block of a pre-norm transformer, $f = W_2 s(W_1 \mathrm{norm}(\phi))$ with `ratio` n hidden neurons and
    no biases.

    GELU and four times the width are those of GPT-2 (Radford et al. 2019). `C_W` are fan-in times the variances of the
    weights W_1 and W_2, LeCun's by default; `gpt2_mlp` has those of GPT-2. LayerNorm and RMSNorm are the same at order
    1/n. Attention blocks mix inputs and are not described.
    """
    first, second = _two_variances(C_W)
    return Model([RMSNorm(), Dense(first, ratio=ratio), GELU() if activation is None else activation, Dense(second)])


def gpt2_mlp(width: int) -> Model:
    r"""`transformer_mlp` with the weights of GPT-2, normal with standard deviation 0.02 at every width, biases zero.

    $$C_{W,1} = 0.02^2\, n, \qquad C_{W,2} = 0.02^2 \cdot 4 n$$

    so that a model belongs to one width. GPT-2 also divides the weights that end a block by the square root of the
    number of blocks, two in each layer of the transformer (Radford et al. 2019, section 2.3): `gpt2_eps` is this
    factor.
    """
    width = check_count(width, "width")
    return transformer_mlp(C_W=(0.02**2 * width, 0.02**2 * 4 * width))


def llama_mlp(C_W: tuple[float, float] = (1.0, 1.0), *, ratio: float = 8 / 3) -> Model:
    r"""The gated MLP block of Llama, $f = W_2 (W_3 x * \mathrm{SiLU}(W_1 x))$, $x = \mathrm{norm}(\phi)$ (Touvron et
    al. 2023, arXiv 2302.13971).

    SwiGLU of Shazeer (2020, arXiv 2002.05202), RMSNorm, no biases. `C_W` are fan-in times the variances of W_1 and W_3,
    which are equal, and of W_2. The hidden layer has `ratio` n neurons, two thirds of four times n in the paper, so
    that n must be divisible by three; Llama 7B rounds to 11008 of 4096, ratio=2.6875.
    """
    first, second = _two_variances(C_W)
    return Model([RMSNorm(), Dense(first, ratio=ratio), GLU(SiLU()), Dense(second)])


def eps_of_depth(T: float, *, depth: int) -> float:
    r"""The step at which a network of `depth` layers ends at depth time T.

    $$\epsilon = \sqrt{T / L}$$

    A branch multiplied by $\alpha / \sqrt{L}$ has $T = \alpha^2$ at every depth. Raises ValueError for a T that is not
    greater than zero. Do not use it for branches multiplied by 1 / L: their eps is 1 / L, and T = 1 / L vanishes with
    depth.
    """
    check_positive(T, "T")
    depth = check_count(depth, "depth")
    return math.sqrt(T / depth)


def depth_mup_eps(depth: int, multiplier: float = 1.0) -> float:
    r"""Depth-muP: branches multiplied by $a / \sqrt{L}$, L the number of blocks (Yang et al. 2023, arXiv 2310.02244).

    $$\epsilon = a / \sqrt{L}, \qquad T = a^2$$
    """
    check_positive(multiplier, "multiplier")
    return eps_of_depth(multiplier**2, depth=depth)


def gpt2_eps(transformer_layers: int) -> float:
    r"""GPT-2: the weights that end a block are divided by the square root of the number of blocks, two in each layer
    (Radford et al. 2019).

    $$\epsilon = 1 / \sqrt{2 L}$$

    so that 2 L blocks end at T = 1, of which the L MLP blocks alone contribute T = 1/2.
    """
    transformer_layers = check_count(transformer_layers, "transformer_layers")
    return eps_of_depth(1.0, depth=2 * transformer_layers)


def ln_scaling_eps(depth: int) -> Float[np.ndarray, " depth"]:
    r"""LayerNorm scaling: the output of the norm of layer l is divided by $\sqrt l$ (Sun et al. 2025, arXiv
    2502.05795).

    $$\epsilon_l = 1 / \sqrt{l}, \quad l = 1 \ldots L, \qquad T = \sum_l 1 / l \approx \ln L + 0.577$$

    Exact if the branch behind the norm is homogeneous of degree one: ReLU and linear units without biases. A gate is a
    product of two factors, both of which are divided; and a smooth activation becomes more linear with depth. For such
    branches give each layer a model of its own.
    """
    depth = check_count(depth, "depth")
    return 1 / np.sqrt(np.arange(1, depth + 1))


def unit_skip_eps(tau: Float[ArrayLike, "*layers"]) -> Float[np.ndarray, "*layers"]:
    r"""Skips that keep the variance, as in u-muP (Blake et al. 2024, arXiv 2407.17465), for a model with decay = 1.

    $$\phi' = \frac{1}{\sqrt{1 + \tau^2}} \phi + \frac{\tau}{\sqrt{1 + \tau^2}} f(\phi), \qquad
      \epsilon = \frac{\tau}{\sqrt{1 + \tau^2}}, \quad a^2 = 1 - \epsilon^2$$

    `tau` is one number or one for each layer. Raises ValueError where it is not greater than zero.
    """
    tau = np.asarray(tau, np.float64)
    if not (np.isfinite(tau).all() and (tau > 0).all()):
        raise ValueError(f"Argument `tau` must be greater than zero and finite, but is {tau}.")
    return tau / np.sqrt(1 + tau**2)


def umup_eps(depth: int, multiplier: float = 1.0) -> Float[np.ndarray, " depth"]:
    r"""The steps of u-muP's residual rule for `depth` blocks of equal share (Blake et al. 2024, appendix G): for a
    model with decay = 1.

    $$\tau_l^2 = \frac{\alpha^2}{L / 2 + l\, \alpha^2}, \quad l = 0 \ldots L - 1, \qquad
      \epsilon_l = \frac{\tau_l}{\sqrt{1 + \tau_l^2}}$$

    All blocks then contribute equally to the last layer. Half of them together contribute $\alpha^2$ times as much as
    the input, $\alpha$ the `multiplier`.
    """
    depth = check_count(depth, "depth")
    check_positive(multiplier, "multiplier")
    return unit_skip_eps(multiplier / np.sqrt(depth / 2 + np.arange(depth) * multiplier**2))


def _model_of_one_matrix(activation: Any, C_W: Any, C_b: Any = 0.0, decay: float = 0.0) -> Model:
    if not isinstance(activation, Activation):
        raise ValueError(
            "Argument `activation` must be an activation object such as Tanh(), or Smooth(fn) for a function of "
            f"yours, but is {activation!r}."
        )
    return Model(activation, C_W, C_b, decay=decay)


def _two_variances(C_W):
    if np.ndim(C_W) != 1 or len(C_W) != 2:
        raise ValueError(
            f"Argument `C_W` must be two variances, of the first and of the last matrix, but is {C_W!r:.200}."
        )
    return C_W


def _deviation(name, value):
    """A standard deviation as an array, whose square does not wrap as that of a small integer does."""
    if is_concrete(value) and not (np.ndim(value) == 0 and np.isfinite(value) and value >= 0):
        raise ValueError(
            f"Argument `{name}` must be a standard deviation, one finite number not below zero, but is {value}. "
            f"If it is a variance, pass it to Model instead."
        )
    return array(name)(value)
