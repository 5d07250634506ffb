"""Metrics of notes and of the keys that sound in each frame, by mir_eval's rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import Notes, Pitches
from wavespace.data.files.midi import on_keyboard
from wavespace.metrics import precision_recall_f1
from wavespace.spec import PIANO_PITCHES

FRAME_HOP = 0.01
"""Seconds between the frames that are scored, whatever the frame rate of the model."""


def note_scores(reference: Notes, estimate: Notes) -> dict[str, float]:
    """Score the notes of one recording as `mir_eval.transcription` and `transcription_velocity` do.

    A note is found if its onset is within 50 ms and its pitch within 50 cents; "offset" also asks for the
    offset within the larger of 50 ms and 20 % of the reference's length, "velocity" for a velocity within 0.1
    of the reference's range after a least-squares fit over the found notes (MIREX note tracking; Raffel et
    al., "mir_eval", ISMIR 2014; velocity: Hawthorne et al., "Onsets and frames", ISMIR 2018). Each note is
    found once: a maximum bipartite matching. Notes of no or negative length count, their offsets as given.

    Args:
        reference: `(K, 4)` true notes, in any order.
        estimate: `(L, 4)` decoded notes, in any order.

    Returns:
        Of which each is NaN where neither side has a note, and 0 where one side has none:
        `note_precision_onset`, `note_recall_onset`, `note_f1_onset`, `note_f1_onset_offset` and
        `note_f1_onset_offset_velocity`.
    """
    counts = len(estimate), len(reference)
    onset = offset = velocity = precision_recall_f1(0, *counts)
    if len(reference) and len(estimate):
        pairs = _near_pairs(reference, estimate)  # (M, 2)
        matched = _match(pairs)
        onset = precision_recall_f1(len(matched), *counts)

        true, found = reference[pairs[:, 0]], estimate[pairs[:, 1]]  # (M, 4)
        tolerance = np.maximum(0.2 * (true[:, 1] - true[:, 0]), 0.05)
        matched = _match(pairs[np.around(np.abs(true[:, 1] - found[:, 1]), 4) <= tolerance])
        offset = precision_recall_f1(len(matched), *counts)

        hits = _velocity_hits(reference[:, 3], estimate[:, 3], matched)
        velocity = precision_recall_f1(hits, *counts)
    return {
        "note_precision_onset": onset[0],
        "note_recall_onset": onset[1],
        "note_f1_onset": onset[2],
        "note_f1_onset_offset": offset[2],
        "note_f1_onset_offset_velocity": velocity[2],
    }


def found_notes(reference: Notes, estimate: Notes) -> NDArray[np.bool_]:
    """Say which of the true notes `(K,)` are found, by onset and pitch, as `note_scores` counts them."""
    found = np.zeros(len(reference), dtype=bool)
    if len(reference) and len(estimate):
        found[_match(_near_pairs(reference, estimate))[:, 0]] = True
    return found


def frame_scores(reference: Notes, estimate: Notes, *, duration: float) -> dict[str, float]:
    """Score the frames of one recording on 88 keys, every 10 ms, pooled over keys and frames.

    Notes of other pitches don't count on either side. A key sounds in frame `k` if `onset <= 0.01 k < offset` for one
    of its notes, as in the frame metrics of Hawthorne et al., "Onsets and frames", ISMIR 2018, at the hop of Kong et
    al., IEEE/ACM TASLP 29, 2021.

    Args:
        reference: `(K, 4)` true notes.
        estimate: `(L, 4)` decoded notes.
        duration: seconds that are scored, from 0.

    Returns:
        `frame_precision`, `frame_recall` and `frame_f1`; NaN where nothing sounds on either side.
    """
    true, found = (_sounding(notes, duration) for notes in (reference, estimate))  # (88, T)
    precision, recall, f1 = precision_recall_f1(int((true & found).sum()), int(found.sum()), int(true.sum()))
    return {"frame_precision": precision, "frame_recall": recall, "frame_f1": f1}


def pitches_at(notes: Notes, *, hop: float, duration: float) -> Pitches:
    """Return what sounds at each multiple of `hop` seconds before `duration`, with salience 1.

    A note sounds where `onset <= time < offset`. Notes of one pitch that overlap are one pitch.
    """
    first, end = _spans(notes, hop, frame_count(hop, duration))  # (K,)
    count = np.maximum(0, end - first)  # (K,)
    frame = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())  # (N,)
    pitches = np.column_stack([frame, np.repeat(notes[:, 2], count), np.ones(len(frame))])
    pitches = pitches[np.lexsort((pitches[:, 1], pitches[:, 0]))]
    return pitches[np.append(True, np.diff(pitches[:, :2], axis=0).any(axis=1))[: len(pitches)]]


def frame_count(hop: float, duration: float) -> int:
    """Count the multiples of `hop` seconds from 0 to before `duration`."""
    # The small step down keeps 0.07 / 0.01 = 7.000000000000001 on frame 7.
    return max(0, int(np.ceil(duration / hop - 1e-6)))


def _near_pairs(reference: Notes, estimate: Notes) -> NDArray[np.int64]:
    """Return indices `(M, 2)` of reference and estimate with matching onset and pitch, ascending.

    mir_eval compares all with all; here only what lies within the onset window is looked at.
    """
    order = np.argsort(estimate[:, 0])
    onsets = estimate[order, 0]
    first = np.searchsorted(onsets, reference[:, 0] - 0.051)
    count = np.searchsorted(onsets, reference[:, 0] + 0.051) - first
    true = np.repeat(np.arange(len(reference)), count)  # (M,)
    found = order[np.arange(len(true)) + np.repeat(first - (np.cumsum(count) - count), count)]  # (M,)
    distance = np.abs(reference[true] - estimate[found])  # (M, 4)
    # mir_eval rounds times to 0.1 ms, so that 50 ms is within 50 ms in binary fractions too.
    near = (np.around(distance[:, 0], 4) <= 0.05) & (distance[:, 2] <= 0.5)
    pairs = np.column_stack([true, found])[near]
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _match(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs `(M, 2)` of a maximum matching, ascending."""
    # There may be many maximum matchings, and the velocity fit depends on which one is taken: mir_eval's own,
    # given the same graph in the same order, so that scores are equal to the last digit.
    from mir_eval.util import _bipartite_match

    graph: dict[int, list[int]] = {}
    for true, found in pairs.tolist():
        graph.setdefault(found, []).append(true)
    return np.array(sorted(_bipartite_match(graph).items()), dtype=np.int64).reshape(-1, 2)


