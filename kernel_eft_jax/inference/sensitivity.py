r"""Derivatives of trajectories by everything that they depend on.

In forward mode: few parameters, many outputs. In the layer recursion the depth is a number of layers and dt = eps^2, so that
$\partial / \partial \ln \epsilon = 2 (C_W\, \partial / \partial C_W + C_b\, \partial / \partial C_b)$: only eps^2 C_W and eps^2 C_b enter the law.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..checks import check_kernel
from ..closures import Closure, Moments
from ..model import Model
from ..pairs import pack, pairs, unpack, unpack_covariance
from ..trajectory import Solution, solve
from .parameters import activation_names


class Kernels(NamedTuple):
    """K0, V4 and K1, or their derivatives, at the saved depths."""

    K0: Float[Array, "T N N"]
    V4: Float[Array, "T N N N N"]
    K1: Float[Array, "T N N"]


class Sensitivity(eqx.Module):
    """A trajectory and its derivatives by each parameter: `sensitivity["C_W"].V4` is dV4/dC_W.

    `names` are C_W, C_b, the activation's parameters, entries K0[a, b] of the input kernel (K0[b, a] moves with it), and eps
    in the layer recursion, where the number of layers is held.
    """

    solution: Solution
    names: tuple[str, ...] = eqx.field(static=True)
    values: Float[Array, " parameters"]
    packed: Moments

    def __getitem__(self, name: str) -> Kernels:
        if name not in self.names:
            raise KeyError(f"There is no parameter `{name}`; there are {list(self.names)}.")
        K0, V4, K1 = (part[self.names.index(name)] for part in self.packed[:3])
        return Kernels(unpack(K0), unpack_covariance(V4), unpack(K1))

    def elasticity(self, name: str) -> Kernels:
        r"""Relative derivatives $\partial \ln y / \partial \ln \theta$: per cent of change for one per cent of the parameter.

        Zero where the derivative is zero, infinite where only the value is: K1 at depth zero, say. Zero also for a parameter
        that is zero, such as C_b = 0: there `sensitivity[name]`, the derivative itself, says what the parameter does.
        """
        values = (self.solution.K0, self.solution.V4, self.solution.K1)
        scaled = [self.values[self.names.index(name)] * derivative for derivative in self[name]]
        return Kernels(*(jnp.where(d == 0, 0, d / y) for d, y in zip(scaled, values, strict=True)))


def sensitivity(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    ts: Float[ArrayLike, " T"],
    *,
    closure: Closure | None = None,
    eps: float | None = None,
    **options: Any,
) -> Sensitivity:
    """Derivatives of K0, V4 and K1 by every hyperparameter and every entry of the input kernel, in forward mode.

    Arguments are those of `solve`, its default closure `GOnly` among them, for speed: a parameter costs one more trajectory,
    N(N+1)/2 of them for the input kernel. (`fit` takes `HermiteTower` by default, since its intervals need the right K1, and that
    of `GOnly` is off by a factor of two and more: pass the tower for derivatives of K1, or of V4 where it matters.)
    In the continuum the adjoint is `diffrax.ForwardMode`. With many inputs and a scalar outcome take `jax.grad` of `solve`.

    Raises what `solve` raises: ValueError for bad arguments, RuntimeError for a trajectory that is not finite.
    """
    K0 = check_kernel(K0)
    solution = solve(model, K0, ts, closure=closure, eps=eps, **options)
    names = ["C_W", "C_b", *activation_names(model.activation)]
    names += [f"K0[{a}, {b}]" for a, b in zip(*pairs(K0.shape[0]), strict=True)]
    flat, _ = _parameters(model, K0)
    if eps is None:
        times, options = jnp.asarray(ts, K0.dtype), {"adjoint": diffrax.ForwardMode(), **options}
    else:
        times = tuple(np.asarray(ts, np.float64).tolist())  # they say how many layers to compile
    packed = jax.tree.map(lambda d: jnp.moveaxis(d, -1, 0), _derivatives(model, K0, times, closure, eps, options))
    if eps is not None:
        names.append("eps")
        C_W, C_b = flat[:2]
        by_eps = jax.tree.map(lambda d: 2 / eps * (C_W * d[0] + C_b * d[1]), packed)
        packed = jax.tree.map(lambda d, e: jnp.concatenate([d, e[None]]), packed, by_eps)
        flat = jnp.append(flat, jnp.asarray(eps, flat.dtype))
    return Sensitivity(solution, tuple(names), flat, packed)


@eqx.filter_jit
def _derivatives(model, K0, ts, closure, eps, options):
    """Jacobians of the packed moments, parameters last."""
    flat, unflatten = _parameters(model, K0)
    ts = np.asarray(ts) if isinstance(ts, tuple) else ts

    def moments(values):
        model, K0 = unflatten(values)
        packed = solve(model, K0, ts, closure=closure, eps=eps, **(options | {"throw": False})).packed
        return Moments(packed.K0, packed.V4, packed.K1)

    return jax.jacfwd(moments)(flat)


def _parameters(model, K0):
    """All parameters as one vector, and the way back."""
    arrays, static = eqx.partition(model.activation, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(arrays)
    parts = [model.C_W, model.C_b, *leaves, pack(K0)]
    places = np.cumsum([np.size(part) for part in parts])[:-1]
    flat = jnp.concatenate([jnp.ravel(part).astype(K0.dtype) for part in parts])

    def unflatten(values):
        C_W, C_b, *leaves, k = [
            new.reshape(old.shape).astype(old.dtype) for new, old in zip(jnp.split(values, places), parts, strict=True)
        ]
        activation = eqx.combine(jax.tree.unflatten(treedef, leaves), static)
        return eqx.tree_at(lambda m: (m.activation, m.C_W, m.C_b), model, (activation, C_W, C_b)), unpack(k)

    return flat, unflatten
