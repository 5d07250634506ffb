"""Mel spectrogram in decibels."""

from __future__ import annotations

import numpy as np
from pydantic import PositiveInt

from wavespace.frontends.base import Bins, Floor, WindowLength
from wavespace.frontends.stft import Array, BandSpectrogram, check_overlap, check_range, triangles
from wavespace.settings import validate_settings
from wavespace.spec import AudioSpec, Normalization


@validate_settings
class Mel(BandSpectrogram):
    """Levels in mel bands (Slaney's scale and norm), `(B, 1, bins, T)` in dB.

    Before the logarithm this is `librosa.feature.melspectrogram(pad_mode="constant")` times one constant,
    `(2 / sum(window))^2 * sample_rate / n_fft`. It makes the weights of a band sum to about one, so that levels
    mean what they do in `LogFrequency`.

    Args:
        bins: bands, at least 2.
        fmin: lower edge of the lowest band in Hz.
        fmax: upper edge of the highest band in Hz; None is the Nyquist frequency.
        n_fft: length of the Hann window and the FFT in samples, even.
        hop: samples from frame to frame, at most half of `n_fft`.

    Raises:
        ValueError: a setting is out of range, or a band is so narrow that no FFT bin lies in it.
    """

    def __init__(
        self,
        in_spec: AudioSpec,
        *,
        bins: Bins = 256,
        fmin: float = 0.0,
        fmax: float | None = None,
        n_fft: WindowLength = 4096,
        hop: PositiveInt = 512,
        floor_db: Floor = -80.0,
        normalize: Normalization = "none",
    ) -> None:
        top = check_range(in_spec, fmin, fmax, above_zero=False)
        check_overlap(n_fft, hop)
        edges = mel_to_hz(np.linspace(hz_to_mel(fmin), hz_to_mel(top), bins + 2))
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        weights = triangles(left, centre, right, n_fft, in_spec.sample_rate)
        empty = np.flatnonzero(~weights.any(axis=1))
        if len(empty):
            raise ValueError(
                f"{len(empty)} of {bins} mel bands, the first at {centre[empty[0]]:.0f} Hz, are too narrow to hold "
                f"a bin of n_fft {n_fft}; raise n_fft or lower bins"
            )
        weights *= (2 / (right - left))[:, None] * in_spec.sample_rate / n_fft
        super().__init__(in_spec, centre, weights, hop, floor_db, normalize)


# Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz, logarithmic above.
LINEAR_HZ, LINEAR_MEL = 1000.0, 15.0
LOG_STEP = np.log(6.4) / 27


def hz_to_mel(hz: float) -> float:
    """Mel of a frequency in Hz."""
    if hz < LINEAR_HZ:
        return hz * LINEAR_MEL / LINEAR_HZ
    return float(LINEAR_MEL + np.log(hz / LINEAR_HZ) / LOG_STEP)


def mel_to_hz(mel: Array) -> Array:
    """Frequencies in Hz of mels."""
    above = LINEAR_HZ * np.exp(LOG_STEP * (mel - LINEAR_MEL))
    return np.where(mel < LINEAR_MEL, mel * LINEAR_HZ / LINEAR_MEL, above)
