r"""Blocks of several parts: what a model refuses, the maps it is made of, and order 1/n of every kind of block.

Oracles: numbers of two programs written apart from this package (theory), kernels of neural-tangents, closed forms
exact at every width, finite differences of Q, and plain NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

import kernel_eft_jax as keft
from kernel_eft_jax import GELU, GLU, Dense, GOnly, HermiteTower, Linear, Model, ReLU, RMSNorm, SiLU, Sin, Tanh
from kernel_eft_jax.kernel_maps import Fresh, carry_all
from kernel_eft_jax.pairs import pack, unpack_covariance

TWO = np.array([[2.0, 0.6], [0.6, 2.0]])
UNIT = np.array([[1.0, 0.3], [0.3, 1.0]])
ONE = np.array([[2.0]])
UNEQUAL = np.array([[2.0, 0.6], [0.6, 1.2]])

# Branch; input kernel, layers, eps, decay; K0, V4, K1 of entries 00 and 01, from two independent programs that agree in
# all digits. Where the branch reads tanh those programs stopped at degree 60, whose K1 is still 1e-4 from its limit.
TABLE = {
    "two matrices": (
        [Dense(1.0), Tanh(), Dense(2.0)],
        (TWO, 8, 0.5, 0.0),
        ((4.3322839, 1.1806276), (47.0408, 40.9701), (-1.003591, -0.202129)),
    ),
    "transformer": (
        [RMSNorm(), Dense(1.0, ratio=4), GELU(), Dense(2.0)],
        (UNIT, 8, 0.5, 0.0),
        ((2.7008859, 0.9961152), (15.1515, 14.9792), (0.0, 0.244854)),
    ),
    "gated": (
        [RMSNorm(), Dense(1.0, ratio=2), GLU(SiLU()), Dense(4.0)],
        (UNIT, 8, 0.5, 0.0),
        ((3.8462042, 0.4485304), (40.1102, 22.8872), (0.0, 3.452958)),
    ),
    "full pre-activation": (
        [Tanh(), Dense(2.0), Tanh(), Dense(2.0)],
        (ONE, 8, 0.5, 0.0),
        ((3.6716862,), (29.71695,), (-0.187273,)),
    ),
    "full pre-activation, biases": (
        [Tanh(), Dense(1.5, 0.1, ratio=2), GELU(), Dense(2.0, 0.05)],
        (ONE, 8, 0.5, 0.0),
        ((3.7140126,), (35.21426,), (-0.202349,)),
    ),
    "two matrices, biases": (
        [Dense(1.5, 0.1), GELU(), Dense(2.0, 0.05)],
        (UNEQUAL, 10, 0.3, 0.0),
        ((7.1240567, 2.8119962), (367.90885, 112.97328), (-0.075485, -0.191393)),
    ),
    "plain": ([Tanh(), Dense(2.0, 0.1)], (ONE, 6, 1.0, 1.0), ((0.8186837,), (1.779257,), (-0.172769,))),
}


def entries(solution):
    """K0, V4 and K1 of the first input and of the first with the last."""
    n = solution.K0.shape[-1] - 1
    K0, V4, K1 = (np.asarray(x[-1]) for x in (solution.K0, solution.V4, solution.K1))
    both = [(K0[0, i], V4[0, i, 0, i], K1[0, i]) for i in {0, n}]
    return list(zip(*both, strict=True))


EXACT = [
    (name, closure)
    for name, (branch, *_) in TABLE.items()
    for closure in ([HermiteTower(60)] if isinstance(branch[0], Tanh) else [HermiteTower(2), GOnly()])
]
# Quick: norm, gate and no skip. Biases, two inputs and neurons before the first matrix by `make thorough`.
QUICK = [("gated", GOnly()), ("plain", HermiteTower(60))]
THOROUGH = [("two matrices, biases", GOnly()), ("full pre-activation, biases", HermiteTower(60))]
SLOW = [x for x in EXACT if x not in QUICK + THOROUGH]


@pytest.mark.parametrize(
    ("name", "closure"),
    [
        *QUICK,
        *(pytest.param(*x, marks=pytest.mark.thorough) for x in THOROUGH),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in SLOW),
    ],
)
def test_every_block_is_exact_at_order_one_over_n(name, closure):
    """HermiteTower gives the digits of every block; so does the paper's closure where the branch begins with a matrix
    or a norm."""
    branch, (K0, layers, eps, decay), known = TABLE[name]
    solution = keft.solve(Model(branch, decay=decay), K0, layers=layers, eps=eps, closure=closure)
    for found, value in zip(entries(solution), known, strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-6, atol=6e-7)
    if isinstance(closure, HermiteTower) and not isinstance(branch[0], Tanh):
        assert float(jnp.max(solution.truncation.V4)) < 1e-9  # the hierarchy ends by itself


@pytest.mark.slow
def test_hidden_noise_and_inner_curvature_are_seen(monkeypatch):
    """Negative controls: without the noise of hidden neurons, or without the curvature of the maps behind them, the
    table is missed."""
    branch, (K0, layers, eps, _), known = TABLE["full pre-activation"]
    response = Fresh.response

    def miss(changed, which):
        monkeypatch.setattr(Fresh, "response", changed)
        solution = keft.solve(Model(branch), K0, layers=layers, eps=eps, closure=HermiteTower(which))
        found = entries(solution)
        return [abs(found[i][0] / known[i][0] - 1) for i in (1, 2)]

    V4, _ = miss(lambda self, k: response(self, k)._replace(noise=jnp.zeros((), k.dtype)), 51)
    assert V4 > 1e-3  # the table is met to 2e-6
    _, K1 = miss(lambda self, k: response(self, k)._replace(hessian=jnp.zeros((k.size, 3, 3), k.dtype)), 52)
    assert K1 > 0.1


@pytest.mark.slow
def test_one_matrix_is_not_two():
    """Negative control: the exact theory of one matrix, put on a network of two, misses its V4 by 1 % and its K1 by a
    factor of three."""
    _, (K0, layers, eps, _), known = TABLE["two matrices"]
    one = entries(keft.solve(Model(Tanh(), 2.0), K0[:1, :1], layers=layers, eps=eps, closure=HermiteTower(40)))
    assert abs(one[1][0] / known[1][0] - 1) > 0.005
    assert abs(one[2][0] / known[2][0]) < 0.4


@pytest.mark.parametrize(
    ("branch", "K0", "known"),
    [
        ([RMSNorm(), Dense(1.0, ratio=4), GELU(), Dense(2.0)], UNIT, (2.7008859303, 0.9961151572)),
        ([Dense(1.0), keft.Erf(), Dense(2.0)], TWO, (4.6185479332, 1.2230256808)),
        ([Dense(1.0), ReLU(), Dense(2.0)], TWO, (11.9209289551, 6.2697868848)),
        ([keft.Erf(), Dense(1.0), keft.Erf(), Dense(2.0)], TWO, (3.5098437224, 0.9472222971)),
    ],
    ids=["transformer", "erf", "relu", "full pre-activation"],
)
def test_kernels_of_neural_tangents(branch, K0, known):
    """K0 after eight layers of eps = 0.5: neural-tangents 0.6.5."""
    model, k = Model(branch), jnp.asarray(K0)
    for _ in range(8):
        k = k + 0.25 * model.Q(k)
    np.testing.assert_allclose([k[0, 0], k[0, 1]], known, rtol=1e-9)


def relu_pair(kappa, first, second):
    """Branch of two matrices with ReLU or linear units, kappa as in theory, and the numbers 1 + 5/m or 1 + 2/m go
    with."""
    return [Dense(first, ratio=2), ReLU() if kappa else Linear(), Dense(second)]


@pytest.mark.parametrize(
    ("relu", "extra", "closure"),
    [
        pytest.param(
            True, 5.0, GOnly(), marks=pytest.mark.thorough
        ),  # in CI the tower has the table's full pre-activation
        pytest.param(True, 5.0, HermiteTower(2), marks=pytest.mark.slow),
        pytest.param(False, 2.0, HermiteTower(2), marks=pytest.mark.slow),
        pytest.param(False, 2.0, GOnly(), marks=pytest.mark.slow),
    ],
    ids=["relu of GOnly", "relu", "linear", "linear of GOnly"],
)
def test_two_matrices_in_closed_form(relu, extra, closure):
    """E[G^2] multiplies by 1 + 2 e2 kappa (1 + 2/n) + e2^2 kappa^2 (1 + extra/m)(1 + 2/n) a layer, exactly: its order
    1/n is V4 + 2 K0 K1."""
    C1, C2, e2, L, ratio = 1.3, 1.7, 0.16, 6, 2
    kappa = C1 * C2 * (0.5 if relu else 1.0)
    K = 1.4
    model = Model(relu_pair(relu, C1, C2))
    n = 1e7
    growth = 1 + 2 * e2 * kappa * (1 + 2 / n) + e2**2 * kappa**2 * (1 + extra / (ratio * n)) * (1 + 2 / n)
    mean = (1 + e2 * kappa) ** L * K
    V4 = n * (growth**L * K**2 * (1 + 2 / n) - mean**2)
    solution = keft.solve(model, [[K]], layers=L, eps=e2**0.5, closure=closure)
    np.testing.assert_allclose(solution.K0.item(), mean, rtol=1e-12)
    np.testing.assert_allclose(solution.K1.item(), 0.0, atol=1e-10)
    np.testing.assert_allclose(solution.V4.item(), V4, rtol=1e-6)
    if isinstance(closure, HermiteTower):
        assert solution.truncation.V4.item() < 1e-9  # the hierarchy ends by itself behind a matrix


@pytest.mark.slow  # in CI: the gated block of the table, whose norm comes first
def test_a_norm_first_in_closed_form():
    """RMSNorm first, one input: K1 = 0 and V4 a sum over layers; s = erf, E[erf^2] = 2/pi arcsin(2 A / (1 + 2 A)) at A
    = C1."""
    C1, C2, e2, L, ratio, K = 1.5, 2.0, 0.25, 5, 3, 1.2
    x = np.linspace(-12, 12, 4801)
    w = np.exp(-(x**2) / 2) * (x[1] - x[0]) / np.sqrt(2 * np.pi)
    s2 = erf(np.sqrt(C1) * x) ** 2
    Q, noise = C2 * s2 @ w, C2**2 * (s2**2 @ w - (s2 @ w) ** 2) / ratio
    V4, k = 2 * K**2, K
    for _ in range(L):
        V4 += 4 * e2 * k * Q + e2**2 * (2 * Q**2 + noise)
        k += e2 * Q
    model = Model([RMSNorm(), Dense(C1, ratio=ratio), keft.Erf(), Dense(C2)])
    solution = keft.solve(model, [[K]], layers=L, eps=e2**0.5)
    np.testing.assert_allclose([solution.K0.item(), solution.V4.item()], [k, V4], rtol=1e-9)
    np.testing.assert_allclose(solution.K1.item(), 0.0, atol=1e-12)


@pytest.mark.slow  # in CI: the plain network of the table
@pytest.mark.parametrize(
    ("activation", "C_W", "extra"), [(ReLU(), 2.0, 5.0), (Linear(), 1.5, 2.0)], ids=["relu", "linear"]
)
def test_plain_networks_in_closed_form(activation, C_W, extra):
    """A plain network multiplies E[q^2] by (gain^2)(1 + extra/n) a layer; here q0 scatters like a Wishart kernel, 2 q^2
    / n."""
    L, K = 5, 1.1
    solution = keft.solve(Model(activation, C_W, decay=1.0), [[K]], layers=L, eps=1.0, closure=HermiteTower(120))
    gain = (C_W / 2 if extra == 5 else C_W) ** L
    np.testing.assert_allclose(solution.K0.item(), gain * K, rtol=1e-12)
    np.testing.assert_allclose(solution.V4.item(), gain**2 * K**2 * (2 + extra * L), rtol=1e-6)
    np.testing.assert_allclose(solution.K1.item(), 0.0, atol=1e-5)


@pytest.mark.slow
def test_deep_plain_tanh_networks():
    """tanh, C_W = 1: V / (K^2 l) -> 2/3 and K1 / (K l) -> -1/3, V without the Wick term; 0.6648 and -0.3309 at l =
    1000."""
    l = 1000
    solution = keft.solve(Model(Tanh(), 1.0, decay=1.0), [[1.0]], layers=l, eps=1.0, closure=HermiteTower(12))
    K, V4, K1 = solution.K0.item(), solution.V4.item(), solution.K1.item()
    np.testing.assert_allclose([(V4 - 2 * K**2) / (K**2 * l), K1 / (K * l)], [0.6648, -0.3309], atol=2e-4)


BRANCHES = {
    "two": [Dense(1.3, 0.1, ratio=2), Sin(), Dense(1.1, 0.2)],
    "norm, gate": [RMSNorm(), Dense(1.2, 0.1), GLU(Sin()), Dense(0.7)],
    "three": [keft.Erf(), Dense(1.5, ratio=0.5), Dense(0.8), RMSNorm(), Dense(1.1), Sin(), Dense(1.3)],
    "matrix on matrix, norm behind": [Sin(), Dense(1.5, ratio=0.5), Dense(0.8), RMSNorm(), Dense(1.4, 0.3)],
    "scaled": [
        keft.Scaled(keft.Erf(), jnp.array(0.7), jnp.array(1.3)),
        Dense(1.4),
        keft.Scaled(Sin(), jnp.array(0.5)),
        Dense(1.0),
    ],
}
THREE = np.array([[1.3, 0.5, -0.2], [0.5, 0.9, 0.1], [-0.2, 0.1, 1.6]])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("three", "scaled") else ()) for n in BRANCHES]
)
def test_chi_and_hess_are_derivatives_of_the_kernel_map(name):
    """chi = jvp of Q, Hess = its second directional derivative, for a chain of any maps."""
    model, K = Model(BRANCHES[name]), jnp.asarray(THREE)
    h = jnp.array([[0.3, -0.1, 0.2], [-0.1, 0.2, 0.4], [0.2, 0.4, -0.3]])

    def along(x):
        return model.Q(K + x * h)

    first, second = jax.jit(lambda x: jax.jvp(lambda x: jax.jvp(along, (x,), (1.0,))[1], (x,), (1.0,)))(0.0)
    np.testing.assert_allclose(model.chi(K, h), first, atol=1e-9)
    np.testing.assert_allclose(model.hess(K, jnp.einsum("ab,cd->abcd", h, h)), second, atol=1e-9)


def sample_covariance(features, outputs, A, count, rng):
    """Mean and covariance of f f^T of `count` fresh neurons, entries 00, 01, 11."""
    L = np.linalg.cholesky(A)
    x = [L @ rng.standard_normal((len(A), count)) for _ in range(outputs)]
    f = features(*x)
    a, b = np.triu_indices(len(A))
    products = f[a] * f[b]
    return products.mean(axis=1), np.cov(products)


@pytest.mark.parametrize(
    ("neurons", "features", "outputs"),
    [
        pytest.param(Sin(), np.sin, 1, marks=pytest.mark.thorough),
        (ReLU(), lambda u: np.maximum(u, 0), 1),
        (GLU(Sin()), lambda u, w: w * np.sin(u), 2),
    ],
    ids=["sin", "relu", "gate"],
)
def test_noise_of_fresh_neurons(neurons, features, outputs):
    """The kernel of m neurons has the covariance Cov(f f, f f) / m: two million sampled neurons, the largest entries to
    1 % (4 standard errors)."""
    A = np.array([[1.2, 0.5], [0.5, 0.8]])
    mean, covariance = sample_covariance(features, outputs, A, 2_000_000, np.random.default_rng(3))
    found = jax.jit(Fresh(neurons, 2.0).response)(pack(jnp.asarray(A)))
    np.testing.assert_allclose(found.value, mean, atol=4e-3)
    np.testing.assert_allclose(found.noise, covariance / 2, atol=0.01 * covariance.max())


def test_the_error_of_hidden_neurons_that_oscillate_is_stated():
    """E[sin^4] = 3/8 - exp(-2k)/2 + exp(-8k)/8 is missed by nodes where E[sin^2] is a closed form: the noise of hidden
    neurons is off by less than ten times the stated error, and by more than 1e-9 from k = 10 on."""
    model = Model([Dense(1.0), Sin(), Dense(1.0)])
    found = jax.jit(lambda k: (Fresh(Sin(), 1.0).response(k).noise[0, 0], model.error(k)))
    for k in (0.5, 10.0, 20.0):
        squared = -np.expm1(-2 * k) / 2
        exact = 3 / 8 - np.exp(-2 * k) / 2 + np.exp(-8 * k) / 8 - squared**2
        noise, stated = found(jnp.array([k]))
        off = abs(noise - exact) / squared**2
        assert off < 10 * stated + 1e-14
        assert (off > 1e-9) == (k >= 10)
        assert stated < 1e-3


@pytest.mark.parametrize(
    ("neurons", "inputs"),
    [
        pytest.param(ReLU(), [0, 1, 1], marks=pytest.mark.thorough),
        *(pytest.param(s, [0, 1, 1], marks=pytest.mark.slow) for s in (keft.HardTanh(), GLU(ReLU()), keft.ELU())),
        *(pytest.param(s, [0, 1, 0, 1], marks=pytest.mark.slow) for s in (ReLU(), GLU(Tanh()))),
    ],
    ids=str,
)
def test_the_error_of_hidden_neurons_of_copies_is_stated(neurons, inputs):
    """Copies of an input have the covariances of the input, which for two inputs are no series: the noise of hidden
    neurons is off by less than the stated error, and by more than a tenth of it."""
    fresh, model, K = Fresh(neurons, 1.0), Model([Dense(1.0), neurons, Dense(1.0)]), 4 * UNIT
    found = jax.jit(lambda k: (fresh.response(k).noise, model.error(k)))
    noise, stated = found(pack(jnp.asarray(K[np.ix_(inputs, inputs)])))
    alone = jax.jit(lambda k: fresh.response(k))(pack(jnp.asarray(K)))
    expected = unpack_covariance(np.asarray(alone.noise))[np.ix_(*(inputs,) * 4)]
    off = np.abs(unpack_covariance(np.asarray(noise)) - expected).max() / float(alone.value[0]) ** 2
    assert 0.1 * stated < off < 1.01 * stated


@pytest.mark.thorough
def test_corrections_of_the_mean_run_through_two_hidden_layers():
    """carry_all against a second-order Taylor expansion of the composed maps, by finite differences of NumPy-like
    evaluations."""
    model = Model([Dense(1.0), Sin(), Dense(1.2, ratio=2), Sin(), Dense(0.9)])
    k, C = pack(jnp.asarray(UNEQUAL)), 0.01 * jnp.eye(3)

    def behind(x):
        for kernel_map in model.maps[2:]:
            x = kernel_map.value(x)
        return x

    @jax.jit
    def found_and_expected(k):
        responses = model.responses(k)
        quiet = 0.5 * jnp.einsum("pij,ij->p", jax.hessian(model.q)(k), C)
        # What the first hidden layer's noise adds: half the curvature of everything behind it, contracted with its
        # covariance.
        first = responses[2]
        added = 0.5 * jnp.einsum("pij,ij->p", jax.hessian(behind)(first.value), first.noise)
        return carry_all(responses, jnp.zeros(3), C)[0], quiet + added

    np.testing.assert_allclose(*found_and_expected(k), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([Tanh()],), "must end in a matrix.*add Dense"),
        (([],), "must be an activation object .* or a list"),
        (("tanh",), "must be an activation object .* or a list"),
        (([np.tanh, Dense(1.0)],), "must consist of activations, Dense, GLU and RMSNorm"),
        (([Tanh(), Sin(), Dense(1.0)],), "Two activations in a row.*put a Dense between them"),
        (([Dense(1.0), GLU(Sin()), Sin(), Dense(1.0)],), "Two activations in a row"),
        (([GLU(Sin()), Dense(1.0)],), "GLU gates the outputs of a matrix: put a Dense directly in front"),
        (([RMSNorm(), Tanh(), Dense(1.0)],), "norm directly in front of an activation.*put a Dense between"),
        (([Dense(1.0), RMSNorm(), Tanh(), Dense(1.0)],), "norm directly in front of an activation"),
        (([Tanh(), Dense(1.0, ratio=2)],), "feeds the stream and has ratio 1"),
        ((Tanh(),), "`C_W` is missing"),
        (([Tanh(), Dense(1.0)], 2.0), "`C_W` and `C_b` go with a single activation"),
        ((Tanh(), -1.0), "`C_W` is a variance"),
    ],
)
def test_what_is_no_block_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        Model(*arguments)


def test_parts_are_checked_when_they_are_made():
    for make, says in (
        (lambda: Dense(1.0, ratio=0), "`ratio` must be a number greater than zero"),
        (lambda: Dense(-1.0), "`C_W` is a variance"),
        (lambda: GLU(np.tanh), "`activation` of GLU must be an activation object"),
        (lambda: Model(Tanh(), 1.0, decay=np.nan), "`decay` must be one finite number"),
        (lambda: keft.solve(Model(Tanh(), 1.0, decay=2.0), ONE, layers=3, eps=1.0), "leave no real skip"),
        (
            lambda: keft.solve(Model([Dense(1.0), Tanh(), Dense(2.0)]), ONE, 1.0, closure=keft.SigmaKernel()),
            "for one matrix",
        ),
        (lambda: keft.solve(Model(Tanh(), 1.0, decay=0.5), ONE, 1.0, closure=keft.SigmaKernel()), "and decay 0"),
    ):
        with pytest.raises(ValueError, match=says):
            make()


def test_integer_parameters_are_reached_by_gradients():
    """A parameter given as an integer of JAX or NumPy is a floating-point leaf: Q = C_W E[s^2] + C_b, s = max(x, 0) +
    slope min(x, 0), so that dQ / dC_W = (1 + slope^2) / 2 at K = 1."""
    for number in (jnp.asarray, np.asarray):
        model = Model(keft.LeakyReLU(number(3)), number(2), number(1), decay=number(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(float)}
        slopes = jax.grad(lambda m: m.Q(np.eye(1))[0, 0])(model)
        np.testing.assert_allclose([slopes.C_W, slopes.C_b], [5.0, 1.0], rtol=1e-12)


def test_a_decay_that_cannot_be_looked_at_gives_no_numbers_of_another_network():
    """SigmaKernel inside jit: NaN for a decay, and for none V4 of a linear layer, (1 + h)^2 V4 + (2 h + h^2) 2 K0^2."""

    @jax.jit
    def V4(decay):
        model = Model(Linear(), 1.0, decay=decay)
        return keft.solve(model, ONE, layers=1, eps=0.5, closure=keft.SigmaKernel(2), throw=False).V4

    assert np.isnan(V4(0.5)).all()
    np.testing.assert_allclose(V4(0.0), 2 * 2.0**2 * (1.25**2 + 2 * 0.25 + 0.25**2), rtol=1e-9)


def test_no_derivative_by_a_decay_that_the_closure_does_not_have():
    """SigmaKernel has no decay, so the numbers do not move with it and a derivative of zero would be that of no
    network."""

    class WithoutDecay(GOnly):
        """A cheaper closure of that kind."""

        has_decay = False

    closure, model = keft.SigmaKernel(2), Model(Linear(), 1.0)
    assert "decay" not in keft.sensitivity(model, ONE, layers=1, eps=0.5, closure=WithoutDecay()).names
    networks = keft.Experiment(model, ONE, width=64, layers=[1], eps=0.5)
    for call in (
        lambda: keft.fisher(networks, ["decay"], networks=100, closure=closure),
        lambda: keft.fit(np.ones((5, 1, 1, 1)), networks, ["C_W", "decay"], closure=closure),
    ):
        with pytest.raises(ValueError, match="`free` names decay, which SigmaKernel does not have"):
            call()


@pytest.mark.thorough
def test_fixed_points_of_the_continuum():
    """With decay c the variance has a fixed point at Q(K) = c K."""
    model = Model(keft.Erf(), 3.0, 0.2, decay=1.5)
    K = keft.solve(model, ONE, 40.0, closure=GOnly()).K0[0]
    np.testing.assert_allclose(model.Q(K), 1.5 * K, rtol=1e-7)


@pytest.mark.thorough
def test_layers_of_their_own_step_are_layers_in_turn():
    """eps of each layer: solving in two halves from the first half's kernel gives the same K0, and t is the running sum
    of eps^2."""
    model, eps = Model(Sin(), 1.5, decay=0.4), np.array([0.5, 0.3, 0.7, 0.2])
    solve = functools.partial(keft.solve, model, closure=GOnly())
    whole = solve(ONE, layers=[0, 2, 4], eps=eps)
    np.testing.assert_allclose(whole.ts, [0, 0.34, 0.87], rtol=1e-12)
    later = solve(whole.K0[1], layers=2, eps=eps[2:])
    np.testing.assert_allclose(later.K0[0], whole.K0[2], rtol=1e-12)
    equal = solve(ONE, layers=2, eps=0.4), solve(ONE, layers=2, eps=[0.4] * 2)
    np.testing.assert_allclose(equal[0].V4, equal[1].V4, rtol=1e-13)


TWICE = [Dense(0.8, ratio=0.5), keft.Erf()]
IN_LAYERS, IN_THE_CONTINUUM = {"layers": [1, 3], "eps": [0.6, 0.4, 0.5]}, {"ts": [0.5]}


@pytest.mark.parametrize(
    ("K0", "depth", "hidden"),
    [
        # One hidden layer, of one input: layers and two hidden layers are compared with numbers above.
        pytest.param(ONE, IN_THE_CONTINUUM, [], marks=pytest.mark.thorough),
        pytest.param(THREE, IN_LAYERS, TWICE, marks=pytest.mark.slow),
        pytest.param(THREE, IN_THE_CONTINUUM, TWICE, marks=pytest.mark.slow),
    ],
    ids=["one input, continuum", "three inputs, layers", "three inputs, continuum"],
)
def test_gonly_is_the_tower_where_the_branch_begins_with_a_matrix(K0, depth, hidden):
    """Two closures, one truth: unequal ratios, two hidden layers, decay, an eps of each layer; and in the continuum."""
    model = Model([RMSNorm(), Dense(1.2, 0.1, ratio=2), Sin(), *hidden, Dense(1.3)], decay=0.3)
    tower, kernel_only = (keft.solve(model, K0, closure=c, **depth) for c in (HermiteTower(2), GOnly()))
    np.testing.assert_allclose(tower.V4, kernel_only.V4, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(tower.K1, kernel_only.K1, rtol=1e-6, atol=1e-7)
    assert float(jnp.max(tower.truncation.V4)) < 1e-9  # the hierarchy ends by itself


# Two inputs in CI: test_fisher, with one matrix.
@pytest.mark.parametrize("K0", [ONE, pytest.param(UNEQUAL, marks=pytest.mark.slow)], ids=["one input", "two inputs"])
def test_memory_of_kernels_is_the_response_for_two_matrices(K0):
    """Cov(G(l), G(m)) by the memory of the tower and by that of GOnly agree for blocks for which GOnly is exact."""
    model, k, dt = Model([Dense(1.0), Sin(), Dense(1.5)], decay=0.2), pack(jnp.asarray(K0)), jnp.array(0.3)

    @functools.partial(jax.jit, static_argnums=0)
    def recalled(closure):
        step = jax.jit(lambda state: closure.step(model, state, dt))  # traced once
        state = step(closure.init(model, k))

        def layer(memory_and_state, _):
            memory, state = memory_and_state
            return (closure.follow(model, state, memory, dt), step(state)), None

        (memory, state), _ = jax.lax.scan(layer, (closure.remember(model, state), state), length=3)
        return closure.recall(model, state, memory)

    np.testing.assert_allclose(recalled(HermiteTower(4)), recalled(GOnly()), rtol=1e-8)


@pytest.mark.parametrize(
    ("start", "K0"),
    [
        pytest.param(Tanh(), [[1.0]], marks=pytest.mark.slow),  # the first of the opposite inputs
        (None, [[1.0]]),
        pytest.param(Tanh(), [[1.0, -1.0], [-1.0, 1.0]], marks=pytest.mark.thorough),
    ],
    ids=["activation", "norm alone", "opposite inputs"],
)
def test_increments_behind_a_norm_do_not_fluctuate(start, K0):
    """Where a norm stands before the last matrix, every increment of one input has the variance C_W exactly: so V4 = 2
    (K0 + t C_W)^2. V_SS is zero, and its rounding is no negative variance; inputs that are copies or opposites
    likewise."""
    model = Model([*([] if start is None else [start]), RMSNorm(), Dense(1.5)])
    found = keft.solve(model, K0, layers=[1, 2, 4], eps=0.3, closure=HermiteTower(4))
    np.testing.assert_allclose(found.V4[:, 0, 0, 0, 0], 2 * (1 + 1.5 * found.ts) ** 2, rtol=1e-12)
    assert np.abs(found.V_SS).max() < 1e-12
