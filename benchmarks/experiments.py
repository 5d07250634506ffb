"""`make experiments`: check every claim of conf/experiment/ against a run. Finished runs are not repeated.

An experiment whose data is not where its file says (data/…, in the current folder) is skipped, with the reason.
To run some experiments, name them, with overrides for each, for instance for a part of a dataset:

    python benchmarks/experiments.py medley_unet medley_conv1d data.splits=songs
"""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console
from rich.table import Table

from wavespace import config
from wavespace.config.claims import claims
from wavespace.runfolder import RunFolder


def main(words: list[str]) -> int:
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    table = Table("experiment", "claim", "", "steps", "CPU minutes", box=None)
    kept = True
    for name in names or config.choices("experiment"):
        print(f"\n--- {name}", flush=True)
        chosen = [f"experiment={name}", *overrides]
        done = subprocess.run(["wavespace", "train", *chosen], stderr=subprocess.PIPE, text=True)
        cfg = config.compose(chosen)
        status = RunFolder.of(cfg).status()
        if status.get("state") != "finished":
            # Exit code 2: the user can correct it, for instance a missing folder; any other is a defect.
            skipped = done.returncode == 2
            kept &= skipped
            table.add_row(name, (done.stderr.strip().splitlines() or ["?"])[-1], "skipped" if skipped else "FAILED")
            continue
        for claim in claims(cfg.expect, status["metrics"]):
            kept &= bool(claim.met)
            spent = (str(status["step"]), f"{status.get('cpu_minutes', 0):.1f}")
            table.add_row(name, claim.text, "met" if claim.met else "NOT MET", *spent)
    Console(width=150).print(table)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
