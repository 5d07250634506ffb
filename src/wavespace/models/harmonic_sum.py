"""A baseline that learns nothing: the weighted sum of a pitch's partials, or with one harmonic the spectrum's peaks."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wavespace.errors import Incompatible
from wavespace.models.harmonic import HarmonicStack
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec

Values = Literal["amplitude", "root", "dB"]
"""What is summed, 0 at the floor and 1 at the top of the features' range."""
Reference = Literal["frame", "scale"]
"""What counts as 1: the largest sum of a frame, or every partial at the top of the range."""


@validate_settings
class HarmonicSum(nn.Module):
    """`sum(value(h f) / h) / sum(1 / h)` over harmonics h, as the logit of what it is of the reference.

    Subharmonic summation (Hermes, "Measurement of pitch by subharmonic summation", JASA 83, 1988) with the weights of
    a tone whose partials fall as 1 / h. No parameter is learned; the threshold that validation chooses is the only
    thing fitted. Partials beyond the input's bins count as silence.

    Args:
        in_spec: features in dB; channel 0 is read.
        out_spec: one map of logits, any bins.
        harmonics: how many partials; 1 leaves the peaks of the input itself.
        values: what is summed: the amplitude, its square root, or dB above the floor.
        reference: relative to what the map is: the loudest pitch of each frame, or nothing. With the first a frame as
            loud as the floor reads as silence.

    Raises:
        Incompatible: the features have no frequency axis of levels in dB, or the task asks for something else.
        ValueError: a setting is out of range.
    """

    weights: Tensor
    receptive_field = 0
    """No frame sees another."""

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        harmonics: PositiveInt = 8,
        values: Values = "dB",
        reference: Reference = "frame",
    ) -> None:
        super().__init__()
        if in_spec.unit != "dB" or in_spec.bins < 2 or out_spec.channels != 1 or out_spec.unit != "logit":
            raise Incompatible(
                f"model=harmonic_sum reads rows in dB and gives one map of logits, not {in_spec} to {out_spec}; "
                "use task=salience and frontend=cqt with it, or model=unet or model=conv2d, which take any"
            )
        self.floor, self.top = in_spec.low, in_spec.high
        self.values, self.reference = values, reference
        h = np.arange(1, harmonics + 1)
        self.stack = HarmonicStack(in_spec, out_spec, tuple(h.tolist()), 1)
        self.register_buffer("weights", torch.tensor(1 / h / (1 / h).sum()).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to logits `(B, 1, F', T)`."""
        level = 2 * self._value(x[:, :1].float()) - 1  # (B, 1, F, T) -1 at the floor, which the stack pads with
        stacked = (self.stack(level) + 1) / 2  # (B, H, F', T)
        sums = torch.einsum("h,bhft->bft", self.weights, stacked)[:, None]  # (B, 1, F', T)
        if self.reference == "frame":
            sums = sums / sums.amax(2, keepdim=True).clamp_min(1e-6)
        return torch.logit(sums.clamp(1e-4, 1 - 1e-4))

    def _value(self, level: Tensor) -> Tensor:
        """Levels in dB as what is summed, 0 at the floor and 1 at the top; louder than that is more."""
        if self.values == "dB":
            return ((level - self.floor) / (self.top - self.floor)).clamp_min(0)
        per = 20 if self.values == "amplitude" else 40  # dB to a factor of ten
        floor = 10 ** ((self.floor - self.top) / per)
        return ((10 ** ((level - self.top) / per) - floor) / (1 - floor)).clamp_min(0)
