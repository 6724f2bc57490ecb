r"""Ensembles of random networks: `estimate` their statistics, or `sample_kernels`."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray
from tqdm import tqdm

from ..checks import (
    check_count,
    check_flag,
    check_kernel,
    check_key,
    check_kind,
    check_layers,
    check_positive,
    check_sampled,
    check_untraced,
)
from ..cholesky import semidefinite_cholesky
from ..depths import check_eps, squares
from ..kernel_maps import Dense
from ..model import Model
from ..network import shapes, skip
from ..pairs import pack, pair_table, pairs
from .checkpoint import Checkpoint
from .control_variates import find_limits
from .observables import OBSERVABLES, InfiniteWidth, Quantities, estimated, lengths, quantities, recorded
from .plan import check_run, sample_size
from .processes import check_alike, together
from .result import Estimate
from .run import accumulate, begin, remedy_for_non_finite, terminable
from .samplers import BlockSampler, Sampler
from .simulate import Problem, compiled, kernels_of_networks
from .statistics import GROUPS, Group

BLOCK_LAW = BlockSampler()
LEAST_ENSEMBLE = 2 * GROUPS  # networks, two in each group


@together
def estimate(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    *,
    width: int,
    depth: int,
    eps: Float[ArrayLike, "..."],
    networks: int,
    key: PRNGKeyArray,
    sampler: Sampler = BLOCK_LAW,
    control: bool = True,
    save_at: Sequence[int] | int | None = None,
    target: tuple[Callable[[Quantities], Any], float] | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> Estimate:
    r"""Mean kernels, their covariances and their 1/n corrections over an ensemble of networks at initialisation.

    Every quantity comes with its standard error. Networks are sampled in float32. The same key gives the same bits on
    any number of devices of one kind and of processes, interrupted or not.

    Args:
        model: The block.
        K0: Kernel of the inputs at layer 0.
        width: Neurons of the stream, n.
        depth: Number of layers.
        eps: The step of a layer, one number or one for each layer.
        networks: How many to sample, 64 or more.
        key: Of `jax.random`; network i depends on the key and i alone.
        sampler: `BlockSampler()` draws increments by their law, `WeightSampler()` weights.
        control: K1, U1, kappa4 and V4_excess by control variates (block law only), from the infinite-width recursion of
            the model. Without control variates Gaussian expectations are used only in the definitions of K1 and U1, and
            the errors of K1 and U1 are far larger.
        save_at: Layers to keep, by default 41 evenly spaced ones.
        target: A function of the `Quantities` and the standard error wanted for it, such as
            `(lambda q: q.K1[-1, 0, 0], 0.002)`; the run ends when it is reached, or after `networks`.
        checkpoint: A file in which the run keeps its sums, every `checkpoint_seconds` and on Ctrl-C. If the file
            exists, the run goes on from it, also to more `networks`. Of several processes each adds its number to the
            name.
        checkpoint_seconds: Time between two writings of the checkpoint.
        progress: Whether to show a bar, and before it the time and the memory that the run needs.

    Returns:
        Every quantity at the saved layers, with standard errors and what made it.

    Raises:
        ValueError: For bad arguments, or a checkpoint of another run.
        MemoryError: Before the run, if it cannot fit.
        FloatingPointError: With depth and entry, for networks that turn non-finite.
    """
    check_arguments("estimate", model, K0, eps, key, sampler)
    check_flag(control, "control")
    check_flag(progress, "progress")
    networks = check_count(networks, "networks", least=LEAST_ENSEMBLE)
    if control and not isinstance(sampler, BlockSampler):
        raise ValueError(
            "Argument `control` must be False for this sampler: control variates reuse the normals of the block law, "
            "which weights do not have. Pass `control=False`, or leave `sampler` out."
        )
    problem = prepare(model, K0, width, depth, eps, sampler, save_at)
    check_run(problem, networks, check_count(depth, "depth"), control)
    problem, limit = add_theory(problem, model, K0, depth, eps, control)
    goal, wanted = None, None
    if target is not None:
        function, wanted = check_target(target, limit, control)
        goal = (lambda total: function(quantities(total, limit, problem.width, control))), wanted
    same = settings(problem, key)
    file = None if checkpoint is None else Checkpoint(checkpoint, same, checkpoint_seconds)
    check_alike(same | {"process": "any", "networks": networks, "target": wanted, "checkpoint": file is not None})
    silent = not progress or jax.process_index() > 0
    with contextlib.nullcontext() if file is None else file, terminable(file):
        plan, sums = begin(problem, networks, file)
        with tqdm(desc=f"width {width}", total=networks, unit=" networks", disable=silent) as bar:
            sums = accumulate(problem, key, plan, sums, bar, goal, file)
    layers = np.asarray(problem.layers)
    return Estimate.of(sums, limit, problem.width, layers, np.asarray(eps), control, model, sampler, key)


def sample_kernels(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    *,
    width: int,
    depth: int,
    eps: Float[ArrayLike, "..."],
    networks: int,
    key: PRNGKeyArray,
    sampler: Sampler = BLOCK_LAW,
    save_at: Sequence[int] | int | None = None,
) -> Float[np.ndarray, "networks T N N"]:
    """The empirical kernel G of single networks: those that `estimate` draws with the same key.

    Args:
        model: The block.
        K0: Kernel of the inputs at layer 0.
        width: Neurons of the stream, n.
        depth: Number of layers.
        eps: The step of a layer, one number or one for each layer.
        networks: How many to sample.
        key: Of `jax.random`; network i depends on the key and i alone.
        sampler: `BlockSampler()` draws increments by their law, `WeightSampler()` weights.
        save_at: Layers to keep, by default 41 evenly spaced ones.

    Returns:
        G of each network at each saved layer, float32.

    Raises:
        ValueError: For bad arguments.
        MemoryError: If the kernels cannot fit.
        FloatingPointError: With layer, entry and network, for networks that turn non-finite.
    """
    check_arguments("sample_kernels", model, K0, eps, key, sampler)
    networks = check_count(networks, "networks")
    problem = prepare(model, K0, width, depth, eps, sampler, save_at)
    size = sample_size(problem, networks)
    batches = [jnp.arange(first, first + size, dtype=jnp.uint32) for first in range(0, networks, size)]
    G = np.concatenate([np.asarray(compiled(kernels_of_networks)(problem, key, batch)) for batch in batches], axis=-1)
    G = np.moveaxis(G[..., :networks], -1, 0)
    bad = np.argwhere(~np.isfinite(G))
    if bad.size:
        network, t, p = bad[bad[:, 1].argmin()]  # the first layer at which it happens
        a, b = pairs(problem.factor.shape[0])
        raise FloatingPointError(
            f"The networks turned non-finite: entry [{a[p]}, {b[p]}] of G at layer {problem.layers[t]} of network "
            f"{network} is {G[network, t, p]}. {remedy_for_non_finite(model)}"
        )
    return G[..., pair_table(problem.factor.shape[0])]


def check_arguments(work, model, K0, eps, key, sampler):
    """Check that nothing is traced, and that each object is of the right class."""
    remedy = "it runs a whole ensemble on the host. Call it from outside; what `solve` gives can be differentiated."
    check_untraced(work, remedy, model, K0, eps, key)
    check_kind(model, Model, "model")
    check_kind(sampler, Sampler, "sampler")
    check_key(key)
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            f"`{work}` is compiled, and JAX_DISABLE_JIT (or jax.disable_jit) forbids that: switch it off here. To "
            "step through a network, call a `ResNet`."
        )


def prepare(model, K0, width, depth, eps, sampler, save_at) -> Problem:
    """Check the arguments and compute what all networks share."""
    K0 = check_kernel(K0)
    check_sampled(K0)
    width, depth = check_count(width, "width"), check_count(depth, "depth")
    shapes(model, width)
    eps = jnp.atleast_1d(jnp.asarray(check_eps(eps, model.decay, depth)))
    layers = np.unique(np.round(np.linspace(0, depth, 41))) if save_at is None else save_at
    saved = jnp.asarray(check_layers(layers, "save_at", depth), dtype=jnp.int32)
    problem = Problem(model, sampler, semidefinite_cholesky(K0), eps, skip(model, eps), saved, None, width)
    return cast(problem, jnp.float32)


def add_theory(problem: Problem, model: Model, K0, depth, eps, control) -> tuple[Problem, InfiniteWidth]:
    """The infinite-width values at the saved layers, in the wider of the precisions of model and K0; and the problem
    with the `Limits` for control variates."""
    k0 = pack(check_kernel(K0))
    k0, model = cast((k0, model), np.promote_types(k0.dtype, model.C_W.dtype))
    limits = find_limits(model, k0, squares(np.asarray(eps, np.float64), int(depth), k0.dtype))
    limit = InfiniteWidth(
        *(np.asarray(table, np.float64)[np.asarray(problem.layers)] for table in (limits.joint.K0, limits.joint.S))
    )
    if control:
        problem = eqx.tree_at(lambda p: p.limits, problem, cast(limits, jnp.float32), is_leaf=lambda x: x is None)
    return problem, limit


def cast(tree: Any, dtype: Any) -> Any:
    """All floating-point arrays in one precision: networks are float32, whatever the precision of the theory."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


