r"""Depth trajectories of the theory: a closure integrated in depth time t = eps^2 l, or stepped layer by layer.

In the continuum (eps -> 0) diffrax integrates $\dot y = \mathrm{drift}(y)$ with adaptive steps; with `eps` the same closure is
iterated over layers, $y_{l+1} = \mathrm{step}(y_l, \epsilon^2)$. The two agree to O(eps^2). Solvers, step size controllers and
adjoints are diffrax's own objects.
"""

import functools
import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, ArrayLike, Float

from .checks import check_count, check_kernel, check_positive, is_concrete
from .closures import Closure, GOnly, Moments
from .directions import forward_only, reverse_only
from .model import Model
from .pairs import input_count, pack, pairs, unpack, unpack_covariance
from .solution_file import from_xarray, to_xarray
from .storage import Result


class Solution(Result):
    """K0, V4 and K1 at the saved depths: E[G] = K0 + K1 / n, Cov(G, G) = V4 / n, up to higher orders of 1/n.

    `packed` holds them in pair space (entries a <= b only); the properties give full matrices. `truncation` estimates the
    errors left by a truncated expansion (None for closures that expand nothing), `stats` counts the work and holds
    `expectation_error`, the estimated relative error of the Gaussian expectations; `result` is diffrax's.
    """

    ts: Float[Array, " T"]
    packed: Moments
    truncation: Moments | None
    stats: dict[str, Any]
    result: diffrax.RESULTS

    @property
    def K0(self) -> Float[Array, "T N N"]:
        """Mean kernel at infinite width."""
        return unpack(self.packed.K0)

    @property
    def V4(self) -> Float[Array, "T N N N N"]:
        """Width times the covariance of the kernel, V4_ab,cd."""
        return unpack_covariance(self.packed.V4)

    @property
    def K1(self) -> Float[Array, "T N N"]:
        """Width times the finite-width correction of the mean kernel."""
        return unpack(self.packed.K1)

    @property
    def V_GS(self) -> Float[Array, "T N N N N"] | None:
        """Width times Cov(G_ab, S_cd), S the sigma-kernel; None for closures that do not carry it."""
        return None if self.packed.V_GS is None else unpack_covariance(self.packed.V_GS)

    @property
    def V_SS(self) -> Float[Array, "T N N N N"] | None:
        """Width times the covariance of the sigma-kernel; None for closures that do not carry it."""
        return None if self.packed.V_SS is None else unpack_covariance(self.packed.V_SS)

    @property
    def U1(self) -> Float[Array, "T N N"] | None:
        """Width times the finite-width correction of the mean sigma-kernel; None for closures that do not carry it."""
        return None if self.packed.U1 is None else unpack(self.packed.U1)

    def to_xarray(self) -> xr.Dataset:
        """The moments and their truncation errors over t and the inputs a, b, c, d."""
        return to_xarray(self)

    @classmethod
    def from_xarray(cls, data: xr.Dataset) -> "Solution":
        """The solution that `to_xarray` gave."""
        return from_xarray(cls, data)


def solve(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    ts: Float[ArrayLike, " T"],
    *,
    closure: Closure | None = None,
    eps: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    dt0: float | None = None,
    max_steps: int = 4096,
    throw: bool = True,
) -> Solution:
    r"""K0, V4 and K1 at depth times ts, from the input kernel K0 at t = 0.

    Without `eps`: the continuum, by diffrax. Defaults: Tsit5, PID control to 1e-8 (1e-5 in float32), and the
    checkpointed adjoint, which gives reverse-mode gradients; pass `diffrax.ForwardMode()` for `jax.jacfwd` and
    `diffrax.DirectAdjoint()` for `jax.hessian` (whose gradients in reverse mode are right to 1e-7 only, from 17 steps on:
    Equinox's bounded loop). With `eps`: the recursion of the network's layers, t = eps^2 l; every time must be a whole layer,
    and both modes of differentiation work as they are. (To differentiate in eps, note that only eps^2 C_W and eps^2 C_b
    matter: solve with those as C_W and C_b, eps=1, and ts counting layers.)

    Raises ValueError for arguments that make no sense, before any work, and RuntimeError that names depth and entry if
    the solve fails or stops being finite. With `throw=False` it returns what it has, and `result` says why it ended.
    """
    closure = GOnly() if closure is None else closure
    for name, value, kind in (("model", model, Model), ("closure", closure, Closure)):
        if not isinstance(value, kind):
            raise ValueError(f"Argument `{name}` must be a {kind.__name__} object, but is {value!r}.")
    K0 = check_kernel(K0)
    times = _check_times(ts)
    dtype = K0.dtype
    ts = jnp.asarray(times, dtype)
    if eps is None:
        tolerance = 1e-8 if dtype == jnp.float64 else 1e-5
        controller = stepsize_controller or diffrax.PIDController(rtol=tolerance, atol=tolerance)
        check_count(max_steps, "max_steps")
        adjoint = adjoint or diffrax.RecursiveCheckpointAdjoint()
        run = functools.partial(
            _continuum,
            solver=solver or diffrax.Tsit5(),
            adjoint=adjoint,
            controller=controller,
            dt0=dt0,
            max_steps=max_steps,
        )
        solution = _guarded(run, adjoint, closure, model, pack(K0), ts)
    else:
        if (solver, adjoint, stepsize_controller, dt0) != (None,) * 4:
            raise ValueError(
                "Arguments `solver`, `adjoint`, `stepsize_controller` and `dt0` belong to the continuum, but `eps` asks for the "
                "layer recursion: leave either out."
            )
        layers = _whole_layers(times, eps)
        solution = _layers(closure, model, pack(K0), ts, jnp.asarray(eps, dtype) ** 2, layers)
    return _checked(solution) if throw else solution


