"""Depth trajectories of the theory: `solve` a closure in the continuum or layer by layer, into a `Solution`."""

from .solution import Solution as Solution
from .solve import solve as solve
