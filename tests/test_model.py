"""The kernel map Q and its derivatives chi and Hess, and the table of oracles that all suites read."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import ACTIVATIONS, KINKED, PROBLEMS, SMOOTH, one_input_layers, pair_moments, select, sigma, wick
from scipy.integrate import solve_ivp

import kernel_eft_jax as keft

C_W, C_b = 1.7, 0.3
# An ordinary pair, a strongly correlated one, a strongly anticorrelated one; unequal variances.
KERNEL = jnp.array([[1.0, 0.5, 1.38, -0.8], [0.5, 0.7, 0.6, -0.4], [1.38, 0.6, 2.0, -1.1], [-0.8, -0.4, -1.1, 0.66]])
DIRECTIONS = jnp.array([np.cos(np.add.outer(np.arange(4.0), np.arange(4.0)) * s) for s in (1.0, 2.3)])


def model(name: str) -> keft.Model:
    return keft.Model(ACTIVATIONS[name], C_W, C_b)


# --- laws -------------------------------------------------------------------------------------------------------------


@eqx.filter_jit
def directional_derivatives(model, K, h):
    """Q along K + tau h: first and second derivative by tau, through the moments alone."""

    def slope(K):
        return jax.jvp(model.Q, (K,), (h,))[1]

    return slope(K), jax.jvp(slope, (K,), (h,))[1]


def check_chi(model: keft.Model) -> None:
    """chi is the derivative of Q."""
    for h in DIRECTIONS:
        np.testing.assert_allclose(
            model.chi(KERNEL, h), directional_derivatives(model, KERNEL, h)[0], rtol=1e-9, atol=1e-10
        )


def check_hess(model: keft.Model) -> None:
    """Hess is the second derivative of Q: contracted with V = sum_i h_i h_i, it is the sum of those along the h_i."""
    V = jnp.einsum("iab,icd->abcd", DIRECTIONS, DIRECTIONS)
    second = sum(directional_derivatives(model, KERNEL, h)[1] for h in DIRECTIONS)
    np.testing.assert_allclose(model.hess(KERNEL, V), second, rtol=1e-9, atol=1e-9)


# The derivatives of each activation meet oracles in test_activations: here one smooth activation and one with a kink.
@pytest.mark.parametrize(
    "name",
    ["Erf", "ReLU", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Tanh", "Sin", "GELU", "LeakyReLU"))],
)
def test_chi_and_hess_are_derivatives_of_the_kernel_map(name):
    check_chi(model(name))
    check_hess(model(name))


class WrongChi(keft.Model):
    def chi(self, K, h):
        return 1.1 * super().chi(K, h)


class WrongHess(keft.Model):
    def hess(self, K, V):
        return 1.001 * super().hess(K, V)


@pytest.mark.parametrize(("wrong", "check"), [(WrongChi, check_chi), (WrongHess, check_hess)])
def test_a_wrong_derivative_is_noticed(wrong, check):
    check(keft.Model(keft.Erf(), C_W, C_b))
    with pytest.raises(AssertionError):
        check(wrong(keft.Erf(), C_W, C_b))


@pytest.mark.parametrize("name", [pytest.param("Tanh", marks=pytest.mark.slow), "GELU"])
def test_entries_of_chi(name):
    """dQ_ab / dK_ab = C_W E[s'_a s'_b], dQ_ab / dK_aa = 1/2 C_W E[s''_a s_b], dQ_aa / dK_aa = 1/2 C_W E[(s^2)'']."""
    case, unit = SMOOTH[name], np.eye(4)
    chi = eqx.filter_vmap(model(name).chi, in_axes=(None, 0))
    for a, b in [(0, 1), (0, 2), (1, 3)]:
        k_aa, k_bb = float(KERNEL[a, a]), float(KERNEL[b, b])
        M = C_W * pair_moments(case, k_aa, k_bb, float(KERNEL[a, b]) / np.sqrt(k_aa * k_bb))
        M_aa = C_W * pair_moments(case, k_aa, k_aa, 1.0)
        h = jnp.array([np.outer(unit[a], unit[b]) + np.outer(unit[b], unit[a]), np.outer(unit[a], unit[a])])
        along_ab, along_aa = chi(KERNEL, h)
        np.testing.assert_allclose(along_ab[a, b], M[1, 1], rtol=1e-10)
        np.testing.assert_allclose([along_aa[a, b], along_aa[a, a]], [M[2, 0] / 2, M_aa[2, 0] + M_aa[1, 1]], rtol=1e-10)
        assert jnp.count_nonzero(along_ab) == 2


@pytest.mark.parametrize("name", ["GELU", pytest.param("ReLU", marks=pytest.mark.thorough)])
def test_inputs_may_be_renamed_and_left_out(name):
    """Entry ab depends on inputs a and b alone, in whatever order and company they come."""
    ours, chosen = model(name), np.array([3, 0, 2])
    K, h = KERNEL[chosen][:, chosen], DIRECTIONS[0][chosen][:, chosen]
    np.testing.assert_allclose(ours.Q(K), ours.Q(KERNEL)[chosen][:, chosen], rtol=1e-12)
    np.testing.assert_allclose(ours.chi(K, h), ours.chi(KERNEL, DIRECTIONS[0])[chosen][:, chosen], rtol=1e-12)
    V, V_chosen = jnp.einsum("ab,cd->abcd", KERNEL, KERNEL), jnp.einsum("ab,cd->abcd", K, K)
    np.testing.assert_allclose(ours.hess(K, V_chosen), ours.hess(KERNEL, V)[chosen][:, chosen], rtol=1e-11, atol=1e-12)


def test_inputs_may_be_renamed_and_left_out_of_a_sum():
    """The same where moments are summed: only one of the two inputs of a strongly correlated pair is integrated over
    first."""
    ours, chosen = model("Tanh"), np.array([3, 2, 0])
    K, h = KERNEL[chosen][:, chosen], DIRECTIONS[0][chosen][:, chosen]
    np.testing.assert_allclose(ours.chi(K, h), ours.chi(KERNEL, DIRECTIONS[0])[chosen][:, chosen], rtol=1e-12)


@pytest.mark.parametrize("name", ["Tanh", "Sin", "Erf", "Linear"])
def test_an_odd_activation_knows_no_sign(name):
    """Inputs times -1: rows and columns of Q change sign, except for the biases."""
    sign = jnp.array([1.0, -1.0, -1.0, 1.0])
    flip = jnp.outer(sign, sign)
    odd = keft.Model(ACTIVATIONS[name], C_W)
    np.testing.assert_allclose(odd.Q(flip * KERNEL), flip * odd.Q(KERNEL), rtol=1e-12)


@pytest.mark.parametrize("name", KINKED)
def test_a_kinked_activation_knows_no_scale(name):
    """s(c x) = c s(x) for c > 0: Q(c K) = c Q(K), so that chi K = Q and chi does not change with c."""
    ours = keft.Model(ACTIVATIONS[name], C_W)
    np.testing.assert_allclose(ours.Q(2.3 * KERNEL), 2.3 * ours.Q(KERNEL), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(ours.chi(2.3 * KERNEL, KERNEL), ours.Q(KERNEL), rtol=1e-12, atol=1e-14)


def test_variances_enter_linearly():
    slope = jax.jacfwd(lambda C: keft.Model(keft.Erf(), C[0], C[1]).Q(KERNEL))(jnp.array([C_W, C_b]))
    np.testing.assert_allclose(slope[..., 0], keft.Model(keft.Erf(), 1.0).Q(KERNEL), rtol=1e-13)
    np.testing.assert_array_equal(slope[..., 1], jnp.ones((4, 4)))


@pytest.mark.parametrize("name", ["Tanh", "ReLU", pytest.param("GELU", marks=pytest.mark.slow)])
def test_the_next_covariance_is_positive_semi_definite(name):
    """Q of any kernel is the covariance of something: for random kernels of any rank, variances from 1e-3 to 30."""
    Q = eqx.filter_jit(model(name).Q)

    @given(st.integers(0, 10_000), st.integers(1, 4))
    def check(seed, rank):
        random = np.random.default_rng(seed)
        x = random.normal(size=(4, rank))
        x *= np.sqrt(
            np.exp(random.uniform(np.log(1e-3), np.log(30), size=(4, 1))) / np.sum(x**2, axis=1, keepdims=True)
        )
        result = Q(jnp.asarray(x @ x.T))
        np.testing.assert_array_equal(result, result.T)
        assert np.linalg.eigvalsh(result).min() > -1e-12 * np.trace(result)

    check()


# --- the model against the table --------------------------------------------------------------------------------------


@eqx.filter_jit
def kernel_after(model, K0, h, layers):
    return jax.lax.fori_loop(0, layers, lambda _, K: K + h * model.Q(K), K0)


@pytest.mark.parametrize("problem", select("K0", "layers"), ids=lambda p: p.name)
def test_kernel_of_layers(problem):
    """K' = K + eps^2 Q(K), layer by layer, against neural-tangents and closed forms."""
    known = problem.known["K0"]
    for layer, value in zip(problem.depth["layers"], known.value, strict=True):
        found = kernel_after(problem.model, jnp.asarray(problem.K0), problem.depth["eps"] ** 2, layer)
        np.testing.assert_allclose(found, value, rtol=0, atol=known.rtol * np.abs(value).max())


