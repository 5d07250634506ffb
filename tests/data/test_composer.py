"""Composed pieces hold what a transcriber has to learn."""

from __future__ import annotations

import time

import numpy as np
import pytest

from wavespace.data.base import rng_for
from wavespace.data.files.midi import Performance, apply_pedal, clean
from wavespace.data.synthesis.composer import compose

SECONDS = 8.0


@pytest.fixture(scope="module")
def pieces() -> list[Performance]:
    return [compose(rng_for("composer", i), SECONDS) for i in range(300)]


@pytest.fixture(scope="module")
def notes(pieces: list[Performance]) -> np.ndarray:
    return np.concatenate([piece.notes for piece in pieces])


def test_a_piece_follows_from_its_generator_alone() -> None:
    for i in range(20):
        one, again, other = (compose(rng_for("piece", k), 5.0) for k in (i, i, i + 1))
        np.testing.assert_array_equal(one.notes, again.notes)
        np.testing.assert_array_equal(one.pedal, again.pedal)
        assert not np.array_equal(one.notes, other.notes)


def test_notes_are_what_a_piano_can_play(pieces: list[Performance], notes: np.ndarray) -> None:
    for piece in pieces:
        np.testing.assert_allclose(clean(piece.notes), piece.notes, atol=1e-12)
        assert (np.diff(piece.pedal.ravel()) > 0).all(), "the pedal comes up before it goes down again"
    assert notes[:, 0].min() >= 0
    assert notes[:, 0].max() < SECONDS
    assert (notes[:, 2] == np.rint(notes[:, 2])).all()
    assert notes[:, 2].min() == 21
    assert notes[:, 2].max() == 108
    assert notes[:, 3].min() >= 15
    assert notes[:, 3].max() <= 127


@pytest.mark.parametrize("seconds", [0.05, 1.0, 60.0])
def test_any_length_is_filled(seconds: float) -> None:
    for i in range(20):
        notes = compose(rng_for("length", i), seconds).notes
        assert (notes[:, 0] < seconds).all()
        if seconds > 10:
            assert notes[0, 0] < 5
            assert notes[-1, 0] > seconds - 5
            assert np.diff(notes[:, 0]).max() < 8


def test_density_centres_on_human_playing_and_varies(pieces: list[Performance]) -> None:
    density = np.array([len(piece.notes) for piece in pieces]) / SECONDS
    assert 6 < density.mean() < 12
    assert np.percentile(density, 10) < 5
    assert np.percentile(density, 90) > 13


def test_every_key_is_played_and_the_middle_most(notes: np.ndarray) -> None:
    count = np.bincount(notes[:, 2].astype(int), minlength=109)[21:]
    assert (count > 8).all()
    assert 55 < np.median(notes[:, 2]) < 70
    assert count[:12].sum() + count[-12:].sum() < 0.1 * count.sum()


def test_octaves_and_twelfths_are_struck_together(pieces: list[Performance]) -> None:
    octaves = twelfths = total = 0
    for piece in pieces:
        onset, pitch = piece.notes[:, 0], piece.notes[:, 2]
        together = np.abs(onset[:, None] - onset) < 0.03
        above = pitch - pitch[:, None]
        octaves += (together & (above == 12)).any(axis=1).sum()
        twelfths += (together & (above == 19)).any(axis=1).sum()
        total += len(onset)
    assert octaves / total > 0.08
    assert twelfths / total > 0.02


def test_chords_are_struck_unevenly_within_30_ms(pieces: list[Performance]) -> None:
    gaps = np.concatenate([np.diff(piece.notes[:, 0]) for piece in pieces])
    within = gaps[gaps < 0.03]
    assert 0.3 < len(within) / len(gaps) < 0.7
    assert 0.002 < np.median(within) < 0.015


def test_there_are_quick_repetitions_trills_and_long_notes(pieces: list[Performance], notes: np.ndarray) -> None:
    repeats = [
        gap for piece in pieces for key in range(21, 109) for gap in np.diff(piece.notes[piece.notes[:, 2] == key, 0])
    ]
    assert np.mean(np.array(repeats) < 0.25) > 0.1
    length = notes[:, 1] - notes[:, 0]
    assert np.percentile(length, 10) < 0.08
    assert np.percentile(length, 95) > 0.6


def test_soft_and_loud_meet(pieces: list[Performance], notes: np.ndarray) -> None:
    assert np.percentile(notes[:, 3], 5) < 40
    assert np.percentile(notes[:, 3], 95) > 90
    within = [piece.notes[:, 3].std() for piece in pieces if len(piece.notes) > 20]
    assert 7 < np.median(within) < 16


def test_the_pedal_is_down_in_most_pieces_and_lengthens_notes(pieces: list[Performance]) -> None:
    share = np.array([np.clip(np.diff(np.clip(p.pedal, 0, SECONDS)), 0, None).sum() / SECONDS for p in pieces])
    assert 0.1 < np.mean(share == 0) < 0.5
    assert np.percentile(share, 75) > 0.6
    pedalled = [piece for piece, s in zip(pieces, share) if s > 0.6]
    dry = np.concatenate([p.notes for p in pedalled])
    wet = np.concatenate([apply_pedal(p.notes, p.pedal) for p in pedalled])
    assert np.median(wet[:, 1] - wet[:, 0]) > 2 * np.median(dry[:, 1] - dry[:, 0])


def test_six_seconds_take_a_few_milliseconds() -> None:
    compose(rng_for("warm"), 6.0)
    began = time.process_time()
    for i in range(50):
        compose(rng_for("speed", i), 6.0)
    assert (time.process_time() - began) / 50 < 0.006  # about 1 ms; room for a busy machine
