r"""What the theory says about an observed ensemble: expected statistics, their derivatives, and their noise.

The statistics of B networks are the mean kernel at each saved layer and, if asked for, the sample covariance at each
layer, all packed:

$$E[\bar G] = K_0 + K_1 / n, \qquad \mathrm{Cov}(\bar G) = C / (n B), \qquad
  \mathrm{Cov}(\hat C_{pq}, \hat C_{rs}) = (C_{pr} C_{qs} + C_{ps} C_{qr}) / (n^2 (B - 1))$$

Within a layer C is V4; between two layers C is the covariance from the closure's memory (`remember`, `follow`,
`recall`).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..closures import Closure, GOnly, HermiteTower
from ..closures.base import COPIES, check_memory, error_along, held_fixed
from ..compiling import compiled_soon
from ..depths import squares
from ..pairs import pack, pair_count, pair_table, pairs
from ..trajectory.solve import settled
from .parameters import Experiment, from_coordinates, set_parameters

MOST = 8  # for mean kernels alone: up to so many inputs the exact covariances are carried together


class Prediction(NamedTuple):
    """Expected statistics (M,), their Jacobian in the free coordinates, and the covariance C / n of one network's
    kernels.

    `expectation_error` is the estimated relative error of the Gaussian expectations behind them.
    """

    statistics: Float[Array | np.ndarray, " M"]
    jacobian: Float[Array | np.ndarray, "M parameters"]
    covariance: Float[Array | np.ndarray, "T P T P"]
    expectation_error: Float[Array | np.ndarray, ""]


def by_pairs(experiment: Experiment, closure: Closure, with_V4: bool) -> bool:
    """Whether means and variances are computed pair by pair: for mean kernels of many inputs by the exact closure."""
    return isinstance(closure, HermiteTower) and experiment.K0.shape[0] > MOST and not with_V4


def settle(experiment: Experiment, names: tuple[str, ...], closure: Closure, with_V4: bool) -> Closure:
    """The closure with its open choices made at the experiment's own values. Raises MemoryError if it cannot fit."""
    e, T, N = experiment, len(experiment.layers), experiment.K0.shape[0]
    k, dt = e.K0_scale * pack(e.K0), squares(e.eps, e.layers[-1], e.K0.dtype)
    if by_pairs(e, closure, with_V4):
        closure = closure.settled(e.model, k, dt)
        whole, tangents, why = GOnly(), 0, ", whose covariances weigh the mean kernels,"
    else:
        closure = whole = settled(closure, e.model, k, dt, T)
        tangents, why = len(names), f", with derivatives by {len(names)} parameters,"
    # Memories before and behind a layer; covariances between layers as they are saved and as they are returned.
    kept = 2 * (T * whole.numbers(e.model, N) // COPIES + (T * pair_count(N)) ** 2)
    remedy = "Observe fewer layers or fewer inputs"
    check_memory(whole, e.model, N, e.K0.dtype.itemsize, T, tangents=tangents, kept=kept, why=why, remedy=remedy)
    return closure


@compiled_soon
def predict(
    experiment: Experiment,
    names: tuple[str, ...],
    coordinates: Float[Array, " parameters"],
    closure: Closure,
    with_V4: bool,
) -> Prediction:
    """Theory and Jacobian at a point; one compiled program serves a whole fit, whatever the data."""

    def statistics(coordinates):
        e = set_parameters(experiment, names, from_coordinates(experiment, names, coordinates))
        if by_pairs(e, closure, with_V4):
            mean, covariance, error = moments_by_pairs(e, closure.for_two_inputs())
        else:
            mean, covariance, error = kernel_moments(e, closure)
        y = mean.reshape(-1)
        if with_V4:
            y = jnp.concatenate([y, pack(_within(covariance)).reshape(-1)])
        return y, (y, covariance, error)

    jacobian, (y, covariance, error) = jax.jacfwd(statistics, has_aux=True)(coordinates)
    return Prediction(y, jacobian, covariance, error)


def kernel_moments(
    e: Experiment, closure: Closure
) -> tuple[Float[Array, "T P"], Float[Array, "T P T P"], Float[Array, ""]]:
    """Mean and covariance, within and between the observed layers, of one network's packed kernels, to order 1/n.

    The last result is the estimated relative error of the Gaussian expectations, the largest from the input kernel to
    the last of those layers.
    """
    model, depths, k = e.model, len(e.layers), e.K0_scale * pack(e.K0)
    # The scan has one more layer behind the last observed one, which nothing reads.
    dt = jnp.append(squares(e.eps, e.layers[-1], e.K0.dtype), jnp.zeros((), e.K0.dtype))
    # Each layer writes into the row of the observed layer that comes next, whose own numbers are the last.
    row = np.searchsorted(e.layers, np.arange(dt.size))
    fixed = held_fixed(model)  # noise is not differentiated between layers

    def layer(carry, x):
        (state, memories, saved), (row, dt) = carry, x
        moments, frozen = closure.moments(model, state), jax.lax.stop_gradient(state)

        def write(rows, new):
            return jax.tree.map(lambda rows, new: rows.at[row].set(new), rows, new)

        memories = write(memories, closure.remember(fixed, frozen))
        across = jax.vmap(lambda m: closure.recall(fixed, frozen, m))(memories)
        saved = write(saved, (moments.K0, moments.K1, moments.V4, across))
        later = jax.vmap(lambda m: closure.follow(fixed, frozen, m, jax.lax.stop_gradient(dt)))(memories)
        return (closure.step(model, state, dt), later, saved), None

    start = closure.init(model, k)
    nothing = jax.tree.map(lambda m: jnp.zeros((depths, *m.shape), m.dtype), closure.remember(fixed, start))
    none = (jnp.zeros((depths, *shape, *k.shape), k.dtype) for shape in ((), (), k.shape, (depths, *k.shape)))
    (_, _, saved), _ = jax.lax.scan(layer, (start, jax.lax.stop_gradient(nothing), tuple(none)), (row, dt))
    K0, K1, V4, across = saved
    error = error_along(closure, model, jnp.concatenate([k[None], K0]))
    return K0 + K1 / e.width, _join(V4, across) / e.width, error


def moments_by_pairs(
    e: Experiment, closure: Closure
) -> tuple[Float[Array, "T P"], Float[Array, "T P T P"], Float[Array, ""]]:
    """`kernel_moments` of many inputs. Means and variances are exact, pair by pair; the covariances, which weigh them,
    are approximate.

    Covariances between entries, and between layers, have the correlations of `GOnly` and the exact variances. This is
    enough for the weights of mean kernels, but not for statistics that are covariances themselves.
    """
    inputs = e.K0.shape[0]
    members, (a, b) = np.stack(np.triu_indices(inputs, 1), axis=1), pairs(inputs)
    partner = np.where(a == b, (a + 1) % inputs, b)  # an input's own entry is in each of its pairs
    low, high = np.minimum(a, partner), np.maximum(a, partner)
    place = {(i, j): row for row, (i, j) in enumerate(members.tolist())}
    row = np.array([place[i, j] for i, j in zip(low.tolist(), high.tolist(), strict=True)])
    entry = pair_table(2)[(a == high).astype(int), (b == high).astype(int)]

    def one(K):
        mean, covariance, error = kernel_moments(eqx.tree_at(lambda e: e.K0, e, K), closure)
        return mean, jnp.diagonal(covariance.reshape(mean.size, mean.size)).reshape(mean.shape), error

    mean, variance, errors = jax.lax.map(one, e.K0[members[:, :, None], members[:, None, :]], batch_size=4)
    mean, variance = (x[row, :, entry].T for x in (mean, variance))
    _, C, _ = kernel_moments(e, GOnly())
    size = jnp.sqrt(variance / jnp.diagonal(C.reshape(mean.size, mean.size)).reshape(mean.shape))
    return mean, C * size[:, :, None, None] * size[None, None], jnp.max(errors)


def _join(V4, across):
    """(T, P, T, P) from the blocks of one layer and from Cov(G(l), G(m)) at [l, m], m earlier."""
    T = V4.shape[0]
    later = np.tri(T, k=-1, dtype=bool)[:, :, None, None]
    blocks = jnp.where(later, across, 0)
    blocks = blocks + blocks.transpose(1, 0, 3, 2) + jnp.where(np.eye(T, dtype=bool)[:, :, None, None], V4[:, None], 0)
    return blocks.transpose(0, 2, 1, 3)


def _within(covariance):
    """The covariance of each layer with itself, (T, P, P)."""
    return jnp.moveaxis(jnp.diagonal(covariance, axis1=0, axis2=2), -1, 0)


def noise(covariance: Float[Array | np.ndarray, "T P T P"], networks: float, with_V4: bool) -> Float[np.ndarray, "M M"]:
    """Covariance of the statistics of an ensemble, for Gaussian fluctuations: right to leading order in 1/n."""
    T, P = covariance.shape[:2]
    C = np.asarray(covariance, np.float64).reshape(T * P, T * P)
    if not with_V4:
        return C / networks
    a, b = np.triu_indices(P)
    first, second = ((np.arange(T)[:, None] * P + part).reshape(-1) for part in (a, b))
    square = C[np.ix_(first, first)] * C[np.ix_(second, second)] + C[np.ix_(first, second)] * C[np.ix_(second, first)]
    zero = np.zeros((T * P, first.size))
    return np.block([[C / networks, zero], [zero.T, square / (networks - 1)]])


def whitener(noise: Float[np.ndarray, "M M"], rtol: float) -> Float[np.ndarray, "rank M"]:
    """A matrix that turns the noise into independent numbers of variance one. Combinations without noise are left out.

    Combinations without noise are exact relations, such as between repeated inputs, and hold no information.
    """
    scale, values, vectors = _modes(noise)
    kept = values > rtol * values[-1]
    return (vectors[:, kept] / np.sqrt(values[kept])).T / scale


def exact_relations(noise: Float[np.ndarray, "M M"], rtol: float) -> Float[np.ndarray, "relations M"]:
    """The combinations that `whitener` leaves out, each statistic in units of its standard error."""
    scale, values, vectors = _modes(noise)
    return vectors[:, values <= rtol * values[-1]].T / scale


def _modes(noise):
    scale = np.sqrt(np.diagonal(noise))
    scale = np.where(scale > 0, scale, 1.0)
    return scale, *np.linalg.eigh(noise / scale / scale[:, None])
