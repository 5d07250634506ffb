"""Notes as arrays, and as MIDI files."""

from __future__ import annotations

import time
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavespace.data.base import NO_NOTES, Notes
from wavespace.data.notes import SHORTEST, apply_pedal, clean, read_midi, window, write_midi
from wavespace.errors import BadInput

TICK = 0.5 / 480  # of the files made here: seconds, at 120 a minute
Event = tuple[int, mido.Message | mido.MetaMessage]


def midi_file(path: Path, *tracks: list[Event], ticks_per_beat: int = 480) -> Path:
    """A MIDI file with messages at absolute ticks."""
    midi = mido.MidiFile(ticks_per_beat=ticks_per_beat)
    for events in tracks:
        track, now = mido.MidiTrack(), 0
        for tick, message in sorted(events, key=lambda event: event[0]):
            track.append(message.copy(time=tick - now))
            now = tick
        midi.tracks.append(track)
    midi.save(str(path))
    return path


def on(tick: int, pitch: int, velocity: int = 64, channel: int = 0) -> Event:
    return tick, mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)


def off(tick: int, pitch: int, channel: int = 0) -> Event:
    return tick, mido.Message("note_off", note=pitch, channel=channel)


def sustain(tick: int, value: int, channel: int = 0) -> Event:
    return tick, mido.Message("control_change", control=64, value=value, channel=channel)


def tempo(tick: int, microseconds: int) -> Event:
    return tick, mido.MetaMessage("set_tempo", tempo=microseconds)


def array(*rows: tuple[float, float, float, float]) -> Notes:
    return np.array(rows, dtype=float).reshape(-1, 4)


# Notes that a keyboard can play and MIDI can hold: the strikes of a pitch are further apart than a tick more than
# SHORTEST, so that rounding can't make one of two.
@st.composite
def playable(draw: st.DrawFn) -> Notes:
    rows = []
    for pitch in draw(st.sets(st.integers(0, 127), max_size=5)):
        now = 0.0
        for _ in range(draw(st.integers(1, 6))):
            now += draw(st.floats(0, 5))
            length = draw(st.floats(0.012, 4))
            rows.append((now, now + length, pitch, draw(st.integers(1, 127))))
            now += length
    return clean(array(*rows))


anything = st.lists(
    st.tuples(
        st.floats(-10, 100) | st.just(np.nan) | st.just(np.inf),
        st.floats(-10, 100) | st.just(-np.inf),
        st.integers(58, 62),
        st.integers(1, 127),
    ),
    max_size=30,
).map(lambda rows: array(*rows))


@given(anything)
def test_clean_notes_are_sorted_finite_and_one_at_a_time_on_a_key(notes: Notes) -> None:
    played = clean(notes)
    assert np.isfinite(played).all()
    assert (np.lexsort((played[:, 2], played[:, 0])) == np.arange(len(played))).all()
    assert (played[:, 1] - played[:, 0] >= SHORTEST - 1e-9).all()
    for pitch in np.unique(played[:, 2]):
        one = played[played[:, 2] == pitch]
        assert (one[1:, 0] >= one[:-1, 1] - 1e-9).all()
    np.testing.assert_array_equal(clean(played), played)
    finite = notes[np.isfinite(notes).all(axis=1)]
    assert set(played[:, 2]) == set(finite[:, 2]), "no pitch may be lost"


def test_a_note_ends_at_the_next_strike_of_its_pitch_and_twins_are_one() -> None:
    played = clean(array((1.0, 5.0, 60, 50), (0.0, 9.0, 60, 40), (0.004, 2.0, 60, 90), (0.5, 0.5, 62, 30)))
    np.testing.assert_allclose(played, array((0, 1, 60, 90), (0.5, 0.5 + SHORTEST, 62, 30), (1, 5, 60, 50)))


def test_nothing_stays_nothing() -> None:
    assert clean(NO_NOTES).shape == (0, 4)
    assert apply_pedal(NO_NOTES, np.array([[0.0, 1.0]])).shape == (0, 4)
    assert window(NO_NOTES, 0, 1).shape == (0, 4)


