"""The page of several runs: findings, figures with fits, and a table; beside it CSV, Parquet and figures.

A fit that the data can't carry is a sentence on the page. Settings are compared by validation, as they were chosen by
it.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np

from wavespace.analysis.fidelity import CONTROL, tradeoff
from wavespace.analysis.fits import CantFit, effects, parabola, power_law
from wavespace.analysis.runs import Run
from wavespace.analysis.tables import config_keys, files_read, objective, spread, swept, table
from wavespace.errors import UserError
from wavespace.provenance import refuse_foreign, write_marked
from wavespace.reports.pages import number, render
from wavespace.reports.study_figures import (
    Drawing,
    against,
    curves,
    draw_effects,
    draw_tradeoff,
    inline,
    is_number,
    labels,
    on_paper,
)

if TYPE_CHECKING:
    import pandas as pd

SIZES = re.compile(
    r"(^|[._])(latent|width|depth|layers|parameters|max_steps|steps|pieces|items|hours|seconds|minutes)$"
)
"""Keys whose growth may follow a power law; what else is a number may have a best value, as a learning rate has."""

MOST_ROWS, MOST_FAULTS, MOST_CURVES, MOST_KEYS = 1000, 200, 60, 6
"""What a page shows at most; the files hold everything."""


class Finding(NamedTuple):
    """A sentence, and whether it is one that the data carries."""

    text: str
    carried: bool = True


def write_study(
    runs: list[Run],
    out: Path,
    *,
    metric: str | None = None,
    title: str = "",
    coming: Collection[Path] = (),
    overwrite: bool = False,
) -> Path:
    """Write `report.html`, `runs.csv`, `runs.parquet` and `figures/` to a folder; returns the page's path.

    Args:
        runs: from `read_runs`.
        out: made if it is not there.
        metric: what runs are compared by; default: their own metric.
        title: of the page.
        coming: run folders whose own pages are about to be written, so that they can be linked to.
        overwrite: replace files that this program did not write, too.

    Raises:
        UserError: the metric is not there, the folder can't be written, or a file in it may not be replaced.
    """
    page, files = _page(runs, out, metric, title or str(out), coming)
    target = out / "report.html"
    if (out / "figures").is_symlink():  # in a stranger's folder it may lead anywhere
        raise UserError(
            f"{out / 'figures'} is a link, through which nothing is written; name another folder with --out"
        )
    refuse_foreign(target, list(files), overwrite=overwrite)
    try:
        write_marked(target, page.encode("utf-8", "replace"), files)
    except OSError as error:
        raise UserError(f"{out}: can't be written ({error.strerror}); name another folder with --out") from None
    return out / "report.html"


def _page(
    runs: list[Run], out: Path, metric: str | None, title: str, coming: Collection[Path]
) -> tuple[str, dict[Path, bytes]]:
    """The page of runs, and the tables and figures beside it."""
    rows = table(runs)
    found: list[Finding] = []
    drawings: list[Drawing] = []
    chosen: tuple[str, bool] | None = None
    try:
        chosen = objective(rows, metric)
    except UserError as error:
        if metric is not None:
            raise
        found.append(Finding(_sentence(str(error)), False))
    try:
        if chosen:
            found, drawings = findings(runs, rows, *chosen)
        drawn = [drawing.svg() for drawing in drawings]
    except Exception as error:  # the table is worth more than a figure of odd values
        found, drawings, drawn = [Finding(f"No figures: {type(error).__name__}: {error}.", False)], [], []
    page = render(
        "study.html",
        title=title,
        count=len(rows),
        states=rows["state"].value_counts().items(),
        spent=_spent(rows),
        metric=chosen[0] if chosen else None,
        findings=found,
        drawings=[(d.title, d.note, inline(svg, f"{d.title}: {d.note}")) for d, svg in zip(drawings, drawn)],
        points=_points_table(rows, *chosen) if chosen else [],
        runs=_runs_table(rows, chosen, out, coming),
        left_out=max(0, len(rows) - MOST_ROWS),
        faults=_faults(rows),
        settings=_settings(rows),
        swept=[(key, together) for key, together in swept(rows).items()],
    )
    parquet = io.BytesIO()
    rows.to_parquet(parquet, index=False)
    files: dict[Path, bytes] = {
        out / "runs.csv": rows.to_csv(index=False).encode("utf-8", "replace"),
        out / "runs.parquet": parquet.getvalue(),
    }
    for drawing, svg in zip(drawings, drawn):
        files[out / "figures" / f"{drawing.name}.png"] = drawing.png()
        files[out / "figures" / f"{drawing.name}.svg"] = on_paper(svg).encode()
    return page, files


# --- What the runs say --------------------------------------------------------------------------------------


def findings(runs: list[Run], rows: pd.DataFrame, metric: str, higher: bool) -> tuple[list[Finding], list[Drawing]]:
    """Sentences and figures, the most important first.

    Args:
        runs: of the rows, in their order.
        rows: from `table`.
        metric: a column.
        higher: whether more of it is better.
    """
    known = rows[rows[metric].notna() & np.isfinite(rows[metric].astype(float).fillna(np.nan))]
    if known.empty:
        return [Finding(f"No run has {metric} yet.", False)], []
    keys = swept(rows)
    found, drawings = [_best(known, metric, higher, list(keys))], []
    for key in list(keys)[:MOST_KEYS]:
        sentences, drawing = _setting(known, key, list(keys), metric, higher)
        found += sentences
        drawings.append(drawing)
    if known["parameters"].nunique() > 2 and "parameters" not in keys:
        sentences, drawing = _setting(known, "parameters", list(keys), metric, higher)
        found += sentences
        drawings.append(drawing)
    if len(keys) > 1:
        sentences, more = _effects(known, list(keys), metric, higher)
        found += sentences
        drawings += more
    for control, drawing in _tradeoffs(rows, next(iter(keys), None)):
        found.append(Finding(f"Fidelity against {control}: {drawing.note}."))
        drawings.append(drawing)
    if (over := _curves(runs, rows, metric, higher, next(iter(keys), None))) is not None:
        drawings.append(over)
    return found, drawings


def _best(known: pd.DataFrame, metric: str, higher: bool, keys: list[str]) -> Finding:
    """The best point by its seeds' mean."""
    points = spread(known, metric, keys)
    place = points["mean"].astype(float).idxmax() if higher else points["mean"].astype(float).idxmin()
    best = points.loc[place]
    if "files" in points:
        known = known.assign(files=files_read(known))
        keys = [*keys, "files"]
    where = ", ".join(f"{key}={cell}" for key in keys if (cell := _cell(best[key])) != "–") or "all alike"
    seeds = f" ± {number(float(best['sd']))} over {best['seeds']} seeds" if best["seeds"] > 1 else ""
    value = number(float(best["mean"]))
    said = f"Best of {len(points)} settings by {metric}, which chose it: {value}{seeds} with {where}."
    test = metric.replace("val/", "test/")
    if test != metric and test in known and keys:
        same = known[np.logical_and.reduce([known[key].map(_cell) == _cell(best[key]) for key in keys])]
        if same[test].notna().any():
            said = f"{said[:-1]}; {test} is {number(float(same[test].mean()))}."
    return Finding(said)


