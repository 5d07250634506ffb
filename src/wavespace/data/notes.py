"""Notes as arrays, and as MIDI files."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import NO_NOTES, Notes
from wavespace.errors import BadInput

SHORTEST = 0.01
"""Seconds that any note lasts at least; strikes of one pitch that are closer than this are one strike."""

RESOLUTION = 960
"""Ticks a quarter note (half a second) in the files that we write: 0.52 ms each."""


@dataclass(frozen=True)
class Performance:
    """What hands and foot did.

    Attributes:
        notes: `(K, 4)`, `clean`, with offsets where the keys were released.
        pedal: `(M, 2)` seconds in which the sustain pedal was down; sorted and disjoint.
    """

    notes: Notes
    pedal: NDArray[np.float64]


def clean(notes: Notes) -> Notes:
    """Notes that a keyboard could play: sorted, finite, and one at a time on each key.

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


def apply_pedal(notes: Notes, pedal: NDArray[np.float64]) -> Notes:
    """Notes that last as long as they are heard.

    A note whose key is released while the pedal is down goes on until the pedal comes up or its pitch is struck
    again, whichever is first [Hawthorne et al. 2018, "Onsets and frames"; Kong et al. 2021].

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


def window(notes: Notes, start: float, stop: float) -> Notes:
    """The notes that sound between two times, counted from the first; what goes beyond them is not cut off."""
    notes = notes[(notes[:, 0] < stop) & (notes[:, 1] > start)]
    return notes - np.array([start, start, 0.0, 0.0])


def read_midi(path: str | Path) -> Performance:
    """The notes and the sustain pedal of all tracks together, drums left out, as if played on one keyboard.

    A note ends at the first release of its key after its strike, at the next strike of its pitch, or at the end
    of its track. The pedal is down while controller 64 is 64 or more; never lifted, it holds to the end.

    Raises:
        BadInput: the file is missing, is no readable MIDI file, or has no notes.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror}") from None
    try:
        score = _parse(data)
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"{path} is not a MIDI file that can be read ({error})") from None
    if score.tpq <= 0:
        raise BadInput(f"{path} is not a MIDI file that can be read (its header counts 0 ticks a quarter note)")

    notes, pedal = [], []
    for track in score.tracks:
        if track.is_drum:
            continue
        columns = track.notes.numpy()
        onset, pitch = columns["time"].astype(np.int64), columns["pitch"].astype(np.int64)
        offset = _releases(onset, onset + columns["duration"], pitch)
        notes.append(np.column_stack([onset, offset, pitch, columns["velocity"]]))
        pedal.append(_presses(track.controls.numpy(), score.end()))
    played = np.concatenate([np.zeros((0, 4)), *notes])
    if len(played) == 0:
        raise BadInput(f"{path} has no notes (drums are left out)")
    tempo = score.tempos.numpy()
    played[:, :2] = _seconds(played[:, :2], tempo, score.tpq)
    return Performance(clean(played), _seconds(_union(np.concatenate(pedal)), tempo, score.tpq))


def write_midi(path: str | Path, notes: Notes, program: int = 0) -> None:
    """Notes as a MIDI file of one instrument, `RESOLUTION` ticks a quarter note at 120 a minute.

    Times before zero become zero. The file appears under its name only when it is complete.

    Args:
        path: where; its folder is made if it is missing.
        notes: `(K, 4)`.
        program: General MIDI program number, 0-127.
    """
    import pretty_midi

    path = Path(path)
    midi = pretty_midi.PrettyMIDI(resolution=RESOLUTION, initial_tempo=120.0)
    instrument = pretty_midi.Instrument(program=program)
    for onset, offset, pitch, velocity in clean(notes):
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
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        midi.write(str(unfinished))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _parse(data: bytes) -> Any:
    """A symusic score in ticks with every strike in it.

    symusic pairs strikes and releases first in, first out, and drops strikes that are left over. So releases of
    every key are put before each track's end, more of them until no further note turns up.
    """
    from symusic import Score

    score: Any = Score.from_midi(data)
    copies = 1
    while True:
        closed: Any = Score.from_midi(_close(data, copies))
        if closed.note_num() == score.note_num():
            return score
        score, copies = closed, 8 * copies


def _close(data: bytes, copies: int) -> bytes:
    """MIDI data with `copies` releases of every key on every channel before the end of each track."""
    keys = b"\0".join(bytes([key, 0]) for key in range(128))  # delta times of 0 between them: running status
    releases = b"\0".join(bytes([0x80 | channel]) + b"\0".join([keys] * copies) for channel in range(16))
    chunks, place = [data[:14]], 14
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(">4sI", data, place)
        body = data[place + 8 : place + 8 + size]
        if kind == b"MTrk" and body.endswith(b"\xff\x2f\x00"):  # the delta time before it stays, and is theirs
            body = body[:-3] + releases + b"\0\xff\x2f\x00"
        chunks += [struct.pack(">4sI", kind, len(body)), body]
        place += 8 + size
    return b"".join(chunks)


def _releases(onset: NDArray[np.int64], offset: NDArray[np.int64], pitch: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first release after each strike, `(K,)` ticks; a note struck and released in one tick stays as it is."""
    span = int(offset.max(initial=0)) + 1
    releases = np.sort(pitch * span + offset)
    after = np.searchsorted(releases, pitch * span + onset, side="right")
    held = offset > onset
    return np.where(held, releases[np.minimum(after, len(releases) - 1)] - pitch * span, offset)


def _presses(controls: dict[str, NDArray[Any]], end: int) -> NDArray[np.int64]:
    """Ticks `(M, 2)` in which one track's sustain pedal was down."""
    sustain = controls["number"] == 64
    tick, down = controls["time"][sustain].astype(np.int64), controls["value"][sustain] >= 64
    change = np.flatnonzero(np.diff(down, prepend=False))  # down, up, down, up, ...
    edges = np.append(tick[change], [max(end, int(tick[-1]))] if len(change) % 2 else [])
    presses = edges.reshape(-1, 2).astype(np.int64)
    return presses[presses[:, 1] > presses[:, 0]]


def _union(intervals: NDArray[np.int64]) -> NDArray[np.int64]:
    """Intervals `(M, 2)` sorted, those that touch made one."""
    if len(intervals) == 0:
        return intervals
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    until = np.maximum.accumulate(intervals[:, 1])
    first = np.flatnonzero(np.append(True, intervals[1:, 0] > until[:-1]))
    return np.column_stack([intervals[first, 0], until[np.append(first[1:], len(until)) - 1]])


def _seconds(ticks: NDArray[Any], tempo: dict[str, NDArray[Any]], per_quarter: int) -> NDArray[np.float64]:
    """Ticks in seconds, in float64: symusic's own float32 seconds are 4 ms apart ten hours into a file."""
    start = np.append(0, tempo["time"].astype(np.float64))
    rate = np.append(500_000, tempo["mspq"]) / 1e6 / per_quarter  # 120 quarters a minute until told otherwise
    passed = np.append(0.0, np.cumsum(np.diff(start) * rate[:-1]))
    section = np.searchsorted(start, ticks, side="right") - 1
    return passed[section] + (ticks - start[section]) * rate[section]
