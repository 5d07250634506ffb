"""Convolutions over frequency and time, then a recurrent net over time.

After the acoustic models of Hawthorne et al. (2018, "Onsets and Frames") and Kong et al. (2021, "High-resolution piano
transcription"): pooled along frequency only, then bidirectional gated recurrent units. One stack serves all heads here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from wavespace.models.blocks import UNBOUNDED, ConvBlock, Dropout, Norm, Scale, as_frames, norm_layer, pad_to, widths_of
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec


@validate_settings
class CRNN(nn.Module):
    """Local spectral shapes by convolution, their course in time by recurrence.

    The receptive field of the recurrent layers has no bound. They are given whole windows in training; at inference on
    long audio they start at rest at each window's ends, `receptive_field` frames before the first frame that is kept
    and after the last. torch.compile leaves them as they are.

    Args:
        in_spec: features; a single bin is not halved.
        width: channels of the convolutions at full resolution; they double at each level up to `max_width`.
        max_width: channels at most.
        depth: times that frequency is halved.
        hidden: size of the recurrent layers' state in each direction.
        layers: recurrent layers.
        dropout: share of activations that are dropped in training, before and between the recurrent layers.
        norm: kind of normalisation.

    Attributes:
        receptive_field: frames on each side that change the convolutions' output, and 64 for the recurrent layers.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: PositiveInt = 16,
        max_width: PositiveInt = 64,
        depth: PositiveInt = 4,
        hidden: PositiveInt = 128,
        layers: PositiveInt = 2,
        dropout: Dropout = 0.0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.shape = (out_spec.channels, out_spec.bins)
        kernel, pool = ((3, 3), (2, 1)) if in_spec.bins > 1 else ((1, 3), (1, 1))
        self.multiple = (pool[0] ** depth, 1)
        self.receptive_field = 2 * (depth + 1) + UNBOUNDED
        widths = widths_of(width, max_width, depth, 2)
        self.convolutions = nn.Sequential(
            ConvBlock(in_spec.channels, widths[0], kernel, norm),
            *(
                layer
                for narrow, wide in zip(widths, widths[1:])
                for layer in (nn.AvgPool2d(pool), ConvBlock(narrow, wide, kernel, norm))
            ),
        )
        rows = -(-in_spec.bins // self.multiple[0])
        self.project = nn.Sequential(
            nn.Conv2d(widths[-1] * rows, 2 * hidden, 1, bias=False),
            norm_layer(norm, 2 * hidden),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.recurrent = nn.GRU(
            2 * hidden, hidden, layers, batch_first=True, bidirectional=True, dropout=dropout if layers > 1 else 0.0
        )
        self.head = nn.Linear(2 * hidden, out_spec.channels * out_spec.bins)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        x = self.convolutions(pad_to(self.scale.normalize(x), self.multiple))  # (B, W, F / 2**depth, T)
        x = self.project(as_frames(x)).squeeze(2).transpose(1, 2)  # (B, T, 2 * hidden)
        x = self._recur(x)
        return self.target.denormalize(self.head(x).transpose(1, 2).unflatten(1, self.shape))  # (B, C', F', T)

    def _recur(self, x: Tensor) -> Tensor:
        """`(B, T, 2 * hidden)` to the same."""
        if not x.is_meta:
            return self.recurrent(x)[0]
        # The meta device would take it frame by frame; the same products at once have the same shape and FLOPs.
        directions = self.recurrent.all_weights  # forward and backward of each layer
        for pair in zip(directions[::2], directions[1::2]):
            state = x.new_empty(*x.shape[:2], self.recurrent.hidden_size)
            for inward, onward, *_ in pair:
                F.linear(x, inward), F.linear(state, onward)
            x = torch.cat([state, state], -1)
        return x
