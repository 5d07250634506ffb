"""`make experiments`: every claim of conf/experiment/ held against a run; hours. What is finished is not run again.

An experiment whose data is not where its file says (data/…, relative to where this runs) is skipped, with the reason.
"""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console
from rich.table import Table

from wavespace import config
from wavespace.claims import claims
from wavespace.runfolder import RunFolder


def main(names: list[str]) -> int:
    table = Table("experiment", "claim", "", "steps", "CPU minutes", box=None)
    kept = True
    for name in names or config.choices("experiment"):
        print(f"\n--- {name}", flush=True)
        done = subprocess.run(["wavespace", "train", f"experiment={name}"], stderr=subprocess.PIPE, text=True)
        cfg = config.compose([f"experiment={name}"])
        status = RunFolder.of(cfg).status()
        if status.get("state") != "finished":
            # 2: what a person can set right, as a folder that is not there; anything else is a fault of ours.
            kept &= done.returncode == 2
            table.add_row(name, (done.stderr.strip().splitlines() or ["?"])[-1], "skipped" if kept else "FAILED")
            continue
        for claim in claims(cfg.expect, status["metrics"]):
            kept &= bool(claim.met)
            spent = (str(status["step"]), f"{status.get('cpu_minutes', 0):.1f}")
            table.add_row(name, claim.text, "met" if claim.met else "NOT MET", *spent)
    Console(width=150).print(table)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
