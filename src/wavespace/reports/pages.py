"""What the pages share: their templates and colours, and how a number is written."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parents[1] / "templates"


@cache
def _environment() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, loader=loader)


def render(template: str, **values: Any) -> str:
    """A page from `wavespace/templates`, everything escaped that is not said to be safe."""
    return _environment().get_template(template).render(version=version("wavespace"), **values)


@cache
def edition() -> str:
    """Of the templates: pages that were made by others are made anew."""
    texts = [path.read_bytes() for path in sorted(TEMPLATES.iterdir())]
    return hashlib.sha256(b"".join([version("wavespace").encode(), *texts])).hexdigest()


def number(value: float | None) -> str:
    """A number as text of a few digits; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
