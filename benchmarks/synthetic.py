"""Synthetic polyphony against the loop over partials of the original project, on one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from harness import Row, compare
from threadpoolctl import threadpool_limits

from wavespace.data.base import rng_for
from wavespace.data.synthesis.augment import Audio
from wavespace.data.synthesis.synthetic import Synthetic, SyntheticWindows, Tone, render

RATE, SECONDS = 44_100, 2.0


def loop(tones: Sequence[Tone]) -> Audio:
    """`additive_harmonic` and `random_env` of davidmoser/wavespace, datasets/poly_utils.py, at given partials."""
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
    """The same mixture with our synthesis."""
    mix = np.zeros(int(RATE * SECONDS), dtype=np.float32)
    for tone, signal in zip(tones, render(tones, RATE)):
        mix[tone.onset : tone.onset + tone.length] += signal
    return mix


def rows(items: int = 8) -> Iterator[Row]:
    """2 s at 44.1 kHz: six notes of ten partials as long as the window, with all effects; and windows with defaults.

    "all of it" is drawing, synthesis, filter, drive and room; the loop computes the same partials and nothing else.
    """
    settings = {"voices": (6, 6), "partials": (10, 10), "pitch": (50.0, 2000.0), "duration": (SECONDS, SECONDS)}
    with threadpool_limits(1):
        for name, data in (
            ("6 x 10 partials", Synthetic(sample_rate=RATE, seconds=SECONDS, odds=1.0, **settings)),
            ("windows as drawn", Synthetic(sample_rate=RATE, seconds=SECONDS)),
        ):
            data.setup()
            windows = data.train_set
            drawn = [data.synthesizer.draw(rng_for(data.seed, "train", i)) for i in range(items)]
            plain = [[tone._replace(drive=0.0) for tone in tones] for tones in drawn]

            def looped(drawn: Sequence[Sequence[Tone]] = drawn) -> None:
                for tones in drawn:
                    loop(tones)

            def synthesised(plain: Sequence[Sequence[Tone]] = plain) -> None:
                for tones in plain:
                    ours(tones)

            def everything(windows: SyntheticWindows = windows) -> None:
                for i in range(items):
                    windows[i]

            yield compare(f"synthesis, {name}", synthesised, looped, "loop over partials", 1 / 3)
            yield compare(f"all of it, {name}", everything, looped, "loop over partials", 0.55)
