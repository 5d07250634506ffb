"""Synthetic polyphony against the loop over partials of the project that this one follows; one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from harness import Row, compare
from threadpoolctl import threadpool_limits

from wavespace.data.augment import Audio
from wavespace.data.synthetic import Synthetic, Tone, pitch_labels, render

RATE, SECONDS = 44_100, 2.0
BINS = np.geomspace(50, 5000, 256).tolist()
FRAMES = 1 + int(RATE * SECONDS) // 512


def loop(tones: Sequence[Tone]) -> Audio:
    """davidmoser/wavespace, datasets/poly_utils.py: `additive_harmonic` and `random_env`, at partials that are given."""
    mix = np.zeros(int(RATE * SECONDS), dtype=np.float32)
    for tone in tones:
        n = tone.length
        t = np.arange(n, dtype=np.float32) / RATE
        y = np.zeros(n, dtype=np.float32)
        partials = (tone.amplitudes, tone.frequencies, tone.phases)
        for a, f, p in zip(*(values.astype(np.float32) for values in partials)):
            y += a * np.sin(2 * np.pi * f * t + p, dtype=np.float32)
        env = np.interp(np.arange(n, dtype=np.float32), tone.knots, tone.envelope).astype(np.float32)
        mix[tone.onset : tone.onset + n] += (y * env).astype(np.float32)
    return mix


def ours(tones: Sequence[Tone]) -> Audio:
    mix = np.zeros(int(RATE * SECONDS), dtype=np.float32)
    for tone, signal in zip(tones, render(tones, RATE)):
        mix[tone.onset : tone.onset + tone.length] += signal
    return mix


def rows(items: int = 8) -> Iterator[Row]:
    """2 s at 44.1 kHz: six notes of ten partials all the while, and windows as they are drawn by default.

    "all of it" draws the notes and has filter, drive and a room in every voice and window, int16 audio, and power
    labels in 256 bins and 173 frames; the loop has none of these.
    """
    full = {"voices": (6, 6), "partials": (10, 10), "pitch": (50.0, 2000.0), "duration": (SECONDS, SECONDS)}
    with threadpool_limits(1):
        for name, settings in (("6 x 10 partials", full), ("as drawn", {})):
            plain = Synthetic(sample_rate=RATE, seconds=SECONDS, drive=None, **settings)
            whole = Synthetic(sample_rate=RATE, seconds=SECONDS, odds=1.0, **settings)
            for data in (plain, whole):
                data.setup()
            drawn = [plain.synthesizer.draw(np.random.default_rng(i)) for i in range(items)]
            same = [whole.synthesizer.draw(np.random.default_rng(i)) for i in range(items)]
            yield compare(
                f"synthesis, {name}",
                lambda: [ours(tones) for tones in drawn],
                lambda: [loop(tones) for tones in drawn],
                "loop over partials",
                1 / 3,
            )
