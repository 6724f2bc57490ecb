r"""Depth trajectories of the theory: a closure integrated in depth time t = sum of eps^2, or stepped layer by layer.

In the continuum (eps -> 0) diffrax integrates $\dot y = \mathrm{drift}(y)$ with adaptive steps; with `layers` and `eps`
the same closure is iterated, $y_{l+1} = \mathrm{step}(y_l, \epsilon_l^2)$. The two agree to O(eps^2). Solvers, step
size controllers and adjoints are diffrax's own objects.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from ..checks import check_count, check_flag, check_kernel, check_kind, check_layers, check_positive, is_concrete
from ..closures import Closure, HermiteTower
from ..closures.base import COPIES, check_memory, error_along
from ..compiling import compiled_soon
from ..depths import check_eps, check_survives_rounding, check_times, squares
from ..directions import forward_only, reverse_only, when_reversed
from ..model import Model
from ..pairs import input_count, pack
from .failures import checked
from .solution import Solution

EXACT = HermiteTower()
SMALL_STEPS = 256
SHORTEST = 1e-6  # a solve to t = 0 goes a little further, since a solve of no length has no derivative by t


def solve(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    ts: Float[ArrayLike, " T"] | None = None,
    *,
    layers: Sequence[int] | int | None = None,
    eps: Float[ArrayLike, "..."] | None = None,
    closure: Closure = EXACT,
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    dt0: float | None = None,
    max_steps: int = 4096,
    throw: bool = True,
) -> Solution:
    r"""K0, V4 and K1 along the depth, from the input kernel K0: at depth times `ts` of the continuum, or after `layers`
    of step `eps`.

    The default closure is exact at order 1/n, up to a degree that is chosen (`HermiteTower`). In the continuum diffrax
    integrates with Tsit5, PID control to 1e-8 (1e-5 in float32) of each quantity's own size, and the checkpointed
    adjoint, which gives reverse-mode gradients. Pass `diffrax.ForwardMode()` for `jax.jacfwd` and
    `diffrax.DirectAdjoint()` for `jax.hessian` (Equinox's bounded loop makes its gradients in reverse mode right to
    1e-7 only, from 17 steps on). With `layers` and `eps` the layers of the real network are stepped,
    $t_l = \sum_{j \le l} \epsilon_j^2$; `eps` is one number or one for each layer, and both modes of differentiation
    work without an option, in `eps` too.

    Args:
        model: The block.
        K0: Kernel of the inputs at depth zero.
        ts: Depth times to save, in the continuum. Give either `ts`, or `layers` with `eps`.
        layers: Numbers of the layers to save.
        eps: The step of a layer, one number or one for each layer.
        closure: The theory.
        solver: A solver of diffrax, for the continuum.
        adjoint: An adjoint of diffrax, for the continuum.
        stepsize_controller: A step size controller of diffrax, for the continuum.
        dt0: First step, in the continuum; by default diffrax chooses it.
        max_steps: The largest number of steps in the continuum; a solve that needs more fails.
        throw: Whether a solve that fails raises an error. If not, it returns what it has, and `result` and `stats`
            describe the failure.

    Returns:
        K0, V4 and K1 at the saved depths, with estimated errors and what made them.

    Raises:
        ValueError: For arguments that make no sense, before any work.
        MemoryError: For a solve, or its gradient in reverse mode, that cannot fit, before any work.
        RuntimeError: With depth and entry, if the solve fails, stops being finite, or if its Gaussian expectations have
            an estimated error above one per cent.
    """
    check_kind(model, Model, "model")
    check_kind(closure, Closure, "closure")
    max_steps = check_count(max_steps, "max_steps")
    check_flag(throw, "throw")
    for name, value, kind in (
        ("solver", solver, diffrax.AbstractSolver),
        ("adjoint", adjoint, diffrax.AbstractAdjoint),
        ("stepsize_controller", stepsize_controller, diffrax.AbstractStepSizeController),
    ):
        if value is not None:
            check_kind(value, kind, name)
    if dt0 is not None:
        check_positive(dt0, "dt0")
    K = check_kernel(K0)
    continuum = (solver, adjoint, stepsize_controller, dt0)
    if ts is not None and (layers is not None or eps is not None):
        raise ValueError(
            "Argument `ts` holds depth times of the continuum, and `layers` with `eps` ask for layers: pass either "
            "`ts` alone, or `layers=[...]` and `eps`."
        )
    if ts is not None:
        times = jnp.asarray(check_times(ts), K.dtype)
        closure = settled(closure, model, pack(K), continuum_steps(times), times.size, states=times.size)
        kept = _checkpoints(adjoint, max_steps), "checkpoints"
        model, K, times = _counted(closure, model, K, times, times.size, *kept)
        solution = _continuum(model, K, times, closure, *continuum, max_steps)
    elif layers is None or eps is None:
        given, missing = ("layers", "eps") if eps is None else ("eps", "layers")
        if layers is not None or eps is not None:
            raise ValueError(
                f"Argument `{missing}` is missing: layers need `layers` and `eps`, and only `{given}` is given. "
                "For the continuum give `ts` alone."
            )
        raise ValueError("Argument `ts` is missing: depth times of the continuum; or `layers` and `eps`, for layers.")
    elif continuum != (None,) * 4:
        raise ValueError(
            "Arguments `solver`, `adjoint`, `stepsize_controller` and `dt0` belong to the continuum, but `layers` "
            "ask for the layer recursion: leave either out."
        )
    else:
        steps = check_layers(layers)
        given, eps = eps, jnp.asarray(check_eps(eps, model.decay, steps[-1]), K.dtype)
        check_survives_rounding(given, steps[-1], K.dtype)  # an array made inside jit is not known
        closure = settled(closure, model, pack(K), squares(eps, steps[-1], K.dtype), len(steps))
        model, K, eps = _counted(closure, model, K, eps, len(steps), steps[-1], "layers")
        solution = _layers(closure, model, pack(K), eps, steps)
    return checked(solution, pack(K)) if throw else solution


def continuum_steps(ts: Float[Array, " T"]) -> Float[Array, " L"]:
    """Steps dt of small layers that stand for the continuum when the closure makes its open choices."""
    return jnp.full(SMALL_STEPS, ts[-1] / SMALL_STEPS)


def settled(
    closure: Closure, model: Model, k: Float[Array, " P"], dt: Float[Array, " L"], saved: int, states: int = 0
) -> Closure:
    """The closure with its open choices made, if model, kernel and steps are known numbers.

    Raises MemoryError if a solve that saves `saved` depths and keeps `states` whole states cannot fit.
    """
    known = is_concrete((model, k, dt))
    closure = closure.settled(model, k, dt) if known else closure
    inputs = input_count(k.shape[0])
    kept = states * closure.numbers(model, inputs) // COPIES
    check_memory(closure, model, inputs, k.dtype.itemsize, saved, kept=kept)
    return closure


def _counted(closure, model, K0, depth, saved, count, of) -> Any:
    """The model, K0 and eps or times. If they are differentiated in reverse mode, which keeps `count` states, the
    memory is checked first."""
    everything = model, K0, depth
    if is_concrete(everything):
        return everything
    inputs, itemsize = K0.shape[0], K0.dtype.itemsize
    state = closure.numbers(model, inputs) // COPIES

    def check():
        why = f" in reverse mode, which keeps {count} {of},"
        check_memory(closure, model, inputs, itemsize, saved, kept=count * state, why=why)

    dynamic, static = eqx.partition(everything, eqx.is_inexact_array)
    return eqx.combine(when_reversed(dynamic, check), static)


def _checkpoints(adjoint, max_steps):
    """How many states the reverse mode of one of diffrax's adjoints keeps."""
    if isinstance(adjoint, diffrax.BacksolveAdjoint):
        return 0
    if isinstance(adjoint, diffrax.DirectAdjoint):
        return max_steps
    return getattr(adjoint, "checkpoints", None) or math.isqrt(2 * max_steps)


