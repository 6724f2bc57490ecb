"""Derivatives at the awkward places: no biases, repeated and opposite inputs, rank-deficient kernels, ReLU; and second
ones.

Oracles: an input and its copy must have the derivatives of one input alone, N = 1, where nothing is awkward; closed
forms for a linear activation; central differences along directions that keep the kernel what it is.
"""

import functools
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.pairs import unpack
from kernel_eft_jax.quadrature import powers

EPS, TS, LAYERS = 0.5, np.array([0.25, 0.75]), [1, 3]


def quantities(model, K0, closure=None, eps=EPS):
    solution = keft.solve(model, K0, layers=LAYERS, eps=eps, closure=closure or keft.GOnly())
    return {"K0": solution.K0, "V4": solution.V4, "K1": solution.K1}


POINT = np.array([1.5, 0.0, 1.0, 0.0])


def by_parameters(activation, closure, K0, point=POINT, direction=None):
    """Derivatives by C_W, by C_b at zero, by a scale of the input kernel and along a direction of it; and the values.

    One program, compiled once, serves all kernels of a size.
    """
    return _by_parameters(
        activation, closure, np.asarray(K0), point, np.zeros_like(K0) if direction is None else direction
    )


@eqx.filter_jit
def _by_parameters(activation, closure, K0, point, direction):
    def values(point):
        model = keft.Model(activation, point[0], point[1])
        return (quantities(model, point[2] * K0 + point[3] * direction, closure),) * 2

    return jax.jacfwd(values, has_aux=True)(point)


def of_the_first(name, values):
    """The part of a quantity, or of its derivatives, that concerns the first input alone, where nothing is awkward."""
    inputs = {"K0": 2, "V4": 4, "K1": 2}[name]
    return np.asarray(values)[(slice(None), *(slice(0, 1),) * inputs)]


COPIES = pytest.mark.parametrize(
    ("closure", "inputs"), [(keft.GOnly(), 3), (keft.HermiteTower(2), 2)], ids=["GOnly", "HermiteTower"]
)


