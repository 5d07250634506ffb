"""An autoencoder of dense layers: all bins of a frame at once, and of the few frames around it."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from wavespace.models.autoencoder import LinearPath
from wavespace.models.blocks import (
    BlockSize,
    Norm,
    Scale,
    as_frames,
    from_frames,
    in_blocks,
    norm_layer,
    upcast,
    zero_init,
)
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec


@validate_settings
class Dense(nn.Module):
    """A linear map to the code and back, and beside each way a hidden layer that adds what no linear map can give.

    The hidden layers add nothing at first, and `fit` sets the linear part: training starts at the PCA of the same
    `latent`. Dense products over whole frames do more in a second of a CPU than convolutions along frequency.

    Args:
        latent: dims a frame of the code.
        frames: consecutive ones that share a code of `latent * frames` dims.
        hidden: units on each way.
        reach: frames on each side that change a code beside its own, and codes on each side from which frames are
            rebuilt; with 0 each code stands for itself.
        norm: kind of normalisation. Group norm, over all frames of a window, mixes frames after all.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        latent: PositiveInt = 16,
        frames: BlockSize = 1,
        hidden: PositiveInt = 256,
        reach: NonNegativeInt = 1,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        size = in_spec.channels * in_spec.bins
        if latent > size:
            raise ValueError(f"latent is {latent}; a frame has {size} dims")
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.channels, self.bins = out_spec.channels, out_spec.bins
        self.dims, self.step = latent * frames, frames
        self.receptive_field = frames - 1 + reach + reach * frames
        self.linear = LinearPath(in_spec, out_spec, latent, frames)
        self.into = nn.Sequential(
            nn.Conv2d(size, hidden, (1, frames + 2 * reach), (1, frames), (0, reach), bias=False),
            norm_layer(norm, hidden),
            nn.GELU(),
            nn.Conv2d(hidden, self.dims, 1),
        )  # (B, C * F, 1, T) to (B, dims, 1, T / frames)
        self.out = nn.Sequential(
            nn.Conv2d(self.dims, hidden, (1, 2 * reach + 1), padding=(0, reach), bias=False),
            norm_layer(norm, hidden),
            nn.GELU(),
            nn.ConvTranspose2d(hidden, self.channels * self.bins, (1, frames), (1, frames)),
        )  # back to (B, C' * F', 1, T)
        zero_init(self.into[-1], self.out[-1])

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the linear part to the principal components of features `(B, C, F, T)`."""
        self.linear.fit(self.scale.normalize(features) for features in batches)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        return self.decode(self.encode(x))[..., : x.shape[-1]]

    def encode(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to codes `(B, dims, 1, ceil(T / step))`."""
        x = in_blocks(self.scale.normalize(x), self.step)
        return self.linear.encode(x) + upcast(self.into(as_frames(x)))

    def decode(self, code: Tensor) -> Tensor:
        """Codes `(B, dims, 1, t)` to `(B, C', F', t * step)`."""
        added = from_frames(self.out(code), self.channels, self.bins)
        return self.target.denormalize(self.linear.decode(code) + added)