# --- the table itself -------------------------------------------------------------------------------------------------


def test_neural_tangents_made_twice():
    """Numbers made elsewhere with jax 0.4.23; the file was made with jax 0.4.30."""
    earlier = {
        "Erf": (2.1190259952, 0.6309188276),
        "ReLU": (2.2100660203, 0.7025309816),
        "GELU": (2.1937450994, 0.6807098139),
        "Sin": (2.0983331096, 0.6166810639),
    }
    known = {
        p.name.split()[-1]: p.known["K0"].value[0] for p in PROBLEMS if p.name.startswith("neural-tangents published")
    }
    for name, values in earlier.items():
        np.testing.assert_allclose(known[name][0, :2], values, atol=1e-10)


@pytest.mark.parametrize("problem", select("V4_g_only", "closed form", "continuum"), ids=lambda p: p.name)
def test_linear_networks_solved_by_hand(problem):
    """By a general integrator, in full indices."""
    C_W, C_b = float(problem.model.C_W), float(problem.model.C_b)

    def rates(t, state):
        K, V = state[:9].reshape(3, 3), state[9:].reshape(3, 3, 3, 3)
        Q = C_b + C_W * K
        return np.concatenate([Q.ravel(), (2 * C_W * V + sigma(K, Q)).ravel()])

    start = np.concatenate([problem.K0.ravel(), wick(problem.K0).ravel()])
    states = solve_ivp(
        rates, (0, problem.depth["ts"][-1]), start, "DOP853", problem.depth["ts"], rtol=1e-12, atol=1e-12
    ).y.T
    np.testing.assert_allclose(problem.known["K0"].value.reshape(-1, 9), states[:, :9], rtol=1e-10)
    np.testing.assert_allclose(problem.known["V4"].value.reshape(-1, 81), states[:, 9:], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "case"), [("sine", "Sin"), pytest.param("published", "Tanh", marks=pytest.mark.thorough)]
)
def test_continuum_is_the_limit_of_layers(name, case):
    """8, 16 and 32 layers, extrapolated to none of any thickness: what is left is O(eps^6)."""
    (problem,) = [p for p in PROBLEMS if p.name == name]
    t, C_W = problem.depth["ts"][0], float(problem.model.C_W)
    rows = [one_input_layers(SMOOTH[case], C_W, 0.0, float(problem.K0[0, 0]), np.sqrt(t / l), l) for l in (8, 16, 32)]
    for quantity, known in problem.known.items():
        coarse, middle, fine = (row[quantity][-1] for row in rows)
        limit = (8 * fine - 6 * middle + coarse) / 3
        np.testing.assert_allclose(limit, known.value[0].item(), rtol=3e-4 if quantity.startswith("K1") else 1e-5)
        assert abs(fine / limit - 1) > 5e-4  # one layer count alone would not do