def _guarded(run, adjoint, closure, model, k, ts):
    """run(closure, model, k, ts), where a derivative that the adjoint cannot take raises a sentence with the remedy."""
    if isinstance(adjoint, diffrax.RecursiveCheckpointAdjoint | diffrax.BacksolveAdjoint):
        sentence = (
            f"adjoint={type(adjoint).__name__}() differentiates once and in reverse mode only (jax.grad, jax.jacrev). Pass "
            "adjoint=diffrax.ForwardMode() for jax.jacfwd, and adjoint=diffrax.DirectAdjoint() for jax.hessian."
        )
        dynamic, static = eqx.partition((model, k, ts), eqx.is_inexact_array)
        return run(closure, *eqx.combine(reverse_only(dynamic, sentence), static))
    solution = run(closure, model, k, ts)
    if isinstance(adjoint, diffrax.ForwardMode):
        sentence = (
            "adjoint=ForwardMode() differentiates in forward mode only (jax.jacfwd, jax.jvp). Leave `adjoint` out for jax.grad, "
            "and pass adjoint=diffrax.DirectAdjoint() for jax.hessian."
        )
        return eqx.tree_at(lambda s: s.packed, solution, forward_only(solution.packed, sentence))
    return solution


@eqx.filter_jit
def _continuum(closure, model, k, ts, *, solver, adjoint, controller, dt0, max_steps):
    parameters, drift, read = _traced_once(closure, model)

    def save(t, state, parameters):
        return read(parameters, state)

    # Backsolve cannot save a function of the state.
    late = isinstance(adjoint, diffrax.BacksolveAdjoint)
    saveat = diffrax.SaveAt(ts=ts) if late else diffrax.SaveAt(ts=ts, fn=save)
    out = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, state, parameters: drift(parameters, state)),
        solver,
        t0=jnp.zeros_like(ts[-1]),
        t1=ts[-1],
        dt0=dt0,
        y0=closure.init(model, k),
        args=parameters,
        saveat=saveat,
        stepsize_controller=controller,
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )
    assert out.ys is not None
    moments, truncation = jax.vmap(save, in_axes=(0, 0, None))(ts, out.ys, parameters) if late else out.ys
    stats = {"num_steps": out.stats["num_steps"]}
    return Solution(ts, moments, truncation, stats | _expectation_error(model, moments), out.result)


