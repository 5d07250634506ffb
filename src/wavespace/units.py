"""Conversions that every part makes in the same way: pitch and frequency, samples in -1..1 and in 16 bits."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

FULL_SCALE = 32768
"""What 1.0 is in 16-bit samples, whose largest is one less: synthesis scales by that, so that 1.0 is not cut off."""

Number = TypeVar("Number", float, NDArray[np.float64])


def midi_to_hz(pitch: Number) -> Number:
    """Frequency of a MIDI pitch in equal temperament, A4 = 69 = 440 Hz."""
    return 440.0 * 2.0 ** ((pitch - 69.0) / 12.0)


def hz_to_midi(hertz: ArrayLike) -> NDArray[np.float64]:
    """MIDI pitch, with its fraction, of frequencies above 0 Hz."""
    return 69 + 12 * np.log2(np.asarray(hertz) / 440)


def to_int16(audio: NDArray[np.floating]) -> tuple[NDArray[np.int16], int]:
    """Samples in -1..1 to the nearest 16-bit ones, and how many were cut off at full scale; exact for 16-bit files."""
    scaled = np.rint(audio * np.float32(FULL_SCALE))
    kept = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1)
    return kept.astype("<i2"), int(np.count_nonzero(kept != scaled))
