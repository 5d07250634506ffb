"""A convolutional autoencoder over frequency and time, without skips: everything passes the narrow middle."""

from __future__ import annotations

from wavespace.models.autoencoder import ConvAutoencoder
from wavespace.models.blocks import Norm
from wavespace.spec import FeatureSpec


class Conv2D(ConvAutoencoder):
    """Shrink frequency (and, with `pool_time`, halve time) `depth` times, then grow back. A single bin is not shrunk.

    Args:
        in_spec: features.
        out_spec: what the task needs.
        width: channels at full resolution; they grow by `stride` at each level up to `max_width`.
        max_width: channels at most.
        depth: levels.
        stride: by how much each level shrinks frequency.
        kernel: size of the convolutions along frequency and time, odd.
        pool_time: also halve time.
        latent: numbers a frame at the narrowest point, a linear map there and back; null leaves the middle as it is.
            With `pool_time` one code serves `2**depth` frames and holds as many times `latent` numbers, so that
            equal settings stay comparable. Each frame is rebuilt from its own code and from its neighbours'.
        norm: kind of normalisation.
        linear: beside the convolutions a linear map passes the same latent, and training starts as the PCA of it.

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
        stride: int = 2,
        kernel: tuple[int, int] = (3, 3),
        pool_time: bool = False,
        latent: int | None = None,
        norm: Norm = "batch",
        linear: bool = False,
    ) -> None:
        if stride < 2:
            raise ValueError(f"stride is {stride}; it must be at least 2")
        if any(size < 1 or size % 2 == 0 for size in kernel):
            raise ValueError(f"kernel is {list(kernel)}; both sizes must be odd, so that input and output align")
        super().__init__(
            in_spec,
            out_spec,
            width=width,
            max_width=max_width,
            depth=depth,
            kernel=kernel,
            stride=(stride, 2 if pool_time else 1),
            latent=latent,
            norm=norm,
            linear=linear,
        )
