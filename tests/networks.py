r"""Networks of any branch in NumPy, with real weights: the definition of the model, and nothing of the package.

$$\phi' = \sqrt{1 - c \epsilon^2}\, \phi + \epsilon f(\phi)$$

Arrays are (networks, inputs, neurons). A branch is a list of functions of such arrays and of matrices, `Matrix`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import erf, expit

ONE = np.array([[2.0]])
TWO = np.array([[2.0, 0.6], [0.6, 1.2]])
THREE = np.array([[2.0, 0.6, -0.3], [0.6, 1.2, 0.4], [-0.3, 0.4, 0.8]])
STEPS = [0.3, 0.8, 0.5, 0.6]


class Matrix(NamedTuple):
    """Weights N(0, C_W / features) and biases N(0, C_b), new in every layer."""

    C_W: float
    C_b: float
    outputs: int


def rms_norm(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True))


def layer_norm(x):
    return rms_norm(x - x.mean(axis=-1, keepdims=True))


def relu(x):
    return np.maximum(x, 0)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def silu(x):
    return x * expit(x)


def gated(s: Callable) -> Callable:
    """Outputs u and w side by side to w s(u)."""

    def glu(x):
        u, w = np.split(x, 2, axis=-1)
        return w * s(u)

    return glu


def apply_branch(branch: Sequence, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """f(x) with weights of its own for every network."""
    for part in branch:
        if isinstance(part, Matrix):
            W = np.sqrt(part.C_W / x.shape[-1]) * rng.standard_normal((len(x), part.outputs, x.shape[-1]))
            b = np.sqrt(part.C_b) * rng.standard_normal((len(x), 1, part.outputs))
            x = x @ W.swapaxes(1, 2) + b
        else:
            x = part(x)
    return x


def sample_networks(branch, K0, width, steps, networks, seed, decay=0.0) -> np.ndarray:
    """phi behind the last layer, one layer for each of the `steps` eps, from inputs N(0, K0)."""
    rng = np.random.default_rng(seed)
    phi = np.linalg.cholesky(K0) @ rng.standard_normal((networks, len(K0), width))
    for eps in steps:
        phi = np.sqrt(1 - decay * eps**2) * phi + eps * apply_branch(branch, phi, rng)
    return phi


def block_law(rng, s, C_W, C_b, K0, width, layers, eps, networks):
    """Kernels (networks, layers, N, N) of networks of one matrix with activation s, by the exact law of a layer: given
    phi, increments are N(0, C_b + C_W S)."""
    inputs = len(K0)
    phi = np.linalg.cholesky(K0) @ rng.standard_normal((networks, inputs, width))
    saved = []
    for layer in range(1, layers[-1] + 1):
        S = s(phi) @ s(phi).swapaxes(1, 2) / width
        phi = phi + eps * np.linalg.cholesky(C_b + C_W * S) @ rng.standard_normal(phi.shape)
        if layer in layers:
            saved.append(phi @ phi.swapaxes(1, 2) / width)
    return np.stack(saved, axis=1)


def kernels(phi: np.ndarray) -> np.ndarray:
    """G of every network."""
    return phi @ phi.swapaxes(1, 2) / phi.shape[-1]


def last(est, name):
    """A quantity at the last depth, and its standard error."""
    return np.asarray(getattr(est, name))[-1], np.asarray(getattr(est.stderr, name))[-1]


def within(value, error, expected, errors=4.5, slack=0.0):
    assert (np.abs(value - expected) <= errors * error + slack).all(), (value, expected, error)
