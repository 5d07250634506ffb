"""Decoding: its rules against a plain loop, its inverse of the targets, and chunks of any cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parts import decode
from wavespace.data.base import Notes
from wavespace.data.labels import Roll, piano_roll
from wavespace.spec import PIANO_PITCHES
from wavespace.tasks.decode import Decoder

RATE = 22050 / 512


def maps_of(notes: Notes, pitches: tuple[int, ...], seconds: float, rate: float = RATE) -> Roll:
    """Targets of one recording as numpy arrays `(P, T)`."""
    rows = torch.from_numpy(np.column_stack([np.zeros(len(notes)), notes]))
    frames = int(seconds * rate) + 1
    roll = piano_roll(rows, batch=1, pitches=pitches, frame_rate=rate, frames=frames)
    return Roll(*(values[0].numpy() for values in roll))


def decoded(roll: Roll, pitches: tuple[int, ...], with_offset: bool, rate: float = RATE) -> Notes:
    offset = roll.offset if with_offset else None
    return decode(roll.onset, roll.frame, roll.velocity, offset, pitches=pitches, frame_rate=rate)


def by_hand(maps: np.ndarray, onset_least: float, frame_least: float, offset_least: float) -> list[list[float]]:
    """The rules of `Decoder` for maps `(4, P, T)`, one cell at a time; times in frames, pitch is the row."""
    notes = []
    for row in range(maps.shape[1]):
        onset, frame, velocity, offset = np.pad(maps[:, row].astype(float), [(0, 0), (2, 4)])

        def time_of_maximum(curve: np.ndarray, t: int, least: float) -> float | None:
            before, after = curve[t - 2 : t], curve[t + 1 : t + 3]
            if curve[t] < least or max(before) >= curve[t] or max(after) > curve[t]:
                return None
            left, right = curve[t - 1], curve[t + 1]
            return t + (right - left) / 2 / (curve[t] - min(left, right))

        starts = {t: time_of_maximum(onset, t, onset_least) for t in range(2, len(onset) - 4)}
        starts = {t: time for t, time in starts.items() if time is not None}
        for t, start in starts.items():
            end = None
            for now in range(t + 1, len(onset) - 3):
                release = time_of_maximum(offset, now, offset_least) if now >= t + 2 else None
                if release is not None:
                    end = release
                elif frame[now] < frame_least:
                    high, low = frame[now - 1], frame[now]
                    end = now - (frame_least - low) / (high - low) if high >= frame_least else now
                    # The offset map decides where both do, a maximum in the same frame included.
                if now in starts:
                    end = starts[now] if end is None else min(end, starts[now])
                if end is not None:
                    break
            assert end is not None
            loud = min(max(np.rint(127 * np.float32(velocity[t])), 1), 127)
            notes.append([start - 2, max(end, start + 1) - 2, row, loud])
    return sorted(notes, key=lambda note: (note[0], note[2]))


@st.composite
def random_maps(draw: st.DrawFn) -> np.ndarray:
    """`(4, P, T)` noise, coarse enough for ties, or fine."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([3, 8, 1000]))
    shape = (4, draw(st.integers(1, 3)), draw(st.integers(0, 40)))
    maps = rng.integers(0, levels, shape) / (levels - 1)
    maps[1] = maps[1] ** draw(st.sampled_from([0.1, 1.0]))  # long notes, or broken ones
    maps[3] *= draw(st.sampled_from([0.0, 1.0]))
    return maps.astype(np.float32)


@given(random_maps(), st.sampled_from([0.3, 0.5, 0.9]), st.sampled_from([0.2, 0.4, 1.0]))
@settings(max_examples=300, deadline=None)
def test_any_maps_are_decoded_by_the_rules(maps: np.ndarray, onset_least: float, frame_least: float) -> None:
    onset_least, frame_least = float(np.float32(onset_least)), float(np.float32(frame_least))
    ours = decode(
        *maps,
        pitches=range(maps.shape[1]),
        frame_rate=1.0,
        onset_threshold=onset_least,
        frame_threshold=frame_least,
        offset_threshold=0.75,
    )
    expected = np.array(by_hand(maps, onset_least, frame_least, 0.75)).reshape(-1, 4)
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@given(random_maps(), st.lists(st.integers(0, 40), max_size=8))
@settings(max_examples=200, deadline=None)
def test_cuts_change_nothing(maps: np.ndarray, cuts: list[int]) -> None:
    decoder = Decoder(pitches=range(60, 60 + maps.shape[1]), frame_rate=RATE)
    whole = decode(*maps, pitches=decoder.pitches.tolist(), frame_rate=RATE)
    for _ in range(2):  # a flushed decoder is as new
        parts = [decoder.push(*part) for part in np.split(maps, sorted(cuts), axis=2)]
        notes = np.concatenate([*parts, decoder.flush()])
        assert np.array_equal(notes[np.lexsort((notes[:, 2], notes[:, 0]))], whole)


