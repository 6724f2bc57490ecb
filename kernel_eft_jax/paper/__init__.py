"""The published study (Kawase and Ota 2026, arXiv 2604.15742), redone: every number beside the published one, with a verdict.

    study = main_job(networks, key)              the main ensemble, and the theories at the same layers
    main_item(study)                             Figures 1, 3 and 4, and their numbers
    equations_item(study)                        Figure 2, the residual of V4; what drives K1; the numerical summary
    quadrature_item(study)                       what 32 points do, step by step
    sweep_item(sweep(networks, key))             width, depth and step size; the source of V4
    activation_item(activation_studies(...))     the residual for activations that are not odd
    everything(sizes, key)                       all of them

An `Item` has a table (`sections`), figures and results; `write` puts figures and results into a directory, `write_table` the table.
"""

from .activations import activation_item as activation_item
from .activations import activation_studies as activation_studies
from .equations import equations_item as equations_item
from .equations import residuals as residuals
from .everything import FULL as FULL
from .everything import LAPTOP as LAPTOP
from .everything import Sizes as Sizes
from .everything import everything as everything
from .main_job import G_ONLY as G_ONLY
from .main_job import MAIN as MAIN
from .main_job import RULE as RULE
from .main_job import SIGMA as SIGMA
from .main_job import SOURCE as SOURCE
from .main_job import THEORIES as THEORIES
from .main_job import TOWER as TOWER
from .main_job import Setting as Setting
from .main_job import SourceOnly as SourceOnly
from .main_job import Study as Study
from .main_job import Theory as Theory
from .main_job import figures as figures
from .main_job import main_item as main_item
from .main_job import main_job as main_job
from .main_job import table as table
from .published import PUBLISHED as PUBLISHED
from .published import Item as Item
from .published import Row as Row
from .published import Section as Section
from .published import markdown as markdown
from .published import write as write
from .published import write_table as write_table
from .quadrature import bias as bias
from .quadrature import quadrature_item as quadrature_item
from .sweeps import sweep as sweep
from .sweeps import sweep_item as sweep_item
