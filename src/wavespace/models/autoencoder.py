"""A convolutional autoencoder, and the linear path that a net may have beside its own."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wavespace.models.blocks import (
    ConvBlock,
    Norm,
    Rebin,
    Scale,
    Stride,
    as_frames,
    bottleneck_of,
    check_kernel,
    from_frames,
    pad_to,
    pooled_field,
    upcast,
    widths_of,
    zero_init,
)
from wavespace.models.pca import PCA
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec


class LinearPath(nn.Module):
    """Map frames to codes and back by one matrix each way, in float32: what a net adds its own to.

    `(B, C, F, T)` to codes `(B, latent * step, 1, T / step)`, as `step` frames share a code, to `(B, C', F', T)`. Where
    that is to be what came in, `fit` makes it the principal component analysis of `latent` components.
    """

    def __init__(self, in_spec: FeatureSpec, out_spec: FeatureSpec, latent: int, step: int) -> None:
        super().__init__()
        self.in_spec, self.out_spec, self.latent, self.step = in_spec, out_spec, latent, step
        window = (1, step)
        self.narrow = nn.Conv2d(in_spec.channels * in_spec.bins, latent * step, window, window)
        self.widen = nn.ConvTranspose2d(latent * step, out_spec.channels * out_spec.bins, window, window)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take mean and components of blocks of `step` frames of features `(B, C, F, T)`.

        Does nothing where something else than the input is asked for.
        """
        if self.in_spec != self.out_spec:
            return
        pca = PCA(self.in_spec, self.out_spec, latent=self.latent, frames=self.step)  # type: ignore[arg-type]
        pca.fit(batches)
        basis, mean = pca.basis.to(self.narrow.weight), pca.mean.flatten().to(self.narrow.weight)
        self.narrow.weight.copy_(basis)
        self.widen.weight.copy_(basis)
        for layer, bias in ((self.narrow, -(basis.sum(3)[:, :, 0] @ mean)), (self.widen, mean)):
            assert layer.bias is not None
            layer.bias.copy_(bias)

    def encode(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)`, whose rows beyond the spec's are padding, to codes."""
        with _full_precision(x):
            return self.narrow(as_frames(upcast(x[:, :, : self.in_spec.bins])))

    def decode(self, code: Tensor) -> Tensor:
        """Codes to `(B, C', F', T)`."""
        with _full_precision(code):
            return from_frames(self.widen(upcast(code)), self.out_spec.channels, self.out_spec.bins)


@validate_settings
class ConvAutoencoder(nn.Module):
    """Shrink frequency (and, with `pool_time`, halve time) `depth` times, then grow back, without skips.

    With a `latent` of k dims and a kernel that sees each frame alone it is the non-linear counterpart of a principal
    component analysis with k components.

    Args:
        in_spec: features; a single bin is not shrunk, and kernels then see it alone.
        width: channels at full resolution; they grow by `stride` at each level up to `max_width`.
        max_width: channels at most.
        depth: levels.
        stride: by how much each level shrinks frequency.
        kernel: size of the convolutions along frequency and time, odd; one number: along frequency, each frame alone.
        pool_time: also halve time.
        latent: dims a frame at the narrowest point, a linear map there and back; null leaves the middle as it is.
            With `pool_time` one code serves `2**depth` frames and has as many times `latent` dims, so that equal
            settings stay comparable. Each frame is rebuilt from its own code and from its neighbours'.
        norm: kind of normalisation. Group norm, over all frames of a window, mixes frames whatever the kernel.
        linear: the code is a linear map of the frame plus what the net adds to it, and so is what comes out. The net's
            part begins at nothing, and `fit` sets the linear one: training starts at the PCA of the same `latent`.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: PositiveInt = 16,
        max_width: PositiveInt = 64,
        depth: PositiveInt = 4,
        stride: Stride = 2,
        kernel: int | tuple[int, int] = (3, 3),
        pool_time: bool = False,
        latent: int | None = None,
        norm: Norm = "batch",
        linear: bool = False,
    ) -> None:
        super().__init__()
        check_kernel(kernel)
        if linear and latent is None:
            raise ValueError("linear is true and latent null; the linear path passes a latent, so set latent")
        rows, frames = (kernel, 1) if isinstance(kernel, int) else kernel
        size, shrink = (rows, frames), (stride, 2 if pool_time else 1)
        if in_spec.bins == 1:
            size, shrink = (1, frames), (1, shrink[1])
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.bins = in_spec.bins
        self.multiple = (shrink[0] ** depth, shrink[1] ** depth)
        self.step = self.multiple[1]
        self.receptive_field = pooled_field(frames // 2, 2 * (frames // 2), shrink[1], depth)
        widths = widths_of(width, max_width, depth, stride)
        self.stem = nn.Conv2d(in_spec.channels, widths[0], size, padding=(size[0] // 2, size[1] // 2))
        self.down = nn.Sequential(
            *(
                layer
                for narrow, wide in zip(widths, widths[1:])
                for layer in (nn.Conv2d(narrow, wide, shrink, shrink), ConvBlock(wide, wide, size, norm))
            )
        )
        # Batch norm would take the level of a batch out of codes that hold it as it is.
        self.bottleneck = bottleneck_of(in_spec, widths, shrink, latent, "group" if linear else norm)
        self.dims = self.bottleneck.dims
        self.up = nn.Sequential(
            *(
                layer
                for wide, narrow in zip(widths[:0:-1], widths[-2::-1])
                for layer in (nn.ConvTranspose2d(wide, narrow, shrink, shrink), ConvBlock(narrow, narrow, size, norm))
            )
        )
        self.rebin = Rebin(in_spec.frequencies, out_spec.frequencies, widths[0])
        self.head = nn.Conv2d(widths[0], out_spec.channels, 1)
        self.linear: LinearPath | None = None
        if linear and latent:
            self.linear = LinearPath(in_spec, out_spec, latent, self.step)
            zero_init(self.bottleneck.narrow, self.head)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the linear path, if there is one, to the principal components of features `(B, C, F, T)`."""
        if self.linear is not None:
            self.linear.fit(self.scale.normalize(features) for features in batches)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        return self.decode(self.encode(x))[..., : x.shape[-1]]

    def encode(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to codes `(B, dims, 1, ceil(T / step))`."""
        x = pad_to(self.scale.normalize(x), self.multiple)
        code = self.bottleneck.encode(self.down(self.stem(x)))
        return code if self.linear is None else upcast(code) + self.linear.encode(x)

    def decode(self, code: Tensor) -> Tensor:
        """Codes `(B, dims, 1, t)` to `(B, C', F', t * step)`."""
        x = self.up(self.bottleneck.decode(code))[:, :, : self.bins]  # (B, width, F, t * step)
        x = self.head(self.rebin(x))
        return self.target.denormalize(x if self.linear is None else x + self.linear.decode(code))


def _full_precision(x: Tensor) -> torch.autocast | nullcontext[None]:
    # What half precision rounds off a code would be decibels. The meta device knows no autocast.
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
