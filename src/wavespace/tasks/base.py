"""What every task shares: features on the device, a step, whole-item validation, and exactness.

A task is a few named steps. A subclass says what it `needs` and its `out_spec`, and gives `loss` (training) and
`observe` + `summarize` (validation: an item at a time, then the figures of all).
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from torch import Tensor, nn

import wavespace
from wavespace.data.base import NO_NOTES, Batch, Notes
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd
from wavespace.optim import AdamW
from wavespace.spec import FeatureSpec


class Picture(NamedTuple):
    """A matrix to look at: `values` is `(bins, frames)`, bins ascending; `low` and `high` are its colours' range."""

    title: str
    values: NDArray[np.float32]
    frequencies: tuple[float, ...]
    frame_rate: float
    low: float
    high: float
    unit: str


class Sample(NamedTuple):
    """One item as a person meets it: pictures side by side, sounds to play, notes to compare.

    `sounds` are float32 `(N,)` by title at the task's sample rate.
    """

    name: str
    pictures: list[Picture]
    sounds: dict[str, NDArray[np.float32]]
    reference: Notes = NO_NOTES
    estimate: Notes = NO_NOTES


class Task(LightningModule):
    """Front-end + model + loss + metrics.

    Attributes:
        needs: labels that the data must have.
        monitor: the metric that picks the best checkpoint; `mode` says which way is better.
        table: figures that the run's closing table shows, in order.
        out_spec: what the model must give.
        context: frames on each side of its own that change what a task makes of a model's output.
        model: set by the builder, sized from `frontend.out_spec` and `out_spec`.
        optim: set by the builder.
        config_text: the resolved configuration as YAML, kept in checkpoints.
    """

    needs: tuple[str, ...] = ()
    monitor: str = "val/loss"
    mode: str = "min"
    table: tuple[str, ...] = ("loss",)
    context: int = 0

    def __init__(self, frontend: FrontEnd, out_spec: FeatureSpec) -> None:
        super().__init__()
        self.frontend = frontend
        self.out_spec = out_spec
        self.model: nn.Module
        self.optim = AdamW()
        self.seed = 0
        self.config_text = ""
        self.train_loss = torch.tensor(float("nan"))
        self._observed: list[list[Any]] = []  # by batch

    # --- A subclass's own ---------------------------------------------------------------------------------

    def loss(self, output: Tensor, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses of a training batch by name; `loss` is the one that is minimised."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def observe(self, output: Tensor, features: Tensor, batch: Batch) -> list[Any]:
        """What `summarize` needs of each item of a validation batch, off the device."""
        raise TypeError(f"{type(self).__name__} defines no observation")

    def summarize(self, observed: list[Any], *, tune: bool) -> dict[str, float]:
        """Figures of a whole split. With `tune`, decoding thresholds may be chosen on it (validation, never test)."""
        raise TypeError(f"{type(self).__name__} defines no summary")

    def sample(self, output: Tensor, features: Tensor, batch: Batch, index: int) -> Sample:
        """One item of a batch as a person meets it."""
        raise TypeError(f"{type(self).__name__} defines no sample")

    # --- Shared -------------------------------------------------------------------------------------------

    @property
    def parameter_count(self) -> int:
        """Parameters of front-end, model and task, trained or frozen; buffers, such as running means, are none."""
        return sum(parameter.numel() for parameter in self.parameters())

    def features(self, audio: Tensor | NDArray[Any]) -> Tensor:
        """Features `(B, C, F, T)` float32 of audio `(B, 1, N)` float32 or int16."""
        return self.frontend(audio)

    def features_of(self, batch: Batch) -> Tensor:
        """Features `(B, C, F, T)` float32 of a batch: those that came with it, or those of its audio."""
        if batch.features is None:
            return self.features(batch.audio)
        spec = self.frontend.out_spec
        kept = batch.features.transpose(1, 2).unflatten(1, (spec.channels, spec.bins))  # (B, C, F, T)
        return self.frontend.normalized(kept.float())

    def apply_model(self, features: Tensor) -> Tensor:
        """Model output in float32; channels last, in which convolutions run fastest on CPU and GPU alike."""
        return self.model(features.contiguous(memory_format=torch.channels_last)).float()

    def forward(self, audio: Tensor | NDArray[Any]) -> Tensor:
        """Output `(B, C', F', T)` of audio `(B, 1, N)`."""
        return self.apply_model(self.features(audio))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer alone: `on_train_batch_start` sets the rate.

        Raises:
            Incompatible: neither the model nor the front-end can learn.
        """
        if not any(p.requires_grad for part in (self.model, self.frontend) for p in part.parameters()):
            raise Incompatible("the model has no parameters to train; what learns nothing can only be a baseline")
        return self.optim.build(self)

    def done(self) -> float:
        """Share of the run that is over: of its steps, or of its time by the first rank's clock if that is further."""
        trainer: Any = self.trainer
        shares = [0.0]
        if trainer.max_steps > 0:
            shares.append((self.global_step + 1) / trainer.max_steps)  # the first step moves already
        for callback in trainer.callbacks:
            if type(callback).__name__ == "Timer":  # Lightning's, from trainer.max_time
                left, elapsed = callback.time_remaining("train"), callback.time_elapsed("train")
                if left is not None:
                    shares.append(trainer.strategy.broadcast(elapsed / max(elapsed + left, 1e-9)))
        return min(1.0, max(shares))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make rate and random numbers of a batch a function of (seed, batch, rank), so that resuming is exact."""
        torch.manual_seed(((self.seed + 4_093 * self.global_rank) * 1_000_003 + batch_idx + 1) % 2**64)
        rate = self.optim.rate(self.done())
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; losses go to the loggers every `log_every_n_steps`, so the device is not waited for in between."""
        features = self.features_of(batch)  # (B, C, F, T)
        losses: Any = self.loss(self.apply_model(features), features, batch)
        if not isinstance(losses, dict) or "loss" not in losses:
            found = list(losses) if isinstance(losses, dict) else f"a {type(losses).__name__}"
            wanted = "it must give a dict of losses with 'loss' in it"
            raise Incompatible(f"{type(self).__name__}.loss gives {found}; {wanted}")
        self.train_loss = losses["loss"].detach()
        trainer: Any = self.trainer
        step = self.global_step + 1
        if step % trainer.log_every_n_steps == 0:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            # A mean over ranks, which is made in place.
            means = {name: trainer.strategy.reduce(value.detach().clone()) for name, value in losses.items()}
            self._log({f"train/{name}": float(value) for name, value in means.items()} | {"lr": rate}, step)
        return losses["loss"]

    def observe_batch(self, batch: Batch) -> list[Any]:
        """What `summarize` needs of each item of a batch, which may still be on the CPU."""
        moved = self.transfer_batch_to_device(batch, self.device, 0)
        features = self.features_of(moved)
        return self.observe(self.apply_model(features), features, moved)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what the figures need of each item; ranks take turns, so that batches are those of a single process."""
        if batch_idx % self.trainer.world_size == self.global_rank:
            self._observed.append(self.observe_batch(batch))

    def on_validation_epoch_end(self) -> None:
        """Figures of the validation split, to the loggers and to Lightning's callbacks."""
        figures = {f"val/{name}": value for name, value in self._summary().items()}
        self._observed = []
        self._log(figures, self.global_step)
        self.log_dict(figures, logger=False)

    def _summary(self) -> dict[str, float]:
        """Figures of what all ranks have observed, in the split's order; the first makes them, and tunes, for all."""
        world, distributed = self.trainer.world_size, torch.distributed
        if world == 1:
            return self.summarize(list(chain.from_iterable(self._observed)), tune=True)
        group = distributed.new_group(backend="gloo")  # whole recordings go through memory, not through the devices'
        ranks: list[Any] = [None] * world
        distributed.gather_object(self._observed, ranks if self.global_rank == 0 else None, group=group)
        figures: list[Any] = [None]
        if self.global_rank == 0:
            turns = zip_longest(*ranks, fillvalue=[])
            figures = [self.summarize(list(chain.from_iterable(chain.from_iterable(turns))), tune=True)]
        distributed.broadcast_object_list(figures, group=group)
        distributed.destroy_process_group(group)
        for threshold in self.buffers(recurse=False):
            distributed.broadcast(threshold, 0)
        return figures[0]

    def _log(self, figures: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(figures, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the checkpoint stand alone; plain data, so that torch's weights-only loading takes it."""
        audio = vars(self.frontend.in_spec)
        checkpoint["config"] = self.config_text
        checkpoint["specs"] = {
            "audio": audio | {"labels": list(audio["labels"])},
            "features": self.frontend.out_spec.to_dict(),
            "output": self.out_spec.to_dict(),
        }
        checkpoint["versions"] = versions()


def versions() -> dict[str, str]:
    """Of what a run depends on."""
    return {
        "wavespace": wavespace.__version__,
        "torch": str(torch.__version__),
        "pytorch-lightning": version("pytorch-lightning"),
        "python": platform.python_version(),
    }
