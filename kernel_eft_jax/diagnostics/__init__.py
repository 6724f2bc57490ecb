"""Where a theory holds: its equations term by term on sampled networks, the depths and widths that it reaches."""

from .comparison import Compared as Compared
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .coordinates import CoordinateCheck as CoordinateCheck
from .coordinates import coordinate_check as coordinate_check
from .equations import CovarianceResidual as CovarianceResidual
from .equations import MeanSource as MeanSource
from .equations import Measured as Measured
from .equations import covariance_residual as covariance_residual
from .equations import driven_K1 as driven_K1
from .equations import kurtosis as kurtosis
from .equations import mean_source as mean_source
from .validity import Reach as Reach
from .validity import Window as Window
from .validity import validity_window as validity_window
from .widths import WidthCheck as WidthCheck
from .widths import width_check as width_check
