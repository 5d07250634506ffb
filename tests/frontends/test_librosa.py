"""Front-ends and the distance of sounds against librosa, in one file: its first call compiles for half a minute."""

from __future__ import annotations

from typing import Any

import librosa
import numpy as np
import pytest
import torch
from scipy.signal import get_window
from test_cqt import HALF, error, magnitude, noise

from wavespace.frontends.cqt import CQT
from wavespace.frontends.mel import Mel, hz_to_mel, mel_to_hz
from wavespace.frontends.stft import Bands
from wavespace.spec import AudioSpec
from wavespace.tasks.reconstruction import SCALES, multi_scale_distance


def test_stft_power_equals_librosa() -> None:
    audio = noise(1, 30_000)
    ours = Bands(np.eye(1025), hop=300)(audio)[0].numpy()
    theirs = np.abs(librosa.stft(audio[0].double().numpy(), n_fft=2048, hop_length=300, pad_mode="constant")) ** 2
    theirs *= (2 / get_window("hann", 2048).sum()) ** 2
    assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * theirs.max())


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


@pytest.mark.parametrize("gamma", [0.0, 20.0])
def test_cqt_is_near_librosa(gamma: float) -> None:
    """Its windows are 1.5 % longer (another quality factor), and its resampling is less exact than the definition."""
    front_end, audio = CQT(HALF, gamma=gamma), noise(1, 1, 60_000)
    f = np.array(front_end.out_spec.frequencies)
    theirs = librosa.vqt(
        audio[0, 0].numpy(),
        sr=22050,
        hop_length=512,
        fmin=27.5,
        n_bins=176,
        bins_per_octave=24,
        gamma=gamma,
        pad_mode="constant",
    )
    ratio = 2 ** (2 / 24)
    lengths, _ = librosa.filters.wavelet_lengths(
        freqs=f, sr=22050, gamma=gamma, alpha=np.full(176, (ratio - 1) / (ratio + 1))
    )
    expected = np.abs(theirs) * 2 / np.sqrt(lengths)[:, None]
    assert error(magnitude(front_end, audio), expected) <= 0.05  # measured: 0.014, and 0.038 with gamma


def test_the_distance_of_sounds_is_that_of_librosa_s_spectra_and_none_of_equal_ones() -> None:
    rng = np.random.default_rng(0)
    audio, other = (rng.normal(size=3000) * np.linspace(0, 0.3, 3000) for _ in range(2))
    audio[:500] = other[1000:2000] = 0.0
    expected = 0.0
    for size in SCALES:
        a, b = (np.abs(librosa.stft(x, n_fft=size, hop_length=size // 4, pad_mode="constant")) for x in (audio, other))
        expected += np.mean(np.abs(a - b))
        expected += np.mean(np.abs(np.log(np.maximum(a, 1e-5)) - np.log(np.maximum(b, 1e-5))))
    first, second = (torch.tensor(x, dtype=torch.float32) for x in (audio, other))
    assert multi_scale_distance(first, second) == pytest.approx(expected, rel=1e-4)
    assert multi_scale_distance(first, first) == 0.0
    assert multi_scale_distance(first, -first) == pytest.approx(0.0, abs=1e-6)  # phase alone is no distance
