"""Many inputs: every part of the theory gives a pair among many inputs the numbers that the pair has alone."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.activations.series import by_series
from kernel_eft_jax.closures import base, pair_tower
from kernel_eft_jax.closures.base import COPIES
from kernel_eft_jax.closures.pair_tower import PairTower
from kernel_eft_jax.expectations.hermite_modes import frame, pair_functions, rotate
from kernel_eft_jax.expectations.two_inputs import read_pair, rotate_lower, rotate_lower_rate
from kernel_eft_jax.inference.likelihood import kernel_moments, moments_by_pairs, settle
from kernel_eft_jax.pairs import pack, pair_table
from kernel_eft_jax.trajectory import many

K0 = np.array([[2.0, 0.6, -0.4], [0.6, 1.5, 0.9], [-0.4, 0.9, 1.2]])
TANH = keft.Model(keft.Tanh(), C_W=2.0)
ERF, SIN = (keft.Model(s, C_W=2.0, C_b=0.1, decay=0.5) for s in (keft.Erf(), keft.Sin()))


# Of erf the same is held below, with what `solve_pairs` gives. Smooth functions and kinked ones are read in two ways,
# and both ways are compared below; the maps behind the first matrix are those of all closures.
@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        ERF,
        keft.Model(keft.ReLU(), C_W=2.0),
        keft.Model(keft.Tanh(), C_W=2.0, C_b=0.1, decay=0.5),
        keft.Model([keft.Erf(), keft.Dense(1.5, 0.1), keft.Linear(), keft.Dense(2.0)]),
    ],
    ids=["erf", "relu", "tanh", "chain"],
)
def test_the_tower_of_a_pair_is_the_tower_of_two_inputs(model):
    """One set of modes for a pair holds those of each input: layers agree with `HermiteTower` to rounding, bounds
    included."""
    full, pair = (
        keft.solve(model, K0[:2, :2], layers=[1, 3], eps=0.5, closure=closure)
        for closure in (keft.HermiteTower(4), PairTower(4))
    )
    for name in ("K0", "V4", "K1"):
        np.testing.assert_allclose(getattr(pair, name), getattr(full, name), rtol=1e-9, atol=1e-11)
    for name in ("V4", "K1"):
        expected = np.asarray(getattr(full.truncation, name))
        np.testing.assert_allclose(getattr(pair.truncation, name), expected, rtol=1e-6, atol=1e-9)


def test_closures_for_two_inputs():
    """The exact closure has a cheaper one for two inputs, of its own degree; other closures have none."""
    assert keft.HermiteTower(4).for_two_inputs() == PairTower(4)
    assert keft.HermiteTower().for_two_inputs() == PairTower()
    assert keft.GOnly().for_two_inputs() == keft.GOnly()


def test_the_memory_of_a_pair_counts_its_modes_and_the_nodes_of_the_plane():
    """A solve holds several copies of the state, whatever the degree, and the tables over the finer nodes."""
    few, many_modes = PairTower(4), PairTower(60)
    state = jax.eval_shape(many_modes.init, TANH, jnp.ones(3))
    copies = COPIES * sum(x.size for x in jax.tree.leaves(state))
    nodes = 2 * pair_tower.NUMBERS_A_NODE * np.prod(pair_tower.FINER_NODES)
    assert many_modes.numbers(TANH, 2) - nodes >= copies
    assert few.numbers(TANH, 2) > nodes


def test_functions_with_kinks_are_not_read_again_for_their_error(monkeypatch):
    """They are read without the nodes of the plane, so that finer ones would change nothing."""
    monkeypatch.setattr(pair_tower, "read_pair", None)
    model, k = keft.Model(keft.ReLU(), C_W=2.0), pack(jnp.asarray(K0[:2, :2]))
    assert PairTower(4).error(model, k) == model.error(k)


@pytest.mark.thorough
def test_the_drift_is_the_derivative_of_a_layer():
    """The modes of thin layers turn by the generator of `rotate_lower`: written out, and by differentiating a layer.

    The bound of the tail decays at the slowest rate of all directions, which is that of a thin layer and of no
    derivative: singular values meet.
    """
    closure = PairTower(5)

    @jax.jit
    def rates(k):
        state = closure.init(ERF, k)
        for _ in range(2):
            state = closure.step(ERF, state, jnp.asarray(0.2))
        thin = (closure.step(ERF, state, jnp.asarray(1e-6)).bounds.tail - state.bounds.tail) / 1e-6
        return closure.drift(ERF, state), keft.Closure.drift(closure, ERF, state), thin

    written, derived, thin = rates(pack(jnp.asarray(K0[:2, :2])))
    np.testing.assert_allclose(written.bounds.tail, thin, rtol=1e-4)
    written, derived = (rate._replace(bounds=rate.bounds._replace(tail=0, steep=0)) for rate in (written, derived))
    for x, y in zip(jax.tree.leaves(written), jax.tree.leaves(derived), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


def test_turning_modes_by_the_binomial_theorem():
    """Sym^m of a lower triangular matrix: the recursion from degree to degree gives the same, and the rate is its
    derivative."""
    rng = np.random.default_rng(0)
    R, rate = (jnp.asarray(np.tril(rng.standard_normal((2, 2)))) for _ in range(2))
    exists = np.arange(1, 10)[:, None] >= np.arange(10)
    w = jnp.asarray(np.where(exists, rng.standard_normal((3, 9, 10)), 0))
    np.testing.assert_allclose(rotate_lower(R, w), rotate(R, w), rtol=1e-10, atol=1e-12)
    identity = jnp.eye(2)
    derivative = jax.jvp(lambda R: rotate_lower(R, w), (identity,), (rate,))[1]
    np.testing.assert_allclose(rotate_lower_rate(rate, w), derivative, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(keft.Tanh(), marks=pytest.mark.thorough),
        pytest.param(keft.ReLU(), marks=pytest.mark.thorough),
        pytest.param(keft.GELU(), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_the_tables_of_a_pair_are_right(activation):
    """Equidistant nodes for psi_2 give the moments, the coefficients and the norms that the general rules give, at high
    correlation too."""

    @jax.jit
    def both(k):
        read, expected = read_pair(activation, k, 10, (48, 192)), pair_functions(activation, frame(k), 10)
        return read, expected, activation.expansion(k)

    for rho in (0.2, -0.9, 0.999):
        k = pack(jnp.asarray([[2.0, 3.0**0.5 * rho * 2**0.5], [3.0**0.5 * rho * 2**0.5, 3.0]]))
        (found, read), expected, expansion = both(k)
        for x, y in zip(found, expansion, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(read.value[1], expected.value[1], atol=1e-8)
        np.testing.assert_allclose(read.second[1], expected.second[1], atol=1e-7)
        np.testing.assert_allclose(read.value[0, :, 0], expected.value[0, :, 0], atol=1e-8)
        np.testing.assert_allclose(read.value_tail, expected.value_tail, rtol=1e-6)
        np.testing.assert_allclose(read.second_tail[1], expected.second_tail[1], rtol=1e-6)


@pytest.mark.thorough
def test_a_norm_of_zero_has_a_finite_derivative():
    """The second derivatives of Linear are zero or constant, so that nothing is left beyond the degree."""
    read = jax.jit(jax.jacfwd(lambda k: read_pair(keft.Linear(), k, 2, (48, 192))))(jnp.array([1.0, 0.4, 1.3]))
    assert all(jnp.isfinite(x).all() for x in read[1])


OF_ONE_PAIR = [(0, 0, 0, 1), (0, 0, 1, 1), (0, 1, 1, 1)]


@pytest.fixture(scope="module")
def layered():
    settings = {"closure": keft.HermiteTower(4), "quadruples": OF_ONE_PAIR, "progress": False}
    return keft.solve_pairs(ERF, K0, layers=[1, 3], eps=0.5, **settings)


@pytest.mark.thorough
def test_pairs_have_the_numbers_that_they_have_alone(layered):
    """K0, K1, variances and errors of the pairs of three inputs are those that `solve` gives two inputs, and so are the
    covariances of the entries of a pair: one set of modes for a pair holds those of each input."""
    for a, b in ((0, 1), (0, 2), (1, 2)):
        places = [a, b]
        alone = keft.solve(ERF, K0[np.ix_(places, places)], layers=[1, 3], eps=0.5, closure=keft.HermiteTower(4))
        expected = {"K0": alone.K0, "K1": alone.K1, "variance": np.einsum("tabab->tab", alone.V4)}
        for name, value in expected.items():
            found = getattr(layered, name)[:, places][:, :, places]
            np.testing.assert_allclose(found, value, rtol=1e-8, atol=1e-10, err_msg=name)
        found = layered.K1_truncation[:, places][:, :, places]
        np.testing.assert_allclose(found, alone.truncation.K1, rtol=1e-6, atol=1e-9)
        found, expected = layered.variance_truncation, np.einsum("tabab->tab", alone.truncation.V4)
        np.testing.assert_allclose(found[:, places][:, :, places], expected, rtol=1e-6, atol=1e-9)
        if (a, b) == (0, 1):
            V4, bound = (np.stack([x[:, *of] for of in OF_ONE_PAIR], axis=1) for x in (alone.V4, alone.truncation.V4))
            np.testing.assert_allclose(layered.V4, V4, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(layered.V4_truncation, bound, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(layered.ts, [0.25, 0.75])


CHOSEN = [(0, 1, 2, 2), (1, 1, 0, 0), (0, 1, 0, 2)]
BY_KERNEL = {"layers": [1, 3], "eps": 0.5, "closure": keft.GOnly()}


@pytest.fixture(scope="module")
def by_kernel():
    return keft.solve_pairs(SIN, K0, **BY_KERNEL, quadruples=CHOSEN, progress=False)


@pytest.mark.parametrize("solution", ["by_kernel", pytest.param("layered", marks=pytest.mark.thorough)])
def test_pairs_are_saved_and_loaded(solution, tmp_path, request):
    """A file gives back the numbers and what made them, with and without truncation errors."""
    found = request.getfixturevalue(solution)
    again = keft.load(found.save(tmp_path / "pairs.nc"))
    for name in ("ts", "K0", "K1", "variance", "K1_truncation", "V4", "quadruples"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert repr(again) == repr(found)
    assert again.layers == (1, 3)


def test_pairs_and_quadruples_have_the_numbers_of_the_whole(by_kernel):
    """K0, K1, variances and chosen entries of three inputs, layer by layer: those of the three inputs together."""
    chosen, found = CHOSEN, by_kernel
    whole = keft.solve(SIN, K0, **BY_KERNEL)
    np.testing.assert_allclose(found.K0, whole.K0, rtol=1e-5)
    np.testing.assert_allclose(found.K1, whole.K1, atol=1e-5)
    np.testing.assert_allclose(found.variance, np.einsum("tabab->tab", whole.V4), rtol=1e-5)
    expected = np.stack([whole.V4[:, *quadruple] for quadruple in chosen], axis=1)
    np.testing.assert_allclose(found.V4, expected, rtol=1e-5)
    assert found.K1_truncation is None


@pytest.mark.thorough
def test_pairs_in_single_precision():
    """Every number has the dtype of the kernel, the entries of chosen quadruples too."""
    depth = {"layers": [1], "eps": 0.5, "closure": keft.GOnly(), "progress": False}
    found = keft.solve_pairs(SIN, K0.astype(np.float32), **depth, quadruples=[(0, 1, 2, 2)])
    numbers = (found.ts, found.K0, found.K1, found.variance, found.V4, found.expectation_error)
    assert {x.dtype for x in numbers} == {jnp.dtype("float32")}


@pytest.mark.thorough
def test_pairs_at_depth_times():
    """Linear networks: K0 grows by exp(C_W t), and Var(G_ab) = (1 + 2 C_W t) (K_aa K_bb + K_ab^2) / n, to the solver's
    tolerance; chosen entries likewise."""
    found = keft.solve_pairs(
        keft.Model(keft.Linear(), 0.7), K0, [0.5, 1.0], closure=keft.GOnly(), quadruples=[(0, 1, 0, 1)], progress=False
    )
    t = np.array([0.5, 1.0])[:, None, None]
    K = np.exp(0.7 * t) * K0
    squares = np.einsum("taa->ta", K)
    variance = (1 + 1.4 * t) * (squares[:, :, None] * squares[:, None, :] + K**2)
    np.testing.assert_allclose(found.K0, K, rtol=1e-5)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(found.V4[:, 0], variance[:, 0, 1], rtol=1e-5)
    np.testing.assert_allclose(found.ts, [0.5, 1.0])
    assert found.eps is None


def test_what_is_refused():
    """Arguments are checked at the door in the words of `solve`, and memory before any work."""
    with pytest.raises(ValueError, match="`ts` is missing"):
        keft.solve_pairs(ERF, K0)
    with pytest.raises(ValueError, match="`quadruples` must name inputs from 0 to 2"):
        keft.solve_pairs(ERF, K0, layers=[1], eps=0.5, quadruples=[(0, 1, 2, 3)])
    with pytest.raises(ValueError, match="`quadruples` must be a list"):
        keft.solve_pairs(ERF, K0, layers=[1], eps=0.5, quadruples=[(0, 1)])
    with pytest.raises(ValueError, match="`closure` must be a Closure object"):
        keft.solve_pairs(ERF, K0, layers=[1], eps=0.5, closure="GOnly")
    with pytest.raises(MemoryError, match="depths need about"):
        keft.solve_pairs(ERF, np.eye(1000), layers=range(100_000), eps=0.5, closure=keft.GOnly())


@pytest.mark.thorough
def test_a_failing_pair_is_named():
    """Kernels that grow by 1e40 a layer end: the error says which inputs, and what `solve` says of them."""
    model = keft.Model(keft.Linear(), C_W=1e40)
    with pytest.raises(RuntimeError, match="Of the inputs"):
        keft.solve_pairs(model, K0, layers=[12], eps=1.0, closure=keft.GOnly(), progress=False)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (
            [[0, 1], [0, 2], [1, 2]],
            "inputs 0 and 2 .* the expectations by the table of nodes have .* error of 0.02. Take",
        ),
        ([[0], [1], [2]], "inputs 1 .* the expectations have an estimated relative error of 0.02. Take"),
    ],
    ids=["pairs", "single inputs"],
)
def test_the_error_that_is_reported_is_that_of_the_inputs_named(members, sentence):
    """Where `solve` for the inputs alone succeeds: the first inputs that fail, not the worst; only pairs have a
    table."""
    layers, count = {"layers": (1,), "stepsize_controller": None}, len(members)
    problem = keft.Model(keft.Linear(), 1.0), jnp.asarray(K0), None, jnp.asarray(0.5), layers, keft.GOnly()
    moments = jnp.ones((count, 1, 1)), jnp.ones((count, 1, 1, 1)), jnp.ones((count, 1, 1))
    entries = many.Entries(moments, None, jnp.asarray([1e-9, 0.02, 0.5]), jnp.ones(count, bool))
    with pytest.raises(RuntimeError, match=sentence):
        many._check(*problem, np.asarray(members), jax.tree.map(np.asarray, entries))


series = eqx.filter_jit(by_series)


@pytest.mark.thorough
def test_the_series_of_many_inputs_is_the_sum_over_the_plane():
    """Mehler's series, where its own bound allows it, and the sum over the plane where inputs are too alike: the
    moments of each pair alone."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 20))
    alike = np.concatenate([x[:7], x[:1]])
    for features, by_which in ((x, "series"), (alike, "plane")):
        K = np.asarray(keft.input_kernel(features, C_W=2.0))
        a, b = np.triu_indices(8, 1)
        _, beyond = series(keft.Tanh(), jnp.stack([K[a, a], K[b, b], K[a, b]], axis=1))
        assert (jnp.max(beyond) < 1e-11) == (by_which == "series")
        together = TANH.Q(K)
        for i, j in ((0, 1), (3, 6), (0, 7)):
            alone = TANH.Q(K[np.ix_([i, j], [i, j])])
            np.testing.assert_allclose(together[np.ix_([i, j], [i, j])], alone, rtol=1e-11)


