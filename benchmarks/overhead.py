"""A training step with Lightning and our callbacks against a plain loop with the same model, data and optimizer."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from harness import Row

from wavespace.build import build
from wavespace.config import compose
from wavespace.data.base import DataModule
from wavespace.runfolder import RunFolder
from wavespace.tasks.base import Task
from wavespace.training.fit import fit

OVERRIDES = [
    "experiment=demo",
    "data.workers=0",
    "data.augment=false",
    "trainer.precision=32-true",
    "trainer.max_time=null",
]


def rows(steps: int = 40) -> Iterator[Row]:
    """Seconds for a step, both over the same items, which are made beforehand."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose(
            [*OVERRIDES, f"runs={folder}", f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
        )
        parts = build(cfg)
        parts.data.setup()
        items = [parts.data.train_set[position] for position in range(cfg.data.batch_size)]

        class Made:
            def __getitem__(self, position: int) -> object:
                return items[position % len(items)]

        parts.data.setup = lambda stage=None: None  # type: ignore[method-assign]
        parts.data.train_set = Made()  # type: ignore[assignment]

        untrained = copy.deepcopy(parts.task)
        times: list[float] = []
        start = type(parts.task).on_train_batch_start

        def timed(self: object, *arguments: object) -> None:
            times.append(time.perf_counter())
            start(self, *arguments)  # type: ignore[arg-type]

        type(parts.task).on_train_batch_start = timed  # type: ignore[method-assign]
        try:
            fit(cfg, parts, RunFolder(Path(folder) / "run"))
        finally:
            type(parts.task).on_train_batch_start = start  # type: ignore[method-assign]
        parts.data.trainer = None
        plain = _plain(parts.data, untrained, steps)  # after the fit, which has set the number of threads
    differences = sorted(b - a for a, b in zip(times, times[1:]))
    yield Row("a training step of the demo", differences[len(differences) // 2], plain, "plain PyTorch loop", 1.1)


def _plain(data: DataModule, task: Task, steps: int) -> float:
    task.train()
    optimizer = task.optim.build(task)
    times = []
    for batch, _ in zip(data.train_dataloader(), range(steps)):
        start = time.perf_counter()
        example = task.training_example(batch)
        task.loss(task.apply_model(example.features), example)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return sorted(times)[steps // 2]