@given(playable(), st.lists(st.floats(0.01, 3), max_size=12))
def test_the_pedal_holds_notes_until_it_comes_up_or_their_pitch_is_struck(notes: Notes, steps: list[float]) -> None:
    edges = np.cumsum(steps)
    pedal = edges[: len(edges) // 2 * 2].reshape(-1, 2)
    expected = []
    for onset, offset, pitch, velocity in notes:
        held = next((up for down, up in pedal if down <= offset < up), offset)
        strikes = [later for later, _, same, _ in notes if same == pitch and later > onset]
        expected.append((onset, min([held, *strikes]), pitch, velocity))
    np.testing.assert_allclose(apply_pedal(notes, pedal), array(*expected), atol=1e-12)


@given(playable(), st.floats(-1, 20), st.floats(0, 5))
def test_a_window_holds_what_sounds_in_it(notes: Notes, start: float, seconds: float) -> None:
    expected = [
        (onset - start, offset - start, pitch, velocity)
        for onset, offset, pitch, velocity in notes
        if onset < start + seconds and offset > start
    ]
    np.testing.assert_allclose(window(notes, start, start + seconds), array(*expected), atol=1e-12)


@given(playable())
def test_midi_gives_notes_back_to_within_a_tick(tmp_path_factory: pytest.TempPathFactory, notes: Notes) -> None:
    path = tmp_path_factory.mktemp("midi") / "notes.mid"
    write_midi(path, notes, program=3)
    if len(notes) == 0:
        with pytest.raises(BadInput, match="no notes"):
            read_midi(path)
        return
    back = read_midi(path).notes
    key = [2, 0]  # strikes closer than a tick may change places: compare key by key
    notes, back = (rows[np.lexsort(rows[:, key].T[::-1])] for rows in (notes, back))
    np.testing.assert_array_equal(back[:, 2:], notes[:, 2:])
    assert np.abs(back[:, :2] - notes[:, :2]).max() <= 0.5 / 960 + 1e-9
    assert pretty_midi.PrettyMIDI(str(path)).instruments[0].program == 3


def test_times_before_zero_are_written_as_zero(tmp_path: Path) -> None:
    write_midi(tmp_path / "new" / "a.mid", array((-1.0, 0.5, 60, 200.0), (-2.0, -1.0, 61, 0.2)))
    np.testing.assert_allclose(
        read_midi(tmp_path / "new" / "a.mid").notes, array((0, 0.5, 60, 127), (0, SHORTEST, 61, 1)), atol=1e-3
    )


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mid"
    write_midi(path, array((0, 1, 60, 64)))
    before = path.read_bytes()

    def fail(self: pretty_midi.PrettyMIDI, name: str) -> None:
        Path(name).write_bytes(b"MThd")
        raise OSError("disk full")

    monkeypatch.setattr(pretty_midi.PrettyMIDI, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_midi(path, array((0, 2, 60, 64)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@given(st.lists(st.tuples(st.integers(30, 400), st.booleans(), st.integers(60, 62)), min_size=1, max_size=25))
def test_strikes_and_releases_pair_as_on_a_keyboard(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, bool, int]]
) -> None:
    events, sounding, expected, now = [], {}, [], 0
    for step, strike, pitch in moves:  # any order: strikes of keys that are down, releases of keys that are up
        now += step
        if pitch in sounding:
            expected.append((sounding.pop(pitch), now, pitch))
        if strike:
            sounding[pitch] = now
        events.append(on(now, pitch) if strike else off(now, pitch))
    end = now + 100
    expected += [(start, end, pitch) for pitch, start in sounding.items()]
    events.append((end, mido.MetaMessage("text", text="the end")))
    path = midi_file(tmp_path_factory.mktemp("midi") / "a.mid", events)
    if not expected:
        with pytest.raises(BadInput, match="no notes"):
            read_midi(path)
        return
    notes = clean(array(*[(start * TICK, stop * TICK, pitch, 64) for start, stop, pitch in expected]))
    np.testing.assert_allclose(read_midi(path).notes, notes, atol=1e-9)


def test_a_file_without_any_release_has_all_its_notes(tmp_path: Path) -> None:
    strikes = [on(480 * k, 60 + k % 2) for k in range(41)]
    notes = read_midi(midi_file(tmp_path / "a.mid", strikes)).notes
    np.testing.assert_allclose(notes[:, 0], 0.5 * np.arange(41))
    np.testing.assert_allclose(notes[:-2, 1] - notes[:-2, 0], 1.0)


def test_a_note_struck_and_released_in_one_tick_is_short(tmp_path: Path) -> None:
    events = [on(0, 60), off(0, 60), on(480, 60), off(960, 60), on(960, 60), off(1440, 60)]
    notes = read_midi(midi_file(tmp_path / "a.mid", events)).notes
    np.testing.assert_allclose(notes[:, 0], [0, 0.5, 1.0])
    np.testing.assert_allclose(notes[:, 1], [SHORTEST, 1.0, 1.5])


def test_tempo_changes_count_wherever_they_stand(tmp_path: Path) -> None:
    changes = [tempo(480, 250_000), tempo(960, 1_000_000)]
    notes = [on(0, 60), off(480, 60), on(720, 62), off(1440, 62)]
    expected = array((0, 0.5, 60, 64), (0.625, 1.75, 62, 64))
    for k, tracks in enumerate([(changes + notes,), (changes, notes), (notes, changes)]):
        np.testing.assert_allclose(read_midi(midi_file(tmp_path / f"{k}.mid", *tracks)).notes, expected)


def test_drums_are_left_out_and_tracks_are_one_keyboard(tmp_path: Path) -> None:
    left = [on(0, 60, 40), off(960, 60)]
    right = [on(480, 60, 80, 1), off(720, 60, 1), on(0, 36, 99, 9), off(99, 36, 9)]
    notes = read_midi(midi_file(tmp_path / "a.mid", left, right)).notes
    np.testing.assert_allclose(notes, array((0, 0.5, 60, 40), (0.5, 0.75, 60, 80)))


def test_the_pedal_is_down_from_64_on_and_its_presses_are_joined(tmp_path: Path) -> None:
    one = [on(0, 60), off(9600, 60), sustain(0, 63), sustain(480, 64), sustain(500, 100), sustain(960, 63)]
    two = [on(0, 70, 64, 1), off(10, 70, 1), sustain(720, 127, 1), sustain(1440, 0, 1), sustain(4800, 127, 1)]
    pedal = read_midi(midi_file(tmp_path / "a.mid", one, two)).pedal
    np.testing.assert_allclose(pedal, [[0.5, 1.5], [5.0, 10.0]])  # the last is never lifted
    assert read_midi(midi_file(tmp_path / "b.mid", [on(0, 60), off(480, 60)])).pedal.shape == (0, 2)


def test_ten_hours_and_a_hundred_thousand_notes_are_read_in_about_a_second(tmp_path: Path) -> None:
    step = 36_000_000 // 50_000  # at 1,000 ticks a second
    track = b"\x00\xff\x51\x03" + (1_000_000).to_bytes(3, "big")
    for k in range(50_000):
        pair = bytes([21 + k % 44, 65 + k % 44])
        track += b"\x00\x90" + bytes([pair[0], 64]) + b"\x00" + bytes([pair[1], 64])
        track += bytes([0x80 | step >> 7, step & 0x7F, pair[0], 0]) + b"\x00" + bytes([pair[1], 0])
    track += b"\x00\xff\x2f\x00"
    path = tmp_path / "long.mid"
    header = b"MThd" + (6).to_bytes(4, "big") + b"\0\1\0\1" + (1000).to_bytes(2, "big")
    path.write_bytes(header + b"MTrk" + len(track).to_bytes(4, "big") + track)
    began = time.process_time()
    notes = read_midi(path).notes
    assert time.process_time() - began < 2.5
    assert len(notes) == 100_000
    np.testing.assert_allclose(notes[::2, 0], np.arange(50_000) * step / 1000, atol=1e-6)
    assert notes[-1, 1] == pytest.approx(36_000, abs=1e-6)


def test_what_is_no_midi_is_told_by_name(tmp_path: Path) -> None:
    good = midi_file(tmp_path / "good.mid", [on(0, 60), off(480, 60)]).read_bytes()
    for name, data in {
        "empty": b"",
        "text": b"These are not the notes that you look for.",
        "cut in the header": good[:10],
        "cut in the track": good[:-6],
        "timecode": good[:12] + b"\xe7\x28" + good[14:],
        "no ticks": good[:12] + b"\0\0" + good[14:],
    }.items():
        path = tmp_path / f"{name}.mid"
        path.write_bytes(data)
        with pytest.raises(BadInput, match=f"{name}.mid is not a MIDI file"):
            read_midi(path)
    for path in (tmp_path / "missing.mid", tmp_path):
        with pytest.raises(BadInput, match=f"can't read .*{path.name}"):
            read_midi(path)
    for events in ([], [sustain(0, 127)], [on(0, 36, 64, 9), off(10, 36, 9)]):
        with pytest.raises(BadInput, match="has no notes"):
            read_midi(midi_file(tmp_path / "silent.mid", events))


def test_any_damage_is_bad_input_or_clean_notes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = [event for k in range(40) for event in (on(60 * k, 50 + k % 7), off(60 * k + 70, 50 + k % 7))]
    good = midi_file(tmp_path / "good.mid", [tempo(30, 400_000), sustain(5, 90), *events]).read_bytes()
    path, read = tmp_path / "bad.mid", 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(8, len(data))] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.2 else data)
        try:
            performance = read_midi(path)
        except BadInput:
            continue
        read += 1
        np.testing.assert_array_equal(clean(performance.notes), performance.notes)
        assert np.isfinite(performance.pedal).all()
    assert read > 30


def test_real_performances_read_as_pretty_midi_reads_them(shared_data: Path) -> None:
    files = sorted((shared_data / "real" / "maestro-v3.0.0").glob("*/*.midi"), key=lambda path: path.stat().st_size)[:6]
    assert files
    for path in files:
        midi = pretty_midi.PrettyMIDI(str(path))
        expected = [(n.start, n.end, n.pitch, n.velocity) for part in midi.instruments for n in part.notes]
        performance = read_midi(path)
        lasting = performance.notes[performance.notes[:, 1] - performance.notes[:, 0] > SHORTEST + 1e-6]
        reference = clean(array(*expected))  # which has no notes of length 0
        reference = reference[reference[:, 1] - reference[:, 0] > SHORTEST + 1e-6]
        np.testing.assert_allclose(lasting, reference, atol=1e-9)
        changes = sorted(c.time for part in midi.instruments for c in part.control_changes if c.number == 64)
        assert set(np.round(performance.pedal[:, 0], 6)) <= set(np.round(changes, 6))
