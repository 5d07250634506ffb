"""Digests of the user's own Python files. Neither torch nor that code is imported."""

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
    """Return digests of the Python files that define a target outside Wavespace, by relative path.

    These are all files of its package or module, and of the packages and modules beside it that they import. For an
    installed package it is the version.
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
    root = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)]))).parent
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
