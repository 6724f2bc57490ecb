r"""The published study (Kawase and Ota 2026, arXiv 2604.15742) as data, and its main job: sample, solve, compare.

The published numerics take Gaussian expectations by a 32-point Gauss-Hermite rule, which is not converged for tanh:
`GaussHermite` repeats them. With it `solve` gives the published theory back, digit by digit; with converged expectations it
gives another one, and `rows` says for each number which part of the difference that explains.
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .activations import Activation, Expansion, Tanh
from .closures import Closure, GOnly, HermiteTower, Moments
from .ensemble import Estimate, estimate
from .model import Model
from .pairs import input_count, pairs, sigma_product
from .quadrature import derivative, gaussian_mean
from .storage import save
from .trajectory import Solution, solve

PUBLISHED = json.loads(files(__package__).joinpath("published.json").read_text())


class GaussHermite(Activation):
    """An activation whose expectations are taken by a Gauss-Hermite rule, as the published numerics take them.

    Values by the rule (a tensor product for two inputs), first derivatives by Price's theorem under the rule, second
    derivatives by differentiating the rule itself twice. At 32 points and variance 4 the first derivative for tanh is
    wrong by a factor of eight, so do not use it for anything but this comparison. Inputs must differ from each other.
    """

    fn: Activation
    points: int = eqx.field(static=True, default=32)

    def __call__(self, x):
        return self.fn(x)

    def moments(self, k):
        return self.expansion(k).value

    def expansion(self, k):
        a, b = pairs(input_count(k.shape[-1]))
        same = a == b
        triple = jnp.stack([k[same][a], k[same][b], k], axis=1)
        line, plane = jax.vmap(self._line)(triple[same]), jax.vmap(self._plane)(triple[~same])
        order = np.argsort(np.concatenate([np.flatnonzero(same), np.flatnonzero(~same)]))
        return Expansion(*(jnp.concatenate(both)[order] for both in zip(line, plane, strict=True)))

    def error(self, k):
        """The rule against a converged one, for E[s^2] and its first derivative in k."""
        x, w = self._rule(k.dtype)
        points, square = jnp.sqrt(k)[..., None] * x, self._square
        value, bend = (
            jnp.abs(derivative(square, r)(points) @ w - gaussian_mean(derivative(square, r), k)) for r in (0, 2)
        )
        return (value + 0.5 * k * bend) / gaussian_mean(square, k)

    def _square(self, x):
        return self.fn(x) ** 2

    def _rule(self, dtype):
        x, w = np.polynomial.hermite_e.hermegauss(self.points)
        return x.astype(dtype), (w / np.sqrt(2 * np.pi)).astype(dtype)

    def _line(self, k):
        x, w = self._rule(k.dtype)

        def mean(variance, order=0):
            return derivative(self._square, order)(jnp.sqrt(variance) * x) @ w

        second = jax.grad(jax.grad(mean))(k[0])
        unit = np.array([1, 0, 0], k.dtype)
        return mean(k[0]), 0.5 * mean(k[0], 2) * unit, second * np.outer(unit, unit)

    def _plane(self, k):
        x, w = self._rule(k.dtype)

        def mean(k, r=0, s=0):
            phi_a = jnp.sqrt(k[0]) * x
            phi_b = (k[2] / k[0] * phi_a)[:, None] + jnp.sqrt(k[1] - k[2] ** 2 / k[0]) * x
            return (derivative(self.fn, r)(phi_a) * w) @ (derivative(self.fn, s)(phi_b) @ w)

        slope = jnp.stack([0.5 * mean(k, 2, 0), 0.5 * mean(k, 0, 2), mean(k, 1, 1)])
        return mean(k), slope, jax.hessian(mean)(k)


class SourceOnly(GOnly):
    """The paper's V4 without transport: chi left out, so V4 is the sum of the sampling noise of each layer."""

    def drift(self, model: Model, state: Moments) -> Moments:
        q = model.q(state.K0)
        return Moments(q, sigma_product(state.K0, q), jnp.zeros_like(state.K1))


K0 = np.full((4, 4), 0.6) + 1.4 * np.eye(4)
WIDTH, DEPTH, EPS = 64, 800, 0.05
RULE, G_ONLY, SOURCE, TOWER = "G-only, 32-point rule", "G-only closure", "V4 from sources alone", "order 1/n (Hermite tower)"


def model(activation: Activation | None = None) -> Model:
    """The published model: tanh, C_W = 2, C_b = 0."""
    return Model(Tanh() if activation is None else activation, C_W=2.0, C_b=0.0)


class Theory(NamedTuple):
    """A closure at the published settings. V4_ab,cd needs the inputs a, b, c, d alone, so `inputs` of the four may do."""

    closure: Closure
    activation: Activation
    inputs: int


THEORIES = {
    G_ONLY: Theory(GOnly(), Tanh(), 4),
    RULE: Theory(GOnly(), GaussHermite(Tanh()), 4),
    TOWER: Theory(HermiteTower(40), Tanh(), 2),
    SOURCE: Theory(SourceOnly(), Tanh(), 4),
}


class Study(NamedTuple):
    """The main job: sampled networks, and each theory at the same layers."""

    sampled: Estimate
    theories: dict[str, Solution]

    @property
    def V4(self) -> Points:
        """V4 of the sampled networks between the first two inputs.

        By control variates: its value at infinite width, which the tower knows, and the sampled excess over that.
        """
        exact, estimate = np.asarray(self.theories[TOWER].V4), self.sampled
        first = np.s_[:, :2, :2, :2, :2]
        assert estimate.V4_excess is not None and estimate.stderr.V4_excess is not None
        return Points(estimate.ts, exact + estimate.V4_excess[first], estimate.stderr.V4_excess[first])


def main_job(networks: int, key: PRNGKeyArray, *, progress: bool = True) -> Study:
    """Sample the published ensemble, n = 64 and 800 layers at eps = 0.05, and solve each of `THEORIES` layer by layer."""
    sampled = estimate(model(), K0, WIDTH, DEPTH, EPS, networks, key, progress=progress)
    theories = {
        name: solve(model(theory.activation), K0[: theory.inputs, : theory.inputs], sampled.ts, closure=theory.closure, eps=EPS)
        for name, theory in THEORIES.items()
    }
    return Study(sampled, theories)


class Row(NamedTuple):
    """One published number beside ours; errors are standard errors, None where nothing is random."""

    section: str
    quantity: str
    published: float
    published_error: float | None
    here: float
    here_error: float | None
    reason: str

    @property
    def difference(self) -> str:
        """Ours less theirs: in standard errors where there are any."""
        error = np.hypot(self.published_error or 0.0, self.here_error or 0.0)
        gap = self.here - self.published
        return f"{gap / error:+.1f} s.e." if error else f"{gap:+.4f}"
