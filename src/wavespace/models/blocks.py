"""What models share: scaling by the spec, padding to a multiple, a change of frequency axis, a convolution block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavespace.spec import FeatureSpec

Norm = Literal["batch", "group"]


class Scale(nn.Module):
    """Values of a spec's range to about -1..1 (`into`), and back (`out`); linear, nothing is cut off. Logits stay."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        logit = spec.unit == "logit"
        self.middle = 0.0 if logit else (spec.high + spec.low) / 2
        self.reach = 1.0 if logit else (spec.high - spec.low) / 2

    def into(self, x: Tensor) -> Tensor:
        """To about -1..1."""
        return (x - self.middle) / self.reach

    def out(self, x: Tensor) -> Tensor:
        """Back to the spec's unit."""
        return x * self.reach + self.middle


class Rebin(nn.Module):
    """A learned linear map along frequency `(B, C, F, T) -> (B, C, F', T)`; the identity where the axes are equal.

    It starts as linear interpolation between the two axes' centre frequencies on a log scale. Where the input has one
    bin, as a codec's latents have, there is nothing to interpolate: each output bin weighs each channel, from random.
    """

    def __init__(self, bins_in: Sequence[float], bins_out: Sequence[float], channels: int = 1) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = None
        self.from_one = len(bins_in) == 1 < len(bins_out)
        if self.from_one:
            self.weight = nn.Parameter(torch.randn(channels, len(bins_out), 1))  # (C, F', 1)
        elif tuple(bins_in) != tuple(bins_out):
            source, target = np.log(np.maximum(bins_in, 1e-3)), np.log(np.maximum(bins_out, 1e-3))
            rows = [np.interp(target, source, unit) for unit in np.eye(len(source))]  # F rows of (F',)
            self.weight = nn.Parameter(torch.tensor(np.stack(rows, 1), dtype=torch.float32))  # (F', F)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C, F', T)`."""
        if self.weight is None:
            return x
        return x * self.weight if self.from_one else torch.einsum("gf,bcft->bcgt", self.weight, x)


def pad_to(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Zero-pad `(B, C, F, T)` at the end of frequency and time to multiples; `[..., :F, :T]` crops the result."""
    rows, frames = (-x.shape[2] % multiple[0], -x.shape[3] % multiple[1])
    return F.pad(x, (0, frames, 0, rows)) if rows or frames else x


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """Batch norm (equal for windows and whole files at inference), or group norm (independent of the batch)."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(max(g for g in (8, 4, 2, 1) if channels % g == 0), channels)


class ConvBlock(nn.Sequential):
    """Convolution, norm, GELU, twice."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int], norm: Norm) -> None:
        same = (kernel[0] // 2, kernel[1] // 2)
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, padding=same, bias=False),
            norm_layer(norm, channels_out),
            nn.GELU(),
            nn.Conv2d(channels_out, channels_out, kernel, padding=same, bias=False),
            norm_layer(norm, channels_out),
            nn.GELU(),
        )
