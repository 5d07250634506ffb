"""Builds a store in a hidden folder, a shard at a time, and renames the folder when all of it is on the disk.

A build that was killed resumes after its finished shards.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wavespace.data.base import NO_NOTES, Notes
from wavespace.data.files.audio import Levels, file_remarks, read_blocks, seconds_of
from wavespace.data.files.discovery import Recording
from wavespace.data.store.format import PCM, Rows, Store
from wavespace.data.store.manifest import FORMAT, INDEX, MANIFEST, NOTES, read_arrays, shard_file
from wavespace.digests import digest, file_digest
from wavespace.errors import BadInput, UserError
from wavespace.files import byte_progress, check_space, explained, lock, sync_folder, written_whole
from wavespace.signals import Stopped, exit_with_parent, set_stop_handler, stop_signal
from wavespace.units import to_int16

WORK = ".building"
"""Folder in an unfinished store, with the lock and a record of each finished shard."""


def store_name(provenance: Mapping[str, Any]) -> str:
    """Return twelve hex digits for the folder of a store, which depend on its provenance alone.

    Args:
        provenance: everything that decides what the store holds, as JSON can write it.
    """
    return digest([FORMAT, provenance])[:12]


class Source(Protocol):
    """The source of a store's rows. It is sent to other processes, so it must pickle."""

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
        """Estimate the rows of a recording by its header."""

    def rows(self, recording: Recording) -> Iterator[tuple[Rows, int]]:
        """Yield the rows of a recording in blocks, each with the number of its clipped values."""


@dataclass(frozen=True)
class Samples:
    """Audio files as 16-bit mono samples: channels are averaged, other sample rates resampled (soxr HQ)."""

    rate: int
    dtype = PCM
    width = 1
    outside = np.zeros(1, PCM)

    def count(self, recording: Recording) -> int:
        """Return the samples that the header states, at the store's rate."""
        return math.ceil(seconds_of(recording.audio) * self.rate)

    def rows(self, recording: Recording) -> Iterator[tuple[Rows, int]]:
        """Yield blocks of samples `(n,)` int16, each with the number of clipped ones."""
        return map(to_int16, read_blocks(recording.audio, self.rate))


class Shard(NamedTuple):
    """A file of rows to build."""

    number: int
    recordings: list[Recording]
    size: int
    """Bytes, by the headers of the audio files."""
    key: str
    """The digest of its content: a finished shard with another key is of another build."""


def build_store(
    folder: Path,
    recordings: Sequence[Recording],
    source: Source,
    provenance: Mapping[str, Any],
    *,
    licence: str,
    citation: str,
    made_from: Mapping[str, Any] | None = None,
    processes: int | None = None,
    shard_bytes: int = 2**29,
) -> Store:
    """Build a store of recordings, or open it if it is there.

    Samples beyond full scale are clipped and counted. Memory holds a block of rows in each process.

    Args:
        folder: where the store will be; by convention `.../store_name(provenance)`.
        recordings: in the order in which they are kept.
        source: of the rows.
        provenance: the settings that decide what is in it; kept in its manifest.
        licence: of the data, kept in the manifest.
        citation: of the data, kept in the manifest.
        made_from: where the files were and what each held, kept in the manifest.
        processes: to start; None: one a core; 0: build in this one.
        shard_bytes: size at which a new file begins; a recording is never divided. Small stores have smaller files,
            so that all processes have work.

    Raises:
        BadInput: a file can't be used, or has changed since its digest was taken.
        UserError: the disk is full, another process builds the store, or the folder has one of other settings.
    """
    if not folder.exists():
        shards = _plan(recordings, source, shard_bytes)
        partial = folder.with_name(f".{folder.name}.partial")
        with explained(folder), _sole_builder(folder, partial):
            if folder.exists():  # another process was quicker
                shutil.rmtree(partial, ignore_errors=True)
            else:
                _build(folder, partial, shards, source, processes)
                facts = {"provenance": provenance, "made_from": made_from, "licence": licence, "citation": citation}
                _finish(partial, shards, source, facts)
                os.rename(partial, folder)
                sync_folder(folder.parent)
                shutil.rmtree(folder / WORK)
    store = Store.open(folder)
    if store.manifest["provenance"] != json.loads(json.dumps(provenance)):
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


def _build(folder: Path, partial: Path, shards: list[Shard], source: Source, processes: int | None) -> None:
    """Build the shards that are not finished."""
    done = [shard for shard in shards if _is_done(partial, shard, _row_bytes(source))]
    todo = [shard for shard in shards if shard not in done]
    _clear(partial, done)
    kept, need = sum(shard.size for shard in done), sum(shard.size for shard in todo)
    check_space(folder.parent, need)
    with byte_progress(f"preparing {folder.name}", kept + need, kept) as advance:
        if processes == 0:
            refused = [said for shard in todo for said in _refusals(partial, shard, source, advance)]
        else:
            count = min(processes or os.cpu_count() or 1, len(todo) or 1)
            refused = _build_in_processes(partial, todo, source, count, advance)
    if refused:
        raise BadInput("\n".join(sorted(refused)))


def _row_bytes(source: Source) -> int:
    return source.width * source.dtype.itemsize


def _plan(recordings: Sequence[Recording], source: Source, shard_bytes: int) -> list[Shard]:
    """Distribute recordings over shards, always in the same way, so that a build can resume."""
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
        shards.append(Shard(number, members, sum(sizes[i] for i in group), digest([FORMAT, source.rate, content])))
    return shards


