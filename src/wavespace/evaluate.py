"""`wavespace evaluate CHECKPOINT [overrides]`: figures of a checkpoint, on its own data or on other data."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from wavespace import config

if TYPE_CHECKING:
    from wavespace.data.base import DataModule
    from wavespace.tasks.base import Task


def main(arguments: list[str]) -> None:
    """Load, build the data, score, print."""
    parser = argparse.ArgumentParser(
        prog="wavespace evaluate",
        description="Score a checkpoint. Its front-end, model and settings come from the checkpoint; "
        "overrides change the data: data=rendered data.midi=scores/",
    )
    parser.add_argument("checkpoint", help="a .ckpt file, or a run folder (its best)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of its data")
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args(arguments)

    from wavespace import checkpoint
    from wavespace.build import make
    from wavespace.errors import Incompatible

    task = checkpoint.load(given.checkpoint)
    audio = task.frontend.in_spec
    cfg = config.amend(checkpoint.config_of(checkpoint.read(given.checkpoint)), given.overrides, audio.sample_rate)
    data = make(cfg.data, "data")
    if data.spec.sample_rate != audio.sample_rate:
        raise Incompatible(
            f"the checkpoint hears {audio.sample_rate} Hz and the data gives {data.spec.sample_rate}; "
            f"set data.sample_rate={audio.sample_rate}"
        )
    if missing := [label for label in task.needs if label not in data.spec.labels]:
        raise Incompatible(
            f"the checkpoint's task needs {' and '.join(missing)} labels, "
            f"and this data has {' and '.join(data.spec.labels) or 'none'}"
        )
    figures = score(task, data, given.split)
    if given.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<36}{value:8.3f}")


def score(task: Task, data: DataModule, split: str, *, tune: bool = False) -> dict[str, float]:
    """Figures of a task on a whole split, in float32; with `tune`, thresholds are chosen on it first."""
    import torch
    from rich.console import Console
    from rich.progress import track

    data.prepare_data()
    data.setup("test")
    loader: Any = data.val_dataloader() if split == "val" else data.test_dataloader()
    task.eval()
    observed: list[Any] = []
    with torch.inference_mode():
        for batch in track(loader, description=split, transient=True, disable=not Console().is_terminal):
            observed += task.observe_batch(batch)
    return task.summarize(observed, tune=tune)
