"""Uses of gradients: sensitivities, fits with intervals, and the design of experiments."""

from .files import fit_record as fit_record
from .files import read_kernels as read_kernels
from .files import sensitivity_arrays as sensitivity_arrays
from .fisher import Information as Information
from .fisher import fisher as fisher
from .fit import Fit as Fit
from .fit import fit as fit
from .parameters import Experiment as Experiment
from .parameters import parameter_names as parameter_names
from .pathwise import PathwiseSensitivity as PathwiseSensitivity
from .pathwise import pathwise_kernels as pathwise_kernels
from .pathwise import pathwise_sensitivity as pathwise_sensitivity
from .sensitivity import Sensitivity as Sensitivity
from .sensitivity import sensitivity as sensitivity
