"""What the terminal shows while a run trains: a bar where there is a terminal, a line a validation everywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Timer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class TrainingProgress(Callback):
    """Steps done, loss, the monitored metric, items a second, time until steps or time end, whichever is first."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.console = Console()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[steps]}  loss {task.fields[loss]}  {task.fields[metric]}"),
            TextColumn("{task.fields[rate]:.0f} items/s"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
        )
        self.items, self.since, self.refreshed = 0, time.monotonic(), 0.0
        self.metric = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self.task = self.bar.add_task("training", total=None, steps="", loss="-", metric="", rate=0.0, left="")
        self.bar.start()
        self.since, self.first_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance; the loss is read from the device at most twice a second."""
        self.items += len(batch.audio) * trainer.world_size
        now = time.monotonic()
        if now - self.refreshed > 0.5:
            self.refreshed = now
            rate = self.items / max(now - self.since, 1e-6)
            if not self.bar.disable:
                self._update(trainer, loss=f"{float(pl_module.train_loss):.3f}", metric=self.metric, rate=rate)

    def _update(self, trainer: Any, **fields: Any) -> None:
        left = self.seconds_left(trainer)
        spent = time.monotonic() - self.since
        total = None if left is None else spent + left
        steps = f"step {trainer.global_step}" + (f" of {trainer.max_steps}" if trainer.max_steps > 0 else "")
        shown = "" if left is None else f"{timedelta(seconds=round(left))} left"
        self.bar.update(
            self.task, description="training", total=total, completed=spent, steps=steps, left=shown, **fields
        )

    def seconds_left(self, trainer: Any) -> float | None:
        """Seconds until training ends: by its steps at the speed so far, or by its time; None if neither is known."""
        ends = []
        if trainer.max_steps > 0 and (done := trainer.global_step - self.first_step) > 0:
            ends.append((trainer.max_steps - trainer.global_step) * (time.monotonic() - self.since) / done)
        for timer in (callback for callback in trainer.callbacks if isinstance(callback, Timer)):
            if (remaining := timer.time_remaining("train")) is not None:
                ends.append(remaining)
        return max(0.0, min(ends)) if ends else None

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Say how far the validation is."""
        if self.bar.tasks:  # not where a validation comes before training
            self.bar.update(self.task, description=f"validation {batch_idx + 1}/{trainer.num_val_batches[0]}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how the validation went."""
        value = float(trainer.callback_metrics.get(self.monitor, float("nan")))
        rate = self.items / max(time.monotonic() - self.since, 1e-6)
        self.metric = f"{self.monitor} {value:.3f}"
        loss = float(getattr(pl_module, "train_loss", float("nan")))
        shown_loss = "       -" if math.isnan(loss) else f"{loss:8.4f}"  # no step was made yet
        self.bar.console.print(
            f"step {trainer.global_step:>6}  loss {shown_loss}  {self.metric}  {rate:.1f} items/s", highlight=False
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()


@contextmanager
def shown(what: str) -> Iterator[None]:
    """Meanwhile say on a terminal what is being done, and for how long."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield
