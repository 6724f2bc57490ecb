"""The command line before any work: help, one sentence for every mistake, settings files, where results go."""

import argparse
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import diffrax
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax import cli
from kernel_eft_jax.cli import arguments, messages, settings


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_help_and_mistakes_load_no_jax():
    """Both are answered before JAX, NumPy or anything else that takes long is imported."""
    script = (
        "import sys\nfrom kernel_eft_jax.cli import main\nfor words in (['--help'], ['theory', '--help'], "
        "['--version'], ['theory', '--depth', '0'], ['sample', '--out', 'a.png']):\n    main(words)\nassert not "
        "{'jax', 'numpy', 'equinox', 'matplotlib'} & sys.modules.keys(), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_help_names_every_command_and_shows_examples(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in arguments.COMMANDS)
    for name in arguments.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        printed = capsys.readouterr().out
        assert "examples:\n  kernel-eft " in printed
        assert "None" not in printed
        assert "True" not in printed


@pytest.mark.parametrize("name", arguments.COMMANDS)
def test_examples_can_be_typed(name):
    """Every example in the help is understood, and those of blocks too."""
    lines = [line.split() for line in arguments.EXAMPLES[name].splitlines() if line.startswith("  kernel-eft")]
    assert lines
    for words in lines:
        assert arguments.read(words[1:]).command in arguments.COMMANDS


def test_the_version_is_the_package_s(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "kernel-eft 0.1.0\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "Name a command, one of paper, theory, "),
        ("theorie", "`command` must be one of paper, theory, sample, "),
        ("theorie", "but is theorie; did you mean theory?"),
        ("theory --act gelu", "There is no option --act; did you mean --activation?"),
        (
            "theory --block tanh, dense:2",
            "The word dense:2 belongs to no option: write the values of one option without spaces",
        ),
        ("network GPT2", "`recipe` must be one of gpt2, "),
        ("network GPT2", "but is GPT2; did you mean gpt2?"),
        ("sample --target K1", "`--target` expects 2 arguments"),
        ("sample --checkpoint run.txt", "`--checkpoint` must end in .npz, but is run.txt"),
        ("theory --time 3", "There is no option --time; did you mean --times?"),
        ("theory extra", "The word extra belongs to no option"),
        ("theory --C_W -1", "`--C_W` must be a variance, a finite number not below zero, but is -1"),
        ("theory --C_W nan", "`--C_W` must be a variance, a finite number not below zero, but is nan"),
        ("theory --diagonal -1", "`--diagonal` must be a finite number greater than zero, but is -1"),
        ("theory --off-diagonal inf", "`--off-diagonal` must be a finite number, but is inf"),
        ("theory --inputs 0", "`--inputs` must be a whole number from 1 to 10,000, but is 0"),
        ("theory --times 1", "`--times` must be a whole number from 2 to 10,000, but is 1"),
        ("theory --times many", "`--times` must be a whole number from 2 to 10,000, but is many"),
        ("theory --T -1", "`--T` must be a finite number greater than zero, but is -1"),
        ("theory --depth 4", "`--depth` counts layers: give `--eps` too"),
        ("theory --eps 0.1", "`--eps` asks for layers: give their number as `--depth`"),
        ("theory --eps 0.1 --depth 4 --T 1", "leave out one of the two"),
        ("theory --eps 0 --depth 4", "`--eps` must be a finite number greater than zero, but is 0"),
        ("theory --eps 1 --depth 100000000000000000000", "`--depth` must be a whole number from 1 to 1,000,000"),
        ("theory --closure GOnly --degree 8", "`--degree` belongs to SigmaKernel and HermiteTower"),
        ("theory --closure tower", "`--closure` must be one of HermiteTower, SigmaKernel, GOnly, but is tower"),
        ("theory --degree 1", "`--degree` must be a whole number from 2 to 1,000, but is 1"),
        (
            "theory --block tanh,dense:2 --C_W 1",
            "`--block` holds the activations and variances itself: leave out --C_W",
        ),
        ("theory --K0 K0.npy --off-diagonal 1", "`--K0` names the whole input kernel: leave out --off-diagonal"),
        ("theory --out nowhere/a.nc", "`--out` must name a file in a folder that exists, but is 'nowhere/a.nc'"),
        ("theory --out theory.csv", "`--out` must end in .nc, but is theory.csv"),
        ("theory --figure theory.nc", "`--figure` must end in .png or .pdf or .svg, but is theory.nc"),
        ("fit sample.nc --out r.png", "`--out` must end in .json, but is r.png"),
        ("sensitivity --out r.dat", "`--out` must end in .npz, but is r.dat"),
        ("validity --out r.json", "`--out` must end in .png or .pdf or .svg, but is r.json"),
        ("compare a.nc b.nc --out c.nc", "`--out` must end in .png or .pdf or .svg, but is c.nc"),
        ("theory --out /dev/null", "`--out` must end in .nc, but is /dev/null"),
        ("sample --width 0", "`--width` must be a whole number from 1 to 2,147,483,647, but is 0"),
        ("sample --depth 0", "`--depth` must be a whole number from 1 to 1,000,000, but is 0"),
        ("sample --eps -0.1", "`--eps` must be a finite number greater than zero, but is -0.1"),
        ("sample --eps small", "`--eps` must be a finite number greater than zero, but is small"),
        ("theory --K0 ~nobody-here/K0.csv", "`--K0` must be a path, but nobody's home folder is ~nobody-here"),
        ("sample --networks 1", "`--networks` must be a whole number from 64 to 2,147,483,647, but is 1"),
        ("sample --seed 99999999999999999999", "`--seed` must be a whole number from 0 to 9,223,372,036,854,775,807"),
        ("sample --checkpoint sample.nc", "Arguments `--out` and `--checkpoint` name one file, sample.nc"),
        ("sample --checkpoint a/../sample.nc", "Arguments `--out` and `--checkpoint` name one file"),
        ("sample --checkpoint sample.png", "Arguments `--figure` and `--checkpoint` name one file, sample.png"),
        ("validity --tolerance 0", "`--tolerance` must be a finite number greater than zero"),
        ("paper --networks 0", "`--networks` must be a whole number from 64 to"),
        ("paper --full", "`--full` goes with `--all`"),
        ("theory --settings none.toml", "none.toml: No such file or directory"),
    ],
)
def test_a_mistake_gets_one_sentence(command, says, tmp_path, capsys):
    assert cli.main(command.split()) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.startswith("kernel-eft: ")
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


