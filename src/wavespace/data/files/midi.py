"""Notes as arrays, and as MIDI files."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import NO_NOTES, Notes
from wavespace.errors import BadInput
from wavespace.files import read_regular, written_whole
from wavespace.spec import PIANO_PITCHES
from wavespace.text import counted

SHORTEST = 0.01
"""Seconds that a note lasts at least; onsets of one pitch that are closer than this are one onset."""

RESOLUTION = 960
"""Ticks a quarter note (half a second) in the files that we write: 0.52 ms each. Files from 83 minutes on have fewer,
to stay below `MOST_TICKS`; up to 5.5 hours times are exact to 1 ms."""

MOST_TICKS = 9_900_000
"""pretty_midi refuses files of more than ten million ticks."""

MOST_BYTES = 2**25
"""Of a MIDI file: hours of the densest music have a tenth."""

SUSTAIN = 64
"""Controller of the sustain pedal; it is down from a value of 64 on."""

SOUND_OFF, RESET, NOTES_OFF = 120, 121, (120, 123, 124, 125, 126, 127)
"""Controllers that are messages to a whole channel: its notes end (at 120 and from 123 on), its pedal comes up (at 120
and 121)."""

DRUMS = 9
"""The channel of General MIDI whose keys are drums, counted from 0."""

Presses = NDArray[np.float64]
"""`(M, 2)` seconds in which a pedal was down; sorted and disjoint."""

NO_PRESSES: Presses = np.zeros((0, 2))


@dataclass(frozen=True)
class Performance:
    """Notes and pedal of a performance.

    Attributes:
        notes: `(K, 4)`, `clean`, with offsets where the keys were released.
        pedal: of the sustain pedal.
    """

    notes: Notes
    pedal: Presses


def clean(notes: Notes) -> Notes:
    """Make notes playable on a keyboard: sorted, finite, and one at a time on each key.

    A note ends at the next strike of its pitch at the latest. Strikes of one pitch within `SHORTEST` of each other
    are one note, as loud and as long as the largest of them. Rows with a NaN or an infinity are left out.
    """
    notes = notes[np.isfinite(notes).all(axis=1)]
    if len(notes) == 0:
        return NO_NOTES
    notes = notes[np.lexsort((notes[:, 0], notes[:, 2]))]
    onset, offset, pitch, velocity = notes.T
    fresh = np.append(True, (np.diff(pitch) > 0) | (np.diff(onset) >= SHORTEST))
    first = np.flatnonzero(fresh)
    onset, pitch = onset[first], pitch[first]
    following = np.where(np.append(np.diff(pitch) == 0, False), np.append(onset[1:], 0.0), np.inf)
    longest = np.maximum(np.maximum.reduceat(offset, first), onset + SHORTEST)
    notes = np.column_stack([onset, np.minimum(longest, following), pitch, np.maximum.reduceat(velocity, first)])
    return notes[np.lexsort((pitch, onset))]


def apply_pedal(notes: Notes, pedal: Presses) -> Notes:
    """Lengthen notes by the sustain pedal.

    A note whose key is released while the pedal is down goes on until the pedal comes up or its pitch is struck
    again, whichever is first [Hawthorne et al. 2018, "Onsets and frames"; Kong et al. 2021]. Released in the moment
    in which the pedal goes down, it is held; released in the moment in which it comes up, it ends.

    Args:
        notes: `(K, 4)` with offsets where the keys were released.
        pedal: `(M, 2)` sorted, disjoint seconds in which the pedal was down.
    """
    if len(pedal) == 0 or len(notes) == 0:
        return clean(notes)
    notes = notes.copy()
    press = np.searchsorted(pedal[:, 0], notes[:, 1], side="right") - 1
    notes[:, 1] = np.where(press >= 0, np.maximum(notes[:, 1], pedal[press, 1]), notes[:, 1])
    return clean(notes)


def notes_between(notes: Notes, start: float, stop: float) -> Notes:
    """Return the notes that sound between two times, counted from the first time; they may go beyond both."""
    notes = notes[(notes[:, 0] < stop) & (notes[:, 1] > start)]
    return notes - np.array([start, start, 0.0, 0.0])


def on_keyboard(notes: Notes) -> Notes:
    """Return the notes on the 88 keys of a piano."""
    return notes[(np.rint(notes[:, 2]) >= PIANO_PITCHES[0]) & (np.rint(notes[:, 2]) <= PIANO_PITCHES[-1])]


def read_midi(path: str | Path) -> Performance:
    """Read the notes and the sustain pedal of all tracks and channels but drums, as if played on one keyboard.

    A note ends at the first of: the next release of its key in its track and channel, the next strike of its pitch
    in any, a message to its channel that ends all notes, the end of its track (a key that is never released). A
    release in the very tick of a strike is that of the note before, if one was sounding, whichever of the two the file
    has first; else the note is `SHORTEST`. A release of a key that is up means nothing. Then `clean` makes one of
    strikes that are too close.

    A pedal is down while its controller is 64 or more, in any track or channel but the drums', until a message to the
    channel resets it. Lifted and pressed in one tick, it was up for a moment: two presses touch. Never lifted, it
    holds to the end of the last note or to its own last event.

    All tracks of the file are read, also those that its header does not count, and a file within a RIFF file (RMID).
    A track without an end in its stated length, which no chunk follows, reaches to the next track or the end of the
    file, and events after its end are read, too. Numbers beyond 127, where a file has only a few, are taken for 127,
    and notes of such a pitch are left out. A warning names these and what can't be read. A file without notes is a
    score of silence.

    Raises:
        BadInput: the file is missing, or is no readable MIDI file.
    """
    path = Path(path)
    try:
        data = read_regular(path, MOST_BYTES)
    except (FileNotFoundError, BadInput) as error:
        why = error.strerror if isinstance(error, FileNotFoundError) else str(error).removeprefix(f"{path}: ")
        raise BadInput(f"can't read {path}: {why}") from None
    try:
        per_quarter, chunks, left = _tracks(data)
        played = [_events(*chunk) for chunk in chunks]
        _check_faults(path, played, [size for _, size in chunks], left)
    except ValueError as error:
        raise BadInput(f"{path} is not a MIDI file that can be read ({error})") from None

    # (E, 5) of all tracks: part (track and channel), tick, kind, and the two values that come with it
    events = np.concatenate([np.insert(track.events, 0, 16 * k, axis=1) for k, track in enumerate(played)])
    ends = np.array([track.tick for track in played])
    tempo = events[events[:, 2] == (TEMPO if data[data.find(b"MThd") + 12] < 0x80 else -1)]
    tempo = tempo[np.argsort(tempo[:, 1], kind="stable")]
    events = events[(events[:, 2] != TEMPO) & (events[:, 2] & 15 != DRUMS)]
    events[:, 0] += events[:, 2] & 15
    control = events[:, 2] & 0xF0 == CONTROL

    notes = _strikes(events[~control], ends, events[control & np.isin(events[:, 3], NOTES_OFF)])
    if len(notes) == 0:
        return Performance(NO_NOTES, NO_PRESSES)
    resets = events[control & np.isin(events[:, 3], (SOUND_OFF, RESET))]
    presses = _presses(_reset(events[control & (events[:, 3] == SUSTAIN)], resets), notes[:, 1].max())
    notes[:, :2] = _seconds(notes[:, :2], tempo, per_quarter)
    return Performance(clean(notes), _seconds(presses, tempo, per_quarter))


def write_midi(path: str | Path, notes: Notes) -> None:
    """Write notes as a MIDI file of a piano, at 120 quarter notes a minute.

    Times before zero become zero. The file appears under its name only when it is complete.

    Args:
        path: where; its folder is made if it is missing.
        notes: `(K, 4)`.
    """
    import pretty_midi

    path = Path(path)
    notes = clean(notes)
    end = float(notes[:, 1].max(initial=1.0))
    resolution = min(RESOLUTION, max(1, int(MOST_TICKS / (2 * end))))
    while int(6e7 / (60 / (60 / (120 * resolution) * resolution))) != 500_000:  # as pretty_midi rounds the tempo: down
        resolution -= 1
    midi = pretty_midi.PrettyMIDI(resolution=resolution, initial_tempo=120.0)
    instrument = pretty_midi.Instrument(program=0)
    for onset, offset, pitch, velocity in notes:
        start = max(onset, 0.0)
        instrument.notes.append(
            pretty_midi.Note(
                velocity=int(np.clip(round(velocity), 1, 127)),
                pitch=int(np.clip(round(pitch), 0, 127)),
                start=start,
                end=max(offset, start + SHORTEST),
            )
        )
    midi.instruments.append(instrument)
    with written_whole(path, str(os.getpid())) as file:
        midi.write(file)


STRIKE, CONTROL, TEMPO = 0x90, 0xB0, 0x51
"""Kinds of events that count: the status byte, a channel in its lower half, and the meta event of a tempo."""

END = b"\xff\x2f\0"
"""The last event of a track."""


class Track(NamedTuple):
    """What a track holds."""

    events: NDArray[np.int64]
    """Those that count, `(E, 4)` of tick, kind and two values, in the file's order."""
    tick: int
    """Of its end."""
    size: int
    """Bytes that were read."""
    left: int
    """Bytes after its end that are no events."""
    bad: int
    """Events with values beyond 127."""
    odd: int
    """Tempo events of a wrong length."""


