"""The command line: what it computes, what it writes, and one clear sentence for every mistake."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from commands import in_an_empty_directory as in_an_empty_directory
from commands import run
from commands import undrawn as undrawn

import kernel_eft_jax as keft
from kernel_eft_jax import cli, storage
from kernel_eft_jax.cli import models
from kernel_eft_jax.cli.arguments import read
from kernel_eft_jax.ensemble import Estimate
from kernel_eft_jax.ensemble.checkpoint import Checkpoint


def load_solution(path: str) -> keft.Solution:
    result = storage.load(path)
    assert isinstance(result, keft.Solution)
    return result


def activation(text: str) -> keft.Activation:
    return models.make_model(read(["theory", "--activation", text])).activation


@pytest.mark.thorough
def test_theory_in_the_continuum(capsys):
    # Linear activation: K0(t) = K0 exp(C_W t), V4 = (1 + 2 C_W t) Wick(K0(t)).
    command = "theory --activation linear --C_W 0.7 --diagonal 1.5 --off-diagonal 0.5 --T 1 --times 3"
    command += " --closure GOnly --out a.nc"
    assert run(command) == 0
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
    command = f"theory --activation linear --C_W 2 --K0 K0.{suffix} --eps 0.5 --depth 4 --times 3 --closure GOnly"
    assert run(command) == 0
    solution = load_solution("theory.nc")
    np.testing.assert_allclose(solution.ts, [0, 0.5, 1])
    np.testing.assert_allclose(solution.K0[1], 1.5**2 * K0, rtol=1e-12)


@pytest.mark.thorough
def test_theory_of_a_tower_states_its_truncation(capsys):
    command = "theory --activation erf --inputs 1 --closure HermiteTower --degree 4 --eps 0.5 --depth 2 --times 2"
    assert run(command) == 0
    assert "Errors estimate what the degree leaves out" in capsys.readouterr().out
    assert load_solution("theory.nc").truncation is not None


def test_closures_arrive():
    for name, closure in (("SigmaKernel", keft.SigmaKernel(4)), ("HermiteTower", keft.HermiteTower(4))):
        assert models.make_closure(read(["theory", "--closure", name, "--degree", "4"])) == closure
    assert models.make_closure(read(["theory", "--closure", "GOnly"])) == keft.GOnly()


@pytest.mark.drawn
@pytest.mark.parametrize(
    ("sampler", "control"), [pytest.param("block", True, marks=pytest.mark.thorough), ("weights", False)]
)
def test_sample(sampler, control, capsys):
    command = (
        f"sample --activation sin --width 6 --depth 4 --eps 0.5 --networks 70 --seed 3 --times 3 --sampler {sampler}"
    )
    assert run(command) == 0
    estimate = storage.load("sample.nc")
    assert isinstance(estimate, Estimate)
    assert (estimate.networks, estimate.width) == (70, 6)
    np.testing.assert_array_equal(estimate.layers, [0, 2, 4])
    assert (estimate.V4_excess is not None) == control
    assert "±" in capsys.readouterr().out


SAMPLE = "sample --activation sin --inputs 2 --width 6 --depth 4 --eps 0.5 --times 3"


@pytest.mark.thorough
def test_sampling_stops_at_a_target():
    """The error of G[01] of 2,000 networks is 0.7 / sqrt(2,000): 0.05 needs about 200 of them, in rounds of 32
    blocks."""
    assert cli.main([*SAMPLE.split(), "--networks", "2000", "--target", "G:0,1", "0.05"]) == 0
    estimate = storage.load("sample.nc")
    assert isinstance(estimate, Estimate)
    assert estimate.networks < 2000
    assert estimate.stderr.G[-1, 0, 1] <= 0.05


@pytest.mark.thorough
def test_sampling_goes_on_after_an_interruption(monkeypatch, capsys):
    """Interrupted at its third block, with a file: one sentence and exit code 130; the same command then gives what it
    would have."""
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


def test_every_activation_has_a_name():
    """All that numbers describe, by names that lead back to them, however people write them."""
    known = models.activation_classes()
    assert {"tanh", "erf", "relu", "leaky-relu", "gelu", "silu", "softplus", "sin", "linear", "polynomial"} <= set(
        known
    )
    for name, cls in known.items():
        extra = ":coefficients=0,1" if name == "polynomial" else ""
        for text in (name, name.upper(), name.replace("-", "_"), cls.__name__):
            assert type(activation(text + extra)) is cls
    assert isinstance(activation("swish"), keft.SiLU)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("theory --activation tahn", "Unknown activation 'tahn'. Did you mean tanh? Known: "),
        ("theory --activation softplus:beta=sharp", "'beta=sharp' in 'softplus:beta=sharp' must read PARAMETER=NUMBER"),
        ("theory --activation tanh:beta=2", "Activation tanh has no parameters, but 'tanh:beta=2' gives 'beta'"),
        ("theory --activation softplus:slope=2", "has the parameter beta, but 'softplus:slope=2' gives 'slope'"),
        ("theory --activation leaky-relu:slope=1,2", "slope of leaky-relu is one number, but"),
        ("theory --activation leaky-relu:0.1", "has the parameter slope, but 'leaky-relu:0.1' gives '0.1'"),
        ("theory --activation polynomial", "Activation polynomial needs coefficients"),
        (
            "theory --diagonal 1 --off-diagonal 1.5",
            "`--off-diagonal` must lie between -1 and --diagonal, 1, for 2 inputs, but is 1.5",
        ),
        ("theory --K0 nothing.npy", "nothing.npy: No such file or directory"),
        ("theory --K0 missing.csv", "missing.csv: No such file or directory"),
        ("theory --K0 K0.txt", "`--K0` must name a .npy or .csv file, but is K0.txt"),
        ("theory --K0 words.csv", "words.csv, line 1, has 'one' where a finite number is due"),
        ("theory --K0 wide.csv", "`--K0` must be a square matrix (inputs, inputs), but has shape (1, 3)"),
        ("sample --target K2 0.1", "`--target` must name one of G, S, K1, U1, V4, V_GS, V_SS, kappa4, V4_excess"),
        ("sample --target V4_excess 0.1 --sampler weights", "V_SS, kappa4, but names 'V4_excess'"),
        ("sample --target V4:0,1 0.1", "`--target` must be like V4:0,0,0,0, of inputs 0 to 1, but is V4:0,1"),
        ("sample --target K1:0,2 0.1", "`--target` must be like K1:0,0, of inputs 0 to 1, but is K1:0,2"),
        ("sample --target K1 small", "`--target` must end in a number, the standard error wanted, but ends in 'small'"),
        ("sample --target K1 0", "`--target` must be a finite number greater than zero, but is 0.0"),
        ("sample --checkpoint nowhere/run.npz", "`--checkpoint` must name a file in a folder that exists"),
        ("fit one.npy", "one.npy is no file of kernels: `fit` reads .nc files"),
        ("fit words.csv", "words.csv is no file of kernels"),
        ("fit nothing.json", "nothing.json: No such file or directory"),
        ("fit empty.npz", "empty.npz is not an .npz file"),
        ("fit text.npz", "text.npz is not an .npz file"),
        ("fit nothing.nc", "nothing.nc: No such file or directory"),
        ("compare nothing.nc sample.nc", "nothing.nc: No such file or directory"),
    ],
)
def test_a_mistake_gets_one_sentence(command, says, tmp_path, capsys):
    (tmp_path / "words.csv").write_text("1,one\n")
    (tmp_path / "wide.csv").write_text("1,2,3\n")
    (tmp_path / "text.npz").write_text('{"G": 1}')
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "one.npy", np.ones((20, 1, 1, 1)))
    assert run(command) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.startswith("kernel-eft: ")
    assert message.count("\n") == 1
    assert "pickle" not in message
    assert not list(tmp_path.glob("*.nc"))


def test_a_run_that_fails_says_where(capsys):
    command = "theory --activation linear --C_W 1e20 --inputs 1 --eps 1 --depth 40 --times 2 --closure GOnly"
    assert run(command) == 1
    assert "K0[0, 0] at layer 40" in capsys.readouterr().err


def test_a_table_as_json(capsys):
    """Numbers in full, with their errors, and nothing else on standard output."""
    assert run("theory --activation linear --C_W 0.7 --inputs 1 --eps 0.5 --depth 2 --times 2 --json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["command"] == "theory"
    assert record["closure"].startswith("HermiteTower")
    assert record["model"] == "linear, C_W = 0.7, C_b = 0"
    assert record["rows"][-1]["K0[00]"]["value"] == pytest.approx(2 * (1 + 0.25 * 0.7) ** 2, rel=1e-6)
    assert [file.rpartition("/")[2] for file in record["files"]] == ["theory.nc", "theory.png"]


@pytest.mark.thorough
def test_quiet_says_nothing(capfd):
    assert cli.main([*SAMPLE.split(), "--networks", "64", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("command", "search"), [("validity", "validity_window"), ("network gpt2", "coordinate_check")])
@pytest.mark.parametrize("quiet", [True, False])
def test_a_search_for_a_width_says_why_it_samples_unless_quiet(command, search, quiet, monkeypatch, capfd):
    """Bars of other widths than the asked one follow: one line says why, and --quiet leaves out line and bars."""

    def stop(*args, progress, **choices):
        raise ValueError(f"progress: {progress}.")

    monkeypatch.setattr(importlib.import_module(f"kernel_eft_jax.cli.commands.{command.split()[0]}"), search, stop)
    assert cli.main([*command.split(), "--out", "-", *["--quiet"] * quiet]) == 2
    said = "" if quiet else "Networks of several widths are sampled: from which width on is order 1/n right?\n"
    assert capfd.readouterr().err == f"{said}kernel-eft: progress: {not quiet}.\n"


def test_the_table_alone(tmp_path, capsys):
    assert run("theory --activation linear --inputs 1 --eps 0.5 --depth 2 --times 2 --out -") == 0
    assert "closure: HermiteTower" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_links_are_written_through(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "theory.nc").symlink_to(tmp_path / "a" / "real.nc")
    assert run("theory --activation linear --inputs 1 --eps 0.5 --depth 2 --times 2") == 0
    assert (tmp_path / "theory.nc").is_symlink()
    assert load_solution("a/real.nc").K0.shape == (2, 1, 1)


@pytest.mark.thorough
@pytest.mark.drawn
def test_figures_in_every_format(tmp_path):
    """The content of a figure has the format of its suffix."""
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for suffix, start in starts.items():
        command = f"theory --activation linear --T 1 --times 3 --closure GOnly --out - --figure a.{suffix}"
        assert run(command) == 0
        assert (tmp_path / f"a.{suffix}").read_bytes().startswith(start)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.thorough
def test_K1_of_GOnly_says_what_it_is(capsys):
    """In the table, in JSON and in the file; other closures say nothing of the kind."""
    command = "theory --activation erf --inputs 1 --eps 0.5 --depth 2 --times 2 --overwrite"
    assert cli.main([*command.split(), "--closure", "GOnly"]) == 0
    printed = capsys.readouterr().out
    assert "closure: GOnly\n" in printed
    assert "K1_EFT[00]" in printed
    assert "This K1 is K1_EFT of GOnly" in printed
    with xarray.open_dataset("theory.nc", engine="h5netcdf") as file:
        assert "GOnly" in str(file.attrs["closure"])
        assert "K1_EFT" in file.attrs["notes"]
    assert cli.main([*command.split(), "--closure", "HermiteTower", "--degree", "4"]) == 0
    printed = capsys.readouterr().out
    assert "closure: HermiteTower of degree 4\n" in printed
    assert "K1_EFT" not in printed