class TestOutputs:
    """Where results go."""

    def files(self, command):
        return arguments.read(command.split()).files

    def test_the_figure_lies_beside_the_result(self, tmp_path):
        assert self.files("theory --out a.b.nc") == (tmp_path / "a.b.nc", tmp_path / "a.b.png")
        assert self.files("theory --figure b.PDF") == (tmp_path / "theory.nc", tmp_path / "b.PDF")
        assert self.files("validity --out w.svg") == (tmp_path / "w.svg", tmp_path / "w.json")
        assert self.files("compare a.nc b.nc") == (tmp_path / "compare.png", None)
        assert self.files("theory --out -") == (None, None)
        assert self.files("theory --out - --figure a.png") == (None, tmp_path / "a.png")

    @pytest.mark.parametrize("there", ["theory.nc", "theory.png"])
    def test_nothing_is_replaced_unasked(self, there, tmp_path):
        (tmp_path / there).write_text("mine")
        with pytest.raises(ValueError, match=f"{there} exists already: give --overwrite"):
            self.files("theory")
        assert self.files("theory --overwrite").result == tmp_path / "theory.nc"
        assert (tmp_path / there).read_text() == "mine"

    def test_what_is_no_regular_file_is_refused(self, tmp_path):
        os.mkfifo("theory.nc")
        with pytest.raises(ValueError, match=r"must name a file, but 'theory\.nc' is a device, pipe or socket"):
            self.files("theory --overwrite")
        (tmp_path / "null.nc").symlink_to("/dev/null")
        with pytest.raises(ValueError, match=r"must name a file, but 'null\.nc' is a device, pipe or socket"):
            self.files("theory --out null.nc --overwrite")
        (tmp_path / "folder.nc").mkdir()
        with pytest.raises(ValueError, match=r"must name a file, but 'folder\.nc' is a folder"):
            self.files("theory --out folder.nc --overwrite")

    def test_links_are_followed(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "theory.nc").symlink_to(tmp_path / "elsewhere" / "real.nc")
        assert self.files("theory").result == tmp_path / "elsewhere" / "real.nc"

    def test_the_home_folder_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert self.files("theory --out ~/a.nc").result == tmp_path / "a.nc"
        assert str(arguments.read(["theory", "--K0", "~/K0.csv"]).K0) == f"{tmp_path}/K0.csv"

    def test_what_cannot_be_written_is_found_at_once(self, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(ValueError, match=r"`--out` must name a file that can be written, but theory\.nc cannot"):
            arguments.read(["theory"])

    def test_a_file_is_no_folder_for_the_study(self, tmp_path):
        (tmp_path / "results").touch()
        with pytest.raises(ValueError, match="`--out` must name a folder, but results is a file"):
            arguments.read(["paper"])

    def test_a_folder_with_results_of_the_study_is_kept(self, tmp_path):
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "table.md").touch()
        with pytest.raises(ValueError, match="results holds results already: give --overwrite"):
            arguments.read(["paper"])
        assert arguments.read(["paper", "--overwrite"]).out.name == "results"
        (tmp_path / "results" / "main-job.checkpoint").touch()  # of a run that was interrupted
        assert arguments.read(["paper", "--all"]).all


