"""Metrics of a task on a split of its data, for `wavespace evaluate` and at the end of training."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from wavespace.analysis.probes import control, instrument_probe
from wavespace.data.base import DataModule
from wavespace.tasks.base import Task
from wavespace.training.callbacks.progress import shown

Row = dict[str, Any]
"""Name, length, notes and metrics of a recording."""


def score(task: Task, data: DataModule, split: str, *, tune: bool = False) -> dict[str, float]:
    """Return a task's metrics on a whole split, in float32; with `tune`, choose its thresholds there first."""
    outputs = eval_split(task, data, split)[0]
    with shown(f"scoring {split}"):
        return task.compute_metrics(outputs, tune=tune)


def eval_split(task: Task, data: DataModule, split: str) -> tuple[list[Any], list[Row]]:
    """Run a task on a split; return what its metrics are computed from, and a row, for each item.

    Args:
        task: on any device.
        data: need not be prepared.
        split: "val", "test", or "all" recordings.
    """
    data.prepare_data()
    if split == "all":
        loader: Any = data.whole_dataloader()
    else:
        data.setup("test")
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    task.eval()
    outputs: list[Any] = []
    rows: list[Row] = []
    with torch.inference_mode():
        for batch in track(loader, description=split, transient=True, disable=not Console().is_terminal):
            outputs += task.eval_batch(batch, len(outputs))
            for index, (name, length) in enumerate(zip(batch.names, batch.lengths.tolist())):
                notes = {"notes": int((batch.notes[:, 0] == index).sum())} if "notes" in data.spec.labels else {}
                rows.append({"recording": name, **notes, "seconds": length / data.spec.sample_rate})
    return outputs, rows


def final_metrics(task: Task, data: DataModule, prefix: str) -> dict[str, float]:
    """Return metrics of the test split and of what codes and maps distinguish, as `prefix/name`."""
    metrics = score(task, data, "test")
    with shown(f"measuring what the {'model' if prefix == 'test' else prefix} has learned"):
        metrics |= instrument_probe(task, data) | control(task)
    return {f"{prefix}/{key}": value for key, value in metrics.items()}
