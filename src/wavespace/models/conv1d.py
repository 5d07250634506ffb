"""A convolutional autoencoder over frequency: each frame passes the narrow middle alone."""

from __future__ import annotations

from wavespace.models.autoencoder import ConvAutoencoder
from wavespace.models.blocks import Norm
from wavespace.spec import FeatureSpec


class Conv1D(ConvAutoencoder):
    """Shrink frequency `depth` times, then grow it back; frames are not mixed. A single bin is not shrunk.

    With a `latent` of k numbers it is the non-linear counterpart of a principal component analysis with k components.

    Args:
        in_spec: features.
        out_spec: what the task needs.
        width: channels at full resolution; they grow by `stride` at each level up to `max_width`.
        max_width: channels at most.
        depth: levels.
        stride: by how much each level shrinks frequency.
        kernel: bins that a convolution sees, odd.
        latent: numbers a frame at the narrowest point, a linear map there and back; null leaves the middle as it is.
        norm: kind of normalisation. Group norm, over all frames of a window, mixes frames after all.
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
        max_width: int = 256,
        depth: int = 4,
        stride: int = 2,
        kernel: int = 5,
        latent: int | None = None,
        norm: Norm = "batch",
        linear: bool = False,
    ) -> None:
        if stride < 2:
            raise ValueError(f"stride is {stride}; it must be at least 2")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; it must be odd, so that input and output align")
        super().__init__(
            in_spec,
            out_spec,
            width=width,
            max_width=max_width,
            depth=depth,
            kernel=(kernel, 1),
            stride=(stride, 1),
            latent=latent,
            norm=norm,
            linear=linear,
        )
