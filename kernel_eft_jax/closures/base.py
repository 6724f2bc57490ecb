"""What a closure is: a state, how it starts, how it moves with depth, and the moments read off it.

A closure turns the exact but infinite hierarchy of equations for the empirical kernel at order 1/n into a finite system
for K0, V4, K1 (and what else it carries). `solve` integrates `drift` in the continuum or iterates `step` over layers.
"""

from abc import abstractmethod
from typing import Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float

from ..model import Model

State = TypeVar("State")


class Moments(NamedTuple):
    """The statistics of the kernel in pair space, up to higher orders of 1/n.

    E[G] = K0 + K1 / n and Cov(G, G) = V4 / n; where the closure knows the sigma-kernel S beyond a function of G,
    E[S] = E_K0[s s] + U1 / n, Cov(G, S) = V_GS / n and Cov(S, S) = V_SS / n.
    """

    K0: Float[Array, " P"]
    V4: Float[Array, "P P"]
    K1: Float[Array, " P"]
    V_GS: Float[Array, "P P"] | None = None
    V_SS: Float[Array, "P P"] | None = None
    U1: Float[Array, " P"] | None = None


class Closure(eqx.Module, Generic[State]):
    """A closed system of equations for the statistics of the empirical kernel."""

    @abstractmethod
    def init(self, model: Model, k: Float[Array, " P"]) -> State:
        """The state at depth zero, where neurons are independent and N(0, K0)."""

    @abstractmethod
    def drift(self, model: Model, state: State) -> State:
        """Rate of change of the state in depth time t = eps^2 l, for eps -> 0."""

    def step(self, model: Model, state: State, dt: Float[Array, ""]) -> State:
        """The state one layer on, dt = eps^2: explicit Euler, unless a closure knows the layer better."""
        return jax.tree.map(lambda y, dy: y + dt * dy, state, self.drift(model, state))

    @abstractmethod
    def moments(self, model: Model, state: State) -> Moments:
        """K0, V4 and K1 of a state."""

    def truncation(self, model: Model, state: State) -> Moments | None:
        """Estimated errors of `moments` from truncating a convergent expansion; None where nothing is expanded."""
        return None
