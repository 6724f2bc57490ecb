"""The published study (Kawase and Ota 2026, arXiv 2604.15742) as data, and how a number of ours is set beside one of theirs."""

import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..ensemble import Estimate
from ..storage import save
from ..trajectory import Solution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = json.loads(files("kernel_eft_jax").joinpath("published.json").read_text())
SURPRISE = 3.0  # standard errors


class Row(NamedTuple):
    """A published number and ours, each with its standard error or None where nothing is random, and why they differ if they do."""

    quantity: str
    published: float
    published_error: float | None
    here: float
    here_error: float | None
    reason: str = ""

    @property
    def difference(self) -> str:
        """Ours less theirs, in standard errors where there are any."""
        error = np.hypot(self.published_error or 0.0, self.here_error or 0.0)
        gap = self.here - self.published
        return f"{gap / error:+.1f} s.e." if error else f"{gap:+.2g}"

    @property
    def agrees(self) -> bool:
        """Whether the difference is chance: within three standard errors, or one in the last digit printed where nothing is random."""
        error = np.hypot(self.published_error or 0.0, self.here_error or 0.0)
        digits = len(repr(float(self.published)).partition(".")[2])
        return bool(abs(self.here - self.published) <= (SURPRISE * error or 1.001 * 10.0**-digits))

    @property
    def verdict(self) -> str:
        """`agrees`, or the reason why not."""
        return "agrees" if self.agrees else self.reason or "differs"


class Section(NamedTuple):
    """Rows that belong together, and why theirs and ours agree or differ; `compared` names what stands in the place of published."""

    title: str
    why: str
    rows: list[Row]
    compared: str = "published"


class Item(NamedTuple):
    """One part of the study: its table, its figures by file name, its results by file name with the settings to keep."""

    sections: list[Section]
    figures: Mapping[str, "Figure"]
    results: Mapping[str, tuple[Estimate | Solution, Mapping]]


def markdown(sections: Sequence[Section], heading: str) -> str:
    """The table as text: aligned, and valid Markdown."""
    lines = ["## arXiv 2604.15742: published and here", "", heading, ""]
    for title, why, rows, compared in sections:
        head = ("quantity", compared, "here", "difference", "verdict")
        numbers = ((_number(r.published, r.published_error), _number(r.here, r.here_error)) for r in rows)
        cells = [
            head,
            *((r.quantity, *two, r.difference, r.verdict) for r, two in zip(rows, numbers, strict=True)),
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        first, *rest = (
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in cells
        )
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        lines += [f"### {title}", "", first, rule, *rest, "", *textwrap.wrap(why, 110), ""]
    return "\n".join(lines)


def write(item: Item, out: str | os.PathLike) -> list[Path]:
    """Results and figures of an item into a directory; the files written."""
    from .. import plots

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [save(result, out / f"{slug(name)}.nc", **settings) for name, (result, settings) in item.results.items()]
    for name, figure in item.figures.items():
        paths += plots.save(figure, out / slug(name))
    return paths


def write_table(sections: Sequence[Section], heading: str, out: str | os.PathLike) -> list[Path]:
    """The table as Markdown and as JSON into a directory; the files written."""
    as_data = [
        s._asdict() | {"rows": [r._asdict() | {"difference": r.difference, "verdict": r.verdict} for r in s.rows]}
        for s in sections
    ]
    texts = {"table.md": markdown(sections, heading), "table.json": json.dumps(as_data, indent=1) + "\n"}
    for name, text in texts.items():
        (Path(out) / name).write_text(text, encoding="utf-8")
    return [Path(out) / name for name in texts]


def slug(name: str) -> str:
    """A file name from a title."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def V4_error(value: float, networks: int) -> float:
    """Standard error of V4 of nearly Gaussian kernels, sqrt(2 / networks) V4; the published ones are not given."""
    return value * (2 / networks) ** 0.5


def _number(value, error):
    return f"{value:.5g} ± {error:.2g}" if error else f"{value:.6g}"
