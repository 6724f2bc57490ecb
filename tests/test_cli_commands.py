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
from kernel_eft_jax.cli.commands.fit import read_data
from kernel_eft_jax.cli.results import accuracy_notes
from kernel_eft_jax.diagnostics import compare
from kernel_eft_jax.studies import kawase_ota


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


@pytest.mark.thorough
@pytest.mark.drawn
def test_fit_finds_what_the_kernels_were_sampled_with(tmp_path, capsys):
    """512 linear networks, drawn in NumPy and read from a file as any framework would write it: truth within 4 errors.

    Given phi, increments are N(0, C_b + C_W G).
    """
    rng, width, eps = np.random.default_rng(0), 16, 0.4
    phi, G = rng.standard_normal((512, 1, width)), []
    for layer in range(1, 7):
        Q = 0.2 + 1.5 * np.mean(phi**2, axis=2, keepdims=True)
        phi = phi + eps * np.sqrt(Q) * rng.standard_normal(phi.shape)
        if layer in (3, 6):
            G.append(phi @ phi.swapaxes(1, 2) / width)
    np.savez(tmp_path / "kernels.npz", G=np.stack(G, axis=1), K0=[[1.0]], layers=[3, 6], width=width, eps=eps)
    out = tmp_path / "fit.json"
    start = ["--activation", "linear", "--C_W", "1", "--C_b", "0.5", "--closure", "GOnly"]
    assert cli.main(["fit", str(tmp_path / "kernels.npz"), *start, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    for name, truth in (("C_W", 1.5), ("C_b", 0.2)):
        assert abs(record["parameters"][name]["value"] - truth) < 4 * record["parameters"][name]["stderr"]
    assert record["held"] == {"decay": 0.0, "eps": 0.4, "width": 16.0, "K0_scale": 1.0}
    printed = capsys.readouterr()
    assert "C_W = " in printed.out
    assert "steps/s" in printed.err  # the bar: not in what is piped on
    assert "steps/s" not in printed.out
    assert out.with_suffix(".png").stat().st_size > 10_000
    more = [*start, "--free", "C_W", "C_b", "eps", "--out", str(out), "--overwrite"]
    assert cli.main(["fit", str(tmp_path / "kernels.npz"), *more]) == 2
    assert "eps" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sampler", [pytest.param("block", marks=pytest.mark.thorough), pytest.param("weights", marks=pytest.mark.slow)]
)
def test_fit_takes_what_sample_writes(sampler):
    """Of linear networks, whose mean kernel is known at every width: truth within 4 standard errors; false alarm
    1e-3."""
    ensemble = f"--width 16 --depth 6 --eps 0.4 --networks 512 --times 3 --sampler {sampler}"
    command = f"sample --activation linear --C_W 1.5 --C_b 0.2 --inputs 1 --diagonal 1 {ensemble}"
    assert run(command) == 0
    command = "fit sample.nc --activation linear --C_W 1 --C_b 0.5 --closure GOnly"
    assert run(command) == 0
    with open("fit.json") as file:
        record = json.load(file)
    assert record["networks"] == 512
    for name, truth in (("C_W", 1.5), ("C_b", 0.2)):
        assert abs(record["parameters"][name]["value"] - truth) < 4 * record["parameters"][name]["stderr"]
    assert {"eps", "width"} <= record["held"].keys()
    np.testing.assert_allclose([record["held"]["eps"], record["held"]["width"]], [0.4, 16], rtol=1e-12)


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


@pytest.mark.thorough
def test_fit_refuses_other_results(capsys):
    command = "theory --activation linear --inputs 1 --eps 0.5 --depth 4 --times 5 --closure GOnly"
    assert run(command) == 0
    assert cli.main(["fit", "theory.nc"]) == 2
    assert "theory.nc holds a theory, and `fit` wants sampled networks" in capsys.readouterr().err
    model = keft.Model(keft.Linear(), 1.0)
    late = keft.estimate(
        model, [[1.0]], width=8, depth=4, eps=0.5, networks=64, key=jax.random.key(0), save_at=[2, 4], progress=False
    )
    keft.save(late, "late.nc")
    assert cli.main(["fit", "late.nc"]) == 2
    assert "late.nc has layers [2, 4], and `fit` wants layer 0" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_fit_that_did_not_converge_fails(monkeypatch, capsys, tmp_path):
    """A fit that did not converge writes and prints what it found, and the exit code is 1."""
    rng = np.random.default_rng(0)
    G = rng.chisquare(16, (64, 1, 1, 1)) / 16 * 1.24
    np.savez("kernels.npz", G=G, K0=[[1.0]], layers=[1], width=16, eps=0.4)
    found = keft.fit

    def stopped(*args, **options):
        return dataclasses.replace(found(*args, **options), converged=False)

    monkeypatch.setattr(keft.inference, "fit", stopped)
    command = "fit kernels.npz --activation linear --free C_W --closure GOnly"
    assert run(command) == 1
    printed = capsys.readouterr()
    assert "NOT CONVERGED" in printed.out
    assert "kernel-eft: The fit did not converge, and fit.json and fit.png hold where it stopped" in printed.err
    assert not json.loads((tmp_path / "fit.json").read_text())["converged"]


@pytest.mark.thorough
@pytest.mark.drawn
def test_sensitivity_of_a_linear_network(tmp_path, capsys):
    """K0' = C_b + C_W K0 at C_b = 0: dK0/dC_W = t K0(t), dK0/dC_b = (exp(C_W t) - 1) / C_W."""
    theory = "--activation linear --C_W 0.5 --T 1 --times 3 --inputs 1 --closure GOnly"
    assert run(f"sensitivity {theory} --out slopes.npz") == 0
    with np.load(tmp_path / "slopes.npz") as data:
        place, ts, slopes = data["names"].tolist().index("C_W"), data["ts"], data["dK0"]
    np.testing.assert_allclose(slopes[place, :, 0, 0], ts * 2 * np.exp(0.5 * ts), atol=1e-6)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert float(rows["C_W"][1]) == pytest.approx(0.5, rel=1e-3)  # per cent for one per cent: C_W t
    assert rows["C_W"][-1] == "relative"
    assert rows["C_b"][-1] == "derivative"
    assert float(rows["C_b"][1]) == pytest.approx((np.exp(0.5) - 1) / 0.5, rel=1e-3)


@pytest.fixture(scope="module")
def linear_networks(tmp_path_factory):
    """A file of sampled networks, which the tests below share."""
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


@pytest.mark.thorough
def test_step_sizes_that_differ_are_refused(key):
    """Layer 9 of eps = 0.5 / 3 and layer 1 of eps = 0.5 are at one depth time, and are different networks.

    Equal ones are compared: the mean kernel is K0 + K1 / n, which for linear units is 1.25^l, in standard errors."""
    model = keft.Model(keft.Linear(), 1.0)
    sampled = keft.estimate(model, [[1.0]], width=8, depth=9, eps=0.5, networks=64, key=key, progress=False)
    at = {"layers": [0, 1, 9], "closure": keft.GOnly()}
    theory = keft.solve(model, [[1.0]], eps=0.5 / 3, **at)
    with pytest.raises(ValueError, match=r"layer 1 is at t = 0\.0277778 of the theory, and at 0\.25 of the networks"):
        compare(theory, sampled)
    found = compare(keft.solve(model, [[1.0]], eps=0.5, **at), sampled)
    assert found.layers.tolist() == [0, 1, 9]
    G, K0 = found.quantities["G"], np.array([1.0, 1.25, 1.25**9])
    np.testing.assert_allclose(G.theory[:, 0, 0], K0, rtol=1e-12)
    deviation = (sampled.G[[0, 1, 9], 0, 0] - K0) / sampled.stderr.G[[0, 1, 9], 0, 0]
    np.testing.assert_allclose(G.deviation[:, 0, 0], deviation, rtol=1e-9)
    assert np.abs(deviation).max() < 5


@pytest.mark.thorough
@pytest.mark.usefixtures("sample")
class TestCompare:
    """A theory against networks: linear units, whose moments are known at every width and depth."""

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

    def test_a_theory_of_another_model_is_refused(self, capsys):
        assert run("theory --activation linear --C_W 1.1 --eps 0.5 --depth 4 --times 5 --degree 2") == 0
        capsys.readouterr()
        assert run("compare theory.nc sample.nc --json") == 2
        assert "models of theory and networks differ" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("theory", "says"),
        [
            ("--inputs 1 --eps 0.5 --depth 4 --times 5 --closure GOnly", "The theory has 1 inputs and the networks 2"),
            (
                "--diagonal 1 --eps 0.5 --depth 4 --times 5",
                "The input kernels differ: entry [0, 0] is 1 of the theory and 2",
            ),
            (
                "--eps 0.5 --depth 5 --times 2 --closure GOnly",
                "no depth in common but zero: t = 0, 1.25 there, 0, 0.25, 0.5, 0.75, ... 1 here",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, theory, says, capsys):
        assert run(f"theory --activation linear --C_W 1 {theory}") == 0
        assert run("compare theory.nc sample.nc") == 2
        assert says in capsys.readouterr().err

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

    def test_files_in_the_wrong_place(self, capsys):
        assert cli.main(["compare", "sample.nc", "sample.nc"]) == 2
        assert "Arguments `theory` and `sample` name one file" in capsys.readouterr().err
        assert run("theory --activation linear --inputs 1 --eps 0.5 --depth 4 --times 5 --closure GOnly") == 0
        assert cli.main(["compare", "sample.nc", "theory.nc"]) == 2
        assert (
            "sample.nc holds sampled networks: `kernel-eft compare` wants a file of `kernel-eft theory`"
            in capsys.readouterr().err
        )
