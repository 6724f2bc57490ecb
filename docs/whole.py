"""Lines of the site do not break within a number with its name, error or unit, such as t = 2, ± 0.02, 5e-13 and 12 %,
or within an option such as --json."""

import re

# What stays as it is: tags, formulas, and blocks of code, which are copied.
MARKUP = re.compile(r"(<pre\b.*?</pre>|<math\b.*?</math>|<[^>]*>)", re.DOTALL)
NUMBER = r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?"
WHOLE = re.compile(
    rf"(?<![\w.-])(?:\w+ = {NUMBER}|± {NUMBER}|{NUMBER} (?:%|s|ms|ns|kB|MiB|GiB)(?!\w)|\d[\d.]*e-\d+|--\w[\w-]*)"
)


def keep_whole(page: str) -> str:
    """A finished page in which such texts are spans of class `whole`; site.css says what that means."""
    parts = MARKUP.split(page)  # text and markup in turn
    parts[::2] = (
        WHOLE.sub(r'<span class="whole">\g<0></span>', text) for text in parts[::2]
    )
    return "".join(parts)