def _loss(values: Any, higher: bool) -> tuple[Any, Callable[[Any], Any] | None, str]:
    """A metric as a loss, the way back, and its name: shares count from 1 downwards."""
    values = values.astype(float)
    if not higher:
        return values, None, ""
    if values.between(0, 1).all():
        return 1 - values, lambda loss: 1 - loss, "1 - "
    return -values, lambda loss: -loss, "-"


def _setting(
    known: pd.DataFrame, key: str, keys: list[str], metric: str, higher: bool
) -> tuple[list[Finding], Drawing]:
    """A metric against one setting: with a fit for each value of another one, if there are few, else pooled."""
    by = _companion(known, key, keys)
    if not is_number(known[key]):
        return [], against(known, key, metric, by=by)
    is_size = SIZES.search(key) is not None
    fit_of: Any = power_law if is_size else parabola
    found, fits, back = [], {}, None
    pooled = [other for other in keys if other not in (key, by)]
    for label, rows in _slices(known[known[key].notna()], by):
        if rows[key].nunique() < 3 or (rows[key] <= 0).any():
            continue
        loss, back, prefix = _loss(rows[metric], higher)
        of = f" of {by}={label}" if by else ""
        over = f", over all values of {' and '.join(pooled[:3])}" if pooled else ""
        try:
            fit = fit_of(rows[key].astype(float), loss, name=key)
        except CantFit as error:
            found.append(
                Finding(f"{key}{of}: no {'power law' if is_size else 'parabola'}. {_sentence(str(error))}", False)
            )
            continue
        fits[label] = fit
        found.append(Finding(f"{prefix}{metric} against {key}{of}{over}: {fit}."))
    return found, against(known, key, metric, by=by, fits=fits, less=back)