@pytest.mark.parametrize(
    ("activation", "closure", "inputs"),
    [
        pytest.param(keft.Erf(), keft.GOnly(), 3, marks=pytest.mark.thorough),
        pytest.param(keft.ReLU(), keft.GOnly(), 3, marks=pytest.mark.thorough),
        pytest.param(keft.Erf(), keft.HermiteTower(2), 2, marks=pytest.mark.thorough),
        pytest.param(keft.ReLU(), keft.HermiteTower(4), 2, marks=pytest.mark.slow),
    ],
)
def test_copies_of_an_input_have_the_derivatives_of_one(activation, closure, inputs):
    copies, _ = by_parameters(activation, closure, np.full((inputs, inputs), 1.3))
    for name, values in copies.items():
        expected = np.broadcast_to(of_the_first(name, values), values.shape)
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.slow
@COPIES
def test_the_first_of_several_copies_is_one_input(closure, inputs):
    one, _ = by_parameters(keft.Erf(), closure, np.array([[1.3]]))
    copies, _ = by_parameters(keft.Erf(), closure, np.full((inputs, inputs), 1.3))
    for name, values in copies.items():
        np.testing.assert_allclose(of_the_first(name, values), one[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.thorough
@COPIES
def test_an_input_and_its_opposite_have_the_derivatives_of_one(closure, inputs):
    """rho = -1 and an odd activation without biases: phi(b) = -phi(a), entries change sign once for each b."""
    sign = np.array([1.0, -1.0, 1.0])[:inputs]
    pair = np.multiply.outer(sign, sign)
    opposite, _ = by_parameters(keft.Erf(), closure, 1.3 * pair)
    signs = {"K0": pair, "V4": np.multiply.outer(pair, pair), "K1": pair}
    for name, values in opposite.items():
        # By C_W and the scale: a bias common to both inputs is not opposite.
        for i in (0, 2):
            expected = signs[name] * of_the_first(name, values)[..., i]
            np.testing.assert_allclose(values[..., i], expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.thorough
@pytest.mark.parametrize("rho", [1.0, -1.0])
@COPIES
def test_derivatives_along_directions_that_separate_copies_and_opposites(closure, inputs, rho):
    """A variance of its own for the second input, and biases for opposite ones: both end rho = 1 or -1.

    Against one-sided differences (four points, error h^3): on the other side there is no kernel.
    """
    sign = np.array([1.0, rho, 1.0])[:inputs]
    K0, apart, h = 1.3 * np.multiply.outer(sign, sign), np.diag([0.0, 1.0, 0.0][:inputs]), 2e-4
    for i in (1, 3):
        steps = [by_parameters(keft.Erf(), closure, K0, POINT + j * h * np.eye(4)[i], apart) for j in range(4)]
        for name, slopes in steps[0][0].items():
            y = [np.asarray(values[name]) for _, values in steps]
            expected = (-11 * y[0] + 18 * y[1] - 9 * y[2] + 2 * y[3]) / (6 * h)
            error = np.abs(slopes[..., i] - expected).max() / np.abs(expected).max()
            assert error < 1e-5, (name, error)


# Closed forms and kinks have formulas of their own at a repeated input; `make slow` adds quadrature.
@pytest.mark.parametrize(
    "activation",
    [
        *(pytest.param(a, marks=pytest.mark.thorough) for a in (keft.Erf(), keft.ReLU())),
        *(pytest.param(a, marks=pytest.mark.slow) for a in (keft.GELU(), keft.Tanh())),
    ],
    ids=["erf", "relu", "gelu", "tanh"],
)
def test_derivatives_are_right_where_the_kernel_is_singular(activation):
    """Three inputs in a plane, the third the first's copy or opposite: rank two, and rho = 1 or -1, and C_b = 0."""
    step = 1e-4
    for third in ([1.0, 0.2], [-1.0, -0.2], [0.7, 0.9]):
        x = np.array([[1.0, 0.2], [0.3, -0.8], third])
        jacobian, _ = by_parameters(activation, keft.GOnly(), x @ x.T)
        for i in (0, 2):  # C_b cannot be less than zero
            h = step * np.eye(4)[i]
            plus, minus = (
                by_parameters(activation, keft.GOnly(), x @ x.T, point)[1] for point in (POINT + h, POINT - h)
            )
            for name in plus:
                difference = (plus[name] - minus[name]) / (2 * step)
                np.testing.assert_allclose(jacobian[name][..., i], difference, rtol=1e-6, atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_second_derivatives_of_a_linear_network_in_closed_form():
    """K0(t) = K e^(C_W t) + C_b (e^(C_W t) - 1) / C_W in the continuum, and a loss of it, by `jax.hessian` and
    DirectAdjoint."""

    def exact(point):
        C_W, C_b = point
        growth = jnp.exp(C_W * TS)
        return 1.2 * growth + C_b * (growth - 1) / C_W

    def K0(point):
        model = keft.Model(keft.Linear(), point[0], point[1])
        tight = diffrax.PIDController(rtol=1e-10, atol=1e-10)
        return keft.solve(
            model, [[1.2]], TS, closure=keft.GOnly(), adjoint=diffrax.DirectAdjoint(), stepsize_controller=tight
        ).K0[:, 0, 0]

    point = jnp.array([1.5, 0.3])
    np.testing.assert_allclose(jax.jit(jax.hessian(K0))(point), jax.hessian(exact)(point), rtol=1e-7)
    np.testing.assert_allclose(
        jax.jit(jax.hessian(lambda p: jnp.sum(K0(p) ** 2)))(point),
        jax.hessian(lambda p: jnp.sum(exact(p) ** 2))(point),
        rtol=1e-7,
    )


def test_the_layer_recursion_has_second_derivatives_as_it_is():
    def K0(point):
        model = keft.Model(keft.Linear(), point[0], point[1])
        return keft.solve(model, [[1.2]], layers=LAYERS, eps=EPS, closure=keft.GOnly()).K0[:, 0, 0]

    def exact(point):
        growth = (1 + EPS**2 * point[0]) ** np.array([1.0, 3.0])
        return 1.2 * growth + point[1] * (growth - 1) / point[0]

    point = jnp.array([1.5, 0.3])
    found, expected = (jax.jit(jax.hessian(f))(point) for f in (K0, exact))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_powers_have_second_derivatives_in_a_loop():
    """1, x, x^2, ... at 0 and at 0.5, by `jax.hessian` through a scan, in whose second derivatives JAX forgets rules of
    one's own."""

    def summed(x):
        return jax.lax.scan(lambda found, _: (found + powers(x + found[0] - 1, 6), None), jnp.ones(6), length=1)[0]

    for x in (0.0, 0.5):
        expected = [n * (n - 1) * x ** max(n - 2, 0) for n in range(6)]
        np.testing.assert_allclose(jax.jacfwd(jax.jacrev(summed))(x), expected, rtol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closure", "kernel"),
    [(keft.GOnly(), [1.3, 0.4, 0.9]), (keft.HermiteTower(3), [1.3, 0.0, 0.9])],
    ids=["g-only", "tower"],
)
def test_the_layer_recursion_of_hidden_neurons_has_second_derivatives(closure, kernel):
    """Forward over reverse, along a leaf of each kind, a step and an entry of the kernel: differences of the gradient
    by all of them; uncorrelated inputs too."""
    _, reverse = both_modes(full_pre_activation, closure, 2)
    point = jnp.array([*SIX, *THREE_EPS, *kernel])
    curvature = jax.jit(lambda x, v: jax.jvp(lambda x: reverse(x)[1], (x,), (v,))[1])
    for i in (0, 2, 4, 7, 10):
        expected = fourth_order(lambda x: reverse(x)[1], point, i)
        found = curvature(point, jnp.eye(point.size)[i])
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max(), err_msg=str(i))


@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(keft.ReLU(), marks=pytest.mark.thorough),
        *(pytest.param(a, marks=pytest.mark.slow) for a in (keft.Erf(), keft.GELU(), keft.Tanh())),
    ],
    ids=["relu", "erf", "gelu", "tanh"],
)
def test_a_loss_of_all_quantities_has_both_derivatives_at_a_repeated_input(activation):
    """The gradient in reverse mode is that of one input alone in forward mode. Second derivatives, forward over reverse
    as in `jax.hessian`, are symmetric and differences of gradients, also at C_b = 0."""

    def loss(point):
        model = keft.Model(activation, point[0], point[1])
        result = quantities(model, point[2] * jnp.ones((2, 2)))
        return sum(jnp.sum(part**2) for part in result.values())

    @jax.jit
    def gradient_and_slope(point, direction):
        return jax.jvp(jax.grad(loss), (point,), (direction,))

    point, h = jnp.array(POINT[:3]), 1e-4
    hessian = np.stack([gradient_and_slope(point, e)[1] for e in jnp.eye(3)])
    gradient = gradient_and_slope(point, point)[0]
    slopes, values = (
        {q: of_the_first(q, x) for q, x in found.items()}
        for found in by_parameters(activation, keft.GOnly(), np.ones((3, 3)))
    )
    # Of two copies every entry is that of one: 2 x 2 of K0 and K1, 2^4 of V4.
    copies = {"K0": 4, "V4": 16, "K1": 4}
    expected = [sum(2 * n * np.sum(values[q] * slopes[q][..., i]) for q, n in copies.items()) for i in range(3)]
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-10)
    for i in (0, 2):  # C_b cannot be less than zero
        plus, minus = (gradient_and_slope(point + x * jnp.eye(3)[i], point)[0] for x in (h, -h))
        np.testing.assert_allclose(hessian[i], (plus - minus) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize(
    ("adjoint", "ask", "words"),
    [
        (diffrax.RecursiveCheckpointAdjoint(), jax.jacfwd, "ForwardMode"),
        pytest.param(
            diffrax.RecursiveCheckpointAdjoint(),
            lambda f: jax.jacfwd(jax.jit(f)),
            "ForwardMode",
            marks=pytest.mark.thorough,
        ),
        (diffrax.RecursiveCheckpointAdjoint(), jax.hessian, "DirectAdjoint"),
        pytest.param(diffrax.ForwardMode(), jax.grad, "jax.grad", marks=pytest.mark.thorough),
        pytest.param(diffrax.ForwardMode(), lambda f: jax.grad(jax.jit(f)), "jax.grad", marks=pytest.mark.thorough),
        (diffrax.BacksolveAdjoint(), jax.jacfwd, "ForwardMode"),
    ],
)
def test_an_adjoint_that_cannot_says_which_can(adjoint, ask, words):
    def K0(C_W):
        return keft.solve(keft.Model(keft.Linear(), C_W), [[1.2]], TS, closure=keft.GOnly(), adjoint=adjoint).K0[
            -1, 0, 0
        ]

    with pytest.raises(TypeError, match=f"differentiates.*{words}"):
        ask(K0)(jnp.asarray(1.5))


@pytest.mark.parametrize(
    ("adjoint", "ask", "tolerance"),
    [
        (diffrax.RecursiveCheckpointAdjoint(), jax.grad, 1e-7),
        pytest.param(diffrax.DirectAdjoint(), jax.grad, 1e-7, marks=pytest.mark.slow),
        pytest.param(diffrax.DirectAdjoint(), jax.jacfwd, 1e-7, marks=pytest.mark.slow),
        pytest.param(diffrax.ForwardMode(), jax.jacfwd, 1e-7, marks=pytest.mark.slow),  # in CI: `sensitivity`
        # Integrates back, with errors of its own.
        pytest.param(diffrax.BacksolveAdjoint(), jax.grad, 1e-6, marks=pytest.mark.thorough),
    ],
)
def test_all_adjoints_give_the_derivative_of_V4_in_closed_form(adjoint, ask, tolerance):
    """A linear network without biases has V4 = 2 (1 + 2 C_W t) K0(t)^2: by C_W, the input kernel and the depth time."""

    def V4(C_W, k, t):
        K0, ts = jnp.reshape(k, (1, 1)), jnp.asarray(TS).at[-1].set(t)
        solution = keft.solve(keft.Model(keft.Linear(), C_W), K0, ts, closure=keft.GOnly(), adjoint=adjoint)
        return solution.V4[-1, 0, 0, 0, 0]

    t, C_W, k = jnp.asarray(TS[-1]), jnp.asarray(1.5), jnp.asarray(1.2)
    square = (k * np.exp(C_W * t)) ** 2
    by_C_W, by_k = 2 * square * (2 * t + 2 * t * (1 + 2 * C_W * t)), 4 * square * (1 + 2 * C_W * t) / k
    by_t = 2 * square * (2 * C_W + 2 * C_W * (1 + 2 * C_W * t))
    # Diffrax has no derivative by depth times for this adjoint.
    places = (0, 1) if isinstance(adjoint, diffrax.BacksolveAdjoint) else (0, 1, 2)
    found = jax.jit(ask(V4, argnums=places))(C_W, k, t)
    np.testing.assert_allclose(found, (by_C_W, by_k, by_t)[: len(places)], rtol=tolerance)


# --- other blocks -----------------------------------------------------------------------------------------------------


def gated(C_1, b_1, slope, C_2, b_2, decay):
    gate = keft.GLU(keft.Scaled(keft.Sin(), slope))
    return keft.Model([keft.RMSNorm(), keft.Dense(C_1, b_1, ratio=2), gate, keft.Dense(C_2, b_2)], decay=decay)


def full_pre_activation(C_1, b_1, slope, C_2, b_2, decay):
    erf = keft.Scaled(keft.Erf(), slope)
    return keft.Model([erf, keft.Dense(C_1, b_1, ratio=0.5), erf, keft.RMSNorm(), keft.Dense(C_2, b_2)], decay=decay)


def one_matrix(C_W, C_b, slope, decay):
    return keft.Model(keft.Scaled(keft.Sin(), slope), C_W, C_b, decay=decay)


@functools.cache
def both_modes(block, closure, inputs):
    """A loss of all quantities with its derivative along a direction, and with its gradient; by the leaves of a block,
    three eps and the packed kernel."""
    entries = inputs * (inputs + 1) // 2

    def loss(point):
        leaves, eps, k = point[: -3 - entries], point[-3 - entries : -entries], point[-entries:]
        K0, V4, K1 = quantities(block(*leaves), unpack(k), closure, eps=eps).values()
        return jnp.sum(K0**2) + 0.3 * jnp.sum(V4) + 2 * jnp.sum(K1)

    return jax.jit(lambda x, v: jax.jvp(loss, (x,), (v,))), jax.jit(jax.value_and_grad(loss))


def fourth_order(f, point, i, step=1e-3):
    """The central difference of f by the i-th coordinate."""
    h = step * np.eye(point.size)[i]
    near, far = f(point + h) - f(point - h), f(point + 2 * h) - f(point - 2 * h)
    return (8 * near - far) / (12 * step)


SIX, THREE_EPS = [1.2, 0.2, 0.9, 2.0, 0.3, 0.4], [0.3, 0.5, 0.4]


@pytest.mark.parametrize(
    ("block", "closure", "leaves", "kernel", "both"),
    [
        pytest.param(gated, keft.GOnly(), SIX, [1.3], False, marks=pytest.mark.thorough),
        pytest.param(one_matrix, keft.HermiteTower(2), [1.2, 0.2, 0.9, 0.4], [1.3], True, marks=pytest.mark.thorough),
        pytest.param(gated, keft.GOnly(), SIX, [1.3, 0.4, 0.9], True, marks=pytest.mark.slow),
        pytest.param(full_pre_activation, keft.HermiteTower(3), SIX, [1.3], True, marks=pytest.mark.slow),
    ],
)
def test_both_modes_differentiate_every_leaf_of_a_block_and_every_step(block, closure, leaves, kernel, both):
    """Norm, gate, hidden ratio, biases, decay, an eps of each layer, the input kernel: reverse mode against central
    differences of fourth order at 1e-6, and forward mode along one direction against reverse mode.

    (Forward mode of a gate: test_sensitivity.)
    """
    point = jnp.array([*leaves, *THREE_EPS, *kernel])
    forward, reverse = both_modes(block, closure, 1 if len(kernel) == 1 else 2)
    (_, found), direction = reverse(point), jnp.cos(jnp.arange(point.size, dtype=point.dtype))
    if both:
        np.testing.assert_allclose(forward(point, direction)[1], found @ direction, rtol=1e-9, atol=1e-11)
    for i in range(point.size):
        expected = fourth_order(lambda x: reverse(x)[0], point, i)
        np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-8 * np.abs(found).max(), err_msg=str(i))


