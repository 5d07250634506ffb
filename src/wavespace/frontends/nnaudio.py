"""nnAudio's convolutions in decibels, whose kernels can learn: constant-Q, and an STFT read at log-spaced frequencies.

K. W. Cheuk, H. Anderson, K. Agres and D. Herremans, "nnAudio" (IEEE Access, 2020). A convolution works out each sample
of each kernel, so where kernels are not to learn, `CQT` and `LogFrequency` give about the same in less time.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from wavespace.frontends.base import Bins, Floor, FrontEnd, WindowLength
from wavespace.frontends.cqt import cqt_axis
from wavespace.frontends.stft import check_overlap, decibel_spec, decibels, log_axis
from wavespace.settings import validate_settings
from wavespace.spec import AudioSpec, Normalization, check_table


@validate_settings
class NnAudioCQT(FrontEnd):
    """nnAudio's `CQT1992v2`, `(B, 1, bins, T)` in dB; the same filters as `CQT`, 0 dB for a full-scale sine.

    Args:
        bins: bins in all, at least 2.
        bins_per_octave: bins to an octave.
        fmin: the lowest bin in Hz.
        hop: samples from frame to frame.
        trainable: kernels are parameters (and part of a checkpoint), and learn within the length they start with.
    """

    def __init__(
        self,
        in_spec: AudioSpec,
        *,
        bins: Bins = 176,
        bins_per_octave: PositiveInt = 24,
        fmin: float = 27.5,
        hop: PositiveInt = 512,
        trainable: bool = False,
        floor_db: Floor = -80.0,
        normalize: Normalization = "none",
    ) -> None:
        frequencies = cqt_axis(in_spec, bins_per_octave, bins, fmin)
        check_table(4 * bins * in_spec.sample_rate / (fmin * (2 ** (1 / bins_per_octave) - 1)))
        super().__init__(in_spec, decibel_spec(in_spec, 1, frequencies, hop, floor_db), normalize)
        from nnAudio.features.cqt import CQT1992v2  # costs as much time as torch

        self.layer = CQT1992v2(
            sr=in_spec.sample_rate,
            hop_length=hop,
            fmin=fmin,
            n_bins=bins,
            bins_per_octave=bins_per_octave,
            pad_mode="constant",
            trainable=trainable,
            output_format="Complex",
            verbose=False,
        )
        _keep_out_of_checkpoints(self.layer)
        if trainable:
            for part in ("cqt_kernels_real", "cqt_kernels_imag"):
                register_parametrization(self.layer, part, Windowed(self.layer.lenghts, self.layer.kernel_width))

    def compute(self, audio: Tensor) -> Tensor:
        """Levels `(B, 1, F, T)` in dB of audio `(B, N)`."""
        parts = self.layer(audio, normalization_type="wrap")  # (B, F, T, 2)
        return decibels(parts.square().sum(-1), self.raw_spec.low).unsqueeze(1)  # (B, 1, F, T)


@validate_settings
class NnAudioSTFT(FrontEnd):
    """nnAudio's `STFT` at frequencies evenly spaced in log frequency, `(B, 1, bins, T)` in dB.

    Every bin is a sine of its own frequency under the same Hann window, 0 dB for a full-scale sine. Where bins lie
    further apart than the window's main lobe (4 / n_fft of the sample rate), a sine between two is not seen;
    `LogFrequency` averages over such gaps.

    Args:
        bins: frequencies, at least 2.
        fmin: the lowest in Hz.
        fmax: the highest in Hz; None is the Nyquist frequency.
        n_fft: length of the Hann window in samples, even.
        hop: samples from frame to frame, at most half of `n_fft`.
        trainable: kernels are parameters (and part of a checkpoint), and learn.
    """

    def __init__(
        self,
        in_spec: AudioSpec,
        *,
        bins: Bins = 256,
        fmin: float = 50.0,
        fmax: float | None = None,
        n_fft: WindowLength = 2048,
        hop: PositiveInt = 512,
        trainable: bool = False,
        floor_db: Floor = -80.0,
        normalize: Normalization = "none",
    ) -> None:
        check_overlap(n_fft, hop)
        frequencies = log_axis(in_spec, bins, fmin, fmax)
        check_table(4 * bins * n_fft)
        super().__init__(in_spec, decibel_spec(in_spec, 1, frequencies, hop, floor_db), normalize)
        from nnAudio.features.stft import STFT  # costs as much time as torch

        self.layer = STFT(
            n_fft=n_fft,
            freq_bins=bins,
            hop_length=hop,
            freq_scale="log",
            pad_mode="constant",
            fmin=fmin,
            fmax=fmin * float(frequencies[-1] / fmin) ** (bins / (bins - 1)),  # one step above nnAudio's last bin
            sr=in_spec.sample_rate,
            trainable=trainable,
            output_format="Complex",
            verbose=False,
        )
        _keep_out_of_checkpoints(self.layer)
        self.gain = 4 / n_fft  # a periodic Hann window sums to n_fft / 2

    def compute(self, audio: Tensor) -> Tensor:
        """Levels `(B, 1, F, T)` in dB of audio `(B, N)`."""
        parts = self.gain * self.layer(audio)  # (B, F, T, 2)
        return decibels(parts.square().sum(-1), self.raw_spec.low).unsqueeze(1)  # (B, 1, F, T)


class Windowed(nn.Module):
    """A learned kernel of unit height to the one that `CQT1992v2` convolves with: of unit sum, and zero outside.

    nnAudio's kernels sum to one, so the samples of a long one are a ten-thousandth, and all are stored in the length
    of the longest. Adam moves each weight by about the learning rate: the first step would bury them.

    Args:
        lengths: of each kernel in samples, `(F,)`.
        width: samples in which they are stored.
    """

    scale: Tensor  # (F, 1, width)

    def __init__(self, lengths: Tensor, width: int) -> None:
        super().__init__()
        length = lengths[:, None]  # (F, 1)
        before = torch.arange(width, device=lengths.device) - width // 2 + (length / 2).ceil()  # (F, width)
        inside = (before >= 0) & (before < length)
        self.register_buffer("scale", (2 / length * inside).unsqueeze(1), persistent=False)

    def forward(self, learned: Tensor) -> Tensor:
        """`(F, 1, width)` to the same."""
        return learned * self.scale

    def right_inverse(self, kernel: Tensor) -> Tensor:
        """What to start from, so that `forward` gives this kernel."""
        return kernel / self.scale.where(self.scale > 0, 1)


def _keep_out_of_checkpoints(layer: nn.Module) -> None:
    """Make a layer's buffers non-persistent."""
    for name, table in list(layer.named_buffers(recurse=False)):
        layer.register_buffer(name, table, persistent=False)
