"""Code of the user's own, as digests of its Python files. Imports no torch, and nothing of that code."""

from __future__ import annotations

import re
import sys
import sysconfig
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from wavespace.digests import file_digest

VERSIONED = ("torch", "pytorch_lightning")
"""Packages that every run uses; status.json has their versions."""

IMPORTS = re.compile(r"^[ \t]*(?:from[ \t]+(\w+)[\w.]*[ \t]+import\b|import[ \t]+([\w., \t]+))", re.MULTILINE)


@cache  # what was imported stays what it was
def code_of(target: str) -> dict[str, str]:
    """Digests of the Python files that define a target outside Wavespace, by their path from where it is imported.

    They are all of its package, or its module; and all packages and modules beside it that these import. Of an
    installed package, its version.
    """
    top = target.partition(".")[0]
    if top in sys.stdlib_module_names or top in VERSIONED:
        return {}
    try:
        spec = find_spec(top)  # which imports nothing
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return {}
    if spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations))).parent
    else:
        root = Path(str(spec.origin)).parent
    if any(root.is_relative_to(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")):
        with suppress(metadata.PackageNotFoundError):
            return {top: metadata.version(top)}
    todo, looked, found = [top], set[str](), dict[str, str]()
    while todo:
        name = todo.pop()
        looked.add(name)
        for path in [root / f"{name}.py", *sorted((root / name).rglob("*.py"))]:
            if path.is_file():
                found[path.relative_to(root).as_posix()] = file_digest(path)
                names = re.findall(r"\w+", " ".join(map(" ".join, IMPORTS.findall(path.read_text("utf-8", "replace")))))
                beside = {n for n in names if (root / f"{n}.py").is_file() or (root / n / "__init__.py").is_file()}
                todo += beside - looked - set(todo) - {"wavespace"}
    return found
