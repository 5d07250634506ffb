"""Notes as arrays, and as MIDI files."""

from __future__ import annotations

import time
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from typing import IO

import mido
import numpy as np
import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavespace.data.base import NO_NOTES, Notes
from wavespace.data.files.midi import SHORTEST, apply_pedal, clean, notes_between, read_midi, write_midi
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


def control(tick: int, number: int, value: int, channel: int = 0) -> Event:
    return tick, mido.Message("control_change", control=number, value=value, channel=channel)


def sustain(tick: int, value: int, channel: int = 0) -> Event:
    return control(tick, 64, value, channel)


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
    assert notes_between(NO_NOTES, 0, 1).shape == (0, 4)


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
    np.testing.assert_allclose(notes_between(notes, start, start + seconds), array(*expected), atol=1e-12)


@given(playable())
def test_midi_gives_notes_back_to_within_a_tick(tmp_path_factory: pytest.TempPathFactory, notes: Notes) -> None:
    path = tmp_path_factory.mktemp("midi") / "notes.mid"
    write_midi(path, notes)
    if len(notes) == 0:
        assert len(read_midi(path).notes) == 0
        return
    back = read_midi(path).notes
    key = [2, 0]  # strikes closer than a tick may change places: compare key by key
    notes, back = (rows[np.lexsort(rows[:, key].T[::-1])] for rows in (notes, back))
    np.testing.assert_array_equal(back[:, 2:], notes[:, 2:])
    assert np.abs(back[:, :2] - notes[:, :2]).max() <= 0.5 / 960 + 1e-9
    assert pretty_midi.PrettyMIDI(str(path)).instruments[0].program == 0


def test_times_before_zero_are_written_as_zero(tmp_path: Path) -> None:
    write_midi(tmp_path / "new" / "a.mid", array((-1.0, 0.5, 60, 200.0), (-2.0, -1.0, 61, 0.2)))
    np.testing.assert_allclose(
        read_midi(tmp_path / "new" / "a.mid").notes, array((0, 0.5, 60, 127), (0, SHORTEST, 61, 1)), atol=1e-3
    )


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mid"
    write_midi(path, array((0, 1, 60, 64)))
    before = path.read_bytes()

    def fail(self: pretty_midi.PrettyMIDI, file: IO[bytes]) -> None:
        file.write(b"MThd")
        raise OSError(28, "disk full")

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
        assert len(read_midi(path).notes) == 0
        return
    notes = clean(array(*[(start * TICK, stop * TICK, pitch, 64) for start, stop, pitch in expected]))
    np.testing.assert_allclose(read_midi(path).notes, notes, atol=1e-9)


def ends(path: Path) -> list[tuple[float, float, int]]:
    """Strike and release in ticks, and velocity, of each note of a file of one pitch."""
    return [(round(on / TICK, 6), round(off / TICK, 6), int(loud)) for on, off, _, loud in read_midi(path).notes]


def test_keys_that_are_never_released_sound_to_the_end_of_their_track(tmp_path: Path) -> None:
    strikes = [on(480 * k, 60 + k % 2) for k in range(41)]
    notes = read_midi(midi_file(tmp_path / "a.mid", strikes)).notes
    np.testing.assert_allclose(notes[:, 0], 0.5 * np.arange(41))
    np.testing.assert_allclose(notes[:-2, 1] - notes[:-2, 0], 1.0)

    rest = (960, mido.MetaMessage("text", text="the end of this track"))
    other = [on(0, 70), off(4800, 70)]
    notes = read_midi(midi_file(tmp_path / "b.mid", other, [on(0, 60), on(480, 62), rest])).notes
    np.testing.assert_allclose(notes[:, :3], [[0, 1, 60], [0, 5, 70], [0.5, 1, 62]])


def test_a_release_without_a_strike_means_nothing(tmp_path: Path) -> None:
    events = [off(0, 60), off(240, 60), on(480, 60), off(960, 60), off(970, 60), off(1440, 61)]
    assert ends(midi_file(tmp_path / "a.mid", events)) == [(480, 960, 64)]


def test_a_key_struck_while_it_sounds_starts_a_new_note(tmp_path: Path) -> None:
    events = [on(0, 60, 50), on(480, 60, 70), off(960, 60), off(1440, 60)]
    assert ends(midi_file(tmp_path / "a.mid", events)) == [(0, 480, 50), (480, 960, 70)]


