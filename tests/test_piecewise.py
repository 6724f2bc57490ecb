"""Kinks, extreme variances, and what is refused: activations that people use must be right, or say that they are
not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from scipy import stats
from scipy.stats import norm

import kernel_eft_jax as keft
from kernel_eft_jax.activations.accuracy import _rounding_of_kinks, closed_form_errors
from kernel_eft_jax.activations.base import at_zero
from kernel_eft_jax.expectations.hermite_modes import frame, pair_functions
from kernel_eft_jax.quadrature import derivative

# Half of the digits, where rho = 1 is rounded: sqrt(1 - rho^2) is known no better.
ROUNDED = 3e-8
TWINS = {
    "abs": (keft.Abs(), keft.Piecewise(jnp.abs, [0.0])),
    "leaky": (keft.LeakyReLU(0.2), keft.Piecewise(lambda x: jnp.where(x > 0, x, 0.2 * x), [0.0])),
}


def test_a_scale_moves_kinks_but_not_from_zero():
    """The kinks of all inputs lie at one place where they lie at zero, which costs half the nodes."""
    assert at_zero(keft.Scaled(keft.ReLU(), 2.0).kinks)
    np.testing.assert_allclose(keft.Scaled(keft.HardTanh(), -2.0).kinks, (0.5, -0.5))


@pytest.mark.parametrize("name", ["abs", pytest.param("leaky", marks=pytest.mark.slow)])
def test_piecewise_agrees_with_closed_forms(name):
    """value, gradient and hessian, for variances and correlations of every kind."""
    closed, piecewise = TWINS[name]
    both = jax.jit(lambda k: (closed.expansion(k), piecewise.expansion(k)))
    for k_aa, k_bb in ((1.0, 1.0), (30.0, 0.1), (1e4, 1e4), (1e-4, 1e-2)):
        for rho, accuracy in ((0.0, 1e-12), (-0.9, 1e-12), (0.97, 1e-12), (1 - 1e-6, 1e-11), (1.0, ROUNDED)):
            k = np.array([k_aa, rho * np.sqrt(k_aa * k_bb), k_bb])
            units = np.array([k_aa, k_bb, np.sqrt(k_aa * k_bb)])
            for x, y, unit in zip(*both(jnp.asarray(k)), (1, units, np.outer(units, units)), strict=True):
                gap = np.abs((np.asarray(x[1]) - y[1]) * unit).max() / units[2]
                assert gap < accuracy, (k_aa, k_bb, rho, gap)


@pytest.mark.parametrize("name", ["abs", pytest.param("leaky", marks=pytest.mark.slow)])
def test_piecewise_has_the_modes_of_closed_forms(name):
    """Hermite modes, which the tower is made of."""
    closed, piecewise = TWINS[name]
    k = jnp.array([1.3, 0.6, 0.7])
    found = jax.jit(lambda k: [pair_functions(activation, frame(k), 8) for activation in (closed, piecewise)])(k)
    for name in ("value", "second"):
        x, y = (getattr(functions, name) for functions in found)
        np.testing.assert_allclose(x, y, atol=1e-8)
    for name in (
        "value_tail",
        "second_tail",
    ):  # roots of what rounding leaves of a difference, for |x| at one input: x^2 has no tail
        x, y = (getattr(functions, name) ** 2 for functions in found)
        np.testing.assert_allclose(x, y, atol=1e-12)


KINKED = {
    "SELU": (keft.SELU(), lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * np.expm1(x)), [0]),
    "HardTanh": (keft.HardTanh(), lambda x: min(max(x, -1), 1), [-1, 1]),
    "HardSwish": (keft.HardSwish(), lambda x: x * min(max(x + 3, 0), 6) / 6, [-3, 3]),
    "ReLU6": (keft.ReLU6(), lambda x: min(max(x, 0), 6), [0, 6]),
    "Softsign": (keft.Softsign(), lambda x: x / (1 + abs(x)), [0]),
    "CELU": (keft.CELU(0.5), lambda x: x if x > 0 else 0.5 * np.expm1(x / 0.5), [0]),
}


@eqx.filter_jit
def single(activation, k):
    return activation.single(k)


@pytest.mark.parametrize("name", KINKED)
def test_one_input_against_integration_by_parts(name):
    """E[s^2] and its first two derivatives in k, which are E[s^2 he_2(x)] / k and so on: integrals of s alone."""
    activation, s, kinks = KINKED[name]
    nodes, weights = leggauss(12)
    for k in (0.3, 4.0, 900.0):
        edges = np.unique(np.concatenate([np.linspace(-9, 9, 721), np.array(kinks) / np.sqrt(k)]))
        edges = edges[np.abs(edges) <= 9]
        half = 0.5 * np.diff(edges)[:, None]
        x, w = (edges[:-1, None] + half * (nodes + 1)).ravel(), (half * weights).ravel()
        square = np.vectorize(s, otypes=[float])(np.sqrt(k) * x) ** 2 * norm.pdf(x) * w
        exact = [square.sum(), square @ (x**2 - 1) / 2, square @ (x**4 - 6 * x**2 + 3) / 4]
        value, gradient, hessian = single(activation, jnp.array(k))
        found = [value, k * gradient.sum(), k**2 * hessian.sum()]
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-10 * exact[0], err_msg=f"k = {k}")


def test_extreme_variances():
    """Sin at 900, GELU at 1e5, tanh at 1000 off the diagonal, ReLU at 1e-20 in float32: closed forms and limits."""
    sine = keft.Model(keft.Scaled(keft.Sin(), 30.0), 1.0).Q(jnp.array([[1.0, -1.0], [-1.0, 1.0]]))
    np.testing.assert_allclose(sine, [[0.5, -0.5], [-0.5, 0.5]], rtol=1e-12)
    relu = jax.jit(keft.ReLU().moments)(jnp.array([1e-20, 0.5e-20, 1e-20], jnp.float32))
    exact = (np.sqrt(0.75) + 0.5 * (np.pi - np.arccos(0.5))) / (2 * np.pi)
    np.testing.assert_allclose(relu / 1e-20, [0.5, exact, 0.5], rtol=1e-5)
    tanh = jax.jit(keft.Tanh().moments)(jnp.array([1e6, 5e5, 1e6]))
    assert abs(tanh[1] - 1 / 3) < 1e-3  # sign at large variance: 2 / pi arcsin(1 / 2)


# A closed form, and a sum with kinks by `make thorough`.
@pytest.mark.parametrize(
    "activation",
    [
        keft.ReLU(),
        pytest.param(keft.ELU(), marks=pytest.mark.thorough),
        *(pytest.param(s, marks=pytest.mark.slow) for s in (keft.Tanh(), keft.Erf(), keft.GELU())),
    ],
    ids=repr,
)
def test_an_input_that_is_zero(activation):
    """Its features are s(0), and nothing is infinite."""
    model = keft.Model(activation, 2.0, 0.1)

    @jax.jit
    def read(K):
        Q, back = jax.vjp(model.Q, K)
        return Q, model.chi(K, jnp.eye(2)), back(jnp.ones((2, 2)))

    Q, *derivatives = read(jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(Q[1], [0.1, 0.1], atol=1e-12)
    assert all(np.isfinite(derivative).all() for derivative in jax.tree.leaves(derivatives))


@pytest.mark.parametrize(
    "f", [lambda x: jnp.maximum(x + 1, 0), lambda x: jnp.clip(jax.nn.relu(x + 3), 0, 6) * jax.nn.silu(x)]
)
def test_derivatives_ask_on_which_side_of_a_kink_a_number_lies(f):
    """Not whether it equals a maximum: XLA may round one number in two ways within one program, and such a derivative
    was zero at half of the nodes."""
    program = str(jax.make_jaxpr(derivative(f, 1))(jnp.linspace(-4.1, 4.1, 9)))
    assert " eq " not in program
    assert " eq " in str(jax.make_jaxpr(jax.vmap(jax.grad(f)))(jnp.linspace(-4.1, 4.1, 9)))
    x = np.linspace(-4.1, 4.1, 9)
    np.testing.assert_allclose(derivative(f, 1)(x), jax.vmap(jax.grad(f))(x), rtol=1e-15)


def test_products_under_a_rest():
    """E[s s''] of |x| at mean + width y is that of a delta function times |0|, and E[s' s'] is one."""
    mean, width = jnp.array([-0.3, 0.0, 2.0]), jnp.array(1.7)

    def products(activation, *orders):
        return jax.jit(lambda m, w: [activation.smoothed_product(i, j, m, w) for i, j in orders])(mean, width)

    for activation in TWINS["abs"]:
        slopes, squares, delta = products(activation, (1, 1), (0, 0), (0, 2))
        np.testing.assert_allclose(slopes, 1.0, rtol=1e-12)
        np.testing.assert_allclose(squares, mean**2 + width**2, rtol=1e-12)
        np.testing.assert_allclose(delta, 0.0, atol=1e-12)
    (found,) = products(keft.Piecewise(lambda x: jnp.maximum(x + 1, 0), [-1.0]), (1, 2))
    np.testing.assert_allclose(found, 0.5 * norm.pdf(-1, loc=mean, scale=1.7), rtol=1e-10)


# --- what is refused, and what JAX may do with it ---------------------------------------------------------------------


@pytest.mark.parametrize("fn", [jax.nn.softmax, lambda x: x - jnp.mean(x, -1, keepdims=True), jnp.sum])
def test_functions_that_are_not_elementwise_are_refused(fn):
    with pytest.raises(ValueError, match="elementwise"):
        keft.Smooth(fn)


def test_a_jump_is_refused():
    with pytest.raises(ValueError, match="continuous"):
        keft.Piecewise(jnp.sign, [0.0])


class Kinked(keft.PairActivation):
    """|x| with a right closed form, and no word about its kink."""

    def __call__(self, x):
        return jnp.abs(x)

    def moment(self, k_aa, k_bb, k_ab):
        return keft.Abs().moment(k_aa, k_bb, k_ab)


class Honest(Kinked):
    @property
    def kinks(self):
        return (0.0,)


@pytest.mark.thorough
def test_a_closed_form_must_name_its_kinks():
    Honest()
    with pytest.raises(ValueError, match="kinks"):
        Kinked()


@pytest.mark.thorough
def test_a_closed_form_that_is_right_is_found_right_where_s_has_a_value_at_its_kinks():
    """HardTanh at variance one. At its kinks s is +-1, so that E[s s''] is all delta functions: the sums that judge
    closed forms must hold them, or its error would seem of order one."""
    assert jax.jit(lambda k: closed_form_errors(keft.HardTanh(), k).total)(jnp.array(1.0)) < 1e-11


@pytest.mark.parametrize("make", [lambda: keft.Softplus(0.0), lambda: keft.LeakyReLU(jnp.nan), lambda: keft.CELU(0.0)])
def test_parameters_that_make_no_function_are_refused(make):
    with pytest.raises(ValueError, match=r"beta|finite|greater"):
        make()


@pytest.mark.parametrize("kinks", [[], [np.nan]])
def test_kinks_are_finite_numbers(kinks):
    with pytest.raises(ValueError, match="`kinks` must hold one finite number or more, but is"):
        keft.Piecewise(jnp.abs, kinks=kinks)


@pytest.mark.parametrize("fn", [lambda x: jnp.tanh(x), jax.nn.silu], ids=["lambda", "silu"])
def test_plain_functions_pass_through_jax(fn):
    """A model with a function of one's own is a tree of arrays, which jit, grad and vmap take whole."""
    model = keft.Model(keft.Smooth(fn), 2.0)
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(model))
    slope = jax.jit(jax.grad(lambda model: model.Q(jnp.array([[2.0]]))[0, 0]))(model)
    assert slope.C_W > 0


@pytest.mark.parametrize(("k_aa", "k_bb", "rho"), [(1.0, 1.0, 0.5), (0.3, 2.0, -0.9), (100.0, 100.0, 0.0)])
def test_the_rounding_of_cancelling_kinks_is_that_of_all_of_them(k_aa, k_bb, rho):
    """k_aa k_bb E[s'' s''] of HardTanh is a sum over the kinks at -1 and 1 of both inputs. A few roundings of the sum
    of absolute values, by SciPy's density, are stated; at large variances no more."""
    K = np.array([[k_aa, rho * np.sqrt(k_aa * k_bb)], [rho * np.sqrt(k_aa * k_bb), k_bb]])
    density = stats.multivariate_normal([0, 0], K).pdf(np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])).sum()
    stated = float(_rounding_of_kinks(keft.HardTanh(), *(jnp.array(k) for k in (k_aa, k_bb, K[0, 1]))))
    exact = 4 * np.finfo(float).eps * k_aa * k_bb * density
    assert stated >= exact
    assert k_aa < 100 or stated < 1.02 * exact