@pytest.mark.thorough
def test_a_plain_network_has_gradients_by_its_matrices():
    """No skip at all: a^2 = 0, where a itself has no derivative; by C_W everything has one, against central
    differences."""
    forward, reverse = both_modes(one_matrix, keft.HermiteTower(2), 1)
    point = jnp.array([1.5, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.2])  # decay and every eps are 1
    by_C_W = jnp.zeros_like(point).at[0].set(1)
    expected = fourth_order(lambda x: forward(x, by_C_W)[0], point, 0)
    np.testing.assert_allclose(forward(point, by_C_W)[1], expected, rtol=1e-8)
    np.testing.assert_allclose(reverse(point)[1][0], expected, rtol=1e-8)


@pytest.mark.slow
def test_a_gated_block_under_the_tower_in_reverse_mode():
    """The gradient by every variance, the decay and the scale of the input, along one direction, is the limit of
    differences. (In CI: the gate under GOnly, and the tower with another block, above.)"""

    def loss(values):
        parts = [
            keft.Erf(),
            keft.Dense(values[0], values[1], ratio=2),
            keft.GLU(keft.Erf()),
            keft.Dense(values[2], values[3]),
        ]
        model = keft.Model(parts, decay=values[4])
        result = keft.solve(model, values[5] * jnp.ones((1, 1)), layers=[2], eps=0.5, closure=keft.HermiteTower(3))
        return result.V4[0, 0, 0, 0, 0] + 3 * result.K1[0, 0, 0]

    value_and_gradient = eqx.filter_jit(jax.value_and_grad(loss))
    point, direction = jnp.array([1.5, 0.2, 2.0, 0.1, 0.3, 1.2]), jnp.array([1.0, -0.5, 0.7, 0.4, -0.3, 0.8])
    plus, minus = (value_and_gradient(point + h * direction)[0] for h in (1e-4, -1e-4))
    np.testing.assert_allclose(value_and_gradient(point)[1] @ direction, (plus - minus) / 2e-4, rtol=1e-7)


