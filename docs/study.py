"""Puts the results of the study into the pages: tables and figures of paper.md, figures of validity.md and quadrature.md.

make study                       computes them (ten minutes on two cores) and calls this
python docs/study.py RESULTS     from results that are there
"""

import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
FIGURES = {
    "figure-1-mean-kernel": "Figure 1: the mean kernel",
    "figure-2-v4-residual": "Figure 2: the residual of the V4 equation, and its parts",
    "figure-3-mean-correction": "Figure 3: the 1/n correction of the mean kernel",
    "figure-3-source": "What drives it, and the kurtosis of a neuron",
    "figure-4-covariance": "Figure 4: the covariance of the kernel",
    "sweeps": "The sweeps of width, step and depth",
    "residual-by-activation": "The residual for other activations",
}
ELSEWHERE = (
    "quadrature-bias",
    *(f"validity-{name}" for name in ("tanh", "erf", "gelu", "relu")),
)
MARK = "<!-- everything below is written by docs/study.py -->"


def page(table: str) -> str:
    """The page of the study: what is written by hand, then the figures and the table."""
    by_hand = (DOCS / "paper.md").read_text().partition(MARK)[0]
    figures = "".join(
        f"![{title}](study/{name}.png)\n\n*{title}.*\n\n"
        for name, title in FIGURES.items()
    )
    # The table's own heading becomes a section of the page.
    return f"{by_hand}{MARK}\n\n## Figures\n\n{figures}{table}"


def main(results: Path) -> None:
    (DOCS / "study").mkdir(exist_ok=True)
    for name in (*FIGURES, *ELSEWHERE):
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
