"""UNet over frequency, or over frequency and time (Ronneberger et al., 2015; on spectrograms Jansson et al., 2017).

With `kernel: [5, 1]` and `pool: frequency` it is one-dimensional: each frame alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wavespace.errors import Incompatible
from wavespace.models.blocks import (
    ConvBlock,
    Norm,
    Rebin,
    Scale,
    Stride,
    bottleneck_of,
    check_kernel,
    norm_layer,
    pad_to,
    pooled_field,
    widths_of,
)
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec


@validate_settings
class UNet(nn.Module):
    """Down `depth` levels and back up, each level joined to its counterpart.

    Args:
        width: channels at full resolution; they grow by `stride` at each level up to `max_width`.
        max_width: channels at most.
        depth: levels.
        skips: how a level joins its counterpart: concatenated, added through a learned sigmoid gate a channel
            (closed to 0.12 at first, so that the deep path learns too), or not at all.
        latent: dims a frame at the narrowest point, a linear map there and back, without skips only; null leaves the
            middle as it is. A code that serves several frames has as many times `latent` dims.
        pool: what is shrunk at each level; an axis of one bin is not.
        stride: by how much.
        kernel: size of the convolutions along frequency and time; `[5, 1]` sees each frame alone.
        norm: kind of normalisation.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: PositiveInt = 16,
        max_width: PositiveInt = 1024,
        depth: PositiveInt = 4,
        skips: Literal["concat", "gated", "none"] = "concat",
        latent: int | None = None,
        pool: Literal["frequency", "both"] = "frequency",
        stride: Stride = 2,
        kernel: tuple[int, int] = (3, 3),
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        check_kernel(kernel)
        if latent is not None and skips != "none":
            raise ValueError(f"latent is {latent}, but skips={skips} carries features around it; set skips=none")
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.skips, self.bins = skips, in_spec.bins
        kernel = (kernel[0] if in_spec.bins > 1 else 1, kernel[1])
        shrink = (stride if in_spec.bins > 1 else 1, stride if pool == "both" else 1)
        self.multiple = (shrink[0] ** depth, shrink[1] ** depth)
        self.step = self.multiple[1]
        self.receptive_field = pooled_field(2 * (kernel[1] // 2), 2 * (kernel[1] // 2), shrink[1], depth)
        widths = widths_of(width, max_width, depth, stride)
        self.stem = ConvBlock(in_spec.channels, widths[0], kernel, norm)
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(narrow, wide, shrink, shrink, bias=False),
                norm_layer(norm, wide),
                nn.GELU(),
                ConvBlock(wide, wide, kernel, norm),
            )
            for narrow, wide in zip(widths, widths[1:])
        )
        self.bottleneck = bottleneck_of(in_spec, widths, shrink, latent, norm)
        self.dims = self.bottleneck.dims if skips == "none" else 0
        up = list(zip(widths[:0:-1], widths[-2::-1]))  # deepest first
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, shrink, shrink) for wide, narrow in up)
        self.join = nn.ModuleList(
            ConvBlock(2 * narrow if skips == "concat" else narrow, narrow, kernel, norm) for _, narrow in up
        )
        gates = [nn.Parameter(torch.full((narrow, 1, 1), -2.0)) for _, narrow in up] if skips == "gated" else []
        self.gates = nn.ParameterList(gates)
        self.rebin = Rebin(in_spec.frequencies, out_spec.frequencies, widths[0])
        self.head = nn.Conv2d(widths[0], out_spec.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        levels = self._down(x)
        deepest = levels.pop()
        if self.skips == "none":
            deepest = self.bottleneck.decode(self.bottleneck.encode(deepest))
        return self._up(deepest, levels)[..., : x.shape[-1]]

    def encode(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to codes `(B, dims, 1, ceil(T / step))`.

        Raises:
            Incompatible: there are skips, so that what comes out depends on more than a code.
        """
        self._need_no_skips()
        return self.bottleneck.encode(self._down(x)[-1])

    def decode(self, code: Tensor) -> Tensor:
        """Codes `(B, dims, 1, t)` to `(B, C', F', t * step)`.

        Raises:
            Incompatible: there are skips.
        """
        self._need_no_skips()
        return self._up(self.bottleneck.decode(code), [])

    def _need_no_skips(self) -> None:
        if self.skips != "none":
            raise Incompatible(
                f"model=unet with skips={self.skips} has no code that holds all of a frame; "
                "use model.skips=none, model=conv1d or model=conv2d"
            )

    def _down(self, x: Tensor) -> list[Tensor]:
        """Each level `(B, W, F / stride**level, …)`, the deepest last."""
        levels = [self.stem(pad_to(self.scale.normalize(x), self.multiple))]
        for down in self.down:
            levels.append(down(levels[-1]))
        return levels

    def _up(self, x: Tensor, levels: list[Tensor]) -> Tensor:
        for level, (up, join) in enumerate(zip(self.up, self.join)):
            x = up(x)
            if self.skips == "concat":
                x = torch.cat([x, levels.pop()], 1)
            elif self.skips == "gated":
                x = x + self.gates[level].sigmoid() * levels.pop()
            x = join(x)
        return self.target.denormalize(self.head(self.rebin(x[:, :, : self.bins])))  # (B, C', F', T)
