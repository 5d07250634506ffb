"""Rooms, microphones and noise: what lies between an instrument and a recording of it.

All are functions of float32 audio `(N,)` and a generator; none changes the audio that it is given.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Audio = NDArray[np.float32]

LOUDEST = 0.98
"""Peak that `gain` keeps to."""


def augment(audio: Audio, rng: Generator, sample_rate: int) -> Audio:
    """A recording of clean audio `(N,)`: an uneven frequency response, a room (mostly), noise, some level."""
    if rng.random() < 0.7:
        audio = reverb(audio, rng, sample_rate)
    audio = equalise(audio, rng, sample_rate)
    return gain(noise(audio, rng), rng)


def reverb(
    audio: Audio,
    rng: Generator,
    sample_rate: int,
    rt60: tuple[float, float] = (0.15, 1.3),
    wet: tuple[float, float] = (-24.0, -3.0),
) -> Audio:
    """Audio `(N,)` in a room: the direct sound, and after it exponentially decaying noise [Moorer 1979].

    Args:
        audio: the dry sound.
        rng: draws the room.
        sample_rate: in Hz.
        rt60: range of the seconds in which the reverberation falls by 60 dB, drawn log-uniformly.
        wet: range of the reverberation's energy in dB from the direct sound's.
    """
    from scipy.fft import irfft, rfft

    seconds = log_uniform(rng, *rt60)
    taps = int(seconds * sample_rate)
    decay = np.exp(np.float32(-6.9078 / taps) * np.arange(taps, dtype=np.float32))  # ln(1000): 60 dB
    tail = rng.standard_normal(taps, dtype=np.float32) * decay
    tail[: int(rng.uniform(0.001, 0.02) * sample_rate)] = 0.0  # the way to the nearest wall and back
    tail *= 10 ** (rng.uniform(*wet) / 20) / np.sqrt(np.sum(np.square(tail)) + 1e-12)
    tail[0] += 1.0
    size = _fft_size(len(audio) + taps)
    return irfft(rfft(audio, size) * rfft(tail, size), size)[: len(audio)]


def equalise(audio: Audio, rng: Generator, sample_rate: int) -> Audio:
    """Audio `(N,)` through a smooth response without delay: a tilt of up to 3 dB an octave, and up to three bumps."""
    from scipy.fft import irfft, rfft

    margin = sample_rate // 20  # silence between the end and the start, which a circular filter joins
    size = _fft_size(len(audio) + margin)
    anchors = np.geomspace(20.0, sample_rate / 2, 64)  # the response is drawn here and interpolated
    octave = np.log2(anchors / 1000.0)
    level = rng.normal(0.0, 1.0) * octave
    for _ in range(rng.integers(4)):
        level += rng.normal(0.0, 4.0) * np.exp(-0.5 * ((octave - rng.uniform(-4, 3)) / rng.uniform(0.3, 1.2)) ** 2)
    frequencies = np.linspace(0.0, sample_rate / 2, size // 2 + 1)
    response = np.interp(frequencies, anchors, 10 ** (np.clip(level, -18, 18) / 20)).astype(np.float32)
    return irfft(rfft(audio, size) * response, size)[: len(audio)]


def noise(audio: Audio, rng: Generator, snr: tuple[float, float] = (25.0, 65.0)) -> Audio:
    """Audio `(N,)` with stationary noise, white or pink, at a signal-to-noise ratio in dB drawn from a range.

    Silence counts as a signal of -60 dB, so that it gets noise too.
    """
    from scipy.fft import irfft

    size = _fft_size(len(audio))
    if rng.random() < 0.5:
        hiss = rng.standard_normal(len(audio), dtype=np.float32)
    else:  # power that falls as 1 / frequency, made in the spectrum
        bins = np.arange(1, size // 2 + 2, dtype=np.float32)
        spectrum = rng.standard_normal(2 * len(bins), dtype=np.float32).view(np.complex64) / np.sqrt(bins)
        hiss = irfft(spectrum, size)[: len(audio)]
    level = max(_rms(audio), 1e-3) * 10 ** (-rng.uniform(*snr) / 20)
    return audio + np.float32(level / _rms(hiss)) * hiss


def gain(audio: Audio, rng: Generator) -> Audio:
    """Audio `(N,)` from 24 dB softer to 6 dB louder, but not beyond a peak of `LOUDEST`."""
    factor = 10 ** (rng.uniform(-24, 6) / 20)
    return audio * np.float32(min(factor, LOUDEST / (np.abs(audio).max(initial=0.0) + 1e-9)))


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(low * (high / low) ** rng.random())


def _rms(audio: Audio) -> float:
    return float(np.sqrt(np.dot(audio, audio) / len(audio)))


def _fft_size(samples: int) -> int:
    """The next size that is quick to transform."""
    from scipy.fft import next_fast_len

    return 2 * int(next_fast_len((samples + 1) // 2, real=True))