def test_a_note_struck_and_released_in_one_tick_is_short(tmp_path: Path) -> None:
    events = [on(0, 60), off(0, 60), on(480, 60), off(960, 60), on(960, 60), off(1440, 60)]
    notes = read_midi(midi_file(tmp_path / "a.mid", events)).notes
    np.testing.assert_allclose(notes[:, 0], [0, 0.5, 1.0])
    np.testing.assert_allclose(notes[:, 1], [SHORTEST, 1.0, 1.5])


@pytest.mark.parametrize("released_first", [True, False])
def test_a_release_in_the_tick_of_a_strike_is_that_of_the_note_before(released_first: bool, tmp_path: Path) -> None:
    turn = [off(480, 60), on(480, 60, 70)] if released_first else [on(480, 60, 70), off(480, 60)]
    path = midi_file(tmp_path / "a.mid", [on(0, 60, 50), *turn, off(960, 60)])
    assert ends(path) == [(0, 480, 50), (480, 960, 70)]


def test_channels_pair_their_own_strikes_and_releases_on_one_keyboard(tmp_path: Path) -> None:
    apart = [on(0, 60, 50), on(480, 60, 70, 1), off(960, 60), off(1440, 60, 1)]
    assert ends(midi_file(tmp_path / "a.mid", apart)) == [(0, 480, 50), (480, 1440, 70)]
    within = [on(0, 60, 50), on(480, 60, 70, 1), off(960, 60, 1), off(1440, 60)]
    assert ends(midi_file(tmp_path / "b.mid", within)) == [(0, 480, 50), (480, 960, 70)]
    elsewhere = [on(0, 60, 50), off(2400, 60)], [off(960, 60)], [off(1440, 60, 1)]
    assert ends(midi_file(tmp_path / "d.mid", *elsewhere)) == [(0, 2400, 50)]
    together = [on(0, 60, 50), on(0, 60, 70, 1), off(480, 60, 1), off(960, 60)]
    assert ends(midi_file(tmp_path / "c.mid", together)) == [(0, 960, 70)]


def test_a_change_of_program_ends_no_note(tmp_path: Path) -> None:
    events = [on(0, 60), (240, mido.Message("program_change", program=5)), off(480, 60), sustain(490, 0)]
    assert ends(midi_file(tmp_path / "a.mid", events)) == [(0, 480, 64)]


def test_tempo_changes_count_wherever_they_stand(tmp_path: Path) -> None:
    changes = [tempo(480, 250_000), tempo(960, 1_000_000)]
    notes = [on(0, 60), off(480, 60), on(720, 62), off(1440, 62)]
    expected = array((0, 0.5, 60, 64), (0.625, 1.75, 62, 64))
    files = (changes + notes,), (changes, notes), (notes, changes), (changes[1:], changes[:1] + notes)
    for k, tracks in enumerate(files):
        np.testing.assert_allclose(read_midi(midi_file(tmp_path / f"{k}.mid", *tracks)).notes, expected)


def test_drums_are_left_out_and_tracks_are_one_keyboard(tmp_path: Path) -> None:
    left = [on(0, 60, 40), off(960, 60)]
    right = [on(480, 60, 80, 1), off(720, 60, 1), on(0, 36, 99, 9), off(99, 36, 9)]
    notes = read_midi(midi_file(tmp_path / "a.mid", left, right)).notes
    np.testing.assert_allclose(notes, array((0, 0.5, 60, 40), (0.5, 0.75, 60, 80)))


def test_the_pedal_is_down_from_64_on_and_its_presses_are_joined(tmp_path: Path) -> None:
    values = [(480, 64), (500, 100), (960, 63)]
    one = [on(0, 60), off(9600, 60), *(sustain(tick, value) for tick, value in values)]
    values = [(0, 63), (720, 127), (1440, 0), (4800, 127)]
    two = [on(0, 70, 64, 1), off(10, 70, 1), *(sustain(tick, value, 1) for tick, value in values)]
    performance = read_midi(midi_file(tmp_path / "a.mid", two, one))
    np.testing.assert_allclose(performance.pedal, [[0.5, 1.5], [5.0, 10.0]])  # the last press is never lifted


def test_other_pedals_lengthen_no_note(tmp_path: Path) -> None:
    plain = [on(480, 60), off(960, 60), on(2400, 60), off(2880, 60)]
    feet = [control(500, 66, 127), control(1920, 66, 0), control(0, 67, 64), control(1440, 67, 63)]
    bare, full = read_midi(midi_file(tmp_path / "a.mid", plain)), read_midi(midi_file(tmp_path / "b.mid", plain + feet))
    np.testing.assert_array_equal(full.notes, bare.notes)
    assert full.pedal.shape == (0, 2)


