"""The command line: what it computes, what it writes, and one clear sentence for every mistake."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax import cli, paper, storage
from kernel_eft_jax.ensemble import Estimate
from kernel_eft_jax.ensemble.checkpoint import Checkpoint


def load_solution(path: str) -> keft.Solution:
    result = storage.load(path)
    assert isinstance(result, keft.Solution)
    return result


def activation(text: str) -> keft.Activation:
    return cli._model(cli.parser().parse_args(["theory", "--activation", text])).activation


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_theory_in_the_continuum(capsys):
    # Linear activation: K0(t) = K0 exp(C_W t), V4 = (1 + 2 C_W t) Wick(K0(t)).
    command = "theory --activation linear --C_W 0.7 --diagonal 1.5 --off-diagonal 0.5 --T 1 --times 3 --out a.nc"
    assert cli.main(command.split()) == 0
    solution = load_solution("a.nc")
    np.testing.assert_allclose(solution.ts, [0, 0.5, 1])
    np.testing.assert_allclose(solution.K0[-1, 0], np.exp(0.7) * np.array([1.5, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(solution.V4[-1, 0, 0, 0, 0], 2.4 * 2 * (1.5 * np.exp(0.7)) ** 2, rtol=1e-6)
    assert f"{1.5 * np.exp(0.7):.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_theory_by_layers_from_a_kernel_file(suffix):
    K0 = np.array([[1.5, 0.5], [0.5, 1.0]])
    if suffix == "npy":
        np.save("K0.npy", K0)
    else:
        np.savetxt("K0.csv", K0, delimiter=",")
    command = f"theory --activation linear --C_W 2 --K0 K0.{suffix} --eps 0.5 --depth 4 --times 3"
    assert cli.main(command.split()) == 0
    solution = load_solution("theory.nc")
    np.testing.assert_allclose(solution.ts, [0, 0.5, 1])
    np.testing.assert_allclose(solution.K0[1], 1.5**2 * K0, rtol=1e-12)


def test_theory_of_a_tower_states_its_truncation(capsys):
    command = "theory --activation sin --inputs 1 --closure hermite-tower --degree 4 --eps 0.5 --depth 2 --times 2"
    assert cli.main(command.split()) == 0
    assert "truncation error" in capsys.readouterr().out
    assert load_solution("theory.nc").truncation is not None


@pytest.mark.parametrize(("sampler", "control"), [("block", True), ("weights", False)])
def test_sample(sampler, control, capsys):
    command = (
        f"sample --activation sin --width 6 --depth 4 --eps 0.5 --networks 70 --seed 3 --times 3 --sampler {sampler}"
    )
    assert cli.main(command.split()) == 0
    estimate = storage.load("sample.nc")
    assert isinstance(estimate, Estimate)
    assert (estimate.networks, estimate.width) == (70, 6)
    np.testing.assert_array_equal(estimate.layers, [0, 2, 4])
    assert (estimate.V4_excess is not None) == control
    assert "±" in capsys.readouterr().out


SAMPLE = "sample --activation sin --inputs 2 --width 6 --depth 4 --eps 0.5 --times 3"


def test_sampling_stops_at_a_target():
    """The error of G[01] of 2,000 networks is 0.7 / sqrt(2,000): 0.05 needs about 200 of them, in rounds of 32 blocks."""
    assert cli.main([*SAMPLE.split(), "--networks", "2000", "--target", "G:0,1", "0.05"]) == 0
    estimate = storage.load("sample.nc")
    assert isinstance(estimate, Estimate)
    assert estimate.networks < 2000
    assert estimate.stderr.G[-1, 0, 1] <= 0.05


def test_sampling_goes_on_after_an_interruption(monkeypatch, capsys):
    """Interrupted at its third block, with a file: one sentence and exit code 130; the same command then gives what it would have."""
    command = [*SAMPLE.split(), "--networks", "256"]
    assert cli.main([*command, "--out", "whole.nc"]) == 0
    due = iter([False, False, True])

    def interrupt(checkpoint):
        if next(due):
            raise KeyboardInterrupt
        return False

    command += ["--checkpoint", "run.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "is_due", interrupt)
        assert cli.main(command) == 130
    assert "kernel-eft: Stopped; the same call goes on from run.npz.\n" in capsys.readouterr().err
    with np.load("run.npz") as file:
        assert file["parts"] == 3
    assert cli.main(command) == 0
    whole, parts = storage.load("whole.nc"), storage.load("sample.nc")
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True))


def test_activation_parameters_arrive():
    x = jnp.array([-2.0, 3.0])
    np.testing.assert_allclose(activation("leaky-relu:slope=0.3")(x), [-0.6, 3])
    np.testing.assert_allclose(activation("polynomial:coefficients=0,1,-0.5")(x), x - 0.5 * x**2)


@pytest.mark.parametrize("name", cli.ACTIVATIONS)
def test_every_activation_has_a_name(name):
    extra = ":coefficients=0,1" if name == "polynomial" else ""
    assert type(activation(name + extra)).__name__.lower() == name.replace("-", "")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("theory --activation tahn", "Unknown activation 'tahn'. Did you mean tanh? Known: tanh, erf, relu"),
        ("theory --activation LeakyReLU", "Did you mean leaky-relu?"),
        ("theory --activation softplus:beta=sharp", "'beta=sharp' must read PARAMETER=NUMBER"),
        ("theory --activation tanh:beta=2", "'tanh' does not go with the parameters 'beta=2'"),
        ("theory --C_W -1", "`C_W` is a variance and must be finite and not negative, but is -1.0"),
        ("theory --diagonal 1 --off-diagonal 1.5", "positive semi-definite, but its smallest eigenvalue is -0.5"),
        ("theory --diagonal -1 --off-diagonal 0", "positive variances"),
        ("theory --diagonal nan", "`K0` must be finite"),
        ("theory --inputs 0", "`--inputs` must be a whole number, 1 or more, but is 0"),
        ("theory --times 1", "`--times` must be a whole number, 2 or more, but is 1"),
        ("theory --T -1", "`--T` must be a finite number greater than zero, but is -1.0"),
        ("theory --depth 4", "`--depth` counts layers: give `--eps` too"),
        ("theory --eps 0.1", "`--eps` asks for layers: give their number as `--depth`"),
        ("theory --eps 0 --depth 4", "`--eps` must be a finite number greater than zero, but is 0.0"),
        ("theory --degree 8", "`--degree` belongs to sigma-kernel and hermite-tower"),
        ("theory --closure hermite-tower --degree 1", "`degree` must be a whole number, 2 or more, but is 1"),
        ("theory --K0 nothing.npy", "nothing.npy: No such file or directory"),
        ("theory --K0 K0.txt", "`--K0` must name a .npy or .csv file, but is K0.txt"),
        ("theory --K0 words.csv", "words.csv does not hold a matrix of numbers"),
        ("theory --K0 wide.csv", "`K0` must be a square matrix (inputs, inputs), but has shape (1, 3)"),
        ("theory --out nowhere/a.nc", "must lie in a directory that exists, but nowhere does not"),
        ("sample --width 0", "`width` must be a whole number, 1 or more, but is 0"),
        ("sample --depth 0", "`depth` must be a whole number, 1 or more, but is 0"),
        ("sample --eps -0.1", "`eps` must be a finite number greater than zero, but is -0.1"),
        ("sample --networks 1", "`networks` must be a whole number, 64 or more, but is 1"),
        (
            "sample --target K2 0.1",
            "`--target` must name one of G, S, K1, U1, V4, V_GS, V_SS, kappa4, V4_excess, but names 'K2'",
        ),
        ("sample --target V4_excess 0.1 --sampler weights", "V_SS, kappa4, but names 'V4_excess'"),
        ("sample --target V4:0,1 0.1", "`--target` must be like V4:0,0,0,0, of inputs 0 to 1, but is V4:0,1"),
        ("sample --target K1:0,2 0.1", "`--target` must be like K1:0,0, of inputs 0 to 1, but is K1:0,2"),
        ("sample --target K1 small", "`--target` must end in a number, the standard error wanted, but ends in 'small'"),
        ("sample --target K1 0", "`--target` must be a finite number greater than zero, but is 0.0"),
        ("sample --checkpoint nowhere/run.npz", "`checkpoint` must name a file in a folder that exists"),
        ("paper --full", "`--full` goes with `--all`"),
        ("fit one.npy", "one.npy must be an .npz file with the arrays G, K0, layers, width, eps, but G, K0, layers"),
        ("fit empty.npz", "empty.npz is not an .npz file of numbers: No data left in file"),
        ("fit nothing.nc", "nothing.nc: No such file or directory"),
        ("fit words.csv --out r.png", "`--out` must end in .json, but is r.png"),
        ("sensitivity --out r.dat", "`--out` must end in .npz, but is r.dat"),
        ("validity --tolerance 0", "`tolerance` must be a finite number greater than zero"),
        ("paper --networks 0", "`networks` must be a whole number, 64 or more, but is 0"),
    ],
)
def test_a_mistake_gets_one_sentence(command, says, tmp_path, capsys):
    (tmp_path / "words.csv").write_text("1,one\n")
    (tmp_path / "wide.csv").write_text("1,2,3\n")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "one.npy", np.ones((20, 1, 1, 1)))
    assert cli.main(command.split()) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.startswith("kernel-eft: ")
    assert message.count("\n") == 1
    assert not list(tmp_path.glob("*.nc"))


def test_a_run_that_fails_says_where(capsys):
    command = "theory --activation polynomial:coefficients=0,0,0,1 --inputs 1 --eps 1 --depth 40 --times 2"
    assert cli.main(command.split()) == 1
    assert "K0[0, 0] at depth t = 40" in capsys.readouterr().err


def test_interrupting_ends_quietly(monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(paper, "main_job", interrupted)
    assert cli.main(["paper"]) == 130
    assert capsys.readouterr().err == "kernel-eft: interrupted\n"


def item(name):
    return paper.Item([paper.Section(name, "why", [paper.Row("a number", 1.0, None, 1.0, None)])], {}, {})


def test_paper_runs_the_study_and_writes_it(monkeypatch, capsys, tmp_path):
    calls = {}

    def main_job(networks, key):
        calls["networks"], calls["key"] = networks, key
        return "study"

    monkeypatch.setattr(paper, "main_job", main_job)
    monkeypatch.setattr(paper, "main_item", item)
    assert cli.main(["paper", "--networks", "500", "--seed", "7", "--out", "deep/results"]) == 0
    assert calls == {"networks": 500, "key": jax.random.key(7)}
    out = capsys.readouterr().out
    assert "### study" in out
    assert "2 files in deep/results" in out
    assert "### study" in (tmp_path / "deep" / "results" / "table.md").read_text()


@pytest.mark.parametrize(("options", "size"), [(["--networks", "500"], 500), (["--full"], 5_000_000)])
def test_paper_all_writes_each_part_as_it_is_done(monkeypatch, capsys, tmp_path, options, size):
    def everything(sizes, key, checkpoint):
        assert (sizes.main, str(checkpoint)) == (size, "results/main-job.checkpoint")
        yield "main job", item("first")
        assert "### first" in (tmp_path / "results" / "table.md").read_text()
        yield "sweeps", item("second")

    monkeypatch.setattr(paper, "everything", everything)
    assert cli.main(["paper", "--all", *options]) == 0
    table = (tmp_path / "results" / "table.md").read_text()
    assert "### first" in table
    assert "### second" in table
    assert "2 files in results" in capsys.readouterr().out


def test_validity_of_linear_networks(tmp_path, capsys):
    """Euler steps of the kernel's closure leave out eps^4: t* is found; the rest is seen by test_diagnostics."""
    out = tmp_path / "window.png"
    options = [
        "--activation",
        "linear",
        "--inputs",
        "1",
        "--C_W",
        "1",
        "--depth",
        "3",
        "--eps",
        "0.5",
        "--tolerance",
        "0.1",
    ]
    assert cli.main(["validity", *options, "--networks", "256", "--degree", "2", "--out", str(out)]) == 0
    printed, record = capsys.readouterr().out, json.loads(out.with_suffix(".json").read_text())
    assert 0 < record["reach"]["G-only"]["V4"]["t_star"] < 0.75
    assert "V4 of G-only: up to t* = " in printed
    assert out.stat().st_size > 10_000
    assert out.with_suffix(".pdf").is_file()


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("paper", "theory", "sample", "validity"))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["theory", "--help"])
    assert "None" not in capsys.readouterr().out


