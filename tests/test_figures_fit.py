"""`plot_fit` shows what it was given: data, theory and deviations are read back from the drawing.

The oracle is a linear network: K0 after l layers is K0 (1 + eps^2 C_W)^l, and K1 is zero. Its V4 is taken from `solve`.
"""

import dataclasses

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from networks import block_law

import kernel_eft_jax as keft
from kernel_eft_jax.figures import plot_fit
from kernel_eft_jax.showing import rounded

LAYERS, EPS, WIDTH, NETWORKS = [1, 3, 6], 0.4, 32, 400
X = np.random.default_rng(0).standard_normal((4, 6))
K0 = X @ X.T / 6


@pytest.fixture(scope="module")
def kernels():
    """Of linear networks with C_W = 1.5."""
    return block_law(np.random.default_rng(1), lambda x: x, 1.5, 0.0, K0, WIDTH, LAYERS, EPS, NETWORKS)


def fitted(G, with_V4, layers=LAYERS):
    K = K0[: G.shape[-1], : G.shape[-1]]
    e = keft.Experiment(keft.Model(keft.Linear(), 1.3), K, width=WIDTH, layers=layers, eps=EPS)
    return keft.fit(G, e, ["C_W"], closure=keft.GOnly(), with_V4=with_V4, progress=False)


def bars(panel):
    """Values and errors of every set of points."""
    for container in panel.containers:
        assert isinstance(container, ErrorbarContainer)
        points, _, (segments,) = container.lines
        yield points.get_ydata(), [np.ptp(segment[:, 1]) / 2 for segment in segments.get_segments()]


@pytest.mark.parametrize("inputs", [1, pytest.param(4, marks=pytest.mark.thorough)])
def test_a_fit_is_drawn_with_its_data_its_theory_and_what_is_left(kernels, inputs):
    """The first seven entries are drawn, and the legend says of how many where there are more."""
    kernels, K = kernels[..., :inputs, :inputs], K0[:inputs, :inputs]
    f = fitted(kernels, with_V4=True)
    figure = plot_fit(f)
    top, means, variances = figure.axes
    C_W = f.values[0]
    a, b = np.triu_indices(inputs)
    theory = (1 + EPS**2 * C_W) ** np.array(LAYERS)[:, None] * K[a, b]
    solution = keft.solve(keft.Model(keft.Linear(), C_W), K, layers=LAYERS, eps=EPS, closure=keft.GOnly())
    V4 = np.asarray(solution.V4)[:, a, b, a, b]
    mean, error = kernels.mean(axis=0)[:, a, b], np.sqrt(V4 / (WIDTH * NETWORKS))
    curves = [line for line in top.get_lines() if line.get_linestyle() != "None" and len(line.get_ydata()) == 3]
    for p, curve in enumerate(curves):
        np.testing.assert_array_equal(curve.get_xdata(), LAYERS)
        np.testing.assert_allclose(curve.get_ydata(), theory[:, p], rtol=1e-9)
    for p, (drawn, spread) in enumerate(bars(top)):
        np.testing.assert_allclose(drawn, mean[:, p], rtol=1e-12)
        np.testing.assert_allclose(spread, error[:, p], rtol=1e-9)
    for p, (drawn, spread) in enumerate(bars(means)):
        np.testing.assert_allclose(drawn, (mean - theory)[:, p] / error[:, p], atol=1e-7)
        np.testing.assert_allclose(spread, 1)
    # The variance of a sample variance of B Gaussian numbers is 2 sigma^4 / (B - 1).
    left = (kernels.var(axis=0, ddof=1)[:, a, b] * WIDTH / V4 - 1) * np.sqrt((NETWORKS - 1) / 2)
    for p, (drawn, _) in enumerate(bars(variances)):
        np.testing.assert_allclose(drawn, left[:, p], atol=1e-7)
    assert [len(curves)] + [len(list(bars(panel))) for panel in figure.axes] == 4 * [min(7, a.size)]
    (legend,) = figure.legends
    last = {1: ["$G_{00}$"], 4: ["$G_{13}$", "7 of 10 entries"]}[inputs]
    assert [text.get_text() for text in legend.get_texts()][-2:] == last
    title = " ".join(figure.get_suptitle().split())
    assert f"C_W = {rounded(C_W, float(f.stderr[0]))} $" in title
    assert f"$p$ = {f.p_value:.2g}" in title
    assert "NOT CONVERGED" not in title
    assert plot_fit(dataclasses.replace(f, converged=False)).get_suptitle().count("NOT CONVERGED") == 1


@pytest.mark.thorough
def test_means_alone_have_two_panels_and_points_that_do_not_hide_each_other(kernels):
    figure = plot_fit(fitted(kernels[..., :2, :2], with_V4=False))
    _, means = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["$G_{00}$", "$G_{01}$", "$G_{11}$"]
    places = np.array([container.lines[0].get_xdata() for container in means.containers])
    assert np.all(np.diff(places, axis=0) > 0)
    assert np.abs(places - LAYERS).max() < 0.5
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in (*(panel.yaxis.label for panel in figure.axes), figure.legends[0])]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.thorough
def test_one_layer_is_drawn(kernels):
    """A curve of one point is a dash, beside the points; the axis counts whole layers."""
    f = fitted(kernels[:, 2:, :2, :2], with_V4=False, layers=[6])
    top, means = plot_fit(f).axes
    dashes = [line.get_xydata() for line in top.get_lines() if line.get_markersize() == 24]
    theory = (1 + EPS**2 * f.values[0]) ** 6 * K0[[0, 0, 1], [0, 1, 1]]
    np.testing.assert_allclose(np.concatenate(dashes), [(6, y) for y in theory], rtol=1e-9)
    assert [float(t) for t in means.get_xticks() if means.get_xlim()[0] < t < means.get_xlim()[1]] == [5, 6, 7]
