"""`make bench`: run every benchmark, print the rows, and write results/<date>-<machine>.json and ratios.svg."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib import import_module
from pathlib import Path

from harness import Row
from rich.console import Console
from rich.table import Table

SUBJECTS = ("startup", "frontends", "cqt", "labels", "store", "cold", "waiting", "rendering", "synthetic", "overhead")
PICTURE = Path(__file__).parent / "ratios.svg"


def main() -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = Table("", "ours", "peer", "", "ratio", "goal", "", title=machine, box=None)
    rows: list[Row] = []
    for subject in SUBJECTS:
        for row in import_module(subject).rows():
            rows.append(row)
            shown = (
                f"{row.ours:.4g} {row.unit}",
                f"{row.peer:.4g} {row.unit}",
                row.peer_name,
                f"{row.ratio:.3f}",
                f"<= {row.goal:g}",
            )
            table.add_row(row.name, *shown, "met" if row.met else "NOT MET")
    Console(width=120).print(table)
    file = Path(__file__).parent / "results" / f"{datetime.date.today()}-{platform.node()}.json"
    file.parent.mkdir(exist_ok=True)
    listed = [row._asdict() | {"ratio": row.ratio, "met": row.met} for row in rows]
    file.write_text(json.dumps({"machine": machine, "rows": listed}, indent=2) + "\n")
    draw(rows, f"{datetime.date.today()}; {machine}")
    print(f"kept in {file}, drawn in {PICTURE}")


def draw(rows: list[Row], title: str) -> None:
    """Draw a line for each row: its goal divided by its ratio. Rows left of 1 miss their goal."""
    from matplotlib.figure import Figure

    figure = Figure((9, 0.26 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))[::-1]
    margins = [row.goal / row.ratio for row in rows]
    colours = ["#1b7a4b" if row.met else "#b3261e" for row in rows]
    axes.hlines(places, 1, margins, colours, linewidth=3)
    axes.scatter(margins, list(places), c=colours, s=22, zorder=3)
    for place, row, margin in zip(places, rows, margins):
        axes.annotate(f" {row.ratio:.3g} of {row.peer_name}", (max(margin, 1), place), va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="times better than the goal", title=title, ylim=(-0.7, len(rows) - 0.3))
    axes.set_xlim(right=6 * max(margins))
    axes.set_yticks(list(places), [row.name for row in rows], fontsize=8)
    axes.title.set_fontsize(9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