def test_fit_finds_what_the_kernels_were_sampled_with(tmp_path, capsys):
    """400 networks of the package's own sampler, read from a file as any framework would write it: truth within 4 errors."""
    K0 = np.array([[1.0, 0.3], [0.3, 1.0]])
    G = keft.sample_kernels(
        keft.Model(keft.Tanh(), 1.5, 0.2),
        K0,
        width=64,
        depth=12,
        eps=0.3,
        networks=400,
        key=jax.random.key(0),
        save_at=[2, 6, 12],
    )
    np.savez(tmp_path / "kernels.npz", G=G, K0=K0, layers=[2, 6, 12], width=64, eps=0.3)
    out = tmp_path / "fit.json"
    start = ["--C_W", "1", "--C_b", "0.5", "--closure", "g-only"]
    assert cli.main(["fit", str(tmp_path / "kernels.npz"), *start, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    for name, truth in (("C_W", 1.5), ("C_b", 0.2)):
        assert abs(record["parameters"][name]["value"] - truth) < 4 * record["parameters"][name]["stderr"]
    assert record["held"] == {"eps": 0.3, "width": 64.0, "K0_scale": 1.0}
    printed = capsys.readouterr()
    assert "C_W = " in printed.out
    assert "steps/s" in printed.err  # the bar: not in what is piped on
    assert "steps/s" not in printed.out
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert cli.main(["fit", str(tmp_path / "kernels.npz"), "--free", "C_W", "C_b", "eps", "--out", str(out)]) == 2
    assert "eps" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["block", "weights"])
def test_fit_takes_what_sample_writes(sampler, capsys):
    """Of linear networks, whose mean kernel is known at every width: truth within 4 standard errors; false alarm 1e-3."""
    ensemble = f"--width 16 --depth 6 --eps 0.4 --networks 512 --times 3 --sampler {sampler}"
    command = f"sample --activation linear --C_W 1.5 --C_b 0.2 --inputs 1 --diagonal 1 {ensemble}"
    assert cli.main(command.split()) == 0
    command = "fit sample.nc --activation linear --C_W 1 --C_b 0.5 --closure g-only"
    assert cli.main(command.split()) == 0
    with open("fit.json") as file:
        record = json.load(file)
    assert record["networks"] == 512
    for name, truth in (("C_W", 1.5), ("C_b", 0.2)):
        assert abs(record["parameters"][name]["value"] - truth) < 4 * record["parameters"][name]["stderr"]
    assert {"eps", "width"} <= record["held"].keys()
    np.testing.assert_allclose([record["held"]["eps"], record["held"]["width"]], [0.4, 16], rtol=1e-12)


def test_fit_refuses_other_results(capsys):
    command = "theory --activation linear --inputs 1 --T 1 --times 2"
    assert cli.main(command.split()) == 0
    assert cli.main(["fit", "theory.nc"]) == 2
    assert "theory.nc holds a theory, and `fit` wants sampled networks" in capsys.readouterr().err
    model = keft.Model(keft.Linear(), 1.0)
    late = keft.estimate(
        model, [[1.0]], width=8, depth=4, eps=0.5, networks=64, key=jax.random.key(0), save_at=[2, 4], progress=False
    )
    keft.save(late, "late.nc")
    assert cli.main(["fit", "late.nc"]) == 2
    assert "late.nc has layers [2, 4], and `fit` wants layer 0" in capsys.readouterr().err


def test_a_fit_that_did_not_converge_fails(monkeypatch, capsys, tmp_path):
    """What it found is written and printed, and the exit code is 1."""
    rng = np.random.default_rng(0)
    G = rng.chisquare(16, (64, 1, 1, 1)) / 16 * 1.24
    np.savez("kernels.npz", G=G, K0=[[1.0]], layers=[1], width=16, eps=0.4)
    found = keft.fit

    def stopped(*args, **options):
        return found(*args, **options)._replace(converged=False)

    monkeypatch.setattr(cli.inference, "fit", stopped)
    command = "fit kernels.npz --activation linear --free C_W --closure g-only"
    assert cli.main(command.split()) == 1
    printed = capsys.readouterr()
    assert "NOT CONVERGED" in printed.out
    assert "kernel-eft: The fit did not converge, and fit.json holds where it stopped" in printed.err
    assert not json.loads((tmp_path / "fit.json").read_text())["converged"]


def test_sensitivity_of_a_linear_network(tmp_path, capsys):
    """K0' = C_b + C_W K0 at C_b = 0: dK0/dC_W = t K0(t), dK0/dC_b = (exp(C_W t) - 1) / C_W."""
    out = tmp_path / "slopes.npz"
    options = ["--activation", "linear", "--C_W", "0.5", "--T", "1", "--times", "3", "--inputs", "1"]
    assert cli.main(["sensitivity", *options, "--out", str(out)]) == 0
    with np.load(out) as data:
        place, ts, slopes = data["names"].tolist().index("C_W"), data["ts"], data["dK0"]
    np.testing.assert_allclose(slopes[place, :, 0, 0], ts * 2 * np.exp(0.5 * ts), atol=1e-6)
    relative, plain = capsys.readouterr().out.split("These are zero")
    rows = {line.split()[0]: line.split()[1:] for line in (relative + plain).splitlines() if line.startswith("  ")}
    assert float(rows["C_W"][0]) == pytest.approx(0.5, rel=1e-3)  # per cent for one per cent: C_W t
    assert "C_b" not in relative
    assert float(rows["C_b"][0]) == pytest.approx((np.exp(0.5) - 1) / 0.5, rel=1e-3)
