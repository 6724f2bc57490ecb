"""Recipes and the predicted coordinate check: closed forms of growth and spread, and networks that are or are not those
meant."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import in_an_empty_directory as in_an_empty_directory
from commands import undrawn as undrawn
from networks import Matrix, apply_branch, kernels
from scipy import integrate
from scipy.special import erf, ndtr

import kernel_eft_jax as keft
from kernel_eft_jax import cli, recipes
from kernel_eft_jax.cli.commands import network
from kernel_eft_jax.diagnostics import coordinates, validity
from kernel_eft_jax.diagnostics.validity import Width

ONE = {"K0": np.array([[1.0]])}
EVERY = ("gpt2", "pre_norm", "depth_mup", "ln_scaling", "umup", "resnet_v2", "plain")
HARMONIC = np.array([0, 1, 1.5, 1 + 1 / 2 + 1 / 3, 1 + 1 / 2 + 1 / 3 + 1 / 4])


def gelu_square(variance: float) -> float:
    """E[gelu(x)^2] for x of a variance, by adaptive quadrature with SciPy's normal distribution."""
    sd = np.sqrt(variance)
    value, _ = integrate.quad(
        lambda z: (sd * z * ndtr(sd * z)) ** 2 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), -12, 12, epsabs=1e-14
    )
    return value


def mean_square(check: keft.CoordinateCheck) -> np.ndarray:
    """K0 of input 0, at each layer."""
    return np.asarray(check.theory.K0)[:, 0, 0]


def stream(stack: keft.recipes.Stack, k: float) -> np.ndarray:
    """The mean square of one input behind each block, (1 - decay eps^2) k + eps^2 Q(k)."""
    found = [k]
    for eps in np.broadcast_to(stack["eps"], stack["depth"]):
        k = found[-1]
        found.append((1 - float(stack["model"].decay) * eps**2) * k + eps**2 * stack["model"].Q([[k]]).item())
    return np.array(found)


@pytest.mark.thorough
def test_plain_relu_spreads_by_a_known_factor_a_layer():
    """For ReLU at C_W = 2 a layer multiplies E[G^2] by 1 + 5/n and leaves E[G]: V4 = 2 + 5 l, and no drift."""
    check = keft.coordinate_check(**(recipes.plain(width=100, depth=3) | ONE))
    np.testing.assert_allclose(mean_square(check), 1, rtol=1e-12)
    exact = 2 + 5 * np.arange(4)
    V4, bound = (np.asarray(m.V4)[:, 0, 0] for m in (check.theory.packed, check.theory.packed_truncation))
    assert (np.abs(V4 - exact) <= bound * (1 + 1e-6)).all()
    np.testing.assert_allclose(
        check.spread[:, 0], np.sqrt(exact / 100), rtol=5e-4
    )  # V4 to 1e-3: what the chosen degree may leave
    np.testing.assert_allclose(check.drift, 0, atol=1e-8)


def test_blocks_of_resnet_v2_double_the_mean_square():
    found = stream(recipes.resnet_v2(width=64, depth=3), 1.0)
    np.testing.assert_allclose(found, 2.0 ** np.arange(4), rtol=1e-10)


@pytest.mark.parametrize(
    ("stack", "growth"),
    [
        (recipes.pre_norm(width=32, depth=4), gelu_square(1.0) * np.arange(5)),
        (recipes.depth_mup(width=32, depth=4, multiplier=2.0), 4 * gelu_square(1.0) * np.arange(5) / 4),
        (recipes.ln_scaling(width=32, depth=4), HARMONIC),
        (recipes.umup(width=32, depth=4), np.zeros(5)),
        (
            recipes.gpt2(width=768, depth=4),
            0.02**2 * 4 * 768 * gelu_square(0.02**2 * 768) * np.arange(5) / (2 * 4),
        ),
    ],
    ids=["pre_norm", "depth_mup", "ln_scaling", "umup", "gpt2"],
)
def test_streams_behind_a_norm_grow_as_their_rule_says(stack, growth):
    """Behind a norm every block adds eps_l^2 Q with one Q: GELU's by quadrature, one by design for ReLU and for
    u-muP."""
    start = stack["K0"][0, 0]
    np.testing.assert_allclose(stream(stack, start), start + growth, rtol=1e-9)


