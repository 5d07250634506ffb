"""The base of all tasks: features on the device, a training step, validation of whole items, and exact resuming.

A subclass states what it `needs` and its `out_spec`, and gives `targets` and `loss` (training), `eval_outputs` and
`compute_metrics` (validation: an item at a time, then the metrics of all), and `sample` (what a person looks at).
"""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn

from wavespace.data.base import NO_NOTES, Batch, Item, Notes, collate
from wavespace.data.files.midi import notes_between
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd, scaled
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


def feature_picture(title: str, values: Tensor, spec: FeatureSpec) -> Picture:
    """Make a picture of features `(bins, frames)` of a spec."""
    shown = values.float().cpu().numpy()
    return Picture(title, shown, spec.frequencies, spec.frame_rate, spec.low, spec.high, spec.unit)


class Sample(NamedTuple):
    """One item as a person meets it: pictures side by side, sounds to play, notes to compare.

    `sounds` are float32 `(N,)` by title at the task's sample rate.
    """

    name: str
    pictures: list[Picture]
    sounds: dict[str, NDArray[np.float32]]
    reference: Notes = NO_NOTES
    estimate: Notes = NO_NOTES


class Example(NamedTuple):
    """A batch as a task learns from it, or is scored on it.

    Attributes:
        batch: as the data gave it.
        features: `(B', C, F, T)`, what the model is given: B items of the batch, then those that training adds.
        targets: what `Task.loss` compares the model's output with, by name.
    """

    batch: Batch
    features: Tensor
    targets: dict[str, Tensor]


