"""Checkpoints that a kill at any moment leaves whole, and metrics.csv that agrees with them."""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from wavespace.errors import Diverged, UserError
from wavespace.files import explained, write_atomic, written_whole
from wavespace.runfolder import RunFolder
from wavespace.signals import defer_stop, handle_deferred_stop, stop_signal


class Checkpoints(Callback):
    """Write `last.ckpt` every `every` steps and after each validation, `best.ckpt` when validation is the best so far.

    The best is written before the last, and holds the same state: a kill between the two repeats the steps
    from the older last, to the same best. Both are renamed into place.

    On a stop signal a run ends after the current step or batch of validation: all ranks at the same one, whichever of
    them received it.

    Args:
        folder: the run's.
        every: steps between checkpoints.
        monitor: metric that picks the best.
        mode: "min" or "max".
        patience: stop after this many validations without a better one; None: never.

    Attributes:
        training: signals wait for the end of a step, until `release`.
        due: the state is that of a step before its validation, which a run that resumes from there does first.
    """

    def __init__(self, folder: RunFolder, *, every: int, monitor: str, mode: str, patience: int | None) -> None:
        self.folder, self.every, self.monitor, self.patience = folder, every, monitor, patience
        self.sign = 1 if mode == "max" else -1
        self.best: dict[str, float] = {}
        self.best_step = 0
        self.waited = 0
        self.saved = -1
        self.training = self.due = self.over = False

    def state_dict(self) -> dict[str, Any]:
        """Kept in the checkpoint."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, "due": self.due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.best, self.best_step, self.waited = (state_dict[key] for key in ("best", "best_step", "waited"))
        self.due = state_dict.get("due", False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether training was over; where a validation is due, let Lightning begin even so."""
        self.max_steps = trainer.max_steps
        self.over = trainer.should_stop or (self.patience is not None and self.waited >= self.patience)
        trainer.should_stop = self.over and not self.due
        if self.due and self.max_steps > 0:
            trainer.fit_loop.epoch_loop.max_steps = self.max_steps + 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a step is ended before the run is; the validation that is due comes first."""
        defer_stop()
        self.training = True
        if self.due:
            trainer.fit_loop.epoch_loop.max_steps = self.max_steps
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False  # from its first batch
            trainer.validating = True
            validation.run()
            trainer.training = True
            trainer.should_stop |= self.over or 0 < self.max_steps <= trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *args: Any) -> None:
        """After a step (not within an accumulation), save where it is due, and end on a stop signal.

        The last step asks Lightning for a closing validation.
        """
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if batches % trainer.accumulate_grad_batches:
            trainer.should_stop = False  # a time limit that has passed ends the run after the step
            return
        step, interval = trainer.global_step, trainer.val_check_batch  # None: by time
        if step % trainer.log_every_n_steps == 0:  # then Lightning has the loggers write
            self.folder.check_is_here()
        trainer.should_stop |= 0 < trainer.max_steps <= step
        validates = trainer.should_stop or (interval is not None and batches % int(interval) == 0)
        self.due = trainer.enable_validation and validates
        if step % self.every == 0 and not self.due:  # else a validation follows, and saves
            self._save(trainer, [self.folder.last])
        self._end_if_stopped(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark checkpoints that are saved before its end: the validation is still due."""
        self.due = True

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Interrupt a validation between two batches."""
        self._end_if_stopped(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save last, and best if it is."""
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        if self.monitor not in metrics:
            raise RuntimeError(f"validation gave no {self.monitor}; it gave {', '.join(sorted(metrics)) or 'nothing'}")
        if not math.isfinite(metrics[self.monitor]):
            raise Diverged(f"{self.monitor} is {metrics[self.monitor]} at step {trainer.global_step}")
        best = self.best.get(self.monitor, math.nan)
        better = math.isnan(best) or self.sign * metrics[self.monitor] > self.sign * best
        if better:
            self.best, self.best_step, self.waited = metrics, trainer.global_step, 0
        else:
            self.waited += 1
        self.due = False
        self._save(trainer, [self.folder.best, self.folder.last] if better else [self.folder.last])
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True
        self._end_if_stopped(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what no validation saved, as with `trainer.limit_val_batches=0`."""
        if self.saved != trainer.global_step:
            self._save(trainer, [self.folder.last])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """On a stop, save the step that has just ended; an interrupted validation is done again on resume."""
        if isinstance(exception, SIGTERMException) and self.saved != trainer.global_step:
            self._save(trainer, [self.folder.last])

    def release(self) -> None:
        """Stop deferring signals; one that has come ends the run now."""
        if self.training:
            self.training = False
            handle_deferred_stop()

    def _end_if_stopped(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(stop_signal() is not None, all=False):
            raise SIGTERMException

    def _save(self, trainer: Trainer, paths: list[Path]) -> None:
        self.folder.check_is_here()
        self.saved = trainer.global_step
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(paths[0])
        if trainer.is_global_zero:
            for path in paths[1:]:
                with paths[0].open("rb") as source, written_whole(path) as file:
                    shutil.copyfileobj(source, file, 2**20)
            self.folder.update(step=trainer.global_step)


class WholeFiles(TorchCheckpointIO):
    """How checkpoints are written: on the disk when they have their name. Lightning's own go through /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        content = io.BytesIO()  # torch makes another error of what a disk refuses
        torch.save(checkpoint, content)
        with written_whole(Path(path)) as file:
            file.write(content.getbuffer())


class CsvLogger(Logger):
    """metrics.csv: a row a step, a column a metric, floats with all their digits, nothing that depends on the clock.

    Rows are appended as they come; a new metric, or one for a row that was written, rewrites the file. A run that
    goes on first drops the rows after its checkpoint, and those that are damaged or that a kill cut off. Memory holds
    the rows that are not written yet.

    Args:
        path: of the file.
        keep_until: step of the checkpoint that the run resumes from; None: a new run.
    """

    def __init__(self, path: Path, keep_until: int | None) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self.unwritten: dict[int, dict[str, str]] = {}
        self.written = -1
        self.damaged = 0
        if keep_until is not None and path.is_file():
            self._keep(keep_until)
        else:
            write_atomic(path, b"step\r\n")

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
        """Add metrics to the row of a step."""
        self.unwritten.setdefault(int(step or 0), {}).update(
            {key: repr(float(value)) for key, value in metrics.items()}
        )

    def save(self) -> None:
        """Bring the file up to date."""
        known = set(self.columns)
        if any(step <= self.written or set(row) - known for step, row in self.unwritten.items()):
            self._rewrite()
        elif self.unwritten:
            with explained(self.path), self.path.open("ab") as file:
                file.write(b"".join(self._row(step) for step in sorted(self.unwritten)))
        self.written = max([self.written, *self.unwritten])
        self.unwritten = {}

    def finalize(self, status: str) -> None:
        """Write what is left at the end; where the run has failed, errors of writing do not hide its own."""
        if status == "success":
            self.save()
        elif self.path.exists():
            with suppress(OSError, UserError):
                self.save()

    def _row(self, step: int, cells: Mapping[str, str] = MappingProxyType({})) -> bytes:
        row = {**cells, **self.unwritten[step]}
        return _line([str(step), *(row.get(key, "") for key in self.columns)]) + b"\r\n"

    def _rows(self, columns: int, last: float = math.inf) -> Iterator[tuple[int, bytes]]:
        """Each whole row of the file up to a step, without its line's end."""
        before, self.damaged = -1, 0
        with self.path.open("rb") as file:
            next(file, b"")
            for line in file:
                step = _step(line)
                if step < 0 or line.count(b",") != columns or line.translate(None, IN_ROWS) or not line.endswith(b"\n"):
                    self.damaged += line.endswith(b"\n")  # the last line is whole, or a kill cut it off
                elif before < step <= last:
                    before = step
                    yield before, line.rstrip(b"\r\n")

    def _keep(self, last: int) -> None:
        """Drop the rows after a step, the columns that only they fill, and rows that are damaged."""
        with self.path.open("rb") as file:
            head = next(csv.reader([next(file, b"").decode("utf-8", "replace").replace("\0", "")]), [])[1:]
            end, sound, over, used = file.tell(), True, False, set[int]()
            while not over and (block := file.read(2**20) + file.readline()):
                rows = block.splitlines(keepends=True)
                if over := not rows[-1].endswith(b"\n") or _step(rows[-1]) > last:
                    rows = [row for row in rows if row.endswith(b"\n") and _step(row) <= last]
                kept = b"".join(rows) if over else block
                sound = sound and block.startswith(kept) and not kept.translate(None, IN_ROWS)
                sound = sound and kept.count(b",") == len(head) * len(rows)
                if len(used) < len(head):
                    used |= {at for row in rows for at, cell in enumerate(row.rstrip().split(b",")[1:]) if cell}
                self.written = _step(rows[-1]) if rows else self.written
                end += len(kept)
        self.columns = [head[at] for at in sorted(used) if at < len(head)]
        if sound and len(used) == len(head):
            os.truncate(self.path, end)
            return
        self.written = -1
        places = [0, *(at + 1 for at in sorted(used) if at < len(head))]
        with written_whole(self.path) as new:
            new.write(_line(["step", *self.columns]) + b"\r\n")
            for self.written, line in self._rows(len(head), last):  # noqa: B020
                cells = line.split(b",")
                new.write(b",".join([cells[place] for place in places]) + b"\r\n")
        if self.damaged:
            print(f"{self.path}: {self.damaged} damaged rows are left out")

    def _rewrite(self) -> None:
        """Put the unwritten rows at their places, and add the columns that they need."""
        before, rows = list(self.columns), self._rows(len(self.columns))
        steps = sorted(self.unwritten)
        self.columns = list(dict.fromkeys([*before, *(key for step in steps for key in self.unwritten[step])]))
        end = b"," * (len(self.columns) - len(before)) + b"\r\n"
        with written_whole(self.path) as file:
            file.write(_line(["step", *self.columns]) + b"\r\n")
            for step, line in rows:
                while steps and steps[0] < step:
                    file.write(self._row(steps.pop(0)))
                if steps and steps[0] == step:
                    cells = line.decode().split(",")[1:]
                    file.write(self._row(steps.pop(0), dict(zip(before, cells))))
                else:
                    file.write(line + end)
            file.writelines(self._row(step) for step in steps)


IN_ROWS = b"\r\n,0123456789.+-aefin"
"""Of what rows consist: numbers, inf and nan."""


def _step(row: bytes) -> int:
    step = row.partition(b",")[0]
    return int(step) if step.isdigit() and len(step) < 19 else -1


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue().encode()
