"""A cache of the performances in MIDI files, beside the stores, named by the content of the files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import NO_NOTES
from wavespace.data.files.midi import NO_PRESSES, Performance, on_keyboard, read_midi
from wavespace.digests import FileDigest, digest
from wavespace.errors import BadInput
from wavespace.files import byte_progress

READER_VERSION = 3
"""Increased when other notes are read from the same files."""

LONGEST_GAP = 30.0
"""Seconds from an onset to the next at most; longer gaps in MIDI files are shortened."""

INDEX, NOTES, PEDAL = "scores.json", "notes.rows", "pedal.rows"


@dataclass(frozen=True)
class Scores:
    """Performances of some of the cached files; small enough to be sent to workers."""

    folder: Path
    numbers: tuple[int, ...]
    names: tuple[str, ...]
    """Of the files."""

    def between(self, first: int, last: int) -> Scores:
        """Return those of the files from `first` to before `last`, of all that were read together."""
        own = [place for place, number in enumerate(self.numbers) if first <= number < last]
        return Scores(self.folder, tuple(self.numbers[i] for i in own), tuple(self.names[i] for i in own))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Performance:
        """Return the notes on the keyboard of a piano, and the sustain pedal."""
        index, notes, pedal = _opened(self.folder)
        number = self.numbers[place]
        first, last = (index[number - 1] if number else [0, 0]), index[number]
        return Performance(np.array(notes[first[0] : last[0]]), np.array(pedal[first[1] : last[1]]))


def read_scores(files: Sequence[FileDigest], stores: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Read MIDI files into the cache, unless they are there; return its folder, and facts of each file in order.

    Facts are `notes` on the keyboard of a piano, the time of the last one's end in `seconds`, and `fault`, why a file
    can't be read, or null.
    """
    folder = stores / f"scores-{digest([READER_VERSION, [seen.digest for seen in files]])[:12]}"
    if not (folder / INDEX).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as building:
            _build(Path(building) / "whole", files)
            try:
                (Path(building) / "whole").rename(folder)
            except OSError:
                if not (folder / INDEX).is_file():  # else another process was quicker
                    shutil.rmtree(folder, ignore_errors=True)
                    (Path(building) / "whole").rename(folder)
    return folder, json.loads((folder / INDEX).read_bytes())["files"]


def _build(folder: Path, files: Sequence[FileDigest]) -> None:
    folder.mkdir()
    facts: list[dict[str, Any]] = []
    ends = [0, 0]
    sizes = [seen.path.stat().st_size for seen in files]
    with (
        (folder / NOTES).open("wb") as notes,
        (folder / PEDAL).open("wb") as pedal,
        byte_progress(f"reading {len(files)} scores", sum(sizes)) as advance,
    ):
        for seen, size in zip(files, sizes):
            played, fault = _performance(seen.path)
            if not seen.is_unchanged():
                raise BadInput(f"{seen.path}: has changed since this command began; repeat the command")
            notes.write(played.notes.astype("<f8").tobytes())
            pedal.write(played.pedal.astype("<f8").tobytes())
            ends = [ends[0] + len(played.notes), ends[1] + len(played.pedal)]
            last = float(played.notes[:, 1].max(initial=0.0))
            gap = bool(np.diff(_moments(played.notes)).max() > LONGEST_GAP - 1e-6)
            facts.append({"ends": ends, "notes": len(played.notes), "seconds": last, "gap": gap, "fault": fault})
            advance(size)
        for file in (notes, pedal):
            file.flush()
            os.fsync(file.fileno())
    (folder / INDEX).write_text(json.dumps({"reader": READER_VERSION, "files": facts}))


def _performance(path: Path) -> tuple[Performance, str | None]:
    """Read a performance on the keyboard of a piano; return also why it can't be read, or None."""
    nothing = Performance(NO_NOTES, NO_PRESSES)
    try:
        performance = read_midi(path)
    except BadInput as fault:
        return nothing, str(fault)
    notes = on_keyboard(performance.notes)
    if len(notes) == 0:
        return nothing, None
    return _without_gaps(Performance(notes, performance.pedal)), None


def _without_gaps(performance: Performance) -> Performance:
    """Shorten gaps to `LONGEST_GAP` seconds: windows would mostly lie in a gap of hours."""
    moments = _moments(performance.notes)
    steps = np.diff(moments)
    if steps.max() <= LONGEST_GAP:
        return performance
    before, after = moments[:-1][steps > LONGEST_GAP], moments[1:][steps > LONGEST_GAP]
    total = np.cumsum(after - before - LONGEST_GAP)
    edges = np.column_stack([before + LONGEST_GAP, after]).ravel()
    removed = np.column_stack([np.append(0, total[:-1]), total]).ravel()  # seconds before each edge

    def moved(times: NDArray[np.float64]) -> NDArray[np.float64]:
        return times - np.interp(times, edges, removed)

    notes = performance.notes.copy()
    notes[:, :2] = moved(notes[:, :2])
    return Performance(notes, moved(performance.pedal))


def _moments(notes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the start, each onset, and the end of the last note."""
    return np.concatenate([[0.0], notes[:, 0], notes[:, 1].max(initial=0.0, keepdims=True)])


@lru_cache(maxsize=4)
def _opened(folder: Path) -> tuple[list[list[int]], NDArray[np.float64], NDArray[np.float64]]:
    facts = json.loads((folder / INDEX).read_bytes())["files"]
    notes, pedal = (_rows(folder / name, width) for name, width in ((NOTES, 4), (PEDAL, 2)))
    return [fact["ends"] for fact in facts], notes, pedal


def _rows(path: Path, width: int) -> NDArray[np.float64]:
    if path.stat().st_size == 0:
        return np.zeros((0, width))
    return np.asarray(np.memmap(path, "<f8", "r")).reshape(-1, width)
