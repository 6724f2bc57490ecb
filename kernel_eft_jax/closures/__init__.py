"""What is carried along the depth of a network, and how it moves: one closure a file."""

from .base import Closure as Closure
from .base import Moments as Moments
from .g_only import GOnly as GOnly
from .hermite_tower import HermiteTower as HermiteTower
from .sigma_kernel import SigmaKernel as SigmaKernel
