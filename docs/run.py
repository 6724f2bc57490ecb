"""Runs the code of the pages: what a page shows as output, or as a picture of gallery/, is what its code prints or
draws.

    python docs/run.py            check every page, or those named
    python docs/run.py --write    put what the code prints into the pages, and the pictures into gallery/

The ```python blocks of a page are one script, run in order in an empty folder. A block that prints is followed by a
```text block with what it printed, to the letter: so print few digits. Blocks with another label (```py for programs of
several processes or of other frameworks, ```sh) are not run, and show no output.

A sampled number is shown with its standard error, `0.263 ± 0.012`: what the code prints may differ from it by a tenth
of that error and one unit of the last digit, since another release of JAX rounds differently. A number of the size of
rounding is shown as `≈ 3e-13`, and held to a factor of ten. A picture is named where it is shown, and not compared.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image

DOCS = Path(__file__).resolve().parent
FENCE = re.compile(
    r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
PICTURE = re.compile(r"gallery/([\w-]+\.png)")
ROUNDING = re.compile(r"≈ (\d\.?\d*e[+-]\d+)")
SAMPLED = re.compile(r"(-?\d+\.?(\d*)) ± (\d+\.?\d*)")


class Block(NamedTuple):
    """Code of a page, the output that the page shows after it (None: none), and what running it printed."""

    line: int
    code: str
    shown: str | None
    printed: str


def pages() -> list[Path]:
    """All pages, sorted."""
    return sorted(DOCS.rglob("*.md"))


def run_page(page: Path, *, keep: bool = False) -> list[Block]:
    """Run a page's code in one namespace; an exception carries the page and the line. `keep` its pictures in
    gallery/."""
    text, namespace, blocks = page.read_text(), {"__name__": page.stem}, []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for match in FENCE.finditer(text):
            line, output = text.count("\n", 0, match.start()) + 2, io.StringIO()
            code = compile("\n" * (line - 1) + match[1], str(page), "exec")
            with (
                contextlib.redirect_stdout(output),
                open(os.devnull, "w") as null,
                contextlib.redirect_stderr(null),
            ):
                exec(code, namespace)
            blocks.append(Block(line, match[1], match[2], output.getvalue()))
        for name in sorted(set(PICTURE.findall(text))):
            with (
                Image.open(name) as image
            ):  # not there: the page shows a picture that its code does not draw
                if keep:
                    image.convert("RGB").quantize(128).save(
                        DOCS / "gallery" / name, optimize=True
                    )
    return blocks


def wrong(blocks: list[Block]) -> list[Block]:
    """The blocks that print something else than the page shows."""
    return [block for block in blocks if not same(block.printed, block.shown or "")]


def same(printed: str, shown: str) -> bool:
    """Whether two outputs agree: to the letter, but for sampled numbers and those of the size of rounding."""
    if ROUNDING.sub("≈", SAMPLED.sub("±", printed)) != ROUNDING.sub(
        "≈", SAMPLED.sub("±", shown)
    ):
        return False
    for here, there in zip(
        ROUNDING.findall(printed), ROUNDING.findall(shown), strict=True
    ):
        if not 0.1 * float(there) <= float(here) <= 10 * float(there):
            return False
    for here, there in zip(
        SAMPLED.findall(printed), SAMPLED.findall(shown), strict=True
    ):
        (value, digits, error), (known, _, known_error) = here, there
        allowed = 0.1 * float(known_error) + 1.01 * 10.0 ** -len(digits)
        gaps = float(value) - float(known), float(error) - float(known_error)
        if max(map(abs, gaps)) > allowed:
            return False
    return True


def rewrite(text: str, blocks: list[Block]) -> str:
    """The page with what its code printed as the output shown."""
    remaining = iter(blocks)

    def block(_):
        b = next(remaining)
        return f"```python\n{b.code}```\n" + (
            f"\n```text\n{b.printed}```\n" if b.printed else ""
        )

    return FENCE.sub(block, text)


def main() -> int:
    """Run the pages named, or all; the exit code."""
    parser = argparse.ArgumentParser(
        description="Run the code of the documentation's pages."
    )
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument(
        "--write",
        action="store_true",
        help="put what the code prints into the pages",
    )
    arguments = parser.parse_args()
    failed = 0
    for page in [path.resolve() for path in arguments.pages] or pages():
        start = time.perf_counter()
        blocks = run_page(page, keep=arguments.write)
        differences = wrong(blocks)
        print(
            f"{page.relative_to(DOCS.parent)}: {len(blocks)} blocks, {time.perf_counter() - start:.1f} s"
        )
        if arguments.write and differences:
            page.write_text(rewrite(page.read_text(), blocks))
            continue
        for block in differences:
            failed = 1
            print(
                f"  line {block.line} prints\n{block.printed}  but the page shows\n{block.shown or ''}"
            )
    return failed


if __name__ == "__main__":
    sys.exit(main())
