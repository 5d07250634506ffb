"""Piano-roll targets against a plain loop over notes and frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavespace.data.labels import Roll, piano_roll
from wavespace.spec import PIANO_PITCHES

RATE = 22050 / 512


def by_hand(notes: list[list[float]], batch: int, pitches: list[int], rate: float, frames: int) -> np.ndarray:
    """`(4, B, P, T)` onset, frame, offset, velocity, by the definition, in float64."""
    roll = np.zeros((4, batch, len(pitches), frames))
    onset_map, frame_map, offset_map, velocity_map = roll
    for item, onset, offset, pitch, velocity in notes:
        if pitch not in pitches:
            continue
        cell = int(item), pitches.index(int(pitch))
        covered = [t for t in range(-100, 200) if onset * rate <= t < offset * rate]
        for t in covered or [math.floor(onset * rate + 0.5)]:
            if 0 <= t < frames:
                frame_map[(*cell, t)] = 1
        for t in range(frames):
            height = np.float32(max(0.0, 1 - abs(t - onset * rate) / 2))
            if height > 0 and height >= onset_map[(*cell, t)]:
                same = height == onset_map[(*cell, t)]
                velocity_map[(*cell, t)] = max(velocity_map[(*cell, t)] if same else 0, velocity / 127)
            onset_map[(*cell, t)] = max(onset_map[(*cell, t)], height)
            offset_map[(*cell, t)] = max(offset_map[(*cell, t)], 1 - abs(t - offset * rate) / 2)
    return roll


any_note = st.tuples(
    st.integers(0, 2),
    st.one_of(st.floats(-1.5, 2.0), st.integers(-20, 40).map(lambda t: t / RATE)),
    st.one_of(st.floats(-0.1, 1.0), st.integers(-2, 20).map(lambda t: t / RATE)),
    st.sampled_from([20, 21, 60, 61, 62, 108, 109]),
    st.integers(1, 127),
).map(lambda n: [n[0], n[1], n[1] + n[2], n[3], n[4]])


@given(st.lists(any_note, max_size=8), st.sampled_from([[60, 61, 62], [108, 60], [21]]))
@settings(max_examples=150, deadline=None)
def test_any_notes_match_the_definition(notes: list[list[float]], pitches: list[int]) -> None:
    tensor = torch.tensor(notes, dtype=torch.float64).reshape(-1, 5)
    roll = piano_roll(tensor, batch=3, pitches=pitches, frame_rate=RATE, frames=40)
    for name, ours, expected in zip(Roll._fields, roll, by_hand(notes, 3, pitches, RATE, 40)):
        assert ours.shape == (3, len(pitches), 40)
        assert ours.dtype == torch.float32
        np.testing.assert_allclose(ours, expected, atol=1e-6, err_msg=name)


@given(st.lists(any_note, min_size=2, max_size=8), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_notes_does_not_matter(notes: list[list[float]], random: object) -> None:
    shuffled = list(notes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (
        piano_roll(torch.tensor(n), batch=3, pitches=[60, 61], frame_rate=RATE, frames=40) for n in (notes, shuffled)
    )
    for left, right in zip(one, other):
        assert torch.equal(left, right)


def test_values_of_one_note() -> None:
    note = torch.tensor([[0, 3.25 / 10, 6.5 / 10, 60, 127]])
    roll = piano_roll(note, batch=1, pitches=[60], frame_rate=10, frames=9)
    onset, frame, offset, velocity = (values[0, 0].tolist() for values in roll)
    assert onset == pytest.approx([0, 0, 0.375, 0.875, 0.625, 0.125, 0, 0, 0], abs=1e-6)
    assert frame == [0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert offset == pytest.approx([0, 0, 0, 0, 0, 0.25, 0.75, 0.75, 0.25], abs=1e-6)
    assert velocity == [0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_a_note_that_sounds_already_has_frames_and_no_onset() -> None:
    note = torch.tensor([[0, -1.0, 0.5, 60, 90]])
    roll = piano_roll(note, batch=1, pitches=[60], frame_rate=10, frames=8)
    assert roll.frame[0, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert not roll.onset.any()
    assert not roll.velocity.any()
    assert roll.offset[0, 0, 5] == 1


def test_a_note_that_outlasts_the_window_has_no_offset() -> None:
    note = torch.tensor([[0, 0.5, 9.0, 60, 90]])
    roll = piano_roll(note, batch=1, pitches=[60], frame_rate=10, frames=8)
    assert roll.frame[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert not roll.offset.any()


@pytest.mark.parametrize("length", [0.0, 0.004, -0.5])
def test_a_note_between_two_frames_gets_the_nearest(length: float) -> None:
    note = torch.tensor([[0, 0.562, 0.562 + length, 60, 90]])
    roll = piano_roll(note, batch=1, pitches=[60], frame_rate=10, frames=10)
    assert roll.frame[0, 0].nonzero().flatten().tolist() == [6]


def test_no_notes_give_an_empty_roll() -> None:
    roll = piano_roll(torch.zeros(0, 5), batch=2, pitches=PIANO_PITCHES, frame_rate=RATE, frames=5)
    assert all(values.shape == (2, 88, 5) and not values.any() for values in roll)


def test_shapes_are_known_without_data() -> None:
    roll = piano_roll(torch.zeros(7, 5, device="meta"), batch=2, pitches=[60, 64], frame_rate=RATE, frames=5)
    assert {values.shape for values in roll} == {(2, 2, 5)}
