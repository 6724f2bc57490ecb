r"""Fisher information of an ensemble about its parameters, and what it says about an experiment before it is run.

$$I = J^T \Omega^{-1} J$$

with J the derivatives of the expected statistics and Omega their noise (see `likelihood`). Relative to the size of each
parameter its eigenvectors are the directions that data tell well or badly, $1 / \sqrt{\text{eigenvalue}}$ the error along them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..checks import check_count
from ..closures import Closure, HermiteTower
from .likelihood import Prediction, noise, predict, whitener
from .parameters import Experiment, check_names, coordinate_slopes, get_parameters, to_coordinates, typical_scales

# Directions that hold a smaller share than this of the information in the best one are lost: it is rounding error.
LOST = 1e-11


class Information(NamedTuple):
    """Fisher information of named parameters; informations of independent ensembles add up."""

    names: tuple[str, ...]
    values: Float[np.ndarray, " parameters"]
    scales: Float[np.ndarray, " parameters"]
    matrix: Float[np.ndarray, "parameters parameters"]

    def __add__(self, other: "Information") -> "Information":  # type: ignore[override]
        if self.names != other.names or not np.array_equal(self.values, other.values):
            raise ValueError(
                f"Informations add up at one point in the same parameters, but these are {self.names} at {self.values} and "
                f"{other.names} at {other.values}."
            )
        return self._replace(matrix=self.matrix + other.matrix)

    @property
    def covariance(self) -> Float[np.ndarray, "parameters parameters"]:
        """The smallest covariance that an unbiased estimate can have (Cramer and Rao).

        Raises ValueError where a direction is lost: all that is known then is `weakest`.
        """
        if self._modes[0][0] == 0:
            raise ValueError(
                f"{self.describe()} Hold a parameter of it fixed, or add another experiment that tells it."
            )
        return self.scales[:, None] * np.linalg.inv(self._relative) * self.scales

    @property
    def stderr(self) -> Float[np.ndarray, " parameters"]:
        """Expected standard error of each parameter, the others being free too."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def condition(self) -> float:
        """Condition number of the information relative to the size of each parameter; infinite if a direction is lost."""
        values = self._modes[0]
        return float(values[-1] / values[0]) if values[0] > 0 else float("inf")

    @property
    def weakest(self) -> tuple[Float[np.ndarray, " parameters"], float]:
        """The direction that the data tell worst, relative to the size of each parameter, and the error along it."""
        values, vectors = self._modes
        direction = vectors[:, 0] * np.sign(vectors[np.abs(vectors[:, 0]).argmax(), 0])
        return direction, float(1 / np.sqrt(values[0])) if values[0] > 0 else float("inf")

    def describe(self) -> str:
        """The weakest direction in a sentence."""
        direction, error = self.weakest
        if np.isinf(error):
            return f"{self._in_words(direction)} leaves the law of the data unchanged at these values: no data can tell it."
        return f"{self._in_words(direction)} is known to {100 * error:.2g} % of its size."

    @property
    def _relative(self):
        return self.scales[:, None] * self.matrix * self.scales

    @property
    def _modes(self):
        values, vectors = np.linalg.eigh(self._relative)
        return np.where(values > LOST * values[-1], values, 0.0), vectors

    def _in_words(self, direction) -> str:
        # A component below a hundredth of the largest does not change what the sentence says.
        parts = [i for i in np.argsort(-np.abs(direction)) if abs(direction[i]) > 0.01 * np.abs(direction).max()]
        if len(parts) == 1:
            return f"`{self.names[parts[0]]}` alone"
        names = " : ".join(f"`{self.names[i]}`" for i in parts)
        change = direction * self.scales
        ratio = " : ".join(f"{change[i] / change[parts[0]]:.3g}" for i in parts)
        return f"The combined change {names} = {ratio}"


def fisher(
    experiment: Experiment,
    free: Sequence[str],
    networks: int,
    *,
    closure: Closure | None = None,
    with_V4: bool = False,
) -> Information:
    """Fisher information that `networks` networks would hold about the free parameters, at the experiment's values.

    Add the informations of several widths or ensembles. `with_V4` counts the sample covariances at each layer beside the
    mean kernels. Exact to leading order in 1/n with `HermiteTower`, the default; not for ensembles so large that the next
    order shows, whose error is not statistical.
    """
    names = check_names(experiment, free)
    check_count(networks, "networks", 2)
    closure = HermiteTower() if closure is None else closure
    coordinates = to_coordinates(names, get_parameters(experiment, names))
    return information(experiment, names, predict(experiment, names, coordinates, closure, with_V4), networks, with_V4)


def information(
    experiment: Experiment, names: tuple[str, ...], prediction: Prediction, networks: int, with_V4: bool
) -> Information:
    """The information in a prediction made at the experiment's own values."""
    values = np.asarray(get_parameters(experiment, names), np.float64)
    jacobian = np.asarray(prediction.jacobian, np.float64)
    finite = np.isfinite(jacobian).all() and all(np.isfinite(np.asarray(x)).all() for x in prediction)
    if not finite:
        raise ValueError(
            f"Argument `experiment` is where the theory is not finite: kernels grow without bound by layer {experiment.layers[-1]} at "
            + ", ".join(f"{name} = {value:.4g}" for name, value in zip(names, values, strict=True))
            + ". Take smaller variances, eps or layers."
        )
    W = whitener(noise(prediction.covariance, networks, with_V4), rounding(experiment))
    J = W @ jacobian / coordinate_slopes(names, values)
    return Information(names, values, typical_scales(experiment, names), J.T @ J)


def rounding(experiment: Experiment) -> float:
    """Relative eigenvalues of a covariance below this are rounding errors in the experiment's dtype."""
    return float(1e3 * jnp.finfo(experiment.K0.dtype).eps)


def check_identifiable(info: Information, with_V4: bool) -> None:
    """Raise a ValueError that names the parameters which the data cannot tell apart."""
    direction, error = info.weakest
    words = info._in_words(direction)
    involved = [name for name, d in zip(info.names, direction, strict=True) if abs(d) > 0.01]
    hint = ""
    if "eps" in involved and "C_W" in involved:
        hint = " Only eps^2 C_W and eps^2 C_b enter the law."
    if "width" in involved and not with_V4:
        hint += " The width shows in the size of fluctuations: pass with_V4=True to fit those too."
    remedy = "Hold one of them" if len(involved) > 1 else "Hold it"
    if np.isinf(error):
        raise ValueError(f"{info.describe()}{hint} {remedy} fixed, or start from other values.")
    if error > 1:
        raise ValueError(
            f"These data cannot tell all free parameters: {words[0].lower() + words[1:]} would be known to no better than "
            f"{100 * error:.2g} % of its size.{hint} {remedy} fixed, or take more networks, depths or inputs (`fisher` says how many)."
        )
