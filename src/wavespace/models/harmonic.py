"""A small net on harmonically stacked features, in the spirit of Basic Pitch (Bittner et al., 2022).

For each output pitch the rows at its harmonics become channels, so that a small kernel sees all partials of a note
at once; dilations along pitch of an octave, a twelfth and a fifth let it explain partials by other notes.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wavespace.errors import Incompatible
from wavespace.models.blocks import Scale
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec, check_table

Dilation = tuple[PositiveInt, PositiveInt]


class HarmonicStack(nn.Module):
    """Rows at harmonics of each output bin as channels: `(B, C, F, T) -> (B, len(offsets) * C, F', T)`.

    A harmonic outside the input's range reads as the floor. Each harmonic is read at `spread` neighbouring rows, so
    that tuning between rows is seen without a layer at the input's finer resolution.
    """

    rows: Tensor

    def __init__(self, in_spec: FeatureSpec, out_spec: FeatureSpec, harmonics: tuple[float, ...], spread: int) -> None:
        super().__init__()
        source = np.log2(np.maximum(in_spec.frequencies, 1e-3))
        step = np.median(np.diff(source))
        check_table(4 * out_spec.bins * max(in_spec.bins, 4 * len(harmonics) * spread))
        rows = []
        for harmonic in harmonics:
            for shift in range(-(spread // 2), spread // 2 + 1):
                wanted = np.log2(out_spec.frequencies) + np.log2(harmonic) + shift * step  # (F',)
                nearest = np.abs(source[None] - wanted[:, None]).argmin(1)
                inside = (wanted > source[0] - step / 2) & (wanted < source[-1] + step / 2)
                rows.append(np.where(inside, nearest, in_spec.bins))  # one past the end: the floor
        self.register_buffer("rows", torch.tensor(np.stack(rows)), persistent=False)  # (S, F')
        self.channels = in_spec.channels * len(rows)

    def forward(self, x: Tensor) -> Tensor:
        """`x` is scaled to -1..1, so that the floor is -1."""
        x = torch.cat([x, torch.full_like(x[:, :, :1], -1.0)], 2)  # (B, C, F + 1, T)
        batch, channels, _, frames = x.shape
        stacked = x.index_select(2, self.rows.flatten())  # (B, C, S * F', T)
        return stacked.view(batch, channels * len(self.rows), -1, frames)  # (B, C * S, F', T)


class HarmonicSums(nn.Module):
    """`sum(value(h f) / h)` over so many harmonics h of each output bin, of the largest in the frame: `(B, 1, F', T)`.

    Values are those of the first channel, 0 at the floor. A frame at the floor is 0.
    """

    weights: Tensor

    def __init__(self, in_spec: FeatureSpec, out_spec: FeatureSpec, harmonics: int) -> None:
        super().__init__()
        self.stack = HarmonicStack(in_spec, out_spec, tuple(range(1, harmonics + 1)), 1)
        self.register_buffer("weights", 1 / torch.arange(1.0, harmonics + 1), persistent=False)  # (H,)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)`, scaled so that the floor is -1."""
        values = (self.stack(x[:, :1].clamp_min(-1)) + 1) / 2  # (B, H, F', T)
        sums = (self.weights[:, None, None] * values).sum(1, keepdim=True)  # (B, 1, F', T)
        return sums / sums.amax(2, keepdim=True).clamp_min(1e-6)


def normed(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`norm(conv(x))`; in evaluation one convolution, as memory is what a small net waits for."""
    if norm.training or norm.running_var is None or norm.running_mean is None:
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (width,)
    weight, bias = conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    return F.conv2d(x, weight, bias, padding=conv.padding, dilation=conv.dilation)


class Residual(nn.Module):
    """Dilated 3x3 convolution, norm, ReLU, added to its input."""

    def __init__(self, width: int, dilation: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, width, F', T)` to the same."""
        return x + torch.relu(normed(self.conv, self.norm, x))


@validate_settings
class Harmonic(nn.Module):
    """Harmonic stack, a residual trunk, and one head a channel of the output.

    Args:
        in_spec: features; their bins should be about log-spaced.
        out_spec: its bins are the pitches.
        width: channels of the trunk.
        harmonics: multiples of each pitch that are stacked.
        spread: rows read around each harmonic (odd).
        sums: partials of a harmonic sum that is stacked with them, as in `harmonic_sum`: of a frame's largest, so
            that a net begins with a pitch estimate that no level changes; 0: none.
        dilations: (pitch, time) dilation of each residual layer. With 12 bins an octave 12, 7 and 12 reach the octave,
            the fifth (with the octave: the twelfth), and the double octave.

    Raises:
        Incompatible: the features have no frequency axis of levels, in dB or normalised.
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: PositiveInt = 32,
        harmonics: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1, 2, 3, 4, 5, 6, 7, 8),
        spread: PositiveInt = 3,
        sums: NonNegativeInt = 0,
        dilations: tuple[Dilation, ...] = ((1, 1), (12, 1), (1, 2), (7, 1), (1, 4), (12, 1), (1, 1)),
    ) -> None:
        super().__init__()
        if in_spec.unit not in ("dB", "standardized") or in_spec.bins < 2:
            raise Incompatible(
                f"model=harmonic stacks the rows at harmonics of a pitch, in dB, and features of {in_spec} have none; "
                "use a front-end that has, such as frontend=multi_resolution or frontend=cqt, "
                "or a model for any features, such as model=unet or model=conv2d"
            )
        if spread % 2 == 0:
            raise ValueError(f"spread is {spread}; it must be odd, as it is centred on each harmonic")
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.stack = HarmonicStack(in_spec, out_spec, harmonics, spread)
        self.sums = HarmonicSums(in_spec, out_spec, sums) if sums else None
        channels = self.stack.channels + (sums > 0)
        self.stem = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, width, (1, 3), padding=(0, 1), bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.receptive_field = 1 + sum(time for _, time in dilations) + 1  # of stem, trunk and head
        self.trunk = nn.Sequential(*(Residual(width, dilation) for dilation in dilations))
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, out_spec.channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        x = self.scale.normalize(x)
        stacked = self.stack(x)  # (B, S, F', T)
        if self.sums is not None:
            stacked = torch.cat([stacked, self.sums(x)], 1)
        x = self.stem(stacked)  # (B, width, F', T)
        return self.target.denormalize(self.head(self.trunk(x)))  # (B, C', F', T)
