"""Checks at the door: an error names the argument, says what was wrong, and what would be right; good input passes
untouched."""

import math
from functools import cache

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax import figures
from kernel_eft_jax.checks import (
    check_array,
    check_count,
    check_kernel,
    check_key,
    check_kind,
    check_layers,
    check_positive,
    check_unstacked,
    check_untraced,
)
from kernel_eft_jax.depths import check_eps

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
            r"`K0` must be positive semi-definite, but its smallest eigenvalue is -0\.5 in units.*\[0, 1\] are 1, 1 and 1\.5",
        ),
        (np.eye(2) + 0.1j, r"`K0` must be real numbers, but has dtype complex128: give its real part"),
        ("2.0", r"`K0` must be numbers, but is '2\.0'"),
        (None, r"`K0` must be numbers, but is None"),
        ([[1.0, 0.5], [0.5]], r"`K0` must be an array of numbers with rows of one length"),
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
    with pytest.raises(ValueError, match="positive variances"):  # what is known within a traced function is looked at
        jax.jit(lambda x: x * check_kernel(-GOOD))(1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_variances_hide_no_fault(dtype):
    """An entry 1.5 between two variances of one is impossible, whatever the third variance; so is an asymmetry
    there."""
    K = np.diag(np.array([1e6, 1, 1], dtype))
    check_kernel(K)
    K[1, 2] = K[2, 1] = 1.5
    with pytest.raises(
        ValueError,
        match=r"eigenvalue is -0\.5 in units of the variances: entries \[1, 1\], \[2, 2\] and \[1, 2\] are 1, 1 and 1\.5",
    ):
        check_kernel(K)
    K[1, 2], K[2, 1] = 0.5, 0.4
    with pytest.raises(ValueError, match=r"symmetric, but entry \[1, 2\]"):
        check_kernel(K)
    check_kernel(np.full((3, 3), np.finfo(dtype).tiny, dtype))


def test_variances_of_zero_where_they_are_allowed():
    K = np.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(check_kernel(K, zeros=True), K)
    with pytest.raises(ValueError, match="positive semi-definite"):
        check_kernel([[1.0, 0.1], [0.1, 0.0]], zeros=True)
    with pytest.raises(ValueError, match="positive variances"):
        check_kernel([[-1.0]], zeros=True)


# --- one door: numbers of every kind come in -----------------------------------------------------------------------

KINDS = ["bool", "int8", "int32", "int64", "uint8", "float16", "bfloat16", "float32", "float64", "list"]


def of_kind(numbers, kind):
    return numbers if kind == "list" else np.asarray(jnp.asarray(numbers, jnp.float64)).astype(jnp.dtype(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_every_kind_give_the_same_kernels(kind):
    """Images of 200 everywhere have the kernel 40000, also as bytes; ones and zeros for the kinds that hold no more."""
    high = {"bool": 1, "int8": 100}.get(kind, 200)
    x = [[high, high, high, high], [high, 0, 0, high]]
    expected = high**2 * np.array([[1.0, 0.5], [0.5, 0.5]])
    for kernel in (keft.input_kernel, keft.empirical_kernel):
        K = kernel(of_kind(x, kind))
        np.testing.assert_array_equal(K, expected)
        assert K.dtype == (np.float32 if kind in ("float16", "bfloat16", "float32") else np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_every_kind_give_the_same_theory(kind):
    """E[phi_a phi_b] = K_ab, and Q of a linear network is C_b + C_W K."""
    K = [[1, 1], [1, 1]] if kind == "bool" else [[2, 1], [1, 2]]
    taken = of_kind(K, kind)
    rtol = 1e-5 if kind in ("float16", "bfloat16", "float32") else 1e-12
    np.testing.assert_allclose(keft.expect(lambda x: x, lambda x: x, taken), K, rtol=rtol)
    model = keft.Model(keft.Linear(), 2.0, 0.5)
    np.testing.assert_allclose(model.Q(taken), 0.5 + 2 * np.array(K, float), rtol=rtol)
    np.testing.assert_allclose(model.chi(taken, [[1, 0], [0, 0]]), [[2, 0], [0, 0]], atol=1e-5)
    np.testing.assert_allclose(model.hess(taken, np.ones((2, 2, 2, 2), int)), np.zeros((2, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: keft.input_kernel(x), "x"),
        (lambda x: keft.empirical_kernel(x), "phi"),
        (lambda x: keft.expect(jnp.tanh, jnp.tanh, x), "K"),
        (lambda x: keft.Model(keft.Erf(), 1.0).Q(x), "K"),
        (lambda x: keft.solve(keft.Model(keft.Erf(), 1.0), x, [1.0]), "K0"),
        (lambda x: keft.draw_inputs(x, width=8, key=jax.random.key(0)), "K0"),
        (
            lambda x: keft.estimate(
                keft.Model(keft.Erf(), 1.0), x, width=8, depth=2, eps=0.1, networks=64, key=jax.random.key(0)
            ),
            "K0",
        ),
        (lambda x: keft.Experiment(keft.Model(keft.Erf(), 1.0), x, width=8, layers=[1]), "K0"),
    ],
    ids=["input_kernel", "empirical_kernel", "expect", "Q", "solve", "draw_inputs", "estimate", "Experiment"],
)
def test_every_public_function_has_the_same_door(call, name):
    for wrong, says in (
        (np.eye(2) * (1 + 1j), "must be real numbers, but has dtype complex128"),
        ([[1.0, 2.0], [1.0]], "rows of one length"),
        ("kernel.npy", "must be numbers"),
        ([[1.0, np.nan], [np.nan, 1.0]], r"must be finite, but entry \[0, 1\] is nan"),
        (np.ones((0, 0)), r"has shape \(0, 0\)"),
    ):
        with pytest.raises(ValueError, match=f"Argument `{name}` .*{says}"):
            call(wrong)


def test_half_precision_is_computed_in_single():
    """Half precision is converted before any product: in float16 the product of these numbers would be infinite, and
    their mean would have three digits."""
    x = np.full((1, 3), 300.0, np.float16)
    assert float(keft.input_kernel(x)[0, 0]) == 90000.0
    assert check_array(jnp.asarray(x), "x").dtype == jnp.float32
    assert jax.eval_shape(check_kernel, jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)).dtype == jnp.float32


def test_a_stack_of_models_is_called_through_vmap():
    """A stack of models is refused outside `eqx.filter_vmap`: three models broadcast against two inputs would each get
    one of the three pairs."""
    C_W = jnp.array([1.0, 2.0, 3.0])
    stack = jax.vmap(lambda c: keft.Model(keft.Linear(), c))(C_W)
    with pytest.raises(ValueError, match=r"`model` is a stack: its C_W has shape \(3,\) .*filter_vmap"):
        stack.Q(GOOD)
    np.testing.assert_allclose(jax.vmap(lambda m: m.Q(jnp.asarray(GOOD)))(stack), C_W[:, None, None] * np.array([GOOD]))
    for call in (
        lambda: keft.solve(stack, GOOD, [0.5], closure=keft.GOnly()),
        lambda: keft.solve_pairs(stack, GOOD, layers=[1], eps=0.1, closure=keft.GOnly()),
        lambda: keft.Experiment(stack, GOOD, width=8, layers=[1], eps=0.1),
        lambda: keft.ResNet(stack, width=8, depth=1, eps=0.1, key=jax.random.key(0)),
        lambda: keft.validity_window(stack, GOOD, depth=1, eps=0.1),
    ):
        with pytest.raises(ValueError, match="`model` is a stack: its C_W"):
            call()
    scaled = jax.vmap(lambda b: keft.Model(keft.Softplus(b), 1.0))(C_W)
    with pytest.raises(ValueError, match=r"is a stack: its \w+ has shape \(3,\)"):
        check_unstacked(scaled, "model")
    check_unstacked(keft.Model(keft.Polynomial(jnp.ones(3)), 1.0), "model")


@pytest.mark.parametrize(
    ("part", "remedy"),
    [
        ("tanh", "write Tanh()"),
        (keft.Dense, "write Dense(C_W)"),
        ("glu", "write GLU(activation)"),
        ("smooth", "write Smooth(fn)"),
        (jnp.tanh, "write Smooth(fn) for a function fn"),
        ("attention", None),
        ("activation", None),
    ],
)
def test_the_name_of_a_part_says_how_the_part_is_written(part, remedy):
    with pytest.raises(ValueError, match="Argument `branch` must") as refused:
        keft.Model([part, keft.Dense(1.0)])
    assert str(refused.value).endswith(f": {remedy}." if remedy else f"{part!r}.")


def test_degrees_are_python_integers():
    """The degree of a closure is part of a program, so that integers of NumPy and JAX become numbers of Python."""
    for degree in (8, np.uint8(8), jnp.asarray(8)):
        assert keft.HermiteTower(degree) == keft.HermiteTower(8)
        assert type(keft.SigmaKernel(degree).degree) is int
    with pytest.raises(ValueError, match="Argument `degree` must be a whole number, 2 or more, but is 1"):
        keft.HermiteTower(1)


def test_wider_numbers_than_JAX_has_are_rounded():
    assert check_array(np.array([0.1], np.longdouble), "x").dtype == jnp.asarray(0.1).dtype


@pytest.mark.parametrize(
    "value", [0, 0.0, -1.0, np.nan, np.inf, np.ones(2), jnp.array(-0.5), "0.1", None, [[1], [1, 2]]]
)
def test_not_positive(value):
    with pytest.raises(ValueError, match="Argument `eps` must be a finite number greater than zero, but is"):
        check_positive(value, "eps")


@pytest.mark.parametrize("value", [0, -3, 2.5, np.nan, np.inf, True, "8", None])
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
    for value in (7, 7.0, np.float32(7), np.int64(7), np.uint8(7), jnp.array(7), np.array(7)):
        assert type(check_count(value, "width")) is int
    with pytest.raises(ValueError, match="1 or more and 2147483647 at most, but is 100000000000000000000"):
        check_count(10**20, "depth")


def test_layers_steps_keys_and_objects():
    assert check_layers(np.array([0, 3], np.int16)) == check_layers([0.0, 3.0]) == (0, 3)
    assert check_layers(5) == (5,)
    for wrong in ([3, 3], [4, 2], [], [1.5], ["a"], None, [[1, 2]], [np.nan]):
        with pytest.raises(ValueError, match="Argument `save_at` must be "):
            check_layers(wrong, "save_at")
    with pytest.raises(ValueError, match="must lie between 0 and the depth 4"):
        check_layers([1, 5], depth=4)
    assert check_eps(0.1, 0.0, 5).shape == ()
    assert check_eps([1, 2], 0.0, 2).dtype == jnp.float64
    jax.jit(lambda eps: check_eps(eps, 1.0, 5))(-1.0)
    for wrong in (0, [0.1, -1], np.inf, "0.1", None, [[0.1]], np.nan):
        with pytest.raises(ValueError, match="Argument `eps` must be "):
            check_eps(wrong, 0.0, 5)
    with pytest.raises(ValueError, match=r"one for each of the 3 layers, but has shape \(2,\)"):
        check_eps([0.1, 0.1], 0.0, 3)
    for key in (jax.random.key(0), jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        assert check_key(key) is key
    for wrong, says in (
        (0, "by `jax.random.key"),
        (None, "seed"),
        (jax.random.split(jax.random.key(0)), "take one of them"),
    ):
        with pytest.raises(ValueError, match=f"(?s)Argument `key` must be one key .*{says}"):
            check_key(wrong)
    check_kind(keft.Tanh(), keft.Activation, "activation")
    with pytest.raises(ValueError, match=r"`activation` must be an Activation object, but is 'tanh': write Tanh\(\)\."):
        check_kind("tanh", keft.Activation, "activation")
    with pytest.raises(ValueError, match=r"but is <class .*: write Tanh\(\)"):
        check_kind(keft.Tanh, keft.Activation, "activation")


def test_work_of_the_host_is_not_traced():
    check_untraced("estimate", "call it outside.", jnp.ones(2))
    with pytest.raises(TypeError, match="`estimate` cannot be traced by jit, grad or vmap: call it outside"):
        jax.jit(lambda x: check_untraced("estimate", "call it outside.", {"K0": x}))(1.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: keft.Model("tanh", 2.0), r"`branch` must be an activation object such as Tanh\(\).*'tanh'"),
        (lambda: keft.Model(jnp.tanh, 2.0), r"`branch` must be an activation object .*Smooth\(fn\)"),
        (lambda: keft.Model(keft.Tanh, 2.0), r"`branch` must be an activation object such as Tanh\(\)"),
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
    """A model without weights or without biases is allowed: Q is then C_b everywhere, or zero."""
    np.testing.assert_array_equal(keft.Model(keft.Erf(), 0.0, 0.5).Q(jnp.asarray(GOOD)), np.full((2, 2), 0.5))


class TestDoors:
    """One row for each kind of wrong input: the argument that the error names, and the remedy. A wrong input without an
    error, or with an error that is a riddle, is a defect."""

    MODEL = keft.Model(keft.Tanh(), 2.0)
    G = np.ones((20, 1, 1, 1))
    KEY = jax.random.key(0)

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda: keft.Model(keft.Tanh, 1.0), r"`branch` must be an activation object.*write Tanh\(\)"),
            (lambda: keft.Model(jnp.tanh, 1.0), r"`branch` must be.*write Smooth\(fn\)"),
            (lambda: keft.Model([keft.Tanh(), keft.Dense]), r"`branch` must consist.*write Dense\(C_W\)"),
            (lambda: keft.Model(keft.Tanh(), "two"), "`C_W` must be numbers, but is 'two'"),
            (lambda: keft.Model(keft.Tanh(), 1j), "`C_W` must be real numbers"),
            (lambda: keft.LeakyReLU("0.1"), "must be numbers, but is '0.1'"),
            (
                lambda: keft.Smooth(math.tanh),
                r"`fn` must be a function of an array that JAX can trace.*such as jnp\.tanh",
            ),
            (
                lambda: keft.Smooth(np.tanh),
                r"`fn` must be a function of an array that JAX can trace.*such as jnp\.tanh",
            ),
            (
                lambda: keft.Smooth(lambda x: jax.lax.complex(x, x)),
                "`fn` must make floating-point numbers, but makes complex64 of float32",
            ),
            (lambda: keft.expect("tanh", jnp.tanh, GOOD), "`f` must be a function of an array"),
            (lambda: keft.expect(jnp.tanh, jax.nn.softmax, GOOD), "`g` must be elementwise"),
            (lambda: keft.expect(jnp.tanh, jnp.sum, GOOD), "`g` must be elementwise"),
            (lambda: TestDoors.MODEL.chi(GOOD, [[1.0]]), r"`h` must have shape \(2, 2\), but has shape \(1, 1\)"),
            (lambda: TestDoors.MODEL.chi(GOOD, [[1.0, 0.0], [0.5, 1.0]]), r"`h` must be symmetric, but entry \[0, 1\]"),
            (lambda: TestDoors.MODEL.chi(GOOD, [[1.0, 0.0], [0.0, np.nan]]), r"`h` must be finite, but entry \[1, 1\]"),
            (
                lambda: TestDoors.MODEL.hess(GOOD, np.full((2, 2, 2, 2), np.inf)),
                r"`V` must be finite, but entry \[0, 0, 0, 0\]",
            ),
            (
                lambda: TestDoors.MODEL.hess(GOOD, np.arange(16.0).reshape(2, 2, 2, 2)),
                r"`V` must be symmetric, but entry \[0, 1, 0, 0\] is 4.0 and \[1, 0, 0, 0\] is 8.0",
            ),
            (lambda: TestDoors.MODEL.hess(GOOD, GOOD), r"`V` must have shape \(2, 2, 2, 2\)"),
            (lambda: keft.solve(TestDoors.MODEL, GOOD, layers=[1]), "`eps` is missing: layers need"),
            (lambda: keft.solve(TestDoors.MODEL, GOOD, eps=0.1), "`layers` is missing: layers need"),
            (lambda: keft.solve(TestDoors.MODEL, GOOD, layers=[-1], eps=0.1), "`layers` must be 0 or more"),
            (lambda: keft.solve(TestDoors.MODEL, GOOD, ["a"]), r"`ts` must be numbers, but is \['a'\]"),
            (
                lambda: keft.solve(TestDoors.MODEL, GOOD, [1.0], closure=keft.GOnly),
                r"`closure` must be.*write GOnly\(\)",
            ),
            (
                lambda: keft.solve(TestDoors.MODEL, GOOD, [1.0], solver=diffrax.Tsit5),
                r"`solver` must be.*write Tsit5\(\)",
            ),
            (
                lambda: keft.solve(keft.recipes.plain(width=8, depth=2), GOOD, [1.0]),
                r"(?s)`model` must be.*unpack a stack",
            ),
            (lambda: keft.draw_inputs(GOOD, width=8, key=0), r"`key` must be one key such as `jax\.random\.key\(0\)`"),
            (lambda: keft.recipes.gpt2(width=8, depth=0), "`depth` must be a whole number"),
            (lambda: keft.conventions.transformer_mlp(C_W=(1.0, 2.0, 3.0)), "`C_W` must be two variances"),
            (lambda: keft.estimate(TestDoors.MODEL, GOOD, **RUN, control="no"), "`control` must be True or False"),
            (lambda: keft.fit(TestDoors.G, EXPERIMENT, ["C_W"], closure="GOnly"), "`closure` must be a Closure object"),
            (lambda: keft.fisher(EXPERIMENT, ["C_W"], networks=9, with_V4="no"), "`with_V4` must be True or False"),
            (
                lambda: keft.fit(EXPERIMENT, EXPERIMENT, ["C_W"]),
                "`data` must be kernels of sampled networks or an Estimate",
            ),
            (lambda: keft.width_check(TestDoors.G, solution()), "`kernels` must map widths to arrays of kernels"),
            (
                lambda: keft.width_check({"wide": TestDoors.G}, solution()),
                "`width` in `kernels` must be a whole number",
            ),
            (lambda: keft.width_check({16: TestDoors.G}, TestDoors.MODEL), "`theory` must be a Solution object"),
            (lambda: keft.diagnostics.compare(TestDoors.MODEL, solution()), "`theory` must be a Solution object"),
            (lambda: keft.coordinate_check(**STACK, own=TestDoors.G), "`own` must map widths to arrays of kernels"),
            (
                lambda: keft.coordinate_check(**STACK, own={8: TestDoors.G}),
                "`own` must hold.*as `layers`; here the layers are 0, 1, 2",
            ),
            (
                lambda: keft.coordinate_check(**STACK, tolerance=-1),
                "`tolerance` must be a finite number greater than zero",
            ),
            (lambda: keft.coordinate_check(**STACK, key=0), "`key` must be one key"),
            (lambda: keft.validity_window("gpt2", GOOD, depth=2, eps=0.5), "`model` must be a Model object"),
            (lambda: keft.validity_window(**WINDOW, closures=[keft.GOnly()]), "`closures` must map names to closures"),
            (
                lambda: keft.validity_window(**WINDOW, reference=keft.GOnly()),
                "`reference` must be exact.*which GOnly is not",
            ),
            (
                lambda: keft.Experiment(TestDoors.MODEL, [[1.0]], width=8, layers=[0]),
                "`layers` must name a layer behind the input",
            ),
            (lambda: keft.Tanh().error(-1.0), "`k` is a variance and must not be negative"),
            (lambda: figures.plot_fit(solution()), "`fit` must be a Fit object"),
            (lambda: figures.plot_trajectories(solution(), title=""), "`results` must map labels to results"),
            (
                lambda: figures.plot_trajectories({"": solution()}, (3, 3), title=""),
                "`entry` must name inputs from 0 to 0",
            ),
            (lambda: figures.plot_trajectories({"": solution()}, (0,), title=""), "`entry` must name.*2 of them"),
            (lambda: figures.plot_trajectories({"": solution()}, 0, title=""), "`entry` must name.*2 of them"),
            (lambda: figures.plot_trajectories({}, title=""), "`results` must map labels to results.*but is empty"),
            (
                lambda: figures.plot_trajectories({"a": "b"}, title=""),
                "what `solve` or `estimate` gives, but 'a' is 'b'",
            ),
            (lambda: figures.plot_panels({}, title=""), "nothing to draw: give one panel or more"),
            (lambda: solution().plot(columns=0), "`columns` must be a whole number, 1 or more"),
            (lambda: keft.solve(TestDoors.MODEL, GOOD, [1j]), "`ts` must be real numbers.*give its real part"),
            (lambda: keft.solve(TestDoors.MODEL, GOOD, [1.0], max_steps="many"), "`max_steps` must be a whole number"),
            (lambda: keft.solve(TestDoors.MODEL, GOOD, [1.0], throw="no"), "`throw` must be True or False"),
            (lambda: keft.solve(TestDoors.MODEL, GOOD, layers=[10**12], eps=0.5), "`layers` must be [0-9,]+ or less"),
            (
                lambda: keft.solve_pairs(TestDoors.MODEL, GOOD, [1.0], progress="no"),
                "`progress` must be True or False",
            ),
            (
                lambda: keft.estimate(TestDoors.MODEL, GOOD, **RUN | {"progress": "no"}),
                "`progress` must be True or False",
            ),
            (
                lambda: keft.estimate(TestDoors.MODEL, GOOD, **RUN, checkpoint="."),
                "`checkpoint` must name a file, but '.' is a folder",
            ),
            (lambda: keft.fit(TestDoors.G, EXPERIMENT, None), "`free` must name different parameters.*but is None"),
            (
                lambda: keft.fit(TestDoors.G, EXPERIMENT, ["C_W"], optimiser="adam"),
                "`optimiser` must be.*optax, such as",
            ),
            (lambda: keft.validity_window(**WINDOW, reference="tower"), "`reference` must be a Closure object"),
            (
                lambda: keft.validity_window(**WINDOW, closures={"a": keft.GOnly}),
                r"`closures\['a'\]` must be.*write GOnly\(\)",
            ),
            (lambda: keft.validity_window(**WINDOW, networks=3), "`networks` must be a whole number, 64 or more"),
            (lambda: keft.validity_window(**WINDOW, pilot_width=0), "`pilot_width` must be a whole number, 1 or more"),
            (lambda: keft.coordinate_check(**STACK, networks=3), "`networks` must be a whole number, 64 or more"),
            (lambda: keft.ResNet("plain", width=8, depth=2, eps=0.5, key=TestDoors.KEY), "`model` must be a Model"),
            (lambda: keft.LeakyReLU([0.1, 0.2]), r"`slope` of an activation must be one number, but has shape \(2,\)"),
            (lambda: keft.CELU(0.0), "`alpha` must be a finite number greater than zero, but is 0.0"),
            (lambda: keft.Softplus("two"), "Argument `beta` must be numbers, but is 'two'"),
            (lambda: keft.Scaled(keft.Erf(), 1j), "Argument `input_scale` must be real numbers"),
        ],
    )
    def test_the_argument_is_named_with_its_remedy(self, call, says):
        with pytest.raises(ValueError, match=says):
            call()

    def test_a_name_that_is_misspelt_comes_with_the_right_one(self):
        """Python adds its hint where the error knows the module."""
        with pytest.raises(AttributeError, match="has no attribute 'HermitTower'") as found:
            _ = keft.HermitTower
        assert found.value.name == "HermitTower"
        assert found.value.obj is keft


STACK = {"model": TestDoors.MODEL, "K0": [[1.0]], "width": 8, "depth": 2, "eps": 0.5}
WINDOW = {name: STACK[name] for name in ("model", "K0", "depth", "eps")}
RUN = {"width": 8, "depth": 2, "eps": 0.5, "networks": 64, "key": TestDoors.KEY, "progress": False}
EXPERIMENT = keft.Experiment(TestDoors.MODEL, [[1.0]], width=8, layers=[2], eps=0.5)


@cache
def solution():
    return keft.solve(TestDoors.MODEL, [[1.0]], layers=[1], eps=0.5, closure=keft.GOnly())


TANH = keft.Model(keft.Tanh(), 1.0)


def solved(K):
    return keft.solve(TANH, K, layers=[0, 1], eps=0.5, closure=keft.GOnly())


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("fisher", lambda K: keft.fisher(keft.Experiment(TANH, K, width=8, layers=[1], eps=0.5), ["C_W"], networks=9)),
        ("validity_window", lambda K: keft.validity_window(TANH, K, depth=2, eps=0.5)),
        ("coordinate_check", lambda K: keft.coordinate_check(TANH, K, width=8, depth=2, eps=0.5)),
        ("kurtosis", lambda K: keft.kurtosis(solved(K))),
        ("mean_source", lambda K: keft.mean_source(solved(K))),
        ("covariance_residual", lambda K: keft.covariance_residual(solved(K))),
        ("driven_K1", lambda K: keft.driven_K1(solved(K))),
        ("width_check", lambda K: keft.width_check({8: np.ones((16, 1, 1, 1))}, solved(K))),
    ],
)
def test_what_works_on_the_host_says_so_where_it_is_traced(name, call):
    """Instead of the sentence of JAX on conversions of tracers."""
    with pytest.raises(TypeError, match=f"`{name}` cannot be traced by jit, grad or vmap: it works on the host"):
        jax.make_jaxpr(call)(jnp.eye(1))


