"""Commands that end in more than a trajectory: the study, validity, fits and sensitivities."""

import dataclasses
import json
import re
import shutil
import types
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import draw_nothing, run
from commands import in_an_empty_directory as in_an_empty_directory
from commands import undrawn as undrawn

import kernel_eft_jax as keft
from kernel_eft_jax import cli
from kernel_eft_jax.cli.commands import network, validity
from kernel_eft_jax.cli.commands.fit import read_data
from kernel_eft_jax.cli.results import accuracy_notes
from kernel_eft_jax.diagnostics import CoordinateCheck, Window, compare
from kernel_eft_jax.diagnostics.validity import Reach, Width
from kernel_eft_jax.studies import kawase_ota

C_W, C_B, X = 1.5, 0.2, 0.5**2
LINEAR = f"--activation linear --C_W {C_W} --C_b {C_B} --inputs 1 --diagonal 1 --eps 0.5 --depth 4 --times 5"
THEORY, SAMPLE = f"theory {LINEAR} --closure GOnly", f"sample {LINEAR} --width 64 --networks 512"


@pytest.fixture(scope="module")
def linear_files(tmp_path_factory):
    """A theory and 512 networks of it, which the quick tests below share, and the folder with their files."""
    folder = tmp_path_factory.mktemp("linear")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        patch.chdir(folder)
        assert run(THEORY) == 0
        assert run(f"{SAMPLE} --quiet") == 0
    return folder, keft.load(folder / "theory.nc"), keft.load(folder / "sample.nc")


@pytest.fixture
def linear(linear_files, in_an_empty_directory):
    """The theory and the networks, which are also here as theory.nc and sample.nc."""
    folder, theory, sampled = linear_files
    for name in ("theory.nc", "sample.nc"):
        shutil.copy(folder / name, name)
    return theory, sampled


def linear_moments():
    """K0 and V4 of one input after each layer, increments h being N(0, q) with q = C_b + C_W G given phi.

    G' = G + 2 eps phi.h / n + eps^2 h.h / n, of variance (4 x G q + 2 x^2 q^2) / n given phi, x = eps^2.
    """
    K, V = [1.0], [2.0]
    for _ in range(4):
        q = C_B + C_W * K[-1]
        V.append((1 + X * C_W) ** 2 * V[-1] + 4 * X * K[-1] * q + 2 * X**2 * q**2)
        K.append(K[-1] + X * q)
    return np.array(K), np.array(V)


