"""The README as a package index shows it: what lies in the source distribution is named, and not linked.

An index serves the README alone, so that a link to a file beside the README leads nowhere there, and a picture is a
broken one.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[[^\]]*\]\((?!https:)[^)]*\)\n\n\*[^*]*\*\n\n")  # with its caption
LINK = re.compile(r"\[([^\]]*)\]\((?!https:)([^)#]*)[^)]*\)")
NOTE = "*Names in brackets are files of the source distribution, which has the documentation and the notebooks.*\n"


def for_index(readme: str) -> str:
    """The README without pictures and links of its own folder."""
    return LINK.sub(r"\1 (`\2`)", PICTURE.sub("", readme)) + "\n" + NOTE


class Readme(MetadataHookInterface):
    """Puts the README for the index into the package's metadata."""

    def update(self, metadata: dict) -> None:
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(readme)}
