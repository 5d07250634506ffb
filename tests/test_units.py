"""Units: conversions are inverse to each other, and full scale is one number."""

from __future__ import annotations

import numpy as np
import pytest

from wavespace.frontends.base import scaled
from wavespace.units import hz_to_midi, midi_to_hz, to_int16


def test_pitch_and_frequency_are_inverse() -> None:
    assert [midi_to_hz(69), midi_to_hz(81)] == [440, 880]
    pitches = np.linspace(1, 127, 50)
    np.testing.assert_allclose(hz_to_midi(midi_to_hz(pitches)), pitches, rtol=1e-12)
    assert hz_to_midi([440, 880]).tolist() == [69, 81]


def test_every_16_bit_sample_comes_back_as_it_was() -> None:
    samples = np.arange(-32768, 32768).astype(np.int16)
    found, cut = to_int16(scaled(samples).numpy())
    assert cut == 0
    np.testing.assert_array_equal(found, samples)


@pytest.mark.parametrize(("value", "found"), [(1.0, 32767), (7.5, 32767), (-1.5, -32768)])
def test_what_is_beyond_full_scale_is_cut_off_and_counted(value: float, found: int) -> None:
    pcm, cut = to_int16(np.array([0.0, value], np.float32))
    assert (pcm.tolist(), cut) == ([0, found], 1)
