"""A baseline that learns nothing: peaks of the spectrogram are notes, rises are onsets."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavespace.errors import Incompatible
from wavespace.spec import FeatureSpec


class Peaks(nn.Module):
    """Harmonic sum over the input's own bins; a pitch sounds where it is a local peak, and starts where it rises.

    A peak an octave or a twelfth above a stronger one is taken for its partial. No parameter is learned; the onset
    threshold that validation chooses is the only thing fitted.

    Args:
        in_spec: features in dB; channel 0 is read.
        out_spec: piano-roll heads (onset, frame, velocity, offset) as logits.
    """

    rows: Tensor
    weights: Tensor
    receptive_field = 2
    """Frames before a frame that a rise is measured from."""

    def __init__(self, in_spec: FeatureSpec, out_spec: FeatureSpec) -> None:
        super().__init__()
        if in_spec.unit != "dB" or out_spec.channels != 4:
            raise Incompatible(
                f"model=peaks reads dB and gives the four heads of task=piano_roll, not {in_spec} to {out_spec}; "
                "use frontend=multi_resolution or frontend=cqt with it, or model=unet or model=conv2d, which take any"
            )
        harmonics = np.array([1, 2, 3, 4])
        source = np.log2(np.maximum(in_spec.frequencies, 1e-3))
        wanted = np.log2(np.outer(harmonics, out_spec.frequencies))  # (H, F')
        rows = np.abs(source - wanted[..., None]).argmin(-1)
        self.low, self.high = in_spec.low, in_spec.high
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.register_buffer("weights", torch.tensor(1.0 / harmonics / (1 / harmonics).sum()).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to logits `(B, 4, F', T)`."""
        level = (x[:, 0] - self.low) / (self.high - self.low)  # (B, F, T) about 0..1
        stacked = level[:, self.rows]  # (B, H, F', T)
        salience = torch.einsum("h,bhft->bft", self.weights, stacked)
        around = F.max_pool2d(salience[:, None], (3, 1), 1, (1, 0))[:, 0]  # the loudest of a pitch and its neighbours
        background = F.avg_pool2d(salience[:, None], (25, 1), 1, (12, 0), count_include_pad=False)[:, 0]
        peak = (salience >= around) * (salience - background).clamp(min=0)  # (B, F', T)
        below = torch.maximum(F.pad(peak, (0, 0, 12, 0))[:, :-12], F.pad(peak, (0, 0, 19, 0))[:, :-19])
        peak = peak * (peak >= below)
        before = F.pad(peak, (2, 0))[..., :-2]
        rise = (peak - before).clamp(min=0)
        velocity = (x[:, 0].amax(1, keepdim=True) - self.low) / (self.high - self.low)  # (B, 1, T)
        heads = torch.stack([4 * rise, 4 * peak, velocity.expand_as(peak), torch.zeros_like(peak)], 1)
        return torch.logit(heads.clamp(1e-4, 1 - 1e-4))  # (B, 4, F', T)
