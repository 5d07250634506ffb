"""Spectrogram reconstruction: features through a model and back, and the sound of what came back.

L1 in dB on the front-end's own scale, as the study reports it. Padding is not scored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wavespace.data.base import Batch
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd
from wavespace.tasks.base import Picture, Sample, Task, scaled


class Observed(NamedTuple):
    """One item: mean absolute error over its own frames, and over those of their cells that are above the floor."""

    l1: float
    l1_above_floor: float


class Reconstruction(Task):
    """Give back the features that came in.

    Args:
        frontend: its output is both input and target.

    Raises:
        Incompatible: its output is not in dB.
    """

    monitor = "val/l1_db"
    mode = "min"
    table = ("l1_db", "l1_db_above_floor")

    def __init__(self, frontend: FrontEnd) -> None:
        super().__init__(frontend, frontend.out_spec)
        if self.out_spec.unit != "dB":
            raise Incompatible(
                f"task=reconstruction measures errors in dB, and {type(frontend).__name__} gives {self.out_spec}; "
                "use frontend=log_frequency, mel, multi_resolution or cqt, or task=piano_roll"
            )

    def loss(self, output: Tensor, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean absolute error over the frames that hold sound of the item."""
        mask = self._mask(batch, features)  # (B, 1, 1, T)
        error = (output - features).abs() * mask
        return {"loss": error.sum() / (mask.sum() * features.shape[1] * features.shape[2])}

    def observe(self, output: Tensor, features: Tensor, batch: Batch) -> list[Observed]:
        """L1 of each item."""
        mask = self._mask(batch, features)
        error = (output - features).abs() * mask  # (B, C, F, T)
        cells = mask.sum((1, 2, 3)) * features.shape[1] * features.shape[2]  # (B,)
        above = (features > self.out_spec.low) * mask  # (B, C, F, T)
        l1 = error.sum((1, 2, 3)) / cells
        l1_above = (error * above).sum((1, 2, 3)) / above.sum((1, 2, 3)).clamp_min(1)
        return [Observed(*pair) for pair in zip(l1.tolist(), l1_above.tolist())]

    def summarize(self, observed: list[Observed], *, tune: bool) -> dict[str, float]:
        """Means over items of their L1 in dB. Much of a quiet recording lies on the floor, where copying is easy."""
        l1 = float(np.mean([item.l1 for item in observed]))
        return {
            "loss": l1,
            "l1_db": l1,
            "l1_db_above_floor": float(np.mean([item.l1_above_floor for item in observed])),
        }

    def sample(self, output: Tensor, features: Tensor, batch: Batch, index: int) -> Sample:
        """Input and reconstruction; their sounds, both through the inverse, so that only the model differs."""
        samples = int(batch.lengths[index])
        frames = self.frontend.out_spec.frames(samples, self.frontend.in_spec.sample_rate)
        spec = self.frontend.out_spec
        target, estimate = features[index, :, :, :frames].float(), output[index, :, :, :frames].float()
        sounds = {"input": scaled(batch.audio[index, 0, :samples]).cpu().numpy()}
        if self.frontend.invertible:
            both = torch.stack([target, estimate])  # (2, C, F, T)
            resynthesised = self.frontend.inverse(both, samples).cpu().numpy()  # (2, 1, N)
            sounds |= {"input, resynthesised": resynthesised[0, 0], "reconstruction": resynthesised[1, 0]}
        error = (estimate - target).abs()
        pictures = [
            Picture(title, values[0].cpu().numpy(), spec.frequencies, spec.frame_rate, low, high, spec.unit)
            for title, values, low, high in [
                ("input", target, spec.low, spec.high),
                ("reconstruction", estimate, spec.low, spec.high),
                ("absolute error", error, 0.0, 20.0),
            ]
        ]
        return Sample(batch.names[index], pictures, sounds)

    def _mask(self, batch: Batch, features: Tensor) -> Tensor:
        hop = round(self.frontend.in_spec.sample_rate / self.out_spec.frame_rate)
        frames = 1 + batch.lengths // hop  # (B,) in whole numbers: float32 loses frames of long recordings
        time = torch.arange(features.shape[-1], device=features.device)  # (T,)
        return (time < frames[:, None].to(features.device))[:, None, None].float()  # (B, 1, 1, T)