def _velocity_hits(reference: NDArray[np.float64], estimate: NDArray[np.float64], matched: NDArray[np.int64]) -> int:
    """Count the matched notes with a velocity within 0.1, once estimates are fitted to the reference's 0..1."""
    if not len(matched):
        return 0
    true = ((reference - reference.min()) / max(1, np.ptp(reference)))[matched[:, 0]]  # (M,)
    terms = np.column_stack([estimate[matched[:, 1]], np.ones(len(matched))])  # (M, 2)
    slope, intercept = np.linalg.lstsq(terms, true, rcond=None)[0]
    return int((np.abs(slope * terms[:, 0] + intercept - true) < 0.1).sum())


def _sounding(notes: Notes, duration: float) -> NDArray[np.bool_]:
    """Say `(88, T)` whether each key sounds at each multiple of `FRAME_HOP` before `duration`."""
    frames = frame_count(FRAME_HOP, duration)
    notes = on_keyboard(notes)
    key = np.rint(notes[:, 2]).astype(int) - PIANO_PITCHES[0]
    kept = notes[:, 1] > notes[:, 0]
    changes = np.zeros((len(PIANO_PITCHES), frames + 1), np.int16)
    first, end = _spans(notes[kept], FRAME_HOP, frames)
    np.add.at(changes, (key[kept], first), 1)
    np.add.at(changes, (key[kept], end), -1)
    return changes.cumsum(axis=1, dtype=np.int16)[:, :-1] > 0


def _spans(notes: Notes, hop: float, frames: int) -> NDArray[np.int64]:
    """Return the first frame in which each note sounds, and the first in which it no longer does, `(2, K)`."""
    return np.clip(np.ceil(notes[:, :2].T / hop - 1e-6), 0, frames).astype(int)
