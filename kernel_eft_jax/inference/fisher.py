r"""Fisher information of an ensemble about its parameters, by which an experiment is designed before it is run.

$$I = J^T \Omega^{-1} J$$

with J the derivatives of the expected statistics and Omega their noise (see `likelihood`). In units of the size of each
parameter, its eigenvectors are the directions that data determine well or badly, and $1 / \sqrt{\text{eigenvalue}}$ is
the error along them.
"""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..checks import ON_HOST, check_count, check_flag, check_kind, check_untraced
from ..closures import Closure
from ..trajectory.failures import LARGEST_ERROR
from ..trajectory.solve import EXACT
from .identifiability import explain, in_words
from .likelihood import Prediction, noise, predict, settle, whitener
from .parameters import (
    Experiment,
    check_names,
    check_theory_has,
    coordinate_derivatives,
    get_parameters,
    to_coordinates,
    typical_scales,
)

# A direction that holds a smaller share than this of the information in the best one is lost: its information is
# rounding error.
LOST = 1e-11


class Information(eqx.Module):
    """Fisher information of named parameters; informations of independent ensembles add up.

    Attributes:
        names: The parameters.
        values: Where the information is taken.
        scales: The scale of each parameter, the size of a change that matters.
        matrix: The information matrix.
        expectation_error: Estimated relative error of the Gaussian expectations behind the information.
        closure: The theory; for a sum, that of its first term.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    values: Float[np.ndarray, " parameters"]
    scales: Float[np.ndarray, " parameters"]
    matrix: Float[np.ndarray, "parameters parameters"]
    expectation_error: float
    closure: Closure

    def __add__(self, other: "Information") -> "Information":
        if self.names != other.names or not np.array_equal(self.values, other.values):
            raise ValueError(
                f"Informations add up at one point in the same parameters, but these are {self.names} at "
                f"{self.values} and {other.names} at {other.values}: give `fisher` the same `free` and the same values."
            )
        if type(self.closure) is not type(other.closure):
            raise ValueError(
                f"Informations add up within one theory, but these are by {self.closure!r} and by {other.closure!r}: "
                "give `fisher` the same `closure`."
            )
        error = max(self.expectation_error, other.expectation_error)
        return Information(self.names, self.values, self.scales, self.matrix + other.matrix, error, self.closure)

    @property
    def covariance(self) -> Float[np.ndarray, "parameters parameters"]:
        """The smallest covariance that an unbiased estimate can have (Cramer and Rao).

        Raises ValueError if a direction is lost.
        """
        if len(self.lost):
            raise ValueError(
                f"{self.describe()} Hold one of these parameters fixed, or add an experiment that determines it."
            )
        return self.scales[:, None] * np.linalg.inv(self._relative) * self.scales

    @property
    def stderr(self) -> Float[np.ndarray, " parameters"]:
        """Expected standard error of each of `values`, the other parameters being free too."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def condition(self) -> float:
        """Condition number of the information, each parameter in units of its scale; infinite if a direction is
        lost."""
        values = self._modes[0]
        return float(values[-1] / values[0]) if values[0] > 0 else float("inf")

    @property
    def weakest(self) -> tuple[Float[np.ndarray, " parameters"], float]:
        """The direction that the data determine worst, in units of the size of each parameter, and the error along
        it."""
        values, vectors = self._modes
        direction = vectors[:, 0] * np.sign(vectors[np.abs(vectors[:, 0]).argmax(), 0])
        return direction, float(1 / np.sqrt(values[0])) if values[0] > 0 else float("inf")

    @property
    def lost(self) -> Float[np.ndarray, "directions parameters"]:
        """The directions along which the law of the data does not change, orthonormal in units of the size of each
        parameter."""
        values, vectors = self._modes
        return vectors[:, values == 0].T

    def describe(self) -> str:
        """A sentence with the names of what the data cannot determine, or else with the direction that they determine
        worst."""
        if len(self.lost):
            return explain(self.names, self.values, self.scales, self.lost)
        direction, error = self.weakest
        return f"{in_words(self.names, direction, self.scales)} is known to {100 * error:.2g} % of its size."

    def __repr__(self) -> str:
        return f"Information about {', '.join(self.names)} by {self.closure!r}. {self.describe()}"

    @property
    def _relative(self):
        return self.scales[:, None] * self.matrix * self.scales

    @property
    def _modes(self):
        values, vectors = np.linalg.eigh(self._relative)
        return np.where(values > LOST * values[-1], values, 0.0), vectors


