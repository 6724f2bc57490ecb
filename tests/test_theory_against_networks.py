"""Theory and sampled networks meet here: each is the oracle of the other, and they share only the model.

Errors are the ensembles' own standard errors. Every comparison counts all saved depths and entries; its false-alarm
probability is stated, and draws are fixed by the key.
"""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft


class Setting(NamedTuple):
    """A model, and 16,000 networks of width 256."""

    model: keft.Model
    K0: np.ndarray
    eps: float
    save: list[int]

    def ensemble(self, width: int, networks: int, key):
        run = {"depth": self.save[-1], "eps": self.eps, "save_at": self.save, "progress": False}
        return keft.estimate(self.model, self.K0, width=width, networks=networks, key=key, **run)

    def theory(self, closure):
        return keft.solve(self.model, self.K0, layers=self.save, eps=self.eps, closure=closure)


UNEQUAL = np.array([[1.0, 0.3], [0.3, 0.5]])
SETTINGS = {
    "sin, thick layers": Setting(keft.Model(keft.Sin(), 1.5, 0.2), UNEQUAL, 1.0, [2, 3]),
    "gelu, thick layers": Setting(keft.Model(keft.GELU(), 1.2, 0.2), UNEQUAL, 1.0, [2, 3]),
    "tanh": Setting(keft.Model(keft.Tanh(), 2.0), np.array([[2.0, 0.6], [0.6, 2.0]]), 0.25, [4, 8, 16, 32]),
    "silu, biases, unequal inputs": Setting(keft.Model(keft.SiLU(), 1.2, 0.2), UNEQUAL, 0.25, [4, 8, 16, 32]),
}
THIN = list(SETTINGS)[2:]
EVERY_SETTING = [
    pytest.param("sin, thick layers", marks=pytest.mark.thorough),
    *(pytest.param(n, marks=pytest.mark.slow) for n in list(SETTINGS)[1:]),
]


@functools.cache
def tower_of(setting):
    return SETTINGS[setting].theory(keft.HermiteTower(30))


@functools.cache
def wide(setting):
    return SETTINGS[setting].ensemble(256, 16_000, jax.random.key(zlib.crc32(setting.encode())))


def largest(difference, stderr):
    """The largest deviation in standard errors, and how many independent entries there are of the kernel at four
    depths."""
    return float(np.max(np.abs(difference) / stderr))


@pytest.mark.parametrize("setting", EVERY_SETTING)
def test_mean_kernels_have_the_towers_correction(setting):
    """K1 on and off the diagonal at every depth, n = 256, 16,000 networks: within 4 standard errors (false alarm 1e-3).

    The same comparison rejects the K1 of GOnly, by more than six standard errors (observed: 8.7 and more).
    """
    estimate, tower = wide(setting), tower_of(setting)
    allowed = 4 * estimate.stderr.K1 + np.abs(tower.K1) * 4 / 256  # what is of the next order in 1/n
    assert (np.abs(estimate.K1 - tower.K1) < allowed).all()
    g_only = SETTINGS[setting].theory(keft.GOnly())
    assert largest(estimate.K1 - g_only.K1, estimate.stderr.K1) > 6


@pytest.mark.slow
@pytest.mark.parametrize("setting", THIN)
def test_covariances_are_the_towers_and_the_rest_falls_like_one_over_n(setting, key):
    """n V4_excess is the same number at n = 32, 64, 128, 256 to its error and its own next order, so V4 -> the tower's.

    And the control variate is right: the tower's V4 plus the excess is the plain estimate of V4, which does not know
    the tower, within 4.5 standard errors of the latter (8,000 networks, 0.016 relative; false alarm 1e-3).
    """
    tower = tower_of(setting)
    scaled, errors = [], []
    for width in (32, 64, 128, 256):
        estimate = SETTINGS[setting].ensemble(width, 8_000, jax.random.fold_in(key, width))
        assert estimate.V4_excess is not None
        assert estimate.stderr.V4_excess is not None
        assert largest(tower.V4 + estimate.V4_excess - estimate.V4, estimate.stderr.V4) < 4.5
        scaled.append(width * estimate.V4_excess[-1, 0, 0, 0, 0])
        errors.append(width * estimate.stderr.V4_excess[-1, 0, 0, 0, 0])
    # A straight line in 1/n fits n V4_excess: two parameters, two degrees of freedom, chi^2 < 13.8 (false alarm 1e-3).
    design = np.stack([np.ones(4), 1 / np.array([32, 64, 128, 256])], axis=1) / np.array(errors)[:, None]
    _, chi2, *_ = np.linalg.lstsq(design, np.array(scaled) / errors, rcond=None)
    assert chi2.item() < 13.8


