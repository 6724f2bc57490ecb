"""Texts that the command line reads: kernels as other programs write them, and blocks."""

import re
from pathlib import Path

import numpy as np
import pytest

from kernel_eft_jax.cli import blocks, kernel_file


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
        np.testing.assert_array_equal(kernel_file.read_kernel(tmp_path / "K0.csv"), [[1.5, 0.5], [0.5, 1.0]])

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
            kernel_file.read_kernel(tmp_path / "K0.csv")

    def test_other_files(self, tmp_path):
        (tmp_path / "K0.csv").write_bytes("1;2".encode("utf-16"))
        with pytest.raises(ValueError, match="is not text in UTF-8: save it again"):
            kernel_file.read_kernel(tmp_path / "K0.csv")
        (tmp_path / "K0.npy").write_text("1,2")
        with pytest.raises(ValueError, match=r"is no array of numbers as numpy\.save writes it"):
            kernel_file.read_kernel(tmp_path / "K0.npy")
        with pytest.raises(ValueError, match=r"must name a \.npy or \.csv file, but is K0\.txt"):
            kernel_file.read_kernel(Path("K0.txt"))
        with pytest.raises(FileNotFoundError) as error:
            kernel_file.read_kernel(Path("missing.csv"))
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
