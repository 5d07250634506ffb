"""Scores equal mir_eval's to the last digit, and are defined where mir_eval's are not."""

from __future__ import annotations

import time
import warnings

import mir_eval
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavespace.data.base import NO_NOTES, Notes, Pitches
from wavespace.data.files.midi import on_keyboard
from wavespace.metrics import average
from wavespace.metrics.notes import FRAME_HOP, frame_scores, note_scores, pitches_at
from wavespace.metrics.pitch import PITCH_HOP, melody_scores, multipitch_f1, multipitch_scores
from wavespace.spec import PIANO_PITCHES
from wavespace.tasks.piano_roll import findable_notes
from wavespace.units import midi_to_hz

# Times on a 10 ms grid hit the tolerances exactly; few pitches and a short stretch make matchings ambiguous.
note = st.tuples(
    st.one_of(st.integers(0, 40).map(lambda t: t / 100), st.floats(0, 0.4)),
    st.one_of(st.integers(1, 60).map(lambda t: t / 100), st.floats(0.001, 0.6)),
    st.sampled_from([60, 61, 72]),
    st.integers(1, 127),
).map(lambda n: [n[0], n[0] + n[1], n[2], n[3]])
some_notes = st.lists(note, min_size=1, max_size=14).map(np.array)


def by_mir_eval(reference: Notes, estimate: Notes) -> dict[str, float]:
    ref, est = ((notes[:, :2], midi_to_hz(notes[:, 2])) for notes in (reference, estimate))
    precision, recall, f1, _ = mir_eval.transcription.precision_recall_f1_overlap(*ref, *est, offset_ratio=None)
    _, _, with_offset, _ = mir_eval.transcription.precision_recall_f1_overlap(*ref, *est)
    _, _, with_velocity, _ = mir_eval.transcription_velocity.precision_recall_f1_overlap(
        *ref, reference[:, 3], *est, estimate[:, 3]
    )
    return {
        "note_precision_onset": precision,
        "note_recall_onset": recall,
        "note_f1_onset": f1,
        "note_f1_onset_offset": with_offset,
        "note_f1_onset_offset_velocity": with_velocity,
    }


@given(some_notes, some_notes)
@settings(max_examples=300, deadline=None)
def test_note_scores_equal_mir_eval(reference: Notes, estimate: Notes) -> None:
    assert note_scores(reference, estimate) == by_mir_eval(reference, estimate)


@pytest.mark.parametrize("jitter", [0.01, 0.04])
def test_note_scores_equal_mir_eval_on_a_long_piece(jitter: float) -> None:
    rng = np.random.default_rng(0)
    onset = rng.uniform(0, 40, 600)
    reference = np.column_stack([onset, onset + rng.uniform(0.05, 1, 600), rng.integers(48, 72, 600), onset])
    reference[:, 3] = rng.integers(1, 128, 600)
    estimate = reference[rng.random(600) < 0.9]
    estimate[:, :2] += rng.normal(0, jitter, (len(estimate), 2))
    estimate[:, 3] += rng.normal(0, 12, len(estimate))
    estimate = np.abs(estimate[estimate[:, 1] > estimate[:, 0]])
    scores = note_scores(reference, estimate)
    assert scores == by_mir_eval(reference, estimate)
    assert 0.2 < scores["note_f1_onset_offset_velocity"] < scores["note_f1_onset"] < 1


def test_note_scores_by_hand() -> None:
    reference = np.array([[0, 1, 60, 20], [1, 2, 62, 60], [2, 3, 64, 100]])
    estimate = np.array([[0.04, 1, 60, 20], [1, 1.7, 62, 60], [2.06, 3, 64, 100], [2, 3, 65, 100]])
    scores = note_scores(reference, estimate)
    assert scores["note_precision_onset"] == 2 / 4
    assert scores["note_recall_onset"] == 2 / 3
    assert scores["note_f1_onset"] == pytest.approx(4 / 7)
    assert scores["note_f1_onset_offset"] == pytest.approx(2 / 7)  # the second ends 0.3 s early, 0.2 s are allowed


