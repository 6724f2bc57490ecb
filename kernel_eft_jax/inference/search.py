r"""Searches for the least of $\chi^2(x) = |W (y - m(x))|^2$ inside bounds: Gauss-Newton in a trust region, or
first-order steps.

Steps and errors come from the pseudo-inverse of J = W dm/dx, whose condition number is the square root of that of J^T
J.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from .data import Observed
from .likelihood import Prediction, exact_relations, noise, whitener

MOST_STEPS = 2000
ROUNDS = 6  # of a search and new weights
FLAT = 30.0  # the error of a logarithm from which on the data say nothing of the parameter
BROKEN = 0.1  # standard errors by which data may miss a relation that is exact in theory


class LeastSquares(NamedTuple):
    """What a search needs: the theory at a point, the data, the lower bounds of the coordinates, and `history` and
    `bar` to report to.

    Coordinates that are `logarithmic` are logarithms of positive parameters.
    """

    evaluate: Any
    observed: Observed
    least: Float[np.ndarray, " parameters"]
    logarithmic: Bool[np.ndarray, " parameters"]
    with_V4: bool
    eigenvalue_floor: float
    history: list[float]
    bar: tqdm

    def weigh(self, prediction: Prediction) -> Float[np.ndarray, "rank M"]:
        """Whitening matrix for the noise that the theory predicts."""
        return whitener(noise(prediction.covariance, self.observed.networks, self.with_V4), self.eigenvalue_floor)

    def breaks(self, prediction: Prediction) -> bool:
        """Whether the data miss relations that have no noise in theory, such as between repeated inputs."""
        relations = exact_relations(
            noise(prediction.covariance, self.observed.networks, self.with_V4), self.eigenvalue_floor
        )
        missed = relations @ (prediction.statistics - self.observed.statistics)
        return bool(np.abs(missed).max(initial=0.0) > BROKEN)

    def undetermined(self, prediction: Prediction, W: Float[np.ndarray, "rank M"]) -> Bool[np.ndarray, " parameters"]:
        """Whether the error of a positive parameter's logarithm is above FLAT, for each parameter."""
        return self.logarithmic & (expected_errors(W @ prediction.jacobian) > FLAT)

    def residual(self, prediction: Prediction, W: Float[np.ndarray, "rank M"]) -> Float[np.ndarray, " rank"]:
        """Deviation of theory from data in standard errors; reports chi2."""
        r = W @ (prediction.statistics - self.observed.statistics)
        self.history.append(float(r @ r))
        self.bar.update()
        self.bar.set_postfix_str(f"chi2 {r @ r:.6g}")
        return r


def expected_errors(J: Float[np.ndarray, "rank parameters"]) -> Float[np.ndarray, " parameters"]:
    """The standard error of each coordinate from J = W dm/dx; infinite for a coordinate that moves nothing."""
    size = np.linalg.norm(J, axis=0)
    moves = size > 0
    inverse = np.linalg.pinv(np.divide(J, size, out=np.zeros_like(J), where=moves))
    return np.divide(np.linalg.norm(inverse, axis=1), size, out=np.full_like(size, np.inf), where=moves)


def reweighted(search, problem, x, prediction):
    """Search again and again, each time with the weights at the last estimate, until these no longer move it: the
    estimate, its prediction, whether the search ended well, and why it ended."""
    W, shift = problem.weigh(prediction), np.inf
    for _ in range(ROUNDS):
        before, (x, prediction, converged, message) = x, search(problem, x, prediction, W)
        if not converged:
            return x, prediction, False, message
        W = problem.weigh(prediction)
        if problem.undetermined(prediction, W).any():
            return x, prediction, False, "The data leave a parameter open where the search ended."
        shift = np.linalg.norm(W @ prediction.jacobian @ (x - before))
        if shift < 0.01:
            return x, prediction, True, message
    message = f"The weights still changed the estimates by {shift:.2g} standard errors after {ROUNDS} rounds."
    return x, prediction, False, message


def least_squares(problem, x, prediction, W):
    """Gauss-Newton in a trust region, inside the bounds."""
    from scipy import optimize

    accepted = latest = (x, prediction)

    def at(x):
        """The theory at x. SciPy asks for value and Jacobian one after the other, and ends at an accepted point."""
        nonlocal latest
        for known, prediction in (accepted, latest):
            if np.array_equal(x, known):
                return prediction
        latest = (x.copy(), problem.evaluate(x))
        return latest[1]

    def jacobian(x):
        """W dm/dx. SciPy asks for it at the first point and at each accepted one."""
        nonlocal accepted
        accepted = (x.copy(), at(x))
        return W @ accepted[1].jacobian

    errors = expected_errors(W @ prediction.jacobian)
    result = optimize.least_squares(
        lambda x: problem.residual(at(x), W),
        np.maximum(x, problem.least + 1e-3 * errors),
        jacobian,  # pyright: ignore[reportArgumentType]
        bounds=(problem.least, np.inf),
        x_scale=errors,
        ftol=1e-9,
        xtol=1e-9,
        gtol=1e-10,
        max_nfev=100,
    )
    return result.x, at(result.x), result.success, f"The search ended: {result.message}"


def gradient_steps(optimiser):
    """Steps of an optax optimiser in units of the expected errors, until the gradient says that less than 1e-3 of such
    an error is left to go."""

    def search(problem, x, prediction, W):
        inverse = np.linalg.pinv(W @ prediction.jacobian)
        covariance = inverse @ inverse.T
        unit = np.linalg.cholesky(covariance)

        def inside(x):
            """The nearest point within the bound, in units of the expected errors."""
            for i in np.flatnonzero(x < problem.least):
                x = x - covariance[i] * ((x[i] - problem.least[i]) / covariance[i, i])
            return np.maximum(x, problem.least)

        z = jnp.zeros(x.size)
        state = optimiser.init(z)
        for _ in range(MOST_STEPS):
            gradient = unit.T @ (W @ prediction.jacobian).T @ problem.residual(prediction, W)
            if np.linalg.norm(np.linalg.solve(unit, inside(x - unit @ gradient) - x)) < 1e-3:
                return x, prediction, True, "The search ended: the gradient vanishes."
            update, state = optimiser.update(jnp.asarray(gradient, z.dtype), state, z)
            step = inside(x + unit @ np.asarray(update, np.float64))
            there = problem.evaluate(step)
            if not all(np.isfinite(part).all() for part in there):
                return x, prediction, False, "The search left the region where kernels are finite: take smaller steps."
            x, prediction = step, there
        return (
            x,
            prediction,
            False,
            f"The search did not end within {MOST_STEPS} steps: take larger steps, or a schedule that shrinks them.",
        )

    return search
