"""AdamW with a linear warm-up and a cosine, as functions of the share of the run that is done."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter, 2019), on matrices and kernels alone.

    The rate depends on the share of the run that is done and on nothing before it, so a run that goes on needs
    no scheduler state, and a run that is bounded by time anneals to its end on any machine.

    Attributes:
        lr: rate at the top of the schedule.
        weight_decay: not applied to biases and normalisation (tensors of one dimension).
        betas: moments' decay.
        warmup: share of the run in which the rate rises linearly from zero.
        final: share of `lr` at which the cosine ends.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.05
    final: float = 0.02

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}; both must be from 0 to below 1")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of the run, from 0 to below 1")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final is {self.final}; it is a share of lr, from 0 to 1")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a module's trainable parameters."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        first, second = self.betas
        return torch.optim.AdamW(groups, lr=self.lr, betas=(first, second))

    def rate(self, done: float) -> float:
        """Learning rate when a share `done` (0 to 1) of the run is over."""
        if done < self.warmup:
            return self.lr * done / self.warmup
        left = 0.5 * (1 + math.cos(math.pi * (min(done, 1.0) - self.warmup) / (1 - self.warmup)))
        return self.lr * (self.final + (1 - self.final) * left)
