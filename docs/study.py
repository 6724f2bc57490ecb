"""Puts the results of the study into the pages: tables and figures of paper.md, figures of validity.md and quadrature.md.

make study                       computes them and calls this
python docs/study.py RESULTS     from results that are there
"""

import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
PUBLISHED = {
    "figure-1-mean-and-covariance": "Figure 1: the mean kernel (top) and its covariance (bottom)",
    "figure-2-steps": "Figure 2: V4 for three step sizes at n = 256, and the error of the published theory",
    "figure-3-mean-correction": "Figure 3: the 1/n correction of the mean kernel",
    "figure-4-source": "Figure 4: the source of that correction, and the mismatch at depth zero",
}
BEYOND = {
    "errors-of-the-theories": "Errors of the theories of V4 against networks",
    "errors-by-width-and-step": "Errors of the kernel-only V4 for every width and step",
    "residual-of-v4": "Residual of the V4 equation, and its parts",
    "kurtosis": "Excess kurtosis of a neuron",
    "residual-by-activation": "Residual of the V4 equation for other activations",
}
STACKED = (*PUBLISHED, *BEYOND, "quadrature-bias")
SINGLE = tuple(f"validity-{name}" for name in ("tanh", "erf", "gelu", "relu"))
NEXT = "Next: [Where is it valid?](validity.md), for your own network."
MARK = "<!-- everything below is written by docs/study.py -->"


def figure(name: str, title: str) -> str:
    """A figure that narrow screens show with its panels stacked."""
    return (
        f'<picture>\n<source media="(max-width: 600px)" srcset="study/{name}-stacked.png">\n'
        f'<img alt="{title}" src="study/{name}.png">\n</picture>\n\n*{title}.*\n\n'
    )


def page(table: str) -> str:
    """The page of the study: what is written by hand, then the figures and the tables."""
    by_hand = (DOCS / "paper.md").read_text().partition(MARK)[0]
    published, beyond = (
        "".join(figure(*item) for item in figures.items())
        for figures in (PUBLISHED, BEYOND)
    )
    # The table's own heading becomes a section of the page.
    return f"{by_hand}{MARK}\n\n## The published figures\n\n{published}## Beyond them\n\n{beyond}{table.rstrip()}\n\n{NEXT}\n"


def main(results: Path) -> None:
    (DOCS / "study").mkdir(exist_ok=True)
    names = [f"{name}{suffix}" for name in STACKED for suffix in ("", "-stacked")]
    for name in (*names, *SINGLE):
        with Image.open(results / f"{name}.png") as image:
            half = image.resize(
                (image.width // 2, image.height // 2), Image.Resampling.LANCZOS
            )
            half.convert("RGB").quantize(128).save(
                DOCS / "study" / f"{name}.png", optimize=True
            )
    (DOCS / "paper.md").write_text(page((results / "table.md").read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