def _companion(known: pd.DataFrame, key: str, keys: Iterable[str]) -> str | None:
    """Another swept key of two to six values, each of which has been tried with several of this one."""
    for other in keys:
        if other != key and 2 <= known[other].nunique(dropna=False) <= 6:
            tried = known.groupby(labels(known[other]))[key].nunique()
            if (tried > 1).all():
                return other
    return None


def _slices(rows: pd.DataFrame, by: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    if by is None:
        yield "", rows
    else:
        for label, group in rows.groupby(labels(rows[by])):
            yield str(label), group


def _effects(known: pd.DataFrame, keys: list[str], metric: str, higher: bool) -> tuple[list[Finding], list[Drawing]]:
    loss, _, _ = _loss(known[metric], higher)
    if len(spread(known, metric, keys)) < 10:  # a grid of a few points: its table says it all
        return [], []
    try:
        found = effects(known[keys], loss)
    except CantFit as error:
        return [Finding(f"Effects: {_sentence(str(error))}", False)], []
    said = []
    for effect in found.effects[:4]:
        if effect.importance is not None and effect.importance > 0.02:
            rank = (
                f", rank correlation with the loss {effect.rank.value:+.2f} (p = {effect.p:.2g})" if effect.rank else ""
            )
            said.append(Finding(f"{effect.key} carries {effect.importance:.0%} of the variance of the loss{rank}."))
    for one, other, share in found.interactions[:2]:
        if share > 0.05:
            said.append(
                Finding(f"{one} and {other} act together: {share:.0%} of the variance belongs to neither alone.")
            )
    if found.note:
        said.append(Finding(f"Effects: {found.note}.", False))
    return said, [draw_effects(found, metric)]


def _tradeoffs(rows: pd.DataFrame, by: str | None) -> Iterator[tuple[str, Drawing]]:
    for control in CONTROL:
        try:
            points = tradeoff(rows, control)
        except CantFit:
            continue
        if len(points) > 2 and points[control].nunique() > 1:
            yield control, draw_tradeoff(points, by)


def _curves(runs: list[Run], rows: pd.DataFrame, metric: str, higher: bool, by: str | None) -> Drawing | None:
    """The metric over steps, of the best runs if there are many."""
    logged = metric if any(metric in run.history for run in runs) else metric.replace("test/", "val/")
    order = [
        place for place in np.argsort(_order(rows, metric, higher), kind="stable") if logged in runs[place].history
    ]
    order = order[:MOST_CURVES]
    if not order:
        return None
    groups = [_cell(rows[by].iloc[place]) for place in order] if by else None
    drawing = curves([runs[place] for place in order], logged, groups, by=by)
    return drawing._replace(note=f"{drawing.note}; the best {len(order)}") if len(order) == MOST_CURVES else drawing


def _order(rows: pd.DataFrame, metric: str, higher: bool) -> Any:
    """Sorts the best first, those without the metric last."""
    values = rows[metric].to_numpy(float, na_value=np.nan)
    return np.where(np.isfinite(values), -values if higher else values, np.inf)


# --- Tables of the page -------------------------------------------------------------------------------------


def _cell(value: Any) -> str:
    """A value of any column as text."""
    if value is None or str(value) in ("<NA>", "nan"):
        return "–"
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, int | np.integer):
        return str(value)
    return f"{float(value):.6g}" if isinstance(value, float | np.floating) else str(value)


