"""A convolutional autoencoder over frequency and time, without skips: everything passes the narrow middle."""

from __future__ import annotations

from wavespace.models.autoencoder import ConvAutoencoder
from wavespace.models.blocks import Norm
from wavespace.spec import FeatureSpec


class Conv2D(ConvAutoencoder):
    """Halve frequency `depth` times (and time, while `pool_time`), then double back. A single bin is not halved.

    Args:
        in_spec: features.
        out_spec: what the task needs.
        width: channels at full resolution; they double at each level up to `max_width`.
        max_width: channels at most.
        depth: levels.
        pool_time: also halve time.
        latent: numbers a frame at the narrowest point, a linear map there and back; null leaves the middle as it is.
            With `pool_time` one code serves `2**depth` frames and holds as many times `latent` numbers, so that
            equal settings stay comparable. Each frame is rebuilt from its own code and from its neighbours'.
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
        latent: int | None = None,
        norm: Norm = "batch",
    ) -> None:
        super().__init__(
            in_spec,
            out_spec,
            width=width,
            max_width=max_width,
            depth=depth,
            kernel=(3, 3),
            stride=(2, 2 if pool_time else 1),
            latent=latent,
            norm=norm,
        )