def _continuum(model, K0, ts, closure, solver, adjoint, controller, dt0, max_steps):
    tolerance = 1e-8 if K0.dtype == jnp.float64 else 1e-5
    adjoint = adjoint or diffrax.RecursiveCheckpointAdjoint()
    run = functools.partial(
        _integrate,
        solver=solver or diffrax.Tsit5(),
        adjoint=adjoint,
        controller=controller or diffrax.PIDController(rtol=tolerance, atol=tolerance),
        dt0=None if dt0 is None else jnp.asarray(dt0, ts.dtype),  # as a number it would be part of the program
        max_steps=max_steps,
    )
    return _guarded(run, adjoint, closure, model, pack(K0), ts)


def _guarded(run, adjoint, closure, model, k, ts):
    """run(closure, model, k, ts); a derivative that the adjoint cannot take raises a TypeError with the remedy."""
    if isinstance(adjoint, diffrax.RecursiveCheckpointAdjoint | diffrax.BacksolveAdjoint):
        sentence = (
            f"adjoint={type(adjoint).__name__}() differentiates once and in reverse mode only (jax.grad, jax.jacrev). "
            "Pass adjoint=diffrax.ForwardMode() for jax.jacfwd, and adjoint=diffrax.DirectAdjoint() for jax.hessian."
        )
        dynamic, static = eqx.partition((model, k, ts), eqx.is_inexact_array)
        return run(closure, *eqx.combine(reverse_only(dynamic, sentence), static))
    solution = run(closure, model, k, ts)
    if isinstance(adjoint, diffrax.ForwardMode):
        sentence = (
            "adjoint=ForwardMode() differentiates in forward mode only (jax.jacfwd, jax.jvp). Leave `adjoint` out "
            "for jax.grad, and pass adjoint=diffrax.DirectAdjoint() for jax.hessian."
        )
        return eqx.tree_at(lambda s: s.packed, solution, forward_only(solution.packed, sentence))
    return solution


