"""What every front-end shares: audio to features in float32, whatever the precision around it, and normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Annotated, Any

import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from wavespace.errors import Incompatible
from wavespace.settings import validate_settings
from wavespace.spec import AudioSpec, FeatureSpec, Normalization
from wavespace.units import FULL_SCALE

Bins = Annotated[int, Field(ge=2)]
WindowLength = Annotated[int, Field(ge=2, multiple_of=2)]
"""Of an STFT, in samples."""
Floor = Annotated[float, Field(ge=-200, lt=0)]
"""Level in dB to which lower ones are raised."""

LEAST = 0.01
"""Share of the range of a front-end that a deviation counts as at least: what training audio hardly ever has in a bin
would else read as thousands of deviations when it comes."""


def scaled(audio: Tensor | NDArray[Any]) -> Tensor:
    """Audio of any shape as float32 in -1..1, whether it came as floating point or as int16.

    Raises:
        TypeError: it is neither.
    """
    audio = torch.as_tensor(audio)
    if audio.dtype == torch.int16:
        return audio.float() / FULL_SCALE
    if not audio.is_floating_point():
        raise TypeError(f"audio is {audio.dtype}; it must be floating point in -1..1, or int16")
    return audio.float()


@validate_settings
class FrontEnd(nn.Module):
    """Audio `(B, 1, N)` to features `(B, C, F, T)`, with `T = out_spec.frames(N, in_spec.sample_rate)`.

    A subclass works out its `raw_spec` from `in_spec` and its own keywords, keeps its tables in non-persistent buffers
    (a checkpoint holds none of them), and gives `compute` and, where `invertible`, `waveform`. What comes out is
    normalised, as the keyword `normalize` of each front-end says (and levels below its `floor_db` are raised to that):

    - "none": as it is;
    - "frame": decibels below the loudest value of the frame over all channels and bins, down to the floor, so that
      features are those of the same sound at any level; a frame whose loudest value is no louder than the floor is
      silence, and reads as the floor. Latents are divided by the frame's root mean square;
    - "dataset": less the `mean`, over the `std` of each channel and bin. These are buffers that a checkpoint holds.
      `wavespace train` sets them by `measure` before the first step; until then the mean is 0 and the deviation 1.

    Args:
        in_spec: the audio that comes in.
        raw_spec: what `compute` gives, before normalisation; with "frame", dB are asked for down to twice the floor.
        normalize: what values are relative to.

    Attributes:
        out_spec: the features that go out.
    """

    invertible: bool = False
    context: int = 16
    """Frames of audio on either side that change a frame, at most."""
    unbounded: bool = False
    """A frame depends on all audio before it, and `context` is where that has faded."""
    shown: int = 0
    """Channel whose levels lie at the frequencies of the spec: what a picture of the features draws."""
    mean: Tensor  # (C, F, 1), with normalize="dataset"
    std: Tensor  # (C, F, 1), with normalize="dataset"

    def __init__(self, in_spec: AudioSpec, raw_spec: FeatureSpec, normalize: Normalization = "none") -> None:
        super().__init__()
        self.in_spec, self.raw_spec, self.out_spec = in_spec, raw_spec, raw_spec
        if normalize == "frame":
            self.invertible = False
            # The values that matter of a frame as loud as the floor go down to twice the floor.
            self.raw_spec = replace(raw_spec, low=2 * raw_spec.low) if raw_spec.unit == "dB" else raw_spec
            low, high = (raw_spec.low, 0.0) if raw_spec.unit == "dB" else (-4.0, 4.0)
            self.out_spec = replace(raw_spec, low=low, high=high, normalization=normalize)
        elif normalize == "dataset":
            self.out_spec = replace(raw_spec, unit="standardized", low=-4.0, high=4.0, normalization=normalize)
            self.register_buffer("mean", torch.zeros(raw_spec.channels, raw_spec.bins, 1))
            self.register_buffer("std", torch.ones(raw_spec.channels, raw_spec.bins, 1))

    def forward(self, audio: Tensor | NDArray[Any]) -> Tensor:
        """Features `(B, C, F, T)` float32 of audio `(B, 1, N)`, N >= 1, as `out_spec` says.

        Raises:
            TypeError: the audio is neither floating point in -1..1 nor int16.
            ValueError: it has another shape.
        """
        return self.normalize(self.raw_features(audio))  # (B, C, F, T)

    def raw_features(self, audio: Tensor | NDArray[Any]) -> Tensor:
        """Features `(B, C, F, T)` float32 of audio `(B, 1, N)` before normalisation, computed outside any autocast."""
        audio = scaled(audio)
        if audio.dim() != 3 or audio.shape[1] != 1:
            raise ValueError(
                f"audio has the shape {tuple(audio.shape)}; a front-end takes (batch, 1, samples), mono: "
                "one recording is audio.reshape(1, 1, -1)"
            )
        with _without_autocast(audio.device), _without_tf32(audio.device):
            return self.compute(audio.squeeze(1))  # (B, C, F, T)

    def inverse(self, features: Tensor, samples: int) -> Tensor:
        """Audio `(B, 1, samples)` float32 that has about these features; equal features give equal audio.

        Args:
            features: `(B, C, F, T)` in the unit of `out_spec`.
            samples: length of the audio.

        Raises:
            Incompatible: the front-end has no inverse.
            ValueError: `T` does not belong to that many samples.
        """
        name = type(self).__name__
        if not self.invertible and type(self).invertible:
            raise Incompatible(
                f"{name} with normalize=frame has no inverse, because its features don't say how loud a frame was; "
                "use normalize=none or normalize=dataset"
            )
        if not self.invertible:
            raise Incompatible(
                f"{name} has no inverse, so its features can't be made sound; "
                "use a front-end that has one, such as frontend=log_frequency or frontend=mel"
            )
        frames = self.out_spec.frames(samples, self.in_spec.sample_rate)
        if features.shape[-1] != frames:
            raise ValueError(f"{samples} samples have {frames} frames; the features have {features.shape[-1]}")
        with _without_autocast(features.device), _without_tf32(features.device):
            features = features.float()
            if self.out_spec.normalization == "dataset":
                features = features * self.std + self.mean
            return self.waveform(features, samples).unsqueeze(1)  # (B, 1, N)

    def normalize(self, features: Tensor) -> Tensor:
        """Bring raw features `(B, C, F, T)` to what `out_spec` says."""
        if self.out_spec.normalization == "dataset":
            return (features - self.mean) / self.std
        if self.out_spec.normalization == "none":
            return features
        if self.raw_spec.unit != "dB":
            return features / (features.square().mean((1, 2), keepdim=True) + 1e-10).sqrt()
        low, peak = self.out_spec.low, features.amax((1, 2), keepdim=True)  # (B, 1, 1, T)
        return (features - peak).clamp_min(low).where(peak > low, low)

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """Set `mean` and `std` to those of each channel and bin over audio `(B, 1, N)`, all frames counting alike.

        Moments are float64, and join from batch to batch as Chan, Golub and LeVeque (1979) have it, so that neither
        the size of the batches nor a mean far from zero costs digits. A deviation of less than `LEAST` of the range
        is raised to that.

        Raises:
            ValueError: the front-end is not normalised by dataset, or there is no audio.
        """
        if self.out_spec.normalization != "dataset":
            raise ValueError(f"normalize is {self.out_spec.normalization}; only a front-end with dataset is measured")
        shape = self.mean.shape
        count, mean, squares = 0, torch.zeros(shape).double(), torch.zeros(shape).double()  # (C, F, 1)
        for audio in batches:
            values = self.raw_features(audio).cpu().double()  # (B, C, F, T); not every device has float64
            more = values.shape[0] * values.shape[3]
            average = values.mean((0, 3)).unsqueeze(-1)  # (C, F, 1)
            step, total = average - mean, count + more
            squares += (values - average).square().sum((0, 3)).unsqueeze(-1) + step.square() * (count * more / total)
            mean += step * (more / total)
            count = total
        if not count:
            raise ValueError("there is no audio to measure")
        self.mean.copy_(mean)
        self.std.copy_((squares / count).sqrt().clamp_min(LEAST * (self.raw_spec.high - self.raw_spec.low)))

    def compute(self, audio: Tensor) -> Tensor:
        """Raw features `(B, C, F, T)` of audio `(B, N)` float32, as `raw_spec` says."""
        raise NotImplementedError

    def waveform(self, features: Tensor, samples: int) -> Tensor:
        """Audio `(B, samples)` of raw features `(B, C, F, T)` float32, as `raw_spec` says."""
        raise NotImplementedError


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    # The meta device knows no autocast, and has no precision to lose.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _without_tf32(device: torch.device) -> AbstractContextManager[object]:
    # A compiled graph takes the settings of who calls it.
    return _ieee() if device.type == "cuda" and not torch.compiler.is_compiling() else nullcontext()


@contextmanager
def _ieee() -> Iterator[None]:
    """CUDA without TF32, which keeps 10 bits of a factor, and in which PyTorch convolves by default."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    parts: list[tuple[Any, str, Any]]
    if hasattr(cudnn, "conv"):  # since torch 2.9
        parts = [(part, "fp32_precision", "ieee") for part in (cudnn.conv, cudnn.rnn, matmul)]
    else:
        parts = [(part, "allow_tf32", False) for part in (cudnn, matmul)]
    before = [getattr(part, name) for part, name, _ in parts]
    try:
        for part, name, value in parts:
            setattr(part, name, value)
        yield
    finally:
        for (part, name, _), value in zip(parts, before):
            setattr(part, name, value)