def test_a_lift_within_a_tick_ends_what_the_pedal_held(tmp_path: Path) -> None:
    events = [sustain(0, 127), on(0, 60), off(240, 60), sustain(480, 0), sustain(480, 127), sustain(960, 0)]
    performance = read_midi(midi_file(tmp_path / "a.mid", events))
    np.testing.assert_allclose(performance.pedal, [[0, 0.5], [0.5, 1.0]])
    assert apply_pedal(performance.notes, performance.pedal)[0, 1] == pytest.approx(0.5)
    nothing = [on(0, 60), off(960, 60), sustain(480, 127), sustain(480, 0)]
    assert read_midi(midi_file(tmp_path / "b.mid", nothing)).pedal.shape == (0, 2)


def test_a_pedal_in_a_track_or_channel_of_its_own_counts_but_not_that_of_the_drums(tmp_path: Path) -> None:
    notes = [on(0, 60), off(480, 60)]
    for k, foot in enumerate(([sustain(240, 127), sustain(960, 0)], [sustain(240, 127, 3), sustain(960, 0, 3)])):
        np.testing.assert_allclose(read_midi(midi_file(tmp_path / f"{k}.mid", notes, foot)).pedal, [[0.25, 1.0]])
        np.testing.assert_allclose(read_midi(midi_file(tmp_path / f"{k}.mid", notes + foot)).pedal, [[0.25, 1.0]])
    drums = [sustain(240, 127, 9), sustain(960, 0, 9), on(0, 36, 64, 9), off(100, 36, 9)]
    assert read_midi(midi_file(tmp_path / "a.mid", notes + drums)).pedal.shape == (0, 2)


@pytest.mark.parametrize("moment", ["press", "lift"])
def test_a_key_released_as_the_pedal_moves(moment: str, tmp_path: Path) -> None:
    """Held by a press in the moment of its release; not by a lift."""
    foot = [sustain(480, 127), sustain(960, 0)] if moment == "press" else [sustain(0, 127), sustain(480, 0)]
    for k, events in enumerate(([*foot, on(0, 60), off(480, 60)], [on(0, 60), off(480, 60), *foot])):
        performance = read_midi(midi_file(tmp_path / f"{k}.mid", events))
        held = apply_pedal(performance.notes, performance.pedal)
        assert held[0, 1] == pytest.approx(1.0 if moment == "press" else 0.5)


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


def written(path: Path, *tracks: bytes) -> Path:
    """A MIDI file of the given events, byte by byte, at 480 ticks a quarter note."""
    chunks = [b"MTrk" + len(track).to_bytes(4, "big") + track for track in tracks]
    header = b"MThd\0\0\0\6\0\1" + len(tracks).to_bytes(2, "big") + (480).to_bytes(2, "big")
    path.write_bytes(header + b"".join(chunks))
    return path


END = b"\0\xff\x2f\0"


def test_strikes_without_any_release_take_time_and_memory_as_others_do(tmp_path: Path) -> None:
    track = b"\0\x90\x3c\x40" + b"\x30\x3c\x40" * 30_000 + END
    path = written(tmp_path / "a.mid", track)
    began = time.process_time()
    tracemalloc.start()
    notes = read_midi(path).notes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(notes) == 30_001
    assert time.process_time() - began < 2
    assert peak < 50e6  # of a file of 90 kB


def test_times_beyond_32_bits_do_not_wrap_around(tmp_path: Path) -> None:
    rest = b"\xff\xff\xff\x7f\xff\x01\0" * 20  # of 2**28 - 1 ticks each, before empty texts
    path = written(tmp_path / "a.mid", b"\0\x90\x3c\x40\x60\x3c\0" + rest + b"\0\x90\x3e\x40\x60\x3e\0" + END)
    later = (96 + 20 * (2**28 - 1)) * TICK
    np.testing.assert_allclose(read_midi(path).notes[:, :3], [[0, 0.1, 60], [later, later + 0.1, 62]], rtol=1e-12)


