"""Statistics of finite-width residual networks at initialisation: theory to order 1/n, ensembles, gradients."""

from .activations import (
    GELU,
    Activation,
    Erf,
    LeakyReLU,
    Linear,
    Polynomial,
    ReLU,
    Scaled,
    SiLU,
    Sin,
    Smooth,
    Softplus,
    Tanh,
)
from .closures import Closure, GOnly, HermiteTower, SigmaKernel
from .model import Model, input_kernel
from .quadrature import expect
from .trajectory import Solution, solve

__all__ = [
    "GELU",
    "Activation",
    "Closure",
    "Erf",
    "GOnly",
    "HermiteTower",
    "LeakyReLU",
    "Linear",
    "Model",
    "Polynomial",
    "ReLU",
    "Scaled",
    "SiLU",
    "SigmaKernel",
    "Sin",
    "Smooth",
    "Softplus",
    "Solution",
    "Tanh",
    "expect",
    "input_kernel",
    "solve",
]
