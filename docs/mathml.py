"""Formulas as MathML at build time: the site needs no script and no network to show them.

A Python-Markdown extension. It takes what `pymdownx.arithmatex` (generic) found, in pages and docstrings alike.
"""

import html
import re

from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor
from math_core import LatexError, LatexToMathML

FOUND = re.compile(
    r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL
)
CONVERTER = LatexToMathML()


def to_mathml(found: re.Match) -> str:
    """One formula; raises ValueError with the formula if it is not LaTeX that can be set."""
    tag, source = found[1], html.unescape(found[2]).strip()
    try:
        formula = CONVERTER.convert_with_local_state(
            source, displaystyle=tag == "div"
        )
    except LatexError as error:
        raise ValueError(
            f"The formula {source!r} cannot be set: {error}"
        ) from error
    return f'<{tag} class="formula">{formula}</{tag}>'


class Formulas(Postprocessor):
    """Replaces every formula of a finished page."""

    def run(self, text: str) -> str:
        return FOUND.sub(to_mathml, text)


class MathML(Extension):
    """Registers `Formulas` behind the postprocessor that puts raw HTML back."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.postprocessors.register(Formulas(md), "mathml", 5)


def makeExtension(**settings) -> MathML:
    """The hook by which Python-Markdown loads an extension."""
    return MathML(**settings)
