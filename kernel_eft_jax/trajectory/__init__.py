"""Depth trajectories of the theory: `solve` a closure in the continuum or layer by layer, `solve_pairs` for many
inputs."""

from .many import solve_pairs as solve_pairs
from .pair_solution import PairSolution as PairSolution
from .solution import Solution as Solution
from .solve import solve as solve
