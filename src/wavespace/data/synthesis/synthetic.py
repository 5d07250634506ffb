"""Synthetic polyphony for the study of pitch: voices at free pitches, with exact labels of each.

A voice is a sum of partials, low-pass filtered, shaped by an envelope and driven; a room is around all of them. Nothing
is made at or above the Nyquist frequency, where it would fold back to where no label is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch.utils.data import Dataset, Subset

from wavespace.data.base import DataModule, Item, Notes, SampleRate, Seconds, Workers, rng_for
from wavespace.data.synthesis.augment import LOUDEST, Audio, log_uniform
from wavespace.settings import validate_settings
from wavespace.spec import AudioSpec
from wavespace.units import hz_to_midi

FULL_LEVEL = 0.1
"""RMS amplitude of the partials of a voice at 0 dB: ten such voices seldom reach full scale."""

SHORTEST_RAMP = 0.005
"""Seconds that attack and release last at least; a sixth of the note at most."""

BLOCK = 256
"""Samples from one exact phase to the next in `render`."""

Float = NDArray[np.float64]


class Tone(NamedTuple):
    """One note as it will be rendered; K partials, the lowest first.

    Attributes:
        onset: first sample, in the window.
        length: in samples.
        level: in dB.
        frequencies: `(K,)` Hz.
        amplitudes: `(K,)`, after the filter.
        phases: `(K,)` radians at the onset.
        knots: `(7,)` ascending samples from the onset, the first 0 and the last `length`.
        envelope: `(7,)` gain at the knots, linear between them; 0 at both ends, 1 at the most.
        drive: strength of the clipper, 0 for none.
    """

    onset: int
    length: int
    level: float
    frequencies: Float
    amplitudes: Float
    phases: Float
    knots: NDArray[np.int64]
    envelope: Float
    drive: float


class SyntheticWindows(Dataset[Item]):
    """A window for each position: a pure function of seed, split and position."""

    def __init__(self, synthesizer: Synthesizer, seed: int, split: str) -> None:
        self.synthesizer, self.seed, self.split = synthesizer, seed, split

    def __getitem__(self, position: int) -> Item:
        audio, notes = self.synthesizer.window(rng_for(self.seed, self.split, position))
        return Item(np.rint(audio * 32767).astype(np.int16), f"{self.split}-{position}", notes)


@dataclass(kw_only=True, eq=False, repr=False)
class Synthesizer:
    """Draws notes and renders them; small enough to be sent to workers. Attributes are as in `Synthetic`."""

    sample_rate: SampleRate = 44_100
    seconds: Seconds = 2.0
    voices: tuple[int, int] = (1, 10)
    pitch: tuple[float, float] = (50.0, 5000.0)
    partials: tuple[int, int] = (5, 24)
    duration: tuple[float, float] = (0.12, 2.0)
    level: tuple[float, float] = (-24.0, 0.0)
    inharmonicity: tuple[float, float] | None = (1e-5, 1e-3)
    detune: tuple[float, float] | None = (0.0, 8.0)
    lowpass: tuple[float, float] | None = (1500.0, 12_000.0)
    drive: tuple[float, float] | None = (0.2, 1.0)
    reverb: tuple[float, float] | None = (0.15, 0.8)
    odds: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __post_init__(self) -> None:
        self.duration = self.duration[0], min(self.duration[1], self.seconds)
        bounds: dict[str, tuple[float, float]] = {
            "voices": (1, np.inf),
            "pitch": (1.0, 0.499 * self.sample_rate),
            "partials": (1, np.inf),
            "duration": (6 * SHORTEST_RAMP, self.seconds),
            "level": (-80.0, 0.0),
            "inharmonicity": (1e-9, 1.0),
            "detune": (0.0, 100.0),
            "lowpass": (1.0, np.inf),
            "drive": (0.0, 1.0),
            "reverb": (0.05, 20.0),
        }
        for name, (least, most) in bounds.items():
            limits = getattr(self, name)
            if limits is not None and not least <= limits[0] <= limits[1] <= most:
                raise ValueError(f"{name} = {list(limits)}: it must ascend and lie within {least:g} and {most:g}")

    def window(self, rng: Generator) -> tuple[Audio, Notes]:
        """Audio `(N,)` float32, and its notes with fractional pitches; all of it follows from `rng`."""
        rate = self.sample_rate
        tones = self.draw(rng)
        audio = np.zeros(round(rate * self.seconds), dtype=np.float32)
        for tone, voice in zip(tones, render(tones, rate)):
            audio[tone.onset : tone.onset + tone.length] += voice
        if self.reverb is not None and rng.random() < self.odds:
            audio = room(audio, rng, rate, log_uniform(rng, *self.reverb))
        gain = LOUDEST / max(LOUDEST, audio.max(), -audio.min())
        audio *= np.float32(gain)
        notes = [
            (
                tone.onset / rate,
                (tone.onset + tone.length) / rate,
                hz_to_midi(tone.frequencies[0]),
                # General MIDI: a level of 40 log10(velocity / 127) dB.
                max(1.0, 127 * np.sqrt(10 ** (tone.level / 20) * gain)),
            )
            for tone in tones
        ]
        return audio, np.array(notes)

    def draw(self, rng: Generator) -> list[Tone]:
        """The notes of a window, by onset."""
        tones = [self._tone(rng) for _ in range(rng.integers(*self.voices, endpoint=True))]
        return sorted(tones, key=lambda tone: (tone.onset, tone.frequencies[0]))

    def _tone(self, rng: Generator) -> Tone:
        rate, samples = self.sample_rate, round(self.sample_rate * self.seconds)
        length = min(round(rng.uniform(*self.duration) * rate), samples)
        onset = int(rng.integers(samples - length, endpoint=True))

        n = np.arange(1, rng.integers(*self.partials, endpoint=True) + 1)
        ratio = n.astype(np.float64)  # (K,) to the lowest partial
        if self.inharmonicity is not None and rng.random() < self.odds:
            stiffness = log_uniform(rng, *self.inharmonicity)
            ratio *= np.sqrt((1 + stiffness * n**2) / (1 + stiffness))
        if self.detune is not None and rng.random() < self.odds:
            ratio[1:] *= 2 ** (rng.normal(0.0, rng.uniform(*self.detune), len(n) - 1) / 1200)
        frequencies = log_uniform(rng, *self.pitch) * ratio
        amplitudes = rng.uniform(0.7, 1.0, len(n)) * n ** -rng.uniform(0.6, 2.4)
        if self.lowpass is not None and rng.random() < self.odds:
            # A filter does to a steady partial no more than change its amplitude and its phase, which is random.
            amplitudes /= np.sqrt(1 + (frequencies / log_uniform(rng, *self.lowpass)) ** 8)
        level = rng.uniform(*self.level)
        kept = frequencies < rate / 2
        frequencies, amplitudes = frequencies[kept], amplitudes[kept]
        amplitudes *= FULL_LEVEL * 10 ** (level / 20) / np.sqrt(np.square(amplitudes).sum() / 2)

        longest = length / rate / 6
        attack, release = np.minimum(SHORTEST_RAMP * (longest / SHORTEST_RAMP) ** rng.random(2), longest) * rate
        knots = np.rint([0, *np.linspace(attack, length - release, 5), length]).astype(np.int64)
        envelope = np.array([0, *rng.uniform(0.1, 1.0, 5), 0])
        drive = rng.uniform(*self.drive) if self.drive is not None and rng.random() < self.odds else 0.0
        return Tone(
            onset=onset,
            length=length,
            level=level,
            frequencies=frequencies,
            amplitudes=amplitudes,
            phases=rng.uniform(0, 2 * np.pi, len(frequencies)),
            knots=knots,
            envelope=envelope / envelope.max(),
            drive=drive,
        )


@validate_settings
@dataclass(kw_only=True, eq=False, repr=False)
class Synthetic(Synthesizer, DataModule):
    """Windows of overlapping notes at free pitches, rendered on the fly; their `notes` have fractional MIDI pitches.

    An effect comes to a voice (reverb: to a window) with probability `odds`, its strength drawn from its range; None
    leaves it out. Pitch, inharmonicity, cutoff and reverberation are drawn log-uniformly, the rest uniformly.

    Args:
        sample_rate: in Hz.
        seconds: length of a window, in every split.
        voices: fewest and most notes in a window.
        pitch: frequency in Hz of the lowest partial.
        partials: fewest and most partials of a voice; those that reach the Nyquist frequency are left out.
        duration: seconds that a note lasts, within the window; cut to the window's length.
        level: of a note in dB, at most 0, which is velocity 127.
        inharmonicity: B of a stiff string, whose partials are at `n * f0 * sqrt(1 + B * n**2)` [Fletcher, "Normal
            vibration frequencies of a stiff piano string", JASA 36, 1964].
        detune: standard deviation in cents of the partials about their places; the lowest stays in its own.
        lowpass: cutoff in Hz of a fourth-order Butterworth filter.
        drive: strength of a cubic soft clipper, 0..1.
        reverb: seconds in which a room's reverberation falls by 60 dB.
        odds: probability of each effect.
        batch_size: windows a batch.
        workers: loader processes.
        seed: of everything.
        val_items: windows in the validation split.
        test_items: windows in the test split.

    Raises:
        ValueError: a range descends or leaves its bounds, or a split is empty.
    """

    batch_size: PositiveInt = 16
    workers: Workers = 1
    seed: int = 0
    val_items: PositiveInt = 64
    test_items: PositiveInt = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        spec = AudioSpec(self.sample_rate, self.seconds, ("notes",))
        DataModule.__init__(self, spec, self.batch_size, self.workers)
        self.synthesizer = Synthesizer(**{field.name: getattr(self, field.name) for field in fields(Synthesizer)})
        self.items = {"val": self.val_items, "test": self.test_items}

    def setup(self, stage: str | None = None) -> None:
        """Nothing is rendered before it is asked for."""
        self.train_set = SyntheticWindows(self.synthesizer, self.seed, "train")
        self.val_set, self.test_set = (
            Subset(SyntheticWindows(self.synthesizer, self.seed, split), range(count))
            for split, count in self.items.items()
        )

    def describe(self) -> dict[str, Any]:
        """Windows that are scored."""
        return {f"{split} windows of {self.spec.seconds:g} s": count for split, count in self.items.items()}


def render(tones: Sequence[Tone], sample_rate: int) -> list[Audio]:
    """The signal `(length,)` float32 of each tone alone, from its onset, within 1e-6 of float64.

    `x = envelope * sum(amplitude * sin(2 pi frequency time + phase))`, with drive `x - drive * u**3 / (3 peak**2)`,
    where `u`, whose peak that is, is `x` without the partials from a third of the Nyquist frequency up, so that its
    cube stays below the Nyquist frequency.

    Phases are made in float64 at the start of each block and along one block; the angle-addition theorem joins them
    in one float32 matrix product of `(blocks, 2K)` and `(2K, BLOCK)` a tone, without a sine a sample.
    """
    angle = 2 * np.pi / sample_rate * np.concatenate([tone.frequencies for tone in tones])  # (P,) radians a sample
    start = np.concatenate([tone.amplitudes * np.exp(1j * tone.phases) for tone in tones])  # (P,)
    blocks = -(-max(tone.length for tone in tones) // BLOCK)
    starts = _rotations(start, BLOCK * angle, blocks)  # (blocks, 2P)
    along = _rotations(1j, -angle, BLOCK)  # (BLOCK, 2P); Im(a b) = Re(a) Re(c) + Im(a) Im(c) for c = i conj(b)
    time = np.arange(blocks * BLOCK, dtype=np.float32)
    wave, gain, bend = np.empty((3, blocks * BLOCK), dtype=np.float32)  # for all tones: fresh memory is slow

    slopes = np.diff([tone.envelope for tone in tones]) / np.diff([tone.knots for tone in tones])  # (K, 6)
    signals, last = [], 0
    for tone, rises in zip(tones, slopes):
        first, last = last, last + len(tone.frequencies)
        high = first + int(np.argmax(np.append(tone.frequencies >= sample_rate / 6, True)))
        driven = tone.drive > 0 and high > first
        n, rows = tone.length, -(-tone.length // BLOCK)

        def waves(begin: int, end: int, rows: int = rows, n: int = n) -> Audio:
            part = slice(2 * begin, 2 * end)
            np.matmul(starts[:rows, part], along[:, part].T, out=wave[: rows * BLOCK].reshape(rows, BLOCK))
            return wave[:n]

        for begin, end, value, slope in zip(tone.knots, tone.knots[1:], tone.envelope, rises):
            np.multiply(time[: end - begin], np.float32(slope), out=gain[begin:end])
            gain[begin:end] += np.float32(value)

        signal = waves(first, high if driven else last) * gain[:n]
        if driven:
            peak = max(signal.max(), -signal.min())
            np.multiply(signal, signal, out=bend[:n])
            bend[:n] *= np.float32(-tone.drive / 3 / peak**2)
            bend[:n] += 1
            signal *= bend[:n]
            if high < last:
                gain[:n] *= waves(high, last)
                signal += gain[:n]
        signals.append(signal)
    return signals


def room(audio: Audio, rng: Generator, sample_rate: int, seconds: float) -> Audio:
    """Audio `(N,)` with reverberation that falls by 60 dB in so many seconds and is 6 to 24 dB below the sound itself.

    Four combs side by side and two all-passes after them [Schroeder, "Natural sounding artificial reverberation", JAES
    10, 1962]: a quarter of the time of `augment.reverb`, whose transforms would cost more than the rest of a window.
    """
    wet = np.zeros_like(audio)
    for delay in rng.uniform(0.030, 0.045, 4).tolist():
        wet += _echoes(audio, round(delay * sample_rate), 10 ** (-3 * delay / seconds))
    for delay in (0.0050, 0.0017):
        samples = round(delay * sample_rate)
        echoes = _echoes(wet, samples, 0.7)
        wet = -0.7 * echoes
        wet[samples:] += echoes[:-samples]
    energy = np.dot(audio, audio) / (np.dot(wet, wet) + 1e-12)
    return audio + np.float32(10 ** (rng.uniform(-24, -6) / 20) * np.sqrt(energy)) * wet


def _echoes(audio: Audio, delay: int, gain: float) -> Audio:
    """`y[n] = audio[n] + gain * y[n - delay]`, by `1 / (1 - z) = (1 + z) (1 + z**2) (1 + z**4) ...`."""
    echoes = audio.copy()
    while gain > 1e-7 and delay < len(audio):
        echoes[delay:] += gain * echoes[:-delay]
        delay, gain = 2 * delay, gain * gain
    return echoes


def _rotations(start: NDArray[np.complex128] | complex, angle: Float, count: int) -> Audio:
    """Real and imaginary parts in turn of `start * exp(i angle k)` for `k < count`, `(count, 2P)`.

    Every 16th rotation comes from sines, those between from the product with one of sixteen.
    """
    coarse = np.arange(0, count, 16)[:, None] * angle  # (count / 16, P)
    fine = np.arange(16)[:, None] * angle  # (16, P)
    turns = (start * np.exp(1j * coarse))[:, None] * np.exp(1j * fine)  # (count / 16, 16, P)
    return turns.reshape(-1, len(angle))[:count].astype(np.complex64).view(np.float32)
