"""Targets of a window from its notes, against the front-end over the same window, on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from harness import Row, compare

from wavespace.data.labels import piano_roll
from wavespace.frontends.stft import LogFrequency
from wavespace.spec import PIANO_PITCHES, AudioSpec

RATE, SECONDS, BATCH, NOTES = 44_100, 10.0, 4, 100


def rows() -> Iterator[Row]:
    """Windows of 10 s with 10 notes a second, about as many as in MAESTRO."""
    torch.set_num_threads(1)
    spec = AudioSpec(RATE, SECONDS)
    frontend = LogFrequency(spec)
    audio = 0.1 * torch.randn(BATCH, 1, spec.samples)
    rng = np.random.default_rng(0)
    onset = rng.uniform(0, SECONDS, (BATCH, NOTES))
    pitch, velocity = rng.integers(21, 109, (BATCH, NOTES)), rng.integers(1, 128, (BATCH, NOTES))
    item = np.repeat(np.arange(BATCH), NOTES)
    notes = torch.tensor(
        np.column_stack([item, *(x.ravel() for x in (onset, onset + 0.4, pitch, velocity))]), dtype=torch.float32
    )
    frames = frontend.out_spec.frames(spec.samples, RATE)

    def labels() -> None:
        rate = frontend.out_spec.frame_rate
        piano_roll(notes, batch=BATCH, pitches=PIANO_PITCHES, frame_rate=rate, frames=frames)

    yield compare("labels of a window", labels, lambda: frontend(audio), "log-frequency front-end", 0.05, 15)