@pytest.mark.thorough
def test_the_first_blocks_of_a_stack_are_those_of_a_shorter_one():
    """Networks with a step for each block can be looked at before their last block."""
    sizes = {"width": 4, "depth": 3, "eps": [0.5, 0.3, 0.1]}
    check = keft.coordinate_check(keft.Model(keft.Linear(), 1.0), [[1.0]], **sizes, layers=[1, 2])
    np.testing.assert_allclose(check.mean[:, 0], [1.25, 1.25 * 1.09], rtol=1e-12)
    V4 = 2 * 1.25**2 + 4 * 0.25 + 2 * 0.25**2  # (1 + x)^2 V4 + 4 x + 2 x^2, x = eps^2
    np.testing.assert_allclose(check.spread[0, 0], np.sqrt(V4 / 4), rtol=1e-9)


def test_gpt2_starts_as_its_embeddings():
    """Tokens of standard deviation 0.02 plus positions of 0.01, two tokens at one position."""
    np.testing.assert_allclose(recipes.gpt2(width=8, depth=1)["K0"], [[5e-4, 1e-4], [1e-4, 5e-4]])


FEW = ("umup", "resnet_v2")  # with norms and without; what the other stacks are is held above


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.thorough) for name in FEW),
        *(pytest.param(name, marks=pytest.mark.slow) for name in EVERY if name not in FEW),
    ],
)
def test_every_recipe_draws_networks_as_it_is(name, key):
    """A stack is the arguments of `sample_kernels`, and an entry of it can be replaced."""
    stack = getattr(recipes, name)(width=6, depth=2)
    assert set(stack) == {"model", "K0", "width", "depth", "eps"}
    G = keft.sample_kernels(**(stack | ONE), networks=2, key=key, save_at=[2])
    assert G.shape == (2, 1, 1, 1)
    assert np.isfinite(G).all()


STACK = keft.recipes.Stack(
    model=keft.Model([keft.Dense(1.0), keft.Erf(), keft.Dense(2.0)]),
    K0=np.array([[1.0]]),
    width=32,
    depth=4,
    eps=0.5,
)
LAYERS = [0, 2, 4]


@pytest.fixture(scope="module")
def own():
    """400 networks of each of two widths, drawn with real weights, by NumPy."""
    found = {}
    for n in (16, 32):
        rng, branch = np.random.default_rng(n), [Matrix(1.0, 0.0, n), erf, Matrix(2.0, 0.0, n)]
        stream = [rng.standard_normal((400, 1, n))]
        for _ in range(STACK["depth"]):
            stream.append(stream[-1] + 0.5 * apply_branch(branch, stream[-1], rng))
        G = np.stack([kernels(phi) for phi in stream], axis=1)[:, LAYERS]
        found[n] = jnp.asarray(G, jnp.float32)  # as `sample_kernels` gives them
    return found


@pytest.fixture(scope="module")
def check(own):
    return keft.coordinate_check(**STACK, layers=LAYERS, own=own)


