"""Spectrogram reconstruction: features through a model and back, and the sound of what came back.

L1 in dB on the front-end's own scale, as the study reports it, and how far the sound is from the one that came in.
Padding is not scored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wavespace.data.base import Batch
from wavespace.errors import Incompatible
from wavespace.frontends.base import FrontEnd, scaled
from wavespace.tasks.base import Picture, Sample, Task

SCALES = (2048, 1024, 512, 256, 128, 64)
"""FFT sizes of the multi-scale distance, in samples."""


class Observed(NamedTuple):
    """One item: mean absolute error over its own frames, and over those of their cells that are above the floor.

    `multi_scale` is the distance of its sound, where it was resynthesised.
    """

    l1: float
    l1_above_floor: float
    multi_scale: float | None = None


def multi_scale_distance(audio: Tensor, other: Tensor) -> float:
    """How far two sounds `(N,)` are apart whatever their phases: 0 for equal ones, and no upper bound.

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


class Reconstruction(Task):
    """Give back the features that came in.

    Args:
        frontend: its output is both input and target.
        shift: training windows are moved up or down by up to this many bins, at random: on a logarithmic axis
            a transposition, so that a few songs are many.
        heard: items of a test split whose reconstruction is made to sound, for `multi_scale`. Finding phases takes
            about a second for two seconds of audio, so validation during training does without.

    Raises:
        Incompatible: the front-end's output is not in dB.
        ValueError: a setting is out of range.
    """

    monitor = "val/l1_db"
    mode = "min"
    table = ("l1_db", "l1_db_above_floor", "multi_scale")

    def __init__(self, frontend: FrontEnd, *, shift: int = 0, heard: int = 4) -> None:
        super().__init__(frontend, frontend.out_spec)
        if not 0 <= shift < self.out_spec.bins:
            raise ValueError(f"shift is {shift}; it must be 0 to {self.out_spec.bins - 1} bins")
        if heard < 0:
            raise ValueError(f"heard is {heard}; it must be 0 or more items")
        self.shift, self.heard = shift, heard
        self._sounded = 0
        if self.out_spec.unit != "dB":
            raise Incompatible(
                f"task=reconstruction measures errors in dB, and {type(frontend).__name__} gives {self.out_spec}; "
                "use frontend=log_frequency, mel, multi_resolution or cqt, or task=piano_roll"
            )

    def features_of(self, batch: Batch) -> Tensor:
        """Features `(B, C, F, T)` of a batch; in training each item is moved along the frequency axis."""
        features = super().features_of(batch)
        if not (self.training and self.shift):
            return features
        moved = F.pad(features, (0, 0, self.shift, self.shift), value=self.out_spec.low)  # (B, C, F + 2 * shift, T)
        starts = torch.randint(2 * self.shift + 1, (len(features),)).tolist()
        return torch.stack([item[:, start : start + self.out_spec.bins] for item, start in zip(moved, starts)])

    def loss(self, output: Tensor, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean absolute error over the frames that hold sound of the item."""
        mask = self._mask(batch, features)  # (B, 1, 1, T)
        error = (output - features).abs() * mask
        return {"loss": error.sum() / (mask.sum() * features.shape[1] * features.shape[2])}

    def observe(self, output: Tensor, features: Tensor, batch: Batch) -> list[Observed]:
        """L1 of each item; of the first `heard` of a split also the distance of its sound, unless this is training."""
        mask = self._mask(batch, features)
        error = (output - features).abs() * mask  # (B, C, F, T)
        cells = mask.sum((1, 2, 3)) * features.shape[1] * features.shape[2]  # (B,)
        above = (features > self.out_spec.low) * mask  # (B, C, F, T)
        l1 = error.sum((1, 2, 3)) / cells
        l1_above = (error * above).sum((1, 2, 3)) / above.sum((1, 2, 3)).clamp_min(1)
        sounds = [self._distance(output, batch, index) for index in range(len(l1))]
        return [Observed(*item) for item in zip(l1.tolist(), l1_above.tolist(), sounds)]

    def _distance(self, output: Tensor, batch: Batch, index: int) -> float | None:
        in_training = self._trainer is not None and self.trainer.validating
        if in_training or not self.frontend.invertible or self._sounded >= self.heard:
            return None
        self._sounded += 1
        samples = int(batch.lengths[index])
        frames = self.out_spec.frames(samples, self.frontend.in_spec.sample_rate)
        sound = self.frontend.inverse(output[index : index + 1, :, :, :frames], samples)  # (1, 1, N)
        return multi_scale_distance(batch.audio[index, 0, :samples], sound[0, 0])

    def summarize(self, observed: list[Observed], *, tune: bool) -> dict[str, float]:
        """Means over items of their L1 in dB. Much of a quiet recording lies on the floor, where copying is easy."""
        self._sounded = 0
        l1 = float(np.mean([item.l1 for item in observed]))
        heard = [item.multi_scale for item in observed if item.multi_scale is not None]
        figures = {"multi_scale": float(np.mean(heard))} if heard else {}
        return figures | {
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
