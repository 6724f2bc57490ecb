r"""What a closure is: a state, how it starts, how one layer moves it, and what is read off it.

A closure turns the exact but infinite hierarchy of equations for the empirical kernel at order 1/n into a finite system
for K0, V4, K1 (and what else it carries). A closure defines one layer only: the continuum is the limit of thin layers,

$$\dot y = \partial_{dt}\, \mathrm{step}(y, dt) \,\big|_{dt = 0}, \qquad dt = \epsilon^2$$
"""

from abc import abstractmethod
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..machine import host_memory
from ..model import Model
from ..pairs import input_count, pair_count, triples
from ..showing import shown_fields

State = TypeVar("State")
COPIES = 16  # of the state, in the stages of a solver and the intermediate results of a step
LOOKS = 8  # at the expectations on the way to the last depth, or at all saved depths if they are more
SAVED = 6  # covariances of G and S at each depth, and their errors


IN_PARTS = (
    "K1_ab needs the inputs a and b alone, and V4_ab,cd only a, b, c, d: use `solve_pairs` for pairs and chosen "
    "quadruples of inputs, or save fewer depths"
)


class Moments(NamedTuple):
    """The statistics of the kernel in pair space, up to higher orders of 1/n.

    E[G] = K0 + K1 / n and Cov(G, G) = V4 / n. A closure that carries S, the kernel that the last matrix of the branch
    reads, beside G also has U1, V_GS and V_SS: E[S] is its value at infinite width + U1 / n, Cov(G, S) = V_GS / n and
    Cov(S, S) = V_SS / n. For other closures these three are None.
    """

    K0: Float[Array, " P"]
    V4: Float[Array, "P P"]
    K1: Float[Array, " P"]
    V_GS: Float[Array, "P P"] | None = None
    V_SS: Float[Array, "P P"] | None = None
    U1: Float[Array, " P"] | None = None


class Closure(eqx.Module, Generic[State]):
    """A closed system of equations for the statistics of the empirical kernel. Symbols: [glossary](../glossary.md).

    A closure of your own is one class with `init`, `step`, `moments`, `units`, and the three methods that say how a
    kernel is remembered by later layers, from which `fit` and `fisher` have the covariances between layers.
    """

    cheaper: ClassVar[str] = "a lower degree or GOnly()"  # what a message offers where memory is short

    # Whether the closure has the decay of the stream. One that has none takes blocks of decay 0 only, and cannot say
    # how its numbers depend on decay.
    has_decay: ClassVar[bool] = True

    def __repr__(self) -> str:
        return shown_fields(self)

    def settled(self, model: Model, k: Float[Array, " P"], dt: Float[Array, " L"]) -> "Closure":
        """The closure with its open choices made, such as a degree, for layers of steps dt from the kernel k. Both must
        be known numbers."""
        return self

    def for_two_inputs(self) -> "Closure":
        """The closure of the same numbers that is cheapest for two inputs."""
        return self

    @abstractmethod
    def init(self, model: Model, k: Float[Array, " P"]) -> State:
        """The state at depth zero, where neurons are independent and N(0, K0)."""

    @abstractmethod
    def step(self, model: Model, state: State, dt: Float[Array, ""]) -> State:
        """The state one layer on, dt = eps^2."""

    @abstractmethod
    def moments(self, model: Model, state: State) -> Moments:
        """K0, V4 and K1 of a state."""

    @abstractmethod
    def units(self, model: Model, k: Float[Array, " P"]) -> State:
        """The size of each part of the state at the input kernel k, of a shape that broadcasts to the state. The
        accuracy of the continuum is relative to these sizes."""

    @abstractmethod
    def remember(self, model: Model, state: State) -> Any:
        """The start of a memory: the covariances of the kernel g of this state with all that the closure carries."""

    @abstractmethod
    def follow(self, model: Model, state: State, memory: Any, dt: Float[Array, ""]) -> Any:
        """The memory one layer on; `state` is the state before the layer."""

    @abstractmethod
    def recall(self, model: Model, state: State, memory: Any) -> Float[Array, "P P"]:
        """Width times the covariance of the kernel of this state (first axis) with the remembered one."""

    def numbers(self, model: Model, inputs: int) -> int:
        """About how many numbers a solve holds at once, without derivatives and without saved depths."""
        return COPIES * pair_count(inputs) ** 2

    def error(self, model: Model, k: Float[Array, " P"]) -> Float[Array, ""]:
        """Estimated relative error of the Gaussian expectations that the closure takes at a kernel."""
        return model.error(k)

    def drift(self, model: Model, state: State) -> State:
        """Rate of change of the state in depth time t = eps^2 l, for eps -> 0: the derivative of one layer."""
        zero = jnp.zeros((), jax.tree.leaves(state)[0].dtype)
        return jax.jvp(lambda dt: self.step(model, state, dt), (zero,), (jnp.ones_like(zero),))[1]

    def truncation(self, model: Model, state: State) -> Moments | None:
        """Estimated errors of `moments` from truncating a convergent expansion; None where nothing is expanded."""
        return None

    def readings(self, model: Model, state: State) -> tuple[Moments, Moments | None]:
        """`moments` and `truncation`, for closures in which both need the same expectations."""
        return self.moments(model, state), self.truncation(model, state)


