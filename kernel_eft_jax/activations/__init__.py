"""Activations and the Gaussian moments that each of them knows: base, closed forms, summed, piecewise."""

from .base import Activation as Activation
from .base import Expansion as Expansion
from .closed import GELU as GELU
from .closed import Erf as Erf
from .closed import Linear as Linear
from .closed import Sin as Sin
from .pair import PairActivation as PairActivation
from .piecewise import CELU as CELU
from .piecewise import ELU as ELU
from .piecewise import SELU as SELU
from .piecewise import HardSwish as HardSwish
from .piecewise import HardTanh as HardTanh
from .piecewise import Piecewise as Piecewise
from .piecewise import ReLU6 as ReLU6
from .piecewise import Softsign as Softsign
from .ramps import Abs as Abs
from .ramps import LeakyReLU as LeakyReLU
from .ramps import PReLU as PReLU
from .ramps import ReLU as ReLU
from .scaled import Scaled as Scaled
from .smooth import Mish as Mish
from .smooth import Polynomial as Polynomial
from .smooth import SiLU as SiLU
from .smooth import Smooth as Smooth
from .smooth import Softplus as Softplus
from .smooth import Tanh as Tanh