def test_what_is_not_needed_is_skipped(tmp_path: Path) -> None:
    system = b"\0\xf0\3\1\2\xf7" + b"\0\xf1\1" + b"\0\xf2\1\2" + b"\0\xf8" + b"\0\xf6"
    voice = b"\0\xc0\5" + b"\0\xd0\5" + b"\0\xe0\0\x40" + b"\0\xa0\x3c\1"
    track = b"\0\x90\x3c\x40" + system + voice + b"\x83\x60\x80\x3c\0"  # 480 ticks
    path = written(tmp_path / "a.mid", track + END + b"what follows the end of a track")
    expected = array((0, 0.5, 60, 64))
    with pytest.warns(UserWarning, match="31 bytes are left out after the end of a track, which are no events"):
        np.testing.assert_allclose(read_midi(path).notes, expected)
    data = path.read_bytes()
    alien = b"XFIH\0\0\0\3abc"
    path.write_bytes(data[:14] + alien + data[14:] + alien)
    np.testing.assert_allclose(read_midi(path).notes, expected)
    path.write_bytes(data[:7] + b"\x08" + data[8:14] + b"??" + data[14:])  # a header that is longer than others
    np.testing.assert_allclose(read_midi(path).notes, expected)
    np.testing.assert_allclose(
        read_midi(written(path, track)).notes, expected
    )  # no end of track, as some files have it


def test_what_is_no_midi_is_told_by_name(tmp_path: Path) -> None:
    good = midi_file(tmp_path / "good.mid", [on(0, 60), off(480, 60)]).read_bytes()
    for name, data in {
        "empty": b"",
        "text": b"These are not the notes that you look for.",
        "cut in the header": good[:10],
        "cut in the track": good[:-6],
        "cut between events": good[:-4],
        "no ticks": good[:12] + b"\0\0" + good[14:],
        "no tracks": good[:10] + b"\0\0\1\xe0",
        "frames of no ticks": good[:12] + b"\xe7\0" + good[14:],
        "two scores in one file": good[:8] + b"\0\2\0\2" + good[12:] + good[14:],
        "a track too few": good[:10] + b"\0\2" + good[12:],
    }.items():
        path = tmp_path / f"{name}.mid"
        path.write_bytes(data)
        with pytest.raises(BadInput, match=f"{name}.mid is not a MIDI file"):
            read_midi(path)
    for fault, track in {
        "follows no status byte": b"\0\x3c\x40",
        "breaks off": b"\0\x90\x3c",
        "2 of its events have numbers beyond 127": b"\0\x90\xbc\x40\0\x90\xbc\x40" + END,
        "begins a number that does not end": b"\xff\xff\xff\xff\x7f\x90\x3c\x40",
        "the last event of a track breaks off": b"\0\xf0\x7f\1\2",
        "its tempo is infinite": b"\0\xff\x51\3\0\0\0",
    }.items():
        with pytest.raises(BadInput, match=f"faulty.mid is not a MIDI file .*{fault}"):
            read_midi(written(tmp_path / "faulty.mid", track))
    for path in (tmp_path / "missing.mid", tmp_path):
        with pytest.raises(BadInput, match=f"can't read .*{path.name}"):
            read_midi(path)
    for events in ([], [sustain(0, 127)], [on(0, 36, 64, 9), off(10, 36, 9)]):
        assert len(read_midi(midi_file(tmp_path / "silent.mid", events)).notes) == 0


@pytest.mark.parametrize("number", [120, 123, 124, 125, 126, 127])
@pytest.mark.parametrize("apart", [False, True])
def test_a_message_to_a_channel_ends_its_notes(number: int, apart: bool, tmp_path: Path) -> None:
    keys = [on(0, 60), on(100, 64), on(0, 67, channel=1), off(300, 67, channel=1)]
    keys += [on(200, 60), off(290, 60)]  # struck in the tick of the message
    messages = [control(200, number, 0)]
    path = midi_file(tmp_path / "a.mid", *([keys, messages] if apart else [messages + keys]))
    expected = array((0, 200, 60, 64), (0, 300, 67, 64), (100, 200, 64, 64), (200, 290, 60, 64))
    np.testing.assert_allclose(read_midi(path).notes, expected * [TICK, TICK, 1, 1], atol=1e-9)


@pytest.mark.parametrize("number", [120, 121])
def test_a_reset_of_a_channel_lifts_its_pedals(number: int, tmp_path: Path) -> None:
    feet = [control(tick, pedal, 127) for tick in (0, 300) for pedal in (64, 66, 67)] + [control(200, number, 0)]
    others = [sustain(0, 127, 1), sustain(250, 0, 1)]
    played = read_midi(midi_file(tmp_path / "a.mid", [on(0, 60), *feet, on(300, 60), off(400, 60)], others))
    np.testing.assert_allclose(played.pedal, np.array([[0, 250], [300, 400]]) * TICK)