def test_interrupting_ends_quietly(monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(kawase_ota, "everything", interrupted)
    assert cli.main(["paper"]) == 130
    assert capsys.readouterr().err == "kernel-eft: Interrupted: no part is finished.\n"


def item(name):
    row = kawase_ota.Row("a number", kawase_ota.WithError(1.0), kawase_ota.WithError(1.0))
    return kawase_ota.Item([kawase_ota.Chapter(name, "why", [row])], {}, {})


def test_paper_runs_the_first_part_of_the_study_and_writes_it(monkeypatch, capsys, tmp_path):
    def everything(sizes, key, checkpoint, progress):
        assert (sizes.main, key, checkpoint, progress) == (500, jax.random.key(7), None, True)
        yield "main job", item("first")
        raise AssertionError("more than the main job was computed")

    monkeypatch.setattr(kawase_ota, "everything", everything)
    assert cli.main(["paper", "--networks", "500", "--seed", "7", "--out", "deep/results"]) == 0
    out = capsys.readouterr().out
    assert "### first" in out
    assert "2 files in deep/results" in out
    assert "### first" in (tmp_path / "deep" / "results" / "table.md").read_text()


def test_paper_keeps_what_is_finished(monkeypatch, capsys, tmp_path):
    """Interrupted in its second part: the first is there, the message says where, and the same command may go on."""

    def everything(sizes, key, checkpoint, progress):
        checkpoint.touch()
        yield "main job", item("first")
        raise KeyboardInterrupt

    monkeypatch.setattr(kawase_ota, "everything", everything)
    assert run("paper --all") == 130
    says = "Interrupted: 2 files of the parts that are finished are in results, and the same command goes on from"
    assert f"kernel-eft: {says} results/main-job.checkpoint.\n" == capsys.readouterr().err
    assert "### first" in (tmp_path / "results" / "table.md").read_text()
    assert run("paper --all") == 130


@pytest.mark.parametrize(("options", "size"), [(["--networks", "500"], 500), (["--full"], 5_000_000)])
def test_paper_all_writes_each_part_as_it_is_done(monkeypatch, capsys, tmp_path, options, size):
    def everything(sizes, key, checkpoint, progress):
        assert (sizes.main, str(checkpoint)) == (size, "results/main-job.checkpoint")
        yield "main job", item("first")
        assert "### first" in (tmp_path / "results" / "table.md").read_text()
        yield "sweeps", item("second")

    monkeypatch.setattr(kawase_ota, "everything", everything)
    assert cli.main(["paper", "--all", *options]) == 0
    table = (tmp_path / "results" / "table.md").read_text()
    assert "### first" in table
    assert "### second" in table
    assert "2 files in results" in capsys.readouterr().out


@pytest.mark.thorough
@pytest.mark.drawn
def test_validity_of_linear_networks(tmp_path, capsys):
    """For linear networks the kernel's closure is exact, layer by layer too: it holds everywhere."""
    out = tmp_path / "window.png"
    options = [
        "--activation",
        "linear",
        "--inputs",
        "1",
        "--C_W",
        "1",
        "--depth",
        "2",
        "--eps",
        "0.5",
        "--tolerance",
        "0.1",
    ]
    assert cli.main(["validity", *options, "--networks", "256", "--degree", "2", "--out", str(out)]) == 0
    printed, record = capsys.readouterr().out, json.loads(out.with_suffix(".json").read_text())
    assert record["reach"]["GOnly"]["V4"]["t_star"] is None
    assert re.search(r"V4 +GOnly +everywhere", printed)
    assert out.stat().st_size > 10_000
    assert json.loads(out.with_suffix(".json").read_text())["reference"] == "HermiteTower of degree 2"


def test_validity_says_up_to_which_depth_and_from_which_width(monkeypatch, linear, tmp_path, capsys):
    """The table and the file hold what the window holds: a closure that is right everywhere has no t*, and n* is the
    least width that suffices."""
    theory, asked = linear[0], {}
    reach = {"V4": Reach(np.array([0.04, 0.12]), 0.4375), "K1": Reach(np.zeros(2), np.inf)}
    widths = {"V4": (Width(64, 0.5, 0.01, 320), Width(320, 0.09, 0.02, 288)), "K1": (Width(64, 0.3, 0.01, 192),)}

    def window(model, K0, **choices):
        asked.update(choices)
        return Window(np.array([0.25, 0.5]), choices["tolerance"], theory, {"GOnly": reach}, widths)

    monkeypatch.setattr(validity, "validity_window", window)
    setting = "--activation linear --C_W 1.5 --inputs 1 --depth 2 --eps 0.5 --tolerance 0.1 --networks 256 --degree 2"
    assert run(f"validity {setting}") == 0
    assert [asked[name] for name in ("depth", "eps", "tolerance", "networks")] == [2, 0.5, 0.1, 256]
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "validity.json").read_text())
    for row in (
        r"V4 +GOnly +up to t\* = 0\.438 +0\.12",
        r"K1 +GOnly +everywhere +0",
        r"V4 +order 1/n +from n\* = 320 +0\.09 ± 0\.02",
        r"K1 +order 1/n +not yet at n = 64 +0\.3",
    ):
        assert re.search(f"\n *{row}", printed), row
    assert [record["reach"]["GOnly"][name]["t_star"] for name in ("V4", "K1")] == [0.4375, None]
    assert [width["suffices"] for width in record["widths"]["V4"]] == [False, True]
    assert record["reference"] == "HermiteTower of degree 2"