@eqx.filter_jit
def _layers(closure, model, k, ts, dt, layers):
    stride, (parameters, _, read) = max(math.gcd(*layers), 1), _traced_once(closure, model)

    # Checkpointed: reverse mode keeps one state a layer and recomputes the rest.
    @jax.checkpoint
    def layer(state, _):
        return closure.step(model, state, dt), None

    def segment(state, _):
        state, _ = jax.lax.scan(layer, state, None, length=stride)
        return state, read(parameters, state)

    start = closure.init(model, k)
    _, saved = jax.lax.scan(segment, start, None, length=layers[-1] // stride)
    everything = jax.tree.map(lambda y0, ys: jnp.concatenate([y0[None], ys]), read(parameters, start), saved)
    moments, truncation = jax.tree.map(lambda ys: ys[np.asarray(layers) // stride], everything)
    stats = {"num_steps": jnp.asarray(layers[-1])}
    return Solution(ts, moments, truncation, stats | _expectation_error(model, moments), diffrax.RESULTS.successful)


def _traced_once(closure, model):
    """The model's arrays, and drift and readings as functions of them and of a state.

    Compiled functions within a compiled function: diffrax and derivatives run them many times in Python, JAX traces them once.
    """
    parameters, static = eqx.partition(model, eqx.is_array)

    def read(parameters, state):
        model = eqx.combine(parameters, static)
        return closure.moments(model, state), closure.truncation(model, state)

    def drift(parameters, state):
        return closure.drift(eqx.combine(parameters, static), state)

    return parameters, jax.jit(drift), jax.jit(read)


def _expectation_error(model, moments):
    inputs = input_count(moments.K0.shape[-1])
    a, b = pairs(inputs)
    return {"expectation_error": jnp.max(model.activation.error(jax.lax.stop_gradient(moments.K0[:, a == b])))}


def _check_times(ts):
    """ts as a vector, checked; NumPy where its values are known, so that they stay known inside a user's jit."""
    ts = np.asarray(ts, np.float64) if is_concrete(ts) else ts
    if ts.ndim != 1 or ts.shape[0] == 0:
        raise ValueError(f"Argument `ts` must be a list of depth times, but has shape {ts.shape}.")
    if is_concrete(ts) and (not np.isfinite(ts).all() or ts[0] < 0 or (np.diff(ts) <= 0).any()):
        raise ValueError(f"Argument `ts` must be finite, not negative and strictly increasing, but is {ts}.")
    return ts


def _whole_layers(ts, eps) -> tuple[int, ...]:
    if not is_concrete(eps) or not is_concrete(ts):
        raise ValueError(
            "Arguments `eps` and `ts` decide how many layers there are and cannot be traced by jit or grad in a layer "
            "recursion. Only eps^2 C_W and eps^2 C_b enter the law: pass eps=1, ts counting layers, and a model with those."
        )
    check_positive(eps, "eps")
    dt = float(eps) ** 2
    exact = ts / dt
    layers = np.rint(exact)
    wrong = np.abs(exact - layers) > 1e-4
    if wrong.any():
        t, near = ts[wrong][0], exact[wrong][0]
        raise ValueError(
            f"Argument `ts` must be whole layers, t = eps^2 l, but t = {t:.6g} is layer {near:.6g} at eps = {float(eps):.6g}; "
            f"the nearest are t = {np.floor(near) * dt:.6g} and {np.ceil(near) * dt:.6g}."
        )
    return tuple(int(layer) for layer in layers)


def _checked(solution: Solution) -> Solution:
    leaves = [*jax.tree.leaves(solution.packed), solution.ts]
    if not all(is_concrete(leaf) for leaf in leaves) or not is_concrete(solution.stats["num_steps"]):
        bad = jnp.stack([jnp.any(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(solution.packed)]).any()
        bad = bad | (solution.result != diffrax.RESULTS.successful)
        packed = eqx.error_if(
            solution.packed,
            bad,
            "The solve failed or is no longer finite. Run it outside jit to learn at which depth and entry.",
        )
        return eqx.tree_at(lambda s: s.packed, solution, packed)
    saved = np.asarray(jnp.isfinite(solution.packed.K0).all(-1))
    if solution.result != diffrax.RESULTS.successful:
        reached = [float(t) for t, ok in zip(solution.ts, saved, strict=True) if ok]
        raise RuntimeError(
            f"The solve stopped after depth t = {max(reached, default=0.0):.6g} of {float(solution.ts[-1]):.6g}: "
            f"{diffrax.RESULTS[solution.result]}"
        )
    known = [(name, np.asarray(v)) for name, v in solution.packed._asdict().items() if v is not None]
    for i, t in enumerate(np.asarray(solution.ts)):
        for name, values in known:
            wrong = np.argwhere(~np.isfinite(values[i]))
            if wrong.size:
                a, b = pairs(input_count(solution.packed.K0.shape[-1]))
                entry = ", ".join(f"{a[p]}, {b[p]}" for p in wrong[0])
                raise RuntimeError(
                    f"The solve is no longer finite: {name}[{entry}] at depth t = {t:.6g} is {values[i][tuple(wrong[0])]}. "
                    "Variances may grow without bound for this activation: look at smaller depths."
                )
    return solution
