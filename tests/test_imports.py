"""The arrows between packages run one way; a new circle or a wrong arrow fails here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GROUND = {"errors", "text", "signals", "units", "spec", "settings", "files", "digests", "provenance", "launchfile"}
"""Modules that all may import."""

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "text": set(),
    "signals": set(),
    "units": set(),
    "spec": set(),
    "settings": set(),
    "files": {"errors"},
    "digests": {"errors", "text", "files"},
    "provenance": {"errors", "signals", "files"},
    "launchfile": {"errors", "files"},
    "archive": GROUND,
    "terminal": GROUND,
    "optim": GROUND,
    "models": GROUND,
    "config": GROUND,
    "frontends": GROUND,
    "data": GROUND,
    "metrics": GROUND | {"data"},
    "tasks": GROUND | {"optim", "data", "frontends", "metrics"},
    "inputs": GROUND | {"config", "data", "frontends"},
    "runfolder": GROUND | {"config", "inputs"},
    "locate": GROUND | {"archive", "runfolder"},
    "build": GROUND | {"models", "config", "data", "tasks"},
    "checkpoint": GROUND | {"archive", "config", "tasks", "locate", "build"},
    "inference": GROUND | {"models", "config", "data", "frontends", "tasks", "locate", "checkpoint"},
    "notebook": GROUND | {"config", "data", "frontends", "tasks", "checkpoint"},
    "analysis": GROUND | {"models", "config", "data", "metrics", "tasks"},
    "reports": GROUND | {"data", "tasks", "runfolder", "analysis"},
    "training": GROUND
    | {"terminal", "models", "config", "data", "tasks", "inputs", "runfolder", "build", "analysis", "reports"},
    "wavespace_launcher": GROUND | {"terminal", "config", "inputs", "runfolder", "training"},
    "commands": GROUND
    | {
        "terminal",
        "config",
        "data",
        "tasks",
        "inputs",
        "runfolder",
        "locate",
        "build",
        "checkpoint",
        "inference",
        "analysis",
        "reports",
        "training",
        "wavespace_launcher",
    },
    "cli": GROUND | {"terminal"},
    "__main__": GROUND | {"cli"},
}
"""What each package or module may import of Wavespace, besides itself; docs/architecture.md draws it."""

FLOORS = 12

FACES = {"wavespace", "wavespace.analysis", "wavespace.reports"}
"""Packages whose `__init__` has the public names and imports their modules when they are asked for."""


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for base in (ROOT / "src", ROOT / "launchers"):
        for file in base.rglob("*.py"):
            name = ".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
            found[name] = file
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of Wavespace that one imports, at its head, within functions or for types."""

    def named() -> Iterator[str]:
        for node in ast.walk(ast.parse(modules()[name].read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}, line {node.lineno}: a relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def known(dotted: str) -> str:
        while dotted and dotted not in modules():
            dotted = dotted.rpartition(".")[0]
        return dotted

    return frozenset({known(dotted) for dotted in named()} - {"", name})


def package(name: str) -> str:
    """`config` of `wavespace.config.trust`; the launcher is one package."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "wavespace" else first


def used(name: str) -> set[str]:
    """The packages that a package imports."""
    mine = [module for module in modules() if package(module) == name]
    assert mine, f"there is no {name} any more"
    return {package(other) for module in mine for other in imports(module)} - {name}


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_a_package_imports_what_it_may_and_may_nothing_else(name: str) -> None:
    assert not used(name) - MAY_IMPORT[name]
    assert not MAY_IMPORT[name] - GROUND - used(name), "allowed, and never done"


def test_every_package_has_its_place() -> None:
    assert {package(module) for module in modules()} - {"", "hydra_plugins"} == set(MAY_IMPORT)


def test_no_module_imports_a_face() -> None:
    assert not {(module, face) for module in modules() for face in imports(module) & FACES if module not in FACES}


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in imports(name) - FACES:
                follow(other, (*path, name))
            done.add(name)

    for name in modules():
        follow(name, ())


def test_there_are_few_floors() -> None:
    """A package stands one floor above the highest that it imports."""

    @cache
    def floor(name: str) -> int:
        return 1 + max(map(floor, used(name)), default=0)

    highest = max(MAY_IMPORT, key=floor)
    assert floor(highest) <= FLOORS, highest
