"""Text from files, names and services, made safe for a terminal."""

from __future__ import annotations

import unicodedata


def printable_text(text: str) -> str:
    """Replace control characters, and those that turn the writing direction, with their escape codes."""
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape").decode()


def printable(name: object) -> str:
    """Return a name on one line, with line breaks and tabs as escape codes, too."""
    return printable_text(str(name)).replace("\n", "\\n").replace("\t", "\\t")
