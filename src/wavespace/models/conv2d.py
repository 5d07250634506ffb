"""A convolutional autoencoder over frequency and time, without skips: everything passes the narrow middle."""

from __future__ import annotations

from torch import Tensor, nn

from wavespace.models.blocks import ConvBlock, Norm, Rebin, Scale, pad_to
from wavespace.spec import FeatureSpec


class Conv2D(nn.Module):
    """Halve frequency `depth` times (and time, while `pool_time`), then double back. A single bin is not halved.

    Args:
        in_spec: features.
        out_spec: what the task needs.
        width: channels at full resolution; they double at each level up to `max_width`.
        max_width: channels at most.
        depth: levels.
        pool_time: also halve time.
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
        max_width: int = 64,
        depth: int = 4,
        pool_time: bool = False,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if min(width, max_width, depth) < 1:
            raise ValueError(f"width is {width}, max_width {max_width} and depth {depth}; each must be at least 1")
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        stride = (2 if in_spec.bins > 1 else 1, 2 if pool_time else 1)
        self.multiple = (stride[0] ** depth, stride[1] ** depth)
        widths = [min(width * 2**level, max_width) for level in range(depth + 1)]
        self.stem = nn.Conv2d(in_spec.channels, widths[0], 3, padding=1)
        self.down = nn.Sequential(
            *(
                layer
                for narrow, wide in zip(widths, widths[1:])
                for layer in (nn.Conv2d(narrow, wide, stride, stride), ConvBlock(wide, wide, (3, 3), norm))
            )
        )
        self.up = nn.Sequential(
            *(
                layer
                for wide, narrow in zip(widths[:0:-1], widths[-2::-1])
                for layer in (nn.ConvTranspose2d(wide, narrow, stride, stride), ConvBlock(narrow, narrow, (3, 3), norm))
            )
        )
        self.rebin = Rebin(in_spec.frequencies, out_spec.frequencies, widths[0])
        self.head = nn.Conv2d(widths[0], out_spec.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        bins, frames = x.shape[2:]
        x = pad_to(self.scale.into(x), self.multiple)
        x = self.up(self.down(self.stem(x)))[:, :, :bins, :frames]  # (B, width, F, T)
        return self.target.out(self.head(self.rebin(x)))  # (B, C', F', T)
