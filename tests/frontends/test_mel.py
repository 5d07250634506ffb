"""The settings that the mel spectrogram refuses; test_librosa has its values, test_stft what its family shares."""

from __future__ import annotations

from typing import Any

import pytest

from wavespace.frontends.mel import Mel
from wavespace.spec import AudioSpec


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
