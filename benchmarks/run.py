"""`make bench`: every row in one run, printed, and kept in results/<date>-<machine>.json."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

SUBJECTS = ("startup", "frontends", "cqt", "store", "rendering", "synthetic", "overhead")


def main() -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = Table("", "ours", "peer", "", "ratio", "goal", "", title=machine, box=None)
    rows = []
    for subject in SUBJECTS:
        for row in import_module(subject).rows():
            rows.append(row)
            shown = (f"{row.ours:.4g} s", f"{row.peer:.4g} s", row.peer_name, f"{row.ratio:.3f}", f"<= {row.goal:g}")
            table.add_row(row.name, *shown, "met" if row.met else "NOT MET")
    Console(width=120).print(table)
    file = Path(__file__).parent / "results" / f"{datetime.date.today()}-{platform.node()}.json"
    file.parent.mkdir(exist_ok=True)
    listed = [row._asdict() | {"ratio": row.ratio, "met": row.met} for row in rows]
    file.write_text(json.dumps({"machine": machine, "rows": listed}, indent=2) + "\n")
    print(f"kept in {file}")


if __name__ == "__main__":
    main()
