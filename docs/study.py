"""Puts the results of the study into the pages: tables and figures of paper.md, figures of validity.md and
quadrature.md.

make study                       computes the study and calls this
python docs/study.py RESULTS     from results that are there; draws the windows of validity.md, which are not in them
"""

import sys
import textwrap
from pathlib import Path

import jax
import kernel_eft_jax as keft
from kernel_eft_jax.figures import plot_window
from PIL import Image

DOCS = Path(__file__).resolve().parent
PUBLISHED = {
    "figure-1-mean-and-covariance": (
        "Figure 1: the mean kernel K0 and its covariance V4",
        "Every theory has the mean of the networks (circles). In V4 of one input the 32-point rule falls "
        "behind from t = 1 on. The converged GOnly and HermiteTower pass through the networks. Without "
        "transport (sources alone) V4 is far too small.",
    ),
    "figure-2-steps": (
        "Figure 2: V4 for three step sizes at n = 256, and the error of the published theory",
        "Networks of all three step sizes fall on each other, and so do their distances from the theory by "
        "the 32-point rule: this distance is no error of the step.",
    ),
    "figure-3-mean-correction": (
        "Figure 3: the 1/n correction of the mean kernel",
        "The networks (circles) lie on HermiteTower. GOnly, with either kind of expectations, is far "
        "below the networks. With K0 of the 32-point rule in place of the converged K0 (crosses) the networks have "
        "the published value.",
    ),
    "figure-4-source": (
        "Figure 4: the source of that correction, and the mismatch at depth zero",
        "The source of networks (circles) begins at zero, and so does that of HermiteTower. For the first input "
        "the formula of GOnly begins at -0.2, even with the V4 and K1 of the networks in it (dotted).",
    ),
}
BEYOND = {
    "errors-of-the-theories": (
        "Errors of the theories of V4 against networks",
        "The 32-point rule is off by 12 % for one input at t = 2, the converged GOnly by 2 %; SigmaKernel and"
        " HermiteTower are within half a per cent.",
    ),
    "errors-by-width-and-step": (
        "Errors of V4 of GOnly for every width and step",
        "By the 32-point rule all widths and steps have the same error, which grows with depth. "
        "With converged expectations the error is below 2 %, and a part of it falls with the width. The scales differ.",
    ),
    "residual-of-v4": (
        "Residual of the V4 equation, and its parts",
        "By the 32-point rule (circles) the transport part grows to 8. With converged expectations (diamonds)"
        " it is 0.5 at t = 2, as HermiteTower has it. The source part is of order 1/n.",
    ),
    "kurtosis": (
        "Excess kurtosis of a neuron",
        "A neuron begins Gaussian and becomes less so with depth. HermiteTower and SigmaKernel follow the "
        "networks (circles); GOnly stays below them.",
    ),
    "residual-by-activation": (
        "Residual of the V4 equation for other activations",
        "The transport part of the networks (circles) lies on that of HermiteTower (curve). For GELU, SiLU and "
        "ReLU it is 70 to 140 times larger than for tanh; the scales differ. The source part (diamonds) is "
        "small.",
    ),
}
WINDOWS = {
    "tanh": keft.Tanh(),
    "erf": keft.Erf(),
    "GELU": keft.GELU(),
    "ReLU": keft.ReLU(),
}
STACKED = (
    *PUBLISHED,
    *BEYOND,
    "quadrature-bias",
    *(f"validity-{name.lower()}" for name in WINDOWS),
)
NEXT = "Next: [Where is it valid?](validity.md), for your own network."
MARK = "<!-- everything below is written by docs/study.py -->"


def figure(name: str, title: str, caption: str) -> str:
    """A figure that narrow screens show with its panels stacked, and what one sees in it."""
    return (
        f'<picture>\n<source media="(max-width: 600px)" srcset="study/{name}-stacked.png">\n'
        f'<img alt="{title}" src="study/{name}.png">\n</picture>\n\n*{textwrap.fill(f"{title}. {caption}", 118)}*\n\n'
    )


def page(table: str) -> str:
    """The page of the study: what is written by hand, then the figures and the tables."""
    by_hand = (DOCS / "paper.md").read_text().partition(MARK)[0]
    published, beyond = (
        "".join(figure(name, *words) for name, words in figures.items())
        for figures in (PUBLISHED, BEYOND)
    )
    # The table's own heading becomes a section of the page.
    figures = f"## The published figures\n\n{published}## Beyond them\n\n{beyond}"
    return f"{by_hand}{MARK}\n\n{figures}{table.rstrip()}\n\n{NEXT}\n"


def draw_window(results: Path, name: str) -> None:
    """The window of one activation at the setting that validity.md names, with its panels two by two and stacked."""
    window = keft.validity_window(
        keft.Model(WINDOWS[name], C_W=2.0),
        [[1.0]],
        depth=100,
        eps=0.1,
        tolerance=0.05,
        reference=keft.HermiteTower(40),
        key=jax.random.key(0),
    )
    title = rf"{name}, $C_W = 2$, $K_0 = 1$, 100 layers of $\epsilon = 0.1$"
    for columns, suffix in ((2, ""), (1, "-stacked")):
        figure = plot_window(window, title, columns=columns)
        figure.savefig(results / f"validity-{name.lower()}{suffix}.png", dpi=200)


def main(results: Path) -> None:
    jax.config.update("jax_enable_x64", True)
    for name in WINDOWS:
        draw_window(results, name)
    (DOCS / "study").mkdir(exist_ok=True)
    names = [f"{name}{suffix}" for name in STACKED for suffix in ("", "-stacked")]
    for name in names:
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
