"""`sensitivity`: against closed forms for a linear activation, and central differences of `solve` elsewhere."""

import equinox as eqx
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.figures import plot_sensitivity
from kernel_eft_jax.inference import sensitivity

K0 = np.array([[1.0, 0.3], [0.3, 0.6]])
TS, EPS, LAYERS = np.array([0.32, 0.64]), 0.4, [2, 4]
LINEAR = {"layers": [0, *LAYERS], "eps": EPS, "closure": keft.GOnly()}


@pytest.mark.slow
@pytest.mark.parametrize("closure", [keft.GOnly(), keft.HermiteTower(2)], ids=["two inputs", "one input"])
def test_linear_networks_in_closed_form(closure):
    """K0' = C_b + C_W K0, so K0(t) = K e^(C_W t) + C_b (e^(C_W t) - 1) / C_W."""
    C_W, C_b, N = 1.5, 0.3, 2 if isinstance(closure, keft.GOnly) else 1
    K = K0[:N, :N]
    s = sensitivity(keft.Model(keft.Linear(), C_W, C_b), K, TS, closure=closure)
    t = TS[:, None, None]
    growth = np.exp(C_W * t)
    by_C_W = t * growth * K + C_b * (t * growth / C_W - (growth - 1) / C_W**2)
    by_C_b = np.broadcast_to((growth - 1) / C_W, (2, N, N))
    np.testing.assert_allclose(s["C_W"].K0, by_C_W, rtol=1e-6)
    np.testing.assert_allclose(s["C_b"].K0, by_C_b, rtol=1e-6)
    for i, j in zip(*np.triu_indices(N), strict=True):
        entry = np.zeros((N, N))
        entry[i, j] = entry[j, i] = 1
        np.testing.assert_allclose(s[f"K0[{i}, {j}]"].K0, growth * entry, rtol=1e-6, atol=1e-12)


def test_linear_layers_in_closed_form_and_as_elasticities():
    """Without biases K0 = (1 - eps^2 c + eps^2 C_W)^l K: one per cent of eps is two of C_W at c = 0, one of K is one of
    K0 and two of V4."""
    C_W, eps, layers = 1.5, EPS, np.array([0, *LAYERS])
    s = sensitivity(keft.Model(keft.Linear(), C_W), [[1.2]], **LINEAR)
    rate = eps**2 * C_W
    relative = layers * rate / (1 + rate)
    np.testing.assert_allclose(s.elasticity("C_W").K0[:, 0, 0], relative, rtol=1e-10)
    np.testing.assert_allclose(s.elasticity("eps").K0[:, 0, 0], 2 * relative, rtol=1e-10)
    by_decay = -layers * eps**2 / (1 + rate) * s.solution.K0[:, 0, 0]
    np.testing.assert_allclose(s["decay"].K0[:, 0, 0], by_decay, rtol=1e-10)
    np.testing.assert_allclose(s["eps"].K0[:, 0, 0], 2 * relative / eps * s.solution.K0[:, 0, 0], rtol=1e-10)
    np.testing.assert_allclose(s.elasticity("K0[0, 0]").K0, 1, rtol=1e-10)
    np.testing.assert_allclose(s.elasticity("K0[0, 0]").V4, 2, rtol=1e-10)
    slopes = f"{s['C_W'].K0[-1, 0, 0]:.6g}, {s['C_W'].V4[-1, 0, 0, 0, 0]:.6g}, 0 at the last depth"
    assert f"C_W = 1.5: d K0[00], V4[00,00], K1[00] = {slopes}" in repr(s)
    # K1 is zero, and so are its derivatives: no NaN from 0 / 0.
    np.testing.assert_array_equal(s.elasticity("C_W").K1, 0)


def one_matrix(values):
    input_scale, output_scale, C_W, C_b, decay = values
    return keft.Model(keft.Scaled(keft.Sin(), input_scale, output_scale), C_W, C_b, decay=decay)


def gated(values):
    C_1, b_1, input_scale, output_scale, C_2, b_2, decay = values
    gate = keft.GLU(keft.Scaled(keft.Sin(), input_scale, output_scale))
    return keft.Model([keft.RMSNorm(), keft.Dense(C_1, b_1, ratio=2), gate, keft.Dense(C_2, b_2)], decay=decay)


