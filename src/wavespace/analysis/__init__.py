"""Tables of runs, fits, figures, measurements of models; each is imported when it is asked for, and no sooner.

In a notebook: `runs = analysis.table("runs/demo")`, `analysis.parabola(runs["optim.lr"], runs["val/loss"])`,
`analysis.against(runs, "optim.lr", "val/loss")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wavespace.analysis.fidelity import CONTROL, pareto, tradeoff
    from wavespace.analysis.fits import CantFit, effects, parabola, power_law
    from wavespace.analysis.note_errors import errors, shares
    from wavespace.analysis.probes import control, response
    from wavespace.analysis.tables import objective, read_runs, spread, swept, table
    from wavespace.notebook import facts, features, listen, open_data, open_run, sample
    from wavespace.reports.figures import draw_errors, draw_response, look, show
    from wavespace.reports.study_figures import against, curves, draw_effects, draw_tradeoff
    from wavespace.reports.study_page import write_study

_HOMES = {
    "analysis.fits": ("CantFit", "effects", "parabola", "power_law"),
    "notebook": ("facts", "features", "listen", "open_data", "open_run", "sample"),
    "reports.figures": ("draw_errors", "draw_response", "look", "show"),
    "reports.study_figures": ("against", "curves", "draw_effects", "draw_tradeoff"),
    "reports.study_page": ("write_study",),
    "analysis.tables": ("objective", "read_runs", "spread", "swept", "table"),
    "analysis.fidelity": ("CONTROL", "pareto", "tradeoff"),
    "analysis.note_errors": ("errors", "shares"),
    "analysis.probes": ("control", "response"),
}

__all__ = [
    "CONTROL", "CantFit", "against", "control", "curves", "draw_effects", "draw_errors", "draw_response",
    "draw_tradeoff", "effects", "errors", "facts", "features", "listen", "look", "objective", "open_data", "open_run",
    "parabola", "pareto", "power_law", "read_runs", "response", "sample", "shares", "show", "spread", "swept", "table",
    "tradeoff", "write_study",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"wavespace.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'wavespace.analysis' has no attribute '{name}'")
