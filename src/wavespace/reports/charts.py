"""Curves of one run as SVG, in the page's colours.

Drawn without matplotlib, which takes half a second a page: a report writes the pages of thousands of runs.
"""

from __future__ import annotations

import html
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wavespace.analysis.runs import LARGEST, Series
from wavespace.reports.pages import number
from wavespace.reports.theme import COLOURS

POINTS = 300
"""Most points to a curve; of more, neighbours are averaged."""


def together(series: Series, points: int = POINTS) -> int:
    """How many logged steps make a point."""
    return math.ceil(len(series[0]) / points)


def thinned(series: Series, points: int = POINTS) -> Series:
    """At most so many points: means over neighbours, of values that are numbers."""
    starts = np.arange(0, len(series[0]), together(series, points))
    sizes = np.diff(np.append(starts, len(series[0])))
    steps, values = (np.add.reduceat(column, starts) / sizes for column in series)  # (K,)
    return steps[np.isfinite(values)], values[np.isfinite(values)]


class Chart(NamedTuple):
    """A drawing as SVG markup; its curves are name, last value as text, and the page's colour."""

    title: str
    note: str
    svg: str
    curves: list[tuple[str, str, str]]


def charts(metrics: dict[str, Series], status: dict[str, Any]) -> list[Chart]:
    """Losses together, with the learning rate; validation metrics together if they lie in 0..1."""
    losses = [name for name in metrics if name.startswith("train/") or name == "val/loss"]
    losses.sort(key=lambda name: (name != "train/loss", name != "val/loss"))
    known = [f"val/{name}" for name in status.get("table", [])] or [n for n in metrics if n.startswith("val/")]
    validated = [name for name in known if name in metrics and name not in losses]
    shares = [name for name in validated if not np.any((metrics[name][1] < 0) | (metrics[name][1] > 1))]
    groups = [shares, *([name] for name in validated if name not in shares)]
    charts = [_chart("Losses", {n: metrics[n] for n in losses}, rate=metrics.get("lr"), log=True)] if losses else []
    best = status.get("metrics", {}).get("best_step")
    return charts + [_chart("Validation", {n: metrics[n] for n in names}, best=best) for names in groups if names]


def _chart(
    title: str,
    curves: dict[str, Series],
    *,
    rate: Series | None = None,
    best: float | None = None,
    log: bool = False,
) -> Chart:
    """Curves over steps; below them the learning rate, across them the best step."""
    points = [thinned(series) for series in curves.values()]
    across = [*(steps for steps, _ in points), np.array([best] if best is not None and np.isfinite(best) else [])]
    x = Scale.of(across, 42, 354)
    log = log and not any(np.any(values <= 0) for _, values in curves.values())
    y = Scale.of([values for _, values in points], 158 if rate else 194, 6, log)
    label = html.escape(f"{title}: {', '.join(curves)}")
    parts = [f'<svg viewBox="0 0 360 223" role="img" aria-label="{label}">']
    parts += _frame(x, y, 194)
    listed: list[tuple[str, str, str]] = []
    notes = ["last values beside the names"]
    for index, (name, series) in enumerate(curves.items()):
        colour = f"--c{index % COLOURS}"
        dotted = len(series[0]) < (40 if name.startswith("val/") else 2)
        parts += _line(points[index], x, y, colour, ("", "5 2", "1 2")[index // COLOURS % 3], dotted)
        listed.append((name, number(series[1][-1]), colour))
    if rate:
        steps, values = thinned(rate)
        below = Scale(0.0, max([*values.tolist(), 1e-30]) * 1.05, 192, 168)
        parts += _line((steps, np.maximum(values, 0)), x, below, "--faint")
        parts += [
            _text(38, below(below.high / 1.05) + 3, "end", f"{below.high / 1.05:.2g}"),
            _text(38, 195, "end", "0"),
        ]
        listed.append(("lr", number(rate[1][-1]), "--faint"))
    if (steps_each := max(map(together, curves.values()))) > 1:
        notes.insert(0, f"a point is the mean of up to {steps_each} logged steps")
    if best is not None and np.isfinite(best):
        parts.append(_path([(x(best), 6), (x(best), 194)], "--faint", "2 3"))
        notes.insert(0, f"dotted: the best, at step {best:.0f}")
    return Chart(title, "; ".join(notes), "".join([*parts, "</svg>"]), listed)


class Scale(NamedTuple):
    """Where the values of an axis lie in a drawing: `low` at `start`, `high` at `end`; log: of their logarithms."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def of(cls, values: list[NDArray[np.float64]], start: float, end: float, log: bool = False) -> Scale:
        """With room for all values."""
        known = np.concatenate(values)
        known = np.log10(np.maximum(known, 1 / LARGEST)) if log else known
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        spare = 0.05 * ((high - low) or abs(high) or 1.0)
        return cls(low - spare, high + spare, start, end, log)

    def __call__(self, values: Any) -> Any:
        at = np.log10(np.maximum(values, 1 / LARGEST)) if self.log else values
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int, integer: bool = False) -> list[float]:
        """Round values within it."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        wide = LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5))
        found = (wide if self.log else MaxNLocator(count, integer=integer, steps=[1, 2, 5, 10])).tick_values(low, high)
        return [float(tick) for tick in found if low <= tick <= high]


def _frame(x: Scale, y: Scale, bottom: float) -> list[str]:
    """Ticks, their lines, and what the steps are called."""
    parts = []
    for tick in y.ticks(6):
        parts += [_path([(42, y(tick)), (354, y(tick))], "--line"), _text(38, y(tick) + 3, "end", f"{tick:g}")]
    for tick in x.ticks(6, integer=True):
        parts += [_path([(x(tick), bottom), (x(tick), bottom + 3)], "--faint")]
        parts += [_text(x(tick), bottom + 13, "middle", f"{tick:g}" if abs(tick) >= 1e7 else f"{tick:.0f}")]
    return [*parts, _path([(42, bottom), (354, bottom)], "--line"), _text(198, bottom + 25, "middle", "step")]


def _line(series: Series, x: Scale, y: Scale, colour: str, dashes: str = "", dotted: bool = False) -> list[str]:
    """A curve, with a dot at each point if they are few."""
    places = list(zip(x(series[0]).tolist(), y(series[1]).tolist()))
    dots = [f'<circle cx="{a:.2f}" cy="{b:.2f}" r="1.5" style="fill: var({colour})"/>' for a, b in places if dotted]
    return [_path(places, colour, dashes, 1.6), *dots]


def _path(places: list[tuple[float, float]], colour: str, dashes: str = "", width: float = 0.8) -> str:
    drawn = "L".join(f"{a:.2f} {b:.2f}" for a, b in places)
    dashed = f"; stroke-dasharray: {dashes}" if dashes else ""
    return f'<path d="M{drawn}" style="fill: none; stroke: var({colour}); stroke-width: {width}{dashed}"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    style = f"fill: var(--faint); font-size: 9px; text-anchor: {anchor}"
    return f'<text x="{x:.2f}" y="{y:.2f}" style="{style}">{html.escape(text)}</text>'