def check_target(target: Any, limit: InfiniteWidth, control: bool) -> tuple[Callable[[Quantities], Any], float]:
    """Function and standard error of a target, if the function gives one number of quantities of the right shapes."""
    example = (
        "a function of the quantities and the standard error wanted for it, such as `(lambda q: q.K1[-1, 0, 0], 0.002)`"
    )
    if not isinstance(target, tuple | list) or len(target) != 2 or not callable(target[0]):
        raise ValueError(f"Argument `target` must be {example}, but is {target!r}.")
    function, wanted = target
    if np.asarray(wanted).dtype.kind not in "fiu":
        raise ValueError(f"Argument `target` must be {example}, but its standard error is {wanted!r}.")
    check_positive(wanted, "target")
    means, squared = lengths(limit.K0.shape[1], control)
    x = np.random.default_rng(0).uniform(1, 2, (3, len(limit.K0), means))
    y = x[..., :squared]
    total = Group(len(x), x.sum(axis=0), np.einsum("ktm,ktn->tmn", y, y))
    try:
        with np.errstate(all="ignore"):
            value = np.asarray(function(quantities(total, limit, 1, control)))
    except Exception as error:
        lacking = [name for name in OBSERVABLES if name not in estimated(control)]
        hint = f" Without control variates {', '.join(f'`{name}`' for name in lacking)} is None." if lacking else ""
        raise ValueError(f"The function in `target` fails: {type(error).__name__}: {error}.{hint}") from error
    if value.shape != () or value.dtype.kind not in "fiu":
        raise ValueError(
            f"The function in `target` must give one number, but gives an array of {value.dtype} of shape "
            f"{value.shape}."
        )
    return function, float(wanted)


def settings(problem: Problem, key: PRNGKeyArray) -> dict:
    """What two runs must share for one to go on from the other's sums."""
    grid = jnp.linspace(-30, 30, 241, dtype=jnp.float32)
    branch, values = problem.model.branch, [section.neurons.elementwise(grid) for section in problem.model.sections]
    arrays = [np.asarray(x) for x in [*values, *jax.tree.leaves(eqx.filter(problem, eqx.is_array))]]
    eps = np.unique(np.asarray(problem.eps))
    return {
        "format": 7,
        "jax": [jax.__version__, jaxlib.version.__version__],
        "platform": jax.local_devices()[0].device_kind,
        "process": [jax.process_index(), jax.process_count()],
        "width": problem.width,
        "layers": np.asarray(problem.layers).tolist(),
        "eps": eps.tolist() if eps.size > 1 else eps.item(),
        "key": np.asarray(jax.random.bits(key, (2,), jnp.uint32)).tolist(),
        "sampler": type(problem.sampler).__name__,
        "control": problem.control,
        "averages": [average.name for average in recorded(problem.control)[0]],
        "branch": [f"Dense(ratio={part.ratio})" if isinstance(part, Dense) else type(part).__name__ for part in branch],
        "model and inputs": hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()[:16],
    }
