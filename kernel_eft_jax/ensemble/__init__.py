"""Ensembles of finite-width networks: samplers, control variates, statistics."""

from .estimate import estimate as estimate
from .estimate import sample_kernels as sample_kernels
from .result import Estimate as Estimate
from .samplers import BlockSampler as BlockSampler
from .samplers import WeightSampler as WeightSampler