def test_network_says_how_the_stream_grows(monkeypatch, linear, tmp_path, capsys):
    """The mean square is K0, for K1 of linear networks is zero, and from seed to seed it differs by sqrt(V4 / n); a
    width that no networks tell is null."""
    theory, asked = linear[0], {}

    def check(*, width, tolerance, **stack):
        asked.update(stack)
        return CoordinateCheck(theory, width, tolerance, {"V4": (), "K1": (Width(64, 0.02, 0.02, 26),)}, None)

    monkeypatch.setattr(network, "coordinate_check", check)
    options = "--activation linear --C_W 1.5 --C_b 0.2 --inputs 1 --diagonal 1 --eps 0.5 --depth 4 --width 32"
    assert run(f"network {options}") == 0
    assert (asked["depth"], asked["eps"], asked["K0"].tolist(), asked["own"]) == (4, 0.5, [[1.0]], None)
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "network.json").read_text())
    K0, V4 = linear_moments()
    np.testing.assert_allclose(np.ravel(record["mean"]), K0, rtol=1e-12)
    np.testing.assert_allclose(np.ravel(record["spread"]), np.sqrt(V4 / 32), rtol=1e-12)
    assert record["enough"] == {"V4": None, "K1": 64}
    assert "network: 4 blocks, width 32" in printed
    assert f"grows by a factor of {K0[-1]:.4g}" in printed


@pytest.fixture
def kernels(in_an_empty_directory):
    """kernels.npz of 512 linear networks, drawn in NumPy and written as any framework would: given phi, increments are
    N(0, C_b + C_W G)."""
    rng, width = np.random.default_rng(0), 16
    phi, G = rng.standard_normal((512, 1, width)), []
    for layer in range(5):
        if layer:
            Q = C_B + C_W * np.mean(phi**2, axis=2, keepdims=True)
            phi = phi + 0.5 * np.sqrt(Q) * rng.standard_normal(phi.shape)
        G.append(phi @ phi.swapaxes(1, 2) / width)
    np.savez("kernels.npz", G=np.stack(G, axis=1), K0=[[1.0]], layers=range(5), width=width, eps=0.5)


