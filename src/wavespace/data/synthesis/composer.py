"""Composes piano music at random: endless, and without data.

It has what a transcriber has to distinguish: octaves and twelfths struck together, chords, runs, trills, repeated
notes, a melody over an accompaniment, soft beside loud, notes that the pedal sustains; in human timing, over the whole
keyboard.

A piece is a row of phrases. A phrase has a harmony and one to three layers ("hands"); each layer plays one texture,
at one place of the keyboard, in beats. Tempo, timing, touch and pedal are then varied as in a performance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wavespace.data.base import NO_NOTES, Notes
from wavespace.data.files.midi import NO_PRESSES, Performance, clean
from wavespace.data.synthesis.augment import log_uniform
from wavespace.spec import PIANO_PITCHES

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LOWEST, HIGHEST = PIANO_PITCHES[0], PIANO_PITCHES[-1]

FASTEST = 15.0
"""Strikes a second in one hand."""

SCALES = (
    (0.34, (0, 2, 4, 5, 7, 9, 11)),  # major
    (0.18, (0, 2, 3, 5, 7, 8, 10)),  # minor
    (0.18, (0, 2, 3, 5, 7, 8, 11)),  # harmonic minor
    (0.05, (0, 2, 4, 7, 9)),  # pentatonic
    (0.03, (0, 2, 4, 6, 8, 10)),  # whole tone
    (0.05, (0, 2, 3, 5, 6, 8, 9, 11)),  # octatonic
    (0.17, tuple(range(12))),  # chromatic
)

CHORDS = (
    (0.28, (0, 4, 7, 12)),  # major
    (0.24, (0, 3, 7, 12)),  # minor
    (0.12, (0, 4, 7, 10)),  # dominant seventh
    (0.08, (0, 3, 7, 10)),  # minor seventh
    (0.05, (0, 4, 7, 11)),  # major seventh
    (0.06, (0, 3, 6, 9)),  # diminished
    (0.04, (0, 3, 6, 10)),  # half-diminished
    (0.03, (0, 4, 8, 12)),  # augmented
    (0.03, (0, 4, 7, 9)),  # sixth
    (0.05, (0, 5, 7, 12)),  # suspended
    (0.02, (0, 1, 6, 8)),  # a cluster
)

DOUBLINGS = ((0.4, 12), (0.16, -12), (0.09, 19), (0.09, 24), (0.04, 7), (0.08, 4), (0.08, 3), (0.06, 9))
"""Odds of what is struck along with a whole layer, in semitones."""


class Harmony(NamedTuple):
    """The chords of a phrase: the beats at which they start, `(C,)`, and their four lowest pitches, `(C, 4)`."""

    start: Floats
    pitches: Ints

    def tones(self, beat: Floats, rank: Ints) -> Ints:
        """Chord tones by beat and rank: four an octave, 0 is the root in the lowest octave of the piano."""
        chord = np.searchsorted(self.start, beat, side="right") - 1
        octave, tone = np.divmod(rank, 4)
        return self.pitches[chord, tone] + 12 * octave


class Layer(NamedTuple):
    """Notes of one hand in beats, each `(K,)`; `voice` counts the notes of one strike from the lowest."""

    beat: Floats
    length: Floats
    pitch: Ints
    voice: Ints


class Hand(NamedTuple):
    """What a texture may draw on.

    Attributes:
        rng: the source of all choices.
        harmony: of the phrase.
        scale: every pitch of the piece's scale on the keyboard, ascending.
        center: pitch about which the hand moves.
        beats: length of the phrase.
        tempo: beats a second.
        busy: factor on the strikes a second.
    """

    rng: Generator
    harmony: Harmony
    scale: Ints
    center: float
    beats: float
    tempo: float
    busy: float

    def even(self, slowest: float, fastest: float) -> tuple[Floats, Floats]:
        """Beats and lengths of equal strikes, at a rate between two (a second) that divides the beat."""
        unit = self._unit(slowest, fastest)
        beat = np.arange(0.0, self.beats, unit)
        return beat, np.full(len(beat), unit)

    def uneven(self, slowest: float, fastest: float) -> tuple[Floats, Floats]:
        """Beats and lengths of strikes in a rhythm: multiples of a unit."""
        unit = self._unit(1.5 * slowest, 1.5 * fastest)
        length = unit * self.rng.choice(
            [1, 2, 3, 4, 6], size=round(self.beats / unit) + 1, p=[0.5, 0.3, 0.08, 0.08, 0.04]
        )
        beat = np.cumsum(length) - length
        inside = beat < self.beats
        return beat[inside], length[inside]

    def rank(self) -> int:
        """The chord tone nearest to the hand's place."""
        return round((self.center - self.harmony.pitches[0, 0]) / 3)

    def walk(self, steps: Ints, reach: int = 9) -> Ints:
        """Pitches of a walk on the scale in the given steps, turned back where it leaves the hand's reach."""
        place = int(np.searchsorted(self.scale, self.center))
        low, high = max(place - reach, 0), min(place + reach, len(self.scale) - 1)
        offset = np.cumsum(steps) + place - low
        return self.scale[low + np.abs((offset + high - low) % (2 * (high - low)) - (high - low))]

    def _unit(self, slowest: float, fastest: float) -> float:
        rate = min(log_uniform(self.rng, slowest, fastest) * self.busy, FASTEST)
        divisions = np.array([0.5, 1, 2, 3, 4, 6, 8, 12])
        divisions = divisions[divisions * self.tempo <= FASTEST]
        return 1.0 / float(divisions[np.abs(np.log(divisions * self.tempo / rate)).argmin()])


