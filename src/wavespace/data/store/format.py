"""The store: recordings as flat rows in a few large files, of which any stretch is read with one system call.

A row is a sample of 16-bit mono PCM; in a store of features (`wavespace.data.store.features`) it is a frame. A store
is a folder, whole or absent, that nothing writes to once it is there:

- `shard-00000.rows` ...: little-endian rows, recording after recording;
- `notes.npy`: `(K, 4)` float64 rows of onset, offset (seconds), MIDI pitch, velocity, recording after recording;
- `index.npz`: arrays with an entry a recording: shard, offset, frames, split, piece, digest, notes, labels, name;
- `manifest.json`: sample rate, counts, licence, what made it, and size and SHA-256 of the files above.

It is built in a hidden folder beside its own, a shard at a time, and renamed when all of it is on the disk. A build
that was killed goes on after the shards that it had finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from wavespace.data.base import NO_NOTES, Item, Notes, rng_for, shuffled
from wavespace.data.files.audio import Audio, Levels, read_blocks, seconds_of
from wavespace.data.files.audio import remarks as channel_remarks
from wavespace.data.files.discovery import Recording
from wavespace.data.files.midi import window as sounding
from wavespace.data.store.manifest import (
    FORMAT,
    INDEX,
    MANIFEST,
    NOTES,
    check_index,
    damaged,
    read_arrays,
    read_manifest,
)
from wavespace.errors import BadInput, UserError
from wavespace.files import byte_progress, check_space, explained, hash_into, lock, sync_folder, written_whole
from wavespace.signals import set_stop_handler

Mode = Literal["pread", "memmap"]

PCM = np.dtype("<i2")
Rows = NDArray[Any]
"""`(n,)` samples int16, or `(n, width)` frames of features."""
WORK = ".building"
"""Folder within an unfinished store: the lock, and a record of each finished shard."""


def store_name(made_by: Mapping[str, Any]) -> str:
    """Twelve hex digits for the folder of a store: equal settings share it, other settings have another.

    Args:
        made_by: all that decides what the store holds, as JSON can write it: data set, version, sample rate, ...
    """
    return _digest([FORMAT, made_by])[:12]


class Store:
    """Many readers, any window of any recording, exact to the sample. `Store.open` makes one.

    It may be used before and after a fork, and pickles as its path: files are opened in each process when first read.

    Attributes:
        folder: where it is.
        manifest: what manifest.json says.
        sample_rate: rows a second.
        frames: `(R,)` int64, rows of each recording.
        clipped: `(R,)` int64, samples of each recording that were beyond full scale.
        pieces: `(R,)` int64, equal where the same piece is played; -1 where it is unknown.
        digests: `(R, 16)` uint8, equal where the rows are.
        labels: `(R,)` int64 class indices by name.
        features: a store of the same recordings' features, one frame each `hop` samples; None: there is none.
        hop: 1 without features; with them windows start at its multiples.
    """

    features: Store | None = None
    hop = 1

    def __init__(
        self, folder: Path, manifest: dict[str, Any], index: dict[str, NDArray[Any]], notes: Notes, mode: Mode
    ) -> None:
        self.folder, self.manifest, self.mode = folder, manifest, mode
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
        self._maps: dict[int, Rows] = {}

    @classmethod
    def open(cls, folder: str | Path, mode: Mode = "pread") -> Store:
        """Read the index, and look whether its few files have their size.

        Args:
            folder: may be read-only.
            mode: "pread" asks the disk for a window and nothing else; "memmap" is quicker by a little when the
                whole store fits into memory, and reads several times as much when it does not.

        Raises:
            BadInput: there is no store, it is of another version, or one of its files is missing or cut off.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            index = read_arrays(folder / INDEX)
            notes = np.asarray(np.load(folder / NOTES, mmap_mode="r"))
            check_index(manifest, index, notes)
            return cls(folder, manifest, index, notes, mode)
        except UserError:
            raise
        except Exception as error:  # whatever damaged bytes make NumPy raise
            raise damaged(folder, error) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.mode, self.features)

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
        """The recordings of a split, in order; empty if the store has none of it."""
        splits = list(self.manifest["splits"])
        return np.flatnonzero(self._split == splits.index(name)) if name in splits else np.zeros(0, np.int64)

    def with_features(self, features: Store) -> Store:
        """This store, whose items come with their features from now on."""
        self.features, self.hop = features, round(self.sample_rate / features.sample_rate)
        if self.hop < 1:
            raise BadInput(
                f"{features.folder}: has {features.sample_rate} frames a second, more than there are samples"
            )
        return self

    def notes_in(self, recordings: NDArray[np.int64]) -> int:
        """How many notes some recordings have together."""
        return int(np.diff(self._notes_end, prepend=0)[recordings].sum())

    def window(self, recording: int, start: int, samples: int) -> Rows:
        """`samples` rows of a recording from row `start` on, a fresh array; outside of it silence.

        Raises:
            BadInput: the disk does not give what the index says is there.
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
        """The notes `(K, 4)` that sound between two times in seconds, counted from the first of them."""
        first = self._notes_end[recording - 1] if recording else 0
        notes = self._notes[first : self._notes_end[recording]]
        # Sorted by onset, and none is longer than the longest: a few of thousands can sound in a window.
        first, last = notes[:, 0].searchsorted((start - self.manifest["longest_note"], stop))
        if not (np.abs(notes[first:last]) < 1e9).all():
            raise BadInput(f"{self.folder / NOTES}: has a number that is none, or beyond 1e9; prepare the store anew")
        return sounding(notes[first:last], start, stop)

    def item(self, recording: int, start: int, samples: int) -> Item:
        """A window with its notes and labels, named for the recording and the second at which it starts."""
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
        """Read every byte and hold it against the manifest.

        Raises:
            BadInput: files that are not as they were written, by name.
        """
        files = self.manifest["files"]
        bad = []
        with byte_progress("verifying", sum(file["bytes"] for file in files.values())) as advance:
            for name, file in files.items():
                try:
                    if _hash(self.folder / name, advance) != file["sha256"]:
                        bad.append(f"{name} (its SHA-256 differs)")
                except OSError as error:
                    bad.append(f"{name} ({error.strerror})")
        if bad:
            raise BadInput(
                f"{self.folder}: not as it was written: {', '.join(bad)}; delete the folder and prepare it anew"
            )

    def _empty(self, count: int) -> Rows:
        return np.empty(count if self._width == 1 else (count, self._width), self._dtype)

    def _read(self, shard: int, place: int, count: int) -> Rows:
        if self._process != os.getpid():  # descriptors of the parent are left alone
            self._process, self._files, self._maps = os.getpid(), {}, {}
        try:
            if self.mode == "memmap":
                if shard not in self._maps:
                    rows = np.asarray(np.memmap(self.folder / _shard_file(shard), self._dtype, "r"))
                    self._maps[shard] = rows if self._width == 1 else rows.reshape(-1, self._width)
                return self._maps[shard][place : place + count].copy()
            if shard not in self._files:
                self._files[shard] = os.open(self.folder / _shard_file(shard), os.O_RDONLY)
            found = self._empty(count)
            rest, at = found.data.cast("B"), place * self._width * self._dtype.itemsize
            while len(rest):  # one call gives at most 2 GiB
                got = os.preadv(self._files[shard], [rest], at)
                if got == 0:
                    raise OSError(errno.EIO, f"ends at byte {at}")
                rest, at = rest[got:], at + got
        except OSError as error:
            path = self.folder / _shard_file(shard)
            raise BadInput(f"{path}: can't be read ({error.strerror}); prepare the store anew") from None
        return found


def _reopen(folder: Path, mode: Mode, features: Store | None) -> Store:
    store = Store.open(folder, mode)
    return store if features is None else store.with_features(features)


class StoreWindows:
    """Random windows as a function of position: a training stream.

    A recording that is shorter than a window starts it, and zeros follow.

    Args:
        store: where from.
        recordings: which of its recordings.
        samples: length of a window.
        seed: of the order and the places.
        balance: "time": every place of every recording is as likely; "recording": each recording comes once in
            every `len(recordings)` windows, in a new order each time; or classes `(len(recordings),)`: each class
            comes once in as many windows as there are classes, and within a class its recordings take turns.
    """

    def __init__(
        self,
        store: Store,
        recordings: NDArray[np.int64],
        samples: int,
        seed: int,
        balance: Literal["time", "recording"] | NDArray[np.int64] = "time",
    ) -> None:
        self.store, self.recordings, self.samples = store, recordings, samples
        self.seed = seed
        self._ends = _window_ends(store, recordings, samples)
        self._by_time = isinstance(balance, str) and balance == "time"
        classes = np.zeros(len(recordings)) if isinstance(balance, str) else balance
        self._classes = [np.flatnonzero(classes == one) for one in np.unique(classes)]

    def __getitem__(self, position: int) -> Item:
        share = _share(self.seed, position)
        if self._by_time:
            place = int(share * self._ends[-1])
            row = int(np.searchsorted(self._ends, place, side="right"))
            start = place - int(self._ends[row - 1] if row else 0)
        else:
            rows = self._classes[shuffled(self.seed, position, len(self._classes))]
            row = int(rows[shuffled(self.seed, position // len(self._classes), len(rows))])
            start = int(share * (self._ends[row] - (self._ends[row - 1] if row else 0)))
        return self.store.item(int(self.recordings[row]), start - start % self.store.hop, self.samples)


class StoreItems(Dataset[Item]):
    """A list of pieces of recordings, always the same: for validation and test."""

    def __init__(self, store: Store, pieces: NDArray[np.int64]) -> None:
        self.store, self.pieces = store, pieces  # (P, 3): recording, first sample, samples

    @classmethod
    def spread(cls, store: Store, recordings: NDArray[np.int64], samples: int, count: int) -> StoreItems:
        """`count` windows at equal distances over all the time of the recordings."""
        ends = _window_ends(store, recordings, samples)
        places = (2 * np.arange(count) + 1) * int(ends[-1]) // (2 * count)
        rows = np.searchsorted(ends, places, side="right")
        starts = places - np.append(0, ends)[rows]
        starts -= starts % store.hop
        return cls(store, np.column_stack([recordings[rows], starts, np.full(count, samples)]))

    @classmethod
    def middle(cls, store: Store, recordings: NDArray[np.int64], samples: int) -> StoreItems:
        """The middle of each recording."""
        starts = np.maximum(store.frames[recordings] - samples, 0) // 2
        starts -= starts % store.hop
        return cls(store, np.column_stack([recordings, starts, np.full(len(recordings), samples)]))

    @classmethod
    def whole(cls, store: Store, recordings: NDArray[np.int64]) -> StoreItems:
        """Each recording from its first sample to its last."""
        return cls(store, np.column_stack([recordings, np.zeros_like(recordings), store.frames[recordings]]))

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, position: int) -> Item:
        recording, start, samples = self.pieces[position].tolist()
        return self.store.item(recording, start, samples)


DRAWS = 4096
"""Positions whose shares are drawn at once: a generator takes as long to make as a window to read."""


@lru_cache(maxsize=8)
def _shares(seed: int, block: int) -> list[float]:
    return rng_for(seed, "window", block).random(DRAWS).tolist()


def _share(seed: int, position: int) -> float:
    """A random number in [0, 1) for each position."""
    block, place = divmod(position, DRAWS)
    return _shares(seed, block)[place]


def _window_ends(store: Store, recordings: NDArray[np.int64], samples: int) -> NDArray[np.int64]:
    """How many places there are for a window in each recording and all before it, `(R,)`."""
    if len(recordings) == 0:
        raise ValueError(f"{store.folder}: no recordings to take windows of; see its splits in {MANIFEST}")
    return np.cumsum(np.maximum(store.frames[recordings] - samples, 0) + 1)


class Source(Protocol):
    """Where the rows of a store come from. It is sent to other processes, so it must pickle."""

    @property
    def rate(self) -> float:
        """Rows a second."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a value; little-endian."""

    @property
    def width(self) -> int:
        """Values in a row."""

    @property
    def outside(self) -> NDArray[Any]:
        """The row of silence, `(width,)`."""

    def count(self, recording: Recording) -> int:
        """About how many rows a recording will have, from what its header says."""

    def rows(self, recording: Recording) -> Iterator[tuple[Rows, int]]:
        """The rows of a recording in blocks, and how many of each block's values had to be clipped."""


