"""`wavespace report PATH…`: the page of one run, or a table and a page of several."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from wavespace.analysis.runs import Run
from wavespace.analysis.tables import read_runs
from wavespace.errors import UserError
from wavespace.provenance import refuse_foreign
from wavespace.reports.pages import number
from wavespace.reports.run_page import is_current, write_report
from wavespace.runfolder import RunFolder
from wavespace.signals import set_stop_handler
from wavespace.terminal import Arguments, folder_or_file
from wavespace.text import counted, printable_text

MOST_LINES = 50
"""Runs, and reasons, that the terminal shows."""


def main(arguments: list[str]) -> None:
    """The page of a run; of several, their pages, a table, and a page of them all."""
    parser = Arguments(
        prog="wavespace report",
        description="Of one run: rewrite its report.html from what is in its folder, whatever state it is in. "
        "Of several: a page with a table, fits and figures (report.html, runs.csv, runs.parquet, figures/) in the "
        "folder that was named or in --out; each run's own page is written where it is missing or older than the run.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=os.path.expanduser,
        metavar="PATH",
        help="a run folder runs/<name>/<signature>, a folder of them, a launch runs/launches/<id>, "
        "or a sweep on W&B as ENTITY/PROJECT/SWEEP",
    )
    parser.add_argument("--out", type=folder_or_file, metavar="FOLDER", help="where the page of several runs goes")
    parser.add_argument("--metric", help="what runs are compared by, as val/l1_db; default: their own metric")
    parser.add_argument("--pages", action="store_true", help="rewrite each run's own page, too")
    parser.add_argument("--overwrite", action="store_true", help="replace files that wavespace did not write, too")
    given = parser.parse_args(arguments)

    runs = read_runs(given.paths)
    local = [Path(run.source) for run in runs if run.source and Path(run.source).is_dir()]
    if len(given.paths) == len(local) == len(runs) == 1 and Path(given.paths[0]) == local[0]:
        print(write_report(RunFolder(local[0])))
        return
    out = given.out or (
        Path(given.paths[0]) if Path(given.paths[0]).is_dir() and len(given.paths) == 1 else Path("report")
    )
    if (out / "status.json").exists():
        raise UserError(f"{out} is a run folder; name another one with --out for the page of several runs")
    refuse_foreign(out / "report.html", [out / "runs.csv", out / "runs.parquet"], overwrite=given.overwrite)
    from wavespace.reports.study_page import write_study

    title = " ".join(map(str, given.paths))
    with _written_beside(local, given.pages) as pages:
        page = write_study(runs, out, metric=given.metric, title=title, coming=local, overwrite=given.overwrite)
        _print_runs(runs)
        print(page, flush=True)
        pages()


@contextmanager
def _written_beside(folders: list[Path], every: bool) -> Iterator[Callable[[], None]]:
    """Write each run's own page that is not up to date, in other processes; yield a function that waits for them."""
    from rich.console import Console
    from rich.progress import track

    old = [folder for folder in folders if every or not is_current(folder)]
    pool = ProcessPoolExecutor(
        min(os.cpu_count() or 1, len(old) // 8 + 1), initializer=set_stop_handler, initargs=(signal.SIG_IGN,)
    )
    faults = pool.map(_fault_of_page, old, chunksize=4)

    def wait() -> None:
        console = Console(stderr=True)
        shown = track(faults, "pages", len(old), console=console, transient=True, disable=not console.is_terminal)
        found = [fault for fault in shown if fault]
        if folders:
            print(
                f"{counted(len(old) - len(found), 'pages of runs')} written anew; up to date: {len(folders) - len(old)}"
            )
        for fault in found[:MOST_LINES]:
            print(printable_text(fault))

    try:
        yield wait
    finally:
        pool.shutdown(cancel_futures=True)


def _fault_of_page(folder: Path) -> str | None:
    """Write a run's page; return why that failed, if it did."""
    try:
        write_report(RunFolder(folder))
    except Exception as error:  # one damaged folder must not prevent the other pages
        return f"{folder}: no page ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return None


def _print_runs(runs: list[Run]) -> None:
    """Print a row for each run; under them, why runs failed or can't be read."""
    from rich.console import Console
    from rich.table import Table

    several = len({run.name for run in runs}) > 1  # by name and signature, as jobs of a launch may have no folder here
    names = [f"{run.name}/{run.signature}" if several else run.signature for run in runs]
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.facts.get("table", [])))
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title in ["step", *(metric.replace("_", " ") for metric in metrics), "minutes"]:
        table.add_column(printable_text(title), justify="right")
    for name, run in list(zip(names, runs))[:MOST_LINES]:
        cells = [number(run.metrics.get(f"test/{metric}", run.metrics.get(f"val/{metric}"))) for metric in metrics]
        minutes = f"{run.facts['minutes']:.1f}" if "minutes" in run.facts else "–"
        table.add_row(printable_text(name), printable_text(run.state), str(run.facts.get("step", "–")), *cells, minutes)
    console = Console(markup=False, highlight=False)
    console.print(table)
    odd = [f"{name}: {reason}" for name, run in zip(names, runs) for reason in run.reasons if run.state != "finished"]
    for line in odd[:MOST_LINES]:
        console.print(printable_text(line))
    if max(len(runs), len(odd)) > MOST_LINES:
        console.print(f"… {len(runs)} runs; the page and its files have them all")
