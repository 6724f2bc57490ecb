"""Comparison of the numbers found here with the published ones, and the tables and figures of the study as files."""

import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import kernel_eft_jax as keft

from .names import ORDER

SURPRISE = 3.0  # standard errors
BY_CHANCE = 0.0027  # the share of normal numbers that are further from their mean than SURPRISE


class WithError(NamedTuple):
    """A number and its standard error, zero where nothing is random."""

    value: float
    error: float = 0.0

    def __str__(self) -> str:
        return f"{self.value:.5g} ± {self.error:.2g}" if self.error else f"{self.value:.6g}"


def entry(x: Any, stderr: Any = None, at: int = -1) -> WithError:
    """The component 00 or 00,00 at one of the saved depths."""
    value, error = (0.0 if y is None else float(np.asarray(y)[at].ravel()[0]) for y in (x, stderr))
    return WithError(value, error)


def first(x: Any) -> np.ndarray:
    """The component 00 or 00,00 at each depth."""
    return np.asarray(x).reshape(len(x), -1)[:, 0]


class Row(NamedTuple):
    """A published number; ours, found in the published way; ours with converged expectations, if that differs; and the
    reason if ours and theirs disagree."""

    quantity: str
    published: WithError
    here: WithError
    converged: WithError | None = None
    reason: str = "differs"

    @property
    def difference(self) -> str:
        """Ours minus theirs, in standard errors if there are any."""
        gap, error = self._gap()
        return f"{gap / error:+.1f} s.e." if error else f"{gap:+.2g}"

    @property
    def verdict(self) -> str:
        """`agrees` if both are within three standard errors, or, where nothing is random, within one unit of the last
        digit printed; else the reason."""
        gap, error = self._gap()
        digits = len(repr(float(self.published.value)).partition(".")[2])
        return "agrees" if abs(gap) <= (SURPRISE * error or 1.001 * 10.0**-digits) else self.reason

    def _gap(self):
        return self.here.value - self.published.value, float(np.hypot(self.published.error, self.here.error))


class Chapter(NamedTuple):
    """Rows that belong together, and a text that explains them; `compared` names the numbers in the column of published
    ones."""

    title: str
    why: str
    rows: list[Row]
    compared: str = "published"


class Drawing(NamedTuple):
    """A figure of panels as data: lines (ts, value) or (ts, value, stderr) by panel and label, as `figures.plot_panels`
    takes them."""

    title: str
    panels: Mapping[str, Mapping[str, tuple]]
    ylabel: str = ""


class Item(NamedTuple):
    """One part of the study: its tables, its figures by file name, its results by file name."""

    sections: list[Chapter]
    figures: Mapping[str, Drawing]
    results: Mapping[str, keft.Estimate | keft.Solution]


def markdown(sections: Sequence[Chapter], heading: str) -> str:
    """The tables as text: aligned, and valid Markdown, with a summary on top."""
    lines = ["## arXiv 2604.15742: published and here", "", heading, "", *textwrap.wrap(summary(sections), 110), ""]
    for title, why, rows, compared in sections:
        cells = [("quantity", compared, "here", "difference", "verdict", "converged")]
        for r in rows:
            converged = "" if r.converged is None else str(r.converged)
            cells.append((r.quantity, str(r.published), str(r.here), r.difference, r.verdict, converged))
        if all(row[-1] == "" for row in cells[1:]):
            cells = [row[:-1] for row in cells]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        texts = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
        head, *rest = (f"| {text} |" for text in texts)
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        lines += [f"### {title}", "", head, rule, *rest, "", *textwrap.wrap(why, 110), ""]
    return "\n".join(lines)


def summary(sections: Sequence[Chapter]) -> str:
    """A sentence that says how many published numbers are reproduced in the published way, and which are not."""
    rows = [row for section in sections if section.compared == "published" for row in section.rows]
    random = [row for row in rows if row.published.error or row.here.error]
    others = [f"{row.quantity} ({row.difference}, {row.verdict})" for row in rows if row.verdict != "agrees"]
    agree, agree_random = (sum(row.verdict == "agrees" for row in some) for some in (rows, random))
    text = (
        f"{agree} of {len(rows)} published numbers come back in the published way: {agree_random} of {len(random)} "
        f"sampled ones within three standard errors, {agree - agree_random} of {len(rows) - len(random)} others to "
        "the last digit."
    )
    if not others:
        return text
    chance = f"{BY_CHANCE * len(random):.1f} of {len(random)} independent numbers"
    return f"{text} The others: {'; '.join(others)}. Beyond three standard errors chance alone has {chance}."


def write_item(item: Item, out: str | os.PathLike) -> list[Path]:
    """Results and figures of an item into a directory, figures also with their panels stacked; the files written."""
    from kernel_eft_jax import figures

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [keft.save(result, out / f"{slug(name)}.nc") for name, result in item.results.items()]
    for name, drawing in item.figures.items():
        for suffix, columns in (("", 2), ("-stacked", 1)):
            paths += figures.save_figure(draw(drawing, columns), out / (slug(name) + suffix))
    return paths


def draw(drawing: Drawing, columns: int) -> Any:
    """The Matplotlib figure of a drawing."""
    from kernel_eft_jax.figures import Line, plot_panels

    panels = {
        heading: {label: Line(*line) for label, line in lines.items()} for heading, lines in drawing.panels.items()
    }
    return plot_panels(panels, title=drawing.title, ylabel=drawing.ylabel, columns=columns, order=ORDER)


def write_table(sections: Sequence[Chapter], heading: str, out: str | os.PathLike) -> list[Path]:
    """The tables as Markdown and as JSON into a directory; the files written."""
    rows = [[r._asdict() | {"difference": r.difference, "verdict": r.verdict} for r in s.rows] for s in sections]
    data = [s._asdict() | {"rows": of_section} for s, of_section in zip(sections, rows, strict=True)]
    texts = {"table.md": markdown(sections, heading), "table.json": json.dumps(data, indent=1) + "\n"}
    for name, text in texts.items():
        (Path(out) / name).write_text(text, encoding="utf-8")
    return [Path(out) / name for name in texts]


def slug(name: str) -> str:
    """A file name from a title."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