@dataclass(frozen=True)
class Samples:
    """Audio files as 16-bit mono samples: channels are averaged, other sample rates resampled (soxr HQ)."""

    rate: int
    dtype = PCM
    width = 1
    outside = np.zeros(1, PCM)

    def count(self, recording: Recording) -> int:
        return math.ceil(seconds_of(recording.audio) * self.rate)

    def rows(self, recording: Recording) -> Iterator[tuple[Rows, int]]:
        return map(to_int16, read_blocks(recording.audio, self.rate))


class _Shard(NamedTuple):
    """A part of a build, done or not."""

    number: int
    recordings: list[Recording]
    size: int
    """Bytes, by the headers of the audio files."""
    key: str
    """Of all that it should hold: a finished shard with another key is not one of this build."""


def build_store(
    folder: Path,
    recordings: Sequence[Recording],
    source: Source,
    made_by: Mapping[str, Any],
    *,
    licence: str,
    citation: str,
    made_from: Mapping[str, Any] | None = None,
    processes: int | None = None,
    shard_bytes: int = 2**29,
) -> Store:
    """Read rows and notes of all recordings into a store, or open the store if it is there.

    Samples beyond full scale are clipped and counted. What takes memory is a block of rows in each process, however
    long the files are.

    Args:
        folder: where the store will be; by convention `.../store_name(made_by)`.
        recordings: in the order in which they are kept.
        source: of the rows.
        made_by: the settings that decide what is in it; kept in its manifest.
        licence: of the data, kept in the manifest.
        citation: of the data, kept in the manifest.
        made_from: where the files were and what each held, kept in the manifest.
        processes: that read and write side by side; None: one a core; 0: this one.
        shard_bytes: size at which a new file is begun; a recording is never divided. Small stores have smaller
            files, so that there is work for all processes.

    Raises:
        BadInput: a file can't be used, or is another than when its digest was taken.
        UserError: the disk has no room, another process is at it, or the folder holds a store of other settings.
    """
    if not folder.exists():
        shards = _plan(recordings, source, shard_bytes)
        partial = folder.with_name(f".{folder.name}.partial")
        with explained(folder), _sole_builder(folder, partial):
            if folder.exists():  # another process was quicker
                shutil.rmtree(partial, ignore_errors=True)
            else:
                done = [shard for shard in shards if _is_done(partial, shard, _row_bytes(source))]
                todo = [shard for shard in shards if shard not in done]
                _clear(partial, done)
                kept, need = sum(shard.size for shard in done), sum(shard.size for shard in todo)
                check_space(folder.parent, need)
                with byte_progress(f"preparing {folder.name}", kept + need, kept) as advance:
                    if processes == 0:
                        refused = list(_refusals(partial, todo, source, advance))
                    else:
                        refused = _build(partial, todo, source, processes or os.cpu_count() or 1, advance)
                if refused:
                    raise BadInput("\n".join(sorted(refused)))
                facts = {"made_by": made_by, "made_from": made_from, "licence": licence, "citation": citation}
                _finish(partial, shards, source, facts)
                os.rename(partial, folder)
                sync_folder(folder.parent)
                shutil.rmtree(folder / WORK)
    store = Store.open(folder)
    if store.manifest["made_by"] != json.loads(json.dumps(made_by)):
        raise UserError(f"{folder}: holds a store of other settings ({MANIFEST} has them); choose another folder")
    return store


