"""Synthesizes notes of random timbres, whose pitches are known: a model that has no labels is calibrated on them.

`wavespace.data.synthesis.synthetic` has tones of any shape, to test whether a method can work at all. Here tones are
drawn like music: some timbres to a window, struck or sustained, loud and faint, in rooms; as chords with octaves and
fifths, or as melodies, whose notes begin while the last one still rings, so that a pitch map has to end notes in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wavespace.data.base import Item
from wavespace.data.synthesis.augment import equalise, gain, noise
from wavespace.data.synthesis.synthetic import FULL_LEVEL, Tone, render, room
from wavespace.units import midi_to_hz

LEAD = 1.0
"""Seconds before a window in which its notes may begin."""

PARTIALS = 64
"""Partials of a note at most."""

CONSONANT = (12, 12, -12, 7, -7, 19, -19, 24, -24, 5, 4, 3, -5)
"""Semitones between notes that share partials, the octave twice: what makes pitch ambiguous."""

LOWEST, HIGHEST = 24, 107
"""MIDI pitches between which notes are drawn."""

Float = NDArray[np.float64]


class Timbre(NamedTuple):
    """What the notes of one instrument share.

    Attributes:
        level: `(PARTIALS,)` of each partial in dB.
        jitter: standard deviation in dB of a note's partials about it.
        stiffness: B of a string, whose partials are at `n * f0 * sqrt(1 + B * n**2)`.
        lowpass: Hz at which the body begins to damp.
        struck: its notes decay from the start, and otherwise last.
        decay: seconds in which a struck middle C falls to 1 / e.
    """

    level: Float
    jitter: float
    stiffness: float
    lowpass: float
    struck: bool
    decay: float


Planned = tuple[Timbre, float, float, float]
"""A note before it is drawn as a tone: its timbre, onset in seconds, pitch, and seconds until its release."""


@dataclass(frozen=True)
class Tones:
    """Windows of self-made notes.

    Attributes:
        sample_rate: in Hz.
        seconds: length of a window.
        notes: most notes that are drawn for a window of chords; their number is log-uniform from 3.
        melodies: share of windows in which each timbre plays a melody.
        audible: dB by which a struck note may fall before it counts as over.
    """

    sample_rate: int
    seconds: float
    notes: int = 40
    melodies: float = 0.5
    audible: float = 60.0

    def item(self, rng: Generator, name: str = "tones") -> Item:
        """A window of audio with its notes, whose pitches are fractional; all of it follows from `rng`."""
        rate = self.sample_rate
        audio = np.zeros(round(self.seconds * rate), np.float32)
        tones, notes = self._draw(rng)
        for tone, signal in zip(tones, render(tones, rate) if tones else []):
            first, last = max(0, tone.onset), min(len(audio), tone.onset + tone.length)
            audio[first:last] += signal[first - tone.onset : last - tone.onset]
        if rng.random() < 0.5:
            audio = room(audio, rng, rate, 10 ** rng.uniform(-0.7, 0.1))
        audio = gain(noise(equalise(audio, rng, rate), rng, snr=(20.0, 65.0)), rng)
        return Item(audio, name, np.array(sorted(notes)).reshape(-1, 4))

    def _draw(self, rng: Generator) -> tuple[list[Tone], list[tuple[float, float, float, float]]]:
        """Tones, and their notes as rows of onset, offset, pitch, velocity, of those that reach into the window."""
        timbres = [draw_timbre(rng) for _ in range(rng.integers(1, 4))]
        draw = self._melodies if rng.random() < self.melodies else self._chords
        tones, notes = [], []
        for timbre, onset, pitch, seconds in draw(rng, timbres, rng.uniform(45, 80), rng.uniform(5, 18)):
            tone, seconds, sounding = self._tone(rng, timbre, onset, pitch, seconds)
            if onset + seconds > 0:
                tones.append(tone)
                notes.append((onset, onset + seconds, sounding, max(1.0, 127 * 10 ** (tone.level / 40))))
        return tones, notes

    def _chords(self, rng: Generator, timbres: list[Timbre], centre: float, spread: float) -> Iterator[Planned]:
        """Notes at any time, some at a consonant interval from another and with it."""
        begun: list[tuple[float, float]] = []  # onset and pitch
        for _ in range(int(math.exp(rng.uniform(math.log(3), math.log(self.notes))))):
            timbre = timbres[rng.integers(len(timbres))]
            onset, pitch = rng.uniform(-LEAD, self.seconds), rng.normal(centre, spread)
            if begun and rng.random() < 0.35:
                other, pitch = begun[rng.integers(len(begun))]
                pitch += rng.choice(CONSONANT)
                onset = other if rng.random() < 0.6 else onset
            elif rng.random() < 0.8:
                pitch = round(pitch)
            if LOWEST <= pitch <= HIGHEST:
                begun.append((onset, pitch))
                yield timbre, onset, pitch, 10 ** rng.uniform(-0.9, 0.5)

    def _melodies(self, rng: Generator, timbres: list[Timbre], centre: float, spread: float) -> Iterator[Planned]:
        """A melody of each timbre, at a pace of its own, with more or fewer rests."""
        for timbre in timbres:
            onset, pitch = rng.uniform(-LEAD, 0.5), rng.normal(centre, spread)
            pace, rests = 10 ** rng.uniform(-1.0, -0.1), rng.uniform(0, 0.5)
            while onset < self.seconds:
                pitch = min(max(LOWEST, round(pitch)), HIGHEST)
                seconds = pace * 2 ** rng.normal(0, 0.7)
                yield timbre, onset, pitch, seconds
                onset += seconds * (rng.uniform(1, 2) if rng.random() < rests else 1)
                pitch += rng.normal(0, 4) if rng.random() < 0.95 else rng.normal(centre, spread) - pitch

    def _tone(
        self, rng: Generator, timbre: Timbre, onset: float, pitch: float, seconds: float
    ) -> tuple[Tone, float, float]:
        """A tone of at most so many seconds until its release, those that it has, and its exact pitch."""
        pitch += rng.normal(0, 0.06)
        f0 = midi_to_hz(pitch)
        n = np.arange(1, PARTIALS + 1)
        frequencies = f0 * n * np.sqrt((1 + timbre.stiffness * n**2) / (1 + timbre.stiffness))
        kept = frequencies < 0.49 * self.sample_rate
        frequencies = frequencies[kept]
        decibels = timbre.level[kept] + timbre.jitter * rng.normal(0, 1, len(frequencies))
        amplitudes = 10 ** (decibels / 20) / np.sqrt(1 + (frequencies / timbre.lowpass) ** 4)
        level = rng.uniform(-24, 0)
        amplitudes *= FULL_LEVEL * 10 ** (level / 20) / np.sqrt(np.square(amplitudes).sum() / 2)

        attack = min(10 ** (rng.uniform(-2.6, -1.5) if timbre.struck else rng.uniform(-2.3, -0.9)), seconds / 3)
        if timbre.struck:
            tau = timbre.decay * 2 ** ((60 - pitch) / 18) * rng.uniform(0.7, 1.4)
            seconds = max(0.05, min(seconds, tau * math.log(10) * self.audible / 20))
            attack = min(attack, seconds / 3)
            times = attack + (seconds - attack) * np.array([0, 0.06, 0.18, 0.4, 1])
            heights = np.exp(-(times - attack) / tau)
        else:
            times = np.linspace(attack, seconds, 5)
            heights = rng.uniform(0.4, 1, 5)
        release = 10 ** rng.uniform(-1.7, -0.5)
        knots = np.rint(np.array([0, *times, seconds + release]) * self.sample_rate).astype(np.int64)
        tone = Tone(
            onset=round(onset * self.sample_rate),
            length=int(knots[-1]),
            level=level,
            frequencies=frequencies,
            amplitudes=amplitudes,
            phases=rng.uniform(0, 2 * np.pi, len(frequencies)),
            knots=knots,
            envelope=np.array([0, *heights / heights.max(), 0]),
            drive=0.0,
        )
        return tone, seconds, pitch


def draw_timbre(rng: Generator) -> Timbre:
    """Partials that fall as a power of their number, unevenly; at times with weak even ones or a weak fundamental."""
    n = np.arange(1, PARTIALS + 1)
    jitter = rng.uniform(0.7, 5)
    level = -20 * rng.uniform(0.3, 2.5) * np.log10(n) + jitter * rng.normal(0, 1, PARTIALS)
    if rng.random() < 0.3:
        level[1::2] += rng.uniform(-15, 3)
    if rng.random() < 0.3:
        level[0] += rng.uniform(-15, 0)
    stiffness = 10 ** rng.uniform(-5, -3) if rng.random() < 0.6 else 0.0
    lowpass = 10 ** rng.uniform(3, 4.3)
    return Timbre(
        level, jitter, stiffness, lowpass, struck=bool(rng.random() < 0.65), decay=10 ** rng.uniform(-0.7, 0.8)
    )