@pytest.mark.drawn
def test_fit_finds_what_the_kernels_were_sampled_with(kernels, tmp_path, capsys):
    """Kernels from a file of the user's: truth within 4 errors, in the table, the file and the figure."""
    out = tmp_path / "fit.json"
    start = ["--activation", "linear", "--C_W", "1", "--C_b", "0.5", "--closure", "GOnly"]
    assert cli.main(["fit", str(tmp_path / "kernels.npz"), *start, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    for name, truth in (("C_W", C_W), ("C_b", C_B)):
        assert abs(record["parameters"][name]["value"] - truth) < 4 * record["parameters"][name]["stderr"]
    assert record["held"] == {"decay": 0.0, "eps": 0.5, "width": 16.0, "K0_scale": 1.0}
    assert record["closure"] == {"name": "GOnly"}
    printed = capsys.readouterr()
    assert "C_W = " in printed.out
    assert "steps/s" in printed.err  # the bar: not in what is piped on
    assert "steps/s" not in printed.out
    assert out.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.thorough
def test_fit_says_what_the_data_do_not_tell(linear, capsys):
    """Only eps^2 C_W and eps^2 C_b: the parameters are named."""
    assert run("fit sample.nc --closure GOnly --free C_W C_b eps") == 2
    assert "the data tell only `--C_W` * `eps`^2 and `--C_b` * `eps`^2" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["block", pytest.param("weights", marks=pytest.mark.slow)])
def test_fit_takes_what_sample_writes(sampler, linear):
    """Of linear networks, whose mean kernel is known at every width: truth within 4 standard errors; false alarm
    1e-3."""
    if sampler == "weights":
        assert run(f"{SAMPLE} --sampler weights --overwrite") == 0
    assert run("fit sample.nc --activation linear --C_W 1 --C_b 0.5 --closure GOnly") == 0
    with open("fit.json") as file:
        record = json.load(file)
    assert record["networks"] == 512
    for name, truth in (("C_W", C_W), ("C_b", C_B)):
        assert abs(record["parameters"][name]["value"] - truth) < 4 * record["parameters"][name]["stderr"]
    assert {"eps", "width"} <= record["held"].keys()
    np.testing.assert_allclose([record["held"]["eps"], record["held"]["width"]], [0.5, 64], rtol=1e-12)


def test_fit_takes_the_steps_that_a_file_has(linear):
    """Of each layer its own, and no parameters but those that the networks were sampled with."""
    eps = [0.5, 0.1, 0.3, 0.2]
    dataclasses.replace(linear[1], eps=np.array(eps)).save("steps.nc")
    _, settings, own = read_data(Path("steps.nc"))
    experiment = keft.Experiment(own, **settings)
    np.testing.assert_array_equal(experiment.eps, eps)
    assert experiment.layers == (0, 1, 2, 3, 4)
    assert eqx.tree_equal(own, keft.Model(keft.Linear(), C_W, C_B))


@pytest.mark.thorough
def test_fit_takes_the_steps_that_each_layer_had(key):
    """A fit uses the step of each layer: steps of 0.5 and 0.1 differ from two equal steps with the same sum of
    squares."""
    model, eps = keft.Model(keft.Linear(), 1.0), [0.5, 0.1]
    sizes = {"width": 4, "depth": 2, "networks": 64, "save_at": [0, 1, 2]}
    keft.estimate(model, [[1.0]], **sizes, eps=eps, key=key, progress=False).save("sample.nc")
    _, settings, own = read_data(Path("sample.nc"))
    experiment = keft.Experiment(own, **settings)
    np.testing.assert_allclose(experiment.eps, eps)
    at = {"layers": [1, 2], "closure": keft.GOnly()}
    theory = keft.solve(model, [[1.0]], eps=eps, **at)
    np.testing.assert_allclose(keft.solve(own, [[1.0]], eps=experiment.eps, **at).K0, theory.K0, rtol=1e-6)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("theory.nc", "theory.nc holds a theory, and `fit` wants sampled networks"),
        ("late.nc", "late.nc has layers [2, 3, 4, 5, 6], and `fit` wants layer 0"),
        ("kernels.npz", "kernels.npz does not say which activation its networks have: give `--activation`"),
        ("sample.nc --activation tanh", "sampled with linear, C_W = 1.5, C_b = 0.2, but the command line says tanh"),
        ("sample.nc --free C_W --C_b 0.5", "sampled with C_b = 0.2, but the command line says 0.5: leave it to"),
    ],
)
def test_fit_refuses_other_results(command, says, linear, kernels, monkeypatch, capsys):
    """Files are here, and what they hold is at hand: reading takes half a second."""
    theory, sampled = linear
    late = dataclasses.replace(sampled, layers=sampled.layers + 2)
    Path("late.nc").touch()
    held = {"theory.nc": theory, "sample.nc": sampled, "late.nc": late}
    monkeypatch.setattr(keft.storage, "load", lambda path: held[path.name])
    assert run(f"fit {command}") == 2
    assert says in capsys.readouterr().err


def test_a_fit_that_did_not_converge_fails(monkeypatch, kernels, capsys, tmp_path):
    """A fit that did not converge writes and prints what it found, and the exit code is 1."""
    found = keft.fit

    def stopped(*args, **options):
        return dataclasses.replace(found(*args, **options), converged=False)

    monkeypatch.setattr(keft.inference, "fit", stopped)
    assert run("fit kernels.npz --activation linear --closure GOnly") == 1
    printed = capsys.readouterr()
    assert "NOT CONVERGED" in printed.out
    assert "kernel-eft: The fit did not converge, and fit.json and fit.png hold where it stopped" in printed.err
    assert not json.loads((tmp_path / "fit.json").read_text())["converged"]