@compiled_soon
def _integrate(closure, model, k, ts, *, solver, adjoint, controller, dt0, max_steps):
    parameters, drift, read = _traced_once(closure, model)
    # The state is one vector in units of its own size. So a rescaled problem takes the same steps and has the rescaled
    # answer, and diffrax traces each of its operations once instead of once for every part of the state.
    start, as_state = ravel_pytree(closure.init(model, k))
    state_units = jax.tree.map(jnp.broadcast_to, closure.units(model, k), jax.tree.map(jnp.shape, as_state(start)))
    units = jax.lax.stop_gradient(ravel_pytree(state_units)[0])

    def rate(t, y, args):
        parameters, units = args
        return ravel_pytree(drift(parameters, as_state(units * y)))[0] / units

    # Whole states are saved, and read afterwards: diffrax would compile a function of the state twice. The last thing
    # saved is the depth reached, for a solve that fails; Backsolve cannot save it.
    backsolve = isinstance(adjoint, diffrax.BacksolveAdjoint)
    both = [diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True, fn=lambda t, y, args: t)]
    saveat = diffrax.SaveAt(ts=ts) if backsolve else diffrax.SaveAt(subs=both)
    out = diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        solver,
        t0=jnp.zeros_like(ts[-1]),
        t1=jnp.where(ts[-1] > 0, ts[-1], SHORTEST),
        dt0=dt0,
        y0=start / units,
        args=(parameters, units),  # as arguments: Backsolve cannot see what the rate encloses
        saveat=saveat,
        stepsize_controller=controller,
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )
    assert out.ys is not None
    states, (reached,) = (out.ys, ts[-1:]) if backsolve else out.ys
    moments, truncation = jax.lax.map(lambda y: read(parameters, as_state(units * y)), states)
    stats = {"num_steps": out.stats["num_steps"], "reached": jax.lax.stop_gradient(reached)}
    stats |= _expectation_error(closure, model, k, moments)
    return Solution(ts, moments, truncation, stats, out.result, model, closure, None, None)


@compiled_soon
def _layers(closure, model, k, eps, layers):
    # Between two segments, which have `stride` layers each, a state may be read.
    stride, (parameters, _, read) = max(math.gcd(*layers), 1), _traced_once(closure, model)
    dt = squares(eps, layers[-1], k.dtype)
    ends = np.arange(0 if 0 in layers else stride, layers[-1] + 1, stride)
    # Each reading goes where that of the next saved layer belongs, and those in between are not computed.
    places, wanted = np.searchsorted(layers, ends), np.isin(ends, layers)

    # Reverse mode keeps one state for each layer and recomputes the rest.
    @jax.checkpoint
    def layer(state, dt):
        return closure.step(model, state, dt), None

    # The segment that ends at layer 0 has no layers, so that `read` is compiled once.
    def segment(carry, x):
        (state, saved), (first, dts, place, wanted) = carry, x
        state = jax.lax.cond(first, lambda state: state, lambda state: jax.lax.scan(layer, state, dts)[0], state)
        found = jax.lax.cond(wanted, lambda state: read(parameters, state), lambda state: nothing, state)
        return (state, jax.tree.map(lambda ys, y: ys.at[place].set(y), saved, found)), None

    start = closure.init(model, k)
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(read, parameters, start))
    saved = jax.tree.map(lambda y: jnp.zeros((len(layers), *y.shape), y.dtype), nothing)
    dts = jnp.concatenate([jnp.zeros((1, stride), dt.dtype), dt.reshape(-1, stride)])[-len(ends) :]
    (_, (moments, truncation)), _ = jax.lax.scan(segment, (start, saved), (ends == 0, dts, places, wanted))
    stats = {"num_steps": jnp.asarray(layers[-1])} | _expectation_error(closure, model, k, moments)
    ts = jnp.concatenate([jnp.zeros(1, dt.dtype), jnp.cumsum(dt)])[np.asarray(layers)]
    success = diffrax.RESULTS.successful
    return Solution(ts, moments, truncation, stats, success, model, closure, eps, layers)


def _traced_once(closure, model):
    """The model's arrays, and drift and readings as functions of them and of a state.

    Both are compiled functions inside a compiled function: diffrax and derivatives call them many times in Python, and
    JAX traces them once. Reverse mode recomputes readings: to keep what they need would compile them once more.
    """
    parameters, static = eqx.partition(model, eqx.is_array)

    def read(parameters, state):
        model = eqx.combine(parameters, static)
        return closure.readings(model, state)

    def drift(parameters, state):
        return closure.drift(eqx.combine(parameters, static), state)

    return parameters, jax.jit(drift), jax.checkpoint(jax.jit(read))


def _expectation_error(closure, model, k, moments):
    return {"expectation_error": error_along(closure, model, jnp.concatenate([k[None], moments.K0]))}
