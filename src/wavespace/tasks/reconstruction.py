"""Spectrogram reconstruction: features through a model and back, and the sound of what came back.

L1 in dB on the front-end's own scale, as the study reports it, and how far the sound is from the one that came in.
Padding is not scored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor

from wavespace.data.base import Batch
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd, scaled
from wavespace.settings import validate_settings
from wavespace.tasks.base import Example, Sample, Task, feature_picture

SCALES = (2048, 1024, 512, 256, 128, 64)
"""FFT sizes of the multi-scale distance, in samples."""


class ReconstructionOutput(NamedTuple):
    """One item: mean absolute error in dB over its own frames, and over those of their cells that are above the floor.

    `multi_scale` is the distance of its sound, where it was resynthesised.
    """

    l1: float
    l1_above_floor: float
    multi_scale: float | None = None


def multi_scale_distance(audio: Tensor, other: Tensor) -> float:
    """Measure how far two sounds `(N,)` are apart, whatever their phases: 0 for equal ones, with no upper bound.

    The sum, over STFTs of several sizes, of the mean absolute difference of magnitudes and of that of their natural
    logarithms, as DDSP trains on it (Engel et al., ICLR 2020; RAVE has much the same): Hann windows that overlap by
    three quarters, magnitudes of an unscaled FFT, nothing quieter than 1e-5.
    """
    audio, other, total = scaled(audio), scaled(other), 0.0
    for size in SCALES:
        window = torch.hann_window(size, device=audio.device)
        first, second = (
            torch.stft(x, size, size // 4, window=window, pad_mode="constant", return_complex=True).abs()
            for x in (audio, other)
        )  # (size / 2 + 1, T)
        logs = first.clamp_min(1e-5).log() - second.clamp_min(1e-5).log()
        total += float((first - second).abs().mean() + logs.abs().mean())
    return total


@validate_settings
class Reconstruction(Task):
    """Give back the features that came in.

    Args:
        frontend: its output is both input and target.
        shift: training windows are moved up or down by up to this many bins, at random: on a logarithmic axis
            a transposition, so that a few songs are many.
        multi_scale_items: items of a test split whose sound is resynthesised, for `multi_scale`. Finding phases takes
            about a second for two seconds of audio, so validation during training does without.

    Raises:
        Incompatible: the front-end's output is not in dB.
        ValueError: a setting is out of range.
    """

    monitor = "val/l1_db"
    mode = "min"
    table = ("l1_db", "l1_db_above_floor", "multi_scale")

    def __init__(self, frontend: FrontEnd, *, shift: NonNegativeInt = 0, multi_scale_items: NonNegativeInt = 4) -> None:
        super().__init__(frontend, frontend.out_spec)
        if shift >= self.out_spec.bins:
            raise ValueError(f"shift is {shift}; it must be 0 to {self.out_spec.bins - 1} bins")
        self.shift, self.multi_scale_items = shift, multi_scale_items
        if self.out_spec.unit != "dB":
            raise Incompatible(
                f"task=reconstruction measures errors in dB, and {type(frontend).__name__} gives {self.out_spec}; "
                "use frontend=log_frequency, mel, multi_resolution or cqt, or task=piano_roll"
            )

    def targets(self, batch: Batch, features: Tensor) -> dict[str, Tensor]:
        """Return `mask`, `(B, 1, 1, T)`: 1 in the frames that hold sound of an item, 0 in its padding."""
        hop = round(self.frontend.in_spec.sample_rate / self.out_spec.frame_rate)
        frames = 1 + batch.lengths // hop  # (B,) in whole numbers: float32 loses frames of long recordings
        time = torch.arange(features.shape[-1], device=features.device)  # (T,)
        return {"mask": (time < frames[:, None].to(features.device))[:, None, None].float()}

    def training_example(self, batch: Batch) -> Example:
        """Move the features of each item along the frequency axis, at random."""
        example = self.example(batch)
        if not self.shift:
            return example
        margin = (0, 0, self.shift, self.shift)
        moved = F.pad(example.features, margin, value=self.out_spec.low)  # (B, C, F + 2 * shift, T)
        starts = torch.randint(2 * self.shift + 1, (len(moved),)).tolist()
        windows = [item[:, start : start + self.out_spec.bins] for item, start in zip(moved, starts)]
        return example._replace(features=torch.stack(windows))

    def loss(self, output: Tensor, example: Example) -> dict[str, Tensor]:
        """Compute the mean absolute error, a scalar, of an output `(B, C, F, T)` over the frames that hold sound."""
        features, mask = example.features, example.targets["mask"]
        error = (output - features).abs() * mask
        return {"loss": error.sum() / (mask.sum() * features.shape[1] * features.shape[2])}

    def eval_outputs(self, output: Tensor, example: Example, position: int | None = None) -> list[ReconstructionOutput]:
        """Return the L1 of each item of an output `(B, C, F, T)`, and of the first of a split how far its sound is."""
        features, mask = example.features, example.targets["mask"]
        error = (output - features).abs() * mask  # (B, C, F, T)
        cells = mask.sum((1, 2, 3)) * features.shape[1] * features.shape[2]  # (B,)
        above = (features > self.out_spec.low) * mask  # (B, C, F, T)
        l1 = error.sum((1, 2, 3)) / cells
        l1_above = (error * above).sum((1, 2, 3)) / above.sum((1, 2, 3)).clamp_min(1)
        first = position if position is not None and self.frontend.invertible else self.multi_scale_items
        sounds = [
            self._distance(output, example.batch, index) if first + index < self.multi_scale_items else None
            for index in range(len(l1))
        ]
        return [ReconstructionOutput(*item) for item in zip(l1.tolist(), l1_above.tolist(), sounds)]

    def _distance(self, output: Tensor, batch: Batch, index: int) -> float:
        samples, frames = int(batch.lengths[index]), self.item_frames(batch, index)
        sound = self.frontend.inverse(output[index : index + 1, :, :, :frames], samples)  # (1, 1, N)
        return multi_scale_distance(batch.audio[index, 0, :samples], sound[0, 0])

    def compute_metrics(self, outputs: list[ReconstructionOutput], *, tune: bool) -> dict[str, float]:
        """Compute means over items of L1 in dB. Much of a quiet recording lies on the floor, where copying is easy."""
        l1 = float(np.mean([item.l1 for item in outputs]))
        distances = [item.multi_scale for item in outputs if item.multi_scale is not None]
        metrics = {"multi_scale": float(np.mean(distances))} if distances else {}
        return metrics | {
            "loss": l1,
            "l1_db": l1,
            "l1_db_above_floor": float(np.mean([item.l1_above_floor for item in outputs])),
        }

    def sample(self, output: Tensor, example: Example, index: int) -> Sample:
        """Show input and output `(B, C, F, T)`; their sounds, through one inverse, so that only the model differs."""
        batch, spec = example.batch, self.frontend.out_spec
        samples, frames = int(batch.lengths[index]), self.item_frames(batch, index)
        target, estimate = (values[index, :, :, :frames].float() for values in (example.features, output))
        sounds = {"input": scaled(batch.audio[index, 0, :samples]).cpu().numpy()}
        if self.frontend.invertible:
            both = torch.stack([target, estimate])  # (2, C, F, T)
            resynthesised = self.frontend.inverse(both, samples).cpu().numpy()  # (2, 1, N)
            sounds |= {"input, resynthesised": resynthesised[0, 0], "reconstruction": resynthesised[1, 0]}
        error = (estimate - target).abs()
        pictures = [
            feature_picture("input", target[0], spec),
            feature_picture("reconstruction", estimate[0], spec),
            feature_picture("absolute error", error[0], replace(spec, low=0.0, high=20.0)),
        ]
        return Sample(batch.names[index], pictures, sounds)
