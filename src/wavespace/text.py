"""Text for a terminal: names made safe, counts, and the nearest of several names."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable


def printable_text(text: str) -> str:
    """Replace control characters, and those that turn the writing direction, with their escape codes."""
    odd = {c for c in {*text} - {*"\n\t\u200c\u200d"} if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    return text.translate({ord(character): character.encode("unicode_escape").decode() for character in odd})


def printable(name: object) -> str:
    """Return a name on one line, with line breaks and tabs as escape codes, too."""
    return printable_text(str(name)).replace("\n", "\\n").replace("\t", "\\t")


def nearest(name: object, names: Iterable[str], parent: str = "") -> str:
    """Return `, did you mean 'parent.…'?` with the most similar name; empty where none is similar."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f", did you mean '{parent}{'.' * bool(parent)}{close[0]}'?" if close else ""


def counted(count: int, what: str) -> str:
    """Return a count and what is counted, given in the plural: of 1, `1 file is left out` for "files are left out"."""
    if count == 1:
        verbs = {" are": " is", " have": " has"}
        what = re.sub(r"s\b( are| have)?", lambda found: verbs.get(found[1], ""), what, count=1)
    return f"{count:,} {what}"
