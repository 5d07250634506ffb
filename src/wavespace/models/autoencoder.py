"""What the convolutional autoencoders share: down, a bottleneck, and up, without skips around it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from wavespace.models.blocks import (
    ConvBlock,
    Norm,
    Rebin,
    Scale,
    as_frames,
    bottleneck_of,
    from_frames,
    pad_to,
    pooled_context,
    precise,
    widths_of,
)
from wavespace.models.pca import PCA
from wavespace.spec import FeatureSpec


class LinearPath(nn.Module):
    """Frames to numbers and back by one matrix each way, in float32: what a net adds its own to.

    `(B, C, F, T)` to codes `(B, latent * step, 1, T / step)`, as `step` frames share a code, to `(B, C', F', T)`. Where
    that is to be what came in, `fit` makes it the principal component analysis of `latent` components.
    """

    def __init__(self, in_spec: FeatureSpec, out_spec: FeatureSpec, latent: int, step: int = 1) -> None:
        super().__init__()
        self.in_spec, self.out_spec, self.latent, self.step = in_spec, out_spec, latent, step
        numbers, window = latent * step, (1, step)
        self.narrow = nn.Conv2d(in_spec.channels * in_spec.bins, numbers, window, window)
        self.widen = nn.ConvTranspose2d(numbers, out_spec.channels * out_spec.bins, window, window)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take mean and components of blocks of `step` frames of features `(B, C, F, T)`.

        Does nothing where something else than the input is asked for.
        """
        if self.in_spec != self.out_spec:
            return
        pca = PCA(self.in_spec, self.out_spec, latent=self.latent, frames=self.step)
        pca.fit(batches)
        basis, mean = pca.basis.to(self.narrow.weight), pca.mean.flatten().to(self.narrow.weight)
        self.narrow.weight.copy_(basis)
        self.widen.weight.copy_(basis)
        for layer, bias in ((self.narrow, -(basis.sum(3)[:, :, 0] @ mean)), (self.widen, mean)):
            assert layer.bias is not None
            layer.bias.copy_(bias)

    def into(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)`, whose rows beyond the spec's are padding, to codes."""
        with _full_precision(x):
            return self.narrow(as_frames(precise(x[:, :, : self.in_spec.bins])))

    def out(self, code: Tensor) -> Tensor:
        """Codes to `(B, C', F', T)`."""
        with _full_precision(code):
            return from_frames(self.widen(precise(code)), self.out_spec.channels, self.out_spec.bins)


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
        linear: the code is a linear map of the frame plus what the net adds to it, and so is what comes out. The net's
            part begins at nothing, and `fit` sets the linear one: training starts at the PCA of the same `latent`.

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
        linear: bool,
    ) -> None:
        super().__init__()
        if min(width, max_width, depth) < 1:
            raise ValueError(f"width is {width}, max_width {max_width} and depth {depth}; each must be at least 1")
        if linear and latent is None:
            raise ValueError("linear is true and latent null; the linear path passes a latent, so set latent")
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
        # Batch norm would take the level of a batch out of codes that hold it as it is.
        self.bottleneck = bottleneck_of(in_spec, widths, stride, latent, "group" if linear else norm)
        self.up = nn.Sequential(
            *(
                layer
                for wide, narrow in zip(widths[:0:-1], widths[-2::-1])
                for layer in (nn.ConvTranspose2d(wide, narrow, stride, stride), ConvBlock(narrow, narrow, kernel, norm))
            )
        )
        self.rebin = Rebin(in_spec.frequencies, out_spec.frequencies, widths[0])
        self.head = nn.Conv2d(widths[0], out_spec.channels, 1)
        self.linear: LinearPath | None = None
        if linear and latent:
            self.linear = LinearPath(in_spec, out_spec, latent, self.step)
            for parameter in (*self.bottleneck.narrow.parameters(), *self.head.parameters()):
                nn.init.zeros_(parameter)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the linear path, if there is one, to the principal components of features `(B, C, F, T)`."""
        if self.linear is not None:
            self.linear.fit(self.scale.into(features) for features in batches)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        return self.decode(self.encode(x))[..., : x.shape[-1]]

    def encode(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to codes `(B, numbers, 1, ceil(T / step))`; numbers is `latent * step`, if that is set."""
        x = pad_to(self.scale.into(x), self.multiple)
        code = self.bottleneck.into(self.down(self.stem(x)))
        return code if self.linear is None else precise(code) + self.linear.into(x)

    def decode(self, code: Tensor) -> Tensor:
        """Codes `(B, numbers, 1, t)` to `(B, C', F', t * step)`."""
        x = self.up(self.bottleneck.out(code))[:, :, : self.bins]  # (B, width, F, t * step)
        x = precise(self.head(self.rebin(x)))
        return self.target.out(x if self.linear is None else x + self.linear.out(code))


def _full_precision(x: Tensor) -> torch.autocast | nullcontext[None]:
    # Half of a code's digits would be decibels. The meta device knows no autocast.
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
