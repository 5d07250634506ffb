"""What models share: what has a code, scaling by the spec, a change of frequency axis, convolutions, a bottleneck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wavespace.spec import FeatureSpec

Norm = Literal["batch", "group"]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Stride = Annotated[int, Field(ge=2)]
BlockSize = Literal[1, 2, 4, 8, 16, 32, 64]
"""Frames that share a code: long audio is cut into windows that begin at multiples of each of these."""

UNBOUNDED = 64
"""Frames on each side that count as the receptive field of a layer that has no bound: recurrence, attention to all."""


@runtime_checkable
class Autoencoder(Protocol):
    """A model whose output is a function of a code alone, `decode(encode(x))[..., :T]`, unless `dims` is 0."""

    dims: int
    """Size of a code; 0 where there is none, as skips carry features around it."""
    step: int
    """Consecutive frames that share a code."""

    def encode(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to codes `(B, dims, 1, ceil(T / step))`."""

    def decode(self, code: Tensor) -> Tensor:
        """Codes `(B, dims, 1, t)` to `(B, C', F', t * step)`."""


def autoencoder(model: nn.Module) -> Autoencoder | None:
    """The model, if it has a code."""
    return model if isinstance(model, Autoencoder) and model.dims else None


@runtime_checkable
class Bounded(Protocol):
    """A model that states its receptive field."""

    receptive_field: int
    """Frames on each side that can change an output frame."""


class Scale(nn.Module):
    """Map a spec's range to about -1..1 and back, whatever the shape; linear, nothing is cut off. Logits stay."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        logit = spec.unit == "logit"
        self.middle = 0.0 if logit else (spec.high + spec.low) / 2
        self.halfwidth = 1.0 if logit else (spec.high - spec.low) / 2

    def normalize(self, x: Tensor) -> Tensor:
        """Features `(B, C, F, T)` in the spec's unit to about -1..1."""
        return (x - self.middle) / self.halfwidth

    def denormalize(self, x: Tensor) -> Tensor:
        """Features `(B, C, F, T)` of about -1..1 to the spec's unit, in float32 at least, which dB need."""
        return upcast(x) * self.halfwidth + self.middle


class Rebin(nn.Module):
    """Map `(B, C, F, T)` to another frequency axis, `(B, C, F', T)`, by a learned matrix; equal axes are left alone.

    The matrix starts as linear interpolation between the axes' centre frequencies on a log scale (`np.interp`); that
    it learns is this project's own and no paper's. Where the input has one bin, as a codec's latents have, there is
    nothing to interpolate: each output bin weighs each channel, from random.
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


def in_blocks(x: Tensor, frames: int) -> Tensor:
    """Repeat the last frame of `(B, C, F, T)` until T is a multiple of `frames`; `[..., :T]` crops the result."""
    missing = -x.shape[3] % frames
    return F.pad(x, (0, missing, 0, 0), mode="replicate") if missing else x


def as_frames(x: Tensor) -> Tensor:
    """`(B, C, F, T)` to one vector a frame, `(B, C * F, 1, T)`."""
    return x.flatten(1, 2).unsqueeze(2)


def from_frames(x: Tensor, channels: int, bins: int) -> Tensor:
    """Undo `as_frames`: `(B, channels * bins, 1, T)` to `(B, channels, bins, T)`."""
    return x.unflatten(1, (channels, bins)).squeeze(3)


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """Batch norm (equal for windows and whole files at inference), or group norm (independent of the batch).

    Group norm takes its statistics over all frames that it is given, so each frame depends a little on all others.
    """
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


class Bottleneck(nn.Module):
    """Map the middle of an autoencoder `(B, W, rows, T)` to codes `(B, dims, 1, T)` and back, each frame alone.

    Both ways are linear and learned; without `dims` the middle itself is the code, and nothing is learned. With
    batch norm each dimension of a code has about mean 0 and variance 1: such nets learn in a fraction of the steps.
    """

    def __init__(self, channels: int, rows: int, dims: int | None, norm: Norm) -> None:
        super().__init__()
        self.channels, self.rows, self.dims = channels, rows, dims or channels * rows
        self.narrow: nn.Module = nn.Identity()
        self.widen: nn.Module = nn.Identity()
        if dims:
            self.narrow = nn.Conv2d(channels * rows, dims, 1)
            if norm == "batch":  # group norm would take the level of a whole window out of its codes
                self.narrow = nn.Sequential(self.narrow, nn.BatchNorm2d(dims, affine=False))
            self.widen = nn.Conv2d(dims, channels * rows, 1)

    def encode(self, x: Tensor) -> Tensor:
        """`(B, W, rows, T)` to codes."""
        return self.narrow(as_frames(x))

    def decode(self, code: Tensor) -> Tensor:
        """Codes to `(B, W, rows, T)`."""
        return from_frames(self.widen(code), self.channels, self.rows)


def widths_of(width: int, max_width: int, depth: int, growth: int) -> list[int]:
    """Channels at each of `depth + 1` levels, from full resolution down."""
    return [min(width * growth**level, max_width) for level in range(depth + 1)]


def bottleneck_of(
    in_spec: FeatureSpec, widths: list[int], stride: tuple[int, int], latent: int | None, norm: Norm
) -> Bottleneck:
    """The bottleneck of `latent` dims a frame for a net that shrinks frequency and time by `stride` at each level.

    Raises:
        ValueError: the features or a level have fewer dims a frame, so that it would be none.
    """
    depth = len(widths) - 1
    top = in_spec.bins + -in_spec.bins % stride[0] ** depth  # rows after padding
    held = [wide * (top // stride[0] ** level) // stride[1] ** level for level, wide in enumerate(widths)]
    most = min(in_spec.channels * in_spec.bins, *held)
    if latent is not None and not 1 <= latent <= most:
        raise ValueError(f"latent is {latent}; it takes 1 to {most} dims a frame: no more pass the rest of the net")
    return Bottleneck(widths[-1], top // stride[0] ** depth, latent and latent * stride[1] ** depth, norm)


def upcast(x: Tensor) -> Tensor:
    """Convert half precision to float32: a value in dB needs more digits than it has."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def zero_init(*modules: nn.Module) -> None:
    """Set all parameters of modules to zero, so that they give nothing until they learn."""
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def pooled_field(stem: int, block: int, stride: int, depth: int) -> int:
    """Receptive field on each side of a net that shrinks time by `stride` at each of `depth` levels.

    `stem` and `block` are those of the stem and of each further block at their own resolution; a frame also depends
    on all frames that it was pooled with.
    """
    steps = [stride**level for level in range(depth + 1)]
    return stem + block * (sum(steps[1:]) + sum(steps[:-1])) + steps[-1] - 1


def check_kernel(kernel: int | Sequence[int]) -> None:
    """ValueError where a size of a kernel is even or below 1."""
    sizes = [kernel] if isinstance(kernel, int) else kernel
    if any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel is {kernel}; each size must be odd, so that input and output align")
