"""Scores as the field counts them, by mir_eval's rules: notes, keys by frame, pitches by frame, and a single voice.

Every score lies in 0..1. Where reference and estimate are both empty it is 1, where only one is it is 0
(mir_eval gives 0 for both, which would punish a model for hearing silence in silence); `melody_scores` says its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import Notes
from wavespace.decode import Pitches
from wavespace.spec import PIANO_PITCHES

FRAME_HOP = 0.01
"""Seconds between the frames that are scored, whatever the frame rate of the model."""

PITCH_HOP = 0.05
"""Seconds between the frames in which pitches of any number are scored."""

QUARTER_TONE = 0.5
"""Semitones that a pitch may be off."""


def note_scores(reference: Notes, estimate: Notes) -> dict[str, float]:
    """Note scores of one recording, equal to `mir_eval.transcription` and `transcription_velocity`.

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
    onset = offset = velocity = (_without(len(reference), len(estimate)),) * 3
    if len(reference) and len(estimate):
        pairs = _near_pairs(reference, estimate)  # (M, 2)
        matched = _match(pairs)
        onset = _precision_recall_f1(len(matched), len(estimate), len(reference))

        true, found = reference[pairs[:, 0]], estimate[pairs[:, 1]]  # (M, 4)
        tolerance = np.maximum(0.2 * (true[:, 1] - true[:, 0]), 0.05)
        matched = _match(pairs[np.around(np.abs(true[:, 1] - found[:, 1]), 4) <= tolerance])
        offset = _precision_recall_f1(len(matched), len(estimate), len(reference))

        hits = _velocity_hits(reference[:, 3], estimate[:, 3], matched)
        velocity = _precision_recall_f1(hits, len(estimate), len(reference))
    return {
        "note_precision_onset": onset[0],
        "note_recall_onset": onset[1],
        "note_f1_onset": onset[2],
        "note_f1_onset_offset": offset[2],
        "note_f1_onset_offset_velocity": velocity[2],
    }


def frame_scores(reference: Notes, estimate: Notes, *, duration: float) -> dict[str, float]:
    """Frame scores of one recording on 88 keys, every 10 ms, pooled over keys and frames.

    Notes of other pitches don't count on either side.

    A key sounds in frame `k` if `onset <= 0.01 k < offset` for one of its notes, as in the frame metrics of
    Hawthorne et al., "Onsets and frames", ISMIR 2018, at the hop of Kong et al., IEEE/ACM TASLP 29, 2021.

    Args:
        reference: `(K, 4)` true notes.
        estimate: `(L, 4)` decoded notes.
        duration: seconds that are scored, from 0.

    Returns:
        `frame_precision`, `frame_recall` and `frame_f1`; NaN where nothing sounds on either side.
    """
    true, found = (_sounding(notes, duration) for notes in (reference, estimate))  # (88, T)
    estimated, actual = int(found.sum()), int(true.sum())
    if estimated and actual:
        precision, recall, f1 = _precision_recall_f1(int((true & found).sum()), estimated, actual)
    else:
        precision = recall = f1 = _without(actual, estimated)
    return {"frame_precision": precision, "frame_recall": recall, "frame_f1": f1}


def pitches_at(notes: Notes, *, hop: float, duration: float) -> Pitches:
    """What sounds at each multiple of `hop` seconds before `duration`: `onset <= time < offset`; salience is 1.

    Notes of one pitch that overlap are one pitch.
    """
    first, end = _spans(notes, hop, _frames(hop, duration))  # (K,)
    count = np.maximum(0, end - first)  # (K,)
    frame = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())  # (N,)
    pitches = np.column_stack([frame, np.repeat(notes[:, 2], count), np.ones(len(frame))])
    pitches = pitches[np.lexsort((pitches[:, 1], pitches[:, 0]))]
    return pitches[np.append(True, np.diff(pitches[:, :2], axis=0).any(axis=1))[: len(pitches)]]


def multipitch_scores(reference: Pitches, estimate: Pitches) -> dict[str, float]:
    """Scores of pitches by frame of one recording, equal to `mir_eval.multipitch` at its defaults.

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
        scores = dict.fromkeys(("precision", "recall", "f1", "accuracy", "chroma_f1"), _without(actual, estimated))
        return {f"salience_{name}": value for name, value in scores.items()} | {"octave_share_of_fp": 0.0}
    true, found = _by_frame(reference, estimate)
    matched = _matched(true, found)  # (T, E)
    hits = int(matched.sum())
    precision, recall, f1 = _precision_recall_f1(hits, estimated, actual)
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
        "salience_chroma_f1": _precision_recall_f1(_chroma_hits(true, found), estimated, actual)[2],
        "octave_share_of_fp": int(wrong_octave.sum()) / max(1, estimated - hits),
    }


def multipitch_f1(reference: Pitches, estimate: Pitches) -> float:
    """`salience_f1` of `multipitch_scores`, alone."""
    estimated, actual = len(estimate), len(reference)
    if not estimated or not actual:
        return _without(actual, estimated)
    return _precision_recall_f1(int(_matched(*_by_frame(reference, estimate)).sum()), estimated, actual)[2]


def melody_scores(
    reference: NDArray[np.float64], estimate: NDArray[np.float64], voiced: NDArray[np.bool_]
) -> dict[str, float]:
    """Scores of a single voice, equal to `mir_eval.melody` at its defaults, on equal frames for both.

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