@pytest.mark.parametrize(
    ("setting", "closure", "slack"),
    [
        pytest.param("sin, thick layers", keft.HermiteTower(30), 0.015, marks=pytest.mark.thorough),
        pytest.param("gelu, thick layers", keft.HermiteTower(30), 0.015, marks=pytest.mark.slow),
        pytest.param("tanh", keft.HermiteTower(30), 0.015, marks=pytest.mark.slow),
        pytest.param("tanh", keft.SigmaKernel(), 0.02, marks=pytest.mark.slow),
    ],
)
def test_joint_covariances_and_the_mean_of_the_sigma_kernel(setting, closure, slack):
    """Cov(G, S), Cov(S, S) and n (E[S] - E_K0[s s]) of the tower, and of SigmaKernel where it is accurate, n = 256,
    16,000 networks.

    Within 4.5 standard errors of the plain estimates (1.1 % here) and the next order in 1/n.
    """
    estimate = wide(setting)
    solution = tower_of(setting) if isinstance(closure, keft.HermiteTower) else SETTINGS[setting].theory(closure)
    for quantity in ("V_GS", "V_SS"):
        value = getattr(solution, quantity)
        scale = np.abs(np.asarray(value)).max(axis=(1, 2, 3, 4), keepdims=True)
        gap = np.abs(getattr(estimate, quantity) - value)
        assert (gap < 4.5 * getattr(estimate.stderr, quantity) + slack * scale).all()
    assert (np.abs(estimate.U1 - solution.U1) < 4.5 * estimate.stderr.U1 + 0.02).all()


@pytest.mark.thorough
def test_covariances_of_thick_layers_are_the_towers():
    """eps = 1: the tower is a theory of real layers, not of their continuum limit. V4 and its excess, which the control
    variates give, within 4.5 standard errors (1.1 %) of the plain estimate."""
    estimate, tower = wide("sin, thick layers"), tower_of("sin, thick layers")
    assert largest(estimate.V4 - tower.V4 - estimate.V4_excess, estimate.stderr.V4) < 4.5


@pytest.mark.slow
def test_theory_is_exact_for_one_layer_steps_of_order_one(key):
    """eps = 1, three layers: the tower is a theory of real layers, not of their continuum limit. n = 512, 60,000
    networks.

    K1 within 4 standard errors and V4 within 4 (0.6 %); the continuum's values are far outside.
    """
    model, K = keft.Model(keft.SiLU(), jnp.array(1.0)), np.array([[1.0]])
    estimate = keft.estimate(
        model, K, width=512, depth=3, eps=1.0, networks=60_000, key=key, save_at=[1, 2, 3], progress=False
    )
    layers = keft.solve(model, K, layers=[1, 2, 3], eps=1.0, closure=keft.HermiteTower(40))
    V4 = np.asarray(layers.V4) + estimate.V4_excess
    assert largest(estimate.V4 - V4, estimate.stderr.V4) < 4
    assert (np.abs(estimate.K1 - layers.K1) <= 4 * estimate.stderr.K1 + 4 * np.abs(layers.K1) / 512).all()
    continuum = keft.solve(model, K, [1.0, 2.0, 3.0], closure=keft.HermiteTower(40))
    assert largest(estimate.V4 - continuum.V4, estimate.stderr.V4) > 10
