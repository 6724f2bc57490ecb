r"""Ensembles of every block, against closed forms, against networks written in NumPy, and against the theory.

Closed forms for one input and no biases, e = eps^2, m neurons in the hidden layer:

$$E[G_L] = (1 + e \kappa)^L K_0, \qquad
  E[G_L^2] = \left[ 1 + 2 e \kappa (1 + \tfrac2n) + e^2 \kappa^2 (1 + \tfrac{r}{m})(1 + \tfrac2n) \right]^L E[G_0^2]$$

for two matrices, with kappa = C_1 C_2 / 2 and r = 5 for ReLU, kappa = C_1 C_2 and r = 2 for linear units;
$E[G_0^2] = K_0^2 (1 + 2/n)$. Given G, a hidden neuron is N(0, C_1 G), and the mean of its square over m neurons has
relative variance r / m. Errors are those that the ensemble reports; each test states how many of them it allows. Draws
are fixed by the key.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy.special import erf
from scipy.stats import ks_2samp

from kernel_eft_jax import GELU, GLU, Dense, Erf, Linear, Model, ReLU, RMSNorm, Tanh
from kernel_eft_jax.ensemble import BlockSampler, WeightSampler, estimate, sample_kernels
from tests.networks import (
    ONE,
    STEPS,
    TWO,
    Matrix,
    gated,
    gelu,
    kernels,
    last,
    layer_norm,
    relu,
    rms_norm,
    sample_networks,
    within,
)

BOTH = [BlockSampler(), WeightSampler()]


def slow(*values):
    """An entry of the slow tier: another pair of sampler and law, whose code the entries beside it run too.

    Weights are held in the fast tier by the law that they share with networks in NumPy.
    """
    return pytest.param(*values, marks=pytest.mark.slow)


def thorough(*values):
    """An entry for `make thorough`."""
    return pytest.param(*values, marks=pytest.mark.thorough)


# --- closed forms -----------------------------------------------------------------------------------------------------


def moments_of_two_matrices(growth, r, n, m, eps, L):
    """E[G] and n Var(G) from K0 = 2, at width n and m hidden neurons."""
    e = eps**2
    mean = 2 * (1 + e * growth) ** L
    factor = 1 + 2 * e * growth * (1 + 2 / n) + e**2 * growth**2 * (1 + r / m) * (1 + 2 / n)
    return mean, n * (factor**L * 4 * (1 + 2 / n) - mean**2)


RELU, LINEAR = (ReLU(), 0.9, 5), (Linear(), 1.8, 2)


@pytest.mark.parametrize(
    ("sampler", "neurons", "growth", "r"),
    [(BOTH[0], *RELU), slow(BOTH[0], *LINEAR), slow(BOTH[1], *RELU), slow(BOTH[1], *LINEAR)],
)
def test_two_matrices_at_finite_width(key, sampler, neurons, growth, r):
    """n = 6 and m = 9, three layers, 60,000 networks: mean and variance within 4.5 errors, 1 and 4 % (false alarm
    1e-5).

    Control variates leave the mean what it is, K1 = U1 = 0, and V4_excess is V4 less its limit n -> infinity at the
    same m / n.
    """
    n, eps, L, control = 6, 0.5, 3, isinstance(sampler, BlockSampler)
    branch = [Dense(1.2, ratio=1.5), *([] if isinstance(neurons, Linear) else [neurons]), Dense(1.5)]
    sizes = {"width": n, "depth": L, "eps": eps, "networks": 60_000, "key": key, "save_at": L, "progress": False}
    est = estimate(Model(branch), ONE, **sizes, sampler=sampler, control=control)
    mean, V4 = moments_of_two_matrices(growth, r, n, 1.5 * n, eps, L)
    limit = moments_of_two_matrices(growth, r, 1e9, 1.5e9, eps, L)[1]
    assert est.K0[-1].item() == pytest.approx(mean, rel=1e-12)
    for name, expected, accuracy in (("G", mean, 0.01), ("V4", V4, 0.04), ("K1", 0.0, None), ("U1", 0.0, None)):
        value, error = last(est, name)
        within(value, error, expected)
        assert accuracy is None or error.item() < accuracy * expected
    if control:
        value, error = last(est, "V4_excess")
        within(value, error, V4 - limit)
        assert error.item() < 0.2 * (V4 - limit)


@pytest.mark.parametrize("sampler", [pytest.param(BOTH[0], marks=pytest.mark.thorough), slow(BOTH[1])])
def test_a_norm_in_front_takes_the_correction_away(key, sampler):
    r"""K1 = 0, and

    $$\mathrm{Var}\, G_L = \mathrm{Var}\, G_0 + \sum_l \{ 4 e K_l Q / n + e^2 [ (1 + 2/n)(Q^2 + C_2^2 \mathrm{Var}(s^2) / m) - Q^2 ] \}$$

    n = 5, m = 10, GELU, 60,000 networks: variance within 4.5 errors, below 1 % each (false alarm 7e-6).
    """
    n, m, eps, L, C1, C2 = 5, 10, 0.6, 4, 1.3, 2.0
    x = np.linspace(-9.5, 9.5, 2001)
    weight = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    s2 = gelu(np.sqrt(C1) * x) ** 2
    Q, variance = C2 * s2 @ weight, s2**2 @ weight - (s2 @ weight) ** 2
    K, e = 2 + eps**2 * Q * np.arange(L), eps**2
    V4 = 2 * 2.0**2 + n * np.sum(4 * e * K * Q / n + e**2 * ((1 + 2 / n) * (Q**2 + C2**2 * variance / m) - Q**2))
    model = Model([RMSNorm(), Dense(C1, ratio=2), GELU(), Dense(C2)])
    sizes = {"width": n, "depth": L, "eps": eps, "networks": 60_000, "key": key, "save_at": L, "progress": False}
    est = estimate(model, ONE, **sizes, sampler=sampler, control=isinstance(sampler, BlockSampler))
    value, error = last(est, "V4")
    within(value, error, V4)
    assert error.item() < 0.01 * V4
    value, error = last(est, "G")
    within(value, error, 2 + eps**2 * Q * L)
    if isinstance(sampler, BlockSampler):
        assert np.abs(est.K1).max() < 1e-4  # S_aa = 1 in every network, to float32 rounding


@pytest.mark.parametrize(
    ("sampler", "activation", "r"),
    [
        pytest.param(BOTH[0], ReLU(), 5, marks=pytest.mark.thorough),
        *(slow(BOTH[0], Linear(), 2), slow(BOTH[1], ReLU(), 5), slow(BOTH[1], Linear(), 2)),
    ],
)
def test_plain_networks(key, sampler, activation, r):
    """phi' = W s(phi), no skip: E[G_L^2] = K0^2 (1 + 2/n) (1 + r/n)^L for ReLU at C_W = 2 and linear units at C_W = 1;
    E[G_L] = K0.

    n = 12, two layers (more have heavier tails), 60,000 networks: within 4.5 errors, 5 % of V4 (false alarm 2e-5).
    """
    n, L = 12, 2
    model = Model(activation, C_W=2.0 if r == 5 else 1.0, decay=1.0)
    sizes = {"width": n, "depth": L, "eps": 1.0, "networks": 60_000, "key": key, "save_at": L, "progress": False}
    est = estimate(model, ONE, **sizes, sampler=sampler, control=isinstance(sampler, BlockSampler))
    V4 = n * 4 * ((1 + 2 / n) * (1 + r / n) ** L - 1)
    for name, expected in (("G", 2.0), ("V4", V4), ("K1", 0.0)):
        value, error = last(est, name)
        within(value, error, expected)
    assert error.item() < 1
    assert last(est, "V4")[1].item() < 0.05 * V4
    assert (est.ts, est.K0.item()) == (L, pytest.approx(2, rel=1e-6))


# --- one law: NumPy networks, weights, block law ----------------------------------------------------------------------


LAWS = {
    # Two norms, a gate, two hidden layers of unequal sizes, more hidden neurons than the stream has, biases, not odd,
    # part of the skip gone.
    "everything": (
        Model(
            [
                RMSNorm(), Dense(1.2, 0.1, ratio=1.5), GLU(Erf()), RMSNorm(), Dense(1.5, 0.2, ratio=0.5), ReLU(), Dense(2.5, 0.1)
            ],
            decay=0.7,
        ),
        lambda n: [
            rms_norm, Matrix(1.2, 0.1, 3 * n), gated(erf), rms_norm, Matrix(1.5, 0.2, n // 2), relu, Matrix(2.5, 0.1, n)
        ],
    ),
    # A norm and a gate, each with a response of its own.
    "gated": (
        Model([RMSNorm(), Dense(1.2, 0.1, ratio=1.5), GLU(Erf()), Dense(5.0, 0.1)], decay=0.7),
        lambda n: [rms_norm, Matrix(1.2, 0.1, 3 * n), gated(erf), Matrix(5.0, 0.1, n)],
    ),
    # Full pre-activation: neurons before the first matrix, which the tests of plain networks have too.
    "resnet_v2": (
        Model([Tanh(), Dense(1.5, 0.2, ratio=1.5), GELU(), Dense(2.0, 0.1)]),
        lambda n: [np.tanh, Matrix(1.5, 0.2, 3 * n // 2), gelu, Matrix(2.0, 0.1, n)],
    ),
}  # fmt: skip
NARROW = {"width": 4, "depth": len(STEPS), "eps": STEPS, "save_at": len(STEPS)}


@pytest.mark.parametrize("name", [thorough("everything"), slow("gated"), slow("resnet_v2")])
def test_samplers_have_the_law_of_numpy_networks(key, name):
    """Kolmogorov-Smirnov at n = 4, two inputs, an eps of each layer, far from Gaussian; 30,000 networks each.

    Five functions of G, three pairs: each at level 1e-5, so a false alarm has probability 1.5e-4 a block. Steps 7 %
    larger are seen.
    """
    (model, branch), networks = LAWS[name], 30_000
    n, sizes = NARROW["width"], NARROW | {"networks": networks}
    keys = jax.random.split(key, 3)

    def sample(sampler, key, stretch=1.0):
        eps = stretch * np.array(STEPS)
        return sample_kernels(model, TWO, **sizes | {"eps": eps}, key=key, sampler=sampler)[:, 0].astype(float)

    reference = kernels(sample_networks(branch(n), TWO, n, STEPS, networks, 1, decay=float(model.decay)))
    samples = [reference, sample(BlockSampler(), keys[0]), sample(WeightSampler(), keys[1])]

    def p_values(G, H):
        functions = [
            lambda G: G[:, 0, 0],
            lambda G: G[:, 0, 1],
            lambda G: G[:, 0, 1] / np.sqrt(G[:, 0, 0] * G[:, 1, 1]),
            lambda G: np.linalg.det(G),
            lambda G: G[:, 0, 0] - 2 * G[:, 1, 1],
        ]
        return [np.asarray(ks_2samp(f(G), f(H)))[1] for f in functions]

    for i in range(3):
        assert min(p_values(samples[i], samples[i - 1])) > 1e-5
    assert min(p_values(reference, sample(BlockSampler(), keys[2], 1.07))) < 1e-5


@pytest.mark.thorough
def test_layer_norm_is_an_rms_norm_one_neuron_narrower(key):
    r"""The stream of width n less its mean is, in n - 1 orthogonal coordinates, the stream of an RMSNorm network of
    width n - 1.

    In law, for $\frac{1}{n-1} \sum_i (\phi_i - \bar\phi)(\phi_i - \bar\phi)$, and E[G] is the same with and without the
    mean: so K1 and V4 at order 1/n are those of RMSNorm. NumPy networks of n = 5 and m = 8 against width 4, 40,000
    each: Kolmogorov-Smirnov at 1e-5, and the mean of G within 4.5 joint errors: false alarm 5e-5. Taken at width 5,
    RMSNorm is seen to have another law.
    """
    model = Model([RMSNorm(), Dense(1.5, ratio=2), ReLU(), Dense(2.5, 0.1)], decay=0.5)
    n, m, networks = 5, 8, 40_000

    def sample(norm, m, n, seed):
        branch = [norm, Matrix(1.5, 0.0, m), relu, Matrix(2.5, 0.1, n)]
        return sample_networks(branch, TWO, n, STEPS, networks, seed, decay=0.5)

    phi = sample(layer_norm, m, n, 2)
    centred = phi - phi.mean(axis=2, keepdims=True)
    G = sample_kernels(model, TWO, **NARROW | {"width": n - 1}, networks=networks, key=key)[:, 0].astype(float)

    def p_values(H, G):
        functions = [lambda G: G[:, 0, 0], lambda G: G[:, 0, 1], lambda G: np.linalg.det(G)]
        return [np.asarray(ks_2samp(f(G), f(H)))[1] for f in functions]

    assert min(p_values(kernels(centred) * n / (n - 1), G)) > 1e-5
    assert min(p_values(kernels(centred) * n / (n - 1), kernels(sample(rms_norm, 2 * n, n, 3)))) < 1e-5
    for H in (kernels(centred) * n / (n - 1), kernels(phi)):
        error = np.hypot(H.std(axis=0), G.std(axis=0)) / np.sqrt(networks)
        within(H.mean(axis=0), error, G.mean(axis=0))


# --- control variates -------------------------------------------------------------------------------------------------


FEW = {"depth": 3, "eps": STEPS[:3], "networks": 2048, "save_at": 3, "progress": False}


@pytest.mark.parametrize("name", [thorough("gated"), slow("everything"), slow("resnet_v2")])
def test_control_variates_take_off_all_that_is_of_leading_order(key, name):
    """From 16 to 256 neurons, three layers of unequal steps: what is left of S and F is of order 1/n, so errors of U1
    and kappa4 do not grow.

    A part of leading order that is missed, such as the response of one map, leaves errors that grow by 4. And K1 is
    unbiased: n (mean G - K0) of the narrow networks is K1 within 4.5 errors of the former (false alarm 2e-5). 2048
    networks tell a ratio of errors to 10 %.
    """
    model = LAWS[name][0]
    narrow, wide = (estimate(model, TWO, width=width, key=key, **FEW) for width in (16, 256))
    for quantity in ("K1", "U1", "kappa4"):
        small, large = (last(est, quantity)[1] for est in (narrow, wide))
        assert (large < 1.6 * small + 2e-3).all(), (quantity, large / small)
    if name == "gated":  # behind a norm every input alone is known, by its free copy: to rounding, not in the mean only
        for quantity in ("K1", "U1"):
            value, error = (np.diagonal(x) for x in last(narrow, quantity))
            assert np.abs(value).max() < 1e-3
            assert error.max() < 1e-4
        assert narrow.stderr.K1[-1, 0, 1] > 1e-3
    within(narrow.K1, 16 * narrow.stderr.G, 16 * (narrow.G - narrow.K0))
    within(narrow.U1, 16 * narrow.stderr.S, 16 * (narrow.S - wide.S), slack=16 * 5 * wide.stderr.S + 0.02)


def test_the_control_variate_has_the_covariance_of_infinite_width_with_decay(key):
    """V4 - V4_excess is n Cov(C, C), whose value is V4 at infinite width at every width; for linear units:

    K' = r K, V' = r^2 V + (4 a^2 e + 2 e^2) K^2, with e = eps^2 C_W and r = a^2 + e. 40,000 networks of 8 neurons tell
    it to a per cent; within 4.5 errors, false alarm 1e-5. A response that keeps a h, and not a^2 h, is off by almost
    half. And the sum that gives K1 is driven by U1 of the same networks, K1' = a^2 K1 + e U1, to rounding of float32.
    """
    eps, C_W, depth = 0.6, 1.5, 5
    model = Model(Linear(), C_W, decay=1.0)
    run = {"width": 8, "depth": depth, "eps": eps, "networks": 40_000, "key": key, "progress": False}
    est = estimate(model, [[1.0]], **run, save_at=[depth - 1, depth])
    value, error = est.jackknife(lambda q: np.subtract(q.V4, q.V4_excess)[-1, 0, 0, 0, 0])
    a2, e = 1 - eps**2, eps**2 * C_W
    np.testing.assert_allclose(est.K1[1], a2 * est.K1[0] + e * est.U1[0], rtol=1e-3, atol=1e-4)
    assert abs(est.U1[0]) > 0.01
    K, V = 1.0, 2.0
    for _ in range(depth):
        K, V = (a2 + e) * K, (a2 + e) ** 2 * V + (4 * a2 * e + 2 * e**2) * K**2
    assert error < 0.02 * V
    assert abs(value - V) < 4.5 * error


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_one_step_for_all_layers_is_that_step_for_each(key):
    """The same bits; and `save_at` may be one layer. Depth times are running sums of eps^2."""
    model = Model(Erf(), 1.5)
    run = {"width": 4, "depth": 3, "networks": 100, "key": key, "progress": False}
    one, each = (estimate(model, ONE, **run, eps=eps, save_at=2) for eps in (0.5, [0.5, 0.5, 0.5]))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one.sums), jax.tree.leaves(each.sums), strict=True))
    assert (each.layers, each.ts) == ([2], [0.5])
    assert np.allclose(estimate(model, ONE, **run, eps=[0.1, 0.2, 0.3], save_at=2).ts, [0.05])


@pytest.mark.thorough
def test_a_draw_depends_on_its_key_and_number_only(key):
    """Blocks of any size hold the same networks, hidden normals included, and different keys different ones."""
    model = LAWS["everything"][0]
    many = sample_kernels(model, TWO, **NARROW, networks=3000, key=key)
    assert np.array_equal(sample_kernels(model, TWO, **NARROW, networks=3, key=key), many[:3])
    assert len(np.unique(many[:, 0, 0, 1])) > 2990
    other = sample_kernels(model, TWO, **NARROW, networks=3, key=jax.random.split(key)[0])
    assert not np.array_equal(other, many[:3])


BITS = """
import hashlib, jax, numpy as np
from tests.networks import STEPS, TWO
from tests.test_ensemble_blocks import LAWS, estimate
run = dict(width=16, depth=4, eps=STEPS, networks=2048, key=jax.random.key(5), save_at=[2, 4], progress=False)
for model, _ in LAWS.values():
    sums = jax.tree.leaves(estimate(model, TWO, **run).sums)
    print(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in sums)).hexdigest())
