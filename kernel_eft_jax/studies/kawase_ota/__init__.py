"""The published study (Kawase and Ota 2026, arXiv 2604.15742), repeated: every number beside the published one, with a
verdict.

    study = main_job(networks, key)              the main ensemble, and the theories at the same layers
    main_item(study)                             Figures 1 and 3, and their numbers
    equations_item(study)                        the residual of V4; what drives K1, Figure 4; the numerical summary
    quadrature_item(study)                       what 32 points do, step by step
    sweep_item(sweep(networks, key))             width, depth and step size, Figure 2; the source of V4, Table 3
    activation_item(activation_studies(...))     the residual for activations that are not odd
    everything(sizes, key)                       all of them

An `Item` has tables (`sections`), figures and results; `write_item` puts figures and results into a directory,
`write_table` the tables.
"""

from .activations import activation_item as activation_item
from .activations import activation_studies as activation_studies
from .equations import equations_item as equations_item
from .equations import residual_noise as residual_noise
from .euler import Euler as Euler
from .euler import SourceOnly as SourceOnly
from .gauss_hermite import GaussHermite as GaussHermite
from .item import Chapter as Chapter
from .item import Drawing as Drawing
from .item import Item as Item
from .item import Row as Row
from .item import WithError as WithError
from .item import draw as draw
from .item import markdown as markdown
from .item import summary as summary
from .item import write_item as write_item
from .item import write_table as write_table
from .main_job import MAIN as MAIN
from .main_job import PUBLISHED as PUBLISHED
from .main_job import THEORIES as THEORIES
from .main_job import Setting as Setting
from .main_job import Study as Study
from .main_job import Theory as Theory
from .main_job import main_item as main_item
from .main_job import main_job as main_job
from .main_job import main_sections as main_sections
from .names import G_ONLY as G_ONLY
from .names import RULE as RULE
from .names import SIGMA as SIGMA
from .names import SOURCE as SOURCE
from .names import TOWER as TOWER
from .quadrature import quadrature_item as quadrature_item
from .sweeps import sweep as sweep
from .sweeps import sweep_item as sweep_item
from .whole import FULL as FULL
from .whole import LAPTOP as LAPTOP
from .whole import Sizes as Sizes
from .whole import everything as everything