def computes_in_bfloat16(device: str) -> bool:
    """Say whether a kind of device multiplies bfloat16 itself, which takes about half the time of float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Task(LightningModule):
    """Front-end + model + loss + metrics.

    Attributes:
        needs: labels that the data must have.
        monitor: the metric that picks the best checkpoint; `mode` says which way is better.
        table: metrics that the run's closing table shows, in order.
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
        self._eval_outputs: list[list[Any]] = []  # by batch

    # --- A subclass's own ---------------------------------------------------------------------------------

    def targets(self, batch: Batch, features: Tensor) -> dict[str, Tensor]:
        """Return what `loss` compares an output with, by name, for a batch and its features `(B, C, F, T)`."""
        return {}

    def training_example(self, batch: Batch) -> Example:
        """Return a batch as a training step takes it; override to change its features, or to add items to them."""
        return self.example(batch)

    def loss(self, output: Tensor, example: Example) -> dict[str, Tensor]:
        """Compute scalar losses by name, of which `loss` is minimised, and change no state.

        Args:
            output: of the model, `(B', C', F', T)` float32.
            example: from `training_example` or `example`.
        """
        raise TypeError(f"{type(self).__name__} defines no loss")

    def after_step(self, losses: dict[str, Tensor]) -> None:
        """Update what training keeps besides weights, such as a multiplier, by the losses of a batch."""

    def eval_outputs(self, output: Tensor, example: Example, position: int | None = None) -> list[Any]:
        """Return what `compute_metrics` needs of each item, off the device.

        Args:
            output: of the model, `(B, C', F', T)` float32.
            example: from `example`.
            position: number of the first item in its split; None in training, where what takes long is left out.
        """
        raise TypeError(f"{type(self).__name__} defines no outputs for evaluation")

    def compute_metrics(self, outputs: list[Any], *, tune: bool) -> dict[str, float]:
        """Compute the metrics of a split; with `tune`, thresholds may be chosen on it (validation, never test)."""
        raise TypeError(f"{type(self).__name__} defines no metrics")

    def sample(self, output: Tensor, example: Example, index: int) -> Sample:
        """Return pictures, sounds and notes of one item, from the output `(B, C', F', T)` of its batch."""
        raise TypeError(f"{type(self).__name__} defines no sample")

    # --- Shared -------------------------------------------------------------------------------------------

    @property
    def parameter_count(self) -> int:
        """Count the parameters of front-end, model and task, trained or frozen, and no buffers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def batch_features(self, batch: Batch) -> Tensor:
        """Return features `(B, C, F, T)` float32 of a batch: those that came with it, or those of its audio."""
        if batch.features is None:
            return self.frontend(batch.audio)
        spec = self.frontend.out_spec
        kept = batch.features.transpose(1, 2).unflatten(1, (spec.channels, spec.bins))  # (B, C, F, T)
        return self.frontend.normalize(kept.float())

    def example(self, batch: Batch) -> Example:
        """Return a batch with its features and targets, as it is evaluated."""
        features = self.batch_features(batch)
        return Example(batch, features, self.targets(batch, features))

    @torch.no_grad()
    def item_sample(self, item: Item, seconds: float) -> Sample:
        """Return the `sample` of the first seconds of an item; the task is left in evaluation mode."""
        audio = item.audio[: round(seconds * self.frontend.in_spec.sample_rate)]
        batch = collate([item._replace(audio=audio, notes=notes_between(item.notes, 0.0, seconds), features=None)])
        example = self.eval().example(self.transfer_batch_to_device(batch, self.device, 0))
        return self.sample(self.apply_model(example.features), example, 0)

    def item_frames(self, batch: Batch, index: int) -> int:
        """Count the frames of an item without its padding."""
        return self.frontend.out_spec.frames(int(batch.lengths[index]), self.frontend.in_spec.sample_rate)

    def apply_model(self, features: Tensor) -> Tensor:
        """Return the model's output `(B, C', F', T)` float32 of features `(B, C, F, T)`."""
        # Channels last, in which convolutions run fastest on CPU and GPU alike.
        return self.model(features.contiguous(memory_format=torch.channels_last)).float()

    def forward(self, audio: Tensor | NDArray[Any]) -> Tensor:
        """Return the output `(B, C', F', T)` of audio `(B, 1, N)` float32 or int16."""
        return self.apply_model(self.frontend(audio))

    def map_sample(
        self, example: Example, index: int, target: Tensor, prediction: Tensor, units: tuple[str, str]
    ) -> Sample:
        """Make a sample of two maps `(F', T)` in 0..1, of what `units` name, beside the input and its sound."""
        batch, spec = example.batch, self.frontend.out_spec
        frames, out = self.item_frames(batch, index), replace(self.out_spec, low=0.0, high=1.0)
        pictures = [
            feature_picture("input", example.features[index, self.frontend.shown, :, :frames], spec),
            feature_picture("target", target[:, :frames], replace(out, unit=units[0])),
            feature_picture("prediction", prediction[:, :frames], replace(out, unit=units[1])),
        ]
        return Sample(
            name=batch.names[index],
            pictures=pictures[1:] if spec.bins == 1 else pictures,  # latents have no axis to draw
            sounds={"input": scaled(batch.audio[index, 0, : int(batch.lengths[index])]).cpu().numpy()},
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer, whose rate `on_train_batch_start` sets.

        Raises:
            Incompatible: neither the model nor the front-end can learn.
        """
        if not any(p.requires_grad for part in (self.model, self.frontend) for p in part.parameters()):
            raise Incompatible("the model has no parameters to train; what learns nothing can only be a baseline")
        return self.optim.build(self)

    def progress(self) -> float:
        """Return the fraction of the run that is over: of its steps, or of its time on rank 0 if that is more."""
        trainer: Any = self.trainer
        fractions = [0.0]
        if trainer.max_steps > 0:
            fractions.append((self.global_step + 1) / trainer.max_steps)  # the first step moves already
        for callback in trainer.callbacks:
            if isinstance(callback, Timer):  # of trainer.max_time
                left, elapsed = callback.time_remaining("train"), callback.time_elapsed("train")
                if left is not None:
                    fractions.append(trainer.strategy.broadcast(elapsed / max(elapsed + left, 1e-9)))
        return min(1.0, max(fractions))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make rate and random numbers of a batch a function of (seed, batch, rank), so that resuming is exact."""
        torch.manual_seed(((self.seed + 4_093 * self.global_rank) * 1_000_003 + batch_idx + 1) % 2**64)
        rate = self.optim.rate(self.progress())
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch, and log every `log_every_n_steps`, as each time the device is waited for."""
        example = self.training_example(batch)
        losses: Any = self.loss(self.apply_model(example.features), example)
        if not isinstance(losses, dict) or "loss" not in losses:
            found = list(losses) if isinstance(losses, dict) else f"a {type(losses).__name__}"
            wanted = "it must give a dict of losses with 'loss' in it"
            raise Incompatible(f"{type(self).__name__}.loss gives {found}; {wanted}")
        self.after_step(losses)
        self.train_loss = losses["loss"].detach()
        trainer: Any = self.trainer
        step = self.global_step + 1
        if step % trainer.log_every_n_steps == 0:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            # A mean over ranks, which is made in place.
            means = {name: trainer.strategy.reduce(value.detach().clone()) for name, value in losses.items()}
            self._log({f"train/{name}": float(value) for name, value in means.items()} | {"lr": rate}, step)
        return losses["loss"]

    def eval_batch(self, batch: Batch, position: int | None = None) -> list[Any]:
        """Return the `eval_outputs` of a batch, which may still be on the CPU."""
        example = self.example(self.transfer_batch_to_device(batch, self.device, 0))
        return self.eval_outputs(self.apply_model(example.features), example, position)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what the metrics need of each item; ranks take turns, so that batches are those of a single process."""
        if batch_idx % self.trainer.world_size == self.global_rank:
            self._eval_outputs.append(self.eval_batch(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split, and give them to Lightning's callbacks."""
        metrics = {f"val/{name}": value for name, value in self._validation_metrics().items()}
        self._eval_outputs = []
        self._log(metrics, self.global_step)
        self.log_dict(metrics, logger=False)

    def _validation_metrics(self) -> dict[str, float]:
        """Compute the metrics of all ranks' outputs, in the split's order; rank 0 does, and tunes, for all."""
        world, distributed = self.trainer.world_size, torch.distributed
        if world == 1:
            return self.compute_metrics(list(chain.from_iterable(self._eval_outputs)), tune=True)
        group = distributed.new_group(backend="gloo")  # whole recordings go through memory, not through the devices'
        ranks: list[Any] = [None] * world
        distributed.gather_object(self._eval_outputs, ranks if self.global_rank == 0 else None, group=group)
        metrics: list[Any] = [None]
        if self.global_rank == 0:
            turns = zip_longest(*ranks, fillvalue=[])
            metrics = [self.compute_metrics(list(chain.from_iterable(chain.from_iterable(turns))), tune=True)]
        distributed.broadcast_object_list(metrics, group=group)
        distributed.destroy_process_group(group)
        for threshold in self.buffers(recurse=False):
            distributed.broadcast(threshold, 0)
        return metrics[0]

    def _log(self, metrics: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

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
    """Return the versions of what a run depends on, by name."""
    return {
        "wavespace": version("wavespace"),
        "torch": str(torch.__version__),
        "pytorch-lightning": version("pytorch-lightning"),
        "python": platform.python_version(),
    }
