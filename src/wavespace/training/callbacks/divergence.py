"""A run whose loss or weights stop being finite ends, before a checkpoint holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from wavespace.errors import Diverged

READ_EACH_STEP = ("cpu",)
"""Devices that are not waited for when a number is read from them."""

SMALLEST_SCALE = 2.0**-30
"""Of 16-bit gradients. Each step without finite gradients is left out and halves it, from 2**16."""


class Divergence(Callback):
    """Raise `Diverged` at the first loss, or the first weight in a checkpoint, that is not finite.

    The first bad step is noted on the device. It is read at each step on a CPU; elsewhere, where reading makes the
    device wait, when losses are logged, and before each validation and checkpoint.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Constants that are not finite, such as a mask, stay out of it."""
        self.first = torch.full((), math.inf, device=pl_module.device)
        self.unwatched = {name for name, value in pl_module.state_dict().items() if not value.isfinite().all()}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the step, if it is the first whose loss is not finite."""
        worse = self.first.clamp(max=pl_module.global_step + 1)
        self.first = torch.where(loss.detach().isfinite(), self.first, worse)
        if self.first.device.type in READ_EACH_STEP:
            self._check_loss(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *args: Any) -> None:
        """Read what was noted, where losses are logged."""
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._check_loss(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is validated with weights that are not finite."""
        self._check_loss(trainer)
        self._check_weights(trainer, pl_module.state_dict())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Nothing is saved with weights that are not finite."""
        self._check_loss(trainer)
        self._check_weights(trainer, checkpoint["state_dict"])
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() < SMALLEST_SCALE:
            raise Diverged(f"the gradients are not finite at step {trainer.global_step} and dozens before it")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last steps may have been neither logged nor saved."""
        self._check_loss(trainer)

    def _check_loss(self, trainer: Trainer) -> None:
        first = float(trainer.strategy.reduce(self.first.clone(), reduce_op="min"))  # of all ranks
        if first < math.inf:
            raise Diverged(f"the loss is not finite at step {first:.0f}")

    def _check_weights(self, trainer: Trainer, weights: Mapping[str, Any]) -> None:
        watched = [value.isfinite().all() for name, value in weights.items() if name not in self.unwatched]
        if not trainer.strategy.reduce_boolean_decision(bool(torch.stack(watched).all())):
            raise Diverged(f"the weights are not finite after step {trainer.global_step}")