def compose(rng: Generator, seconds: float) -> Performance:
    """A performance that lasts `seconds`, and starts and ends within the music.

    Notes a second vary from piece to piece, mostly between 4 and 16. All of it follows from `rng`.
    """
    tempo = log_uniform(rng, 0.7, 2.5)
    busy = float(np.exp(rng.normal(-0.3, 0.4)))
    loudness = float(np.clip(rng.normal(62, 13), 30, 95))
    steps = SCALES[rng.choice(len(SCALES), p=[odds for odds, _ in SCALES])][1]
    scale = np.flatnonzero(np.isin((np.arange(HIGHEST + 1) - rng.integers(12)) % 12, steps))
    scale = scale[scale >= LOWEST]
    pedalling = float(rng.choice([0.0, 0.4, 0.95], p=[0.25, 0.2, 0.55]))  # share of the chords that are pedalled
    lag = rng.uniform(0.03, 0.2)

    notes, pedal, now = [NO_NOTES], [NO_PRESSES], -rng.uniform(0, 3)
    while now < seconds:
        beats = float(rng.integers(2, 4 + round(3 * tempo)))
        harmony = _harmony(rng, scale, beats, tempo)
        tick = np.arange(0.0, beats + 4.0, 0.5)  # four beats more, for what is held beyond the end
        clock = now + _rubato(rng, tick, beats, tempo)
        swell = loudness + rng.normal(0, 5) + rng.normal(0, 7) * np.sin(np.pi * tick / beats)
        for texture, center, weight in _hands(rng):
            layer = texture(Hand(rng, harmony, scale, center, beats, tempo, busy))
            if rng.random() < 0.2:
                layer = _doubled(layer, rng.choice([i for _, i in DOUBLINGS], p=[p for p, _ in DOUBLINGS]))
            notes.append(_play(rng, layer, tick, clock, swell + weight))
        changes = np.interp(np.append(harmony.start, beats), tick, clock)
        pedal.append(_foot(rng, changes, lag)[rng.random(len(changes) - 1) < pedalling])
        now = changes[-1] + (rng.uniform(0.1, 1.0) if rng.random() < 0.1 else 0.0)  # a breath now and then

    played = clean(np.concatenate(notes))
    presses = np.concatenate(pedal)
    return Performance(played[(played[:, 0] >= 0) & (played[:, 0] < seconds)], presses[presses[:, 1] > presses[:, 0]])


def _harmony(rng: Generator, scale: Ints, beats: float, tempo: float) -> Harmony:
    """Chords on degrees of the scale, one every 0.4 to 3 seconds or so."""
    every = max(0.5, round(2 * tempo * log_uniform(rng, 0.4, 3.0)) / 2)
    start = np.arange(0.0, beats, every)
    roots = scale[rng.integers(0, np.searchsorted(scale, LOWEST + 12), size=len(start))]
    kinds = rng.choice(len(CHORDS), size=len(start), p=[odds for odds, _ in CHORDS])
    return Harmony(start, roots[:, None] + np.array([chord for _, chord in CHORDS])[kinds])


def _rubato(rng: Generator, tick: Floats, beats: float, tempo: float) -> Floats:
    """Seconds from the phrase's start to each tick: a wavering tempo, sometimes slower towards the end."""
    slowness = rng.uniform(0, 0.15) * np.sin(rng.uniform(0.3, 1.5) * tick + rng.uniform(0, 6.3))
    if rng.random() < 0.25:
        slowness += rng.uniform(0.1, 0.5) * np.clip(tick - (beats - 2.0), 0.0, 2.0) / 2
    passed = np.diff(tick) * np.exp(slowness[:-1]) / tempo
    return np.append(0.0, np.cumsum(passed))