@given(some_notes, some_notes, st.sampled_from([0.3, 0.55, 1.2]))
@settings(max_examples=60, deadline=None)
def test_frame_scores_equal_mir_eval_multipitch(reference: Notes, estimate: Notes, duration: float) -> None:
    # Times lie on the grid or clear of it, and neither side is empty.
    reference, estimate = (np.vstack([notes.round(5), [0, 0.01, 61, 1]]) for notes in (reference, estimate))
    times = np.arange(round(duration * 100)) / 100

    def frequencies(notes: Notes) -> list[np.ndarray]:
        active = (notes[:, :1] <= times + 1e-8) & (times + 1e-8 < notes[:, 1:2])  # (K, T)
        return [midi_to_hz(np.unique(notes[on, 2])) for on in active.T]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, *_ = mir_eval.multipitch.metrics(times, frequencies(reference), times, frequencies(estimate))
    scores = frame_scores(reference, estimate, duration=duration)
    assert scores["frame_precision"] == pytest.approx(precision)
    assert scores["frame_recall"] == pytest.approx(recall)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert scores["frame_f1"] == pytest.approx(f1)


def test_frame_scores_by_hand() -> None:
    reference = np.array([[0.0, 0.5, 60, 64], [0.5, 1.0, 108, 64]])
    estimate = np.array([[0.25, 0.75, 60, 64]])
    scores = frame_scores(reference, estimate, duration=1.0)
    assert scores == {"frame_precision": 0.5, "frame_recall": 0.25, "frame_f1": pytest.approx(1 / 3)}


def test_overlapping_notes_of_a_key_count_once() -> None:
    twice = np.array([[0.0, 0.5, 60, 64], [0.1, 0.3, 60, 64]])
    assert frame_scores(twice, twice[:1], duration=1.0)["frame_f1"] == 1


@pytest.mark.parametrize(("empty_reference", "empty_estimate", "value"), [(1, 1, np.nan), (1, 0, 0.0), (0, 1, 0.0)])
def test_empty_sides_are_zero_or_undefined_and_do_not_warn(
    empty_reference: int, empty_estimate: int, value: float
) -> None:
    some = np.array([[0.1, 0.5, 60, 64]])
    reference, estimate = (NO_NOTES if empty else some for empty in (empty_reference, empty_estimate))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = note_scores(reference, estimate) | frame_scores(reference, estimate, duration=1.0)
    assert len(scores) == 8
    np.testing.assert_array_equal(list(scores.values()), value)


def test_what_is_undefined_does_not_count_and_is_zero_alone() -> None:
    nothing, found = note_scores(NO_NOTES, NO_NOTES), note_scores(*[np.array([[0.1, 0.5, 60, 64]])] * 2)
    assert average([nothing, found])["note_f1_onset"] == 1
    assert set(average([nothing, nothing]).values()) == {0}


def test_nothing_within_the_audio_and_the_keyboard_is_undefined() -> None:
    late, low = np.array([[5.0, 6.0, 60, 64]]), np.array([[0.0, 1.0, 12, 64]])
    assert np.isnan(frame_scores(late, low, duration=1.0)["frame_f1"])


def test_notes_off_the_keyboard_count_in_no_figure() -> None:
    off = np.array([[0.1, 0.5, 20, 64], [0.1, 0.5, 109, 64], [0.1, 0.5, 21, 64], [0.1, 0.5, 108, 64]])
    assert on_keyboard(off)[:, 2].tolist() == [21, 108]
    assert findable_notes(off)[:, 2].tolist() == [21, 108]
    assert frame_scores(off, on_keyboard(off), duration=1.0)["frame_f1"] == 1


@given(some_notes, st.floats(-0.5, 0.5), st.floats(-0.5, 0.001))
@settings(max_examples=60, deadline=None)
def test_odd_lengths_and_times_are_scored(notes: Notes, shift: float, length: float) -> None:
    odd = notes + np.array([shift, shift, 0, 0])
    odd[::2, 1] = odd[::2, 0] + length
    for reference, estimate in [(odd, notes), (notes, odd), (odd, odd)]:
        scores = note_scores(reference, estimate) | frame_scores(reference, estimate, duration=0.5)
        assert all(0 <= score <= 1 or np.isnan(score) for score in scores.values())
    assert note_scores(odd, odd)["note_f1_onset_offset"] == 1


