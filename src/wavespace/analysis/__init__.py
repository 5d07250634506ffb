"""Tables of runs, fits, measurements of trained models; each is imported when first asked for.

`runs = analysis.table("runs/demo")`, `analysis.parabola(runs["optim.lr"], runs["val/loss"])`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wavespace.analysis.fidelity import CONTROL, pareto, tradeoff
    from wavespace.analysis.fits import CantFit, effects, parabola, power_law
    from wavespace.analysis.note_errors import errors, shares
    from wavespace.analysis.probes import control, response
    from wavespace.analysis.tables import objective, read_runs, spread, swept, table

_MODULES = {
    "fidelity": ("CONTROL", "pareto", "tradeoff"),
    "fits": ("CantFit", "effects", "parabola", "power_law"),
    "note_errors": ("errors", "shares"),
    "probes": ("control", "response"),
    "tables": ("objective", "read_runs", "spread", "swept", "table"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CONTROL", "CantFit", "control", "effects", "errors", "objective", "parabola", "pareto", "power_law", "read_runs",
    "response", "shares", "spread", "swept", "table", "tradeoff",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wavespace.analysis' has no attribute '{name}'")
    return getattr(import_module(f"wavespace.analysis.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