def _foot(rng: Generator, changes: Floats, lag: float) -> Floats:
    """Pedal down a `lag` after each change of harmony, and up about the next, `(C, 2)` seconds."""
    return np.column_stack([changes[:-1] + lag, changes[1:] + rng.uniform(-0.1, lag - 0.02, len(changes) - 1)])


def _play(rng: Generator, layer: Layer, tick: Floats, clock: Floats, loudness: Floats) -> Notes:
    """A layer in seconds, with a hand's touch: timing, length and weight of each finger differ."""
    touch = rng.choice([rng.uniform(0.15, 0.5), rng.uniform(0.5, 0.95), rng.uniform(0.95, 1.15)])
    early = rng.normal(0.0, 0.008) + layer.voice * rng.normal(0.0, 0.004)  # a hand leads; chords are rolled a little
    uneven = np.clip(rng.normal(0.0, rng.uniform(0.002, 0.008), len(layer.beat)), -0.015, 0.015)
    onset = np.interp(layer.beat, tick, clock)
    held = np.interp(layer.beat + layer.length * touch, tick, clock) - onset
    held = np.maximum(held * rng.uniform(0.8, 1.2, len(onset)), rng.uniform(0.03, 0.06))
    onset = onset + early + uneven
    velocity = np.interp(layer.beat, tick, loudness) + rng.normal(0.0, rng.uniform(3, 10), len(onset))
    velocity += 4.0 * (layer.beat % 1.0 == 0) + rng.uniform(-1, 4) * layer.voice  # the beat, and the top of a chord
    pitch = np.where(layer.pitch > HIGHEST, layer.pitch - 12 * -((HIGHEST - layer.pitch) // 12), layer.pitch)
    pitch = np.where(pitch < LOWEST, pitch + 12 * -((pitch - LOWEST) // 12), pitch)
    return np.column_stack([onset, onset + held, pitch, np.clip(np.rint(velocity), 15, 127)])


def _doubled(layer: Layer, semitones: int) -> Layer:
    """A layer with every note struck again at an interval."""
    return Layer(
        np.tile(layer.beat, 2),
        np.tile(layer.length, 2),
        np.concatenate([layer.pitch, layer.pitch + semitones]),
        np.concatenate([layer.voice, layer.voice + (1 if semitones > 0 else 0)]),
    )


def _strikes(beat: Floats, length: Floats, pitch: Ints) -> Layer:
    """Strikes `(S,)` with pitches `(S,)` or `(S, V)` as a layer."""
    pitch = pitch[:, None] if pitch.ndim == 1 else pitch
    voices = pitch.shape[1]
    return Layer(
        np.repeat(beat, voices), np.repeat(length, voices), pitch.ravel(), np.tile(np.arange(voices), len(beat))
    )


def _melody(hand: Hand) -> Layer:
    """Steps and leaps on the scale, at times with grace notes."""
    beat, length = hand.uneven(1.5, 6.0)
    size = hand.rng.choice([0, 1, 2, 3, 4, 7], size=len(beat), p=[0.05, 0.53, 0.2, 0.1, 0.07, 0.05])
    pitch = hand.walk(size * hand.rng.choice([-1, 1], size=len(beat)))
    graced = np.flatnonzero(hand.rng.random(len(beat)) < hand.rng.choice([0.0, 0.0, 0.25]))
    grace = hand.tempo * hand.rng.uniform(0.04, 0.1, len(graced))
    return _strikes(
        np.append(beat, np.maximum(beat[graced] - grace, 0.0)),
        np.append(length, grace),
        np.append(pitch, pitch[graced] + hand.rng.choice([-2, -1, 1, 2], size=len(graced))),
    )


def _run(hand: Hand) -> Layer:
    """A scale up or down that turns now and then."""
    beat, length = hand.even(5.0, FASTEST)
    turns = np.cumsum(hand.rng.random(len(beat)) < 0.1)
    return _strikes(beat, length, hand.walk(np.where(turns % 2, 1, -1), reach=14))


def _arpeggio(hand: Hand) -> Layer:
    """Chord tones up, down, both or in any order."""
    beat, length = hand.even(3.0, 13.0)
    k, span = np.arange(len(beat)), int(hand.rng.integers(3, 10))
    shapes = [k % span, -k % span, np.abs((k + span) % (2 * span) - span), hand.rng.integers(0, span, len(k))]
    return _strikes(beat, length, hand.harmony.tones(beat, hand.rank() - span // 2 + shapes[hand.rng.integers(4)]))


def _alberti(hand: Hand) -> Layer:
    """Low, high, middle, high."""
    beat, length = hand.even(3.0, 11.0)
    return _strikes(beat, length, hand.harmony.tones(beat, hand.rank() + np.resize([0, 2, 1, 2], len(beat))))


def _chords(hand: Hand) -> Layer:
    """Two to five notes at once, close or open."""
    rhythm = hand.even if hand.rng.random() < 0.4 else hand.uneven
    beat, length = rhythm(0.7, 4.0)
    voices = int(hand.rng.choice([2, 3, 4, 5], p=[0.42, 0.33, 0.17, 0.08]))
    spacing = hand.rng.choice([1, 2, 3], size=voices, p=[0.6, 0.27, 0.13])
    shift = np.cumsum(hand.rng.integers(-1, 2, size=len(beat)))
    rank = hand.rank() + (np.cumsum(spacing) - spacing) - voices // 2 + shift[:, None]
    return _strikes(beat, length, hand.harmony.tones(beat[:, None], rank))


def _repeated(hand: Hand) -> Layer:
    """One to three notes again and again, another place now and then."""
    beat, length = hand.even(3.0, 11.0)
    shift = np.cumsum((hand.rng.random(len(beat)) < 0.1) * hand.rng.choice([-1, 1], size=len(beat)))
    voices = int(hand.rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
    return _strikes(beat, length, hand.harmony.tones(beat[:, None], hand.rank() + shift[:, None] + np.arange(voices)))


def _trill(hand: Hand) -> Layer:
    """Two places in turn, a second up to an octave apart."""
    beat, length = hand.even(8.0, FASTEST)
    low = hand.walk(np.zeros(len(beat), dtype=np.int64))
    interval = int(hand.rng.choice([1, 2, 3, 4, 5, 7, 12], p=[0.3, 0.35, 0.08, 0.07, 0.05, 0.05, 0.1]))
    return _strikes(beat, length, low + interval * (np.arange(len(beat)) % 2))


def _bass(hand: Hand) -> Layer:
    """Roots, often in octaves, and the notes on the way."""
    beat, length = hand.even(0.5, 3.0)
    rank = 4 * (hand.rank() // 4) + hand.rng.choice([0, 0, 0, 2, 3], size=len(beat))
    pitch = hand.harmony.tones(beat, rank)
    octaves = hand.rng.random() < 0.5
    return _strikes(beat, length, np.column_stack([pitch, pitch + 12]) if octaves else pitch)


def _stride(hand: Hand) -> Layer:
    """A bass note, then chords above it, two or three to a bar."""
    beat, length = hand.even(1.5, 5.0)
    low = np.arange(len(beat)) % int(hand.rng.integers(2, 4)) == 0
    chord = hand.harmony.tones(beat[:, None], hand.rank() + np.arange(int(hand.rng.integers(2, 4))))
    bass = hand.harmony.tones(beat[low], np.full(low.sum(), 4 * ((hand.rank() - 3) // 4)))
    over = _strikes(beat[~low], length[~low], chord[~low])
    return Layer(*(np.concatenate(pair) for pair in zip(_strikes(beat[low], length[low], bass), over)))


def _scatter(hand: Hand) -> Layer:
    """Any keys within two octaves, without harmony."""
    beat, length = hand.uneven(2.0, 8.0)
    voices = int(hand.rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    spread = hand.rng.integers(-12, 13, size=(len(beat), voices))
    return _strikes(beat, length, np.sort(round(hand.center) + spread, axis=1))


Texture = Callable[[Hand], Layer]

RIGHT: tuple[tuple[float, Texture], ...] = (
    (0.3, _melody), (0.15, _run), (0.14, _arpeggio), (0.2, _chords), (0.05, _repeated), (0.05, _trill),
    (0.11, _scatter),
)  # fmt: skip
LEFT: tuple[tuple[float, Texture], ...] = (
    (0.18, _bass), (0.12, _alberti), (0.22, _arpeggio), (0.2, _chords), (0.1, _stride), (0.07, _run), (0.05, _melody),
    (0.03, _repeated), (0.03, _scatter),
)  # fmt: skip


def _hands(rng: Generator) -> list[tuple[Texture, float, float]]:
    """Which textures make a phrase: each with the pitch of its place and its loudness beside the other's."""
    hands = []
    for menu, usual, odds in ((RIGHT, 71.0, 0.92), (LEFT, 50.0, 0.8), (RIGHT, 62.0, 0.12)):
        if rng.random() < odds:
            texture = menu[rng.choice(len(menu), p=[p for p, _ in menu])][1]
            center = rng.uniform(LOWEST, HIGHEST) if rng.random() < 0.08 else rng.normal(usual, 9.0)
            weight = rng.uniform(0, 16) if usual > 70 else rng.uniform(-14, 4)
            hands.append((texture, float(np.clip(center, LOWEST + 3, HIGHEST - 3)), weight))
    return hands
