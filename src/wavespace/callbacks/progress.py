"""What the terminal shows while a run trains: a bar where there is a terminal, a line a validation everywhere."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress(Callback):
    """Steps done, loss, the monitored metric, items a second, time left."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.console = Console()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]}  {task.fields[metric]}"),
            TextColumn("{task.fields[rate]:.0f} items/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
        )
        self.items, self.since, self.refreshed = 0, time.monotonic(), 0.0
        self.metric = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self.task = self.bar.add_task(
            "training", total=total, completed=trainer.global_step, loss="-", metric="", rate=0.0
        )
        self.bar.start()
        self.since = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance; the loss is read from the device at most twice a second."""
        self.items += len(batch.audio) * trainer.world_size
        now = time.monotonic()
        if now - self.refreshed > 0.5:
            self.refreshed = now
            rate = self.items / max(now - self.since, 1e-6)
            if not self.bar.disable:
                loss = f"{float(pl_module.train_loss):.3f}"
                self.bar.update(self.task, completed=trainer.global_step, loss=loss, metric=self.metric, rate=rate)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how the validation went."""
        value = float(trainer.callback_metrics.get(self.monitor, float("nan")))
        rate = self.items / max(time.monotonic() - self.since, 1e-6)
        self.metric = f"{self.monitor} {value:.3f}"
        loss = float(getattr(pl_module, "train_loss", float("nan")))
        self.bar.console.print(
            f"step {trainer.global_step:>6}  loss {loss:8.4f}  {self.metric}  {rate:.1f} items/s", highlight=False
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()
