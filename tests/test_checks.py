"""Checks at the door: an error names the argument, says what was wrong, and what would be right; good input passes untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.checks import check_count, check_kernel, check_positive

GOOD = np.array([[2.0, 0.6], [0.6, 1.0]])


@pytest.mark.parametrize(
    ("K", "says"),
    [
        (np.ones((2, 3)), r"`K0` must be a square matrix.* has shape \(2, 3\)"),
        (np.ones(4), r"`K0` must be a square matrix.* has shape \(4,\)"),
        (np.ones((0, 0)), r"`K0` must be a square matrix.* has shape \(0, 0\)"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), r"`K0` must be finite, but entry \[0, 1\] is nan"),
        (np.array([[1.0, 0.0], [0.0, np.inf]]), r"`K0` must be finite, but entry \[1, 1\] is inf"),
        (
            np.array([[2.0, 0.6], [0.5, 1.0]]),
            r"`K0` must be symmetric, but entry \[0, 1\] is 0\.6 and \[1, 0\] is 0\.5",
        ),
        (np.array([[1.0, 0.0], [0.0, -2.0]]), r"`K0` must have positive variances.* entry \[1, 1\] is -2\.0"),
        (np.array([[1.0, 0.0], [0.0, 0.0]]), r"entry \[1, 1\] is 0\.0.*exactly zero.*C_b > 0 in input_kernel"),
        (
            np.array([[1.0, 1.5], [1.5, 1.0]]),
            r"`K0` must be positive semi-definite, but its smallest eigenvalue is -0\.5\.",
        ),
    ],
)
def test_not_a_kernel(K, says):
    with pytest.raises(ValueError, match=says):
        check_kernel(K)


def test_the_name_is_the_callers():
    with pytest.raises(ValueError, match="Argument `V` must be a square matrix"):
        check_kernel(np.ones(3), "V")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_kernel_passes_untouched(dtype):
    """Rank-deficient kernels are kernels, rounding included: repeated and scaled inputs, more inputs than features."""
    x = np.random.default_rng(0).normal(size=(12, 3))
    for K in (GOOD, np.ones((3, 3)), x @ x.T, 1e-3 * x @ x.T, np.outer([1, -1.5, 3], [1, -1.5, 3]), [[0.5]]):
        K = jnp.asarray(K, dtype=dtype)
        checked = check_kernel(K)
        assert checked.dtype == dtype
        np.testing.assert_array_equal(checked, K)


def test_whole_numbers_and_lists_become_floats():
    assert check_kernel([[2, 1], [1, 2]]).dtype == jnp.float64


def test_traced_values_pass_and_traced_shapes_do_not():
    np.testing.assert_array_equal(jax.jit(check_kernel)(-jnp.asarray(GOOD)), -GOOD)
    jax.jit(lambda x: check_positive(x, "eps"))(-1.0)
    with pytest.raises(ValueError, match="square"):
        jax.jit(check_kernel)(jnp.ones((2, 3)))


@pytest.mark.parametrize("value", [0, 0.0, -1.0, np.nan, np.inf, np.ones(2), jnp.array(-0.5)])
def test_not_positive(value):
    with pytest.raises(ValueError, match="Argument `eps` must be a finite number greater than zero, but is"):
        check_positive(value, "eps")


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "8", None])
def test_not_a_count(value):
    with pytest.raises(ValueError, match="Argument `depth` must be a whole number, 1 or more, but is"):
        check_count(value, "depth")


def test_counts_and_positive_numbers_pass():
    for value in (1, 64, np.int64(3)):
        check_count(value, "width")
    check_count(0, "layer", least=0)
    with pytest.raises(ValueError, match="2 or more"):
        check_count(1, "degree", least=2)
    for value in (0.05, 1, np.float32(2), jnp.array(0.1)):
        check_positive(value, "eps")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: keft.Model("tanh", 2.0), r"`activation` must be an activation object such as Tanh\(\).*'tanh'"),
        (lambda: keft.Model(jnp.tanh, 2.0), r"`activation` must be an activation object .*Smooth\(fn\)"),
        (lambda: keft.Model(keft.Tanh, 2.0), r"`activation` must be an activation object such as Tanh\(\)"),
        (
            lambda: keft.Model(keft.Tanh(), -2.0),
            r"`C_W` is a variance and must be finite and not negative, but is -2\.0",
        ),
        (
            lambda: keft.Model(keft.Tanh(), 2.0, np.nan),
            r"`C_b` is a variance and must be finite and not negative, but is nan",
        ),
        (lambda: keft.Model(keft.Tanh(), jnp.ones(2)), r"`C_W` must be one number, but has shape \(2,\)"),
        (lambda: keft.Polynomial(jnp.ones((2, 2))), r"`coefficients` must hold 1 to 13 numbers.*\(2, 2\)"),
        (lambda: keft.Polynomial(jnp.ones(14)), r"`coefficients` must hold 1 to 13 numbers"),
        (lambda: keft.input_kernel(jnp.ones(3)), r"`x` must have shape \(inputs, features\), but has shape \(3,\)"),
        (lambda: keft.input_kernel(jnp.ones((2, 3)), C_W=-1.0), r"`C_W` is a variance"),
    ],
)
def test_bad_models_and_data(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_zero_variances_are_allowed():
    """No weights or no biases is a model: Q is then C_b everywhere, or zero."""
    np.testing.assert_array_equal(keft.Model(keft.Erf(), 0.0, 0.5).Q(jnp.asarray(GOOD)), np.full((2, 2), 0.5))
