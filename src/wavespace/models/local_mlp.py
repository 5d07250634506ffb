"""A multi-layer perceptron on each frame and its neighbours: a baseline without a longer context."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from wavespace.models.blocks import Dropout, Norm, Scale, as_frames, from_frames, norm_layer
from wavespace.settings import validate_settings
from wavespace.spec import FeatureSpec


@validate_settings
class LocalMLP(nn.Module):
    """Each output frame from `2 * context + 1` frames of features, all of them as one vector.

    Args:
        width: channels of the hidden layers.
        layers: hidden layers, of which the first sees the neighbours.
        context: frames on each side that the first hidden layer sees: the `receptive_field`. With group norm all frames
            of the window change an output frame a little.
        dropout: share of activations that are dropped in training.
        norm: kind of normalisation.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: PositiveInt = 256,
        layers: PositiveInt = 2,
        context: NonNegativeInt = 7,
        dropout: Dropout = 0.0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.scale, self.target = Scale(in_spec), Scale(out_spec)
        self.shape = (out_spec.channels, out_spec.bins)
        self.receptive_field = context
        hidden: list[nn.Module] = []
        for layer in range(layers):
            inputs, reach = (width, 0) if layer else (in_spec.channels * in_spec.bins, context)
            hidden += [
                nn.Conv2d(inputs, width, (1, 2 * reach + 1), padding=(0, reach), bias=False),
                norm_layer(norm, width),
                nn.GELU(),
                nn.Dropout(dropout),
            ]
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Conv2d(width, out_spec.channels * out_spec.bins, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, F, T)` to `(B, C', F', T)`."""
        x = self.hidden(as_frames(self.scale.normalize(x)))  # (B, width, 1, T)
        return self.target.denormalize(from_frames(self.head(x), *self.shape))  # (B, C', F', T)
