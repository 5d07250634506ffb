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
    "spec": {"errors", "units"},
    "settings": {"errors"},
    "files": {"errors", "text"},
    "digests": {"errors", "files", "text"},
    "provenance": {"errors", "files", "signals"},
    "launchfile": {"errors", "files", "text"},
    "archive": GROUND,
    "terminal": GROUND,
    "optim": GROUND,
    "models": GROUND,
    "config": GROUND | {"terminal"},
    "data": GROUND,
    "frontends": GROUND,
    "decode": GROUND | {"data"},
    "metrics": GROUND | {"data", "decode"},
    "tasks": GROUND | {"optim", "data", "frontends", "models", "decode", "metrics"},
    "inputs": GROUND | {"config", "data", "frontends"},
    "runfolder": GROUND | {"config", "inputs"},
    "locate": GROUND | {"archive", "terminal", "runfolder"},
    "build": GROUND | {"config", "data", "frontends", "models", "tasks"},
    "checkpoint": GROUND | {"archive", "locate", "config", "build", "tasks"},
    "inference": GROUND | {"config", "data", "frontends", "models", "tasks", "checkpoint", "locate"},
    "analysis": GROUND
    | {"config", "runfolder", "locate", "data", "frontends", "models", "metrics", "tasks", "build", "checkpoint"}
    | {"inference"},
    "reports": GROUND | {"terminal", "config", "runfolder", "data", "tasks", "metrics", "analysis", "inference"},
    "training": GROUND
    | {"terminal", "config", "inputs", "runfolder", "data", "frontends", "models", "tasks", "metrics", "build"}
    | {"checkpoint", "inference", "analysis", "reports"},
    "wavespace_launcher": GROUND | {"terminal", "config", "inputs", "runfolder", "training"},
    "commands": GROUND
    | {"terminal", "config", "inputs", "runfolder", "locate", "data", "tasks", "decode", "metrics", "build"}
    | {"checkpoint", "inference", "analysis", "reports", "training", "wavespace_launcher"},
    "cli": GROUND | {"terminal"},
    "__main__": {"cli"},
}
"""What each package or module may import of Wavespace, besides itself; docs/architecture.md draws it."""

FLOORS = 13


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
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def known(dotted: str) -> str:
        while dotted and dotted not in modules():
            dotted = dotted.rpartition(".")[0]
        return dotted

    # The face of the package only hands names on, and knows its version.
    return frozenset({known(dotted) for dotted in named()} - {"", name, "wavespace"})


def package(name: str) -> str:
    """`config` of `wavespace.config.trust`; the launcher is one package."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "wavespace" else first


def faces() -> set[str]:
    """Packages whose `__init__` hands names on without importing them."""
    return {"wavespace", "wavespace.analysis", "wavespace.config"}


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_a_package_imports_what_lies_below_it(name: str) -> None:
    mine = [module for module in modules() if package(module) == name and module not in faces()]
    assert mine, f"there is no {name} any more"
    wrong = {
        (module, other)
        for module in mine
        for other in imports(module)
        if package(other) not in MAY_IMPORT[name] | {name}
    }
    assert not wrong


def test_every_package_has_its_place() -> None:
    packages = {package(module) for module in modules()} - {"", "hydra_plugins"}
    assert packages == set(MAY_IMPORT)


def test_there_is_no_circle_and_few_floors() -> None:
    """A module stands one floor above the highest that it imports; in a circle there is no highest."""
    floor: dict[str, int] = {}

    def of(name: str, path: tuple[str, ...]) -> int:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in floor:
            floor[name] = 1 + max((of(other, (*path, name)) for other in imports(name) - faces()), default=0)
        return floor[name]

    highest = max(modules(), key=lambda name: of(name, ()))
    assert floor[highest] <= FLOORS, highest
