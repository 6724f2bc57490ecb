r"""Errors that ensembles report, over 60 keys: z = (value - truth) / error of every quantity has mean 0 and variance 1.

Errors come from g groups, so z is Student's t with g - 1 degrees of freedom, of variance (g - 1) / (g - 3). The mean of
60 must lie within the two-sided normal quantile and the variance within those of chi^2 with 60 (or 59) degrees of
freedom, each at 1e-6: a false alarm has probability 2e-6 for each entry, below 3e-4 a test. V4 is not quite normal:
2,048 networks make its mean z about -0.03, where the bound is 0.65. `pytest -m slow -s` prints the worst of each
quantity.
"""

import jax
import numpy as np
import pytest
from scipy.stats import chi2, norm

from kernel_eft_jax import BlockSampler, Linear, Model, Tanh, WeightSampler
from kernel_eft_jax.ensemble import estimate
from kernel_eft_jax.pairs import pairs
from tests.test_ensemble import K0, linear_moments

KEYS, LEVEL = 60, 1e-6
RUN = {"width": 16, "depth": 6, "eps": 0.4, "networks": 2048, "save_at": 6, "progress": False}
ROUTES = {
    "block law, control": {"sampler": BlockSampler()},
    "block law": {"sampler": BlockSampler(), "control": False},
    "weights": {"sampler": WeightSampler(), "control": False},
}
NAMES = ("G", "S", "K1", "U1", "V4", "V_GS", "V_SS", "kappa4", "V4_excess")


def independent(name, x):
    """The independent entries of the last depth, flat."""
    a, b = pairs(2)
    if x.ndim == 3:
        return x[-1][a, b]
    whole = x[-1][a[:, None], b[:, None], a, b]
    return whole.ravel() if name == "V_GS" else whole[np.triu_indices(len(a))]


def runs(model, route, key):
    """Values and errors of each quantity, (keys, entries), and the number of groups."""
    estimates = [estimate(model, K0, **RUN, **ROUTES[route], key=k) for k in jax.random.split(key, KEYS)]
    names = [name for name in NAMES if getattr(estimates[0], name) is not None]
    values, errors = (
        {name: np.array([independent(name, getattr(x, name)) for x in found]) for name in names}
        for found in (estimates, [e.stderr for e in estimates])
    )
    return values, errors, len(estimates[0].sums.groups)


def check(z, groups, free, words):
    """Mean and variance of z over keys, (keys, entries), within their bounds; prints those farthest from 0 and 1."""
    spread = np.sqrt((groups - 1) / (groups - 3))
    mean, variance = z.mean(axis=0), (z**2).sum(axis=0) / free / spread**2
    low, high = (chi2.ppf(level, free) / free for level in (LEVEL / 2, 1 - LEVEL / 2))
    most, farthest = np.abs(mean).max(), variance[np.abs(np.log(variance)).argmax()]
    print(f"{words:36} mean z {most:5.2f}, variance {farthest:5.2f}, largest |z| {np.abs(z).max():5.2f}")
    assert most < norm.isf(LEVEL / 2) * spread / np.sqrt(len(z)), (words, mean)
    assert low < variance.min() <= variance.max() < high, (words, variance)


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_scores_against_closed_forms(key, route):
    """Linear units of width 16, where every quantity is known: S is G, K1 = U1 = 0, V4_excess is V4 less its limit."""
    n, depth, eps, C_W = RUN["width"], RUN["depth"], RUN["eps"], 1.5
    values, errors, groups = runs(Model(Linear(), C_W), route, key)
    mean, V4, kappa4 = linear_moments(np.asarray(K0), n, depth, eps, C_W)
    zero, limit = np.zeros((2, 2)), linear_moments(np.asarray(K0), 1e9, depth, eps, C_W)[1]
    truth = dict(zip(NAMES, (mean, mean, zero, zero, V4, V4, V4, kappa4, V4 - limit), strict=True))
    for name, value in values.items():
        z = (value - independent(name, truth[name][None])) / errors[name]
        check(z, groups, KEYS, f"linear, {route}: {name}")


@pytest.mark.slow
def test_errors_of_variances_are_right_on_average(key):
    """Over 240 keys the mean squared deviation of V4 and V4_excess is the mean squared error, and its squared z of mean
    1.25 is their skewness.

    Value and error are small together (correlation 0.7), so that single z scatter more than errors are wrong. The mean
    of six entries of this ratio has a standard error of 0.07, found by repetition; the bounds of 0.35 are five of them.
    """
    n, depth, eps, C_W = RUN["width"], RUN["depth"], RUN["eps"], 1.5
    _, V4, _ = linear_moments(np.asarray(K0), n, depth, eps, C_W)
    limit = linear_moments(np.asarray(K0), 1e9, depth, eps, C_W)[1]
    each = [runs(Model(Linear(), C_W), "block law, control", k)[:2] for k in jax.random.split(key, 4)]
    for name, truth in (("V4", V4), ("V4_excess", V4 - limit)):
        value, error = (np.concatenate([part[i][name] for part in each]) for i in (0, 1))
        off = value - independent(name, truth[None])
        ratio = ((off**2).mean(axis=0) / (error**2).mean(axis=0)).mean()
        print(
            f"{name}: squared deviations over squared errors {ratio:.2f}, mean squared z "
            f"{(off**2 / error**2).mean():.2f}"
        )
        assert abs(ratio - 1) < 0.35


@pytest.mark.slow
def test_scores_of_samplers_and_routes_against_each_other(key):
    """tanh with biases: each key against the other 59 of its route, and the means of routes against each other, within
    4.9 errors (1e-6)."""
    model, means = Model(Tanh(), 2.0, 0.1), {}
    for route, k in zip(ROUTES, jax.random.split(key, len(ROUTES)), strict=True):
        values, errors, groups = runs(model, route, k)
        for name, value in values.items():
            mean, error = value.mean(axis=0), value.std(axis=0, ddof=1) / np.sqrt(KEYS)
            others = (KEYS * mean - value) / (KEYS - 1)
            check(
                (value - others) / (errors[name] * np.sqrt(1 + 1 / (KEYS - 1))),
                groups,
                KEYS - 1,
                f"tanh, {route}: {name}",
            )
            for other, (its_mean, its_error) in means.setdefault(name, {}).items():
                z = np.abs(mean - its_mean) / np.hypot(error, its_error)
                print(f"{name}: {route} and {other} differ by {z.max():.2f} errors")
                assert z.max() < norm.isf(LEVEL / 2)
            means[name][route] = mean, error
