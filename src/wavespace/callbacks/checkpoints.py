"""Checkpoints that a kill at any moment leaves whole, and metrics.csv that agrees with them."""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from wavespace.runfolder import RunFolder, write_atomic


class Checkpoints(Callback):
    """Write `last.ckpt` every `every` steps and after each validation, `best.ckpt` when validation is the best so far.

    The best is written before the last, and holds the same state: a kill between the two repeats the steps
    from the older last, to the same best. Both are renamed into place.

    A run that is told to stop ends after the step or the batch of validation that is being done: all ranks at the same
    one, whichever of them was told.

    Args:
        folder: the run's.
        every: steps between checkpoints.
        monitor: metric that picks the best.
        mode: "min" or "max".
        patience: stop after this many validations without a better one; None: never.

    Attributes:
        training: whether there is a step to wait for.
        told: to stop; set it while `training`.
    """

    def __init__(self, folder: RunFolder, *, every: int, monitor: str, mode: str, patience: int | None) -> None:
        self.folder, self.every, self.monitor, self.patience = folder, every, monitor, patience
        self.sign = 1 if mode == "max" else -1
        self.best: dict[str, float] = {}
        self.best_step = 0
        self.waited = 0
        self.saved = -1
        self.training = self.told = False

    def state_dict(self) -> dict[str, Any]:
        """Kept in the checkpoint."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.best, self.best_step, self.waited = (state_dict[key] for key in ("best", "best_step", "waited"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a step is ended before the run is."""
        self.training = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save between validations; the last step asks Lightning for a closing validation."""
        step = trainer.global_step
        if trainer.max_steps > 0 and step >= trainer.max_steps:
            trainer.should_stop = True
        interval = trainer.val_check_batch  # None: by time, so that any step may be followed by one
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        validates = trainer.should_stop or (interval is not None and batches % int(interval) == 0)
        # Not where a validation follows: Lightning would take it for done when it goes on from there.
        if not validates:
            self._end_if_told(trainer)
            if step % self.every == 0 and interval is not None:
                self._save(trainer, [self.folder.last])

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """A validation is cut off between two batches."""
        self._end_if_told(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save last, and best if it is."""
        figures = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        if self.monitor not in figures:
            raise RuntimeError(f"validation gave no {self.monitor}; it gave {', '.join(sorted(figures)) or 'nothing'}")
        best = self.best.get(self.monitor, math.nan)
        better = math.isnan(best) or self.sign * figures[self.monitor] > self.sign * best
        if better:
            self.best, self.best_step, self.waited = figures, trainer.global_step, 0
        else:
            self.waited += 1
        self._save(trainer, [self.folder.best, self.folder.last] if better else [self.folder.last])
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True
        self._end_if_told(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what no validation saved, as with `trainer.limit_val_batches=0`."""
        self.training = False
        if self.saved != trainer.global_step:
            self._save(trainer, [self.folder.last])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """On SIGTERM, save the step that has just ended; a validation that was cut off is done again."""
        if isinstance(exception, SIGTERMException) and not trainer.validating and self.saved != trainer.global_step:
            self._save(trainer, [self.folder.last])

    def _end_if_told(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.told, all=False):
            self.told = True
            raise SIGTERMException

    def _save(self, trainer: Trainer, paths: list[Path]) -> None:
        self.saved = trainer.global_step
        temporary = self.folder.path / "checkpoints" / ".writing.ckpt"
        temporary.parent.mkdir(parents=True, exist_ok=True)
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            for path in paths[:-1]:
                copy = path.with_name(f".{path.name}")
                shutil.copyfile(temporary, copy)
                os.replace(copy, path)
            os.replace(temporary, paths[-1])
            self.folder.update(step=trainer.global_step)


class CsvLogger(Logger):
    """metrics.csv: a row a step, a column a metric, floats with all their digits, nothing that depends on the clock.

    Rows are appended as they come; a new metric, or one for a row that was written, rewrites the file. A run that
    goes on first drops the rows after its checkpoint, and a row that a kill cut off.
    """

    def __init__(self, path: Path, keep_until: int | None) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, str]] = {}
        self.columns: list[str] = []
        self.unwritten: set[int] = set()
        self.written = -1
        if keep_until is not None and path.is_file():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    step = int(row.pop("step"))
                    figures = {key: value for key, value in row.items() if value}
                    if step <= keep_until and figures:  # without figures: the beginning of a longer number
                        self.rows[step] = figures
        self._rewrite()

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning asks for one."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add figures to the row of a step."""
        step = int(step or 0)
        row = self.rows.setdefault(step, {})
        row |= {key: repr(float(value)) for key, value in metrics.items()}
        self.unwritten.add(step)

    def save(self) -> None:
        """Bring the file up to date."""
        known = set(self.columns)
        if any(step <= self.written or set(self.rows[step]) - known for step in self.unwritten):
            self._rewrite()
        elif self.unwritten:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, ["step", *self.columns]).writerows(
                    {"step": s} | self.rows[s] for s in sorted(self.unwritten)
                )
            self.written = max(self.unwritten)
        self.unwritten = set()

    def finalize(self, status: str) -> None:
        """Bring the file up to date at the end."""
        self.save()

    def _rewrite(self) -> None:
        steps = sorted(self.rows)
        self.columns = list(dict.fromkeys(key for step in steps for key in self.rows[step]))
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *self.columns])
        writer.writeheader()
        writer.writerows({"step": step} | self.rows[step] for step in steps)
        write_atomic(self.path, text.getvalue())
        self.written = max(steps, default=-1)
