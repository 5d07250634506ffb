"""Front-ends against `torch.stft` with the same window, on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Row, compare

from wavespace.frontends.mel import Mel
from wavespace.frontends.stft import LogFrequency
from wavespace.spec import AudioSpec


def rows() -> Iterator[Row]:
    """16 windows of 2 s at 44.1 kHz, n_fft 4096, hop 512, 256 bands."""
    torch.set_num_threads(1)
    spec = AudioSpec(44_100, 2.0)
    audio = torch.randn(16, 1, spec.samples)
    window = torch.hann_window(4096)

    def bare() -> None:
        torch.stft(audio[:, 0], 4096, 512, window=window, pad_mode="constant", return_complex=True).abs().square()

    for frontend in (LogFrequency(spec), Mel(spec)):
        yield compare(
            f"{type(frontend).__name__} in dB", lambda f=frontend: f(audio), bare, "torch.stft power", 1 / 0.9
        )
