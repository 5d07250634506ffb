"""AdamW with a linear warm-up and a cosine decay, as functions of the progress of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn

from wavespace.settings import validate_settings

Beta = Annotated[float, Field(ge=0, lt=1)]


@validate_settings
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter, 2019), on matrices and kernels alone.

    The rate depends on the progress of the run and on nothing before it, so a run that is resumed needs no scheduler
    state, and a run that is bounded by time anneals to its end on any machine.

    Attributes:
        lr: rate at the top of the schedule.
        weight_decay: not applied to biases and normalisation (tensors of one dimension).
        betas: moments' decay.
        warmup: fraction of the run in which the rate rises linearly from zero.
        final: fraction of `lr` at which the cosine ends.
    """

    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-2
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    final: Annotated[float, Field(ge=0, le=1)] = 0.02

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a module's trainable parameters."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        first, second = self.betas
        return torch.optim.AdamW(groups, lr=self.lr, betas=(first, second))

    def rate(self, progress: float) -> float:
        """Learning rate when a fraction `progress` (0 to 1) of the run is over."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        left = 0.5 * (1 + math.cos(math.pi * (min(progress, 1.0) - self.warmup) / (1 - self.warmup)))
        return self.lr * (self.final + (1 - self.final) * left)
