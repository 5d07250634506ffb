"""Rooms, responses and noise have the measures that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import welch

from wavespace.data.base import rng_for
from wavespace.data.synthesis.augment import LOUDEST, augment, equalise, gain, noise, reverb

RATE = 22_050
Audio = NDArray[np.float32]


def tone(seconds: float = 1.0) -> Audio:
    return (0.2 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def impulse(at: int = 0) -> Audio:
    audio = np.zeros(2 * RATE, dtype=np.float32)
    audio[at] = 1.0
    return audio


PARTS = {
    "augment": lambda audio, rng: augment(audio, rng, RATE),
    "reverb": lambda audio, rng: reverb(audio, rng, RATE),
    "equalise": lambda audio, rng: equalise(audio, rng, RATE),
    "noise": noise,
    "gain": gain,
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("samples", [1, 1000, 81_585])
def test_it_is_a_pure_function_that_keeps_length_and_type(name: str, samples: int) -> None:
    audio = rng_for("audio").normal(0, 0.1, samples).astype(np.float32)
    before = audio.copy()
    for i in range(8):
        one, again = (PARTS[name](audio, rng_for(name, i)) for _ in range(2))
        np.testing.assert_array_equal(one, again)
        assert one.dtype == np.float32
        assert one.shape == audio.shape
        assert np.isfinite(one).all()
    np.testing.assert_array_equal(audio, before)
    if samples > 1:
        assert not np.array_equal(PARTS[name](audio, rng_for(0)), PARTS[name](audio, rng_for(1)))


@pytest.mark.parametrize("name", PARTS)
def test_silence_stays_finite(name: str) -> None:
    out = PARTS[name](np.zeros(5000, dtype=np.float32), rng_for(0))
    assert np.isfinite(out).all()
    assert np.abs(out).max() < 0.01


@pytest.mark.parametrize("rt60", [0.2, 0.6, 1.2])
def test_a_room_decays_by_60_db_in_its_rt60(rt60: float) -> None:
    times = []
    for i in range(5):
        response = reverb(impulse(), rng_for(i), RATE, rt60=(rt60, rt60))
        energy = np.cumsum(np.square(response[1:].astype(float))[::-1])[::-1]  # Schroeder's integral
        decay = 10 * np.log10(energy / energy[0] + 1e-20)
        start, stop = np.argmax(decay < -5), np.argmax(decay < -25)
        times.append(3 * (stop - start) / RATE)
    assert np.mean(times) == pytest.approx(rt60, rel=0.12)


@pytest.mark.parametrize("wet", [-24.0, -3.0])
def test_a_room_is_as_wet_as_asked_and_the_direct_sound_stays(wet: float) -> None:
    response = reverb(impulse(100), rng_for(0), RATE, wet=(wet, wet)).astype(float)
    assert response[100] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(response[:100]).max() < 1e-5
    assert 10 * np.log10(np.square(response[101:]).sum()) == pytest.approx(wet, abs=0.1)


def test_a_room_is_a_linear_filter_that_does_not_wrap_around() -> None:
    first, second = impulse(10), impulse(2 * RATE - 5)
    apart = reverb(first, rng_for(3), RATE) + reverb(second, rng_for(3), RATE)
    np.testing.assert_allclose(reverb(first + second, rng_for(3), RATE), apart, atol=1e-5)
    assert np.abs(reverb(second, rng_for(3), RATE)[: RATE // 2]).max() < 1e-5


def test_an_equaliser_has_a_smooth_response_without_delay() -> None:
    spans = []
    for i in range(20):
        response = equalise(impulse(RATE), rng_for(i), RATE).astype(float)
        around = response[RATE - 2000 : RATE + 2001]
        np.testing.assert_allclose(around, around[::-1], atol=1e-4)  # zero phase
        level = 20 * np.log10(np.abs(np.fft.rfft(response)) + 1e-9)
        band = level[80:-200]  # 40 Hz and up: 0.5 Hz a bin
        assert np.abs(band).max() < 19
        assert np.abs(np.diff(band)).max() < 1
        spans.append(np.ptp(band))
    assert np.median(spans) > 4


@pytest.mark.parametrize("snr", [25.0, 60.0])
def test_noise_has_the_asked_level(snr: float) -> None:
    audio = tone()
    for i in range(6):
        added = noise(audio, rng_for(i), snr=(snr, snr)).astype(float) - audio
        measured = 10 * np.log10(np.mean(np.square(audio.astype(float))) / np.mean(np.square(added)))
        assert measured == pytest.approx(snr, abs=0.1)


def test_noise_is_white_or_pink() -> None:
    slopes = []
    for i in range(30):
        added = noise(tone(4.0), rng_for(i), snr=(25.0, 25.0)) - tone(4.0)
        frequency, power = welch(added, RATE, nperseg=4096)
        band = (frequency > 50) & (frequency < 8000)
        slope, _ = np.polyfit(np.log2(frequency[band]), 10 * np.log10(power[band]), 1)
        slopes.append(round(slope))
    assert set(slopes) == {0, -3}, "dB an octave"


def test_gain_never_clips() -> None:
    peaks = [np.abs(gain(3 * tone(), rng_for(i))).max() for i in range(50)]
    assert max(peaks) <= LOUDEST + 1e-6
    assert min(peaks) < 0.1


def test_recordings_differ_in_level_and_do_not_clip() -> None:
    loud = rng_for(0).normal(0, 0.5, 20_000).astype(np.float32)
    levels = []
    for i in range(60):
        out = augment(loud, rng_for(i), RATE)
        assert np.abs(out).max() <= LOUDEST + 1e-6
        levels.append(10 * np.log10(np.mean(np.square(out))))
    assert np.ptp(levels) > 12