def _tracks(data: bytes) -> tuple[float, list[tuple[bytes, int]], int]:
    """Ticks a quarter note, the tracks of a MIDI file with their stated lengths, and how many bytes follow them.

    Tracks beyond the header's count are among them, and a track has the bytes after its stated length, if it does not
    end there. Where a file counts frames of film, its ticks are given as if of quarters of half a second.

    Raises:
        ValueError: what is wrong.
    """
    riff = data[:4] == b"RIFF" and data[8:12] == b"RMID"
    if riff:
        data = data[max(0, data.find(b"MThd")) :]
    if data[:4] != b"MThd":
        raise ValueError("it does not begin with MThd")
    if len(data) < 14:
        raise ValueError("it breaks off within the header")
    kind, promised = int.from_bytes(data[8:10]), int.from_bytes(data[10:12])
    per_quarter: float = int.from_bytes(data[12:14])
    if per_quarter >= 2**15:  # frames a second, of which 29 are 29.97, and ticks a frame
        frames = 256 - data[12]
        per_quarter = (29.97 if frames == 29 else frames) * data[13] / 2
    if per_quarter == 0:
        raise ValueError("its header counts 0 ticks a quarter note")
    tracks: list[tuple[bytes, int]] = []
    place = 8 + int.from_bytes(data[4:8])
    while len(tracks) < promised or data[place : place + 4] == b"MTrk" or _is_chunk(data, place):
        size = int.from_bytes(data[place + 4 : place + 8])
        start, place = place + 8, place + 8 + size
        if place > len(data):
            raise ValueError(f"it breaks off in track {len(tracks) + 1} of {max(promised, len(tracks) + 1)}")
        if data[start - 8 : start - 4] == b"MTrk":
            if not data[start:place].endswith(END) and not _is_chunk(data, place):
                following = data.find(b"MTrk", place)
                place = len(data) if following < 0 else following
            tracks.append((data[start:place], size))
    if not tracks:
        raise ValueError("it has no tracks")
    if kind == 2 and len(tracks) > 1:
        raise ValueError(f"it holds {len(tracks)} scores (format 2), not the tracks of one; save each by itself")
    return per_quarter, tracks, 0 if riff else len(data) - place