def test_tracks_that_the_header_does_not_count_are_read(tmp_path: Path) -> None:
    path = midi_file(tmp_path / "a.mid", [on(0, 60), off(100, 60)], [on(0, 64), off(100, 64)])
    data, expected = path.read_bytes(), read_midi(path).notes
    path.write_bytes(data[:10] + b"\0\1" + data[12:])
    np.testing.assert_array_equal(read_midi(path).notes, expected)
    assert len(expected) == 2
    path.write_bytes(
        b"RIFF" + (len(data) + 12).to_bytes(4, "little") + b"RMIDdata" + len(data).to_bytes(4, "little") + data
    )
    np.testing.assert_array_equal(read_midi(path).notes, expected)


def test_an_impossible_number_is_a_warning_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mid"
    for bad in (b"\0\xb0\7\xff", b"\0\x90\xff\x40", b"\0\xe0\0\xff"):
        written(path, b"\0\x90\x3c\x40" + bad + b"\x60\x80\x3c\0" + END)
        with pytest.warns(UserWarning, match=r"a\.mid: 1 of its events"):
            np.testing.assert_allclose(read_midi(path).notes, array((0, 0.1, 60, 64)))


@pytest.mark.parametrize("stated", [0, 9, 11])
@pytest.mark.parametrize("alone", [True, False])
def test_a_track_that_is_longer_than_stated_is_read_to_the_next_or_the_end(
    stated: int, alone: bool, tmp_path: Path
) -> None:
    track = b"\0\x90\x3c\x40\x60\x80\x3c\0" + b"\0\x90\x3e\x40\x60\x80\x3e\0" + END
    path = written(tmp_path / "a.mid", track, *[track] * (not alone))
    data = path.read_bytes()
    expected = read_midi(path).notes
    assert len(expected) == 2
    path.write_bytes(data[:18] + stated.to_bytes(4, "big") + data[22:])
    with pytest.warns(UserWarning, match=r"a\.mid: 1 track is longer than stated, and read to the next") as said:
        np.testing.assert_allclose(read_midi(path).notes, expected)
    assert len(said) == 1


