"""Drawings and pages; those that notebooks use are imported when first asked for.

`reports.against(runs, "optim.lr", "val/loss")`, `reports.look(notebook.sample(task, data, 0))`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wavespace.reports.figures import draw_errors, draw_response, look, show
    from wavespace.reports.study_figures import against, curves, draw_effects, draw_tradeoff
    from wavespace.reports.study_page import write_study

_MODULES = {
    "figures": ("draw_errors", "draw_response", "look", "show"),
    "study_figures": ("against", "curves", "draw_effects", "draw_tradeoff"),
    "study_page": ("write_study",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "against", "curves", "draw_effects", "draw_errors", "draw_response", "draw_tradeoff", "look", "show", "write_study",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wavespace.reports' has no attribute '{name}'")
    return getattr(import_module(f"wavespace.reports.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
