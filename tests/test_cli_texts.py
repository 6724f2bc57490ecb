"""Texts that the command line reads: kernels as other programs write them, and blocks."""

import re
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax import cli
from kernel_eft_jax.cli import arguments, blocks, kernel_file, models
from kernel_eft_jax.cli.arguments import read


class TestKernelFile:
    """The input kernel from text."""

    @pytest.mark.parametrize(
        "text",
        [
            "1.5,0.5\n0.5,1.0\n",
            "1.5, 0.5\n\n0.5, 1.0",
            "1.5;0.5\r\n0.5;1.0\r\n",
            "1,5;0,5\n0,5;1,0\n",
            "1.5\t0.5\n0.5\t1.0\n",
            "1.5 0.5\n  0.5   1.0\n",
            "cat,dog\n1.5,0.5\n0.5,1.0\n",
            "cat;dog\n1,5;0,5\n0,5;1,0\n",
            "input,cat,dog\ncat,1.5,0.5\ndog,0.5,1.0\n",
            ",cat,dog\ncat,1.5,0.5\ndog,0.5,1.0\n",
            ",0,1\n0,1.5,0.5\n1,0.5,1.0\n",
            "cat,1.5,0.5\ndog,0.5,1.0\n",
            "# a comment\n1.5,0.5  # and another\n0.5,1.0\n",
            '"1.5","0.5"\n"0.5","1.0"\n',
        ],
    )
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_what_means_one_thing_is_read(self, text, mark, tmp_path):
        (tmp_path / "K0.csv").write_text(mark + text, encoding="utf-8")
        np.testing.assert_array_equal(kernel_file.read_input_kernel(tmp_path / "K0.csv"), [[1.5, 0.5], [0.5, 1.0]])

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("1,one\n", "line 1, has 'one' where a finite number is due"),
            ("cat,dog\n1.5,0.5\n0.5,x\n", "line 3, has 'x' where a finite number is due"),
            ("1.5,0.5\n0.5,\n", "line 2, has an empty field"),
            (",0.5\n0.5,1\n", "line 1, has an empty field"),
            ("1.5,0.5\n0.5\n", "line 2, has 1 numbers where the first row has 2"),
            ("1,500;2,250\n2,250;1,000\n", "line 1: 1,500 may be a fraction or thousands: write decimal points only"),
            ("1,5;0.5\n0.5;1\n", "line 1, has commas and points in its numbers"),
            ("1,nan\n", "line 1, has 'nan' where a finite number is due"),
            ("\n", "holds no numbers"),
        ],
    )
    def test_the_line_and_the_remedy_are_named(self, text, says, tmp_path):
        (tmp_path / "K0.csv").write_text(text)
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'K0.csv'}") + ".*" + re.escape(says)):
            kernel_file.read_input_kernel(tmp_path / "K0.csv")

    def test_other_files(self, tmp_path):
        (tmp_path / "K0.csv").write_bytes("1;2".encode("utf-16"))
        with pytest.raises(ValueError, match="is not text in UTF-8: save it again"):
            kernel_file.read_input_kernel(tmp_path / "K0.csv")
        (tmp_path / "K0.npy").write_text("1,2")
        with pytest.raises(ValueError, match=r"is no array of numbers as numpy\.save writes it"):
            kernel_file.read_input_kernel(tmp_path / "K0.npy")
        with pytest.raises(ValueError, match=r"must name a \.npy or \.csv file, but is K0\.txt"):
            kernel_file.read_input_kernel(Path("K0.txt"))
        with pytest.raises(FileNotFoundError) as error:
            kernel_file.read_input_kernel(Path("missing.csv"))
        assert str(error.value.filename) == "missing.csv"


class TestBlocks:
    """The text of a block."""

    def test_layers_are_taken_apart(self):
        found = blocks.parse_block("rmsnorm, dense:1:ratio=4,polynomial:coefficients=0,1,-.3,dense:2:C_b=0.1")
        assert [(layer.name, layer.plain, layer.parameters) for layer in found] == [
            ("rmsnorm", [], {}),
            ("dense", ["1"], {"ratio": [4.0]}),
            ("polynomial", [], {"coefficients": [0.0, 1.0, -0.3]}),
            ("dense", ["2"], {"C_b": [0.1]}),
        ]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "A block is a list of layers"),
            ("tanh,", "A block is a list of layers"),
            (",tanh", "A block is a list of layers"),
            ("tanh,dense:2:C_b=x", "'C_b=x' in 'dense:2:C_b=x' must read PARAMETER=NUMBER"),
            ("dense:2:C_b=1:C_b=2", "gives C_b twice"),
        ],
    )
    def test_mistakes_are_named(self, text, says):
        with pytest.raises(ValueError, match=re.escape(says)):
            blocks.parse_block(text)


