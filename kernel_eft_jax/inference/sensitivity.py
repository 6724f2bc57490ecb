r"""Derivatives of trajectories by all parameters, $\partial y / \partial \theta$: each leaf of the model, the input
kernel, eps.

They are taken in forward mode, since there are few parameters and many outputs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from ..checks import check_kernel, check_layers
from ..closures import Closure, Moments
from ..closures.base import check_memory
from ..compiling import compiled_soon
from ..model import Model
from ..pairs import pack, pairs, unpack, unpack_covariance
from ..showing import Shown, shown
from ..trajectory import Solution, rounding, solve
from ..trajectory.solve import EXACT
from .parameters import get_parameters, no_skip, places, set_parameters


class Derivatives(NamedTuple):
    """Derivatives of K0, V4 and K1 by one parameter, or their elasticities, at the saved depths."""

    K0: Float[Array, "T N N"]
    V4: Float[Array, "T N N N N"]
    K1: Float[Array, "T N N"]


class Sensitivity(Shown):
    """A trajectory and its derivatives by each parameter: `sensitivity["C_W"].V4` is dV4/dC_W.

    `names` are those of the model's leaves (C_W, activation.slope and decay, or branch[1].C_W), the entries K0[a, b] of
    the input kernel (K0[b, a] moves with it), and eps if layers have one number in common.
    """

    solution: Solution
    names: tuple[str, ...] = eqx.field(static=True)
    values: Float[Array, " parameters"]
    packed: Moments

    def __repr__(self) -> str:
        of, by = f"Sensitivity of K0, V4 and K1 to {len(self.names)} parameters", self.solution.closure
        lines = [f"{of} by {by!r}, for {self.solution.model!r}"]
        for name, value in zip(self.names, self.values, strict=True):
            K0, V4, K1 = (shown(d[-1].ravel()[0]) for d in self.significant(name))
            lines.append(f"  {name} = {shown(value)}: d K0[00], V4[00,00], K1[00] = {K0}, {V4}, {K1} at the last depth")
        return "\n".join(lines)

    def __getitem__(self, name: str) -> Derivatives:
        if name not in self.names:
            raise KeyError(f"There is no parameter `{name}`; there are {list(self.names)}.")
        K0, V4, K1 = (part[self.names.index(name)] for part in self.packed[:3])
        return Derivatives(unpack(K0), unpack_covariance(V4), unpack(K1))

    def significant(self, name: str) -> Derivatives:
        """The derivatives, with zero in place of those of V4 and K1 that are rounding alone."""
        K0, V4, K1 = self[name]
        size = (
            self.solution.K0,
            jnp.einsum("tabab->tab", self.solution.V4),
            rounding.relative_rate(K0, self.solution.K0),
        )
        return Derivatives(K0, *(jnp.asarray(rounding.significant(d, *size)) for d in (V4, K1)))

    def elasticity(self, name: str) -> Derivatives:
        r"""Relative derivatives $\partial \ln y / \partial \ln \theta$: per cent of change for one per cent of the
        parameter.

        It is zero where the derivative is zero or rounding alone, and infinite where only the value is, as that of K1
        at depth zero. It is also zero for a parameter that is zero, such as C_b = 0; the derivative itself,
        `sensitivity[name]`, then says what the parameter does.
        """
        values = [self.solution.significant(quantity)[0] for quantity in ("K0", "V4", "K1")]
        scaled = [self.values[self.names.index(name)] * derivative for derivative in self.significant(name)]
        return Derivatives(*(jnp.where(d == 0, 0, d / y) for d, y in zip(scaled, values, strict=True)))

    @property
    def expectation_error(self) -> float:
        """Estimated relative error of the Gaussian expectations behind the trajectory."""
        return float(self.solution.stats["expectation_error"])


def sensitivity(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    ts: Float[ArrayLike, " T"] | None = None,
    *,
    layers: Sequence[int] | int | None = None,
    eps: Float[ArrayLike, "..."] | None = None,
    closure: Closure = EXACT,
    **options: Any,
) -> Sensitivity:
    """Derivatives of K0, V4 and K1 by every parameter of the model, every entry of the input kernel and eps, in forward
    mode.

    Each parameter costs one more trajectory, the input kernel N(N+1)/2 of them. The derivative by eps holds the number
    of layers fixed. There is none if each layer has its own eps, since a common factor of all eps acts as C_W, C_b and
    decay together do. If decay eps^2 is 1, there is no skip, and no derivative by decay and eps. `SigmaKernel` has no
    derivative by decay. In the continuum the adjoint is `diffrax.ForwardMode`. With many inputs and a scalar outcome
    take `jax.grad` of `solve`.

    Args:
        model: The block.
        K0: Kernel of the inputs at layer 0.
        ts: Depth times, in the continuum. Give either `ts`, or `layers` with `eps`.
        layers: Numbers of layers.
        eps: The step of a layer, one number or one for each layer.
        closure: The theory.
        **options: Other arguments of `solve`.

    Returns:
        The trajectory, and its derivatives by each parameter.

    Raises:
        ValueError: For bad arguments.
        RuntimeError: For a trajectory that is not finite.
    """
    solution = solve(model, K0, ts, layers=layers, eps=eps, closure=closure, **options)
    K0 = check_kernel(K0)
    names = list(places(model))
    skips = eps is None or not no_skip(model, jnp.asarray(eps))
    moving_eps = skips and eps is not None and np.ndim(eps) == 0
    if not (skips and closure.has_decay):
        names.remove("decay")
    if eps is None:
        depth = {"ts": jnp.asarray(ts, K0.dtype)}
        options = {"adjoint": diffrax.ForwardMode(), **options}
    else:
        depth = {"layers": check_layers(layers), "eps": jnp.asarray(eps, K0.dtype)}
    values = (get_parameters(model, names).astype(K0.dtype), pack(K0), depth["eps"] if moving_eps else None)
    count = len(ravel_pytree(values)[0])
    check_memory(
        solution.closure,
        model,
        K0.shape[0],
        K0.dtype.itemsize,
        len(solution.ts),
        tangents=count,
        why=f", with derivatives by {count} parameters,",
    )
    derivatives = _derivatives(model, tuple(names), values, depth, solution.closure, options | {"throw": False})
    names += [f"K0[{a}, {b}]" for a, b in zip(*pairs(K0.shape[0]), strict=True)] + ["eps"] * moving_eps
    derivatives = jax.tree.map(lambda d: jnp.moveaxis(d, -1, 0), derivatives)
    return Sensitivity(solution, tuple(names), ravel_pytree(values)[0], derivatives)


@compiled_soon
def _derivatives(model, names, values, depth, closure, options):
    """Jacobians of the packed moments by `values`: parameters of the model, K0, and eps or None; parameters last."""

    def moments(values):
        inside, k, eps = values
        how = depth | ({} if eps is None else {"eps": eps})
        packed = solve(set_parameters(model, names, inside), unpack(k), closure=closure, **how, **options).packed
        return Moments(packed.K0, packed.V4, packed.K1)

    flat, unflatten = ravel_pytree(values)
    return jax.jacfwd(lambda flat: moments(unflatten(flat)))(flat)
