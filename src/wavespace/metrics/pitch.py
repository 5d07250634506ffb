"""Metrics of pitches in frames, of any number or of a single voice, by mir_eval's rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import Pitches
from wavespace.metrics import precision_recall_f1

PITCH_HOP = 0.05
"""Seconds between the frames in which pitches of any number are scored."""

QUARTER_TONE = 0.5
"""Semitones that a pitch may be off."""


def multipitch_scores(reference: Pitches, estimate: Pitches) -> dict[str, float]:
    """Score the pitches by frame of one recording as `mir_eval.multipitch` does at its defaults.

    A pitch is found if it is within 50 cents (MIREX multiple-F0 estimation; Bay, Ehmann and Downie, "Evaluation of
    multiple-F0 estimation and tracking systems", ISMIR 2009), each once: a maximum matching a frame. Counts are pooled
    over frames; for "chroma" pitches an octave apart are equal. The task's frames are `PITCH_HOP` apart.

    Args:
        reference: true pitches, sorted by frame, then pitch; of its rows the first two numbers are read.
        estimate: likewise, of the same frames.

    Returns:
        `salience_precision`, `salience_recall`, `salience_f1`, `salience_accuracy` (hits over hits, false positives
        and misses), `salience_chroma_f1`, and `octave_share_of_fp`: of the estimates that found nothing, the share
        within 50 cents of a pitch that is octaves away from one that sounds; 0 where each found something. The others
        are NaN where neither side has a pitch, and 0 where one side has none.
    """
    estimated, actual = len(estimate), len(reference)
    if not estimated or not actual:
        undefined = precision_recall_f1(0, estimated, actual)[0]
        scores = dict.fromkeys(("precision", "recall", "f1", "accuracy", "chroma_f1"), undefined)
        return {f"salience_{name}": value for name, value in scores.items()} | {"octave_share_of_fp": 0.0}
    true, found = _by_frame(reference, estimate)
    matched = _matched(true, found)  # (T, E)
    hits = int(matched.sum())
    precision, recall, f1 = precision_recall_f1(hits, estimated, actual)
    frame, place = np.nonzero(np.isfinite(found) & ~matched)  # (M,) each
    octaves = (true[frame, :-1] - found[frame, place, None]) / 12  # (M, R), infinite where nothing is
    with np.errstate(invalid="ignore"):
        off = 12 * np.abs(octaves - np.rint(octaves))
    wrong_octave = ((off <= QUARTER_TONE) & (np.abs(octaves) > 0.5)).any(axis=1)
    return {
        "salience_precision": precision,
        "salience_recall": recall,
        "salience_f1": f1,
        "salience_accuracy": hits / (estimated + actual - hits),
        "salience_chroma_f1": precision_recall_f1(_chroma_hits(true, found), estimated, actual)[2],
        "octave_share_of_fp": int(wrong_octave.sum()) / max(1, estimated - hits),
    }


def multipitch_f1(reference: Pitches, estimate: Pitches) -> float:
    """Compute `salience_f1` of `multipitch_scores` alone, which takes less time."""
    both = len(estimate) and len(reference)
    hits = int(_matched(*_by_frame(reference, estimate)).sum()) if both else 0
    return precision_recall_f1(hits, len(estimate), len(reference))[2]


def melody_scores(
    reference: NDArray[np.float64], estimate: NDArray[np.float64], voiced: NDArray[np.bool_]
) -> dict[str, float]:
    """Score a single voice as `mir_eval.melody` does at its defaults, on equal frames for both sides.

    Pitch must be less than 50 cents off, and counts in frames where the reference has one, whether or not the
    estimate takes them for voiced (MIREX audio melody extraction; Salamon et al., "Melody extraction from polyphonic
    music signals", IEEE Signal Processing Magazine 31, 2014). The task's frames are `FRAME_HOP`, 10 ms, apart, as in
    CREPE (Kim et al., ICASSP 2018) and PESTO (Riou et al., ISMIR 2023).

    Args:
        reference: `(T,)` MIDI pitch, NaN where nothing sounds.
        estimate: `(T,)` MIDI pitch, in each frame.
        voiced: `(T,)` whether something sounds in it.

    Returns:
        `rpa` and `rca` (raw pitch and chroma accuracy; 0 where nothing sounds in the reference), `vr` (voicing recall;
        then 1) and `vfa` (voicing false alarm, the less the better; 0 where something always sounds).
    """
    sounding = np.isfinite(reference)  # (T,)
    total = int(sounding.sum())
    cents = 100 * np.abs(reference - estimate)[sounding]
    return {
        "rpa": int((cents < 50).sum()) / max(1, total),
        "rca": int((np.abs(cents - 1200 * np.floor(cents / 1200 + 0.5)) < 50).sum()) / max(1, total),
        "vr": int(voiced[sounding].sum()) / total if total else 1.0,
        "vfa": int(voiced[~sounding].sum()) / max(1, len(voiced) - total),
    }


def _by_frame(*sides: Pitches) -> list[NDArray[np.float64]]:
    """Arrange the pitches of each side by frame, `(T, most + 1)`, ascending, infinite after the last of a frame."""
    frames = [side[:, 0].astype(int) for side in sides]
    length = 1 + max(int(frame[-1]) for frame in frames)
    rows = []
    for side, frame in zip(sides, frames):
        count = np.bincount(frame, minlength=length)  # (T,)
        row = np.full((length, count.max() + 1), np.inf)
        row[frame, np.arange(len(frame)) - (np.cumsum(count) - count)[frame]] = side[:, 1]
        rows.append(row)
    return rows


def _matched(true: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which of `found` `(T, E)` have a partner in `true` `(T, R)`, in a maximum matching of each row.

    On a line it is enough to go up both sides and to pair whatever fits first; all frames do so in step.
    """
    matched = np.zeros(found.shape, dtype=bool)
    frame = np.flatnonzero(np.isfinite(true[:, 0]) & np.isfinite(found[:, 0]))
    i, j = np.zeros((2, len(frame)), dtype=int)
    while len(frame):
        a, b = true[frame, i], found[frame, j]
        low, high = a < b - QUARTER_TONE, a > b + QUARTER_TONE
        matched[frame, j] = ~(low | high)
        i, j = i + ~high, j + ~low
        more = np.isfinite(true[frame, i]) & np.isfinite(found[frame, j])
        frame, i, j = frame[more], i[more], j[more]
    return matched


def _chroma_hits(true: NDArray[np.float64], found: NDArray[np.float64]) -> int:
    """Count the pairs of a maximum matching of pitch classes `(T, most + 1)`, over all rows."""
    both = np.isfinite(true[:, 0]) & np.isfinite(found[:, 0])
    with np.errstate(invalid="ignore"):
        sides = [np.nan_to_num(np.mod(side[both], 12), nan=np.inf) for side in (true, found)]  # (T, most + 1) each
    # The circle is cut where no pair can span the cut: in a gap of more than a quarter tone.
    every = np.sort(np.column_stack(sides), axis=1)
    last = ~np.isfinite(every[:, 1:])
    gap = np.where(last, every[:, :1] + 12, every[:, 1:]) - every[:, :-1]
    row, widest = np.arange(len(gap)), gap.argmax(axis=1)
    crowded = gap[row, widest] <= QUARTER_TONE
    start = np.where(last, every[:, :1], every[:, 1:])[row, widest, None]
    line, other = (np.sort(np.where(side < start, side + 12, side), axis=1)[~crowded] for side in sides)
    hits = int(_matched(line, other).sum())
    if crowded.any():  # 24 pitches or more, all around the circle
        from mir_eval.util import match_events

        def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
            along = np.abs(np.subtract.outer(a, b))
            return np.minimum(along, 12 - along)

        for a, b in zip(sides[0][crowded], sides[1][crowded]):
            hits += len(match_events(a[np.isfinite(a)], b[np.isfinite(b)], QUARTER_TONE, distance=distance))
    return hits
