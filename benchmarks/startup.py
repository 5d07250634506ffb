"""Start-up times: of the help, of a configuration, of the first training step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import Row, compare

FIRST_STEP = """
import os, sys
import wavespace.training.fit as training
from wavespace.commands import train

fit = training.fit

def until_first_step(cfg, parts, folder):
    type(parts.task).on_train_batch_end = lambda *_: os._exit(0)
    fit(cfg, parts, folder)

training.fit = until_first_step
train.main(["experiment=demo", "fresh=true"])
"""


def python(code: str, *, cwd: str | None = None) -> None:
    """Run code in a new interpreter, without pipes, which a loader keeps open after the end of its parent."""
    quiet = subprocess.DEVNULL
    subprocess.run([sys.executable, "-c", code], check=True, stdout=quiet, stderr=quiet, cwd=cwd)


def wavespace(*arguments: str) -> None:
    """Run the command in a new interpreter."""
    command = Path(sys.executable).with_name("wavespace")
    subprocess.run([command, *arguments], check=True, capture_output=True)


def rows(rounds: int = 3) -> Iterator[Row]:
    """Each against imports that every run needs."""
    imports = "import torch, pytorch_lightning"
    yield compare(
        "wavespace --help", lambda: wavespace("--help"), lambda: python("import torch"), "import torch", 0.25, rounds
    )
    yield compare(
        "wavespace train --cfg job",
        lambda: wavespace("train", "--cfg", "job"),
        lambda: python("import torch"),
        "import torch",
        0.4,
        rounds,
    )
    with tempfile.TemporaryDirectory() as folder:
        yield compare(
            "the demo's first step",
            lambda: python(FIRST_STEP, cwd=folder),
            lambda: python(imports),
            imports,
            1.4,
            rounds,
        )