def average(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each score over recordings, as the field reports them: every recording weighs the same."""
    return {key: mean([score[key] for score in scores]) for key in scores[0]} if scores else {}


def mean(values: Sequence[float]) -> float:
    """Mean over the recordings in which a score is defined; 0, as mir_eval has it, where it is defined in none.

    A recording in which nothing was to be found and nothing was found says nothing of what a model hears.
    """
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else 0.0


def on_keyboard(notes: Notes) -> Notes:
    """The notes of the 88 keys of a piano."""
    return notes[(np.rint(notes[:, 2]) >= PIANO_PITCHES[0]) & (np.rint(notes[:, 2]) <= PIANO_PITCHES[-1])]


def _without(actual: int, estimated: int) -> float:
    """Precision, recall and F1 where a side has nothing: undefined if both have nothing, else 0."""
    return 0.0 if actual or estimated else float("nan")


def _precision_recall_f1(hits: int, estimated: int, actual: int) -> tuple[float, float, float]:
    precision, recall = hits / estimated, hits / actual
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def _near_pairs(reference: Notes, estimate: Notes) -> NDArray[np.int64]:
    """`(M, 2)` indices of reference and estimate with matching onset and pitch, ascending.

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
    """`(M, 2)` pairs of a maximum matching, ascending."""
    # There may be many maximum matchings, and the velocity fit depends on which one is taken: mir_eval's own,
    # given the same graph in the same order, so that scores are equal to the last digit.
    from mir_eval.util import _bipartite_match

    graph: dict[int, list[int]] = {}
    for true, found in pairs.tolist():
        graph.setdefault(found, []).append(true)
    return np.array(sorted(_bipartite_match(graph).items()), dtype=np.int64).reshape(-1, 2)


def _velocity_hits(reference: NDArray[np.float64], estimate: NDArray[np.float64], matched: NDArray[np.int64]) -> int:
    """How many matched notes have a velocity within 0.1, with estimates fitted to the reference's 0..1."""
    if not len(matched):
        return 0
    true = ((reference - reference.min()) / max(1, np.ptp(reference)))[matched[:, 0]]  # (M,)
    terms = np.column_stack([estimate[matched[:, 1]], np.ones(len(matched))])  # (M, 2)
    slope, intercept = np.linalg.lstsq(terms, true, rcond=None)[0]
    return int((np.abs(slope * terms[:, 0] + intercept - true) < 0.1).sum())


def _sounding(notes: Notes, duration: float) -> NDArray[np.bool_]:
    """`(88, T)` whether a key sounds at each multiple of `FRAME_HOP` before `duration`."""
    frames = _frames(FRAME_HOP, duration)
    notes = on_keyboard(notes)
    key = np.rint(notes[:, 2]).astype(int) - PIANO_PITCHES[0]
    kept = notes[:, 1] > notes[:, 0]
    changes = np.zeros((len(PIANO_PITCHES), frames + 1), np.int16)
    first, end = _spans(notes[kept], FRAME_HOP, frames)
    np.add.at(changes, (key[kept], first), 1)
    np.add.at(changes, (key[kept], end), -1)
    return changes.cumsum(axis=1, dtype=np.int16)[:, :-1] > 0


def _frames(hop: float, duration: float) -> int:
    """How many multiples of `hop` there are before `duration`."""
    # The small step down keeps 0.07 / 0.01 = 7.000000000000001 on frame 7.
    return max(0, int(np.ceil(duration / hop - 1e-6)))


def _spans(notes: Notes, hop: float, frames: int) -> NDArray[np.int64]:
    """`(2, K)` first frame in which each note sounds, and the first in which it no longer does."""
    return np.clip(np.ceil(notes[:, :2].T / hop - 1e-6), 0, frames).astype(int)


def _by_frame(*sides: Pitches) -> list[NDArray[np.float64]]:
    """Pitches in a row a frame for each side, `(T, most + 1)`, ascending, infinite after the last of a frame.

    Frames in which one side has nothing and the other has are there too, those after the last pitch are not.
    """
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
    """`(T, E)` which of `found` have a partner of their own in `true`, in a maximum matching of each row.

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
    """Pairs of a maximum matching of pitch classes, over all rows."""
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
        from mir_eval.util import _outer_distance_mod_n, match_events

        for a, b in zip(sides[0][crowded], sides[1][crowded]):
            a, b = a[np.isfinite(a)], b[np.isfinite(b)]
            hits += len(match_events(a, b, QUARTER_TONE, distance=_outer_distance_mod_n))
    return hits
