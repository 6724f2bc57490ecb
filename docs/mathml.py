r"""Formulas as MathML at build time: the site needs no script and no network to show them.

A Python-Markdown extension. It takes what `pymdownx.arithmatex` (generic) found, in pages and docstrings alike. A
display is set in pieces, split in front of its relations, sums and \qquad, so that a narrow screen can break it there.
A formula in a line keeps the comma or bracket that touches it (`whole` keeps numbers).
"""

import html
import re

from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor
from math_core import LatexError, LatexToMathML

from .whole import keep_whole

FOUND = re.compile(
    r'([^\s<>]*)<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\2>([^\s<>]*)',
    re.DOTALL,
)
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
OPENING = {"{", "(", "[", r"\{", r"\left", r"\begin"}
CLOSING = {"}", ")", "]", r"\}", r"\right", r"\end"}
SIGNS = ("=", "+", "-", r"\to", r"\sim", r"\approx", r"\le")
BREAKS = {*SIGNS, r"\text"}
# A sign behind one of these belongs to what follows it.
SIGNED = {"=", "_", "^", ",", r"\to", r"\sim", r"\approx", r"\le", ""}
LEADING = re.compile(
    r"<mo[^>]*>"
)  # at the start of a formula a sign would have no space around it
REPLACED = {
    '<math display="block">': '<math displaystyle="true">',
    "<mo>′</mo>": '<mo class="prime">′</mo>',  # site.css sets it lower
}
CONVERTER = LatexToMathML()


def pieces(source: str) -> list[list[str]]:
    r"""The parts of a display between \qquad, each as its pieces: they begin with a relation, a sign, or a word."""
    parts, depth, previous, sized = [[""]], 0, "", False
    for token in TOKEN.findall(source):
        if not sized:  # the bracket behind \left or \right belongs to it
            depth += (token in OPENING) - (token in CLOSING)
        sized = token in (r"\left", r"\right")
        if token == r"\qquad" and depth == 0:
            parts.append([""])
            previous = ""
            continue
        if token in BREAKS and depth == 0 and previous not in SIGNED:
            parts[-1].append("")
        parts[-1][-1] += token
        previous = previous if token.isspace() else token
    return parts


def convert(source: str, whole: str, display: bool) -> str:
    """MathML of one piece; raises ValueError with the whole formula if it is not LaTeX that can be set."""
    try:
        formula = CONVERTER.convert_with_local_state(source, displaystyle=display)
    except LatexError as error:
        raise ValueError(f"The formula {whole!r} cannot be set: {error}") from error
    if display and source.lstrip().startswith(SIGNS):
        formula = LEADING.sub('<mo form="infix">', formula, count=1)
    for found, better in REPLACED.items():
        formula = formula.replace(found, better)
    return formula


def to_mathml(found: re.Match) -> str:
    """One formula of a page."""
    before, kind, source, after = found.groups()
    source = html.unescape(source).strip()
    if kind == "span":
        formula = convert(source, source, display=False)
        return f'<span class="whole">{before}{formula}{after}</span>'
    parts = (
        "<wbr>".join(
            convert(piece, source, display=True) for piece in part if piece.strip()
        )
        for part in pieces(source)
    )
    display = " ".join(f"<span>{part}</span>" for part in parts)
    return f'{before}<div class="formula">{display}</div>{after}'


class Formulas(Postprocessor):
    """Replaces every formula of a finished page, and keeps numbers whole."""

    def run(self, text: str) -> str:
        return keep_whole(FOUND.sub(to_mathml, text))


class MathML(Extension):
    """Registers `Formulas` behind the postprocessor that puts raw HTML back."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.postprocessors.register(Formulas(md), "mathml", 5)


def makeExtension(**settings) -> MathML:
    """The hook by which Python-Markdown loads an extension."""
    return MathML(**settings)
