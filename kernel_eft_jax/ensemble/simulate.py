r"""A batch of networks on its device: layer by layer from the inputs to the last saved depth.

Arrays are (inputs, neurons, networks), float32, networks innermost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from ..compiling import compiled_with
from ..model import Model
from ..network import shapes
from .control_variates import Control, Limits, advance, differences, start
from .factors import gram, mix
from .normals import network_keys
from .observables import Networks, recorded
from .samplers import Sampler, as_rows, draw_hidden, draw_last, draw_rows, read_stream
from .statistics import CentredSums, centred_sums


class Problem(eqx.Module):
    """All that a network depends on except its key; arrays are float32."""

    model: Model
    sampler: Sampler
    factor: Float[Array, "N N"]
    eps: Float[Array, " steps"]  # of each layer, or one for all
    skip: Float[Array, " steps"]
    layers: Int[Array, " T"]
    limits: Limits | None
    width: int = eqx.field(static=True)

    @property
    def control(self) -> bool:
        """Whether there are control variates."""
        return self.limits is not None


class NetworkState(NamedTuple):
    """A batch of networks between two layers: pre-activations, what the last matrix of the next layer reads, and the
    control variates."""

    phi: Float[Array, "N n B"]
    read: Any
    control: Control | None


def simulate(problem: Problem, key: PRNGKeyArray, networks: UInt32[Array, " B"], measure: Callable) -> Any:
    """What `measure(state, limits)` gives at each saved depth, stacked."""
    model, sampler, width = problem.model, problem.sampler, problem.width
    inputs, keys = problem.factor.shape[0], network_keys(key, networks)
    last, shape = model.sections[-1].dense, shapes(model, width)[-1]

    def at(layer):
        return jax.tree.map(lambda table: table[layer], problem.limits)

    def once(function, *arguments):
        return computed_once(problem.layers[-1] >= 0, function, *arguments)

    def numbers(draw, layer):  # of the layer behind depth `layer`
        return once(draw, sampler, model, keys, (layer + 1).astype(jnp.uint32), inputs, width)

    def step(layer, state):
        noise, hidden = numbers(draw_last, layer), numbers(draw_hidden, layer + 1)
        eps, a = once(lambda: [x.at[layer].get(mode="clip") for x in (problem.eps, problem.skip)])
        phi = eps * sampler.outputs(last, state.read, noise, shape) + a * state.phi
        reads, control = read_stream(sampler, model, phi, hidden), state.control
        if control is not None:
            limits = at(layer), at(layer + 1)
            control = advance(control, model, limits, (state.read, reads), (noise, hidden), eps, a)
        return NetworkState(phi, reads[-1], control)

    def save(state, interval):
        state = jax.lax.fori_loop(interval[0], interval[1], step, state)
        return state, measure(state, at(interval[1]))

    zero = jnp.zeros((), problem.layers.dtype)
    z = as_rows(draw_rows(keys, jnp.uint32(0), inputs, width), (inputs, width, networks.size))
    phi, hidden = mix(problem.factor[:, :, None], z), numbers(draw_hidden, zero)
    reads = read_stream(sampler, model, phi, hidden)
    control = None if problem.limits is None else start(phi, model, at(0), reads, hidden)
    first = NetworkState(phi, reads[-1], control)
    return jax.lax.scan(save, first, (jnp.append(zero, problem.layers[:-1]), problem.layers))[1]


def computed_once(always: Bool[Array, ""], function: Callable, *arguments: Any) -> Any:
    """function(*arguments) behind a cond, so that XLA computes it once instead of in every fused loop.

    `always` is true, which the compiler cannot know.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: function(*arguments)))
    return jax.lax.cond(always, lambda: function(*arguments), lambda: zeros)


def compiled(function: Callable) -> Callable:
    """`function`, compiled with vectors of 512 bits where the processor has AVX-512: XLA's default is 256."""
    return compiled_with(function, xla_cpu_prefer_vector_width="512")


def kernels_of_networks(problem: Problem, key: PRNGKeyArray, networks: UInt32[Array, " B"]) -> Float[Array, "T P B"]:
    """G of each network at each saved depth."""
    return simulate(problem, key, networks, lambda state, limits: gram(state.phi))


def moments_of_blocks(
    problem: Problem,
    key: PRNGKeyArray,
    blocks: UInt32[Array, " devices"],
    networks: UInt32[Array, ""],
    size: int,
    parts: int,
    mesh: Mesh,
) -> CentredSums:
    """CentredSums (devices, T, parts, ...) of one block of `size` consecutive networks on each device of a mesh, in
    equal parts.

    Networks with a number of `networks` or more do not count. A device always computes one block of one shape: the
    order in which compiled code sums over neurons depends on the shape alone.
    """
    arrays, static = eqx.partition(problem, eqx.is_array)

    def one_block(arrays, key, networks, block):
        problem = eqx.combine(arrays, static)
        members = block * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)

        def measure(state, limits):
            x = gram(state.phi), problem.sampler.kernel(state.read), gram(state.phi**2)
            less = None if state.control is None else differences(state.control, *x, limits)
            seen = Networks(state.phi, *x, less)
            asked, squared = recorded(problem.control)
            weight = (members < networks).astype(jnp.float32)
            x, squared = jnp.concatenate([average.of(seen) for average in asked]), squared * len(seen.G)
            x = jnp.moveaxis(x.reshape(-1, parts, size // parts), 1, 0)
            return jax.vmap(centred_sums, (0, None, 0))(x, squared, weight.reshape(parts, -1))

        return jax.tree.map(lambda x: x[None], simulate(problem, key, members, measure))

    spread, same = PartitionSpec(mesh.axis_names), PartitionSpec()
    over_devices = jax.shard_map(
        one_block, mesh=mesh, in_specs=(same, same, same, spread), out_specs=spread, check_vma=False
    )
    return over_devices(arrays, key, networks, blocks)