"""


@pytest.mark.slow
def test_any_number_of_devices_gives_the_same_bits():
    """Hidden neurons and control variates included; a digest of each block."""
    found = []
    for devices in (1, 4):
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        run = subprocess.run([sys.executable, "-c", BITS], env=environment, capture_output=True, text=True, check=True)
        found.append(run.stdout.split())
    assert len(set(found[0])) == len(LAWS)
    assert found[0] == found[1]


@pytest.mark.thorough
def test_a_checkpoint_of_another_block_is_refused(key, tmp_path):
    """Blocks that differ in structure, in the number of hidden neurons, or in an activation alone."""
    run = {"width": 4, "depth": 2, "eps": 0.5, "networks": 64, "key": key, "progress": False, "control": False}
    blocks = [
        [Dense(1.0), Erf(), Dense(2.0)],
        [Dense(1.0, ratio=2), Erf(), Dense(2.0)],
        [RMSNorm(), Dense(1.0), Erf(), Dense(2.0)],
        [Dense(1.0), Linear(), Dense(2.0)],
        [Dense(1.0), Erf(), Dense(2.5)],
    ]
    first = estimate(Model(blocks[0]), ONE, **run, checkpoint=tmp_path / "run")
    assert np.array_equal(estimate(Model(blocks[0]), ONE, **run, checkpoint=tmp_path / "run").G, first.G)
    for branch in blocks[1:]:
        with pytest.raises(ValueError, match=r"belongs to another run: (branch|model and inputs) is"):
            estimate(Model(branch), ONE, **run, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="model and inputs is"):
        estimate(Model(blocks[0], decay=0.5), ONE, **run, checkpoint=tmp_path / "run")


@pytest.mark.thorough
def test_an_estimate_knows_what_made_it(key):
    model = LAWS["gated"][0]
    est = estimate(model, TWO, width=16, key=key, **FEW)
    again = estimate(
        est.model,
        TWO,
        width=est.width,
        depth=3,
        eps=est.eps,
        networks=est.networks,
        key=key,
        sampler=est.sampler,
        save_at=est.layers,
        progress=False,
    )
    assert np.array_equal(again.K1, est.K1)


@pytest.mark.thorough
def test_a_norm_of_neurons_that_are_all_zero_is_named():
    """Four neurons are all negative with probability 1/16, and ReLU makes them zero: the norm is 0/0 at any variance, so
    that a larger width is the remedy and a smaller eps is none."""
    model = Model([ReLU(), RMSNorm(), Dense(1.0)])
    run = {"width": 4, "depth": 1, "eps": 0.1, "networks": 128, "key": jax.random.key(0)}
    for sample in (estimate, sample_kernels):
        with pytest.raises(FloatingPointError, match="is 0/0: take a larger width"):
            sample(model, [[1.0]], **run, **({"progress": False} if sample is estimate else {}))
