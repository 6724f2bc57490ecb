"""Derivatives at the awkward places: no biases, repeated and opposite inputs, rank-deficient kernels, ReLU; and second
ones.

Oracles: an input and its copy must have the derivatives of one input alone, N = 1, where nothing is awkward; closed
forms for a linear activation; central differences along directions that keep the kernel what it is.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.pairs import unpack

EPS, TS, LAYERS = 0.5, np.array([0.25, 0.75]), [1, 3]
CLOSED = [keft.Erf(), keft.ReLU()]
ACTIVATIONS = [*CLOSED, *(pytest.param(a, marks=pytest.mark.slow) for a in (keft.GELU(), keft.Tanh()))]


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


@pytest.mark.parametrize(
    ("activation", "closure"),
    [
        (keft.Erf(), keft.GOnly()),
        (keft.ReLU(), keft.GOnly()),
        (keft.Erf(), keft.HermiteTower(4)),
        pytest.param(keft.ReLU(), keft.HermiteTower(4), marks=pytest.mark.slow),
    ],
)
def test_two_copies_of_an_input_have_the_derivatives_of_one(activation, closure):
    one, _ = by_parameters(activation, closure, np.array([[1.3]]))
    two, _ = by_parameters(activation, closure, np.full((2, 2), 1.3))
    for name, values in two.items():
        np.testing.assert_allclose(
            values, np.broadcast_to(one[name], values.shape), rtol=1e-9, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("closure", [keft.GOnly(), keft.HermiteTower(4)])
def test_an_input_and_its_opposite_have_the_derivatives_of_one(closure):
    """rho = -1 and an odd activation without biases: phi(b) = -phi(a), entries change sign once for each b."""
    one, _ = by_parameters(keft.Erf(), closure, np.array([[1.3]]))
    two, _ = by_parameters(keft.Erf(), closure, 1.3 * np.array([[1.0, -1.0], [-1.0, 1.0]]))
    sign = np.array([1.0, -1.0])
    pair = np.multiply.outer(sign, sign)
    signs = {"K0": pair, "V4": np.multiply.outer(pair, pair), "K1": pair}
    for name, values in two.items():
        # By C_W and the scale: a bias common to both inputs is not opposite.
        for i in (0, 2):
            expected = signs[name] * np.broadcast_to(one[name][..., i], values.shape[:-1])
            np.testing.assert_allclose(values[..., i], expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("rho", [1.0, -1.0])
@pytest.mark.parametrize("closure", [keft.GOnly(), keft.HermiteTower(4)])
def test_derivatives_along_directions_that_separate_copies_and_opposites(closure, rho):
    """A variance of its own for the second input, and biases for opposite ones: both end rho = 1 or -1.

    Against one-sided differences (four points, error h^3): on the other side there is no kernel.
    """
    K0, apart, h = 1.3 * np.array([[1.0, rho], [rho, 1.0]]), np.diag([0.0, 1.0]), 2e-4
    for i in (1, 3):
        steps = [by_parameters(keft.Erf(), closure, K0, POINT + j * h * np.eye(4)[i], apart) for j in range(4)]
        for name, slopes in steps[0][0].items():
            y = [np.asarray(values[name]) for _, values in steps]
            expected = (-11 * y[0] + 18 * y[1] - 9 * y[2] + 2 * y[3]) / (6 * h)
            error = np.abs(slopes[..., i] - expected).max() / np.abs(expected).max()
            assert error < 1e-5, (name, error)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=["erf", "relu", "gelu", "tanh"])
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


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=["erf", "relu", "gelu", "tanh"])
def test_reverse_mode_is_finite_and_equal_to_forward_mode_at_a_repeated_input(activation):
    def loss(point):
        model = keft.Model(activation, point[0], point[1])
        result = quantities(model, point[2] * jnp.ones((2, 2)))
        return sum(jnp.sum(part) for part in result.values()) + 0 * point[3]

    forward, _ = by_parameters(activation, keft.GOnly(), np.ones((2, 2)))
    expected = sum(np.asarray(part).reshape(-1, POINT.size).sum(axis=0) for part in forward.values())
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.asarray(POINT)), expected, rtol=1e-11)


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


@pytest.mark.parametrize("activation", [keft.Erf(), keft.ReLU()], ids=["erf", "relu"])
def test_a_loss_of_all_quantities_has_second_derivatives_at_a_repeated_input(activation):
    """`jax.hessian`, which is forward over reverse, is symmetric and the difference of gradients, also at C_b = 0."""

    def loss(point):
        model = keft.Model(activation, point[0], point[1])
        result = quantities(model, point[2] * jnp.ones((2, 2)))
        return sum(jnp.sum(part**2) for part in result.values())

    point, h = jnp.array(POINT[:3]), 1e-4
    hessian, gradient = jax.jit(jax.hessian(loss))(point), jax.jit(jax.grad(loss))
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-10)
    for i in (0, 2):  # C_b cannot be less than zero
        step = h * jnp.eye(3)[i]
        expected = (gradient(point + step) - gradient(point - step)) / (2 * h)
        np.testing.assert_allclose(hessian[i], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("adjoint", "ask", "words"),
    [
        (diffrax.RecursiveCheckpointAdjoint(), jax.jacfwd, "ForwardMode"),
        (diffrax.RecursiveCheckpointAdjoint(), lambda f: jax.jacfwd(jax.jit(f)), "ForwardMode"),
        (diffrax.RecursiveCheckpointAdjoint(), jax.hessian, "DirectAdjoint"),
        (diffrax.ForwardMode(), jax.grad, "jax.grad"),
        (diffrax.ForwardMode(), lambda f: jax.grad(jax.jit(f)), "jax.grad"),
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
        (diffrax.DirectAdjoint(), jax.grad, 1e-7),
        (diffrax.DirectAdjoint(), jax.jacfwd, 1e-7),
        (diffrax.ForwardMode(), jax.jacfwd, 1e-7),
        # Integrates back, with errors of its own.
        (diffrax.BacksolveAdjoint(), jax.grad, 1e-6),
    ],
)
def test_all_adjoints_give_the_derivative_of_V4_in_closed_form(adjoint, ask, tolerance):
    """A linear network without biases has V4 = 2 (1 + 2 C_W t) K0(t)^2."""

    def V4(C_W, k):
        K0 = jnp.reshape(k, (1, 1))
        solution = keft.solve(keft.Model(keft.Linear(), C_W), K0, TS, closure=keft.GOnly(), adjoint=adjoint)
        return solution.V4[-1, 0, 0, 0, 0]

    t, C_W, k = TS[-1], jnp.asarray(1.5), jnp.asarray(1.2)
    square = (k * np.exp(C_W * t)) ** 2
    by_C_W, by_k = 2 * square * (2 * t + 2 * t * (1 + 2 * C_W * t)), 4 * square * (1 + 2 * C_W * t) / k
    np.testing.assert_allclose(ask(V4)(C_W, k), by_C_W, rtol=tolerance)
    np.testing.assert_allclose(jax.jit(ask(V4, argnums=(0, 1)))(C_W, k), (by_C_W, by_k), rtol=tolerance)


# --- other blocks -----------------------------------------------------------------------------------------------------


def gated(C_1, b_1, slope, C_2, b_2, decay):
    gate = keft.GLU(keft.Scaled(keft.Sin(), slope))
    return keft.Model([keft.RMSNorm(), keft.Dense(C_1, b_1, ratio=2), gate, keft.Dense(C_2, b_2)], decay=decay)


def full_pre_activation(C_1, b_1, slope, C_2, b_2, decay):
    erf = keft.Scaled(keft.Erf(), slope)
    return keft.Model([erf, keft.Dense(C_1, b_1, ratio=0.5), erf, keft.RMSNorm(), keft.Dense(C_2, b_2)], decay=decay)


@pytest.mark.parametrize(
    ("block", "closure", "kernel"),
    [(gated, keft.GOnly(), [1.3, 0.4, 0.9]), (full_pre_activation, keft.HermiteTower(3), [1.3])],
)
def test_both_modes_differentiate_every_leaf_of_a_block_and_every_step(block, closure, kernel):
    """Norm, gate, hidden ratio, biases, decay, an eps of each layer, the input kernel: against central differences of
    fourth order at 1e-6."""
    point = jnp.array([1.2, 0.2, 0.9, 2.0, 0.3, 0.4, 0.3, 0.5, 0.4, *kernel])

    def loss(point):
        K0 = unpack(point[9:])
        parts = quantities(block(*point[:6]), K0, closure, eps=point[6:9])
        return jnp.stack([jnp.sum(part**2) for part in parts.values()])

    value, forward, reverse = (jax.jit(f) for f in (loss, jax.jacfwd(loss), jax.jacrev(loss)))
    found, step = forward(point), 1e-3
    np.testing.assert_allclose(reverse(point), found, rtol=1e-9, atol=1e-11)
    for i, h in enumerate(step * np.eye(point.size)):
        near, far = value(point + h) - value(point - h), value(point + 2 * h) - value(point - 2 * h)
        expected = (8 * near - far) / (12 * step)
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-6, atol=1e-8 * np.abs(found).max(), err_msg=str(i))


def test_a_plain_network_has_gradients_by_its_matrices():
    """No skip at all: a^2 = 0, where a itself has no derivative; by C_W everything has one, against central
    differences."""

    def kernels(C_W):
        model = keft.Model(keft.Erf(), C_W, decay=1.0)
        solution = keft.solve(model, [[1.2]], layers=[3], eps=1.0, closure=keft.HermiteTower(4))
        return jnp.stack([solution.K0[0, 0, 0], solution.V4[0, 0, 0, 0, 0], solution.K1[0, 0, 0]])

    C_W, step = jnp.asarray(1.5), 1e-3
    value = jax.jit(kernels)
    near, far = value(C_W + step) - value(C_W - step), value(C_W + 2 * step) - value(C_W - 2 * step)
    for ask in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jax.jit(ask(kernels))(C_W), (8 * near - far) / (12 * step), rtol=1e-8)


def test_a_gated_block_under_the_tower_in_reverse_mode():
    """The gradient by every variance, the decay and the scale of the input, along one direction, is the limit of
    differences."""

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