class TestSettings:
    """Options from a TOML file."""

    def read(self, text, command):
        with open("run.toml", "w") as file:
            file.write(text)
        return arguments.read(command.split())

    def test_the_file_is_read_and_the_command_line_wins(self):
        text = 'activation = "gelu"\nC_W = 1.5\nquiet = true\njson = false\n[sample]\nwidth = 32\n[theory]\nT = 3\n'
        found = self.read(text, "sample --settings run.toml --C_W 2")
        assert (found.activation, found.C_W, found.width, found.quiet, found.json) == ("gelu", 2.0, 32, True, False)
        assert self.read(text, "theory --settings run.toml").T == 3

    def test_lists_do_not_take_what_follows(self):
        text = 'free = ["C_W", "eps"]\noff = 1'
        found = self.read(text.replace("off = 1", ""), "fit --settings run.toml sample.nc")
        assert (found.free, str(found.data)) == (["C_W", "eps"], "sample.nc")
        found = self.read('target = ["K1:0,1", 0.01]\noff-diagonal = -0.5', "sample --settings run.toml")
        assert (found.target, found.off_diagonal) == (["K1:0,1", "0.01"], -0.5)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("widht = 3", "has a key 'widht', which is no option of `kernel-eft sample`. Did you mean width?"),
            ("T = 3", "has a key 'T', which is no option of `kernel-eft sample`"),
            ("off_diagonal = 1", "Did you mean off-diagonal?"),
            ("[samples]\nwidth = 3", "has a table [samples], but tables are named after commands"),
            ("width = 0", "`--width` must be a whole number"),
            ("width = true", "width must be a number, a text or a list of them, but is True"),
            ("quiet = 1", "quiet is a switch and must be true or false, but is 1"),
            ("width 3", "run.toml is not a TOML file"),
        ],
    )
    def test_mistakes_are_named(self, text, says):
        with pytest.raises(ValueError, match=re.escape(says)):
            self.read(text, "sample --settings run.toml")

    def test_keys_are_the_options(self):
        """No option is out of reach of a settings file but those that make no sense there."""
        parsers = {}
        arguments.parser(parsers)
        for name, parser in parsers.items():
            for option, action in parser.options().items():
                if option not in ("--help", "--settings"):
                    value = "true" if action.nargs == 0 else '["a", "b"]' if action.nargs in (2, "+") else "1"
                    with open("run.toml", "w") as file:
                        file.write(f"{option[2:]} = {value}")
                    assert settings.words(Path("run.toml"), name, parsers)[0].startswith(option)


