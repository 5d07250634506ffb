"""Specs of what parts hand to each other, stated before any data is touched.

Specs flow data -> front-end -> model -> task. A part states its output from its input, so that sizes
which follow from other parts never stand in a configuration file.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

MOST_SECONDS, MOST_BINS, MOST_TABLE = 3600.0, 2**16, 2**26
"""Bounds of a training window, a frequency axis, and the numbers that making a table takes: half a gigabyte."""

Normalization = Literal["none", "frame", "dataset"]
"""What a front-end normalizes its values by: nothing, their own frame, or the training audio."""


@dataclass(frozen=True)
class AudioSpec:
    """What a datamodule gives: audio `(B, 1, N)` with `N = samples`, and its labels.

    Attributes:
        sample_rate: samples a second, in Hz.
        seconds: length of a training window. Validation items may be longer.
        labels: which labels exist: "notes" (onset, offset, pitch, velocity) and/or "instrument" (a class index).
    """

    sample_rate: int
    seconds: float
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (0 < self.sample_rate <= 10**6 and 0 < self.seconds <= MOST_SECONDS):
            raise ValueError(
                f"seconds is {self.seconds:g} and sample_rate {self.sample_rate:,}; both must be above 0, and at most "
                f"{MOST_SECONDS:g} and 1,000,000"
            )

    @property
    def samples(self) -> int:
        """Samples in a training window."""
        return round(self.sample_rate * self.seconds)


@dataclass(frozen=True)
class FeatureSpec:
    """What a front-end or a model gives: features `(B, channels, len(frequencies), T)`.

    Frame `t` is centred on `t / frame_rate` seconds from the start of the audio.

    Attributes:
        channels: size of the second axis.
        frequencies: centre frequency of each bin in Hz, ascending.
        frame_rate: frames a second.
        unit: what a value is: "dB", "latent", "logit", or "standardized" (standard deviations from the mean).
        low: smallest value that can occur (for dB: the floor); otherwise the smallest to expect.
        high: largest value expected of audio at full scale; louder input may exceed it.
        normalization: "none"; "frame": dB below the loudest value of each frame, or latents over the frame's RMS;
            "dataset": each channel and bin over the training audio. `unit`, `low` and `high` are those after it.
    """

    channels: int
    frequencies: tuple[float, ...]
    frame_rate: float
    unit: str
    low: float
    high: float
    normalization: Normalization = "none"

    def __post_init__(self) -> None:
        check_table(0, len(self.frequencies))

    @property
    def bins(self) -> int:
        """Size of the frequency axis."""
        return len(self.frequencies)

    def frames(self, samples: int, sample_rate: int) -> int:
        """Count the frames of `samples` of audio: one at every hop, the first centred on sample 0."""
        return 1 + math.floor(samples * self.frame_rate / sample_rate + 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, as a checkpoint stores them."""
        return asdict(self) | {"frequencies": list(self.frequencies)}

    def __str__(self) -> str:
        span = f" ({self.frequencies[0]:.0f}-{self.frequencies[-1]:.0f} Hz)" if self.bins > 1 else ""
        relative = "" if self.normalization == "none" else f", normalised by {self.normalization}"
        return f"{self.channels} x {self.bins} bins{span}, {self.frame_rate:.1f} frames/s, {self.unit}{relative}"


def check_table(numbers: float, bins: float = 0) -> None:
    """Refuse a table, or a frequency axis, that is too large before it is made: a stranger may ask for it.

    Args:
        numbers: that are held at once to make the table.
        bins: of the axis.

    Raises:
        ValueError: either is too large.
    """
    if bins > MOST_BINS:
        raise ValueError(f"a frequency axis of {bins:,.0f} bins; {MOST_BINS:,} are the most")
    if not numbers <= MOST_TABLE:
        raise ValueError(
            f"a table that takes {numbers:,.0f} numbers to make, and {MOST_TABLE:,} are the most; "
            "take fewer bins, or shorter windows"
        )


PIANO_PITCHES = tuple(range(21, 109))
"""MIDI numbers of the 88 piano keys, A0 to C8."""