def _is_chunk(data: bytes, place: int) -> bool:
    """Whether four printable letters and a length that fits stand there."""
    name = data[place : place + 4]
    fits = place + 8 + int.from_bytes(data[place + 4 : place + 8]) <= len(data)
    return fits and name.isascii() and name.decode().isprintable()


def _check_faults(path: Path, tracks: list[Track], sizes: list[int], left: int) -> None:
    """Warn of what is read otherwise than the file states, or not at all; ValueError where bad events are many."""
    bad, events = sum(track.bad for track in tracks), sum(len(track.events) for track in tracks)
    if bad > max(1, events // 100):
        raise ValueError(f"{bad} of its events have numbers beyond 127")
    longer = sum(track.size > size for track, size in zip(tracks, sizes))
    faults = {
        "of its events have numbers beyond 127, taken for 127": bad,
        "tempo events are left out, whose length is wrong": sum(track.odd for track in tracks),
        "tracks are longer than stated, and read to the next track or the end of the file": longer,
        "bytes are left out after the end of a track, which are no events": sum(track.left for track in tracks),
        "bytes are left out after the last track": left,
    }
    if said := [f"{n} {what}" if what.startswith("of") else counted(n, what) for what, n in faults.items() if n]:
        warnings.warn(f"{path}: {'; '.join(said)}", stacklevel=3)


def _events(track: bytes, size: int) -> Track:
    """Read the events of a track of this stated length; what follows an end of it and is no events is left out.

    Raises:
        ValueError: what is wrong.
    """
    found: list[int] = []
    place = tick = status = bad = odd = 0
    ended: tuple[int, ...] | None = None  # where the track may end
    try:
        while place < len(track):
            if place == size:
                ended = len(found), tick, place, bad, odd
            delta, place = _number(track, place)
            tick += delta
            kind = track[place]
            if kind < 0x80:  # the status of the event before holds on
                if not status:
                    raise ValueError(f"byte {place} of a track, {kind:#x}, follows no status byte")
            elif kind < 0xF0:
                status = kind
                place += 1
            elif kind in (0xF0, 0xF7, 0xFF):  # of any length: to an instrument, or about the file
                kind, value, place = _long_event(track, place)
                if kind == TEMPO and len(value) == 3:
                    found += (tick, kind, int.from_bytes(value), 0)
                odd += kind == TEMPO and len(value) != 3
                if kind == 0x2F:  # the end; some files go on
                    ended, status = (len(found), tick, place, bad, odd), 0
                continue
            else:  # to a whole system; it has no place in a file, and does no harm
                place += 1 + {0xF1: 1, 0xF2: 2, 0xF3: 1}.get(kind, 0)
                continue
            first = track[place]
            wide = not 0xC0 <= status < 0xE0  # with two values
            second = track[place + 1] if wide else 0
            place += 1 + wide
            if first >= 0x80 or second >= 0x80:
                if ended:
                    raise ValueError("a value beyond 127")
                bad += 1
                second = min(second, 127)
            if first < 0x80 and (status < 0xA0 or CONTROL <= status < 0xC0):
                found += (tick, status, first, second)
        if place > len(track):
            raise IndexError
    except (IndexError, ValueError) as fault:
        if not ended:
            breaks = "the last event of a track breaks off"
            raise ValueError(breaks if isinstance(fault, IndexError) else str(fault)) from None
        kept, tick, place, bad, odd = ended
        del found[kept:]
    return Track(np.array(found, np.int64).reshape(-1, 4), tick, place, len(track) - place, bad, odd)


def _long_event(track: bytes, place: int) -> tuple[int, bytes, int]:
    """The kind of an event of any length (of a meta event, its own), its content, and the place after it."""
    kind = track[place]
    if kind == 0xFF:
        place += 1
        kind = track[place]
    size, place = _number(track, place + 1)
    if place + size > len(track):
        raise IndexError
    value = track[place : place + size]
    if kind == TEMPO and value == bytes(3):
        raise ValueError("its tempo is infinite: a quarter note of 0 microseconds")
    return kind, value, place + size


def _number(track: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, seven bits a byte, and the place after it."""
    value = track[place]
    if value < 0x80:
        return value, place + 1
    value &= 0x7F
    for step in (1, 2, 3):
        value = value << 7 | track[place + step] & 0x7F
        if track[place + step] < 0x80:
            return value, place + step + 1
    raise ValueError(f"byte {place} of a track begins a number that does not end")


def _strikes(events: NDArray[np.int64], ends: NDArray[np.int64], messages: NDArray[np.int64]) -> Notes:
    """Notes `(K, 4)` in ticks, of strikes and releases `(E, 5)`, the ticks at which tracks end, and the messages
    `(M, 5)` that end all notes of a channel, in any track.
    """
    events = events[np.lexsort((events[:, 3], events[:, 0]))]  # key by key of each part, in the file's order
    part, tick, kind, pitch, velocity = np.pad(events, ((1, 2), (0, 0)), constant_values=-1).T
    key, strike = 128 * part + pitch, (kind & 0xF0 == STRIKE) & (velocity > 0)  # (E + 3,)
    here = np.flatnonzero(strike[:-2])  # (K,)
    sounding = strike[here - 1] & (key[here - 1] == key[here])
    at_once = ~strike[here + 1] & (key[here + 1] == key[here]) & (tick[here + 1] == tick[here])
    after = here + 1 + (sounding & at_once)  # the release at once is that of the note which was sounding
    offset = np.where(key[after] == key[here], tick[after], ends[part[here] // 16])
    for channel in np.unique(messages[:, 2]) & 15:
        own = part[here] & 15 == channel
        silenced = np.append(np.sort(messages[messages[:, 2] & 15 == channel, 1]), np.iinfo(np.int64).max)
        following = silenced[np.searchsorted(silenced, tick[here], side="right")]
        offset = np.where(own, np.minimum(offset, following), offset)
    return np.column_stack([tick[here], offset, pitch[here], velocity[here]]).astype(float)


def _reset(events: NDArray[np.int64], resets: NDArray[np.int64]) -> NDArray[np.int64]:
    """A pedal's events `(E, 5)` with one that lifts it at each reset of its channel, before those of the same tick."""
    if len(events) == 0 or len(resets) == 0:
        return events
    lifts = []
    for part in np.unique(events[:, 0]):
        own = resets[resets[:, 2] & 15 == part & 15].copy()
        own[:, 0], own[:, 4] = part, 0
        lifts.append(own)
    events = np.concatenate([*lifts, events])
    return events[np.argsort(events[:, 1], kind="stable")]


def _presses(events: NDArray[np.int64], end: float) -> NDArray[np.int64]:
    """Ticks `(M, 2)` in which a pedal was down in any part, of its controller's events `(E, 5)`; notes end at `end`."""
    end = events[:, 1].max(initial=int(end))
    events = events[np.argsort(events[:, 0], kind="stable")]  # part by part, in the file's order
    part, tick, down = events[:, 0], events[:, 1], events[:, 4] >= 64
    before = np.roll(down, 1) & (part == np.roll(part, 1))
    before[:1] = False
    part, tick, down = part[down != before], tick[down != before], down[down != before]  # down, up, down, up, ...
    up = np.where(np.diff(part, append=-1) == 0, np.roll(tick, -1), end)
    presses = np.column_stack([tick, up])[down]
    return _union(presses[presses[:, 1] > presses[:, 0]])


def _union(intervals: NDArray[np.int64]) -> NDArray[np.int64]:
    """Intervals `(M, 2)` sorted, those that overlap made one."""
    if len(intervals) == 0:
        return intervals
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    until = np.maximum.accumulate(intervals[:, 1])
    first = np.flatnonzero(np.append(True, intervals[1:, 0] >= until[:-1]))
    return np.column_stack([intervals[first, 0], until[np.append(first[1:], len(until)) - 1]])


def _seconds(ticks: NDArray[np.number], tempo: NDArray[np.int64], per_quarter: float) -> NDArray[np.float64]:
    """Ticks in seconds; `tempo` is `(E, 5)`, sorted, with microseconds a quarter note as the first value."""
    start = np.append(0, tempo[:, 1]).astype(float)
    rate = np.append(500_000, tempo[:, 3]) / 1e6 / per_quarter  # 120 quarters a minute before the first tempo
    passed = np.append(0.0, np.cumsum(np.diff(start) * rate[:-1]))
    section = np.searchsorted(start, ticks, side="right") - 1
    return passed[section] + (ticks - start[section]) * rate[section]