def _count(source: Source, recording: Recording) -> int:
    """Return the rows by the header of a file; 0 if it is refused, which is reported when all files are read."""
    try:
        return source.count(recording)
    except BadInput:
        return 0


def _is_done(partial: Path, shard: Shard, row_bytes: int) -> bool:
    try:
        record = read_arrays(partial / WORK / f"{shard.number}.npz")
        size = (partial / shard_file(shard.number)).stat().st_size
        return str(record["key"]) == shard.key and size == record["frames"].sum() * row_bytes
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged
        return False


def _clear(partial: Path, done: list[Shard]) -> None:
    """Remove what a killed build left half-written, and the files of another build."""
    kept = {WORK, "lock"} | {shard_file(shard.number) for shard in done} | {f"{shard.number}.npz" for shard in done}
    for path in [*partial.iterdir(), *(partial / WORK).iterdir()]:
        if path.name not in kept:
            path.unlink()


def _build_in_processes(
    partial: Path, shards: list[Shard], source: Source, processes: int, advance: Callable[[int], object]
) -> list[str]:
    """Build shards in parallel; return why recordings are refused. Any other failure ends all processes."""
    refused: list[str] = []
    stop, written = multiprocessing.RawValue("b"), _bytes_in(partial)
    with ProcessPoolExecutor(processes, initializer=_start_worker, initargs=(stop,)) as pool:
        try:
            running = {pool.submit(_build_in_worker, partial, shard, source) for shard in shards}
            while running:
                done, running = wait(running, timeout=1.0, return_when=FIRST_EXCEPTION)
                refused += [said for future in done for said in future.result()]
                before, written = written, _bytes_in(partial)
                advance(written - before)
        except BrokenProcessPool:
            if stop_signal() is not None:  # the signal went to the whole process group
                raise Stopped(stop_signal() or 0) from None
            raise UserError(
                f"{partial}: a process that prepares it was killed, often for want of memory; repeat the command to "
                "resume"
            ) from None
        finally:
            stop.value = True
            pool.shutdown(cancel_futures=True)
    return refused


def _bytes_in(partial: Path) -> int:
    """Return the bytes that were written of all shards, finished or not."""
    size = 0
    for path in partial.glob("*shard-*"):
        with suppress(FileNotFoundError):  # it has its final name by now
            size += path.stat().st_size
    return size


_stop: Any = None
"""In a worker: a flag of the process that started it, set when the build fails or is stopped."""


def _start_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    set_stop_handler(signal.SIG_IGN)  # the process that started us handles Ctrl-C, and ends us
    # From Python 3.12 on the pool itself ends the others by it when one was killed, and waits for them.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    exit_with_parent()  # another build may be at work already


def _build_in_worker(partial: Path, shard: Shard, source: Source) -> list[str]:
    def check_stop(size: int) -> None:
        if _stop.value:
            raise UserError("another process has failed, or the build was stopped")

    with explained(partial):
        return _refusals(partial, shard, source, check_stop)


def _refusals(partial: Path, shard: Shard, source: Source, written: Callable[[int], object]) -> list[str]:
    """Write a shard; return why recordings in it are refused."""
    try:
        _build_shard(partial, shard, source, written)
    except BadInput as error:
        return str(error).splitlines()
    return []


def _build_shard(partial: Path, shard: Shard, source: Source, written: Callable[[int], object]) -> None:
    """Write a shard, and then the record of what it holds.

    Raises:
        BadInput: recordings are refused; a line for each.
    """
    digest, frames, clipped, notes, digests = hashlib.sha256(), [], [], [], []
    remarks: list[tuple[str, str, str]] = []
    refused: list[str] = []
    with written_whole(partial / shard_file(shard.number), _mark()) as file:
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
                    said = [("audio", what) for what in (*file_remarks(recording.audio), *levels.remarks())]
                    if recording.notes is not None:
                        said += _label_remarks(notes[-1], frames[-1] / source.rate, levels.is_silent)
                    remarks += [(kind, recording.name, what) for kind, what in said]
                for file_read in recording.digests:
                    if not file_read.is_unchanged():
                        raise BadInput(f"{file_read.path}: has changed since this command began; repeat the command")
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
"""Seconds after the end of the audio from which on a note is odd."""


def _label_remarks(notes: Notes, seconds: float, silent: bool) -> list[tuple[str, str]]:
    """Describe notes that don't match the length of their audio."""
    if late := int((notes[:, 0] > seconds + LATE).sum()):
        return [("labels", f"{late} of its {len(notes)} notes begin after the end of the audio at {seconds:.1f} s")]
    if len(notes) == 0 and not silent:
        return [("labels", "its MIDI file has no notes, and its audio is not silent")]
    end = float(notes[:, 1].max(initial=0.0))
    if len(notes) and seconds > max(2 * end, end + 30):
        return [("labels", f"its notes end at {end:.1f} s, and its audio at {seconds:.1f} s")]
    return []


def _finish(partial: Path, shards: list[Shard], source: Source, facts: dict[str, Any]) -> None:
    """Join the records of all shards to index and notes, and write the manifest."""
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
    hashes = {shard_file(shard.number): str(record["sha256"]) for shard, record in zip(shards, records)}
    hashes |= {name: file_digest(partial / name) for name in (INDEX, NOTES)}
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
    """Return a suffix for unfinished files of this process: without locks, two may build a store."""
    return str(os.getpid())
