"""A multi-layer perceptron on each frame and its neighbours: what can be told without a longer view."""

from __future__ import annotations

from torch import Tensor, nn

from wavespace.models.blocks import Norm, Scale, as_frames, check_dropout, check_least, from_frames, norm_layer
from wavespace.spec import FeatureSpec


class LocalMLP(nn.Module):
    """Each output frame from `2 * context + 1` frames of features, all of them as one vector.

    Args:
        width: channels of the hidden layers.
        layers: hidden layers, of which the first sees the neighbours.
        context: frames on each side that the first hidden layer sees: the `receptive_field`. With group norm all frames
            of the window change an output frame a little.
        dropout: share of activations that are dropped in training.
        norm: kind of normalisation.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        in_spec: FeatureSpec,
        out_spec: FeatureSpec,
        *,
        width: int = 256,
        layers: int = 2,
        context: int = 7,
        dropout: float = 0.0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        check_least(1, width=width, layers=layers)
        check_least(0, context=context)
        check_dropout(dropout)
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