def test_own_networks_are_measured_as_numpy_would(check, own):
    for i, n in enumerate(sorted(own)):
        G = np.einsum("xtaa->xta", own[n].astype(np.float64))
        measured = check.measured(i)
        assert (measured.width, measured.networks) == (n, 400)
        np.testing.assert_allclose(measured.mean, G.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(measured.spread, G.std(axis=0, ddof=1), rtol=1e-12)
        np.testing.assert_allclose(measured.stderr, G.std(axis=0, ddof=1) / 20, rtol=1e-12)
    with pytest.raises(ValueError, match="`index` must be the place of one of the 2 widths given as `own`"):
        check.measured(2)
    with pytest.raises(ValueError, match="no networks of yours: give `coordinate_check` their kernels as `own`"):
        eqx.tree_at(lambda c: c.own, check, None).measured(0)


def test_networks_of_the_model_agree_with_the_prediction(check):
    """Mean and spread of 400 networks a width: the mean to 4 standard errors at each of 3 depths (false alarms 2e-4 a
    width).

    The spread has a standard error of 1 / sqrt(800) of itself: within 15 %, four of them and 1/n of the theory.
    """
    for i, n in enumerate((16, 32)):
        measured = check.measured(i)
        assert (np.abs(measured.mean - check.mean_at(n)) < 4 * measured.stderr).all()
        np.testing.assert_allclose(measured.spread[0], check.spread_at(n)[0], rtol=0.15)
        np.testing.assert_allclose(measured.spread[1:], check.spread_at(n)[1:], rtol=0.15 + 1 / n)


def test_networks_of_other_weights_are_seen(own):
    """Networks with C_W = 2.5 instead of 2 are detected: the mean at the last layer changes by a tenth, and the
    standard error of 400 networks is 1.5 %."""
    wrong = STACK | {"model": keft.Model([keft.Dense(1.0), keft.Erf(), keft.Dense(2.5)])}
    check = keft.coordinate_check(**wrong, layers=LAYERS, own=own)
    measured = check.measured(1)
    assert (np.abs(measured.mean - check.mean)[-1] > 4 * measured.stderr[-1]).all()


@pytest.mark.thorough
def test_a_key_tells_from_which_width_on(key, check):
    """The least sampled width that suffices is the answer; without a key nothing is drawn."""
    found = keft.coordinate_check(**STACK, layers=LAYERS, key=key, networks=64, tolerance=1.0, progress=False)
    assert set(found.enough) == {"V4", "K1"}
    assert f"From width {validity.answer(found.enough['V4'], 1.0).width} on" in str(found)
    assert not check.enough


WIDTHS = {  # deviations and standard errors at a tolerance of 5 %
    "suffices": (Width(64, 0.02, 0.024, 26), Width(26, 0.03, 0.026, 16)),
    "too few": (Width(64, 0.06, 0.03, 77),),
    "not yet": (Width(64, 0.5, 0.01, 640), Width(640, 0.2, 0.01, 2560)),
}


@pytest.mark.parametrize(
    ("sampled", "words", "width"),
    [
        (WIDTHS["suffices"], "From width 64 on order 1/n is right to 5 % for the drift", 64),
        (WIDTHS["too few"], "The networks of width 64 are too few to tell whether order 1/n is right to 5 % for", None),
        (WIDTHS["not yet"], "At width 640 order 1/n is not yet right to 5 % for the drift", None),
        ((), "No networks were sampled: the theory leaves out too much to tell where order 1/n is right", None),
    ],
    ids=[*WIDTHS, "too rough a theory"],
)
def test_a_width_is_told_where_networks_tell_it(check, sampled, words, width):
    """In words, and in the file of the command, where a width that is not known is null."""
    found = eqx.tree_at(lambda c: c.enough, check, {"K1": sampled})
    assert words in str(found)
    assert network.record(found)["enough"] == {"K1": width}


class Sampled(Exception):
    """What would have been compared with networks."""


@pytest.fixture
def unsampled(monkeypatch):
    """No networks are drawn: the theory that they would be compared with is raised."""

    def stop(exact, K0, **settings):
        raise Sampled(exact)

    monkeypatch.setattr(coordinates, "sufficient_widths", stop)
    return jax.random.key(0)


@pytest.mark.thorough
def test_networks_are_compared_with_the_theory_of_the_last_block(unsampled):
    """Also where the reported layers end before it, and each block has an eps of its own."""
    stack = STACK | {"eps": [0.5, 0.3, 0.4, 0.2]}
    with pytest.raises(Sampled) as seen:
        keft.coordinate_check(**stack, layers=[1], key=unsampled)
    (exact,) = seen.value.args
    assert exact.layers[-1] == 4
    np.testing.assert_allclose(exact.eps, stack["eps"])
    np.testing.assert_allclose(exact.K0[-1, 0, 0], stream(stack, 1.0)[-1], rtol=1e-10)


@pytest.mark.slow
def test_networks_are_compared_with_a_theory_of_the_degree_that_the_block_needs(unsampled):
    """sin(phi) at a variance of 25 needs a degree of 128; the degree 40 of other searches leaves out 380 % of K1."""
    with pytest.raises(Sampled) as seen:
        keft.coordinate_check(keft.Model(keft.Sin(), 2.0), [[25.0]], width=32, depth=2, eps=0.5, key=unsampled)
    assert seen.value.args[0].closure.degree == 128


@pytest.fixture
def rough(check):
    """The theory of the check with a truncation of 3 % of V4."""
    zero = jax.tree.map(np.zeros_like, check.theory.packed)
    truncation = eqx.tree_at(lambda m: m.V4, zero, 0.03 * check.theory.packed.V4)
    return eqx.tree_at(lambda s: s.packed_truncation, check.theory, truncation)


def test_a_theory_that_leaves_out_too_much_is_compared_with_no_networks(rough, unsampled, monkeypatch):
    """3 % of V4 is a quarter of 12 %; a truncation that is not known is too much for every tolerance."""
    monkeypatch.setattr(coordinates, "solve", lambda *_, **__: rough)
    run = STACK | {"layers": LAYERS, "key": unsampled}
    with pytest.raises(Sampled):
        keft.coordinate_check(**run, tolerance=0.12001)
    found = keft.coordinate_check(**run, tolerance=0.119)
    assert found.enough == {"V4": (), "K1": ()}
    assert "No networks were sampled: the theory leaves out too much to tell where order 1/n is right" in str(found)
    unknown = eqx.tree_at(lambda s: s.packed_truncation.K1, rough, np.nan * rough.packed.K1)
    monkeypatch.setattr(coordinates, "solve", lambda *_, **__: unknown)
    assert keft.coordinate_check(**run, tolerance=10.0).enough == {"V4": (), "K1": ()}


def test_a_higher_degree_is_taken_where_the_theory_of_the_check_leaves_out_too_much(
    check, rough, unsampled, monkeypatch
):
    theories = {(): rough, ("closure",): check.theory}
    monkeypatch.setattr(coordinates, "solve", lambda *_, **how: theories[tuple(how.keys() & {"closure"})])
    with pytest.raises(Sampled) as seen:
        keft.coordinate_check(**STACK, layers=LAYERS, key=unsampled, tolerance=0.05)
    assert seen.value.args[0] is check.theory


@pytest.mark.thorough
def test_two_inputs_have_a_cosine():
    """K_01 / sqrt(K_00 K_11), from 0.2 on; linear units, whose K grows by eps^2 (C_W K + C_b)."""
    K0 = np.array([[1.0, 0.4], [0.4, 4.0]])
    check = keft.coordinate_check(keft.Model(keft.Linear(), 2.0, 0.3), K0, width=32, depth=1, eps=0.5)
    K = K0 + 0.25 * (2 * K0 + 0.3)
    (_, first), (_, last) = check.rows()
    np.testing.assert_allclose([first[3], last[3]], [0.2, K[0, 1] / np.sqrt(K[0, 0] * K[1, 1])], rtol=1e-12)
    assert "cosine 01" in str(check)


def test_the_check_says_what_it_found_and_what_it_leaves_out(check):
    text = str(check)
    assert "Stream of 4 blocks of width 32 by HermiteTower(" in text
    assert "Your 400 networks of width 16" in text
    assert "attention" in text
    assert "training" in text
    assert f"{check.mean[-1, 0]:.5g}" in text
    unknown = jax.tree.map(lambda x: np.nan * x, check.theory.packed)
    vague = eqx.tree_at(lambda s: s.packed_truncation, check.theory, unknown, is_leaf=lambda x: x is None)
    vague = eqx.tree_at(lambda s: s.stats["expectation_error"], vague, np.array(0.003))
    text = str(eqx.tree_at(lambda c: c.theory, check, vague))
    assert "too low to tell what it leaves out of spread or drift" in text
    assert "expectations are right to 0.3 %" in text


def test_the_figure_draws_the_prediction_and_the_networks(check):
    """The mean against the layer, three layers against the width, and points where there are networks."""
    figure = check.plot()
    first, second = figure.axes
    np.testing.assert_allclose(first.get_lines()[0].get_ydata(), check.mean[:, 0])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"predicted mean", "your networks", "layer 2", "layer 4"} <= set(labels)
    points = [c.lines[0].get_ydata() for c in second.containers]
    np.testing.assert_allclose(points[0], check.measured(0).mean[1, 0])