@contextmanager
def _sole_builder(folder: Path, partial: Path) -> Iterator[None]:
    (partial / WORK).mkdir(parents=True, exist_ok=True)
    with (partial / WORK / "lock").open("w") as file:
        # A lock of the process, which its workers don't inherit: they may outlive a kill by a moment.
        if not lock(file, unguarded="nothing keeps a second process from preparing this store: start no other"):
            raise UserError(
                f"{folder}: another process is preparing it; wait until it has done, or stop it and repeat the command"
            )
        yield


def _row_bytes(source: Source) -> int:
    return source.width * source.dtype.itemsize


def _plan(recordings: Sequence[Recording], source: Source, shard_bytes: int) -> list[_Shard]:
    """Which recordings go into which shard; the same for the same recordings, so that a build can go on."""
    names = [recording.name for recording in recordings]
    if not recordings:
        raise BadInput("there are no recordings to make a store of")
    if odd := next((name for name, times in Counter(names).items() if times > 1 or "\n" in name), None):
        raise BadInput(f"names of recordings must be unique, and without line breaks: rename {odd[:80]!r}")
    if any(set(recording.labels) != set(recordings[0].labels) for recording in recordings):
        raise ValueError("all recordings must have the same labels")
    with ThreadPoolExecutor(8) as threads:  # a network volume answers slowly, to many at a time
        sizes = [
            count * _row_bytes(source) for count in threads.map(lambda recording: _count(source, recording), recordings)
        ]
    limit = min(shard_bytes, max(sum(sizes) // 32, 2**24))

    groups: list[list[int]] = [[]]
    filled = 0
    for place, size in enumerate(sizes):
        if filled and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(place)
        filled += size
    shards = []
    for number, group in enumerate(groups):
        members = [recordings[place] for place in group]
        content = [[r.content, sizes[place]] for r, place in zip(members, group)]
        shards.append(_Shard(number, members, sum(sizes[i] for i in group), _digest([FORMAT, source.rate, content])))
    return shards


def _count(source: Source, recording: Recording) -> int:
    """Rows by the header of a file; 0 of one that is refused, which is told when all are read."""
    try:
        return source.count(recording)
    except BadInput:
        return 0


def _is_done(partial: Path, shard: _Shard, row_bytes: int) -> bool:
    try:
        record = read_arrays(partial / WORK / f"{shard.number}.npz")
        size = (partial / _shard_file(shard.number)).stat().st_size
        return str(record["key"]) == shard.key and size == record["frames"].sum() * row_bytes
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged
        return False


def _clear(partial: Path, done: list[_Shard]) -> None:
    """Remove what a killed build left half-written, and what belongs to another."""
    kept = {WORK, "lock"} | {_shard_file(shard.number) for shard in done} | {f"{shard.number}.npz" for shard in done}
    for path in [*partial.iterdir(), *(partial / WORK).iterdir()]:
        if path.name not in kept:
            path.unlink()


def _build(
    partial: Path, shards: list[_Shard], source: Source, processes: int, advance: Callable[[int], object]
) -> list[str]:
    """Build shards in processes side by side; why recordings are refused. Any other failure ends them all."""
    running: dict[Any, multiprocessing.Process] = {}
    refused: list[str] = []
    try:
        for first in range(min(processes, len(shards))):
            receive, send = multiprocessing.Pipe(duplex=False)
            job = (send, partial, shards[first::processes], source)
            running[receive] = multiprocessing.Process(target=_work, args=job, daemon=True)
            running[receive].start()
            send.close()  # so that the end of the process is the end of the pipe
        while running:
            for receive in cast(list[Connection], wait(list(running))):
                try:
                    message = receive.recv()
                except EOFError:
                    process = running.pop(receive)
                    process.join()
                    if process.exitcode:
                        raise UserError(
                            f"{partial}: a process that prepares it ended with exit code {process.exitcode} "
                            "(-9: it was killed, often for want of memory); repeat the command to go on"
                        ) from None
                else:
                    if isinstance(message, UserError):
                        raise message
                    if isinstance(message, str):
                        refused.append(message)
                    else:
                        advance(message)
        return refused
    finally:
        for process in running.values():
            process.kill()
            process.join()


def _work(send: Connection, partial: Path, shards: list[_Shard], source: Source) -> None:
    set_stop_handler(signal.SIG_IGN)  # Ctrl-C is for the process that started us, and it ends us
    builder = multiprocessing.parent_process()

    def written(size: int) -> None:
        if builder is not None and not builder.is_alive():  # it was killed; another may be at work already
            raise SystemExit(1)
        send.send(size)

    try:
        with explained(partial):
            for refused in _refusals(partial, shards, source, written):
                send.send(refused)
    except UserError as error:
        send.send(error)


def _refusals(
    partial: Path, shards: Sequence[_Shard], source: Source, written: Callable[[int], object]
) -> Iterator[str]:
    """Write shards; why recordings in them are refused."""
    for shard in shards:
        try:
            _build_shard(partial, shard, source, written)
        except BadInput as error:
            yield str(error)


def _build_shard(partial: Path, shard: _Shard, source: Source, written: Callable[[int], object]) -> None:
    """Write a shard, and when it is on the disk, the record that says so.

    Raises:
        BadInput: recordings are refused; a line for each.
    """
    digest, frames, clipped, notes, digests = hashlib.sha256(), [], [], [], []
    remarks: list[tuple[str, str, str]] = []
    refused: list[str] = []
    with written_whole(partial / _shard_file(shard.number), _mark()) as file:
        for recording in shard.recordings:
            try:
                own, levels = hashlib.sha256(), Levels()
                frames.append(0)
                clipped.append(0)
                for block, beyond in source.rows(recording):
                    data = block.astype(source.dtype, order="C", copy=False).data
                    file.write(data)
                    digest.update(data)
                    own.update(data)
                    if source.dtype == PCM:
                        levels.add(block)
                    frames[-1] += len(block)
                    clipped[-1] += beyond
                    written(block.nbytes)
                digests.append(np.frombuffer(own.digest()[:16], np.uint8))
                notes.append(NO_NOTES if recording.notes is None else recording.notes())
                if source.dtype == PCM:
                    said = [("audio", what) for what in (*channel_remarks(recording.audio), *levels.remarks())]
                    if recording.notes is not None:
                        said += _label_remarks(notes[-1], frames[-1] / source.rate, levels.is_silent)
                    remarks += [(kind, recording.name, what) for kind, what in said]
                for seen in recording.seen:
                    if not seen.is_unchanged():
                        raise BadInput(f"{seen.path}: has changed since this command began; repeat the command")
            except BadInput as error:
                refused.append(str(error))
        if refused:
            raise BadInput("\n".join(refused))
    with written_whole(partial / WORK / f"{shard.number}.npz", _mark()) as file:
        np.savez(
            file,
            key=shard.key,
            frames=np.array(frames),
            clipped=np.array(clipped),
            digest=np.stack(digests),
            notes=np.concatenate([NO_NOTES, *notes]),
            notes_each=np.array([len(rows) for rows in notes]),
            sha256=digest.hexdigest(),
            remarks=json.dumps(remarks),
        )


LATE = 1.0
"""Seconds after the end of the audio from which on a note is taken not to belong to it."""


def _label_remarks(notes: Notes, seconds: float, silent: bool) -> list[tuple[str, str]]:
    """What is odd of notes beside audio of a length; a score that goes on after an excerpt of audio is used."""
    if late := int((notes[:, 0] > seconds + LATE).sum()):
        return [("labels", f"{late} of its {len(notes)} notes begin after the end of the audio at {seconds:.1f} s")]
    if len(notes) == 0 and not silent:
        return [("labels", "its MIDI file has no notes, and its audio is not silent")]
    end = float(notes[:, 1].max(initial=0.0))
    if len(notes) and seconds > max(2 * end, end + 30):
        return [("labels", f"its notes end at {end:.1f} s, and its audio at {seconds:.1f} s")]
    return []


def to_int16(audio: Audio) -> tuple[NDArray[np.int16], int]:
    """Float samples `(N,)` to the nearest 16-bit ones, and how many were beyond full scale; exact for 16-bit files."""
    scaled = np.rint(audio * np.float32(32768))
    kept = np.clip(scaled, -32768, 32767)
    return kept.astype(PCM), int(np.count_nonzero(kept != scaled))


def _finish(partial: Path, shards: list[_Shard], source: Source, facts: dict[str, Any]) -> None:
    """Join the records of all shards to index and notes, and state it all in the manifest."""
    records = []
    for shard in shards:
        with np.load(partial / WORK / f"{shard.number}.npz") as record:
            records.append(dict(record))
    recordings = [recording for shard in shards for recording in shard.recordings]
    frames = np.concatenate([record["frames"] for record in records])
    notes_each = np.concatenate([record["notes_each"] for record in records])
    splits = list(dict.fromkeys(recording.split for recording in recordings))
    split = np.array([splits.index(recording.split) for recording in recordings], np.uint8)
    pieces = list(dict.fromkeys(recording.piece for recording in recordings if recording.piece))
    code = {piece: number for number, piece in enumerate(pieces)}
    labels = list(recordings[0].labels)

    notes = np.concatenate([record["notes"] for record in records])
    with written_whole(partial / NOTES, _mark()) as file:
        np.save(file, notes)
    index: dict[str, Any] = {
        "shard": np.repeat(np.arange(len(shards)), [len(shard.recordings) for shard in shards]),
        "offset": np.concatenate([np.cumsum(record["frames"]) - record["frames"] for record in records]),
        "frames": frames,
        "clipped": np.concatenate([record["clipped"] for record in records]),
        "split": split,
        "piece": np.array([code.get(recording.piece, -1) for recording in recordings], np.int64),
        "digest": np.concatenate([record["digest"] for record in records]),
        "outside": source.outside,
        "notes_end": np.cumsum(notes_each),
        "names": np.frombuffer("\n".join(r.name for r in recordings).encode("utf-8", "surrogateescape"), np.uint8),
    }
    index |= {f"label_{name}": np.array([r.labels[name] for r in recordings], np.int64) for name in labels}
    with written_whole(partial / INDEX, _mark()) as file:
        np.savez(file, **index)
    hashes = {_shard_file(shard.number): str(record["sha256"]) for shard, record in zip(shards, records)}
    hashes |= {name: _hash(partial / name) for name in (INDEX, NOTES)}
    manifest = {
        "format": FORMAT,
        **facts,
        "sample_rate": source.rate,
        "dtype": source.dtype.str,
        "width": source.width,
        "labels": labels,
        "splits": {
            name: {
                "recordings": int((split == number).sum()),
                "hours": round(int(frames[split == number].sum()) / source.rate / 3600, 4),
                "notes": int(notes_each[split == number].sum()),
            }
            for number, name in enumerate(splits)
        },
        "notes": len(notes),
        "longest_note": float((notes[:, 1] - notes[:, 0]).max(initial=0.0)),
        "clipped": int(sum(record["clipped"].sum() for record in records)),
        "remarks": [remark for record in records for remark in json.loads(str(record["remarks"]))],
        "files": {name: {"bytes": (partial / name).stat().st_size, "sha256": hash} for name, hash in hashes.items()},
    }
    with written_whole(partial / MANIFEST, _mark()) as file:
        file.write(json.dumps(manifest, indent=2).encode() + b"\n")
    sync_folder(partial)


def _mark() -> str:
    """What tells the unfinished files of processes apart: where there are no locks, two may build a store."""
    return str(os.getpid())


def _shard_file(number: int) -> str:
    return f"shard-{number:05}.rows"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(path: Path, advance: Callable[[int], object] = lambda size: None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        hash_into(digest, file, advance)
    return digest.hexdigest()
