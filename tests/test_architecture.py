"""docs/architecture.md matches the tree: its table has every module, and its picture the rule of imports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from test_imports import GROUND, MAY_IMPORT

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
ROWS = re.findall(r"^\| (`.+?`) \| (.+) \|$", TEXT, re.MULTILINE)
PLACES = [place for where, _ in ROWS for place in re.findall(r"`(.+?)`", where)]
MODULES = sorted(file for base in ("src", "launchers") for file in (ROOT / base).rglob("*.py"))
(PICTURE,) = re.findall(r"^```mermaid\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
ARROWS = set(re.findall(r"^  (\w+) --> (\w+)$", PICTURE, re.MULTILINE))


def test_every_place_of_the_table_exists() -> None:
    assert not [place for place in PLACES if not (ROOT / place).exists()]


@pytest.mark.parametrize(("where", "what"), ROWS)
def test_a_row_names_files_that_exist(where: str, what: str) -> None:
    places = [ROOT / place for place in re.findall(r"`(.+?)`", where)]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", what)
    assert not [name for name in named if not any((place / name).exists() for place in [*places, ROOT])]


def test_every_module_has_a_row() -> None:
    names = [module.relative_to(ROOT).as_posix() for module in MODULES]
    assert not [name for name in names if not any(name == place or name.startswith(place) for place in PLACES)]


def below(package: str) -> set[str]:
    """Return what a package reaches along the arrows of the picture."""
    direct = {end for start, end in ARROWS if start == package}
    return direct.union(*map(below, direct))


def test_the_picture_shows_what_may_import_what() -> None:
    allowed = {name: others - GROUND for name, others in MAY_IMPORT.items() if name not in GROUND}
    assert {name for arrow in ARROWS for name in arrow} == set(allowed)
    assert not [(start, end) for start, end in ARROWS if end not in allowed[start]]
    assert not [(name, other) for name, others in allowed.items() for other in others - below(name)]
