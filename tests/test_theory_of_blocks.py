"""Theory and sampled networks of the blocks that people build, and three wrong theories, which are seen.

`deviations` compares the mean kernel's correction, extrapolated to 1/n = 0 from two widths, and covariances, which
control variates bring to infinite width at every width. Each test states how many of the ensemble's own errors it
allows; draws are fixed by the key.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax import GELU, GLU, Dense, Model, RMSNorm, SiLU, Tanh
from kernel_eft_jax.ensemble import WeightSampler, estimate
from kernel_eft_jax.kernel_maps import Fresh
from tests.networks import ONE, STEPS, THREE, TWO, last, within


def two_widths(model, K0, key, networks, widths=(64, 128), **run):
    """Ensembles of two widths at their last depth."""
    run = {"networks": networks, "save_at": run["depth"], "progress": False} | run
    return [estimate(model, K0, width=width, key=jax.random.fold_in(key, width), **run) for width in widths]


def deviations(ensembles, theory, K0, closure=None):
    """Of K1 extrapolated to 1/n = 0 from two widths, and of V4 without V4_excess at both: the largest in standard
    errors.

    Without its excess V4 is that of infinite width, at every width. A K1 that is known exactly, behind a norm, has an
    error of 1e-4 from rounding.
    """
    narrow, wide = ensembles
    sol = keft.solve(theory, K0, layers=int(wide.layers[-1]), eps=wide.eps, closure=closure or keft.HermiteTower())
    a, b = np.array([wide.width, narrow.width]) / (wide.width - narrow.width)
    error = np.hypot(a * wide.stderr.K1, b * narrow.stderr.K1) + 1e-4
    K1 = np.abs(a * wide.K1 - b * narrow.K1 - sol.K1) / error
    V4 = [np.abs(est.V4 - est.V4_excess - sol.V4) / est.jackknife(lambda q: q.V4 - q.V4_excess)[1] for est in ensembles]
    return float(np.max(K1)), float(np.max(V4))


FEW_HIDDEN = Model([Dense(1.0, ratio=0.25), Tanh(), Dense(4.0)], decay=0.5)


# In CI the table of test_blocks holds K1 of the theory, and test_ensemble_blocks the law of the networks.
@pytest.mark.slow
def test_theory_of_two_matrices_with_few_hidden_neurons(key):
    """n = 256, 8,000 networks: K1 within 4.5 errors and the next order in 1/n, V4 without its excess within 4.5 errors,
    which are 3 % of K1."""
    est = estimate(FEW_HIDDEN, ONE, width=256, depth=3, eps=1.0, networks=8_000, key=key, save_at=3, progress=False)
    sol = keft.solve(FEW_HIDDEN, ONE, layers=3, eps=1.0, closure=keft.HermiteTower(2))
    (K1, error), V4 = last(est, "K1"), est.jackknife(lambda q: q.V4 - q.V4_excess)
    assert error.item() < 0.03 * abs(K1.item())
    within(K1, error, sol.K1[-1], slack=4 * np.abs(K1) / 256)
    within(est.V4 - est.V4_excess, V4[1], sol.V4)


@pytest.mark.slow
def test_wrong_theories_of_two_matrices_are_seen(key, monkeypatch):
    """Few hidden neurons, n = 128 and 256, 8,000 networks: K1 and V4 within 4.5 errors of the theory (false alarm
    2e-5), which are 3 %.

    Wrong by more than 8 errors: V4 without the noise of hidden neurons, K1 without the curvature inside the branch, and
    K1 of the one-matrix tower of the same K0.
    """
    model = FEW_HIDDEN
    ensembles = two_widths(model, ONE, key, 8_000, (128, 256), depth=3, eps=1.0)
    assert max(deviations(ensembles, model, ONE)) < 4.5
    for est in ensembles:
        assert est.stderr.K1[-1].item() < 0.03 * abs(est.K1[-1].item())
    right = Fresh.response
    found = {}
    for part in ("noise", "hessian"):
        with monkeypatch.context() as patch:
            patch.setattr(Fresh, "response", lambda self, k, part=part: without(part, right(self, k)))
            jax.clear_caches()
            found[part] = deviations(ensembles, model, ONE)
    jax.clear_caches()
    assert found["noise"][1] > 8, found
    assert found["hessian"][0] > 8, found
    K1, _ = deviations(ensembles, Model(Tanh(), 4.0, decay=0.5), ONE)
    assert K1 > 8


def without(part, response):
    return response._replace(**{part: jnp.zeros_like(getattr(response, part))})


BIASED = Model(
    [Dense(1.2, 0.1, ratio=1.5), GELU(), RMSNorm(), Dense(1.5, 0.2, ratio=0.5), SiLU(), Dense(2.0, 0.1)], decay=0.5
)


@pytest.mark.slow
def test_theory_of_three_inputs_two_hidden_layers_and_an_eps_of_each_layer(key):
    """Biases, unequal ratios, activations that are not odd, decay 0.5: n = 64 and 128, 80,000 networks each.

    K1 and V4 within 4.5 errors: 6 and 42 numbers, false alarm 4e-4. Errors are 5 % of K1 and 2 % of V4 where these are
    largest.
    """
    ensembles = two_widths(BIASED, THREE, key, 80_000, depth=len(STEPS), eps=STEPS)
    assert max(deviations(ensembles, BIASED, THREE)) < 4.5
    K1, V4 = last(ensembles[1], "K1"), last(ensembles[1], "V4")
    assert K1[1][0, 2] < 0.05 * np.abs(K1[0][0, 2])
    assert V4[1].max() < 0.02 * V4[0].max()


TABLE = {
    "two matrices": (Model([Dense(1.0), Tanh(), Dense(2.0)]), [[2.0, 0.6], [0.6, 2.0]], 0.5, 8),
    "transformer": (Model([RMSNorm(), Dense(1.0, ratio=4), GELU(), Dense(2.0)]), [[1.0, 0.3], [0.3, 1.0]], 0.5, 8),
    "llama": (Model([RMSNorm(), Dense(1.0, ratio=2), GLU(SiLU()), Dense(4.0)]), [[1.0, 0.3], [0.3, 1.0]], 0.5, 8),
    "resnet_v2": (Model([Tanh(), Dense(2.0), Tanh(), Dense(2.0)]), ONE, 0.5, 8),
    "biases": (Model([Tanh(), Dense(1.5, 0.1, ratio=2), GELU(), Dense(2.0, 0.05)]), ONE, 0.5, 8),
    "gelu": (Model([Dense(1.5, 0.1), GELU(), Dense(2.0, 0.05)]), TWO, 0.3, 10),
    "mlp": (Model(Tanh(), 2.0, 0.1, decay=1.0), ONE, 1.0, 6),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_theory_of_the_blocks_people_build(key, name):
    """n = 64 and 128, 40,000 networks each by the block law: K1 extrapolated to 1/n = 0, and V4 without its excess,
    within 4 errors.

    The excess itself is of order 1/n: twice that of the wider networks is that of the narrow ones within 4 errors and a
    quarter of it. Four to twelve numbers a block: false alarm 1e-3. Weights at n = 16 have the moments of the block
    law, within 4.5 joint errors (1e-4).
    """
    model, K0, eps, depth = TABLE[name]
    K0 = np.asarray(K0)
    ensembles = two_widths(model, K0, key, 40_000, depth=depth, eps=eps)
    assert max(deviations(ensembles, model, K0, keft.HermiteTower(40))) < 4
    (excess, one), (half, other) = (last(est, "V4_excess") for est in ensembles)
    error = np.hypot(one, 2 * other)
    assert (np.abs(excess - 2 * half) < 4 * error + 0.25 * np.abs(excess)).all()
    sizes = {"width": 16, "depth": depth, "eps": eps, "networks": 40_000, "save_at": depth, "progress": False}
    keys = jax.random.split(key)
    block = estimate(model, K0, **sizes, key=keys[0], control=False)
    weights = estimate(model, K0, **sizes, key=keys[1], control=False, sampler=WeightSampler())
    for quantity in ("G", "S", "V4", "kappa4"):
        (a, a_error), (b, b_error) = last(block, quantity), last(weights, quantity)
        within(a, np.hypot(a_error, b_error), b, slack=1e-5)


@pytest.mark.slow
def test_theory_of_four_inputs(key):
    """A gated block with two norms: n = 64 and 128, 20,000 networks; 10 and 110 numbers within 4.5 errors (false alarm
    8e-4)."""
    K0 = np.pad(THREE, (0, 1)) + np.diag([0, 0, 0, 1.5]) + 0.1
    model = Model([RMSNorm(), Dense(1.2, 0.1), GLU(SiLU()), RMSNorm(), Dense(2.0)], decay=0.3)
    ensembles = two_widths(model, K0, key, 20_000, depth=4, eps=STEPS)
    assert max(deviations(ensembles, model, K0)) < 4.5
