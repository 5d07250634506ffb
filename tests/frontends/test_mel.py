"""The mel spectrogram, against librosa; what it shares with the family is in test_stft."""

from __future__ import annotations

from typing import Any

import librosa
import numpy as np
import pytest
import torch

from wavespace.frontends.mel import Mel, hz_to_mel, mel_to_hz
from wavespace.spec import AudioSpec


@pytest.mark.parametrize(
    ("sample_rate", "settings"),
    [
        (44100, {}),
        (22050, {"bins": 229, "fmin": 30.0, "fmax": 8000.0, "n_fft": 2048 * 2, "hop": 441}),
        (16000, {"bins": 80, "fmax": 7600.0, "n_fft": 1024, "hop": 160}),
    ],
)
def test_mel_equals_librosa(sample_rate: int, settings: dict[str, Any]) -> None:
    audio = 0.1 * torch.randn(1, 1, sample_rate, generator=torch.Generator().manual_seed(5))
    front_end = Mel(AudioSpec(sample_rate, 1.0), **settings)
    given = {"bins": 256, "fmin": 0.0, "fmax": None, "n_fft": 4096, "hop": 512} | settings
    theirs = librosa.feature.melspectrogram(
        y=audio[0, 0].double().numpy(),
        sr=sample_rate,
        n_mels=given["bins"],
        fmin=given["fmin"],
        fmax=given["fmax"],
        n_fft=given["n_fft"],
        hop_length=given["hop"],
        pad_mode="constant",
        dtype=np.float64,
    )
    # A periodic Hann window sums to n_fft / 2.
    theirs *= (4 / given["n_fft"]) ** 2 * sample_rate / given["n_fft"]
    linear = front_end.bands(audio[:, 0])[0].numpy()
    assert np.linalg.norm(linear - theirs) <= 1e-6 * np.linalg.norm(theirs)
    np.testing.assert_allclose(linear, theirs, rtol=1e-5)
    decibels = np.maximum(10 * np.log10(theirs), -80)
    np.testing.assert_allclose(front_end(audio)[0, 0].numpy(), decibels, atol=1e-4)


def test_mel_scale_equals_librosa() -> None:
    hz = np.array([0.0, 20.0, 440.0, 999.9, 1000.0, 1000.1, 8000.0, 22050.0])
    mel = np.array([hz_to_mel(f) for f in hz])
    np.testing.assert_allclose(mel, librosa.hz_to_mel(hz), rtol=1e-12)
    np.testing.assert_allclose(mel_to_hz(mel), hz, rtol=1e-12)
    np.testing.assert_allclose(
        Mel(AudioSpec(44100, 1.0)).out_spec.frequencies, librosa.mel_frequencies(n_mels=258, fmax=22050)[1:-1]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": 1}, "bins = 1"),
        ({"fmin": -1.0}, "0 <= fmin < fmax <= 22050"),
        ({"fmax": 30_000.0}, "fmax 30000 Hz"),
        ({"n_fft": 1024}, "of 256 mel bands, the first at .* Hz, are too narrow to hold a bin of n_fft 1024"),
    ],
)
def test_mel_refuses_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mel(AudioSpec(44100, 1.0), **settings)
