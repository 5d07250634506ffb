"""What the convolutional autoencoders share: down, a bottleneck, and up, without skips around it."""

from __future__ import annotations

from torch import Tensor, nn

from wavespace.models.blocks import (
    ConvBlock,
    Norm,
    Rebin,
    Scale,
    bottleneck_of,
    pad_to,
    pooled_context,
    precise,
    widths_of,
)
from wavespace.spec import FeatureSpec


class ConvAutoencoder(nn.Module):
    """Shrink by `stride` at each of `depth` levels while channels grow by its first number, then back.

    Args:
        in_spec: features; a single bin is not shrunk, and kernels then see it alone.
        out_spec: what the task needs.
        width: channels at full resolution.
        max_width: channels at most.
        depth: levels.
        kernel: (frequency, time) size of the convolutions, odd.
        stride: (frequency, time) by which each level shrinks.
        latent: numbers a frame at the narrowest point; None leaves the middle as it is.
        norm: kind of normalisation.

    Attributes:
        step: frames that share a code.
        context: frames on each side that can change an output frame; with group norm, all of the window a little.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: int,
        max_width: int,
        depth: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        latent: int | None,
        norm: Norm,
    ) -> None:
        super().__init__()
        if min(width, max_width, depth) < 1:
            raise ValueError(f"width is {width}, max_width {max_width} and depth {depth}; each must be at least 1")
        growth = stride[0]
        if in_spec.bins == 1:
            kernel, stride = (1, kernel[1]), (1, stride[1])
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.bins = in_spec.bins
        self.multiple = (stride[0] ** depth, stride[1] ** depth)
        self.step = self.multiple[1]
        self.context = pooled_context(kernel[1] // 2, 2 * (kernel[1] // 2), stride[1], depth)
        widths = widths_of(width, max_width, depth, growth)
        self.stem = nn.Conv2d(in_spec.channels, widths[0], kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        self.down = nn.Sequential(
            *(
                layer
                for narrow, wide in zip(widths, widths[1:])
                for layer in (nn.Conv2d(narrow, wide, stride, stride), ConvBlock(wide, wide, kernel, norm))
            )
        )
        self.bottleneck = bottleneck_of(in_spec, widths, stride, latent, norm)
        self.up = nn.Sequential(
            *(
                layer
                for wide, narrow in zip(widths[:0:-1], widths[-2::-1])
                for layer in (nn.ConvTranspose2d(wide, narrow, stride, stride), ConvBlock(narrow, narrow, kernel, norm))
            )
        )
        self.rebin = Rebin(in_spec.frequencies, out_spec.frequencies, widths[0])
        self.head = nn.Conv2d(widths[0], out_spec.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        return self.decode(self.encode(x))[..., : x.shape[-1]]

    def encode(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to codes `(B, numbers, 1, ceil(T / step))`; numbers is `latent * step`, if that is set."""
        return self.bottleneck.into(self.down(self.stem(pad_to(self.scale.into(x), self.multiple))))

    def decode(self, code: Tensor) -> Tensor:
        """Codes `(B, numbers, 1, t)` to `(B, C', F', t * step)`."""
        x = self.up(self.bottleneck.out(code))[:, :, : self.bins]  # (B, width, F, t * step)
        return self.target.out(precise(self.head(self.rebin(x))))