@pytest.mark.parametrize(
    ("depths", "ts", "growth", "share"),
    [
        pytest.param(
            *("--T 1 --times 3", 0.5 * np.arange(3), np.exp(0.25 * np.arange(3)), 0.5),
            marks=[pytest.mark.thorough, pytest.mark.drawn],
        ),
        ("--eps 0.5 --depth 4 --times 5", X * np.arange(5), (1 + 0.5 * X) ** np.arange(5), 0.5 / (1 + 0.5 * X)),
    ],
    ids=["continuum", "layers"],
)
def test_sensitivity_of_a_linear_network(depths, ts, growth, share, tmp_path, capsys):
    """From 2 at C_b = 0, K0 grows by exp(C_W t), or by 1 + eps^2 C_W a layer. So d ln K0 / d ln C_W is C_W t, or
    C_W t / (1 + eps^2 C_W), and dK0/dC_b is (growth - 1) / C_W."""
    theory = f"--activation linear --C_W 0.5 --inputs 1 {depths} --closure GOnly"
    assert run(f"sensitivity {theory} --out slopes.npz") == 0
    with np.load(tmp_path / "slopes.npz") as data:
        place, saved, slopes = data["names"].tolist().index("C_W"), data["ts"], data["dK0"]
    np.testing.assert_allclose(saved, ts)
    np.testing.assert_allclose(slopes[place, :, 0, 0], share * ts * 2 * growth / 0.5, atol=1e-6)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert float(rows["C_W"][1]) == pytest.approx(share * ts[-1], rel=1e-3)  # per cent for one per cent
    assert rows["C_W"][-1] == "relative"
    assert rows["C_b"][-1] == "derivative"
    assert float(rows["C_b"][1]) == pytest.approx((growth[-1] - 1) / 0.5, rel=1e-3)


@pytest.fixture(scope="module")
def linear_networks(tmp_path_factory):
    """A file of networks of two inputs, which the thorough tests below share."""
    file = tmp_path_factory.mktemp("networks") / "sample.nc"
    sizes = "--width 64 --depth 4 --eps 0.5 --networks 4096 --times 5"
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        assert run(f"sample --activation linear --inputs 2 --C_W 1 {sizes} --out {file}") == 0
    return file


@pytest.fixture
def sample(linear_networks, in_an_empty_directory):
    shutil.copy(linear_networks, "sample.nc")


def test_an_error_that_is_not_known_is_said():
    """Of a kinked activation a low degree cannot tell what it leaves out of K1: that bound is NaN."""
    bounds = types.SimpleNamespace(V4=np.array([0.0, 0.6]), K1=np.full(2, np.nan))
    *said, _ = accuracy_notes(types.SimpleNamespace(truncation=bounds, stats={"expectation_error": 0.0}))  # pyright: ignore
    assert said == [
        "Errors estimate what the degree leaves out: over all entries and depths V4 0.6.",
        "The degree is too low to tell what it leaves out of K1.",
    ]


def at(theory, places, **changes):
    """A theory at some of its layers alone, with other changes."""
    ts, packed = jax.tree.map(lambda x: np.asarray(x)[places], (theory.ts, theory.packed))
    return dataclasses.replace(theory, **({"ts": ts, "packed": packed, "layers": tuple(places)} | changes))