def test_a_function_of_ones_own_at_many_inputs_is_its_closed_form():
    """E[sin sin] = exp(-(k_aa + k_bb) / 2) sinh(k_ab) and its derivative by k_ab, from the 28 pairs of eight inputs."""
    k_aa, k_bb, rho = np.random.default_rng(0).uniform([[0.1], [0.1], [-0.7]], [[2.0], [2.0], [0.7]], (3, 28))
    k_ab = rho * np.sqrt(k_aa * k_bb)
    found = eqx.filter_jit(lambda s, k: s.between(k))(keft.Smooth(jnp.sin), jnp.stack([k_aa, k_bb, k_ab], axis=1))
    size = np.exp(-(k_aa + k_bb) / 2)
    np.testing.assert_allclose(found.value, size * np.sinh(k_ab), atol=1e-11)
    np.testing.assert_allclose(found.gradient[:, 2], size * np.cosh(k_ab), atol=1e-10)


def test_the_series_bounds_what_it_leaves_out():
    """At high correlation and variance the series is wrong in the digits that its bound says, and not by more."""
    k = jnp.asarray(np.tile([12.0, 12.0, 11.4], (28, 1)))
    found, beyond = series(keft.Tanh(), k)
    exact = jax.jit(keft.Tanh().pair)(*k[0])
    difference = abs(float(found.value[0] / exact.value - 1))
    assert 1e-13 < difference < float(beyond[0])