def test_notes_after_the_end_of_a_track_are_read_and_what_is_no_events_is_left_out(tmp_path: Path) -> None:
    pair = b"\0\x90\x3c\x40\x60\x80\x3c\0"
    once, twice = array((0, 0.1, 60, 64)), array((0, 0.1, 60, 64), (0.1, 0.2, 60, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(read_midi(written(tmp_path / "a.mid", pair + END + pair + END)).notes, twice)
    for rest in (b"\0\0\0", b"\0\x90\x3c", b"\0\x90\x3e\x40\0\x90\xff\x40", b"\0\xff\x51\3\0\0\0"):
        for good, expected in ((pair, once), (pair + END + pair, twice)):
            path = written(tmp_path / "a.mid", good + END + rest)
            with pytest.warns(UserWarning, match=f"a.mid: {len(rest)} bytes are left out after the end of a track"):
                np.testing.assert_allclose(read_midi(path).notes, expected)


def test_bytes_after_the_last_track_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mid", b"\0\x90\x3c\x40\x60\x80\x3c\0" + END)
    path.write_bytes(path.read_bytes() + b"what follows the tracks")
    with pytest.warns(UserWarning, match=r"a\.mid: 23 bytes are left out after the last track"):
        np.testing.assert_allclose(read_midi(path).notes, array((0, 0.1, 60, 64)))


@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_tempo_of_a_wrong_length_is_a_warning(size: int, tmp_path: Path) -> None:
    odd = b"\0\xff\x51" + bytes([size]) + b"\1" * size
    path = written(tmp_path / "a.mid", odd + b"\0\x90\x3c\x40\x60\x80\x3c\0" + END)
    with pytest.warns(UserWarning, match=r"a\.mid: 1 tempo event is left out, whose length is wrong"):
        np.testing.assert_allclose(read_midi(path).notes, array((0, 0.1, 60, 64)))


@pytest.mark.parametrize(("division", "seconds"), [(b"\xe7\x28", 1e-3), (b"\xe8\x04", 1 / 96), (b"\xe3\x64", 1 / 2997)])
def test_times_in_frames_of_film_are_read(division: bytes, seconds: float, tmp_path: Path) -> None:
    path = midi_file(tmp_path / "a.mid", [tempo(0, 250_000), on(100, 60), off(300, 60)])
    data = path.read_bytes()
    path.write_bytes(data[:12] + division + data[14:])
    np.testing.assert_allclose(read_midi(path).notes, array((100 * seconds, 300 * seconds, 60, 64)))


@pytest.mark.parametrize(
    ("hours", "off"), [(0.01, 3e-4), (1.4, 3e-4), (1.5, 3e-4), (5.5, 1e-3), (30, 6e-3), (500, 0.126)]
)
def test_what_we_write_opens_elsewhere_whatever_its_length(hours: float, off: float, tmp_path: Path) -> None:
    onset = np.append(np.arange(0.12345, 3600 * hours - 5, 3600 * hours / 50), 3600 * hours)
    notes = clean(np.column_stack([onset, onset + 0.777, np.full(len(onset), 60), np.full(len(onset), 64)]))
    write_midi(tmp_path / "a.mid", notes)
    theirs = pretty_midi.PrettyMIDI(str(tmp_path / "a.mid")).instruments[0].notes
    np.testing.assert_allclose([(n.start, n.end) for n in theirs], notes[:, :2], rtol=0, atol=off)
    np.testing.assert_allclose(read_midi(tmp_path / "a.mid").notes, notes, rtol=0, atol=off)
    assert mido.MidiFile(tmp_path / "a.mid").length == pytest.approx(notes[-1, 1], abs=4 * off)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """A MIDI file after one to three accidents: bytes changed, lost or put in, a length or the header wrong."""
    data = bytearray(good)
    kinds = ["bit", "byte", "loss", "more", "cut", "length", "count", "ticks", *["value"] * 3]
    place, byte = st.integers(0, len(good)), st.integers(0, 255) | st.sampled_from([0x00, 0x7F, 0x80, 0x90, 0xFF])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(place)
        match draw(st.sampled_from(kinds)):
            case "bit" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "value" if 22 <= at < len(data):
                data[at] = draw(st.integers(0, 127))
            case "byte" if at < len(data):
                data[at] = draw(byte)
            case "loss":
                del data[at : at + draw(st.integers(1, 4))]
            case "more":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del data[max(at, 8) :]
            case "length" if (chunk := data.find(b"MTrk", at)) >= 0:
                data[chunk + 4 : chunk + 8] = draw(st.integers(0, 300) | st.integers(0, 2**32 - 1)).to_bytes(4, "big")
            case "count":
                data[10:12] = draw(st.integers(0, 2**16 - 1)).to_bytes(2, "big")
            case "ticks":
                data[12:14] = draw(st.integers(0, 2**16 - 1)).to_bytes(2, "big")
    return bytes(data)


def test_any_damage_is_bad_input_or_clean_notes(tmp_path: Path) -> None:
    pairs = [event for k in range(20) for event in (on(60 * k, 50 + k % 7), off(60 * k + 70, 50 + k % 7))]
    feet = [control(50 * k, (64, 66, 67)[k % 3], (100, 0)[k // 3 % 2]) for k in range(20)]
    tracks = [tempo(30, 400_000)], pairs + feet, [on(3, 36, 64, 9), off(90, 36, 9)]
    good = midi_file(tmp_path / "good.mid", *tracks).read_bytes()
    path, outcomes = tmp_path / "bad.mid", Counter[str]()

    @given(damaged(good))
    @settings(max_examples=300, deadline=None)
    def check(data: bytes) -> None:
        path.write_bytes(data)
        refusal = ""
        tracemalloc.start()
        try:
            performance = read_midi(path)
        except BadInput as error:
            refusal = str(error)
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()
        outcomes["refused" if refusal else "read"] += 1
        if refusal:
            assert str(path) in refusal
            assert "\n" not in refusal
            return
        notes = performance.notes
        np.testing.assert_array_equal(clean(notes), notes)
        assert (notes[:, 0] >= 0).all()
        assert ((notes[:, 2:] >= [0, 1]) & (notes[:, 2:] <= 127)).all()
        pedal = performance.pedal
        assert np.isfinite(pedal).all()
        assert (np.diff(pedal.flatten()) >= 0).all()
        assert (pedal[:, 1] > pedal[:, 0]).all()
        assert len(apply_pedal(notes, performance.pedal)) == len(notes)

    check()
    assert min(outcomes["read"], outcomes["refused"]) > 20


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
