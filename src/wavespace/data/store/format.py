"""The store: recordings as rows in a few large files, of which any stretch is read with one system call.

A row is a sample of 16-bit mono PCM; in a store of features (`wavespace.data.store.features`) it is a frame. A store
is a folder that is complete or absent, and never written to:

- `shard-00000.rows` ...: little-endian rows, recording after recording;
- `notes.npy`: `(K, 4)` float64 rows of onset, offset (seconds), MIDI pitch, velocity, recording after recording;
- `index.npz`: arrays with an entry a recording: shard, offset, frames, split, piece, digest, notes, labels, name;
- `manifest.json`: sample rate, counts, licence, provenance, and size and SHA-256 of the files above.
"""

from __future__ import annotations

import errno
import math
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import Item, Notes
from wavespace.data.files.midi import notes_between
from wavespace.data.store.manifest import INDEX, NOTES, check_index, damaged, read_arrays, read_manifest, shard_file
from wavespace.digests import file_digest
from wavespace.errors import BadInput, UserError
from wavespace.files import byte_progress

PCM = np.dtype("<i2")
Rows = NDArray[Any]
"""`(n,)` samples int16, or `(n, width)` frames of features."""


class Store:
    """Reads any window of any recording, exact to the sample. `Store.open` makes one.

    It may be used before and after a fork, and pickles as its path: each process opens files on the first read.

    Attributes:
        folder: where it is.
        manifest: content of manifest.json.
        sample_rate: rows a second.
        frames: `(R,)` int64, rows of each recording.
        clipped: `(R,)` int64, samples of each recording beyond full scale.
        pieces: `(R,)` int64, equal for the same piece of music; -1: unknown.
        digests: `(R, 16)` uint8, equal for equal rows.
        labels: `(R,)` int64 class indices by name.
        features: a store of their features, one frame each `hop` samples; or None.
        hop: windows start at its multiples if there are features; else 1.
    """

    features: Store | None = None
    hop = 1

    def __init__(self, folder: Path, manifest: dict[str, Any], index: dict[str, NDArray[Any]], notes: Notes) -> None:
        self.folder, self.manifest = folder, manifest
        self.sample_rate: int = manifest["sample_rate"]
        self.frames, self.clipped = index["frames"], index["clipped"]
        self.pieces, self.digests = index["piece"], index["digest"]
        self._dtype, self._width = np.dtype(manifest["dtype"]), manifest["width"]
        self._outside = index["outside"]
        self.labels = {name: index[f"label_{name}"] for name in manifest["labels"]}
        self._names, self._split = index["names"], index["split"]
        self._shard, self._offset, self._notes_end = index["shard"], index["offset"], index["notes_end"]
        self._notes = notes
        self._process = os.getpid()
        self._files: dict[int, int] = {}

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Read the index, and check the sizes of the files.

        Args:
            folder: may be read-only.

        Raises:
            BadInput: there is no store, it is of another version, or one of its files is missing or cut off.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            index = read_arrays(folder / INDEX)
            notes = np.asarray(np.load(folder / NOTES, mmap_mode="r"))
            check_index(manifest, index, notes)
            return cls(folder, manifest, index, notes)
        except UserError:
            raise
        except Exception as error:  # whatever damaged bytes make NumPy raise
            raise damaged(folder, error) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.features)

    def __len__(self) -> int:
        return len(self.frames)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    @cached_property
    def names(self) -> list[str]:
        """Names of the recordings."""
        return self._names.tobytes().decode("utf-8", "surrogateescape").split("\n")

    def split(self, name: str) -> NDArray[np.int64]:
        """Return the recordings of a split, in order; empty if it has none."""
        splits = list(self.manifest["splits"])
        return np.flatnonzero(self._split == splits.index(name)) if name in splits else np.zeros(0, np.int64)

    def with_features(self, features: Store) -> Store:
        """Give the items of this store their features; returns it."""
        self.features, self.hop = features, round(self.sample_rate / features.sample_rate)
        if self.hop < 1:
            raise BadInput(
                f"{features.folder}: has {features.sample_rate} frames a second, more than there are samples"
            )
        return self

    def notes_in(self, recordings: NDArray[np.int64]) -> int:
        """Count the notes of some recordings."""
        return int(np.diff(self._notes_end, prepend=0)[recordings].sum())

    def window(self, recording: int, start: int, samples: int) -> Rows:
        """Read `samples` rows of a recording from row `start` on; outside of it they are silence.

        Raises:
            BadInput: the disk gives less than the index states.
        """
        first, last = max(start, 0), min(start + samples, int(self.frames[recording]))
        shard, place = int(self._shard[recording]), int(self._offset[recording]) + first
        if last - first == samples:
            return self._read(shard, place, samples)
        rows = self._empty(samples)
        rows[:] = self._outside
        if first < last:
            rows[first - start : last - start] = self._read(shard, place, last - first)
        return rows

    def notes(self, recording: int, start: float = 0.0, stop: float = math.inf) -> Notes:
        """Return the notes `(K, 4)` that sound between two times in seconds, counted from the first time."""
        first = self._notes_end[recording - 1] if recording else 0
        notes = self._notes[first : self._notes_end[recording]]
        # Sorted by onset, and none is longer than the longest: a few of thousands can sound in a window.
        first, last = notes[:, 0].searchsorted((start - self.manifest["longest_note"], stop))
        if not (np.abs(notes[first:last]) < 1e9).all():
            raise BadInput(f"{self.folder / NOTES}: has a number that is none, or beyond 1e9; prepare the store anew")
        return notes_between(notes[first:last], start, stop)

    def item(self, recording: int, start: int, samples: int) -> Item:
        """Read a window with its notes and labels; its name has the recording and its start in seconds."""
        name, seconds = self.names[recording], start / self.sample_rate
        if samples != self.frames[recording]:
            name = f"{name} at {seconds:.2f} s"
        audio = self.window(recording, start, samples)
        notes = self.notes(recording, seconds, seconds + samples / self.sample_rate)
        labels = {label: int(values[recording]) for label, values in self.labels.items()}
        if self.features is None:
            return Item(audio, name, notes, labels)
        frames = self.features.window(recording, start // self.hop, 1 + samples // self.hop)
        return Item(audio, name, notes, labels, frames)

    def verify(self) -> None:
        """Compare every file with its digest in the manifest.

        Raises:
            BadInput: files that are not as they were written, by name.
        """
        files = self.manifest["files"]
        bad = []
        with byte_progress("verifying", sum(file["bytes"] for file in files.values())) as advance:
            for name, file in files.items():
                try:
                    if file_digest(self.folder / name, advance) != file["sha256"]:
                        bad.append(f"{name} (its SHA-256 differs)")
                except BadInput as error:
                    bad.append(str(error))
        if bad:
            raise BadInput(
                f"{self.folder}: not as it was written: {', '.join(bad)}; delete the folder and prepare it anew"
            )

    def _empty(self, count: int) -> Rows:
        return np.empty(count if self._width == 1 else (count, self._width), self._dtype)

    def _read(self, shard: int, place: int, count: int) -> Rows:
        if self._process != os.getpid():  # descriptors of the parent are left alone
            self._process, self._files = os.getpid(), {}
        try:
            if shard not in self._files:
                self._files[shard] = os.open(self.folder / shard_file(shard), os.O_RDONLY)
            found = self._empty(count)
            rest, at = found.data.cast("B"), place * self._width * self._dtype.itemsize
            while len(rest):  # one call gives at most 2 GiB
                got = os.preadv(self._files[shard], [rest], at)
                if got == 0:
                    raise OSError(errno.EIO, f"ends at byte {at}")
                rest, at = rest[got:], at + got
        except OSError as error:
            path = self.folder / shard_file(shard)
            raise BadInput(f"{path}: can't be read ({error.strerror}); prepare the store anew") from None
        return found


def _reopen(folder: Path, features: Store | None) -> Store:
    store = Store.open(folder)
    return store if features is None else store.with_features(features)