@given(some_notes, some_notes, st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_notes_does_not_change_what_is_found(reference: Notes, estimate: Notes, random: object) -> None:
    order = list(range(len(estimate)))
    random.shuffle(order)  # type: ignore[attr-defined]
    one, other = note_scores(reference, estimate), note_scores(reference, estimate[order])
    for key in ("note_f1_onset", "note_f1_onset_offset"):
        assert one[key] == other[key]


def test_perfect_estimates_score_one() -> None:
    onset = np.arange(88) * 0.1
    notes = np.column_stack([onset, onset + 0.05, PIANO_PITCHES, np.arange(20, 108)])
    scores = note_scores(notes, notes) | frame_scores(notes, notes, duration=10.0)
    assert set(scores.values()) == {1.0}


def test_average_weighs_recordings_alike() -> None:
    assert average([{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.5}]) == {"a": 0.5, "b": 0.25}
    assert average([]) == {}


# --- Pitches by frame ------------------------------------------------------------------------------------


def rows_of(frames: list[list[float]]) -> Pitches:
    """`(N, 3)` rows of the pitches of each frame."""
    rows = [[t, pitch, 1.0] for t, pitches in enumerate(frames) for pitch in sorted(pitches)]
    return np.array(rows).reshape(-1, 3)


def by_multipitch(reference: Pitches, estimate: Pitches, frames: int) -> dict[str, float]:
    times = np.arange(frames) * PITCH_HOP
    sides = [[midi_to_hz(side[side[:, 0] == t, 1]) for t in range(frames)] for side in (reference, estimate)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mir_eval.multipitch.metrics(times, sides[0], times, sides[1])
    precision, recall, accuracy, *_ = found
    chroma = found[7:9]
    return {
        "salience_precision": precision,
        "salience_recall": recall,
        "salience_f1": 2 * precision * recall / (precision + recall) if precision else 0.0,
        "salience_accuracy": accuracy,
        "salience_chroma_f1": 2 * chroma[0] * chroma[1] / sum(chroma) if chroma[0] else 0.0,
    }


def without_octaves(scores: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name != "octave_share_of_fp"}


# Steps of pi / 60 semitones are many to a quarter tone, and never at its very end, where mir_eval rounds in Hz.
some_pitch = st.one_of(st.integers(0, 60), st.integers(0, 800)).map(lambda n: 45 + n * np.pi / 60)
some_frames = st.lists(st.lists(some_pitch, max_size=9), min_size=5, max_size=5).filter(any)


@given(some_frames, some_frames)
@settings(max_examples=120, deadline=None)
def test_pitches_by_frame_equal_mir_eval(reference: list[list[float]], estimate: list[list[float]]) -> None:
    true, found = rows_of(reference), rows_of(estimate)
    scores = multipitch_scores(true, found)
    assert without_octaves(scores) == pytest.approx(by_multipitch(true, found, 5), rel=1e-12)
    assert multipitch_f1(true, found) == scores["salience_f1"]


@pytest.mark.parametrize(("true", "false"), [(3, 4), (15, 30)])
def test_pitches_by_frame_equal_mir_eval_on_a_long_piece_and_where_pitches_are_all_around_the_octave(
    true: int, false: int
) -> None:
    rng = np.random.default_rng(0)
    notes = [rng.uniform(40, 95, rng.poisson(true)).tolist() for _ in range(300)]
    heard = [
        [p + rng.choice([0, 12, -12, 0.7], p=[0.6, 0.1, 0.1, 0.2]) for p in part if rng.random() < 0.8]
        + rng.uniform(40, 95, rng.poisson(false)).tolist()
        for part in notes
    ]
    reference, estimate = rows_of(notes), rows_of(heard)
    scores = multipitch_scores(reference, estimate)
    assert without_octaves(scores) == pytest.approx(by_multipitch(reference, estimate, 300), rel=1e-12)
    assert 0.1 < scores["salience_f1"] < scores["salience_chroma_f1"] < 1


def test_octave_errors_are_false_positives_that_ring_with_something() -> None:
    reference = rows_of([[60.0], [60.0, 67.0], []])
    # 72 and 48.2 are octaves of 60; 67 and 84.6 are not; 60.3 would be right, were it not found already.
    estimate = rows_of([[48.2, 60.0, 60.3, 67.0, 72.0, 84.6], [60.0, 67.0], [72.0]])
    scores = multipitch_scores(reference, estimate)
    assert scores["octave_share_of_fp"] == pytest.approx(2 / 6)
    assert scores["salience_precision"] == pytest.approx(3 / 9)
    assert scores["salience_recall"] == 1
    assert scores["salience_accuracy"] == pytest.approx(3 / 9)
    assert multipitch_scores(reference, reference)["octave_share_of_fp"] == 0


@pytest.mark.parametrize(("true", "found", "value"), [([], [], np.nan), ([60.0], [], 0.0), ([], [60.0], 0.0)])
def test_empty_sides_of_pitches_are_zero_or_undefined(true: list[float], found: list[float], value: float) -> None:
    reference, estimate = rows_of([true]), rows_of([found])
    scores = without_octaves(multipitch_scores(reference, estimate))
    np.testing.assert_array_equal(list(scores.values()), value)
    np.testing.assert_equal(multipitch_f1(reference, estimate), value)


@given(some_notes, st.floats(-0.1, 0.1), st.sampled_from([FRAME_HOP, PITCH_HOP]))
@settings(max_examples=100, deadline=None)
def test_pitches_are_those_that_sound_at_a_time(notes: Notes, shift: float, hop: float) -> None:
    notes = (notes + np.array([shift, 0, 0.3, 0])).round(5)  # no notes are left of some: they end before they begin
    found = pitches_at(notes, hop=hop, duration=0.55)
    expected = [
        sorted({pitch for onset, offset, pitch, _ in notes if onset <= t * hop + 1e-8 < offset})
        for t in range(round(0.55 / hop))
    ]
    np.testing.assert_array_equal(found, rows_of(expected))


@pytest.mark.timing
def test_pitches_by_frame_take_a_fifth_of_mir_evals_time_at_most() -> None:
    rng = np.random.default_rng(0)
    notes, heard = ([rng.uniform(40, 90, rng.poisson(most)).tolist() for _ in range(600)] for most in (4, 6))
    reference, estimate = rows_of(notes), rows_of(heard)  # 30 seconds
    times = np.arange(600) * PITCH_HOP
    sides = [[midi_to_hz(side[side[:, 0] == t, 1]) for t in range(600)] for side in (reference, estimate)]
    theirs, ours = [], []
    for _ in range(3):
        start = time.perf_counter()
        mir_eval.multipitch.metrics(times, sides[0], times, sides[1])
        middle = time.perf_counter()
        multipitch_scores(reference, estimate)
        theirs.append(middle - start)
        ours.append(time.perf_counter() - middle)
    assert min(ours) < min(theirs) / 5


# --- A single voice --------------------------------------------------------------------------------------

voice_frame = st.tuples(
    st.one_of(st.just(float("nan")), st.integers(0, 300).map(lambda n: 45 + n * np.pi / 60)),
    st.integers(-300, 300).map(lambda n: n * np.pi / 60),
    st.booleans(),
)


@given(st.lists(voice_frame, min_size=1, max_size=30))
@settings(max_examples=120, deadline=None)
def test_scores_of_a_single_voice_equal_mir_eval(frames: list[tuple[float, float, bool]]) -> None:
    reference, off, voiced = (np.array(column) for column in zip(*frames))
    estimate = np.where(np.isnan(reference), 60.0, reference) + off
    times = np.arange(len(frames)) * FRAME_HOP
    true_hz = np.nan_to_num(midi_to_hz(reference))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = mir_eval.melody.evaluate(times, true_hz, times, midi_to_hz(estimate) * np.where(voiced, 1, -1))
    assert melody_scores(reference, estimate, voiced) == pytest.approx(
        {
            "rpa": expected["Raw Pitch Accuracy"],
            "rca": expected["Raw Chroma Accuracy"],
            "vr": expected["Voicing Recall"],
            "vfa": expected["Voicing False Alarm"],
        }
    )


def test_scores_of_a_single_voice_by_hand() -> None:
    reference = np.array([60.0, 60.0, 60.0, 60.0, np.nan, np.nan])
    estimate = np.array([60.4, 72.1, 61.0, 60.0, 60.0, 60.0])
    voiced = np.array([True, True, True, False, True, False])
    assert melody_scores(reference, estimate, voiced) == {"rpa": 0.5, "rca": 0.75, "vr": 0.75, "vfa": 0.5}