@given(random_maps())
@settings(max_examples=100, deadline=None)
def test_notes_of_a_pitch_follow_one_another(maps: np.ndarray) -> None:
    notes = decode(*maps, pitches=range(maps.shape[1]), frame_rate=1.0)
    for pitch in np.unique(notes[:, 2]):
        onset, offset = notes[notes[:, 2] == pitch, :2].T
        assert (offset >= onset + 1 - 1e-9).all()
        assert (onset[1:] >= offset[:-1] - 1e-9).all()
    assert (notes[:, 0] >= 0).all()


@st.composite
def playable_notes(draw: st.DrawFn) -> tuple[Notes, float]:
    """Notes that 43 frames a second can hold: 60 ms or longer, onsets of a pitch 120 ms apart or more."""
    notes = []
    for pitch in draw(st.lists(st.sampled_from([21, 22, 60, 61, 108]), unique=True, max_size=4)):
        time = draw(st.floats(0.025, 1.0))
        for _ in range(draw(st.integers(0, 6))):
            length, gap = draw(st.floats(0.06, 1.0)), draw(st.one_of(st.just(0.0), st.floats(0, 0.5)))
            notes.append([time, time + length, pitch, draw(st.integers(1, 127))])
            time += max(length + gap, 0.12)
    found = np.array(sorted(notes, key=lambda note: (note[0], note[2]))).reshape(-1, 4)
    return found, float(found[:, 1].max(initial=0)) + 0.2


@given(playable_notes(), st.booleans(), st.sampled_from([RATE, 100.0]))
@settings(max_examples=200, deadline=None)
def test_targets_are_decoded_to_their_notes(
    notes_and_seconds: tuple[Notes, float], with_offset: bool, rate: float
) -> None:
    notes, seconds = notes_and_seconds
    pitches = (21, 22, 60, 61, 108)
    found = decoded(maps_of(notes, pitches, seconds, rate), pitches, with_offset, rate)
    assert len(found) == len(notes)
    found = found[np.lexsort((found[:, 0], found[:, 2]))]
    notes = notes[np.lexsort((notes[:, 0], notes[:, 2]))]
    assert np.array_equal(found[:, 2:], notes[:, 2:])
    assert np.abs(found[:, 0] - notes[:, 0]).max(initial=0) < 1e-4
    assert np.abs(found[:, 1] - notes[:, 1]).max(initial=0) < 1 / rate


@given(st.floats(3.0, 9.0), st.floats(0.6, 1.0))
def test_onset_times_are_exact_whatever_the_height(time: float, height: float) -> None:
    onset = height * np.clip(1 - np.abs(np.arange(13) - time) / 2, 0, None)[None]
    (note,) = decode(onset, onset > 0, onset, pitches=[60], frame_rate=RATE, onset_threshold=0.4)
    assert note[0] == pytest.approx(time / RATE, abs=1e-5)


def test_the_offset_map_gives_exact_ends() -> None:
    notes = np.array([[0.1, 0.3333, 60, 64], [0.5, 0.7777, 60, 64]])
    found = decoded(maps_of(notes, (60,), 1.0), (60,), with_offset=True)
    np.testing.assert_allclose(found, notes, atol=1e-5)


def test_a_note_open_at_the_end_is_closed_there() -> None:
    onset = np.array([[0, 0, 1, 0, 0, 0]])
    (note,) = decode(onset, np.ones((1, 6)), onset, pitches=[60], frame_rate=1.0)
    assert note == pytest.approx([2, 5.6, 60, 127])  # the line from 1 at frame 5 to silence crosses 0.4


def test_a_rise_after_a_level_stretch_is_one_onset() -> None:
    onset = np.array([[0.0, 0.6, 0.7, 0.7, 0.8, 0.1, 0.0, 0.0]])
    found = decode(onset, np.ones_like(onset), onset, pitches=[60], frame_rate=1.0)
    assert len(found) == 1
    assert found[0, 0] == pytest.approx(4, abs=0.5)


def test_memory_does_not_grow_with_the_recording() -> None:
    rng = np.random.default_rng(0)
    decoder = Decoder(PIANO_PITCHES, RATE)
    for _ in range(20):
        decoder.push(*rng.random((4, 88, 500), dtype=np.float32))
        held = [value for value in vars(decoder).values() if isinstance(value, np.ndarray)]
        assert all(value.base is None for value in held)  # a view would keep the whole chunk alive
        assert sum(value.size for value in held) <= 88 * (4 * 4 + 4 + 1)


@pytest.mark.parametrize("name", ["onset_threshold", "frame_threshold", "offset_threshold"])
@pytest.mark.parametrize("value", [0.0, 1.5, float("nan")])
def test_a_threshold_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value}: input should be"):
        Decoder([60], RATE, **{name: value})
