"""A transformer over frames: pre-norm (Xiong et al., 2020), one token a frame, attention within a window.

Neighbouring frames of spectrograms and codec latents are nearly collinear, and attention hardly distinguishes them.
The stem makes them less alike: it subtracts what all frames share, adds each frame's difference from the one before at
equal strength, and mixes neighbours.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from wavespace.models.blocks import UNBOUNDED, Dropout, Scale, as_frames
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec

Positions = Literal["rotary", "learned"]
FURTHEST = 64
"""Learned positions without a window: frames at this distance and further away are as one."""


class Stem(nn.Module):
    """Features and their differences, each normalised, then two convolutions along time: a token for each frame."""

    receptive_field = 3

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(2 * features),
            nn.Conv2d(2 * features, width, (1, 3), padding=(0, 1), bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, (1, 3), padding=(0, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C * F, 1, T)` to `(B, width, 1, T)`."""
        change = F.pad(x.diff(dim=-1), (1, 0))  # the first frame has none
        return self.layers(torch.cat([x, change], 1))


class Rotary(nn.Module):
    """Turn pairs of dims by angles that grow with position: products depend on distance (Su et al., 2021)."""

    rates: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("rates", 10_000 ** -(torch.arange(0, size, 2) / size), persistent=False)  # (size / 2,)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """`(…, L, size)` at positions `(L,)`."""
        angles = positions[:, None] * self.rates  # (L, size / 2)
        cos, sin = angles.cos(), angles.sin()
        a, b = x.float().chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class Attention(nn.Module):
    """Self-attention of each frame to those at most `window` away; its cost is linear in time.

    Frames are cut into blocks of `window`, and each block attends to itself and its two neighbours under a mask of
    exact distance, so that where the blocks begin changes nothing. None attends to all frames.
    """

    def __init__(self, width: int, heads: int, window: int | None, positions: Positions, dropout: float) -> None:
        super().__init__()
        self.heads, self.window, self.dropout = heads, window, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.rotary = Rotary(width // heads) if positions == "rotary" else None
        self.furthest = window or FURTHEST
        distances = 2 * self.furthest + 1
        self.bias = nn.Parameter(torch.zeros(heads, distances)) if positions == "learned" else None

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, width)` to the same."""
        frames = x.shape[1]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if self.window is None:
            time = torch.arange(frames, device=x.device)
            y = self._attend(q, k, v, time, time, None)  # (B, H, T, D)
        else:
            y = self._attend_in_blocks(q, k, v, self.window)
        return self.out(y.transpose(1, 2).flatten(2))

    def _attend_in_blocks(self, q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
        batch, _, frames, _ = q.shape
        blocks = -(-frames // size)
        extra = blocks * size - frames
        q = F.pad(q, (0, 0, 0, extra)).unflatten(2, (blocks, size)).transpose(1, 2).flatten(0, 1)  # (B * n, H, w, D)
        k, v = (
            F.pad(y, (0, 0, size, extra + size)).unfold(2, 3 * size, size).permute(0, 2, 1, 4, 3).flatten(0, 1)
            for y in (k, v)
        )  # (B * n, H, 3 w, D)
        near = torch.arange(3 * size, device=q.device)  # frames from the start of the block before
        own = near[size : 2 * size]
        time = near + size * (torch.arange(blocks, device=q.device)[:, None] - 1)  # (n, 3 w)
        exists = (time >= 0) & (time < frames)
        allowed = ((own[:, None] - near).abs() <= size) & exists[:, None]  # (n, w, 3 w)
        y = self._attend(q, k, v, own, near, allowed.repeat(batch, 1, 1)[:, None])
        return y.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :frames]  # (B, H, T, D)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, own: Tensor, near: Tensor, allowed: Tensor | None) -> Tensor:
        """Queries `(N, H, L, D)` at times `own` on keys `(N, H, S, D)` at times `near`; `allowed` is `(N, 1, L, S)`."""
        mask = allowed
        if self.rotary is not None:
            q, k = self.rotary(q, own), self.rotary(k, near)
        if self.bias is not None:
            distance = (near - own[:, None]).clamp(-self.furthest, self.furthest)  # (L, S)
            mask = self.bias[:, distance + self.furthest].to(q.dtype)  # (H, L, S)
            if allowed is not None:
                mask = torch.where(allowed, mask, float("-inf"))  # (N, H, L, S)
        return F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)


class Layer(nn.Module):
    """Attention and a perceptron, each on normalised input and added to it."""

    def __init__(
        self, width: int, heads: int, hidden: int, window: int | None, positions: Positions, dropout: float
    ) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads, window, positions, dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, width)` to the same."""
        x = x + self.dropout(self.attention(x))
        return x + self.dropout(self.mlp(x))


@validate_settings
class Transformer(nn.Module):
    """Attention over frames of any number; equal wherever in a recording they lie.

    Args:
        width: size of a token.
        layers: of attention and perceptron.
        heads: of attention; they share `width`.
        hidden: width of the perceptrons.
        window: frames on each side that a layer attends to. Null attends to all: memory grows with the square of
            time, and long audio in windows is then not what one pass would give.
        positions: how a layer knows distance: "rotary", or "learned", a number for each head and distance (as Raffel
            et al., 2020). Both know distances alone, as a training crop may lie anywhere. Learned distances end at
            `window`; without one, all beyond 64 frames are as one.
        stem: convolutions and differences in time that make frames less alike; without, a linear map of each frame.
        dropout: share of activations and attention weights that are dropped in training.

    Attributes:
        receptive_field: frames on each side that can change an output frame; without a window all can, and it is 64.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: PositiveInt = 128,
        layers: PositiveInt = 4,
        heads: PositiveInt = 4,
        hidden: PositiveInt = 512,
        window: PositiveInt | None = 32,
        positions: Positions = "rotary",
        stem: bool = True,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width is {width}; it must be an even number for each of the {heads} heads")
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.shape = (out_spec.channels, out_spec.bins)
        features = in_spec.channels * in_spec.bins
        self.stem = Stem(features, width) if stem else nn.Conv2d(features, width, 1)
        self.receptive_field = UNBOUNDED if window is None else layers * window + (Stem.receptive_field if stem else 0)
        self.trunk = nn.Sequential(*(Layer(width, heads, hidden, window, positions, dropout) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_spec.channels * out_spec.bins))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        x = self.stem(as_frames(self.scale.normalize(x)))  # (B, width, 1, T)
        x = self.head(self.trunk(x.squeeze(2).transpose(1, 2)))  # (B, T, C' * F')
        return self.target.denormalize(x.transpose(1, 2).unflatten(1, self.shape))  # (B, C', F', T)
