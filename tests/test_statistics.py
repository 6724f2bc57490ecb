"""Streaming moments against two passes in float64, and jackknife errors against the scatter of independent
repetitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel_eft_jax.ensemble import Estimate
from kernel_eft_jax.ensemble.observables import InfiniteWidth, recorded
from kernel_eft_jax.ensemble.statistics import GROUPS, CentredSums, Group, Sums, centred_sums, jackknife

SIZE = 8


def stream(x, squared=None):
    """Sums over networks of x, shape (networks, T, M), in blocks of SIZE; the last one is filled up with networks of no
    weight."""
    networks, depths, length = x.shape
    squared = squared or length
    sums = Sums.zeros(depths, length, squared)
    for block, first in enumerate(range(0, networks, SIZE)):
        rows = x[first : first + SIZE]
        weight = jnp.arange(SIZE) < len(rows)
        padded = jnp.asarray(np.concatenate([rows, 1.001 * x[: SIZE - len(rows)]]), jnp.float32)
        moments = jax.vmap(centred_sums, (0, None, None))(
            jnp.moveaxis(padded, 0, -1), squared, weight.astype(jnp.float32)
        )
        sums = sums.add(block, len(rows), moments)
    return sums


def test_moments_lose_no_digits(key):
    """Mean 1000 standard deviations from zero, 1003 networks: a float32 sum of squares would keep no digit of the
    variance."""
    x = np.asarray(jax.random.normal(key, (1003, 2, 3), jnp.float32)) @ np.diag([1e-2, 1e-3, 1.0]) + np.array(
        [10, 1, -3]
    )
    x = x.astype(np.float32)
    total = stream(x).total()
    exact = x.astype(np.float64)
    assert total.networks == 1003
    assert np.allclose(total.first / 1003, exact.mean(axis=0), rtol=1e-9)
    centred = exact - exact.mean(axis=0)
    mean = total.first / total.networks
    covariance = total.second / total.networks - mean[:, :, None] * mean[:, None, :]
    expected = np.einsum("ktm,ktn->tmn", centred, centred) / 1003
    assert np.allclose(
        covariance, expected, atol=1e-5 * np.sqrt(np.einsum("tm,tn->tmn", *[np.einsum("tmm->tm", expected)] * 2))
    )


def estimate_of(x, limit, control=False):
    """The estimate of these averages, in the order of `recorded`."""
    sums = stream(x, recorded(control)[1])
    return Estimate.of(sums, limit, width=10, layers=np.array([0, 4]), eps=0.5, control=control)


def test_quantities_are_their_definitions(key):
    """G and S of one pair, with their differences from controls, or with F: every field against NumPy."""
    assert [average.name for average in recorded(True)[0]] == [
        *("G", "S", "G - C_G alone", "G - C_G", "R", "S - C_S", "F - C_F")
    ]
    assert [average.name for average in recorded(False)[0]] == ["G", "S", "F"]
    x = np.asarray(jax.random.normal(key, (500, 2, 7), jnp.float32)).cumsum(axis=-1)
    limit = InfiniteWidth(K0=np.array([[0.1], [0.2]]), S=np.array([[0.3], [0.4]]))
    est = estimate_of(x, limit, control=True)
    x = x.astype(np.float64)
    mean, cov = x.mean(axis=0), np.stack([10 * np.cov(x[:, t].T) for t in range(2)])
    assert np.allclose(est.ts, [0, 1])
    assert np.allclose(est.K0[:, 0, 0], [0.1, 0.2])
    expected = {
        "G": mean[:, 0], "S": mean[:, 1], "K1": 10 * mean[:, 4], "U1": 10 * mean[:, 5], "V4": cov[:, 0, 0],
        "V_GS": cov[:, 0, 1], "V_SS": cov[:, 1, 1], "V4_excess": cov[:, 0, 0] - 10 * np.array(
            [np.var(x[:, t, 0] - x[:, t, 2], ddof=1) for t in range(2)]),
        "kappa4": 10 * (mean[:, 6] - 3 * (mean[:, 4] + [0.1, 0.2]) ** 2 + 3 * np.array([0.1, 0.2]) ** 2),
    }  # fmt: skip
    for name, value in expected.items():
        assert np.allclose(getattr(est, name).ravel(), value, rtol=1e-5, atol=1e-5), name
    plain = estimate_of(x[:, :, [0, 1, 6]].astype(np.float32), limit)
    assert plain.V4_excess is None
    assert plain.stderr.V4_excess is None
    assert np.allclose(plain.K1.ravel(), 10 * (mean[:, 0] - [0.1, 0.2]), rtol=1e-5)
    assert np.allclose(plain.U1.ravel(), 10 * (mean[:, 1] - [0.3, 0.4]), rtol=1e-5)
    assert np.allclose(plain.kappa4.ravel(), 10 * (mean[:, 6] - 3 * mean[:, 0] ** 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "networks",
    [32 * SIZE * 2, pytest.param(32 * SIZE * 2 + 5 * SIZE + 3, marks=pytest.mark.thorough)],
    ids=["equal groups", "unequal groups"],
)
def test_jackknife_errors_are_the_true_errors(key, networks):
    """Errors of a mean, a variance, a covariance and a ratio, all known, averaged over 200 Gaussian samples.

    A variance estimated from 32 groups scatters by sqrt(2 / 31) = 25 %, its mean over 200 samples by 1.8 %; the
    tolerance is 5 of those (false alarm below 1e-5 for all eight), plus 1/32 of bias of the jackknife.
    """
    repetitions, rho = 200, 0.6
    z = np.asarray(jax.random.normal(key, (repetitions, networks, 1, 2), jnp.float32))
    x = np.stack([z[..., 0], rho * z[..., 0] + np.sqrt(1 - rho**2) * z[..., 1]], axis=-1) + np.array([0, 5])

    def function(total):
        mean = total.first[0] / total.networks
        covariance = (total.second[0] / total.networks - np.outer(mean, mean)) * total.networks / (total.networks - 1)
        return np.array([mean[0], covariance[0, 0], covariance[0, 1], mean[0] / mean[1]])

    errors = np.array([jackknife(function, stream_exactly(sample))[1] for sample in x])
    exact = np.array([1.0, 2.0, 1 + rho**2, 1 / 25]) / networks
    assert (np.abs((errors**2).mean(axis=0) / exact - 1) < 0.09 + 1 / 32).all()


def stream_exactly(x):
    """As `stream`, with NumPy in float64: 200 times faster."""
    sums = Sums.zeros(*x.shape[1:], x.shape[2])
    for block, first in enumerate(range(0, len(x), SIZE)):
        rows = x[first : first + SIZE].astype(np.float64)
        zero = np.zeros(x.shape[1:])
        sums = sums.add(block, len(rows), CentredSums(zero, rows.sum(axis=0), np.einsum("ktm,ktn->tmn", rows, rows)))
    return sums


def test_the_jackknife_of_groups_that_differ_in_size_is_that_of_its_authors():
    """Pseudo-values of Busing, Meijer and van der Leeden (1999) in NumPy, of a ratio, to rounding."""
    rng = np.random.default_rng(7)
    rows = [rng.normal(2.0, 0.3, (size, 1, 2)) for size in (3, 5, 8, 8, 13, 40)]
    nothing = np.zeros((1, 0, 0))
    sums = Sums(tuple(Group(len(x), x.sum(axis=0), nothing) for x in rows), len(rows))
    value, error = jackknife(lambda total: total.first[0, 0] / total.first[0, 1], sums)

    def ratio(rows):
        return np.divide(*np.concatenate(rows).sum(axis=0)[0])

    whole, left = ratio(rows), np.array([ratio(rows[:i] + rows[i + 1 :]) for i in range(len(rows))])
    h = sum(map(len, rows)) / np.array([len(x) for x in rows])
    centre = len(rows) * whole - np.sum((1 - 1 / h) * left)
    variance = np.mean((h * whole - (h - 1) * left - centre) ** 2 / (h - 1))
    assert np.isclose(value, whole, rtol=1e-13)
    assert np.isclose(error, np.sqrt(variance), rtol=1e-10)


def test_jackknife_sees_correlations(key):
    """G - S with S = G has no error at all, though both have one: `Estimate.jackknife` varies them together."""
    x = np.asarray(jax.random.normal(key, (600, 2, 1), jnp.float32)).repeat(2, axis=-1)
    est = estimate_of(x.repeat(2, axis=-1)[:, :, :3], InfiniteWidth(np.zeros((2, 1)), np.zeros((2, 1))))
    value, error = est.jackknife(lambda q: {"difference": q.G - q.S, "G": q.G})
    assert (value["difference"] == 0).all()
    assert (error["difference"] == 0).all()
    assert (error["G"] == est.stderr.G).all()
    assert (error["G"] > 0).all()


def test_groups_are_dealt_in_turn_and_never_changed():
    sums = Sums.zeros(1, 1, 1)
    moments = CentredSums(np.ones((1, 1)), np.zeros((1, 1)), np.zeros((1, 1, 1)))
    after = sums.add(3, 2, moments).add(GROUPS + 3, 5, moments)
    assert [group.networks for group in after.groups] == [7 if g == 3 else 0 for g in range(GROUPS)]
    assert after.parts == 2
    assert sums.total().networks == 0
    assert (sums.total().first == 0).all()


def test_complex_functions_have_no_error_here(key):
    """Squares of complex deviations would cancel: 0j, before."""
    est = estimate_of(
        np.asarray(jax.random.normal(key, (100, 2, 3), jnp.float32)), InfiniteWidth(np.zeros((2, 1)), np.zeros((2, 1)))
    )
    with pytest.raises(ValueError, match=r"complex numbers, .* return real and imaginary parts"):
        est.jackknife(lambda q: {"a": q.G, "b": np.exp(1j * q.G)})


@pytest.mark.parametrize("width", [1, 8, 64])
@pytest.mark.parametrize("networks", [64, 128])
def test_intervals_hold_for_few_networks(width, networks):
    """Kernels of n Gaussian neurons: n Cov(G, G) is known, 2 in units of the square of the mean. 4000 samples, one at
    each depth.

    95 % of them within 1 %, three standard errors; up to 3 % more often is allowed. Two standard errors hold in 81 to
    93 %, though the standard error is right on average, within 7 %: three standard errors of the scatter of V4 at width
    1, whose kurtosis is 9.
    """
    G = np.random.default_rng(width + networks).chisquare(width, (networks, 4000, 1)) / width
    sums, limit = (
        stream_in_groups(np.concatenate([G, G, G], axis=-1)),
        InfiniteWidth(np.ones((4000, 1)), np.ones((4000, 1))),
    )
    est = Estimate.of(sums, limit, width, np.arange(4000), 0.5, control=False)
    low, high = est.interval("V4")
    held = np.mean((low <= 2) & (high >= 2))
    assert 0.94 < held < 0.95 + 0.01 + 0.03
    assert np.mean(np.abs(est.V4 - 2) < 2 * est.stderr.V4) < held
    for name in ("G", "V4"):  # the error itself is right on average: its square is the variance
        scatter = np.std(getattr(est, name), ddof=1)
        assert np.sqrt(np.mean(getattr(est.stderr, name) ** 2)) == pytest.approx(scatter, rel=0.07), name
    low, high = est.interval("G", 0.68)
    assert ((low < est.G) & (high > est.G)).all()
    with pytest.raises(ValueError, match="must be one of G, S"):
        est.interval("V4_excess")
    with pytest.raises(ValueError, match="`level` must lie between 0 and 1"):
        est.interval("G", 95)


def stream_in_groups(x):
    """All networks of a group at once: fifty times faster than `stream_exactly`."""
    size = len(x) // GROUPS
    zero = np.zeros(x.shape[1:])
    sums = Sums.zeros(*x.shape[1:], 2)
    for group in range(GROUPS):
        rows = x[group * size : (group + 1) * size]
        second = np.einsum("ktm,ktn->tmn", rows[..., :2], rows[..., :2])
        sums = sums.add(group, size, CentredSums(zero, rows.sum(axis=0), second))
    return sums
