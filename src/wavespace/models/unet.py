"""UNet over frequency, or over frequency and time (Ronneberger et al., 2015; on spectrograms Jansson et al., 2017)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wavespace.models.blocks import ConvBlock, Norm, Rebin, Scale, norm_layer, pad_to
from wavespace.spec import FeatureSpec


class UNet(nn.Module):
    """Down `depth` levels and back up, each level joined to its counterpart.

    Args:
        in_spec: features.
        out_spec: what the task needs.
        width: channels at full resolution; they double at each level up to `max_width`.
        max_width: channels at most.
        depth: levels.
        skips: how a level joins its counterpart: concatenated, added through a learned sigmoid gate a channel
            (closed to 0.12 at first, so that the deep path learns too), or not at all.
        pool: what is halved at each level; an axis of one bin is not.
        kernel: size of the convolutions along frequency and time; `[5, 1]` sees each frame alone.
        norm: kind of normalisation.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: int = 16,
        max_width: int = 1024,
        depth: int = 4,
        skips: Literal["concat", "gated", "none"] = "concat",
        pool: Literal["frequency", "both"] = "frequency",
        kernel: tuple[int, int] = (3, 3),
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if min(width, max_width, depth) < 1:
            raise ValueError(f"width is {width}, max_width {max_width} and depth {depth}; each must be at least 1")
        if any(size < 1 or size % 2 == 0 for size in kernel):
            raise ValueError(f"kernel is {list(kernel)}; both sizes must be odd, so that input and output align")
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.skips = skips
        stride = (2 if in_spec.bins > 1 else 1, 2 if pool == "both" else 1)
        self.multiple = (stride[0] ** depth, stride[1] ** depth)
        widths = [min(width * 2**level, max_width) for level in range(depth + 1)]
        self.stem = ConvBlock(in_spec.channels, widths[0], kernel, norm)
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(narrow, wide, stride, stride, bias=False),
                norm_layer(norm, wide),
                nn.GELU(),
                ConvBlock(wide, wide, kernel, norm),
            )
            for narrow, wide in zip(widths, widths[1:])
        )
        up = list(zip(widths[:0:-1], widths[-2::-1]))  # deepest first
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, stride, stride) for wide, narrow in up)
        self.join = nn.ModuleList(
            ConvBlock(2 * narrow if skips == "concat" else narrow, narrow, kernel, norm) for _, narrow in up
        )
        gates = [nn.Parameter(torch.full((narrow, 1, 1), -2.0)) for _, narrow in up] if skips == "gated" else []
        self.gates = nn.ParameterList(gates)
        self.rebin = Rebin(in_spec.frequencies, out_spec.frequencies, widths[0])
        self.head = nn.Conv2d(widths[0], out_spec.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        bins, frames = x.shape[2:]
        levels = [self.stem(pad_to(self.scale.into(x), self.multiple))]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()  # (B, width * 2**depth, F / 2**depth, T)
        for level, (up, join) in enumerate(zip(self.up, self.join)):
            x, skip = up(x), levels.pop()
            if self.skips == "concat":
                x = torch.cat([x, skip], 1)
            elif self.skips == "gated":
                x = x + self.gates[level].sigmoid() * skip
            x = join(x)
        x = self.rebin(x[:, :, :bins, :frames])  # (B, width, F', T)
        return self.target.out(self.head(x))  # (B, C', F', T)
