"""Targets against a plain loop over notes and frames, and against what synthetic notes sound like."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavespace.data.labels import Kind, Roll, piano_roll, pitch_salience
from wavespace.spec import PIANO_PITCHES

RATE = 22050 / 512

# --- Piano roll ------------------------------------------------------------------------------------------


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


# --- Salience --------------------------------------------------------------------------------------------


def salience_by_hand(
    notes: list[list[float]], batch: int, frequencies: list[float], rate: float, frames: int, kind: Kind, spread: float
) -> np.ndarray:
    """`(B, F, T)` by the definition, a cell at a time, in float64."""
    labels = np.zeros((batch, len(frequencies), frames))
    for item, onset, offset, pitch, velocity in notes:
        for row, frequency in enumerate(frequencies):
            cents = 1200 * math.log2(frequency / (440 * 2 ** ((pitch - 69) / 12)))
            height = math.exp(-(cents**2) / (2 * spread**2))
            if kind == "power":
                height *= 10 ** (40 * math.log10(velocity / 127) / 10)
            for t in range(frames):
                covered = min(offset * rate, t + 0.5) - max(onset * rate, t - 0.5)
                labels[int(item), row, t] = max(labels[int(item), row, t], height * covered)
    return labels


def bins(count: int, per_octave: int, fmin: float = 200.0) -> list[float]:
    return [fmin * 2 ** (k / per_octave) for k in range(count)]


any_pitch = st.tuples(
    st.integers(0, 2),
    st.one_of(st.floats(-1.5, 2.0), st.integers(-40, 80).map(lambda t: t / 2 / RATE)),
    st.one_of(st.floats(-0.1, 1.0), st.integers(-2, 40).map(lambda t: t / 2 / RATE)),
    st.floats(50.0, 70.0),
    st.floats(1.0, 127.0),
).map(lambda n: [n[0], n[1], n[1] + n[2], n[3], n[4]])


@pytest.mark.parametrize("kind", ["activation", "power"])
@given(
    notes=st.lists(any_pitch, max_size=8),
    frames=st.sampled_from([1, 2, 7, 32, 40]),
    axis=st.sampled_from([bins(20, 12), bins(13, 60), [220.0, 300.0], [440.0]]),
    spread=st.sampled_from([5.0, 25.0, 80.0]),
)
@settings(max_examples=60, deadline=None)
def test_salience_of_any_notes_matches_the_definition(
    kind: Kind, notes: list[list[float]], frames: int, axis: list[float], spread: float
) -> None:
    tensor = torch.tensor(notes, dtype=torch.float64).reshape(-1, 5)
    ours = pitch_salience(
        tensor, batch=3, frequencies=axis, frame_rate=RATE, frames=frames, kind=kind, spread_cents=spread
    )
    assert ours.shape == (3, len(axis), frames)
    assert ours.dtype == torch.float32
    assert 0 <= ours.min() <= ours.max() <= 1
    np.testing.assert_allclose(ours, salience_by_hand(notes, 3, axis, RATE, frames, kind, spread), atol=1e-6)


def test_salience_in_float32_is_as_good_as_a_batch_can_be() -> None:
    rng = np.random.default_rng(0)
    onset = rng.uniform(-0.5, 3.5, 20)
    notes = np.column_stack([rng.integers(0, 3, 20), onset, onset + rng.uniform(0, 1, 20), rng.uniform(50, 80, 20)])
    notes = np.column_stack([notes, rng.uniform(1, 127, 20)]).astype(np.float32)
    found = pitch_salience(
        torch.tensor(notes),
        batch=3, frequencies=bins(72, 36), frame_rate=RATE, frames=160, kind="activation", spread_cents=25.0,
    )  # fmt: skip
    expected = salience_by_hand(notes.tolist(), 3, bins(72, 36), RATE, 160, "activation", 25.0)
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_salience_of_one_note() -> None:
    note = torch.tensor([[0, 0.1, 0.525, 69.25, 127 / 2]])
    options = {"batch": 1, "frequencies": bins(5, 24, 440.0), "frame_rate": 10, "frames": 8, "spread_cents": 25.0}
    activation, power = (pitch_salience(note, kind=kind, **options)[0] for kind in ("activation", "power"))
    # 25 cents above 440 Hz: a deviation from the two bins around it, three and five from the next.
    np.testing.assert_allclose(activation[:, 3], np.exp(-0.5 * np.array([1, 1, 9, 25, 49])), rtol=1e-3)
    over_time = activation[0] / activation[0, 3]
    np.testing.assert_allclose(over_time, [0, 0.5, 1, 1, 1, 0.75, 0, 0], atol=1e-5)
    np.testing.assert_allclose(power, activation / 16, rtol=1e-5)  # 12 dB below


def test_activation_is_the_share_of_a_frame_that_a_note_covers() -> None:
    rng = np.random.default_rng(1)
    axis = bins(25, 12)
    onset = np.sort(rng.uniform(0, 0.8, 30))
    bin_of = rng.integers(0, 25, 30)
    notes = np.column_stack(
        [onset, onset + rng.uniform(0.01, 0.5, 30), 69 + 12 * np.log2(np.array(axis)[bin_of] / 440)]
    )
    rows = torch.tensor(np.column_stack([np.zeros(30), notes, np.full(30, 90.0)]))
    ours = pitch_salience(
        rows, batch=1, frequencies=axis, frame_rate=RATE, frames=50, kind="activation", spread_cents=1.0
    )
    expected = np.zeros((25, 50))
    for row, (begin, end, _) in zip(bin_of, notes * RATE):
        for t in range(50):
            expected[row, t] = max(expected[row, t], min(end, t + 0.5) - max(begin, t - 0.5))
    assert 0.2 < expected.mean() < 0.9
    np.testing.assert_allclose(ours[0], expected, atol=1e-6)


def test_salience_of_no_notes_is_silence_and_shapes_are_known_without_data() -> None:
    options = {"batch": 2, "frequencies": bins(4, 12), "frame_rate": RATE, "frames": 5, "spread_cents": 25.0}
    silence = pitch_salience(torch.zeros(0, 5), kind="power", **options)
    assert silence.shape == (2, 4, 5)
    assert not silence.any()
    assert pitch_salience(torch.zeros(7, 5, device="meta"), kind="power", **options).shape == (2, 4, 5)
