"""Figures of runs: a metric against what was swept, with its fit; curves; effects; fidelity against control."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from wavespace.analysis.fits import Parabola, PowerLaw
from wavespace.analysis.runs import Run
from wavespace.analysis.tables import check_columns
from wavespace.reports.charts import POINTS, thinned
from wavespace.reports.theme import COLOURS, MARKERS, PAGE, PAPER, Palette, light, panels
from wavespace.text import counted

if TYPE_CHECKING:
    import pandas as pd

    from wavespace.analysis.fits import Effects


MANY = 1500
"""Points from which on they are kept as pixels in a drawing: as shapes they would fill the page."""


class Drawing(NamedTuple):
    """A figure that can be drawn in any palette.

    Attributes:
        name: of its files.
        title: what it is of.
        note: what there is to see, for those who can't, and what was found.
        draw: makes it.
    """

    name: str
    title: str
    note: str
    draw: Callable[[Palette], Figure]

    def figure(self, palette: Palette = PAPER) -> Figure:
        """The figure, for a notebook or for `savefig`."""
        with rc_context(light(palette)):
            return self.draw(palette)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.png()

    def png(self) -> bytes:
        """The picture on white, 1000 pixels wide or so."""
        return self._saved("png", PAPER, dpi=180, facecolor="white")

    def svg(self) -> str:
        """The drawing in stand-ins for colours, the same bytes each time, for `inline` and `on_paper`."""
        return self._saved("svg", PAGE, transparent=True, dpi=150, metadata=_NO_METADATA).decode()

    def _saved(self, kind: str, palette: Palette, **options: Any) -> bytes:
        drawn = io.BytesIO()
        # Ticks are made as they are drawn; a salt of its own gives a drawing's parts names that no other's have.
        with rc_context(light(palette) | {"svg.hashsalt": self.name}):
            self.draw(palette).savefig(drawn, format=kind, **options)
        return drawn.getvalue()


_NO_METADATA: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def on_paper(svg: str) -> str:
    """A drawing of stand-ins as a file of its own, on white."""
    for stand_in, colour in zip((PAGE.ink, PAGE.line, *PAGE.colours), (PAPER.ink, PAPER.line, *PAPER.colours)):
        svg = svg.replace(stand_in, colour)
    return re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#fff"/>', svg, count=1)


def inline(svg: str, label: str) -> str:
    """A drawing of matplotlib's as an element of a page: named for those who can't see it, in the page's colours."""
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # the same in every drawing, and one page holds many
    named = f' role="img" aria-label="{html.escape(label)}"'
    svg = re.sub(r' width="\S+" height="\S+"', lambda _: named, svg, count=1)
    colours = [(colour, f"--c{index}") for index, colour in enumerate(PAGE.colours)]
    for stand_in, name in [(PAGE.ink, "--faint"), (PAGE.line, "--line"), *colours]:
        svg = svg.replace(stand_in, f"var({name})")
    return svg


# --- A metric against a setting -----------------------------------------------------------------------------


def against(
    runs: pd.DataFrame,
    key: str,
    metric: str,
    *,
    by: str | None = None,
    fits: Mapping[str, Parabola | PowerLaw] | None = None,
    less: Callable[[Any], Any] | None = None,
) -> Drawing:
    """A metric against a setting: a point a run, the mean of each point's seeds as a line, or a fit with its band.

    Args:
        runs: from `table`.
        key: a column; numbers that span more than a factor of eight get a logarithmic axis, text a place each.
        metric: a column.
        by: another setting, a colour and a shape a value of it (six; what is more is "others").
        fits: by value of `by` as text, "" without one.
        less: from the fits' loss back to the metric, as `1 - loss`.
    """
    check_columns(runs, key, metric, *([by] if by else []))
    known = runs[runs[key].notna() & runs[metric].notna()]
    groups = _groups(known, by)

    def draw(palette: Palette) -> Figure:
        if is_number(known[key]):
            figure = _draw_numbers(known, key, metric, groups, palette, fits or {}, less)
        else:
            figure = _draw_kinds(known, key, metric, groups, palette)
        if len(groups) > 1:
            _legend(figure, by)
        return figure

    said = counted(len(known), "runs") + (f" by {by}: {', '.join(groups)}" if by else "")
    return Drawing(f"{_file(metric)}-against-{_file(key)}", f"{metric} against {key}", said, draw)


def _dots(palette: Palette, index: int, count: int) -> Any:
    """How points of one of several groups look."""
    colour, marker = palette.colours[index % COLOURS], MARKERS[index % COLOURS]
    return {"color": colour, "marker": marker, "s": 17, "alpha": 0.8, "linewidths": 0, "rasterized": count > MANY}