class TestCompare:
    """A theory against networks: linear units, whose moments are known at every width and depth."""

    def test_the_right_theory_of_one_input_is_within_errors(self, linear, capsys):
        """5 depths of 3 quantities: 5 standard errors have false alarm below 1e-4. The mean kernel of a theory is K0 +
        K1 / n, which for linear units is K0; four depths are shown."""
        assert run("compare theory.nc sample.nc --json") == 0
        record, (K0, V4) = json.loads(capsys.readouterr().out), linear_moments()
        assert [(row["quantity"], row["layer"]) for row in record["rows"]] == [
            (name, layer) for name in ("G", "K1", "V4") for layer in (0, 1, 2, 4)
        ]
        assert all(abs(float(row["largest"])) < 5 for row in record["rows"])
        shown = {name: [r["theory [0..]"] for r in record["rows"] if r["quantity"] == name] for name in ("G", "V4")}
        np.testing.assert_allclose(shown["G"], K0[[0, 1, 2, 4]], rtol=1e-12)
        np.testing.assert_allclose(shown["V4"], V4[[0, 1, 2, 4]], rtol=1e-12)
        found, sampled = compare(*linear), linear[1]
        deviation = (sampled.G[:, 0, 0] - K0) / sampled.stderr.G[:, 0, 0]
        np.testing.assert_allclose(found.quantities["G"].deviation[:, 0, 0], deviation, rtol=1e-9)
        assert [row["difference"] for row in record["rows"][:4]] == [f"{d:+.1f}" for d in deviation[[0, 1, 2, 4]]]
        largest = f"largest difference of G = {np.abs(deviation).max():.2g} standard errors, of 5 numbers"
        assert largest in str(found)

    def test_a_comparison_is_drawn_above_its_deviations(self, linear):
        """Curves of the theory and points of the networks; below, points with bars of one standard error."""
        found = compare(*linear)
        panels = found.plot().axes
        for name, above, below in zip(("G", "V4", "K1"), panels[:3], panels[3:], strict=True):
            one = found.quantities[name]
            for panel, theory, sampled, bar in (
                (above, one.theory, one.sampled, one.stderr),
                (below, 0 * one.theory, one.deviation, np.ones(5)),
            ):
                (curve,) = (line for line in panel.get_lines() if line.get_label() == "theory")
                np.testing.assert_array_equal(curve.get_ydata(), theory.ravel())
                points, _, (segments,) = panel.containers[0].lines
                np.testing.assert_array_equal(points.get_ydata(), sampled.ravel())
                half = [np.ptp(segment[:, 1]) / 2 for segment in segments.get_segments()]
                np.testing.assert_allclose(half, bar.ravel(), rtol=1e-9)

    def test_what_is_the_same_is_no_difference(self, linear, capsys):
        """A model in single precision, or none in the file; a theory of some of the layers. A theory of the continuum,
        whose K0 differs from that of layers by terms of order eps^2, is compared at the depth times that both have."""
        theory, sampled = linear
        single = jax.tree.map(lambda x: x.astype(jnp.float32), theory.model)
        for same in (eqx.tree_at(lambda s: s.model, theory, single), dataclasses.replace(theory, model=None)):
            assert compare(same, sampled).layers.tolist() == [0, 1, 2, 3, 4]
        some = compare(at(theory, [0, 1, 4]), sampled)
        assert some.layers.tolist() == [0, 1, 4]
        np.testing.assert_array_equal(some.quantities["V4"].sampled, sampled.V4[[0, 1, 4]])
        np.testing.assert_allclose(some.quantities["V4"].theory, theory.V4[np.array([0, 1, 4])], rtol=1e-12)
        ts, K0 = np.asarray(theory.ts), np.exp(C_W * np.asarray(theory.ts)) * (1 + C_B / C_W) - C_B / C_W
        packed = eqx.tree_at(lambda m: m.K0, theory.packed, K0[:, None])
        continuum = dataclasses.replace(theory, packed=packed, layers=None, eps=None)
        found = compare(at(continuum, [0, 2, 4], layers=None), sampled)
        assert found.layers.tolist() == [0, 2, 4]
        np.testing.assert_array_equal(found.ts, ts[[0, 2, 4]])
        np.testing.assert_allclose(found.quantities["G"].theory.ravel(), K0[[0, 2, 4]], rtol=1e-12)
        keft.save(continuum, "continuum.nc")
        assert run("compare continuum.nc sample.nc --out -") == 0
        assert "The theory is of the continuum: layers differ from it" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"model": keft.Model(keft.Linear(), 1.1, C_B)}, "models of theory and networks differ"),
            ({"K0": [[2.0]]}, r"The input kernels differ: entry \[0, 0\] is 2 of the theory and 1 of the networks"),
            # Layer 4 of eps = 0.25 and layer 1 of eps = 0.5 are at one depth time, and are different networks.
            ({"eps": 0.25}, r"layer 1 is at t = 0\.0625 of the theory, and at 0\.25 of the networks"),
            pytest.param({"K0": np.eye(2)}, "The theory has 2 inputs and the networks 1", marks=pytest.mark.thorough),
            pytest.param(
                {"layers": [0, 5]},
                r"no depth in common but zero: t = 0, 1\.25 there, 0, 0\.25, 0\.5, 0\.75, \.\.\. 1 here",
                marks=pytest.mark.thorough,
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, changes, says, linear):
        theory, sampled = linear
        setting = {"model": theory.model, "K0": [[1.0]], "layers": range(5), "eps": 0.5} | changes
        with pytest.raises(ValueError, match=says):
            compare(keft.solve(**setting, closure=keft.GOnly()), sampled)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (
                lambda s: eqx.tree_at(lambda s: s.packed.K0, s, np.ones((5, 3))),
                "The theory has 2 inputs and the networks 1",
            ),
            (
                lambda s: dataclasses.replace(s, layers=(0, 5, 6, 7, 8), ts=X * np.array([0, 5, 6, 7, 8])),
                r"but zero: t = 0, 1\.25, 1\.5, 1\.75, \.\.\. 2 there, 0, 0\.25, 0\.5, 0\.75, \.\.\. 1 here",
            ),
            (
                lambda s: at(s, [0, 2], eps=np.array([0.1, 0.7])),
                r"layer 1 has eps = 0\.1 in the theory and 0\.5 in the networks",
            ),
            (
                lambda s: eqx.tree_at(lambda s: s.packed.K0, at(s, [2]), 2 * s.packed.K0[2:3]),
                r"kernels at layer 2 differ: entry \[0, 0\] is 4\.0",
            ),
        ],
        ids=["inputs", "depths", "steps between saved depths", "kernels behind the inputs"],
    )
    def test_a_theory_of_other_networks_is_refused(self, change, says, linear):
        theory, sampled = linear
        with pytest.raises(ValueError, match=says):
            compare(change(theory), sampled)

    def test_files_in_the_wrong_place(self, linear, capsys):
        assert run("compare sample.nc sample.nc") == 2
        assert "Arguments `theory` and `sample` name one file" in capsys.readouterr().err
        assert run("compare sample.nc theory.nc") == 2
        assert (
            "sample.nc holds sampled networks: `kernel-eft compare` wants a file of `kernel-eft theory`"
            in capsys.readouterr().err
        )

    @pytest.mark.usefixtures("sample")
    @pytest.mark.thorough
    @pytest.mark.drawn
    def test_the_right_theory_is_within_errors(self, capsys):
        """4 depths of 6 quantities, at most 9 entries each, mostly dependent: 5 standard errors have false alarm below
        1e-4.

        Relative errors of order 1/n, 1.6 %, would show in V4 at 4096 networks, whose relative standard error is 2 %,
        below one.
        """
        assert run("theory --activation linear --C_W 1 --eps 0.5 --depth 4 --times 5 --degree 2") == 0
        capsys.readouterr()
        assert run("compare theory.nc sample.nc --json") == 0
        record = json.loads(capsys.readouterr().out)
        assert {row["quantity"] for row in record["rows"]} == {"G", "K1", "V4", "U1", "V_GS", "V_SS"}
        assert any("what the degree leaves out" in note for note in record["notes"])
        assert all(abs(float(row["largest"])) < 5 for row in record["rows"])
        assert all(abs(float(row["difference"])) <= abs(float(row["largest"])) for row in record["rows"])
        last = [row for row in record["rows"] if row["quantity"] == "V4"][-1]
        assert last["layer"] == 4
        assert last["theory [0..]"] == pytest.approx(2 * (2 * 1.25**4) ** 2 * self.relative_variance(), rel=1e-6)

    @staticmethod
    def relative_variance():
        """n Cov(G, G) / (2 E[G]^2) of one input at order 1/n: each layer multiplies G by 1 + eps^2 C_W and adds eps^2
        C_W noise twice.

        G' = G + 2 eps phi.h / n + eps^2 h.h / n with h N(0, C_W G): variance (4 eps^2 C_W + 2 eps^4 C_W^2) G^2 / n a
        layer.
        """
        x, v = 0.25, 2.0
        for _ in range(4):
            v = v + (4 * x + 2 * x**2) / (1 + x) ** 2
        return v / 2

    @pytest.mark.thorough
    def test_networks_that_differ_between_the_saved_depths_are_refused(self, key):
        """Steps in another order end at one depth time, and inputs of another kernel show at every depth, saved or
        not; the precision of the two makes no difference."""
        model = keft.Model(keft.Linear(), 1.0)
        sizes = {"width": 8, "depth": 3, "networks": 64, "key": key, "progress": False, "save_at": [2]}
        sampled = keft.estimate(model, np.ones((1, 1), np.float32), eps=[0.3, 0.6, 0.1], **sizes)
        at = {"layers": [2], "closure": keft.GOnly()}
        with pytest.raises(ValueError, match=r"layer 1 has eps = 0\.6 in the theory and 0\.3 in the networks"):
            compare(keft.solve(model, [[1.0]], eps=[0.6, 0.3], **at), sampled)
        with pytest.raises(ValueError, match=r"kernels at layer 2 differ: entry \[0, 0\] is 2\.96"):
            compare(keft.solve(model, [[2.0]], eps=[0.3, 0.6], **at), sampled)
        right = keft.solve(model, [[1.0]], eps=[0.3, 0.6], **at)
        single = jax.tree.map(lambda x: x.astype(jnp.float32), model)
        assert compare(eqx.tree_at(lambda s: s.model, right, single), sampled).layers.tolist() == [2]

    @pytest.mark.thorough
    def test_rounding_of_networks_is_no_deviation(self, key):
        """Features behind a norm have one mean square, S_aa = 1 in every network: what float32 leaves of V_SS, 1e-12,
        and of K1 and U1 is no deviation from zero. A V4 of 1.3 times the size deviates."""
        model = keft.Model([keft.Dense(1.0), keft.RMSNorm(), keft.Dense(1.5)])
        sampled = keft.estimate(model, [[2.0]], width=64, depth=1, eps=0.5, networks=500, key=key, progress=False)
        theory = keft.solve(model, [[2.0]], layers=[0, 1], eps=0.5)
        found = compare(theory, sampled).quantities
        assert found["V_SS"].sampled.max() > 0
        assert all(np.abs(found[name].deviation).max() == 0 for name in ("V_SS", "K1", "U1"))
        assert 0 < np.abs(found["V4"].deviation).max() < 4.5
        other = eqx.tree_at(lambda s: s.packed, theory, jax.tree.map(lambda x: 1.3 * x, theory.packed))
        assert (
            np.abs(
                compare(eqx.tree_at(lambda s: s.packed.K0, other, theory.packed.K0), sampled).quantities["V4"].deviation
            ).max()
            > 3
        )