def gate_alone(values):
    C_1, b_1, input_scale, output_scale, C_2, b_2, decay = values
    gate = keft.GLU(keft.Scaled(keft.Sin(), input_scale, output_scale))
    return keft.Model([keft.Dense(C_1, b_1, ratio=2), gate, keft.Dense(C_2, b_2)], decay=decay)


ONE = ("activation.input_scale", "activation.output_scale", "C_W", "C_b", "decay")
GATED = (
    "branch[1].C_W",
    "branch[1].C_b",
    "branch[2].activation.input_scale",
    "branch[2].activation.output_scale",
    "branch[3].C_W",
    "branch[3].C_b",
    "decay",
)
GATE_ALONE = tuple(name.replace("[1]", "[0]").replace("[2]", "[1]").replace("[3]", "[2]") for name in GATED)
PAIR = [1.0, 0.3, 0.6]


def thorough(*values):
    """Parameters of a test that `make thorough` runs."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def slow(*values):
    """Parameters of a test that only `make slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("build", "names", "values", "closure", "eps", "kernel"),
    [
        thorough(one_matrix, ONE, [1.1, 0.9, 1.5, 0.3, 0.5], keft.GOnly(), None, PAIR),
        thorough(
            gate_alone, GATE_ALONE, [1.2, 0.1, 0.9, 1.1, 2.0, 0.3, 0.5], keft.GOnly(), [0.3, 0.5, 0.2, 0.4], [1.0]
        ),
        slow(one_matrix, ONE, [1.1, 0.9, 1.5, 0.3, 0.5], keft.GOnly(), EPS, PAIR),
        slow(one_matrix, ONE, [1.1, 0.9, 1.5, 0.3, 0.5], keft.HermiteTower(5), EPS, [1.0]),
        slow(gated, GATED, [1.2, 0.1, 0.9, 1.1, 2.0, 0.3, 0.5], keft.GOnly(), EPS, PAIR),
        slow(gated, GATED, [1.2, 0.1, 0.9, 1.1, 2.0, 0.3, 0.5], keft.HermiteTower(2), [0.3, 0.5, 0.2, 0.4], PAIR),
    ],
)
def test_every_derivative_is_the_limit_of_differences(build, names, values, closure, eps, kernel):
    """By every leaf of the model, entry of the kernel and eps; in the continuum, layers, and layers of their own
    eps."""
    point = np.array([*values, *kernel, *([eps] if np.ndim(eps) == 0 and eps else [])])

    def at(point):
        k = point[len(values) : len(values) + len(kernel)]
        K = np.array([[k[0], k[1]], [k[1], k[2]]]) if len(k) == 3 else np.array([[k[0]]])
        step = point[-1] if len(point) > len(values) + len(kernel) else eps
        return build(point[: len(values)]), K, {"ts": TS} if eps is None else {"layers": LAYERS, "eps": step}

    def solved(point):
        model, K, how = at(point)
        solution = keft.solve(model, K, closure=closure, **how)
        return [np.asarray(part) for part in (solution.K0, solution.V4, solution.K1)]

    model, K, how = at(point)
    s = sensitivity(model, K, closure=closure, **how)
    entries = ["K0[0, 0]", "K0[0, 1]", "K0[1, 1]"] if len(kernel) == 3 else ["K0[0, 0]"]
    assert s.names == (*names, *entries, *(["eps"] if np.ndim(eps) == 0 and eps else []))
    np.testing.assert_array_equal(s.values, point)
    # Errors measured, relative to the largest derivative of each quantity: by layers 1e-10, the rest of Richardson's
    # differences (at three times the step 81 times more); in the continuum 1e-6, of the solver at its tolerance of
    # 1e-8.
    step, tolerance = 1e-3, 3e-6 if eps is None else 1e-9
    largest = [np.abs(part).max() for part in solved(point)]
    for name, shift in zip(s.names, step * np.eye(len(point)), strict=True):
        ups = [solved(point + j * shift) for j in (1, -1, 2, -2)]
        for derivative, size, up, down, far_up, far_down in zip(s[name], largest, *ups, strict=True):
            differences = (8 * (up - down) - (far_up - far_down)) / (12 * step)
            atol = tolerance * max(np.abs(differences).max(), 1e-3 * size)
            np.testing.assert_allclose(derivative, differences, rtol=0, atol=atol, err_msg=name)


def test_a_plain_network_has_no_derivative_by_its_skip():
    """decay eps^2 = 1: K0 = C_W^l K. The skip a is zero, and a itself has no derivative by decay and eps there."""
    s = sensitivity(keft.Model(keft.Linear(), 1.5, decay=1.0), [[1.2]], **(LINEAR | {"eps": 1.0}))
    assert s.names == ("C_W", "C_b", "K0[0, 0]")
    np.testing.assert_allclose(s["C_W"].K0.ravel(), [0, 2 * 1.5 * 1.2, 4 * 1.5**3 * 1.2], rtol=1e-12)


def test_an_unknown_name_lists_those_that_exist():
    s = sensitivity(keft.Model(keft.Linear(), 1.0), [[1.0]], **LINEAR)
    with pytest.raises(KeyError, match=r"no parameter `width`; there are .*'C_W'"):
        s["width"]


@pytest.mark.parametrize(
    ("C_b", "K", "zero", "less"),
    [
        pytest.param(0.0, np.diag([1.0, 0.6]), "C_b, decay, K0[0, 1]", "K0[1, 1]", marks=pytest.mark.thorough),
        (1e-6, np.eye(1), "decay", "C_b"),
    ],
    ids=["two inputs", "one input"],
)
def test_sensitivities_are_drawn_where_they_matter(C_b, K, zero, less):
    """K0[00] does not depend on the other input's kernel, and hardly on a small bias. Of a bias or an entry of zero
    there is no per cent. The legend says which."""
    s = sensitivity(keft.Model(keft.Linear(), 1.5, C_b), K, **LINEAR)
    assert s["C_b"].K0[-1, 0, 0] > 0.6  # t, and more
    figure = plot_sensitivity(s)
    panels = figure.axes
    for panel in panels[:2]:
        assert panel.get_legend_handles_labels()[1] == ["C_W", "K0[0, 0]", "eps"]
    np.testing.assert_allclose(panels[0].get_lines()[0].get_ydata(), s.elasticity("C_W").K0[:, 0, 0])
    assert [text.get_text() for text in figure.legends[0].get_texts()[-2:]] == [
        f"zero, so no relative change:\n{zero}",
        f"less effect:\n{less}",
    ]
    # K1 of a linear network is zero: nothing is relative to it.
    assert all(np.isnan(line.get_ydata()).all() for line in panels[2].get_lines()[:3])
    assert "zero" in panels[2].texts[0].get_text()


def assert_nothing_is_drawn_at_depth_zero(s):
    drawn = np.asarray(plot_sensitivity(s).axes[2].get_lines()[0].get_ydata())
    assert np.isnan(drawn[0])
    np.testing.assert_allclose(drawn[1:], s.elasticity("C_W").K1[1:, 0, 0])
    assert np.isfinite(drawn[1:]).all()


@pytest.mark.thorough
def test_nothing_is_drawn_relative_to_zero():
    """K1 is zero at depth zero, and a relative derivative there would be 0 / 0."""
    model = keft.Model(keft.Sin(), 1.5)
    assert_nothing_is_drawn_at_depth_zero(sensitivity(model, [[1.2]], layers=[0, 1, 2], eps=EPS, closure=keft.GOnly()))


def test_nothing_is_drawn_relative_to_a_K1_that_starts_at_zero():
    """K1 = -C_W t in place of the zero of linear networks: one per cent of C_W is one per cent of K1, but nothing at
    t = 0."""
    s = sensitivity(keft.Model(keft.Linear(), 1.5), [[1.2]], **LINEAR)
    t = np.asarray(s.solution.ts)[:, None]
    slopes = np.stack([-t * (name == "C_W") for name in s.names])
    s = eqx.tree_at(lambda s: (s.solution.packed.K1, s.packed.K1), s, (-1.5 * t, slopes))
    np.testing.assert_allclose(s.elasticity("C_W").K1[1:, 0, 0], 1)
    assert_nothing_is_drawn_at_depth_zero(s)