class TestCommand:
    @pytest.mark.thorough
    @pytest.mark.drawn
    def test_one_command_says_all(self, own, check, tmp_path, capsys):
        """Block, width, depth and step come from the options or from the user's file; figure and JSON are written."""
        np.savez("own.npz", G=own[32], K0=STACK["K0"], layers=LAYERS, width=32, eps=0.5)
        words = [
            "network",
            "--block",
            "dense:1,erf,dense:2",
            "--own",
            "own.npz",
            "--networks",
            "64",
            "--tolerance",
            "1",
        ]
        assert cli.main([*words, "--quiet"]) == 0, capsys.readouterr().err
        assert cli.main([*words, "--json", "--overwrite"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["network"] == "4 blocks, width 32"
        assert any("Your 400 networks" in note for note in printed["notes"])
        record = json.loads((tmp_path / "network.json").read_text())
        np.testing.assert_allclose(record["mean"], check.mean, rtol=1e-10)
        assert (tmp_path / "network.png").stat().st_size > 1000

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["network"], "Name a recipe (gpt2, pre-norm"),
            (["network", "gpt2", "--eps", "0.1"], "The recipe gpt2 defines block and steps itself: leave out --eps"),
            (
                ["network", "plain", "--own", "own.npz"],
                "the networks have eps = 0.5 in block 1, but plain of depth 4 has 1",
            ),
            (["network", "ln-scaling", "--own", "own.npz"], "but ln-scaling of depth 4 has 1. Give their block"),
            (["network", "--block", "tanh,dense:2", "--own", "own.npz", "--eps", "0.3"], "but `--eps` says 0.3. Leave"),
            (["network", "--block", "tanh,dense:2", "--own", "own.npz", "--inputs", "3"], "another input kernel than"),
        ],
    )
    def test_contradictions_are_refused(self, words, sentence, own, capsys):
        np.savez("own.npz", G=own[32], K0=STACK["K0"], layers=LAYERS, width=32, eps=0.5)
        assert cli.main(words) == 2
        assert sentence in capsys.readouterr().err

    def test_the_width_of_a_file_is_a_whole_number(self, own):
        """No file takes the place of another: 64.5 would be 64."""
        for width in (64.0, 64.5, np.inf):
            np.savez(f"{width}.npz", G=own[32], K0=STACK["K0"], layers=LAYERS, width=width, eps=0.5)
        kernels, _, settings = network.read_own(["64.0.npz"])
        assert (list(kernels), keft.checks.check_count(settings["width"], "width")) == ([64], 64)
        for width in ("64.5", "inf"):
            with pytest.raises(ValueError, match=f"width in {width}.npz is {width}, which is not a whole number: save"):
                network.read_own(["64.0.npz", f"{width}.npz"])
        with pytest.raises(ValueError, match="two files hold networks of width 64: join them"):
            network.read_own(["64.0.npz", "64.0.npz"])


def test_own_networks_need_the_layers_of_the_prediction(own):
    with pytest.raises(
        ValueError,
        match=r"Argument `own` must hold arrays of shape.*Give the layers .* as `layers`; here the layers are 0, 4",
    ):
        keft.coordinate_check(**STACK, layers=[0, 4], own=own)
    with pytest.raises(ValueError, match=r"Argument `width`"):
        keft.coordinate_check(**(STACK | {"width": 0}))
