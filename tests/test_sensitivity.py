"""`sensitivity`: against closed forms for a linear activation, and central differences of `solve` elsewhere."""

import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.figures import plot_sensitivity
from kernel_eft_jax.inference import sensitivity

K0 = np.array([[1.0, 0.3], [0.3, 0.6]])
TS = np.array([0.32, 0.64])


def test_linear_networks_in_closed_form():
    """K0' = C_b + C_W K0, so K0(t) = K e^(C_W t) + C_b (e^(C_W t) - 1) / C_W."""
    C_W, C_b = 1.5, 0.3
    s = sensitivity(keft.Model(keft.Linear(), C_W, C_b), K0, TS)
    t = TS[:, None, None]
    growth = np.exp(C_W * t)
    by_C_W = t * growth * K0 + C_b * (t * growth / C_W - (growth - 1) / C_W**2)
    by_C_b = np.broadcast_to((growth - 1) / C_W, (2, 2, 2))
    np.testing.assert_allclose(s["C_W"].K0, by_C_W, rtol=1e-6)
    np.testing.assert_allclose(s["C_b"].K0, by_C_b, rtol=1e-6)
    np.testing.assert_allclose(s["K0[0, 1]"].K0, growth * np.array([[0, 1], [1, 0]]), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(s["K0[1, 1]"].K0, growth * np.array([[0, 0], [0, 1]]), rtol=1e-6, atol=1e-12)


def test_linear_layers_in_closed_form_and_as_elasticities():
    """Without biases K0 = (1 + eps^2 C_W)^l K: one per cent of eps is two of C_W, one of K is one of K0 and two of V4."""
    C_W, eps = 1.5, 0.4
    s = sensitivity(keft.Model(keft.Linear(), C_W), [[1.2]], TS, eps=eps)
    layers, rate = np.rint(TS / eps**2), eps**2 * C_W
    relative = layers * rate / (1 + rate)
    np.testing.assert_allclose(s.elasticity("C_W").K0[:, 0, 0], relative, rtol=1e-10)
    np.testing.assert_allclose(s.elasticity("eps").K0[:, 0, 0], 2 * relative, rtol=1e-10)
    np.testing.assert_allclose(s["eps"].K0[:, 0, 0], 2 * relative / eps * s.solution.K0[:, 0, 0], rtol=1e-10)
    np.testing.assert_allclose(s.elasticity("K0[0, 0]").K0, 1, rtol=1e-10)
    np.testing.assert_allclose(s.elasticity("K0[0, 0]").V4, 2, rtol=1e-10)
    # K1 is zero, and so are its derivatives: no NaN from 0 / 0.
    np.testing.assert_array_equal(s.elasticity("C_W").K1, 0)


def build(point):
    C_W, C_b, input_scale, output_scale, *k = point
    activation = keft.Scaled(keft.Sin(), input_scale, output_scale)
    K = np.array([[k[0], k[1]], [k[1], k[2]]]) if len(k) == 3 else np.array([[k[0]]])
    return keft.Model(activation, C_W, C_b), K


@pytest.mark.parametrize(
    ("closure", "eps", "kernel"),
    [
        (keft.GOnly(), None, [1.0, 0.3, 0.6]),
        (keft.GOnly(), 0.4, [1.0, 0.3, 0.6]),
        (keft.HermiteTower(5), 0.4, [1.0]),
        (keft.SigmaKernel(8), 0.4, [1.0]),
    ],
)
def test_every_derivative_is_the_limit_of_differences(closure, eps, kernel):
    point = np.array([1.5, 0.3, 1.1, 0.9, *kernel])
    s = sensitivity(*build(point), TS, closure=closure, eps=eps)
    names = ["C_W", "C_b", "activation.input_scale", "activation.output_scale", *s.names[4 : 4 + len(kernel)]]
    assert s.names == ((*names, "eps") if eps else tuple(names))

    def values(point, eps=eps):
        solution = keft.solve(*build(point), TS if eps is None else np.array([2, 4]) * eps**2, closure=closure, eps=eps)
        return [np.asarray(part) for part in (solution.K0, solution.V4, solution.K1)]

    # Errors measured, relative to the largest derivative of each quantity: by layers 1e-10, the rest of Richardson's
    # differences (at three times the step 81 times more); in the continuum 1e-6, of the solver at its tolerance of 1e-8.
    step, tolerance = 1e-3, 1e-9 if eps else 3e-6

    def check(name, at):
        for derivative, *points in zip(s[name], at(1), at(-1), at(2), at(-2), strict=True):
            up, down, far_up, far_down = points
            differences = (8 * (up - down) - (far_up - far_down)) / (12 * step)
            atol = tolerance * np.abs(differences).max()
            np.testing.assert_allclose(derivative, differences, rtol=0, atol=atol, err_msg=name)

    for name, shift in zip(names, step * np.eye(len(point)), strict=True):
        check(name, lambda k, shift=shift: values(point + k * shift))
    if eps:
        check("eps", lambda k: values(point, eps + k * step))


def test_an_unknown_name_lists_those_that_exist():
    s = sensitivity(keft.Model(keft.Linear(), 1.0), [[1.0]], TS, eps=0.4)
    with pytest.raises(KeyError, match=r"no parameter `width`; there are .*'C_W'"):
        s["width"]


def test_sensitivities_are_drawn_where_they_matter():
    """One input's kernel does not feel the other; of a bias or an entry of zero there is no per cent: the legend says which."""
    s = sensitivity(keft.Model(keft.Linear(), 1.5), np.diag([1.0, 0.6]), np.array([0.0, *TS]), eps=0.4)
    assert s["C_b"].K0[-1, 0, 0] > 0.6  # t, and more
    figure = plot_sensitivity(s)
    panels = figure.axes
    for panel in panels[:2]:
        assert panel.get_legend_handles_labels()[1] == ["C_W", "K0[0, 0]", "eps"]
    np.testing.assert_allclose(panels[0].get_lines()[0].get_ydata(), s.elasticity("C_W").K0[:, 0, 0])
    assert [text.get_text() for text in figure.legends[0].get_texts()[-2:]] == [
        "zero, so no relative change:\nC_b, K0[0, 1]",
        "less effect:\nK0[1, 1]",
    ]
    # K1 of a linear network is zero: nothing is relative to it.
    assert all(np.isnan(line.get_ydata()).all() for line in panels[2].get_lines()[:3])
    assert "zero" in panels[2].texts[0].get_text()


def test_nothing_is_drawn_relative_to_zero():
    """K1 is zero at depth zero, and a relative derivative there would be 0 / 0."""
    s = sensitivity(keft.Model(keft.Sin(), 1.5), [[1.2]], [0.0, 0.16, 0.32], eps=0.4)
    drawn = np.asarray(plot_sensitivity(s).axes[2].get_lines()[0].get_ydata())
    assert np.isnan(drawn[0])
    np.testing.assert_allclose(drawn[1:], s.elasticity("C_W").K1[1:, 0, 0])
