"""`solve`: continuum and layers, their derivatives, and what it says when something is wrong.

Oracles: kernels of residual blocks by neural-tangents and by a NumPy trapezoidal rule, frozen; Taylor's theorem for the
distance between layers and continuum; central differences for derivatives, between themselves independent modes.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft

PUBLISHED_K0 = 0.6 + 1.4 * np.eye(4)
CUBE = keft.Model(
    keft.Polynomial(jnp.array([0.0, 0.0, 0.0, 1.0])), C_W=1.0
)  # K0' = 15 K0^3 is infinite at t = 1 / (30 K0(0)^2)

# neural-tangents 0.6.5, jax 0.4.23, float64: 40 residual blocks x + 0.05 W act(x); tanh by a NumPy trapezoidal rule.
RESIDUAL_KERNELS = {
    "erf": (keft.Erf(), 2.1190259952, 0.6309188276),
    "relu": (keft.ReLU(), 2.2100660203, 0.7025309816),
    "gelu": (keft.GELU(), 2.1937450994, 0.6807098139),
    "sin": (keft.Sin(), 2.0983331096, 0.6166810639),
    "tanh": (keft.Tanh(), 2.1048800971, 0.6279899036),
}


@pytest.mark.parametrize("name", RESIDUAL_KERNELS)
def test_layers_give_the_kernels_of_residual_blocks(name):
    activation, diagonal, off_diagonal = RESIDUAL_KERNELS[name]
    solution = keft.solve(keft.Model(activation, C_W=2.0), PUBLISHED_K0[:2, :2], np.array([40 * 0.05**2]), eps=0.05)
    np.testing.assert_allclose(solution.K0[0], [[diagonal, off_diagonal], [off_diagonal, diagonal]], atol=2e-10)


def test_layers_approach_the_continuum_at_first_order_in_eps_squared():
    model, K0 = keft.Model(keft.Sin(), C_W=1.5, C_b=0.2), np.array([[1.0]])
    exact = keft.solve(model, K0, np.array([1.0]))
    dts = np.array([1 / 50, 1 / 100, 1 / 200])
    for name in ("K0", "V4", "K1"):
        errors = [
            np.abs(getattr(keft.solve(model, K0, np.array([1.0]), eps=dt**0.5), name) - getattr(exact, name)).max()
            for dt in dts
        ]
        np.testing.assert_allclose(-np.diff(np.log2(errors)), 1.0, atol=0.1, err_msg=name)


def test_saved_layers_are_the_layers_of_one_run():
    model, eps = keft.Model(keft.Sin(), C_W=2.0), 0.5
    every = keft.solve(model, np.array([[1.0]]), np.arange(9) * eps**2, eps=eps)
    some = keft.solve(model, np.array([[1.0]]), np.array([1, 4, 6]) * eps**2, eps=eps)
    np.testing.assert_allclose(some.packed.V4, every.packed.V4[np.array([1, 4, 6])], rtol=1e-14)
    assert some.stats["num_steps"] == 6


# --- derivatives ------------------------------------------------------------------------------------------------------

# One vector for everything that a result can be differentiated in: C_W, C_b, K0_00, K0_11, K0_01, two times, a scale.
POINT = np.array([1.8, 0.2, 1.5, 1.0, 0.4, 0.5, 1.0, 0.9])
ACCURATE = {"stepsize_controller": diffrax.PIDController(rtol=1e-10, atol=1e-10)}


WEIGHTS = np.array([0.7, -0.3, 0.2, 0.5])


def reading(point, **options):
    """One number that depends on all of it: the mean, the covariance and its correction, at both times."""
    C_W, C_b, k_00, k_11, k_01, first, last, scale = point
    model = keft.Model(keft.Scaled(keft.Erf(), input_scale=scale), C_W=C_W, C_b=C_b)
    K0 = jnp.stack([jnp.stack([k_00, k_01]), jnp.stack([k_01, k_11])])
    ts = options.pop("ts", None)
    s = keft.solve(model, K0, jnp.stack([first, last]) if ts is None else ts, **options)
    return jnp.stack([s.K0[0, 0, 1], s.V4[1, 0, 0, 0, 1], s.V4[0, 0, 1, 0, 1], s.K1[1, 0, 1]]) @ WEIGHTS


def central_differences(function, point, step=1e-3):
    """Fourth-order central differences, coordinate by coordinate."""
    near, far = (
        np.array([function(point + shift) - function(point - shift) for shift in size * np.eye(len(point))])
        for size in (step, 2 * step)
    )
    return (8 * near - far) / (12 * step)


@pytest.fixture(scope="module")
def differences():
    compiled = jax.jit(lambda p: reading(p, **ACCURATE))
    return central_differences(lambda p: float(compiled(p)), POINT)


@pytest.mark.parametrize(
    ("mode", "adjoint"),
    [
        (jax.grad, None),
        (jax.jacfwd, diffrax.ForwardMode()),
        # In test_gradients a linear network has this adjoint's derivatives too.
        pytest.param(jax.jacfwd, diffrax.DirectAdjoint(), marks=pytest.mark.slow),
    ],
    ids=["default-reverse", "forward", "direct"],
)
def test_continuum_derivatives_agree_with_central_differences(differences, mode, adjoint):
    gradient = jax.jit(mode(lambda p: reading(p, adjoint=adjoint, max_steps=256, **ACCURATE)))(POINT)
    np.testing.assert_allclose(gradient, differences, atol=1e-7)


def test_layer_derivatives_agree_with_central_differences():
    def by_layers(p):
        return reading(p, ts=np.array([0.5, 1.0]), eps=0.25)

    compiled = jax.jit(by_layers)
    expected = central_differences(lambda p: float(compiled(p)), POINT)
    for mode in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(mode(by_layers))(POINT), expected, atol=1e-8)


def test_depth_derivative_of_the_mean_is_the_kernel_map():
    model = keft.Model(keft.Sin(), C_W=2.0, C_b=0.1)
    K0, slope = jax.jvp(
        lambda t: keft.solve(model, np.array([[1.0]]), t[None], adjoint=diffrax.ForwardMode()).K0[0], (1.0,), (1.0,)
    )
    np.testing.assert_allclose(slope, model.Q(K0), rtol=1e-6)


class CountingGOnly(keft.GOnly):
    """Says when Python runs its equations, which is when JAX traces them."""

    traces: list = eqx.field(static=True)

    def drift(self, model, state):
        self.traces.append(1)
        return super().drift(model, state)


@pytest.mark.parametrize("eps", [None, 0.5])
def test_new_values_do_not_compile_again(eps):
    closure, K0, ts = CountingGOnly([]), np.array([[1.0]]), np.array([0.5, 1.0])
    keft.solve(keft.Model(keft.Sin(), C_W=1.0), K0, ts, closure=closure, eps=eps)
    traced = len(closure.traces)
    assert traced > 0
    keft.solve(keft.Model(keft.Sin(), C_W=2.0, C_b=0.3), 2 * K0, ts, closure=closure, eps=eps)
    assert len(closure.traces) == traced


# --- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"ts": [0.3]},
            r"`ts` must be whole layers.* t = 0.3 is layer 1.2 at eps = 0.5; the nearest are t = 0.25 and 0.5",
        ),
        ({"ts": [0.5, 0.25]}, r"`ts` must be .* strictly increasing"),
        ({"ts": [0.5, 0.5]}, r"`ts` must be .* strictly increasing"),
        ({"ts": [-0.25]}, r"`ts` must be .* not negative"),
        ({"ts": [np.inf]}, r"`ts` must be finite"),
        ({"ts": []}, r"`ts` must be a list of depth times"),
        ({"K0": [[1.0, np.nan], [np.nan, 1.0]]}, r"`K0` must be finite, but entry \[0, 1\] is nan"),
        ({"K0": [[1.0, 0.0]]}, r"`K0` must be a square matrix .* shape \(1, 2\)"),
        ({"K0": [[1.0, 0.2], [0.1, 1.0]]}, r"`K0` must be symmetric, but entry \[0, 1\] is 0.2 and \[1, 0\] is 0.1"),
        ({"K0": [[1.0, 0.0], [0.0, -1.0]]}, r"`K0` must have positive variances .* entry \[1, 1\] is -1.0"),
        ({"K0": [[1.0, 1.5], [1.5, 1.0]]}, r"`K0` must be positive semi-definite, but its smallest eigenvalue is -0.5"),
        ({"eps": 0.0}, r"`eps` must be a finite number greater than zero, but is 0.0"),
        ({"eps": -0.1}, r"`eps` must be a finite number greater than zero, but is -0.1"),
        ({"eps": np.nan}, r"`eps` must be a finite number greater than zero, but is nan"),
        ({"solver": diffrax.Euler()}, r"`solver`, .* belong to the continuum"),
        ({"eps": None, "max_steps": 0}, r"`max_steps` must be a whole number, 1 or more, but is 0"),
    ],
)
def test_bad_arguments_are_named_before_any_work(change, says):
    arguments = {"K0": [[1.0]], "ts": [0.25], "eps": 0.5} | change
    with pytest.raises(ValueError, match=says):
        keft.solve(CUBE, arguments.pop("K0"), arguments.pop("ts"), **arguments)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "stopped after depth t = 0.02 of 0.2"),
        ({"eps": 0.1}, r"K0\[0, 1\] at depth t = 0.2"),
        # diffrax calls a run of constant steps through NaN successful.
        ({"stepsize_controller": diffrax.StepTo(np.linspace(0, 0.2, 81))}, r"K0\[0, 1\] at depth t = 0.2"),
    ],
    ids=["adaptive", "layers", "constant-steps"],
)
def test_a_run_that_blows_up_says_where(options, says):
    K0, ts = np.array([[0.1, 0.0], [0.0, 1.0]]), np.array([0.01, 0.02, 0.2])
    with pytest.raises(RuntimeError, match=says):
        keft.solve(CUBE, K0, ts, **options)
    partial = keft.solve(CUBE, K0, ts, throw=False, **options)
    assert np.isfinite(partial.K0[:2]).all()
    assert not np.isfinite(partial.K0[2]).all()


def test_a_run_that_blows_up_under_jit_raises():
    with pytest.raises(Exception, match="no longer finite"):
        jax.block_until_ready(jax.jit(lambda K0: keft.solve(CUBE, K0, np.array([1.0]), eps=0.1).K0)(np.array([[1.0]])))


def test_running_out_of_steps_says_so():
    with pytest.raises(RuntimeError, match="Try increasing `max_steps`"):
        keft.solve(keft.Model(keft.Sin(), C_W=1.0), np.array([[1.0]]), np.array([5.0]), max_steps=2)