def _number(value: Any) -> str:
    return "–" if str(value) == "<NA>" else number(float(value))


def _sentence(text: str) -> str:
    """A message as a sentence; one that begins with a key keeps its letters."""
    first = text if "." in text.split(" ")[0] else f"{text[:1].upper()}{text[1:]}"
    return f"{first.rstrip('.')}."


def _spent(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """What all runs took together, where it is known."""
    found = []
    for name, unit in (("minutes", "hours"), ("cpu_minutes", "CPU hours"), ("dollars", "dollars")):
        if rows[name].notna().any():
            total = float(rows[name].sum())
            value = f"{total:.2f}" if unit == "dollars" else f"{total / 60:.1f}"
            found.append((unit, value if math.isfinite(total) else "–"))
    return found


def _points_table(rows: pd.DataFrame, metric: str, higher: bool) -> list[list[str]]:
    """A row a setting, over its seeds; empty where no setting has several."""
    keys = list(swept(rows))
    points = spread(rows, metric, keys)
    if not keys or not (points["seeds"] > 1).any():
        return []
    points = points.sort_values("mean", ascending=not higher).head(MOST_ROWS)
    keys += ["files"] if "files" in points else []
    head = [*keys, metric, "±", "lowest", "highest", "seeds"]
    body = [
        [
            *(_cell(row[key]) for key in keys),
            *(_number(row[name]) for name in ("mean", "sd", "low", "high")),
            str(row["seeds"]),
        ]
        for _, row in points.iterrows()
    ]
    return [head, *body]


def _runs_table(
    rows: pd.DataFrame, chosen: tuple[str, bool] | None, out: Path, coming: Collection[Path]
) -> dict[str, Any]:
    """Head and rows: each with the address of its own page, if there is one."""
    keys = [*swept(rows), *(["seed"] if "seed" in rows and rows["seed"].nunique() > 1 else [])]
    metrics: list[str] = []
    if chosen:
        metric, higher = chosen
        test = metric.replace("val/", "test/")
        metrics = [name for name in (metric, f"{metric}:last", test) if name in rows and rows[name].notna().any()]
        metrics = list(dict.fromkeys(metrics))
        rows = rows.iloc[np.argsort(_order(rows, metric, higher), kind="stable")]
    spent = [name for name in ("step", "minutes", "dollars") if rows[name].notna().any()]
    several = rows["run"].str.rpartition("/")[0].nunique() > 1 if len(rows) else False
    columns = {name: rows[name].tolist() for name in {*keys, *metrics, *spent, "run", "signature", "state", "source"}}
    body = []
    for place in range(min(len(rows), MOST_ROWS)):
        cells = [_cell(columns[key][place]) for key in keys]
        cells += [_number(columns[name][place]) for name in metrics]
        cells += [(_cell if name == "step" else _hundredths)(columns[name][place]) for name in spent]
        name = columns["run" if several else "signature"][place]
        body.append(
            (str(name), _address(str(columns["source"][place]), out, coming), str(columns["state"][place]), cells)
        )
    return {"head": [*keys, *metrics, *spent], "rows": body, "texts": len(keys)}


def _hundredths(value: Any) -> str:
    return "–" if str(value) == "<NA>" else f"{float(value):.2f}"


def _address(source: str, out: Path, coming: Collection[Path]) -> str | None:
    """Of a run's page, as seen from the study's."""
    if source.startswith(("https://", "http://")):
        return source
    if not source or not (Path(source) in coming or Path(source, "report.html").is_file()):
        return None
    # Relative, so that both may move; and by their true places, as a browser doesn't know by which link it came.
    return quote(os.path.relpath(os.path.realpath(source), os.path.realpath(out)) + "/report.html")


def _faults(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    odd = rows[rows["reason"].notna()]
    return list(zip(odd["run"].tolist(), odd["state"].tolist(), odd["reason"].tolist()))[:MOST_FAULTS]


def _settings(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """What all runs have in common."""
    alike = (key for key in config_keys(rows) if rows[key].nunique(dropna=False) == 1 and "." in key)
    return [(key, _cell(rows[key].iloc[0])) for key in sorted(alike)]