def test_a_width_of_the_pilot_that_a_ratio_forbids_is_refused_before_any_work():
    model = keft.Model([keft.RMSNorm(), keft.Dense(1.0, ratio=0.25), keft.GELU(), keft.Dense(2.0)])
    with pytest.raises(ValueError, match=r"6 x 0\.25 is 1\.5: take another width"):
        keft.validity_window(model, [[1.0]], depth=2, eps=0.5, key=jax.random.key(0), pilot_width=6)


@pytest.mark.parametrize(
    ("branch", "ask"),
    [
        ([keft.RMSNorm(), keft.Dense(1.0)], lambda model, K: model.Q(K)),
        ([keft.RMSNorm(), keft.Dense(1.0)], lambda model, K: model.chi(K, jnp.eye(2))),
        ([keft.ReLU(), keft.Dense(1.0)], lambda model, K: model.hess(K, jnp.ones((2, 2, 2, 2)))),
    ],
    ids=["value of a norm", "derivative of a norm", "second derivative of a kink"],
)
def test_what_has_no_value_at_an_input_of_zero_norm_is_named(branch, ask):
    """Outside jit nothing that is not finite is returned."""
    with pytest.raises(FloatingPointError, match="no value at an input of zero norm: leave this input out"):
        ask(keft.Model(branch), jnp.diag(jnp.array([1.0, 0.0])))
