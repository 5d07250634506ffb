"""`wavespace report PATH…`: what a run did, as one page that opens from disk; of several, a table and what it says.

A page is made from the files of the run folder alone. What is missing or damaged is said on it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wavespace.analysis.pages import number, render
from wavespace.analysis.plots import PAGE, inline, style, thinned, together
from wavespace.analysis.runs import (
    Run,
    Series,
    higher_is_better,
    parse_config,
    parse_metrics,
    parse_status,
    read_part,
    read_runs,
)
from wavespace.errors import UserError
from wavespace.runfolder import RunFolder, write_atomic

MEDIA_LIMIT = 4_500_000
"""Bytes of pictures and sounds (as base64) in a page; what does not fit is named by its file."""


MOST_LINES = 50
"""Runs, and reasons, that the terminal shows."""


def main(arguments: list[str]) -> None:
    """The page of a run; of several, their pages, a table, and a page of them all."""
    parser = argparse.ArgumentParser(
        prog="wavespace report",
        description="Of one run: rewrite its report.html from what is in its folder, whatever state it is in. "
        "Of several: a page with a table, fits and figures (report.html, runs.csv, runs.parquet, figures/) in the "
        "folder that was named or in --out; each run's own page is written where it is missing or older than the run.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a run folder runs/<name>/<signature>, a folder of them, a launch runs/launches/<id>, "
        "or a sweep on W&B as ENTITY/PROJECT/SWEEP",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the page of several runs goes")
    parser.add_argument("--metric", help="what runs are compared by, as val/l1_db; else what they watched themselves")
    parser.add_argument("--pages", action="store_true", help="rewrite each run's own page, too")
    given = parser.parse_args(arguments)

    runs = read_runs(given.paths)
    local = [run for run in runs if Path(run.source).is_dir()]
    if len(given.paths) == len(local) == len(runs) == 1 and Path(given.paths[0]) == Path(runs[0].source):
        print(write_report(RunFolder(Path(runs[0].source))))
        return
    out = given.out or (
        Path(given.paths[0]) if Path(given.paths[0]).is_dir() and len(given.paths) == 1 else Path("report")
    )
    if (out / "status.json").exists():
        raise UserError(f"{out} is a run folder; name another one with --out for the page of several runs")
    written = _write_pages(local, given.pages)
    from wavespace.analysis.study import write_study

    page = write_study(runs, out, metric=given.metric, title=" ".join(map(str, given.paths)))
    _print_runs(runs)
    print(f"{written} pages of runs written anew, {len(local) - written} were up to date" if local else "")
    print(page)


def _write_pages(runs: list[Run], every: bool) -> int:
    """Each run's own page, if it is older than what it is made from; returns how many were written."""
    from rich.console import Console
    from rich.progress import track

    def stale(folder: Path) -> bool:
        try:
            written = (folder / "report.html").stat().st_mtime_ns
        except OSError:
            return True
        sources = (folder / name for name in ("status.json", "config.yaml", "metrics.csv", "samples/samples.json"))
        return any(path.stat().st_mtime_ns > written for path in sources if path.exists())

    old = [Path(run.source) for run in runs if every or stale(Path(run.source))]
    console = Console(stderr=True)
    for folder in track(old, "pages", console=console, transient=True, disable=not console.is_terminal):
        write_report(RunFolder(folder))
    return len(old)


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` from the other files of a run folder, and return its path.

    One file that needs no network and runs no script; a missing or damaged source is a sentence on the page.
    """
    notices: list[str] = []
    status = read_part(folder.path / "status.json", parse_status, notices, {})
    text, config = read_part(folder.path / "config.yaml", parse_config, notices, ("", {}))
    metrics = read_part(folder.path / "metrics.csv", lambda text: parse_metrics(text, notices), notices, {})
    samples = read_part(folder.path / "samples/samples.json", json.loads, notices, [], "samples/samples.json")
    nodes = [config.get(group) for group in ("data", "frontend", "model", "task")]
    targets = [str(node["_target_"]) for node in nodes if isinstance(node, dict) and "_target_" in node]
    names = list(dict.fromkeys(key.partition("/")[2] for key in status.get("metrics", {}) if "/" in key))
    page = render(
        "run.html",
        name=config.get("name") or folder.path.absolute().parent.name,
        signature=status.get("signature") or folder.path.absolute().name,
        parts=[target.rpartition(".")[2] for target in targets],
        status=status,
        table=figures_table(status),
        every=figures_table(status | {"table": names}),
        logged=logged_table(metrics),
        charts=_charts(metrics, status),
        samples=_samples(samples, folder.path / "samples", notices),
        config=text,
        notices=notices,
    )
    write_atomic(folder.path / "report.html", page.encode("utf-8", "replace"))  # JSON can hold what UTF-8 can't
    return folder.path / "report.html"


def figures_table(status: dict[str, Any]) -> list[list[str]]:
    """A run's figures as text: a head `["", "val", "test", "baseline"]` (those there are), then a row a name.

    Args:
        status: as in status.json; `metrics` holds the figures, `table` names the rows.
    """
    figures = status.get("metrics", {})
    splits = [split for split in ("val", "test", "baseline") if any(key.startswith(f"{split}/") for key in figures)]
    rows = [[name, *(number(figures.get(f"{split}/{name}")) for split in splits)] for name in status.get("table", [])]
    return [["", *splits], *rows]


def logged_table(metrics: dict[str, Series]) -> list[list[str]]:
    """What was logged in training as text: a head, then the best value, if it is known which, and the last, of each."""
    rows = []
    for name, (steps, values) in sorted(metrics.items()):
        higher, known = higher_is_better(name), np.flatnonzero(np.isfinite(values))
        best, at = "–", "–"
        if higher is not None and len(known):
            place = known[np.argmax(values[known] if higher else -values[known])]
            best, at = number(float(values[place])), f"{steps[place]:.0f}"
        rows.append([name, best, at, number(float(values[-1]))])
    return [["", "best", "at step", "last"], *rows]


# --- Curves -------------------------------------------------------------------------------------------------


class Chart(NamedTuple):
    """A drawing as SVG markup; its curves are name, last value as text, and the page's colour."""

    title: str
    note: str
    svg: str
    curves: list[tuple[str, str, str]]


def _charts(metrics: dict[str, Series], status: dict[str, Any]) -> list[Chart]:
    """Losses together, with the learning rate; validation figures together if they are shares."""
    losses = [name for name in metrics if name.startswith("train/") or name == "val/loss"]
    losses.sort(key=lambda name: (name != "train/loss", name != "val/loss"))
    known = [f"val/{name}" for name in status.get("table", [])] or [n for n in metrics if n.startswith("val/")]
    figures = [name for name in known if name in metrics and name not in losses]
    shares = [name for name in figures if not np.any((metrics[name][1] < 0) | (metrics[name][1] > 1))]
    groups = [shares, *([name] for name in figures if name not in shares)]
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
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    listed: list[tuple[str, str, str]] = []
    notes = ["last values beside the names"]
    with rc_context(style(PAGE) | {"svg.hashsalt": " ".join(curves)}):
        figure = Figure(figsize=(5, 3.1), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1)) if rate else [figure.subplots()]
        axes = panels[0]
        for index, (name, series) in enumerate(curves.items()):
            marker = "o" if len(series[0]) < (40 if name.startswith("val/") else 2) else ""
            dashes = ("-", "--", ":")[index // len(PAGE.colours) % 3]
            axes.plot(*thinned(series), dashes, color=PAGE.colours[index % len(PAGE.colours)], marker=marker)
            listed.append((name, number(series[1][-1]), f"--c{index % len(PAGE.colours)}"))
        if rate:
            panels[1].plot(*thinned(rate), color=PAGE.ink)
            panels[1].set(ylim=(0, None), yticks=[0, max(thinned(rate)[1], default=1)])
            panels[1].yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
            listed.append(("lr", number(rate[1][-1]), "--faint"))
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if (most := max(map(together, curves.values()))) > 1:
            notes.insert(0, f"a point is the mean of up to {most} logged steps")
        if log and not any(np.any(values <= 0) for _, values in curves.values()):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if best is not None:
            axes.axvline(best, color=PAGE.ink, lw=0.8, ls=(0, (2, 3)))
            notes.insert(0, f"dotted: the best, at step {best:.0f}")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        drawn = io.StringIO()
        nothing: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    return Chart(title, "; ".join(notes), inline(drawn.getvalue(), f"{title}: {', '.join(curves)}"), listed)


# --- Samples ------------------------------------------------------------------------------------------------


def _samples(entries: Any, folder: Path, notices: list[str]) -> list[dict[str, Any]]:
    """What samples.json lists, with its files as data URIs; None in place of one that can't be shown."""
    left = MEDIA_LIMIT

    def embedded(file: str) -> str | None:
        nonlocal left
        path = folder / Path(file).name
        try:
            kind, data = _media(path)
        except FileNotFoundError:
            notices.append(f"samples/{path.name} is missing.")
            return None
        except (OSError, RuntimeError):
            notices.append(f"samples/{path.name} can't be read.")
            return None
        uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        if len(uri) > left:
            notices.append(f"samples/{path.name} is too large for this page.")
            return None
        left -= len(uri)
        return uri

    shown = []
    try:
        for entry in entries:
            files = {
                key: [(e["title"], e["file"], embedded(e["file"])) for e in entry[key]] for key in ("sounds", "midi")
            }
            shown.append({**entry, **files, "picture": (entry["picture"], embedded(entry["picture"]))})
    except (KeyError, TypeError) as error:
        notices.append(f"samples/samples.json is damaged ({type(error).__name__}: {error}).")
    return shown


def _media(path: Path) -> tuple[str, bytes]:
    """Type and bytes of a file as the page holds it: sounds as MP3, half of FLAC's size, where that can be written."""
    data, packed = path.read_bytes(), io.BytesIO()
    if path.suffix in (".mid", ".png"):
        return {".mid": "audio/midi", ".png": "image/png"}[path.suffix], data
    import soundfile

    audio, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    best: Any = {"bitrate_mode": "VARIABLE", "compression_level": 0.0}
    try:
        soundfile.write(packed, audio, rate, format="MP3", **best)
    except (RuntimeError, TypeError, ValueError):  # a rate that MP3 has not got, or a libsndfile without it
        return "audio/flac", data
    return "audio/mpeg", packed.getvalue()


# --- Many runs ----------------------------------------------------------------------------------------------


def _print_runs(runs: list[Run]) -> None:
    """A row a run; under them, why runs failed or can't be read."""
    from rich.console import Console
    from rich.table import Table

    folders = [Path(run.source) for run in runs]
    several = len({folder.parent for folder in folders}) > 1
    names = [f"{folder.parent.name}/{folder.name}" if several else folder.name for folder in folders]
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.facts.get("table", [])))
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title in ["step", *(metric.replace("_", " ") for metric in metrics), "minutes"]:
        table.add_column(title, justify="right")
    for name, run in list(zip(names, runs))[:MOST_LINES]:
        cells = [number(run.figures.get(f"test/{metric}", run.figures.get(f"val/{metric}"))) for metric in metrics]
        minutes = f"{run.facts['minutes']:.1f}" if "minutes" in run.facts else "–"
        table.add_row(name, run.state, str(run.facts.get("step", "–")), *cells, minutes)
    console = Console(markup=False, highlight=False)
    console.print(table)
    odd = [f"{name}: {reason}" for name, run in zip(names, runs) for reason in run.reasons if run.state != "finished"]
    for line in odd[:MOST_LINES]:
        console.print(line)
    if max(len(runs), len(odd)) > MOST_LINES:
        console.print(f"… {len(runs)} runs; the page and its files have them all")