@pytest.mark.thorough
def test_gradients_through_many_inputs():
    """The slope of Q along a direction, through the series, is that of central differences."""
    K = jnp.asarray(keft.input_kernel(np.random.default_rng(1).standard_normal((8, 30)), C_W=1.5))
    h = jnp.asarray(np.random.default_rng(2).standard_normal((8, 8)))
    h = h + h.T
    slope = jax.jvp(TANH.Q, (K,), (h,))[1]
    step = 1e-5
    np.testing.assert_allclose(slope, (TANH.Q(K + step * h) - TANH.Q(K - step * h)) / (2 * step), atol=1e-8)
    np.testing.assert_allclose(slope, TANH.chi(K, h), rtol=1e-10, atol=1e-12)


def test_the_drift_of_the_kernel_alone():
    """`GOnly` writes its drift out: it is the derivative of a layer by its thickness."""
    closure, model = (
        keft.GOnly(),
        keft.Model([keft.Erf(), keft.Dense(1.5, 0.1), keft.Linear(), keft.Dense(2.0)], decay=0.3),
    )

    @jax.jit
    def rates(k):
        state = closure.step(model, closure.init(model, k), jnp.asarray(0.2))
        return closure.drift(model, state), keft.Closure.drift(closure, model, state)

    written, derived = rates(pack(jnp.asarray(K0)))
    for x, y in zip(jax.tree.leaves(written), jax.tree.leaves(derived), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


class Wider(keft.GOnly):
    """`GOnly` with other variances: those of an entry are (1 + K0)^2 times as large."""

    def moments(self, model, state):
        found = super().moments(model, state)
        size = 1 + found.K0
        return found._replace(V4=found.V4 * size[:, None] * size[None])


@pytest.mark.parametrize("model", [keft.Model(keft.Linear(), 1.5), pytest.param(ERF, marks=pytest.mark.thorough)])
def test_moments_by_pairs_have_the_variances_of_the_pairs(model):
    """By a closure of other variances each entry has the mean and the variance of its pair, with the correlations of
    the kernel alone. Of linear networks the mean is (1 + eps^2 C_W)^l K0."""
    e = keft.Experiment(model, K0, width=64, layers=[1, 3], eps=0.5)
    mean, covariance, _ = jax.tree.map(np.asarray, eqx.filter_jit(kernel_moments)(e, keft.GOnly()))
    by_pairs, weights, _ = eqx.filter_jit(moments_by_pairs)(e, Wider())
    np.testing.assert_allclose(by_pairs, mean, rtol=1e-9)
    if model is not ERF:
        np.testing.assert_allclose(mean, [1.375**l * K0[np.triu_indices(3)] for l in (1, 3)], rtol=1e-12)
    infinite = keft.solve(model, K0, layers=[1, 3], eps=0.5, closure=keft.GOnly()).packed.K0
    size = np.abs(1 + np.asarray(infinite))
    np.testing.assert_allclose(weights, covariance * size[:, :, None, None] * size, rtol=1e-9)


@pytest.mark.thorough
def test_the_correlations_of_the_kernel_alone_are_right_to_a_few_per_cent(layered):
    """Those between the entries of a pair, beside the exact closure's."""
    e = keft.Experiment(ERF, K0, width=64, layers=[1, 3], eps=0.5)
    _, covariance, _ = jax.tree.map(np.asarray, eqx.filter_jit(kernel_moments)(e, keft.GOnly()))
    within = np.stack([covariance[t, :, t] for t in range(2)])
    spread = np.sqrt(np.einsum("tpp->tp", within))
    for (a, b, c, d), V4 in zip(OF_ONE_PAIR, layered.V4.T, strict=True):
        p, q = pair_table(3)[[a, c], [b, d]]
        exact = V4 / np.sqrt(layered.variance[:, a, b] * layered.variance[:, c, d])
        np.testing.assert_allclose(within[:, p, q] / spread[:, p] / spread[:, q], exact, atol=0.05)


@pytest.mark.slow
def test_moments_by_pairs_are_those_of_all_inputs():
    """Means and variances pair by pair are the exact ones; covariances between entries keep their signs and sizes to a
    few per cent."""
    e = keft.Experiment(ERF, K0, width=64, layers=[1, 3], eps=0.4)
    mean, covariance, _ = eqx.filter_jit(kernel_moments)(e, keft.HermiteTower(4))
    by_pairs, weights, _ = eqx.filter_jit(moments_by_pairs)(e, PairTower(4))
    np.testing.assert_allclose(by_pairs, mean, rtol=1e-9)
    exact, found = (np.asarray(C).reshape(12, 12) for C in (covariance, weights))
    np.testing.assert_allclose(np.diagonal(found), np.diagonal(exact), rtol=1e-8)
    size = np.sqrt(np.diagonal(exact))
    assert np.abs((found - exact) / size / size[:, None]).max() < 0.05


def test_kernel_moments_keep_observed_layers_only():
    """A deep network needs no more memory than a shallow one: no array but that of the steps has an axis of layers."""
    e = keft.Experiment(TANH, K0[:2, :2], width=64, layers=[1, 50], eps=0.1)
    program = str(jax.make_jaxpr(lambda K: kernel_moments(eqx.tree_at(lambda e: e.K0, e, K), keft.GOnly()))(e.K0))
    assert re.search(r"f64\[51\]", program)
    assert not re.search(r"\[51,", program)


@pytest.mark.parametrize(
    ("inputs", "layers", "closure", "why"),
    [
        (9, 100, keft.HermiteTower(2), r"GOnly\(\) for 9 inputs at 100 depths, whose cov.* needs .*fewer inputs\.$"),
        (
            1,
            2000,
            keft.GOnly(),
            r"GOnly\(\) for 1 inputs at 2000 depths, with derivatives by 1 parameters, needs .*fewer inputs\.$",
        ),
    ],
    ids=["by pairs", "together"],
)
def test_covariances_between_layers_are_counted_in_the_memory(inputs, layers, closure, why, monkeypatch):
    """(depths * entries)^2 numbers, with or without pairs: 0.3 GiB and 0.06 GiB."""
    monkeypatch.setattr(base, "host_memory", lambda: 2**25)
    e = keft.Experiment(TANH, np.eye(inputs), width=64, layers=range(1, layers + 1), eps=0.1)
    with pytest.raises(MemoryError, match=why):
        settle(e, ("C_W",), closure, False)


@pytest.mark.thorough
def test_the_information_of_many_inputs():
    """Nine inputs of one linear layer, which are read by pairs. With x = eps^2 C_W, E[G] = (1 + x) K0 and n Cov(G, G)
    is ((1 + x)^2 + 2 x + x^2) times Wick(K0), and K0 Wick(K0)^-1 K0 is half the number of inputs.
    """
    K = np.asarray(keft.input_kernel(np.random.default_rng(3).standard_normal((9, 40)), C_W=1.5))
    e = keft.Experiment(keft.Model(keft.Linear(), C_W=1.5), K, width=64, layers=[1], eps=0.5)
    found = keft.fisher(e, ["C_W"], networks=100, closure=keft.HermiteTower(2))
    x = 0.5**2 * 1.5
    expected = 64 * 100 * 0.5**4 * (9 / 2) / ((1 + x) ** 2 + 2 * x + x**2)
    np.testing.assert_allclose(found.matrix, [[expected]], rtol=1e-9)


def linear_kernels(rng, K, C_W, width, eps, networks):
    """Kernels (networks, 1, N, N) of one layer of linear networks: given phi, increments are N(0, C_W G)."""
    phi = np.linalg.cholesky(K) @ rng.standard_normal((networks, len(K), width))
    G = phi @ phi.swapaxes(1, 2) / width
    phi = phi + eps * np.linalg.cholesky(C_W * G) @ rng.standard_normal(phi.shape)
    return (phi @ phi.swapaxes(1, 2) / width)[:, None]


# The information above is made of all that this fit reads.
@pytest.mark.slow
def test_a_fit_of_many_inputs():
    """Nine inputs, 45 entries, which are fitted by pairs: C_W comes back within four of its standard errors, which a
    wrong start and GOnly's weights do not spoil.

    2048 networks of width 64, drawn in NumPy; the false-alarm probability is 1e-4, and an error of C_W of two per cent
    would be seen.
    """
    K = np.asarray(keft.input_kernel(np.random.default_rng(3).standard_normal((9, 40)), C_W=1.5))
    G = linear_kernels(np.random.default_rng(4), K, 2.0, 64, 0.5, 2048)
    e = keft.Experiment(keft.Model(keft.Linear(), C_W=1.5), K, width=64, layers=[1], eps=0.5)
    found = keft.fit(G, e, ["C_W"], closure=keft.HermiteTower(2), progress=False)
    assert abs(found.values[0] - 2.0) < 4 * found.stderr[0]
    assert found.stderr[0] < 0.01
    assert found.p_value > 1e-4


@pytest.mark.slow
def test_a_fit_of_many_inputs_of_a_curved_activation(key):
    """The same for ten inputs of tanh, 55 entries.

    2048 networks of width 64; the false-alarm probability is 1e-4, and an error of C_W of two per cent would be seen.
    """
    K = keft.input_kernel(np.random.default_rng(3).standard_normal((10, 40)), C_W=1.5)
    G = keft.sample_kernels(TANH, K, width=64, depth=3, eps=0.5, networks=2048, key=key, save_at=[3])
    e = keft.Experiment(keft.Model(keft.Tanh(), C_W=1.5), K, width=64, layers=[3], eps=0.5)
    found = keft.fit(np.asarray(G), e, ["C_W"], closure=keft.HermiteTower(6), progress=False)
    assert abs(found.values[0] - 2.0) < 4 * found.stderr[0]
    assert found.stderr[0] < 0.01
    assert found.p_value > 1e-4
