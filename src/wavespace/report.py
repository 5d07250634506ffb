"""`wavespace report PATH…`: what a run did, as one page that opens from disk; of several runs, a table.

The page is made from the files of the run folder alone. What is missing or damaged is said on it.
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wavespace.errors import UserError
from wavespace.runfolder import RunFolder, write_atomic

MEDIA_LIMIT = 4_500_000
"""Bytes of pictures and sounds (as base64) in a page; what does not fit is named by its file."""

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values of one metric, `(K,)` each."""


def main(arguments: list[str]) -> None:
    """Rewrite reports; where a path holds several runs, print a table of them too."""
    parser = argparse.ArgumentParser(
        prog="wavespace report",
        description="Rewrite the report.html of runs from what is in their folders, whatever state they are in. "
        "For a folder of runs, also list them: state, steps, figures on the test split (else validation), minutes.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a run folder runs/<name>/<signature>, or a folder of them"
    )
    for path in parser.parse_args(arguments).paths:
        runs = [RunFolder(folder) for folder in _run_folders(path)]
        reports = [write_report(run) for run in runs]
        if runs[0].path == path:
            print(reports[0])
        else:
            _print_runs(runs)
            print(f"{len(runs)} reports rewritten: {path}/…/report.html")


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` from the other files of a run folder, and return its path.

    One file that needs no network and runs no script; a missing or damaged source is a sentence on the page.
    """
    import jinja2

    import wavespace

    notices: list[str] = []
    status = _read(folder, "status.json", _status, notices, {})
    text, config = _read(folder, "config.yaml", _config, notices, ("", {}))
    metrics = _read(folder, "metrics.csv", lambda text: _metrics(text, notices), notices, {})
    samples = _read(folder, "samples/samples.json", json.loads, notices, [])
    nodes = [config.get(group) for group in ("data", "frontend", "model", "task")]
    targets = [str(node["_target_"]) for node in nodes if isinstance(node, dict) and "_target_" in node]
    template = (Path(__file__).parent / "templates" / "run.html").read_text("utf-8")
    names = list(dict.fromkeys(key.partition("/")[2] for key in status.get("metrics", {}) if "/" in key))
    page = (
        jinja2.Environment(autoescape=True, trim_blocks=True)
        .from_string(template)
        .render(
            name=config.get("name") or folder.path.absolute().parent.name,
            signature=status.get("signature") or folder.path.absolute().name,
            parts=[target.rpartition(".")[2] for target in targets],
            status=status,
            table=figures_table(status),
            every=figures_table(status | {"table": names}),
            charts=_charts(metrics, status),
            samples=_samples(samples, folder.path / "samples", notices),
            config=text,
            notices=notices,
            version=wavespace.__version__,
        )
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
    rows = [[name, *(_number(figures.get(f"{split}/{name}")) for split in splits)] for name in status.get("table", [])]
    return [["", *splits], *rows]


# --- The files of a run -------------------------------------------------------------------------------------


def _read(folder: RunFolder, name: str, parse: Callable[[str], Any], notices: list[str], otherwise: Any) -> Any:
    """What a file of a run holds, or `otherwise` and a notice."""
    try:
        return parse((folder.path / name).read_text("utf-8"))
    except FileNotFoundError:
        notices.append(f"{name} is missing.")
    except Exception as error:  # whatever a damaged file makes a parser raise
        notices.append(f"{name} is damaged ({' '.join(str(error).split())[:120]}).")
    return otherwise


def _status(text: str) -> dict[str, Any]:
    """status.json, without values that are not of their kind."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    kinds: dict[str, Any] = {
        "state": str, "signature": str, "step": int, "minutes": int | float,
        "metrics": dict, "table": list, "wandb": dict,
    }  # fmt: skip
    status = {key: value for key, value in found.items() if isinstance(value, kinds.get(key, object))}
    if "minutes" in status:
        status["minutes"] = float(status["minutes"])
    figures = status.get("metrics", {})
    status["metrics"] = {key: float(value) for key, value in figures.items() if isinstance(value, int | float)}
    status["table"] = [str(name) for name in status.get("table", [])]
    return status


def _config(text: str) -> tuple[str, dict[str, Any]]:
    """The text of config.yaml, and what it says."""
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(OmegaConf.create(text))
    if not isinstance(found, dict):
        raise ValueError("it is no mapping")
    return text, {str(key): value for key, value in found.items()}


def _metrics(text: str, notices: list[str]) -> dict[str, Series]:
    """Each column of metrics.csv, where it has values."""
    rows = csv.DictReader(io.StringIO(text))
    if "step" not in (rows.fieldnames or ()):
        raise ValueError("it has no column step")
    points: dict[str, list[tuple[float, float]]] = {}
    damaged = 0
    for row in rows:
        try:
            step = float(row.pop("step"))
            found = {name: float(value) for name, value in row.items() if value}
        except (TypeError, ValueError):
            damaged += 1
            continue
        for name, value in found.items():
            points.setdefault(name, []).append((step, value))
    if damaged:
        notices.append(f"metrics.csv has {damaged} damaged row{'s' if damaged > 1 else ''}, left out here.")
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"


# --- Curves -------------------------------------------------------------------------------------------------

INK, LINE = "#010101", "#010102"
COLOURS = [f"#0102{index:02x}" for index in range(6)]
"""Stand-ins for the page's own colours (`--faint`, `--line`, `--c0` ...), which differ between light and dark."""

STYLE: Any = {
    "svg.fonttype": "none", "path.simplify": False, "font.size": 9, "lines.linewidth": 1.6, "lines.markersize": 3,
    "xtick.color": INK, "ytick.color": INK, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": LINE,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": LINE, "ytick.major.size": 0, "ytick.minor.size": 0,
}  # fmt: skip

POINTS = 300
"""Most points to a curve; of more, neighbours are averaged."""


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
    with rc_context(STYLE | {"svg.hashsalt": " ".join(curves)}):
        figure = Figure(figsize=(5, 3.1), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1)) if rate else [figure.subplots()]
        axes = panels[0]
        for index, (name, series) in enumerate(curves.items()):
            marker = "o" if len(series[0]) < (40 if name.startswith("val/") else 2) else ""
            dashes = ("-", "--", ":")[index // len(COLOURS) % 3]
            axes.plot(*_thinned(series), dashes, color=COLOURS[index % len(COLOURS)], marker=marker)
            listed.append((name, _number(series[1][-1]), f"--c{index % len(COLOURS)}"))
        if rate:
            panels[1].plot(*_thinned(rate), color=INK)
            panels[1].set(ylim=(0, None), yticks=[0, max(_thinned(rate)[1], default=1)])
            panels[1].yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
            listed.append(("lr", _number(rate[1][-1]), "--faint"))
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if (together := max(map(_together, curves.values()))) > 1:
            notes.insert(0, f"a point is the mean of up to {together} logged steps")
        if log and not any(np.any(values <= 0) for _, values in curves.values()):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if best is not None:
            axes.axvline(best, color=INK, lw=0.8, ls=(0, (2, 3)))
            notes.insert(0, f"dotted: the best, at step {best:.0f}")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        drawn = io.StringIO()
        nothing: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    return Chart(title, "; ".join(notes), _inline(drawn.getvalue(), f"{title}: {', '.join(curves)}"), listed)


def _together(series: Series) -> int:
    """How many logged steps make a point."""
    return math.ceil(len(series[0]) / POINTS)


def _thinned(series: Series) -> Series:
    """At most `POINTS` points: means over neighbours, of values that are numbers."""
    starts = np.arange(0, len(series[0]), _together(series))
    sizes = np.diff(np.append(starts, len(series[0])))
    steps, values = (np.add.reduceat(column, starts) / sizes for column in series)  # (K,)
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def _inline(svg: str, label: str) -> str:
    """A drawing of matplotlib's as an element of the page: named for those who can't see it, in the page's colours."""
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # the same in every drawing, and one page holds many
    named = f' role="img" aria-label="{html.escape(label)}"'
    svg = re.sub(r' width="\S+" height="\S+"', lambda _: named, svg, count=1)
    for stand_in, name in [(INK, "--faint"), (LINE, "--line"), *((c, f"--c{i}") for i, c in enumerate(COLOURS))]:
        svg = svg.replace(stand_in, f"var({name})")
    return svg


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


def _run_folders(path: Path) -> list[Path]:
    """The run folder that a path is, or those that lie one or two levels below it."""
    if not path.exists():
        raise UserError(f"{path}: there is no such folder; runs lie in runs/<name>/<signature>")
    for found in ([path], sorted(path.glob("*")), sorted(path.glob("*/*"))):
        names = ("status.json", "config.yaml", "metrics.csv", "checkpoints")
        if runs := [folder for folder in found if any((folder / name).exists() for name in names)]:
            return runs
    raise UserError(f"{path}: holds no runs; a run folder has a config.yaml and a status.json")


def _print_runs(runs: list[RunFolder]) -> None:
    """A row a run; under them, why runs failed or can't be read."""
    from rich.console import Console
    from rich.table import Table

    several = len({run.path.parent for run in runs}) > 1
    rows, reasons = [], []
    for run in runs:
        name = f"{run.path.parent.name}/{run.path.name}" if several else run.path.name
        notices: list[str] = []
        status = _read(run, "status.json", _status, notices, {})
        rows.append((name, status))
        reasons += [f"{name}: {reason}" for reason in [status.get("reason"), *notices] if reason]

    metrics = list(dict.fromkeys(metric for _, status in rows for metric in status.get("table", [])))
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title in ["step", *(metric.replace("_", " ") for metric in metrics), "minutes"]:
        table.add_column(title, justify="right")
    for name, status in rows:
        figures = status.get("metrics", {})
        cells = [_number(figures.get(f"test/{metric}", figures.get(f"val/{metric}"))) for metric in metrics]
        minutes = f"{status['minutes']:.1f}" if "minutes" in status else "–"
        table.add_row(name, status.get("state", "unknown"), str(status.get("step", "–")), *cells, minutes)
    console = Console(markup=False, highlight=False)
    console.print(table)
    for reason in reasons:
        console.print(reason)
