r"""Whole stacks of blocks as people initialise them: model, input kernel, width, depth and steps, ready for every
function of the package.

Each recipe gives the arguments that `coordinate_check`, `estimate`, `sample_kernels` and `validity_window` share:
`keft.coordinate_check(**keft.recipes.gpt2(width=768, depth=12))`. A stack is a dictionary, so that one entry can be
replaced: `stack | {"K0": my_kernel}`. Attention blocks, batch normalisation and training are left out: the stack of a
transformer holds its feed-forward blocks alone.
"""

from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float

from . import conventions
from .activations import Activation, ReLU, SiLU
from .checks import check_count
from .model import Model


class Stack(TypedDict):
    """The arguments that say which networks are meant."""

    model: Model
    K0: Float[np.ndarray, "N N"]
    width: int
    depth: int
    eps: float | Float[np.ndarray, " depth"]


def gpt2(*, width: int, depth: int) -> Stack:
    r"""The feed-forward blocks of GPT-2 with `depth` transformer layers (Radford et al. 2019).

    Weights of standard deviation 0.02, those that end a block divided by $\sqrt{2 L}$ (`conventions.gpt2_mlp`,
    `gpt2_eps`). The stream starts as embeddings of tokens with standard deviation 0.02 and of positions with 0.01: two
    different tokens at one position. Their mean square is so small that the 1e-5 which LayerNorm adds to it in GPT-2,
    and which is left out here, is 2 per cent: with it the mean square is 2 per cent smaller behind the first block, and
    0.2 per cent smaller behind the twelfth (width 768, depth 12).
    """
    depth = check_count(depth, "depth")
    K0 = _two_inputs(0.02**2 + 0.01**2, 0.01**2)
    return _stack(conventions.gpt2_mlp(width), K0, width, depth, conventions.gpt2_eps(depth))


def pre_norm(*, width: int, depth: int) -> Stack:
    r"""The feed-forward blocks of a pre-norm transformer whose residual branches are not scaled: LeCun's variances,
    $\epsilon = 1$.

    Each block adds about as much to the stream as the one before, so that its mean square grows linearly.
    """
    return _stack(conventions.transformer_mlp(), _two_inputs(), width, depth, 1.0)


def depth_mup(*, width: int, depth: int, multiplier: float = 1.0) -> Stack:
    r"""The same with depth-muP's steps, $\epsilon = a / \sqrt{L}$ (Yang et al. 2023, arXiv 2310.02244): the growth does
    not depend on depth."""
    depth = check_count(depth, "depth")
    return _stack(
        conventions.transformer_mlp(), _two_inputs(), width, depth, conventions.depth_mup_eps(depth, multiplier)
    )


def ln_scaling(*, width: int, depth: int) -> Stack:
    r"""The same with LayerNorm scaling, $\epsilon_l = 1 / \sqrt l$ (Sun et al. 2025, arXiv 2502.05795): the stream
    grows like ln L.

    The hidden layer has ReLU and He's variance: for ReLU a division of the norm's output is a division of the branch.
    """
    model = conventions.transformer_mlp(ReLU(), (1.0, 2.0))
    return _stack(model, _two_inputs(), width, depth, conventions.ln_scaling_eps(depth))


def umup(*, width: int, depth: int, multiplier: float = 1.0) -> Stack:
    r"""The gated feed-forward blocks of u-muP with its residual rule (Blake et al. 2024, arXiv 2407.17465): the stream
    keeps its size.

    Every map has unit variance (the last matrix divides by $E[s(x)^2]$ of the gate), there are three times n hidden
    neurons, and the skips have $a^2 + \epsilon^2 = 1$ with the steps of `conventions.umup_eps`.
    """
    squared = float(Model(SiLU(), 1.0).Q(np.ones((1, 1)))[0, 0])
    branch = conventions.llama_mlp((1.0, 1 / squared), ratio=3).branch
    return _stack(Model(branch, decay=1.0), _two_inputs(), width, depth, conventions.umup_eps(depth, multiplier))


def resnet_v2(*, width: int, depth: int) -> Stack:
    r"""Blocks of ResNet v2 without batch normalisation, ReLU and He's variance (He et al. 2016, arXiv 1603.05027):
    $\epsilon = 1$.

    The branch is as large as the stream, so that the mean square doubles with every block. The normalisation that is
    left out would prevent that.
    """
    return _stack(conventions.resnet_v2(), _two_inputs(), width, depth, 1.0)


def plain(*, width: int, depth: int, activation: Activation | None = None, C_W: float = 2.0) -> Stack:
    r"""A network without skips, ReLU at its critical point C_W = 2 by default (Poole et al. 2016, arXiv 1606.05340)."""
    model = conventions.plain(ReLU() if activation is None else activation, C_W)
    return _stack(model, _two_inputs(), width, depth, 1.0)


def _two_inputs(variance=1.0, covariance=0.0):
    """The kernel of two inputs of equal variance; their covariance is that of the part of their embeddings that both
    share."""
    return np.array([[variance, covariance], [covariance, variance]])


def _stack(model: Model, K0: Any, width: int, depth: int, eps: Any) -> Stack:
    return Stack(model=model, K0=K0, width=check_count(width, "width"), depth=check_count(depth, "depth"), eps=eps)
