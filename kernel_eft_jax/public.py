"""The public names of the package, in one list; `kernel_eft_jax` loads them when one is first used."""

from . import conventions as conventions
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
from .diagnostics import (
    WidthCheck,
    Window,
    covariance_residual,
    driven_K1,
    kurtosis,
    mean_source,
    validity_window,
    width_check,
)
from .ensemble import BlockSampler, Estimate, WeightSampler, estimate, sample_kernels
from .inference import Experiment, Fit, Information, Sensitivity, fisher, fit, sensitivity
from .maps import GLU, Dense, RMSNorm
from .model import Model, input_kernel
from .network import ResNet, draw_inputs, empirical_kernel
from .quadrature import expect
from .storage import load, save
from .trajectory import Solution, solve

__all__ = [
    "GELU",
    "GLU",
    "Activation",
    "BlockSampler",
    "Closure",
    "Dense",
    "Erf",
    "Estimate",
    "Experiment",
    "Fit",
    "GOnly",
    "HermiteTower",
    "Information",
    "LeakyReLU",
    "Linear",
    "Model",
    "Polynomial",
    "RMSNorm",
    "ReLU",
    "ResNet",
    "Scaled",
    "Sensitivity",
    "SiLU",
    "SigmaKernel",
    "Sin",
    "Smooth",
    "Softplus",
    "Solution",
    "Tanh",
    "WeightSampler",
    "WidthCheck",
    "Window",
    "conventions",
    "covariance_residual",
    "draw_inputs",
    "driven_K1",
    "empirical_kernel",
    "estimate",
    "expect",
    "fisher",
    "fit",
    "input_kernel",
    "kurtosis",
    "load",
    "mean_source",
    "sample_kernels",
    "save",
    "sensitivity",
    "solve",
    "validity_window",
    "width_check",
]
