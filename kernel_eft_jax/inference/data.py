r"""Statistics of observed kernels, and how they scatter from network to network.

Each network i gives $y_i = (g_i, (g_i - \bar g)(g_i - \bar g)^T B / (B - 1))$. The mean of the y_i is the mean kernel
and the sample covariance, and their scatter is the noise of this mean, whatever its law. An `Estimate` holds the y_i
averaged over groups of networks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from ..checks import LEAST_NETWORKS, to_numpy
from ..depths import first_steps
from ..ensemble import Estimate, observables
from ..ensemble.own_kernels import check_networks
from ..pairs import pack, pair_count, pairs, unpack
from .parameters import Experiment, get_parameters, places


class Observed(NamedTuple):
    """Statistics y (M,) of B networks, as the weighted mean of independent replicates."""

    statistics: Float[np.ndarray, " M"]
    replicates: Float[np.ndarray, "R M"]
    shares: Float[np.ndarray, " R"]
    networks: int

    def scatter(self, linear: Float[np.ndarray, "k M"]) -> Float[np.ndarray, "k k"]:
        """Covariance of linear functions of the statistics, from the replicates."""
        change = self.shares[:, None] * ((self.replicates - self.statistics) @ linear.T)
        count = len(self.shares)
        return change.T @ change * count / (count - 1)


def observe(data: Estimate | Float[np.ndarray, "B T N N"], experiment: Experiment, with_V4: bool) -> Observed:
    """The statistics of kernels, after a check that they fit the experiment."""
    if isinstance(data, Estimate):
        return _observe_estimate(data, experiment, with_V4)
    inputs, layers = experiment.K0.shape[0], len(experiment.layers)
    if isinstance(data, eqx.Module):
        raise ValueError(
            f"Argument `data` must be kernels of sampled networks or an Estimate, but is a {type(data).__name__}."
        )
    G = to_numpy(data, "data")
    if G.ndim != 4 or G.shape[1:] != (layers, inputs, inputs):
        raise ValueError(
            f"Argument `data` must be kernels of shape (networks, layers, inputs, inputs) = (networks, {layers}, "
            f"{inputs}, {inputs}), or an Estimate, but has shape {G.shape}."
        )
    B = len(G)
    if B < LEAST_NETWORKS:
        raise ValueError(
            f"Argument `data` must hold {LEAST_NETWORKS} networks or more to show their scatter, but holds {B}."
        )
    G = check_networks(G, "data", experiment.width.item(), [f"layer {layer}" for layer in experiment.layers])
    a, b = pairs(inputs)
    g = 0.5 * (G[..., a, b] + G[..., b, a])
    y = g.reshape(B, -1)
    if with_V4:
        p, q = np.triu_indices(a.size)
        d = g - g.mean(axis=0)
        y = np.concatenate([y, (d[..., p] * d[..., q] * (B / (B - 1))).reshape(B, -1)], axis=1)
    return Observed(y.mean(axis=0), y, np.full(B, 1 / B), B)


def check_same(estimate: Estimate, experiment: Experiment, free: Sequence[str]) -> None:
    """Check that an Estimate and the experiment have the same networks, except for the free parameters. Raises
    ValueError with the difference.

    To fit an experiment that is known to differ from the networks, give their kernels by `sample_kernels`.
    """
    model, remedy = estimate.model, "Give the experiment what the data were made with, or fit it as a free parameter."
    there = {"width": estimate.width}
    if model is not None:
        if _kinds(model) != _kinds(experiment.model):
            raise ValueError(
                f"The Estimate is of networks of {' '.join(_kinds(model))}, the experiment of "
                f"{' '.join(_kinds(experiment.model))}. {remedy}"
            )
        ratios = [[section.dense.ratio for section in m.sections] for m in (model, experiment.model)]
        if ratios[0] != ratios[1]:
            raise ValueError(
                f"The Estimate is of networks whose matrices have the ratios {ratios[0]}, those of the experiment have "
                f"{ratios[1]}. {remedy}"
            )
        made_by = eqx.tree_at(lambda e: e.model, experiment, model)
        names = tuple(places(experiment.model))
        there |= dict(zip(names, get_parameters(made_by, names).tolist(), strict=True))
    for name, value in there.items():
        here = float(get_parameters(experiment, (name,))[0])
        if name not in free and not np.isclose(here, float(value), rtol=1e-5, atol=0):
            raise ValueError(
                f"The Estimate is of networks with {name} = {float(value):.6g}, the experiment holds it at "
                f"{here:.6g}. {remedy}"
            )
    _check_steps(estimate, experiment, free)
    _check_inputs(estimate, experiment, free)


def _check_steps(estimate, experiment, free):
    """Check that every layer has one eps in both, or one and the same eps in all layers of the data where eps is
    free."""
    last = experiment.layers[-1]
    own, here = (first_steps(x.eps, last) for x in (estimate, experiment))
    here = np.full(last, own[0]) if "eps" in free else here
    wrong = np.flatnonzero(~np.isclose(own, here, rtol=1e-5, atol=0))
    if wrong.size:
        i, one = wrong[0], "has one eps in all layers" if "eps" in free else f"holds it at {here[wrong[0]]:.6g}"
        raise ValueError(
            f"The Estimate is of networks with eps = {own[i]:.6g} in layer {i + 1}, the experiment {one}. Give "
            "the experiment the eps that the data were made with."
        )


def _check_inputs(estimate, experiment, free):
    """Check that both have one input kernel, up to a factor where K0_scale is free: by the kernel at depth zero if that
    was saved, else by what the estimate's model makes of the experiment's kernel."""
    at_zero, model = estimate.layers[0] == 0, estimate.model
    if not at_zero and (model is None or "K0_scale" in free):
        return
    layer = int(estimate.layers[0])
    here, own = np.asarray(experiment.K0_scale * experiment.K0, np.float64), estimate.K0[0]
    if "K0_scale" in free:
        here = here * (np.trace(own) / np.trace(here))
    if not at_zero:
        here = np.asarray(unpack(_infinite_width(model, pack(here), first_steps(estimate.eps, layer) ** 2)))
    deviations = np.sqrt(np.diagonal(own))
    gap = np.abs(here - own) / deviations[:, None] / deviations
    if gap.max() > 1e-4:
        a, b = np.unravel_index(gap.argmax(), gap.shape)
        raise ValueError(
            f"The Estimate is of inputs whose kernel of infinite width at layer {layer} has entry [{a}, {b}] = "
            f"{own[a, b]:.6g}, and the experiment's K0 gives {here[a, b]:.6g}. Give the experiment the input kernel "
            "that the data were made with."
        )


@eqx.filter_jit
def _infinite_width(model, k, dt):
    """The kernel of infinite width behind layers of steps dt."""
    return jax.lax.scan(lambda k, dt: (model.shrink(dt) * k + dt * model.q(k), None), k, dt)[0]


def _kinds(module):
    """The classes that a module is made of, in order."""
    inner = jax.tree.leaves(module, is_leaf=lambda x: x is not module and isinstance(x, eqx.Module))
    return [type(module).__name__] + [kind for node in inner if isinstance(node, eqx.Module) for kind in _kinds(node)]


def _observe_estimate(data, experiment, with_V4):
    P = pair_count(experiment.K0.shape[0])
    of_G = observables.slice_of(observables.G, P, data.control)
    layers = tuple(np.asarray(data.layers).tolist())
    if layers != experiment.layers or data.K0.shape[-1] != experiment.K0.shape[0]:
        raise ValueError(
            f"The Estimate has layers {layers} and {data.K0.shape[-1]} inputs, the experiment {experiment.layers} and "
            f"{experiment.K0.shape[0]}: give the experiment the layers and inputs of the data."
        )
    groups = [group for group in data.sums.groups if group.networks]
    networks = np.array([group.networks for group in groups], np.float64)
    if all(np.array_equal(group.first / group.networks, groups[0].first / groups[0].networks) for group in groups):
        raise ValueError(
            "The Estimate shows no scatter between its networks, so that no error can be estimated: sample different "
            "networks."
        )
    B, shares = networks.sum(), networks / networks.sum()
    mean = np.stack([group.first[:, of_G] / group.networks for group in groups])
    y = mean.reshape(len(groups), -1)
    if with_V4:
        centre = np.tensordot(shares, mean, 1)
        second = np.stack([group.second[:, of_G, of_G] / group.networks for group in groups])
        cross = mean[..., :, None] * centre[:, None, :]
        second = second - cross - np.swapaxes(cross, -1, -2) + centre[:, :, None] * centre[:, None, :]
        p, q = np.triu_indices(P)
        y = np.concatenate([y, second[..., p, q].reshape(len(groups), -1) * (B / (B - 1))], axis=1)
    return Observed(shares @ y, y, shares, int(B))
