"""A dilated temporal convolutional network (Bai, Kolter and Koltun, 2018), which looks both ways.

Each frame's features become one vector, and what follows runs along time alone.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, nn

from wavespace.models.blocks import Dropout, Norm, Scale, as_frames, check_kernel, from_frames, norm_layer
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec


class Dilated(nn.Module):
    """Dilated convolution along time, norm, GELU, dropout, and a linear map, added to its input."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        same = (0, dilation * (kernel // 2))
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, (1, kernel), padding=same, dilation=(1, dilation), bias=False),
            norm_layer(norm, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, width, 1, T)` to the same."""
        return x + self.layers(x)


@validate_settings
class TCN(nn.Module):
    """Residual convolutions along time whose dilation doubles at each layer: 1, 2, 4, …

    Args:
        width: channels of the residual layers.
        layers: residual layers.
        kernel: frames that a convolution sees, odd.
        dropout: share of activations that are dropped in training.
        norm: kind of normalisation.

    Attributes:
        receptive_field: frames on each side that can change an output frame, `kernel // 2 * (2**layers - 1)`; with
            group norm, all a little.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: PositiveInt = 128,
        layers: PositiveInt = 4,
        kernel: int = 5,
        dropout: Dropout = 0.0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        check_kernel(kernel)
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.shape = (out_spec.channels, out_spec.bins)
        self.receptive_field = kernel // 2 * (2**layers - 1)
        self.stem = nn.Conv2d(in_spec.channels * in_spec.bins, width, 1)
        self.trunk = nn.Sequential(*(Dilated(width, kernel, 2**layer, dropout, norm) for layer in range(layers)))
        self.head = nn.Sequential(
            norm_layer(norm, width), nn.GELU(), nn.Conv2d(width, out_spec.channels * out_spec.bins, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        x = self.trunk(self.stem(as_frames(self.scale.normalize(x))))  # (B, width, 1, T)
        return self.target.denormalize(from_frames(self.head(x), *self.shape))  # (B, C', F', T)