def fisher(
    experiment: Experiment,
    free: Sequence[str],
    *,
    networks: int,
    closure: Closure = EXACT,
    with_V4: bool = False,
) -> Information:
    """Fisher information that `networks` networks would hold about the free parameters, at the experiment's values.

    Informations of several widths or ensembles add up. With `HermiteTower`, the default, the information is exact to
    leading order in 1/n. Do not use it for ensembles so large that the next order shows, since this error is not
    statistical. For more than eight inputs and mean kernels alone the information is an approximation: covariances of
    different entries and layers are the correlations of `GOnly` with exact variances. What no data can determine is in
    `lost` and, by names, in `describe()`: the variances of two matrices around linear units, for example, whose product
    alone the law knows.

    Args:
        experiment: The networks, with the values at which the information is taken.
        free: Names of the free parameters, as `parameter_names` lists them.
        networks: How many would be observed.
        closure: The theory.
        with_V4: Whether the sample covariances at each layer count beside the mean kernels.

    Returns:
        The information, with the expected errors and the lost directions.

    Raises:
        ValueError: For names that are no parameters, and where the theory is not finite or its expectations are not
            accurate.
    """
    check_untraced("fisher", ON_HOST, experiment)
    check_kind(experiment, Experiment, "experiment")
    check_kind(closure, Closure, "closure")
    check_flag(with_V4, "with_V4")
    names = check_names(experiment, free)
    check_theory_has(names, closure)
    networks = check_count(networks, "networks", 2)
    coordinates = to_coordinates(experiment, names, get_parameters(experiment, names))
    closure = settle(experiment, names, closure, with_V4)
    prediction = predict(experiment, names, coordinates, closure, with_V4)
    check_prediction(experiment, names, prediction)
    W = whitener(noise(prediction.covariance, networks, with_V4), eigenvalue_floor(experiment))
    return information(experiment, names, prediction, W, closure)


def information(
    experiment: Experiment,
    names: tuple[str, ...],
    prediction: Prediction,
    W: Float[np.ndarray, "rank M"],
    closure: Closure,
) -> Information:
    """The information in a prediction made at the experiment's own values, for a whitening matrix W."""
    values = np.asarray(get_parameters(experiment, names), np.float64)
    J = W @ np.asarray(prediction.jacobian, np.float64) / coordinate_derivatives(experiment, names, values)
    scales = typical_scales(experiment, names)
    return Information(names, values, scales, J.T @ J, float(prediction.expectation_error), closure)


def check_prediction(experiment: Experiment, names: tuple[str, ...], prediction: Prediction) -> None:
    """Raise a ValueError where the theory is not finite, or its expectations are not accurate."""
    values = np.asarray(get_parameters(experiment, names), np.float64)
    where = ", ".join(f"{name} = {value:.4g}" for name, value in zip(names, values, strict=True))
    if not all(np.isfinite(np.asarray(x)).all() for x in prediction):
        least = float(experiment.K0_scale) * float(jnp.diagonal(experiment.K0).min())
        if least**2 < float(jnp.finfo(experiment.K0.dtype).tiny):
            raise ValueError(
                f"Argument `experiment` has an input of variance {least:.6g}, whose square is below the smallest "
                f"number of {experiment.K0.dtype}: take float64, or multiply the inputs by a number."
            )
        raise ValueError(
            "Argument `experiment` has values at which the theory is not finite: kernels grow without bound by layer "
            f"{experiment.layers[-1]} at {where}. Take smaller variances, eps or layers."
        )
    if prediction.expectation_error > LARGEST_ERROR:
        raise ValueError(
            "Argument `experiment` has values at which the theory is not accurate: its Gaussian expectations have an "
            f"estimated relative error of {float(prediction.expectation_error):.2g}, above {LARGEST_ERROR}, at "
            f"{where}. The activation changes too sharply for its variance: take smaller variances, or a class "
            "with closed forms or with kinks for a function with kinks."
        )


def eigenvalue_floor(experiment: Experiment) -> float:
    """The relative size below which an eigenvalue of a covariance is rounding error in the experiment's dtype."""
    return float(1e3 * jnp.finfo(experiment.K0.dtype).eps)


def refuse_lost(info: Information, with_V4: bool) -> None:
    """Raise a ValueError that names the parameters which no data can tell apart."""
    if len(info.lost):
        involved = np.flatnonzero(np.linalg.norm(info.lost, axis=0) > 0.01)
        some = "it" if len(involved) == 1 else "one of them" if len(info.lost) == 1 else f"{len(info.lost)} of them"
        hint = _hint([info.names[i] for i in involved], with_V4)
        raise ValueError(f"{info.describe()}{hint} Hold {some} fixed, or start from other values.")


def refuse_vague(info: Information, with_V4: bool) -> None:
    """Raise a ValueError with the combination of parameters that these data determine to no better than its own
    size."""
    direction, error = info.weakest
    if error > 1:
        words = in_words(info.names, direction, info.scales)
        involved = [name for name, d in zip(info.names, direction, strict=True) if abs(d) > 0.01]
        raise ValueError(
            f"These data do not determine all free parameters: {words[0].lower() + words[1:]} would be known to no "
            f"better than {100 * error:.2g} % of its size.{_hint(involved, with_V4)} Hold "
            f"{'one of them' if len(involved) > 1 else 'it'} fixed, or take more networks, depths or inputs (`fisher` "
            "says how many)."
        )


def _hint(involved, with_V4):
    if "width" in involved and not with_V4:
        return " The width shows in the size of fluctuations: pass with_V4=True to fit those too."
    return ""
