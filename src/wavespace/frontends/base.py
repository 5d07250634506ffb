"""What every front-end shares: audio to features in float32, whatever the precision around it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from wavespace.errors import Incompatible
from wavespace.spec import AudioSpec, FeatureSpec


class FrontEnd(nn.Module):
    """Audio `(B, 1, N)` to features `(B, C, F, T)`, with `T = out_spec.frames(N, in_spec.sample_rate)`.

    A subclass works out `out_spec` from `in_spec` and its own keywords, keeps its tables in non-persistent
    buffers (a checkpoint holds none of them), and gives `features` and, where `invertible`, `waveform`.

    Args:
        in_spec: the audio that comes in.
        out_spec: the features that go out.
    """

    invertible: bool = False
    context: int = 16
    """Frames of audio on either side that a frame hears, at most."""

    def __init__(self, in_spec: AudioSpec, out_spec: FeatureSpec) -> None:
        super().__init__()
        self.in_spec, self.out_spec = in_spec, out_spec

    def forward(self, audio: Tensor) -> Tensor:
        """Features `(B, C, F, T)` float32 of audio `(B, 1, N)`, N >= 1, computed outside any autocast."""
        with _without_autocast(audio.device):
            return self.features(audio.squeeze(1).float())  # (B, C, F, T)

    def inverse(self, features: Tensor, samples: int) -> Tensor:
        """Audio `(B, 1, samples)` float32 that has about these features; equal features give equal audio.

        Args:
            features: `(B, C, F, T)` in the unit of `out_spec`.
            samples: length of the audio.

        Raises:
            Incompatible: the front-end has no inverse.
            ValueError: `T` does not belong to that many samples.
        """
        if not self.invertible:
            raise Incompatible(
                f"{type(self).__name__} has no inverse, so its features can't be heard; "
                "use a front-end that has one, such as frontend=log_frequency or frontend=mel"
            )
        frames = self.out_spec.frames(samples, self.in_spec.sample_rate)
        if features.shape[-1] != frames:
            raise ValueError(f"{samples} samples have {frames} frames; the features have {features.shape[-1]}")
        with _without_autocast(features.device):
            return self.waveform(features.float(), samples).unsqueeze(1)  # (B, 1, N)

    def features(self, audio: Tensor) -> Tensor:
        """Features `(B, C, F, T)` of audio `(B, N)` float32."""
        raise NotImplementedError

    def waveform(self, features: Tensor, samples: int) -> Tensor:
        """Audio `(B, samples)` of features `(B, C, F, T)` float32."""
        raise NotImplementedError


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    # The meta device knows no autocast, and has no precision to lose.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
