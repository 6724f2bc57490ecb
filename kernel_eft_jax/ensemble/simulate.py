r"""A batch of networks on its device: layer by layer from the inputs to the last saved depth.

Arrays are (inputs, neurons, networks), float32, networks innermost. Random numbers of the next layer are part of the loop's state:
so they are computed once, and not again in every expression that uses them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from ..model import Model
from .control import Free, Path, advance, differences, start
from .normals import network_keys
from .samplers import Sampler, as_rows, draw_rows, gram, mix
from .statistics import Moments, block_moments


class Problem(eqx.Module):
    """All that a network's path depends on but its key; arrays in float32."""

    model: Model
    sampler: Sampler
    factor: Float[Array, "N N"]
    eps: Float[Array, ""]
    layers: Int[Array, " T"]
    path: Path | None
    width: int = eqx.field(static=True)


def fields(problem: Problem) -> tuple[tuple[str, ...], int]:
    """Names of what is averaged at each saved depth, each packed, and how many of the first have second moments."""
    if problem.path is None:
        return ("G", "S", "F"), 2
    return ("G", "S", "G - C_G", "S - C_S", "R", "F - C_F"), 3


class State(NamedTuple):
    """A batch of networks between two layers: pre-activations, random numbers of the next layer, control."""

    phi: Float[Array, "N n B"]
    noise: Any
    free: Free | None


def simulate(problem: Problem, key: PRNGKeyArray, networks: UInt32[Array, " B"], measure: Callable) -> Any:
    """What `measure(phi, free, path)` gives at each saved depth, stacked."""
    model, sampler, width = problem.model, problem.sampler, problem.width
    inputs, keys = problem.factor.shape[0], network_keys(key, networks)

    def draw(layer):
        return sampler.draw(keys, (layer + 1).astype(jnp.uint32), inputs, width)

    def at(layer):
        return jax.tree.map(lambda table: table[layer], problem.path)

    def step(layer, state):
        s = model.activation(state.phi)
        eta = sampler.increment(model, s, state.noise)
        free = state.free
        if free is not None:
            free = advance(free, s, model, at(layer), state.noise, problem.eps)
        return State(state.phi + problem.eps * eta, draw(layer + 1), free)

    def save(state, interval):
        state = jax.lax.fori_loop(interval[0], interval[1], step, state)
        return state, measure(state.phi, state.free, at(interval[1]))

    first = jnp.zeros((), problem.layers.dtype)
    z = as_rows(draw_rows(keys, jnp.uint32(0), inputs, width), (inputs, width, networks.size))
    phi = mix(problem.factor[:, :, None], z)
    free = None if problem.path is None else start(phi)
    intervals = (jnp.concatenate([first[None], problem.layers[:-1]]), problem.layers)
    return jax.lax.scan(save, State(phi, draw(first), free), intervals)[1]


@eqx.filter_jit
def kernels_of_networks(problem: Problem, key: PRNGKeyArray, networks: UInt32[Array, " B"]) -> Float[Array, "T P B"]:
    """G of each network at each saved depth."""
    return simulate(problem, key, networks, lambda phi, free, path: gram(phi))


@eqx.filter_jit
def moments_of_blocks(
    problem: Problem,
    key: PRNGKeyArray,
    blocks: UInt32[Array, " devices"],
    networks: UInt32[Array, ""],
    size: int,
    parts: int,
    mesh: Mesh,
) -> Moments:
    """Moments (devices, T, parts, ...) of one block of `size` consecutive networks on each device of a mesh, in equal parts.

    Networks from number `networks` on do not count. A device always computes one block, of one shape: the order in which
    compiled code sums over neurons depends on the shape, and on nothing else.
    """
    arrays, static = eqx.partition(problem, eqx.is_array)

    def one_block(arrays, key, networks, block):
        problem = eqx.combine(arrays, static)
        members = block * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)

        def measure(phi, free, path):
            x = gram(phi), gram(problem.model.activation(phi)), gram(phi**2)
            if free is not None:
                x = *x[:2], *differences(free, *x, problem.model, path)
            weight = (members < networks).astype(jnp.float32)
            x, squared = jnp.concatenate(x), fields(problem)[1] * len(x[0])
            x = jnp.moveaxis(x.reshape(-1, parts, size // parts), 1, 0)
            return jax.vmap(block_moments, (0, None, 0))(x, squared, weight.reshape(parts, -1))

        return jax.tree.map(lambda x: x[None], simulate(problem, key, members, measure))

    spread, same = PartitionSpec(mesh.axis_names), PartitionSpec()
    over_devices = jax.shard_map(
        one_block, mesh=mesh, in_specs=(same, same, same, spread), out_specs=spread, check_vma=False
    )
    return over_devices(arrays, key, networks, blocks)
