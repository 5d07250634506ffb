"""`wavespace train` without the training, for quick jobs; what it writes to disk is real."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from wavespace.config.composition import compose_unchecked
from wavespace.runfolder import RunFolder
from wavespace.terminal import guarded, hydra_arguments

MARK = "trainings"
"""File in a run folder with a line for each beginning and each end."""

HOLD = "hold"
"""File in the working folder: while it is there, no run ends."""


def train() -> None:
    """Go on while HOLD is there; seed 9 fails, and a checkpoint is left where it is told to stop."""
    cfg = compose_unchecked(*hydra_arguments(sys.argv[1:]))
    folder = RunFolder.of(cfg)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with folder.writing(cfg), (folder.path / MARK).open("a") as mark:
        mark.write(f"began {os.getpid()}\n")
        mark.flush()
        if cfg.seed == 9:
            raise RuntimeError("no luck")
        try:
            while Path(HOLD).exists():
                time.sleep(0.05)
        except SystemExit:
            folder.last.parent.mkdir(exist_ok=True)
            folder.last.touch()
            raise
        folder.update(metrics={"val/figure": cfg.seed + cfg.optim.lr}, monitor="val/figure", mode="min")
        mark.write("ended\n")


def in_place_of_python(folder: Path) -> str:
    """A program that takes Python's arguments, `-m wavespace.cli train …`, and pretends."""
    program = folder / "pretend"
    program.write_text(f'#!/bin/sh\nshift 3\nexec "{sys.executable}" "{Path(__file__)}" "$@"\n')
    program.chmod(0o755)
    return str(program)


if __name__ == "__main__":
    guarded(train)