@pytest.mark.parametrize(
    ("library", "says"),
    [
        ("Argument `off_diagonal` must be small.", "Argument `--off-diagonal` must be small."),
        ("Argument `K0` must be finite; see `save`.", "Argument `--K0` must be finite; see `save`."),
        ("Pass a higher degree, such as reference=HermiteTower(60).", "Pass a higher degree, such as --degree 60."),
        ("Pass `closure=HermiteTower(12)`.", "Pass --degree 12."),
        ("Try increasing `max_steps`.", "Take a smaller `--T`, or layers with `--eps` and `--depth`."),
        ("Take `with_V4=True`.", "Take --with-V4."),
        ("Take smaller variances, or throw=False to see them.", "Take smaller variances."),
        (
            "Argument `branch` must end in a matrix: add Dense(C_W).",
            "Argument `--block` must end in a matrix: add dense:C_W.",
        ),
        ("Take another width, or Dense(..., ratio=43 / 16).", "Take another width, or ratio=43 / 16."),
        (
            "Take HermiteTower(), or a lower degree, or GOnly().",
            "Take --closure HermiteTower, or a lower degree, or --closure GOnly.",
        ),
        ("Argument `own` needs 16 networks.", "Argument `--own` needs 16 networks."),
        ("Argument `data` must hold 16 networks.", "kernels.npz must hold 16 networks."),
    ],
)
def test_messages_speak_of_options(library, says):
    assert messages.in_options(library, argparse.Namespace(off_diagonal=1, K0=None, data="kernels.npz")) == says


def literals(path):
    """The texts of a file without its docstrings; 0 stands for what an f-string puts in."""
    tree = ast.parse(path.read_text())
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(line.value) for line in first if isinstance(line, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.fixture(scope="module")
def texts():
    """All texts of the library that a message may hold, `repr` of a closure and a sentence of Diffrax among them."""
    package = Path(messages.__file__).parent.parent
    files = [path for path in package.rglob("*.py") if "cli" not in path.relative_to(package).parts]
    steps = diffrax.RESULTS[diffrax.RESULTS.max_steps_reached]
    return [repr(keft.HermiteTower(30)), steps, *(text for path in files for text in literals(path))]


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in messages.IN_OPTIONS])
def test_every_pattern_is_that_of_a_message(pattern, texts):
    """An error of the library that is worded anew cannot keep the words of Python unseen."""
    assert any(re.search(pattern, text) for text in texts)


@pytest.mark.parametrize("text", ["GOnly", "gonly", "g-only", "G-ONLY"])
def test_a_closure_has_one_name_however_it_is_typed(text):
    assert arguments.read(["theory", "--closure", text, "--out", "-"]).closure == "GOnly"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            "theory --activation leaky-relu:slope",
            "slope in 'leaky-relu:slope' lacks its value: write leaky-relu:slope=NUMBER",
        ),
        ("theory --block attention,dense:1", "Unknown layer 'attention'"),
        (
            "theory --diagonal 1 --off-diagonal 3",
            "`--off-diagonal` must lie between -1 and --diagonal, 1, for 2 inputs, but is 3",
        ),
        ("theory --block dense:1,tanh", "`--block` must end in a matrix"),
    ],
)
def test_what_a_model_or_kernel_cannot_be(command, says, capsys):
    """What the command line writes into a model or a kernel is blamed on the option that wrote it."""
    assert cli.main([*command.split(), "--out", "-"]) == 2
    assert says in capsys.readouterr().err


def test_what_the_page_shows_can_be_typed():
    """Every command on the page of the command line is understood."""
    page = Path(arguments.__file__).parents[2] / "docs" / "how-to" / "command-line.md"
    lines = [line.partition("#")[0].split() for line in page.read_text().splitlines() if line.startswith("kernel-eft ")]
    Path("run.toml").touch()
    assert len(lines) > 9
    for words in lines:
        if "--help" not in words:
            assert arguments.read(words[1:]).command == words[1]
