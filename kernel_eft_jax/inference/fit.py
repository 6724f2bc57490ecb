r"""Parameters of networks from their kernels: weighted least squares, with intervals that hold.

$$\chi^2(\theta) = (y - m(\theta))^T\, \Omega^{-1} (y - m(\theta)), \qquad
  \mathrm{Cov}(\hat\theta) = A\, \mathrm{Cov}(y)\, A^T, \quad A = I^{-1} J^T \Omega^{-1}$$

y are the statistics of the data, m is their mean and Omega their noise by the theory, at the last estimate but one.
Cov(y) is the scatter from network to network. To leading order it equals Omega, and the errors are those of the Fisher
information $I = J^T \Omega^{-1} J$; it also contains the non-Gaussian rest (the robust errors of covariance structure
analysis).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import chdtrc, stdtrit
from tqdm import tqdm

from ..checks import check_flag, check_kind, check_untraced
from ..closures import Closure
from ..ensemble import Estimate
from ..showing import Shown, rounded
from ..trajectory.solve import EXACT
from .data import Observed, check_same, observe
from .fisher import Information, check_prediction, eigenvalue_floor, information, refuse_lost, refuse_vague
from .likelihood import Prediction, noise, predict, settle
from .parameters import (
    Experiment,
    check_names,
    check_theory_has,
    coordinate_derivatives,
    from_coordinates,
    get_parameters,
    least_values,
    said_of,
    set_parameters,
    to_coordinates,
)
from .search import LeastSquares, gradient_steps, least_squares, reweighted

if TYPE_CHECKING:
    import optax


RAN_OFF = 100.0  # the factor by which a parameter that runs off has left its start


class Fit(Shown):
    """The result of `fit`: `values` of the free parameters `names` and their standard errors `stderr`.

    Attributes:
        names: The free parameters.
        values: Their estimates.
        covariance: That of the estimates, as if the search had no bounds.
        information: The Fisher information at the estimates.
        chi2: The least chi2, scaled to have mean `dof` if the theory is right.
        dof: Degrees of freedom; a parameter at its bound counts as held there.
        history: chi2 at each point tried.
        converged: Whether the search ended at a minimum.
        message: Why the search ended.
        experiment: The networks, the estimates in place.
        closure: The theory.
        observed: The statistics of the data.
        prediction: The same statistics by the theory, at the estimates.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    values: Float[np.ndarray, " parameters"]
    covariance: Float[np.ndarray, "parameters parameters"]
    information: Information
    chi2: float
    dof: int
    history: list[float]
    converged: bool
    message: str
    experiment: Experiment
    closure: Closure
    observed: Observed
    prediction: Prediction

    @property
    def stderr(self) -> Float[np.ndarray, " parameters"]:
        """Standard errors of `values`."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def expectation_error(self) -> float:
        """Estimated relative error of the Gaussian expectations behind the theory at the estimates."""
        return self.information.expectation_error

    @property
    def with_V4(self) -> bool:
        """Whether sample covariances were fitted beside mean kernels."""
        return self.observed.statistics.size > self.prediction.covariance[..., 0, 0].size

    @property
    def expected_stderr(self) -> Float[np.ndarray, " M"]:
        """Standard errors of the statistics, as the theory predicts them for the number of networks in the data."""
        return np.sqrt(np.diagonal(noise(self.prediction.covariance, self.observed.networks, self.with_V4)))

    @property
    def p_value(self) -> float:
        """Probability of a larger chi2 if the theory is right; if it is small, the theory is wrong and the intervals
        mislead."""
        return float(chdtrc(self.dof, self.chi2)) if self.dof else float("nan")

    def interval(self, level: float = 0.95) -> Float[np.ndarray, "parameters 2"]:
        """Confidence intervals: symmetric in the logarithm of positive parameters; not below zero for variances of
        biases."""
        if not 0 < level < 1:
            raise ValueError(f"Argument `level` must lie between 0 and 1, but is {level}.")
        reach = stdtrit(len(self.observed.shares) - 1, 0.5 + 0.5 * level) * np.array([-1, 1])
        rows = []
        every = said_of(self.experiment, self.names)
        for said, value, error in zip(every, self.values, self.stderr, strict=True):
            with np.errstate(over="ignore"):  # an error far above the value has no upper end
                row = value * np.exp(reach * error / value) if said.positive else value + reach * error
            rows.append(np.maximum(row, said.least))
        return np.array(rows)

    @property
    def at_bound(self) -> tuple[str, ...]:
        """The parameters that ended at their lower bound, such as a variance of biases at zero. (The search stops
        slightly above a bound.)"""
        bound = _at_bound(least_values(self.experiment, self.names), self.values, self.stderr)
        return tuple(name for name, at_bound in zip(self.names, bound, strict=True) if at_bound)

    def __repr__(self) -> str:
        rows = zip(self.names, self.values, self.stderr, self.interval(), strict=True)
        lines = [
            f"{name} = {f'0 (at its bound) ± {e:.2g}' if name in self.at_bound else rounded(v, e)}"
            f"   95 %: {low:.4g} to {high:.4g}"
            for name, v, e, (low, high) in rows
        ]
        chi2 = f"By {self.closure!r}: chi2 = {self.chi2:.4g} for {self.dof} degrees of freedom"
        chi2 += f", p = {self.p_value:.2g}" if self.dof else ""
        if self.p_value < 1e-3:
            chi2 += ": the theory does not describe these data, and the intervals mislead"
        lines = [*lines, chi2, self.message if self.converged else f"NOT CONVERGED. {self.message}"]
        if self.expectation_error > 1e-6:
            lines.append(f"The theory's Gaussian expectations are right to {self.expectation_error:.1g}.")
        return "\n".join(lines)


def _at_bound(least, values, stderr):
    """Which parameters are at their lower bound, up to a millionth of their errors."""
    return values < least + 1e-6 * stderr


def fit(
    data: Estimate | Float[np.ndarray, "B T N N"],
    experiment: Experiment,
    free: Sequence[str],
    *,
    closure: Closure = EXACT,
    with_V4: bool = False,
    optimiser: "optax.GradientTransformation | None" = None,
    progress: bool = True,
) -> Fit:
    r"""Estimate the free parameters of an experiment from kernels of its networks; others keep the experiment's values.

    $$\hat\theta = \arg\min_\theta\, (y - m(\theta))^T\, \Omega^{-1} (y - m(\theta))$$

    The search is trust-region Gauss-Newton by SciPy, or first-order steps of optax. For more than eight inputs the
    exact closure gives mean kernels and variances pair by pair, and the weights have the correlations of `GOnly`; the
    errors are always those of the data's own scatter.

    Intervals leave out errors of order 1/n^2, which exceed the statistical ones for ensembles of n^3 networks or more:
    a large chi2 reveals them. If two parameter values give one law, both are right (for LeakyReLU slope s and C_W are
    equivalent to slope 1 / s and C_W s^2), and the search ends at the one on whose side it starts.

    Args:
        data: Kernels G of single networks after the experiment's layers, from any framework, or an `Estimate` at those
            layers.
        experiment: The networks; the values of free parameters are where the search starts.
        free: Names of the free parameters, as `parameter_names` lists them: C_W, C_b, decay, eps, width, K0_scale,
            activation.slope for a block of one matrix, branch[1].C_W for others.
        closure: The theory. A degree that it leaves open is chosen at the start and kept.
        with_V4: Whether to fit the sample covariances at each layer beside the mean kernels. They determine the
            width, at the price of an error of order 1/n in V4 itself.
        optimiser: Of optax, for first-order steps, taken in units of the expected errors.
        progress: Whether to show a bar.

    Returns:
        The estimates with their errors, and the experiment with the estimates in place.

    Raises:
        ValueError: For data that are no kernels, or of other layers; for names that are no parameters; for free
            parameters that do not start above zero where they must be positive; for free parameters of which no data
            can determine more than a combination, with that combination; where the theory is not finite or not
            accurate; and, after the search, for free parameters that these data determine to no better than their own
            size, at the start and at the end, and for a positive parameter that runs off while chi2 hardly changes.
    """
    remedy = "it is a search on the host. Call it from outside."
    check_untraced("fit", remedy, experiment, () if isinstance(data, Estimate) else data)
    check_kind(experiment, Experiment, "experiment")
    check_kind(closure, Closure, "closure")
    check_flag(with_V4, "with_V4")
    check_flag(progress, "progress")
    if optimiser is not None and not (hasattr(optimiser, "init") and hasattr(optimiser, "update")):
        raise ValueError(
            "Argument `optimiser` must be a gradient transformation of optax, such as optax.adam(1e-2), but is "
            f"{optimiser!r:.200}."
        )
    names = check_names(experiment, free)
    check_theory_has(names, closure)
    observed = observe(data, experiment, with_V4)
    if isinstance(data, Estimate):
        check_same(data, experiment, names)
    closure = settle(experiment, names, closure, with_V4)
    x = np.asarray(to_coordinates(experiment, names, get_parameters(experiment, names)), np.float64)

    def evaluate(x) -> Prediction:
        point = predict(experiment, names, jnp.asarray(x, experiment.K0.dtype), closure, with_V4)
        return jax.tree.map(lambda part: np.asarray(part, np.float64), point)

    prediction = evaluate(x)
    check_prediction(experiment, names, prediction)
    with tqdm(desc="fit", unit=" steps", disable=not progress) as bar:
        logarithmic = np.array([said.positive for said in said_of(experiment, names)])
        least = least_values(experiment, names)
        problem = LeastSquares(evaluate, observed, least, logarithmic, with_V4, eigenvalue_floor(experiment), [], bar)
        start = information(experiment, names, prediction, problem.weigh(prediction), closure)
        refuse_lost(start, with_V4)
        search = least_squares if optimiser is None else gradient_steps(optimiser)
        x, prediction, converged, message = reweighted(search, problem, x, prediction)
    W = problem.weigh(prediction)
    _refuse_undetermined(experiment, names, problem.undetermined(prediction, W), x)
    result = _result(experiment, names, problem, x, prediction, W, closure, converged, message)
    if start.weakest[1] > 1:
        refuse_vague(result.information, with_V4)
    return result


def _refuse_undetermined(experiment, names, undetermined, x):
    """Raise a ValueError with the `undetermined` parameters, all of them positive, that ran off while chi2 hardly
    changed."""
    start = np.asarray(get_parameters(experiment, names), np.float64)
    end = np.asarray(from_coordinates(experiment, names, jnp.asarray(x)), np.float64)
    lost = [i for i in np.flatnonzero(undetermined) if not 1 / RAN_OFF < end[i] / start[i] < RAN_OFF]
    if lost:
        way = " and ".join(f"{names[i]} goes from {start[i]:.3g} to {end[i]:.3g}" for i in lost)
        raise ValueError(
            f"These data do not determine {' and '.join(names[i] for i in lost)}: chi2 hardly changes while {way}. "
            f"Hold {'it' if len(lost) == 1 else 'one of them'} fixed, or take more networks, depths or inputs "
            "(`fisher` says how many)."
        )


def _result(experiment, names, problem, x, prediction, W, closure, converged, message):
    """The result of a search. Errors come from the scatter of the data, and chi2 is scaled so that for this scatter its
    mean is `dof`."""
    observed, with_V4 = problem.observed, problem.with_V4
    values = from_coordinates(experiment, names, jnp.asarray(x))
    best = set_parameters(experiment, names, values.astype(experiment.K0.dtype))
    values = np.asarray(values, np.float64)
    info = information(best, names, prediction, W, closure)
    refuse_lost(info, with_V4)
    J = W @ prediction.jacobian / coordinate_derivatives(experiment, names, values)
    covariance = observed.scatter(np.linalg.pinv(J) @ W)
    moved = J[:, ~_at_bound(problem.least, values, np.sqrt(np.diagonal(covariance)))]
    difference = prediction.statistics - observed.statistics
    remainder = np.eye(len(J)) - moved @ np.linalg.pinv(moved)  # the projector on the noise that a fit leaves
    dof = len(J) - moved.shape[1]
    expected = np.trace(observed.scatter(remainder @ W))
    chi2 = float((W @ difference) @ remainder @ (W @ difference)) * dof / expected if dof else 0.0
    if converged and problem.breaks(prediction):
        converged = False
        message = (
            "In the theory some combinations of these statistics have no noise, such as differences of repeated "
            "inputs, but in the data they differ: check K0, and start from other values."
        )
    history = problem.history
    return Fit(
        names, values, covariance, info, chi2, dof, history, converged, message, best, closure, observed, prediction
    )