def test_layers_known_from_elsewhere():
    """tanh, C_W = 2, K0(0) = 2, eps = 0.5, 8 layers: a HermiteTower of degree 90, written apart from this, to its
    digits."""
    (problem,) = [p for p in PROBLEMS if p.name == "Tanh layers"]
    found = [problem.known[q].value[-1].item() for q in ("K0", "V4", "K1")]
    np.testing.assert_allclose(found, [4.3322839, 47.3969, -0.34284], atol=5e-5)
    np.testing.assert_allclose(found[0], 4.3322839, atol=5e-8)


@pytest.mark.parametrize(
    ("name", "case", "row", "layers", "time"), [("relu", None, 1, 25, 0.5), ("GELU layers", "GELU", 1, 4, 1.0)]
)
def test_table_against_sampled_networks(name, case, row, layers, time):
    """The law of a layer, sampled: n = 128, 20,000 networks. The standard error of V4 is 1.1 %, 1/n and eps leave 2.5
    %.

    The distance of 7 % that is allowed is four standard errors beyond that, a false alarm once in 20,000 seeds (and the
    seed is fixed). The equations of GOnly, which differ by 14 % and more, fail.
    """
    (problem,) = [p for p in PROBLEMS if p.name == name]
    s = (lambda x: SMOOTH[case].s(x, 0)) if case else (lambda x: np.maximum(x, 0))
    C_W, C_b = float(problem.model.C_W), float(problem.model.C_b)
    h, n, random, G = time / layers, 128, np.random.default_rng(1), []
    for _ in range(8):
        phi = np.sqrt(problem.K0[0, 0]) * random.standard_normal((2500, n), dtype=np.float32)
        for _ in range(layers):
            Q = C_b + C_W * np.mean(s(phi) ** 2, axis=1, keepdims=True)
            phi += np.sqrt(h * Q, dtype=np.float32) * random.standard_normal(phi.shape, dtype=np.float32)
        G.append(np.mean(np.square(phi, dtype=np.float64), axis=1))
    V4 = n * np.var(np.concatenate(G))
    assert abs(V4 / problem.known["V4"].value[row].item() - 1) < 0.07
    assert abs(V4 / problem.known["V4_g_only"].value[row].item() - 1) > 0.07


# --- data -------------------------------------------------------------------------------------------------------------


def test_input_kernel():
    x = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]])
    np.testing.assert_allclose(keft.input_kernel(x), [[2.5, 0.5, 1.0], [0.5, 5.0, -0.5], [1.0, -0.5, 0.5]], rtol=1e-15)
    np.testing.assert_allclose(keft.input_kernel(x, C_W=2.0, C_b=0.5), 0.5 + 2 * keft.input_kernel(x), rtol=1e-15)
    assert keft.input_kernel(x.astype(jnp.float32), 2.0, 0.5).dtype == jnp.float32
    assert jnp.issubdtype(keft.input_kernel(jnp.array([[1, 2], [3, 4]])).dtype, jnp.floating)


def test_a_branch_of_several_parts_has_no_single_activation():
    with pytest.raises(AttributeError, match="no single activation: see `branch`"):
        _ = keft.Model([keft.Dense(1.0), keft.Erf(), keft.Dense(2.0)]).activation