def _draw_numbers(
    known: pd.DataFrame,
    key: str,
    metric: str,
    groups: dict[str, Any],
    palette: Palette,
    fits: Mapping[str, Parabola | PowerLaw],
    less: Callable[[Any], Any] | None,
) -> Figure:
    """A metric against numbers, from left to right."""
    figure, [[axes]] = panels(3.3, width=5)
    turn = less or (lambda value: value)
    for index, (label, rows) in enumerate(groups.items()):
        colour = palette.colours[index % COLOURS]
        x, y = known.loc[rows, key].to_numpy(float), known.loc[rows, metric].to_numpy(float)
        axes.scatter(x, y, label=label, zorder=3, **_dots(palette, index, len(known)))
        if (fit := fits.get(label)) is not None:
            grid = np.geomspace(*fit.span, 120)
            low, high = fit.band(grid)
            axes.plot(grid, turn(fit(grid)), color=colour, zorder=2)
            axes.fill_between(grid, turn(low), turn(high), color=colour, alpha=0.16, lw=0)
            if isinstance(fit, Parabola):
                left, right = max(fit.optimum.low, x.min() / 3), min(fit.optimum.high, x.max() * 3)
                axes.axvline(fit.optimum.value, color=colour, lw=0.9, ls=(0, (2, 3)))
                axes.axvspan(left, right, color=colour, alpha=0.07, lw=0)
        elif len(groups) > 1 or len(np.unique(x)) < len(x) or len(x) <= 12:
            middle = [(value, y[x == value].mean()) for value in np.unique(x)]
            axes.plot(*zip(*middle), color=colour, lw=1, alpha=0.7)
    axes.set(xlabel=key, ylabel=metric)
    places = known[key].astype(float)
    if len(places) and places.min() > 0 and places.max() > 8 * places.min():
        _log_axis(axes)
    if less is None and any(isinstance(fit, PowerLaw) for fit in fits.values()):
        _log_axis(axes, "y")
    return figure


