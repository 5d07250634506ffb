"""What the pages share: their templates and colours, and how a number is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render(template: str, **values: Any) -> str:
    """A page from `wavespace/templates`, everything escaped that is not said to be safe."""
    import jinja2

    import wavespace

    folder = Path(__file__).parents[1] / "templates"
    loader = jinja2.FileSystemLoader(folder, encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, loader=loader)
    return environment.get_template(template).render(version=wavespace.__version__, **values)


def number(value: float | None) -> str:
    """A figure as text of a few digits; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