BLOCKS = {
    "tanh,dense:2": keft.Model(keft.Tanh(), 2.0),
    "dense:1,gelu,dense:2:C_b=0.1": keft.Model([keft.Dense(1.0), keft.GELU(), keft.Dense(2.0, 0.1)]),
    "tanh,dense:1.5,gelu,dense:2": keft.Model([keft.Tanh(), keft.Dense(1.5), keft.GELU(), keft.Dense(2.0)]),
    "rmsnorm,dense:1:ratio=4,gelu,dense:2": keft.Model(
        [keft.RMSNorm(), keft.Dense(1.0, ratio=4), keft.GELU(), keft.Dense(2.0)]
    ),
    "rmsnorm,dense:1:ratio=2,glu:silu,dense:4": keft.Model(
        [keft.RMSNorm(), keft.Dense(1.0, ratio=2), keft.GLU(keft.SiLU()), keft.Dense(4.0)]
    ),
    "dense:1,glu:leaky-relu:slope=0.25,dense:4": keft.Model(
        [keft.Dense(1.0), keft.GLU(keft.LeakyReLU(0.25)), keft.Dense(4.0)]
    ),
}


@pytest.mark.parametrize("text", BLOCKS)
def test_a_block_can_be_typed(text):
    """The text gives the model, and the model's text gives it again; the five of the help are among them."""
    made = models.make_model(read(["theory", "--block", text]))
    assert eqx.tree_equal(made, BLOCKS[text])
    if text != "tanh,dense:2":  # which is shown as people write one matrix
        assert models.describe_model(made) == text
    assert all(example in BLOCKS for example in re.findall(r"--block (\S+)", arguments.BLOCK_HELP))


def test_decay_and_variances_go_into_the_model():
    made = models.make_model(read(["theory", "--activation", "erf", "--C_W", "1", "--C_b", "0.5", "--decay", "1"]))
    assert eqx.tree_equal(made, keft.Model(keft.Erf(), 1.0, 0.5, decay=1.0))
    assert models.describe_model(made) == "erf, C_W = 1, C_b = 0.5, decay = 1"
    assert eqx.tree_equal(models.make_model(read(["theory"])), keft.Model(keft.Tanh(), 2.0))


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("dense,gelu,dense:2", "A matrix is dense:C_W, with :ratio=R and :C_b=B"),
        ("dense:1:C_W=2,gelu,dense:2", "but one is 'dense:1:C_W=2'"),
        ("dense:1:width=2,gelu,dense:2", "but one is 'dense:1:width=2'"),
        ("dense:one,gelu,dense:2", "but one is 'dense:one'"),
        ("dense:-1,gelu,dense:2", "C_W` is a variance and must be finite and not negative"),
        ("dense:1,glu,dense:2", "A GLU needs its activation, as in glu:silu"),
        ("rmsnorm:2,dense:1", "A norm has no parameters"),
        ("relu,layernorm,dense:1", "layernorm behind ReLU() removes the mean of its features"),
        ("rmsnorm,gelu,dense:2", "put a dense:C_W between them"),
        ("dense:1,gelu", "add dense:C_W at its end"),
        ("dense:1,glue,dense:2", "Unknown layer 'glue'. Did you mean gelu?"),
    ],
)
def test_what_is_no_block_is_refused(block, says, capsys):
    assert cli.main(["theory", "--block", block]) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1


def test_K1_of_the_kernel_alone_is_that_of_the_paper_for_blocks_that_begin_with_an_activation():
    """The remark stands beside such a K1 only; a closure that a file does not know has no name."""
    first, behind = keft.Model(keft.Tanh(), 2.0), keft.Model([keft.Dense(1.0), keft.Tanh(), keft.Dense(2.0)])
    said = [models.remarks(m, c) for m in (first, behind, None) for c in (keft.GOnly(), keft.HermiteTower(2))]
    assert said == [[models.K1_EFT], [], [], [], [], []]
    assert models.describe_closure(None) == "closure not known"
    assert models.describe_closure(keft.HermiteTower(2)) == "HermiteTower of degree 2"