def _draw_kinds(known: pd.DataFrame, key: str, metric: str, groups: dict[str, Any], palette: Palette) -> Figure:
    """A metric of kinds, one above the other, with a stroke at each group's mean."""
    kinds = known[key].astype("string")
    names = sorted(set(kinds))
    figure, [[axes]] = panels(max(1.9, 0.9 + 0.32 * len(names)), width=5)
    for index, (label, rows) in enumerate(groups.items()):
        values = known.loc[rows, metric].to_numpy(float)
        places = kinds[rows].map(names.index).to_numpy(float) + 0.16 * (index - (len(groups) - 1) / 2)
        axes.scatter(values, places, label=label, **_dots(palette, index, len(known)))
        for place in np.unique(places):
            mean = values[places == place].mean()
            axes.plot([mean], [place], "|", color=palette.colours[index % COLOURS], ms=11, mew=1.8)
    axes.set_xlabel(metric)
    axes.set_yticks(range(len(names)), [name if len(name) < 30 else f"{name[:28]}…" for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(True, axis="x")
    return figure


def _groups(runs: pd.DataFrame, by: str | None) -> dict[str, Any]:
    """Rows by value of a setting, the six that occur most; the others together."""
    if by is None:
        return {"": runs.index}
    values = labels(runs[by])
    most = list(values.value_counts().index[:6])
    if values.nunique() > 6:
        values = values.where(values.isin(most[:5]), "others")
    return {str(value): runs.index[values == value] for value in sorted(values.unique(), key=_natural)}


def labels(column: pd.Series) -> pd.Series:
    """Values of a setting as text, numbers in a few digits."""
    text = column.astype(float).map("{:g}".format, na_action="ignore") if is_number(column) else column
    return text.astype("string").fillna("none")


def is_number(column: pd.Series) -> bool:
    """Whether a column has numbers, which have an order, and not truths or text."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) and not is_bool_dtype(column)


# --- Curves -------------------------------------------------------------------------------------------------


def curves(runs: Sequence[Run], metric: str, labels: Sequence[str] | None = None, *, by: str | None = None) -> Drawing:
    """A logged metric over steps, a line a run.

    Args:
        runs: those without the metric are left out.
        metric: as in metrics.csv.
        labels: a group for each run, a colour a group, six of them; None: all alike.
        by: what the labels are values of.
    """
    groups = list(labels or [""] * len(runs))
    found = [(run.history[metric], group) for run, group in zip(runs, groups) if metric in run.history]
    kinds = list(dict.fromkeys(group for _, group in found))
    kinds.sort(key=_natural)

    def draw(palette: Palette) -> Figure:
        figure, [[axes]] = panels(3.1, width=5)
        for series, group in found:
            index = kinds.index(group)
            many = len(found) > 12
            marker = "" if many or len(series[0]) > 40 else MARKERS[index % COLOURS]
            line = ("-", "--", ":")[index // COLOURS % 3]
            width, alpha = (0.8, 0.6) if many else (1.4, 0.9)
            thin = thinned(series, 60 if many else POINTS)
            axes.plot(*thin, line, color=palette.colours[index % COLOURS], marker=marker, lw=width, alpha=alpha)
        axes.set(xlabel="step", ylabel=metric)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if 1 < len(kinds) <= 12:
            for index, kind in enumerate(kinds):
                line = ("-", "--", ":")[index // COLOURS % 3]
                axes.plot([], [], line, color=palette.colours[index % COLOURS], label=kind)
            _legend(figure, by)
        return figure

    said = (
        counted(len(found), "runs")
        + " over their steps"
        + (f", by {by}: {', '.join(kinds[:12])}" if by and len(kinds) > 1 else "")
    )
    return Drawing(f"{_file(metric)}-over-steps", f"{metric} over steps", said, draw)


def _natural(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


# --- Effects ------------------------------------------------------------------------------------------------


def draw_effects(effects: Effects, metric: str) -> Drawing:
    """Importances of settings as bars, or rank correlations where the forest names none."""
    shown = [effect for effect in effects.effects if effect.importance is not None or effect.rank is not None][:12]
    ranks = all(effect.importance is None for effect in shown)

    def value(effect: Any) -> float:
        return effect.rank.value if ranks else max(0.0, effect.importance or 0.0)

    def draw(palette: Palette) -> Figure:
        figure, [[axes]] = panels(0.9 + 0.28 * max(1, len(shown)), width=5)
        for row, effect in enumerate(shown):
            axes.barh(row, value(effect), color=palette.colours[0], height=0.55)
            if ranks and effect.rank is not None:
                axes.plot([effect.rank.low, effect.rank.high], [row, row], color=palette.ink, lw=1)
        axes.set_yticks(range(len(shown)), [effect.key for effect in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("rank correlation with the loss" if ranks else "share of the variance of the loss")
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        return figure

    said = "; ".join(
        f"{effect.key} {value(effect):.0%}" if not ranks else f"{effect.key} {value(effect):.2f}" for effect in shown
    )
    return Drawing(f"effects-on-{_file(metric)}", f"What {metric} depends on", said, draw)


# --- Fidelity and control -----------------------------------------------------------------------------------


def draw_tradeoff(points: pd.DataFrame, by: str | None = None) -> Drawing:
    """Distortion against control, a point a run, those on the Pareto front ringed and joined.

    Args:
        points: from `tradeoff`.
        by: a setting, a colour and a shape a value.
    """
    distortion, control, higher = (points.attrs[name] for name in ("distortion", "control", "higher"))
    groups = _groups(points, by)
    front = points[points["front"]].sort_values(distortion)

    def draw(palette: Palette) -> Figure:
        figure, [[axes]] = panels(3.5, width=5)
        for index, (label, rows) in enumerate(groups.items()):
            x, y = (points.loc[rows, name].to_numpy(float) for name in (distortion, control))
            axes.scatter(
                x,
                y,
                s=26,
                color=palette.colours[index % COLOURS],
                marker=MARKERS[index % COLOURS],
                lw=0,
                label=label,
                zorder=3,
            )
        x, y = (front[name].to_numpy(float) for name in (distortion, control))
        axes.step(x, y, where="post", color=palette.ink, lw=1, ls=(0, (3, 2)), zorder=2)
        axes.scatter(x, y, s=90, facecolors="none", edgecolors=palette.ink, lw=1, zorder=4)
        axes.set_xlabel(f"distortion: {distortion} (less is better)")
        axes.set_ylabel(f"control: {control} ({'more' if higher else 'less'} is better)")
        axes.margins(0.08)
        if not higher:
            axes.invert_yaxis()
        if len(groups) > 1:
            _legend(figure, by)
        return figure

    best = "; ".join(f"{a:.3g} and {b:.3g}" for a, b in zip(front[distortion], front[control]))
    said = f"{len(points)} runs, of which {len(front)} (ringed) are on the Pareto front: {best}"
    return Drawing(f"tradeoff-{_file(control)}", f"Fidelity against control: {control}", said, draw)


# --- Shared -------------------------------------------------------------------------------------------------


def _legend(figure: Figure, title: str | None) -> None:
    """Names of groups beside the panel, where they hide no point."""
    options: Any = {"fontsize": 8, "title_fontsize": 8, "handletextpad": 0.3, "borderaxespad": 0.2}
    figure.legend(title=title, loc="outside right upper", alignment="left", **options)


def _log_axis(axes: Axes, which: str = "x") -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def _file(name: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^\w.]+", "_", name).strip("_.")[:60] or "metric"
