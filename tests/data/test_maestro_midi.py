"""Real performances: the pedal against the field's published rule read event by event, and notes through the roll."""

from __future__ import annotations

from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parts import decode
from wavespace.data.base import Notes
from wavespace.data.files.midi import SHORTEST, apply_pedal, read_midi
from wavespace.data.labels import piano_roll
from wavespace.spec import PIANO_PITCHES

Rows = list[list[float]]
"""Onset, offset, pitch, velocity of each note; times in seconds."""

Timed = list[tuple[float, mido.Message]]

PRESS, LIFT, STRIKE, RELEASE = range(4)


@pytest.fixture(scope="session")
def performances(shared_data: Path) -> list[Path]:
    folder = shared_data / "real" / "maestro-v3.0.0"
    files = sorted(folder.glob("*/*.midi"))
    if not files:
        pytest.skip(f"needs MAESTRO's MIDI files in {folder}")
    return files


def messages(path: Path) -> Timed:
    """Each message of a file of one channel with its time in seconds, in the file's order."""
    midi = mido.MidiFile(path)
    timed = []
    for track in midi.tracks:
        tick = 0
        for message in track:
            tick += message.time
            timed.append((tick, message))
    assert len({message.channel for _, message in timed if not message.is_meta}) == 1
    tempos = sorted((tick, message.tempo) for tick, message in timed if message.type == "set_tempo")
    found = []
    for tick, message in timed:
        seconds, since, tempo = 0.0, 0, 500_000
        for start, following in tempos:
            if start > tick:
                break
            seconds += (start - since) * tempo / midi.ticks_per_beat / 1e6
            since, tempo = start, following
        found.append((seconds + (tick - since) * tempo / midi.ticks_per_beat / 1e6, message))
    return found


def published(timed: Timed, shortest: float = 0.0) -> Rows:
    """Notes of a file as the field hears them, one event after the other.

    The rule is that of Magenta's note_seq, `sequences_lib.apply_sustain_control_changes`, on notes as pretty_midi
    reads them: the labels of Hawthorne et al. 2018 ("Onsets and Frames") and of the figures reported on MAESTRO.
    Kong et al. 2021 ("High-resolution piano transcription with pedals", section III) state the same one. A release
    ends the notes of its key that began before it; strikes that are never released are left out. The pedal is down
    from a value of 64 on. At one time presses come first, then lifts, strikes, releases. A lift ends the notes that
    were released before it. A strike while the pedal is down ends the notes of its pitch. What is still held at the
    end stops with the last event.

    Args:
        timed: `messages` of a file.
        shortest: seconds that a key is held at least, which the rule does not have and `wavespace` has.
    """
    held: dict[int, Rows] = {}
    notes: Rows = []
    events: list[tuple[float, int, list[float] | None]] = []
    for time, message in timed:
        if message.type == "note_on" and message.velocity > 0:
            held.setdefault(message.note, []).append([time, np.nan, message.note, message.velocity])
        elif message.type in ("note_on", "note_off"):
            for note in held.get(message.note, []):
                if note[0] < time:
                    note[1] = max(time, note[0] + shortest)
                    notes.append(note)
            held[message.note] = [note for note in held.get(message.note, []) if note[0] == time]
        elif message.type == "control_change" and message.control == 64:
            events.append((time, PRESS if message.value >= 64 else LIFT, None))
    for note in notes:
        events += [(note[0], STRIKE, note), (note[1], RELEASE, note)]
    events.sort(key=lambda event: event[:2])

    down = False
    heard: Rows = []
    for time, kind, note in events:
        if kind == PRESS:
            down = True
        elif kind == LIFT:
            down = False
            for one in heard:
                if one[1] < time:
                    one[1] = time
            heard = [one for one in heard if one[1] > time]
        elif kind == STRIKE:
            assert note is not None
            if down:
                for one in heard:
                    if one[2] == note[2]:
                        one[1] = time
                heard = [one for one in heard if one[2] != note[2]]
            heard.append(note)
        elif not down:
            heard = [one for one in heard if one is not note]
    for one in heard:
        one[1] = events[-1][0]
    return sorted(notes, key=lambda note: (note[0], note[2]))


def sounding(path: Path) -> Notes:
    performance = read_midi(path)
    return apply_pedal(performance.notes, performance.pedal)


def test_the_pedal_of_real_performances_is_the_published_rule(performances: list[Path]) -> None:
    """The only difference: a key is held for `SHORTEST` at least, before the pedal is looked at."""
    total, short = 0, 0
    for path in performances:
        ours, timed = sounding(path), messages(path)
        literal, expected = np.array(published(timed)), np.array(published(timed, SHORTEST))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=path.name)

        differs = np.abs(literal - ours).max(axis=1) > 1e-9
        assert (literal[differs, 1] - literal[differs, 0] < SHORTEST).all(), path.name
        total, short = total + len(ours), short + int(differs.sum())
    assert 0 < short < 0.002 * total


