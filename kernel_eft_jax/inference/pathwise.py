r"""Derivatives through the sampler: how the kernels of fixed random networks change with a parameter.

The normals z of the block law, those of hidden layers too, are held fixed while $\phi' = a \phi + \epsilon L z$,
$L L^T = C_b + C_W S$, changes with the parameter. So the mean over networks of dG/dtheta is an unbiased estimate of d
E[G]/dtheta at finite width, if S has full rank or keeps its rank as the parameter changes. The estimate is wrong for
C_b at zero if there are more inputs than neurons, or repeated inputs that biases would separate.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, UInt32

from ..checks import check_count, check_kernel
from ..cholesky import semidefinite_cholesky
from ..depths import check_eps
from ..ensemble import BlockSampler
from ..ensemble.factors import gram, mix
from ..ensemble.normals import network_keys
from ..ensemble.samplers import as_rows, draw_hidden, draw_last, draw_rows, read_stream
from ..kernel_maps import Affine
from ..model import Model
from ..network import shapes, skip
from ..pairs import pack, unpack
from .parameters import Experiment, check_names, get_parameters, least_values, set_parameters

NETWORKS_AT_ONCE = 256  # in one compiled call


def pathwise_kernels(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    *,
    width: int,
    layers: tuple[int, ...],
    eps: Float[ArrayLike, "..."],
    networks: UInt32[Array, " B"],
    key: PRNGKeyArray,
) -> Float[Array, "B T N N"]:
    """The kernels G that `sample_kernels` draws, of the networks with these numbers, differentiable in model, K0 and
    eps, in both modes.

    Reverse mode keeps of the order of sqrt(depth) states of each network and recomputes the rest. The kernels are
    computed in the precision of K0; for statistics without derivatives `estimate` is faster. The derivatives are not
    those of the law if C_b is zero and biases would separate inputs that depend on each other: opposite inputs, or more
    inputs than neurons.

    Args:
        model: The block.
        K0: Kernel of the inputs at layer 0.
        width: Neurons of the stream, n.
        layers: Numbers of the layers to keep.
        eps: The step of a layer, one number or one for each layer.
        networks: Numbers of the networks.
        key: Of `jax.random`.

    Returns:
        G of each network at each of the layers.
    """
    K0 = check_kernel(K0)
    dtype, inputs, depth = K0.dtype, K0.shape[0], max(layers[-1], 1)
    model = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, model)
    eps = jnp.broadcast_to(jnp.asarray(check_eps(eps, model.decay, depth), dtype), (depth,))
    a, keys, sampler = skip(model, eps), network_keys(key, networks), BlockSampler()
    observed, (last, shape) = np.asarray(layers), (model.sections[-1].dense, shapes(model, width)[-1])

    def draw(numbers, index):
        noise = numbers(sampler, model, keys, (index + 1).astype(jnp.uint32), inputs, width)
        return jax.tree.map(lambda z: jax.lax.complex(z.real.astype(dtype), z.imag.astype(dtype)), noise)

    def layer(carry, index):
        phi, saved = carry
        *_, read = read_stream(sampler, model, phi, draw(draw_hidden, index))
        eta = sampler.outputs(last, read, draw(draw_last, index), shape)
        later = a[index] * phi + eps[index] * eta
        saved = jnp.where((observed == index + 1)[:, None, None], gram(later), saved)
        return (jnp.where(index < depth, later, phi), saved), None

    @jax.checkpoint
    def segment(carry, indices):
        return jax.lax.scan(jax.checkpoint(layer), carry, indices)

    z = as_rows(draw_rows(keys, jnp.uint32(0), inputs, width), (inputs, width, networks.size))
    phi = mix(semidefinite_cholesky(K0)[:, :, None], z.astype(dtype))
    saved = jnp.broadcast_to(gram(phi), (observed.size, *gram(phi).shape))
    stride = math.isqrt(depth)
    indices = jnp.arange(-(-depth // stride) * stride).reshape(-1, stride)
    (_, saved), _ = jax.lax.scan(segment, (phi, saved), indices)
    return unpack(jnp.moveaxis(saved, -1, 0))


class Pathwise(eqx.Module):
    """Mean kernels of an ensemble and their derivatives by each parameter."""

    G: Float[np.ndarray, "T N N"]
    derivative: Float[np.ndarray, "parameters T N N"]


class PathwiseSensitivity(Pathwise):
    """Mean kernels of an ensemble and their derivatives by the parameters `names`, with standard errors."""

    names: tuple[str, ...] = eqx.field(static=True)
    stderr: Pathwise


def pathwise_sensitivity(
    experiment: Experiment, free: Sequence[str], *, networks: int, key: PRNGKeyArray
) -> PathwiseSensitivity:
    """Mean kernels at finite width and their derivatives by the named parameters, from sampled networks.

    This checks a theory without using one: compare with `sensitivity`. Raises ValueError for parameters without such a
    derivative: the width, and C_b at zero if biases would separate inputs that depend on each other.
    """
    names = check_names(experiment, free)
    networks = check_count(networks, "networks", 2)
    width = float(experiment.width)
    if "width" in names or width != round(width):
        raise ValueError(
            "The `width` of the experiment must be a whole number of neurons, and must not be free: networks have no "
            "derivative by it."
        )
    values = np.asarray(get_parameters(experiment, names))
    if (values == least_values(experiment, names)).any() and _biases_separate(experiment):
        raise ValueError(
            "Argument `free` names C_b, which is zero, and biases would separate inputs that depend on each other "
            "without them (opposite inputs, or more inputs than neurons): single networks have no derivative there. "
            "Start from C_b > 0, leave out the dependent inputs, or take `sensitivity`, whose mean kernels have "
            "a derivative."
        )
    first, second = np.zeros(()), np.zeros(())
    for start in range(0, networks, NETWORKS_AT_ONCE):
        members = jnp.arange(start, min(start + NETWORKS_AT_ONCE, networks), dtype=jnp.uint32)
        x = np.asarray(_with_derivatives(experiment, names, round(width), members, key), np.float64)
        first, second = first + x.sum(axis=1), second + (x**2).sum(axis=1)
    mean = first / networks
    error = np.sqrt(np.maximum(second / networks - mean**2, 0) / (networks - 1))
    return PathwiseSensitivity(mean[0], mean[1:], names, Pathwise(error[0], error[1:]))


def _biases_separate(experiment):
    """Whether biases would give outputs of a matrix independent parts, or signs, that they do not have without
    biases."""
    responses = experiment.model.responses(pack(experiment.K0_scale * experiment.K0))
    covariances = [np.asarray(unpack(r.value)) for r in responses if isinstance(r, Affine)]
    outputs = shapes(experiment.model, round(float(experiment.width)))

    def separate(A, count):
        tolerance = 1e-6 * np.trace(A)
        without, with_biases = (np.linalg.matrix_rank(C, tol=tolerance, hermitian=True) for C in (A, A + np.trace(A)))
        return len(A) > count or with_biases > without

    return any(separate(A, shape[1]) for A, shape in zip(covariances, outputs, strict=True))


@eqx.filter_jit
def _with_derivatives(experiment, names, width, members, key):
    """G and its derivatives, (1 + parameters, B, T, N, N)."""

    def kernels(values):
        e = set_parameters(experiment, names, values)
        sizes = {"width": width, "layers": e.layers, "eps": e.eps}
        G = pathwise_kernels(e.model, e.K0_scale * e.K0, **sizes, networks=members, key=key)
        return G, G

    derivative, G = jax.jacfwd(kernels, has_aux=True)(get_parameters(experiment, names))
    return jnp.concatenate([G[None], jnp.moveaxis(derivative, -1, 0)])