@pytest.mark.thorough
def test_lists_that_hold_traced_numbers_are_differentiated():
    """A kernel, a depth time and the steps of layers, written as lists around the number that is differentiated: linear
    networks, K = K0 exp(t) in the continuum and K0 (1 + eps^2)^2 after two layers."""
    model = keft.Model(keft.Linear(), 1.0)

    def slope(of, **how):
        def K(x):
            K0, depth = of(x)
            return keft.solve(model, K0, **depth, **how, closure=keft.GOnly()).K0[-1, 0, 1]

        return lambda x: jax.jvp(K, (x,), (1.0,))[1]

    K0 = [[1.0, 0.3], [0.3, 1.0]]
    by_kernel = jax.jit(slope(lambda k: ([[1.0, k], [k, 1.0]], {"layers": [2], "eps": 0.5})))(0.3)
    by_time = jax.jit(slope(lambda t: (K0, {"ts": [t]}), adjoint=diffrax.ForwardMode()))(1.0)
    by_step = slope(lambda eps: (K0, {"layers": [2], "eps": [eps, 0.5]}))(0.5)
    np.testing.assert_allclose(
        [by_kernel, by_time, by_step], [1.25**2, 0.3 * math.exp(1.0), 0.3 * 2 * 0.5 * 1.25], rtol=1e-6
    )
