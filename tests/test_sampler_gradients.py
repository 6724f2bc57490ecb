"""Derivatives through the sampler: the same networks, moved; against differences with common random numbers and exact
means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.ensemble import sample_kernels
from kernel_eft_jax.inference import Experiment, pathwise_kernels, pathwise_sensitivity

K0 = np.array([[1.0, 0.3], [0.3, 0.6]])
LAYERS, EPS, WIDTH = (0, 2, 5), 0.4, 16


def few(networks):
    return jnp.arange(networks, dtype=jnp.uint32)


def check_of_a_block(K0, eps, key):
    """The same networks, and reverse mode against differences, in variances of every matrix, decay and an eps of each
    layer; the function, the point and its derivatives."""
    depth = len(eps)

    def model(values):
        first, last = keft.Dense(values[0], 0.1, ratio=1.5), keft.Dense(2.0, values[1])
        return keft.Model([keft.RMSNorm(), first, keft.GLU(keft.Erf()), last], decay=values[2])

    def mean(values):
        steps = jnp.asarray(eps).at[1].set(values[3])
        run = {"width": 4, "layers": (1, depth), "eps": steps, "networks": few(16), "key": key}
        G = pathwise_kernels(model(values), K0, **run)
        return jnp.sum(jnp.mean(G, 0) ** 2), G

    point, step, at = jnp.array([1.2, 0.2, 0.6, eps[1]]), 1e-6, jax.jit(jax.value_and_grad(mean, has_aux=True))
    (_, G), reverse = at(point)
    run = {"width": 4, "depth": depth, "eps": eps, "networks": 16, "key": key, "save_at": [1, depth]}
    np.testing.assert_allclose(G, sample_kernels(model(point), K0, **run), rtol=5e-5, atol=5e-6)
    differences = [(at(point + h)[0][0] - at(point - h)[0][0]) / (2 * step) for h in step * jnp.eye(4)]
    np.testing.assert_allclose(reverse, differences, rtol=1e-6)
    return lambda values: mean(values)[0], point, reverse


@pytest.mark.thorough
def test_of_a_block(key):
    """One input. Derivatives through the factors of several inputs, and forward mode, are held by plain networks
    below."""
    check_of_a_block(K0[:1, :1], [0.3, 0.5], key)


@pytest.mark.slow
def test_of_a_block_and_two_inputs(key):
    """Forward mode too."""
    mean, point, reverse = check_of_a_block(K0, [0.3, 0.5, 0.4], key)
    np.testing.assert_allclose(reverse, jax.jit(jax.jacfwd(mean))(point), rtol=1e-11)


# In CI: reverse mode of a block above, and of two inputs below; forward mode of a linear network, whose
# derivatives are known.
@pytest.mark.slow
@pytest.mark.parametrize("activation", [keft.Erf(), keft.LeakyReLU(0.2)])
def test_both_modes_are_the_limit_of_differences_with_the_same_networks(activation, key):
    """The networks of `sample_kernels`, and both modes against differences."""

    def model(values):
        return keft.Model(keft.Scaled(activation, values[3]), values[0], values[1])

    def mean(values):
        run = {"width": WIDTH, "layers": LAYERS, "eps": EPS, "networks": few(32), "key": key}
        G = pathwise_kernels(model(values), values[2] * K0, **run)
        return jnp.sum(jnp.mean(G, 0) ** 2), G

    point = jnp.array([1.5, 0.3, 1.1, 0.9])
    at = jax.jit(lambda x: (jax.jacfwd(lambda x: mean(x)[0])(x), *jax.value_and_grad(mean, has_aux=True)(x)))
    forward, (_, G), reverse = at(point)
    run = {"width": WIDTH, "depth": LAYERS[-1], "eps": EPS, "networks": 32, "key": key, "save_at": LAYERS}
    np.testing.assert_allclose(G, sample_kernels(model(point), 1.1 * K0, **run), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(reverse, forward, rtol=1e-12)
    # A step so small that no neuron of a kinked activation crosses zero, or too few to see.
    step = 1e-6
    differences = [(at(point + h)[1][0] - at(point - h)[1][0]) / (2 * step) for h in step * jnp.eye(4)]
    np.testing.assert_allclose(forward, differences, rtol=1e-6)


def test_one_linear_layer_has_the_exact_derivative(key):
    """E[G] = (1 + eps^2 C_W) K0 at every width: 32,768 networks, within 4.5 standard errors (false alarm 7e-6 each),
    which tell 5 % of the derivative."""
    e = Experiment(keft.Model(keft.Linear(), 1.5), [[0.6]], width=WIDTH, layers=(1,), eps=EPS)
    sampled = pathwise_sensitivity(e, ("C_W",), networks=32_768, key=key)
    error = sampled.stderr.derivative[0, 0, 0, 0]
    assert abs(sampled.derivative[0, 0, 0, 0] - EPS**2 * 0.6) < 4.5 * error
    assert error < 0.05 / 4.5 * EPS**2 * 0.6
    assert abs(sampled.G[0, 0, 0] - (1 + EPS**2 * 1.5) * 0.6) < 4.5 * sampled.stderr.G[0, 0, 0]


@pytest.mark.thorough
def test_a_linear_network_has_the_exact_derivatives_at_every_width(key):
    """E[G] = K0 of the infinite network at any width, here 16: 16,384 networks, all within 4.5 standard errors (1e-4 of
    alarm)."""
    C_W, C_b, names = 1.5, 0.3, ("C_W", "C_b", "K0_scale", "eps")
    e = Experiment(keft.Model(keft.Linear(), C_W, C_b), K0, width=WIDTH, layers=LAYERS, eps=EPS)
    sampled = pathwise_sensitivity(e, names, networks=16_384, key=key)

    def mean(C_W, C_b, scale, eps):
        growth = ((1 + eps**2 * C_W) ** np.array(LAYERS))[:, None, None]
        return growth * scale * K0 + C_b / C_W * (growth - 1)

    point, step = np.array([C_W, C_b, 1.0, EPS]), 1e-5
    exact = [(mean(*(point + h)) - mean(*(point - h))) / (2 * step) for h in step * np.eye(4)]
    assert np.all(np.abs(sampled.derivative - exact) <= 4.5 * sampled.stderr.derivative + 1e-8)
    assert np.all(np.abs(sampled.G - mean(*point)) <= 4.5 * sampled.stderr.G)
    # And the test can see an error of 5 % in the derivative by C_W at the last layer.
    assert sampled.stderr.derivative[0, -1, 0, 0] < 0.05 / 4.5 * exact[0][-1, 0, 0]


@pytest.mark.thorough
def test_decay_has_a_derivative_where_each_layer_has_its_own_step(key):
    """Linear units of one input: E[G] is the product of 1 + (C_W - c) eps_l^2, at every width."""
    e = Experiment(keft.Model(keft.Linear(), 1.5, decay=0.4), np.eye(1), width=4, layers=(2,), eps=[0.5, 0.3])
    sampled = pathwise_sensitivity(e, "decay", networks=256, key=key)
    first, second = 1 + 1.1 * 0.25, 1 + 1.1 * 0.09
    assert abs(sampled.derivative.item() + 0.25 * second + 0.09 * first) < 4.5 * sampled.stderr.derivative.item()
    assert sampled.stderr.derivative.item() < 0.05


@pytest.mark.slow
def test_the_exact_closure_has_the_derivatives_of_sampled_networks(key):
    """tanh, width 32, 40,000 networks: to 4.5 standard errors, which see the 1/n part (K1 / n shifts dG/dC_W by two of
    them)."""
    names = ("C_W", "C_b", "activation.input_scale")
    e = Experiment(
        keft.Model(keft.Scaled(keft.Tanh(), 1.1), 2.0, 0.2), np.eye(1) * 2, width=32, layers=(10,), eps=0.1**0.5
    )
    sampled = pathwise_sensitivity(e, names, networks=40_000, key=key)
    theory = keft.inference.sensitivity(e.model, e.K0, layers=[10], closure=keft.HermiteTower(20), eps=0.1**0.5)
    expected = np.array([theory[name].K0 + theory[name].K1 / 32 for name in names])
    assert np.all(np.abs(sampled.derivative - expected) < 4.5 * sampled.stderr.derivative)


@pytest.mark.thorough
def test_repeated_inputs_and_fewer_neurons_than_inputs_have_finite_derivatives(key):
    """Two inputs, equal or not, and one neuron: kernels of rank one."""

    @jax.jit
    @jax.value_and_grad
    def at(C_W, K):
        run = {"width": 1, "layers": (2,), "eps": EPS, "networks": few(8), "key": key}
        return jnp.mean(pathwise_kernels(keft.Model(keft.Erf(), C_W), K, **run))

    for K in (np.full((2, 2), K0[0, 0]), K0):
        step = 1e-5
        (value, slope), (above, _), (below, _) = (at(jnp.asarray(C_W), K) for C_W in (1.5, 1.5 + step, 1.5 - step))
        assert np.isfinite(value)
        np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-7)


def test_reverse_mode_keeps_of_the_order_of_the_square_root_of_the_depth(key):
    """Bytes that are kept from the way there to the way back: sixteen times the depth, four times the memory.

    Keeping every layer would take sixteen times, and few states once, with long ways to go again between them.
    """

    def kept(depth):
        def loss(C_W):
            model = keft.Model(keft.Linear(), C_W)
            return jnp.sum(
                pathwise_kernels(model, np.eye(1), width=256, layers=(depth,), eps=0.1, networks=few(64), key=key)
            )

        residuals = jax.eval_shape(lambda C_W: jax.vjp(loss, C_W)[1], jnp.array(1.0))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    assert 3.5 < kept(1024) / kept(64) < 4.5


def test_what_has_no_derivative_is_refused(key):
    e = Experiment(keft.Model(keft.Erf(), 1.5), K0, width=16.5, layers=LAYERS, eps=EPS)
    with pytest.raises(ValueError, match="whole number of neurons"):
        pathwise_sensitivity(e, ("C_W",), networks=64, key=key)
    e = Experiment(keft.Model(keft.Erf(), 1.5, decay=1.0), K0, width=WIDTH, layers=LAYERS, eps=1.0)
    with pytest.raises(ValueError, match=r"names eps, but decay eps.2 is 1: there is no skip"):
        pathwise_sensitivity(e, ("eps",), networks=64, key=key)


@pytest.mark.parametrize(
    ("K0", "width", "refused"),
    [
        ([[1.0, -1.0], [-1.0, 1.0]], WIDTH, True),  # opposite inputs, which biases separate
        ([[1.0, 0.3], [0.3, 0.6]], 1, True),  # more inputs than neurons
        pytest.param([[1.0, 1.0], [1.0, 1.0]], WIDTH, False, marks=pytest.mark.thorough),  # copies stay copies
    ],
)
def test_no_bias_where_biases_separate_inputs_has_no_pathwise_derivative(K0, width, refused, key):
    e = Experiment(keft.Model(keft.Erf(), 1.5), K0, width=width, layers=(1,), eps=EPS)
    if refused:
        with pytest.raises(ValueError, match=r"names C_b, which is zero, and.*Start from C_b > 0"):
            pathwise_sensitivity(e, ("C_b",), networks=64, key=key)
    else:
        # One layer adds eps^2 C_b to the mean kernel.
        found = pathwise_sensitivity(e, ("C_b",), networks=4096, key=key)
        assert np.all(np.abs(found.derivative - EPS**2) < 4.5 * found.stderr.derivative)
        assert np.all(found.stderr.derivative < 0.02 * EPS**2)