# Moves of fingers and foot on a grid of 25 ms, at most one of a key and one of the foot at a time, and at the end all
# keys up: then nothing is hung and nothing is too short, which other tests are about.
moves = st.dictionaries(
    st.tuples(st.integers(0, 40), st.sampled_from([60, 61, "foot"])),
    st.sampled_from([0, 1, 63, 64, 90, 127]),
    min_size=1,
    max_size=60,
)


@given(moves)
@settings(max_examples=150, deadline=None)
def test_any_moves_of_hands_and_foot_are_heard_by_the_published_rule(
    tmp_path_factory: pytest.TempPathFactory, moves: dict[tuple[int, int | str], int]
) -> None:
    """The only difference: a note ends at the next strike of its pitch, where the rule lets two sound without pedal."""
    track, now = mido.MidiTrack(), 0
    for (step, what), value in sorted(moves.items(), key=lambda move: move[0][0]):
        delta, now = 24 * step - now, 24 * step
        if what == "foot":
            track.append(mido.Message("control_change", control=64, value=value, time=delta))
        else:
            track.append(mido.Message("note_on", note=what, velocity=value, time=delta))
    track.append(mido.Message("note_on", note=62, velocity=1))  # so that there is a note
    for pitch in (60, 61, 62):
        track.append(mido.Message("note_off", note=pitch, time=24 if pitch == 60 else 0))
    path = tmp_path_factory.mktemp("midi") / "moves.mid"
    mido.MidiFile(tracks=[track], ticks_per_beat=480).save(path)

    expected = published(messages(path))
    for note in expected:
        following = [onset for onset, _, pitch, _ in expected if pitch == note[2] and onset > note[0]]
        note[1] = min([note[1], *following])
    np.testing.assert_allclose(sounding(path), np.array(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", [(0, 127), (127, 0)])
def test_lift_and_press_in_one_tick_count_in_the_order_of_the_file(order: tuple[int, int], tmp_path: Path) -> None:
    """The rule takes the press first, so that the pedal is up afterwards in any order; both end what was held."""
    track = mido.MidiTrack(
        [
            mido.Message("control_change", control=64, value=100),
            mido.Message("note_on", note=60, velocity=64, time=48),
            mido.Message("note_off", note=60, time=48),
            mido.Message("note_on", note=62, velocity=64),
            mido.Message("control_change", control=64, value=order[0], time=48),
            mido.Message("control_change", control=64, value=order[1]),
            mido.Message("note_off", note=62, time=48),
            mido.Message("control_change", control=64, value=0, time=48),
        ]
    )
    path = tmp_path / "flutter.mid"
    mido.MidiFile(tracks=[track], ticks_per_beat=480).save(path)
    first, second = published(messages(path))
    np.testing.assert_allclose([first[1], second[1]], [0.15, 0.2])
    np.testing.assert_allclose(sounding(path)[:, 1], [0.15, 0.25 if order[1] else 0.2])


@pytest.mark.parametrize(("rate", "all_of_them"), [(100.0, True), (22050 / 512, False)])
def test_real_performances_come_back_from_their_rolls(performances: list[Path], rate: float, all_of_them: bool) -> None:
    """Every note whose pitch is not struck again within 3 frames comes back: at 100 frames a second, every note.

    Two triangles of half-width 2 whose tips are nearer than that share frames, and the decoder may take them for one.
    """
    total, left_out = 0, 0
    for path in performances:
        notes = sounding(path)
        notes = notes[np.lexsort((notes[:, 0], notes[:, 2]))]
        rows = torch.from_numpy(np.column_stack([np.zeros(len(notes)), notes]))
        frames = int(notes[:, 1].max() * rate) + 10
        roll = piano_roll(rows, batch=1, pitches=PIANO_PITCHES, frame_rate=rate, frames=frames)
        onset, frame, offset, velocity = (values[0].numpy() for values in roll)
        found = decode(onset, frame, velocity, offset, pitches=PIANO_PITCHES, frame_rate=rate)

        near = (np.diff(notes[:, 0]) * rate < 3) & (np.diff(notes[:, 2]) == 0)
        kept = ~(np.append(near, False) | np.append(False, near))
        total, left_out = total + len(notes), left_out + int((~kept).sum())
        assert kept.sum() <= len(found) <= len(notes), path.name
        if all_of_them:
            assert len(found) == len(notes), path.name
        for pitch in np.unique(notes[:, 2]):
            theirs, ours = notes[kept & (notes[:, 2] == pitch)], found[found[:, 2] == pitch]
            match = np.abs(ours[:, :1] - theirs[:, 0]).argmin(axis=0)
            assert len(set(match)) == len(match)
            error = np.abs(ours[match, :2] - theirs[:, :2]) * rate  # in frames
            cut = theirs[:, 0] * rate < 0.5  # of these triangles the frame before the first is missing
            assert error[~cut, 0].max(initial=0) < 1e-6, path.name
            assert error[cut, 0].max(initial=0) < 0.5, path.name
            assert error[:, 1].max(initial=0) < 1, path.name
            assert np.array_equal(ours[match, 3], theirs[:, 3]), path.name
    assert left_out == 0 if all_of_them else 0 < left_out < 0.002 * total