def check_memory(
    closure: Closure,
    model: Model,
    inputs: int,
    itemsize: int,
    saved: int,
    tangents: int = 0,
    kept: int = 0,
    why: str = "",
    remedy: str = IN_PARTS,
) -> None:
    """Raise MemoryError, with the remedy and before any work, if a solve that saves `saved` depths does not fit the
    machine.

    `tangents` is how many more copies of everything forward mode carries, and `kept` how many numbers of past layers
    reverse mode keeps. `why` names the mode in the message, and `remedy` says what to ask for instead.
    """
    once = closure.numbers(model, inputs) + SAVED * saved * pair_count(inputs) ** 2
    need, there = itemsize * ((1 + tangents) * once + kept), host_memory()
    if need > there:
        cheaper = f", or take {closure.cheaper}" if closure.cheaper else ""
        raise MemoryError(
            f"{closure!r} for {inputs} inputs at {saved} depths{why} needs about {need / 2**30:.3g} GiB, and there "
            f"are {there / 2**30:.3g} GiB. {remedy}{cheaper}."
        )


def held_fixed(model: Model) -> Model:
    """The model with its arrays held fixed in derivatives; functions inside activations are kept as they are."""
    arrays, rest = eqx.partition(model, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def error_along(closure: Closure, model: Model, kernels: Float[Array, "T P"]) -> Float[Array, ""]:
    """The largest `closure.error` on the way through depth: at the input kernel, which is first, at the kernels of the
    saved depths, and between them where few are saved. Expectations may be right where a solve starts and where it ends
    and wrong on the way.

    Between two kernels the variances move geometrically and the correlations linearly.
    """
    kernels, model = jax.lax.stop_gradient(kernels), held_fixed(model)  # an error has no derivatives
    units = jax.vmap(pair_units)(kernels)
    correlations = kernels / units

    def between(share):
        along = units[:-1] ** (1 - share) * units[1:] ** share
        return along * ((1 - share) * correlations[:-1] + share * correlations[1:])

    parts = max(LOOKS // max(len(kernels) - 1, 1), 1)
    shares = jnp.arange(1, parts, dtype=kernels.dtype) / parts
    way = jnp.concatenate([kernels, jax.vmap(between)(shares).reshape(-1, kernels.shape[1])])
    # One kernel after another: the four-input series takes much memory.
    return jnp.max(jax.lax.map(lambda k: closure.error(model, k), way))


def pair_units(k: Float[Array, " P"]) -> Float[Array, " P"]:
    """The size of a kernel's entries, sqrt(k_aa k_bb); the largest of them for an input of zero variance."""
    k_aa, k_bb, _ = k[triples(input_count(k.shape[0]))].T
    k_aa, k_bb = (jnp.where(x > 0, x, jnp.max(k)) for x in (k_aa, k_bb))
    return jnp.sqrt(k_aa) * jnp.sqrt(k_bb)
