"""Decode piano-roll probabilities to notes, chunk by chunk at constant memory, and salience maps to pitches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from wavespace.data.base import NO_NOTES, Notes, Pitches
from wavespace.data.labels import HALF_WIDTH
from wavespace.settings import validate_settings
from wavespace.units import hz_to_midi

Probabilities = NDArray[np.floating[Any]]
"""`(P, T)` probabilities in 0..1."""

Threshold = Annotated[float, Field(gt=0, le=1)]
"""Least probability that counts."""
Thresholds = Annotated[tuple[Threshold, ...], Field(min_length=1)]
"""Thresholds that validation tries."""

Index = NDArray[np.int64]

NEVER = np.iinfo(np.int64).max

LEAST = 1e-6
"""Least salience that a neighbour of a peak counts as, so that it has a logarithm."""


@validate_settings
class Decoder:
    """Notes from piano-roll maps that arrive in chunks; the sizes of chunks change nothing.

    A note starts where the onset map has a maximum of at least `onset_threshold` among the `HALF_WIDTH`
    frames on either side (of equal values, the first). It ends at the first of: the frame map below
    `frame_threshold`, a maximum of the offset map of at least `offset_threshold`, the pitch's next onset. It
    lasts at least one frame. Velocity is read at the onset's maximum.

    Onset and offset times are those of a triangle through the maximum and its two neighbours, whatever its
    height (Kong et al., "High-resolution piano transcription with pedals by regressing onset and offset
    times", IEEE/ACM TASLP 29, 2021), so the targets of `wavespace.data.labels.piano_roll` are inverted
    exactly. Where the frame map decides, it is the time at which a line between its values crosses the
    threshold.

    State between chunks is four frames of each map and at most one open note a pitch.

    Args:
        pitches: MIDI number of each of the P rows.
        frame_rate: frames a second.
        onset_threshold: smallest onset probability that starts a note.
        frame_threshold: a note ends where the frame probability is less.
        offset_threshold: smallest offset probability that ends a note.
    """

    def __init__(
        self,
        pitches: Sequence[int],
        frame_rate: float,
        onset_threshold: Threshold = 0.5,
        frame_threshold: Threshold = 0.4,
        offset_threshold: Threshold = 0.5,
    ) -> None:
        self.pitches, self.frame_rate = np.asarray(pitches), frame_rate
        self.onset_threshold, self.frame_threshold = onset_threshold, frame_threshold
        self.offset_threshold = offset_threshold
        self._restart()

    def _restart(self) -> None:
        self._maps = np.zeros((4, len(self.pitches), HALF_WIDTH), np.float32)  # silence before the beginning
        self._settled = 0  # frames that were judged, because HALF_WIDTH frames after them were seen
        self._open = np.zeros((0, 4))  # rows of map row, frame of the maximum, onset in frames, velocity

    def push(
        self, onset: Probabilities, frame: Probabilities, velocity: Probabilities, offset: Probabilities | None = None
    ) -> Notes:
        """Take the next frames, `(P, n)` of each map for any n, and return the notes that ended, sorted as `Notes` are.

        A long note comes with a later push than shorter ones that started after it: sort what you collect.
        """
        chunk = np.stack([onset, frame, velocity, np.zeros_like(onset) if offset is None else offset])
        maps = np.concatenate([self._maps, chunk], axis=2, dtype=np.float32)  # (4, P, n + 2 HALF_WIDTH)
        n = max(0, maps.shape[2] - 2 * HALF_WIDTH)
        self._maps = maps[:, :, n:].copy()
        if n == 0:
            return NO_NOTES
        onset, frame, velocity, offset = maps

        row, column, shift = _maxima(onset, self.onset_threshold)
        loudness = np.clip(np.rint(127 * velocity[row, column + HALF_WIDTH]), 1, 127)
        peak = self._settled + column
        notes = np.concatenate([self._open, np.column_stack([row, peak, peak + shift, loudness])])  # (K, 4)
        notes = notes[np.lexsort((notes[:, 1], notes[:, 0]))]
        start, loudness = notes[:, 2], notes[:, 3]  # (K,)
        row, column = notes[:, 0].astype(int), notes[:, 1].astype(int) - self._settled  # (K,)

        repeated = row[1:] == row[:-1]
        next_column = np.append(np.where(repeated, column[1:], NEVER), NEVER)[: len(notes)]  # (K,)
        next_start = np.append(np.where(repeated, start[1:], np.inf), np.inf)[: len(notes)]  # (K,) frames

        silent = np.flatnonzero(frame[:, HALF_WIDTH:-HALF_WIDTH] < self.frame_threshold)
        silence, _ = _first(silent, row, column + 1, n)  # (K,)
        at = np.minimum(silence, n - 1)
        before, after = (frame[row, at + HALF_WIDTH + step].astype(float) for step in (-1, 0))
        crosses = (before >= self.frame_threshold) & (after < self.frame_threshold)
        back = np.divide(self.frame_threshold - after, before - after, out=np.zeros(len(notes)), where=crosses)
        end = self._settled + at - back  # (K,) frames

        # An offset nearer to the onset may belong to the note before it.
        off_row, off_column, off_shift = _maxima(offset, self.offset_threshold)
        release, place = _first(off_row * n + off_column, row, column + HALF_WIDTH, n)  # (K,)
        end = np.where(release <= silence, self._settled + release + np.append(off_shift, 0)[place], end)

        last = np.minimum(silence, release)
        end = np.minimum(np.where(last <= next_column, end, np.inf), next_start)
        end = np.maximum(end, start + 1)
        ended = np.minimum(last, next_column) < NEVER
        self._open = notes[~ended]
        self._settled += n
        found = np.column_stack([start / self.frame_rate, end / self.frame_rate, self.pitches[row], loudness])[ended]
        return found[np.lexsort((found[:, 2], found[:, 0]))]

    def flush(self) -> Notes:
        """End the notes that are open, and return them; the decoder is then as new."""
        silence = np.zeros((len(self.pitches), HALF_WIDTH + 1), np.float32)
        notes = self.push(silence, silence, silence)
        self._restart()
        return notes


def peak_pitches(salience: Probabilities, frequencies: Sequence[float], threshold: float) -> Pitches:
    """Find the pitches of each frame: maxima along frequency of at least `threshold` (of equal neighbours the lower).

    The pitch is where a parabola through the logarithms of the maximum and its two neighbours has its top [Smith and
    Serra, "PARSHL", ICMC 1987]: of a Gaussian in pitch, as `wavespace.data.labels.pitch_salience` makes, the exact
    one, whatever its height. The outermost bins can be maxima, and are read as they are.

    Args:
        salience: `(F, T)` in 0..1.
        frequencies: of the F bins in Hz, evenly spaced on a log scale, ascending.
        threshold: smallest salience of a pitch, above 0.
    """
    around = np.pad(salience, ((1, 1), (0, 0)), constant_values=-np.inf)  # (F + 2, T)
    peaks = (salience >= threshold) & (salience > around[:-2]) & (salience >= around[2:])
    frame, row = np.nonzero(peaks.T)
    return np.column_stack([frame, _refined_pitch(salience, row, frame, frequencies), salience[row, frame]])


def strongest_pitches(salience: Probabilities, frequencies: Sequence[float]) -> NDArray[np.float64]:
    """Find the maximum of each frame, however small: MIDI pitch and salience `(T, 2)`; see `peak_pitches`."""
    row, frame = salience.argmax(axis=0), np.arange(salience.shape[1])
    return np.column_stack([_refined_pitch(salience, row, frame, frequencies), salience[row, frame]])


def _refined_pitch(
    salience: Probabilities, row: Index, frame: Index, frequencies: Sequence[float]
) -> NDArray[np.float64]:
    """MIDI pitch `(N,)` of maxima at rows and frames `(N,)` of a map, between bins."""
    inside = (row > 0) & (row < len(salience) - 1)
    at = row + np.multiply.outer([-1, 0, 1], inside)  # (3, N)
    below, peak, above = np.log(np.maximum(salience[at, frame].astype(float), LEAST))
    bend = 2 * peak - below - above
    shift = np.divide(above - below, 2 * bend, out=np.zeros(len(row)), where=bend > 0)  # (N,) in bins
    return np.interp(row + shift, np.arange(len(salience)), hz_to_midi(frequencies))


def _maxima(curve: Probabilities, threshold: float) -> tuple[Index, Index, NDArray[np.float64]]:
    """Row and column of maxima of a map, and how many frames later the exact time is, -0.5..0.5, `(N,)` each.

    Columns count from `HALF_WIDTH`, the first that has all its neighbours.
    """
    row, column = np.nonzero(curve[:, HALF_WIDTH:-HALF_WIDTH] >= threshold)
    middle = curve[row, column + HALF_WIDTH]
    highest = np.ones(len(row), bool)
    for step in range(1, HALF_WIDTH + 1):
        highest &= middle > curve[row, column + HALF_WIDTH - step]
        highest &= middle >= curve[row, column + HALF_WIDTH + step]
    row, column = row[highest], column[highest]
    left, peak, right = (curve[row, column + HALF_WIDTH + step].astype(float) for step in (-1, 0, 1))
    return row, column, (right - left) / (2 * (peak - np.minimum(left, right)))


def _first(cells: Index, row: Index, column: Index, n: int) -> tuple[Index, Index]:
    """Find the first of ascending `cells` (row * n + column) in a row from a column on: its column, its place."""
    place = np.searchsorted(cells, row * n + np.maximum(column, 0))
    found = np.append(cells, NEVER)[place] - row * n
    return np.where(found < n, found, NEVER), place
