"""Reading and building a store, against the least work that gives the same samples."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import zstandard
from harness import Row, compare

from wavespace.data.base import Notes, collate
from wavespace.data.files.discovery import Recording
from wavespace.data.store.build import Samples, build_store
from wavespace.data.store.format import Store
from wavespace.data.store.manifest import INDEX, MANIFEST
from wavespace.data.store.windows import StoreWindows

RATE, MINUTES, RECORDINGS = 44_100, 3, 3
WINDOW = 10 * RATE
MEMORY = Path("/dev/shm")
"""Where the store is built: in memory, so that the speed of a disk is no part of the comparison."""


def rows(rounds: int = 15) -> Iterator[Row]:
    """One thread; everything that is read is cached."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recordings = [_recording(folder / f"{number}.wav", number) for number in range(RECORDINGS)]
        # One shard for each recording, so that a position in a recording is one in its shard.
        build_store(
            folder / "store", recordings, Samples(RATE), {}, licence="", citation="", processes=1, shard_bytes=2
        )
        yield from _reading(folder / "store", rounds)
        yield _preparing(recordings)
        yield _opening(folder / "store", rounds)


def _reading(folder: Path, rounds: int) -> Iterator[Row]:
    store = Store.open(folder)
    rng = np.random.default_rng(0)
    places = [(int(rng.integers(RECORDINGS)), int(rng.integers(RATE * 60 * MINUTES - WINDOW))) for _ in range(160)]
    raw = [np.memmap(path, np.int16, "r") for path in sorted(folder.glob("*.rows"))]

    def each(read: Callable[[int, int], object], at: list[tuple[int, int]]) -> Callable[[], None]:
        def all_of_them() -> None:
            for which, start in at:
                read(which, start)

        return all_of_them

    flac_file = folder.parent / "0.flac"
    soundfile.write(flac_file, store.window(0, 0, int(store.frames[0])), RATE)

    def flac(recording: int, start: int) -> None:
        with soundfile.SoundFile(flac_file) as file:
            file.seek(start)
            file.read(WINDOW, dtype="int16")

    bare = each(lambda shard, start: np.array(raw[shard][start : start + WINDOW]), places)
    yield compare("10 s windows", each(partial(_window, store), places), bare, "np.memmap copy", 1.67, rounds)
    short = each(lambda shard, start: np.array(raw[shard][start : start + 2 * RATE]), places)
    ours = each(partial(_window, store, samples=2 * RATE), places)
    yield compare("2 s windows", ours, short, "np.memmap copy", 1.8, rounds)
    few = places[:8]
    frames = _compressed(store)

    def original(recording: int, start: int) -> None:
        torch.load(io.BytesIO(zstandard.decompress(frames[start % len(frames)])))

    ours = each(partial(_window, store), few)
    yield compare("10 s windows", ours, each(original, few), "zstd of torch.save", 1 / 20, 3)
    yield compare("10 s windows", each(partial(_window, store), few), each(flac, few), "FLAC, seek", 1 / 40, 3)

    windows, position = StoreWindows(store, store.split("train"), WINDOW, seed=0), iter(range(2**62))
    groups = [places[first : first + 16] for first in range(0, len(places), 16)]

    def batches() -> None:
        for _ in groups:
            collate([windows[next(position)] for _ in range(16)])

    def stacks() -> None:
        for group in groups:
            torch.stack([torch.from_numpy(store.window(recording, start, WINDOW)) for recording, start in group])

    yield compare("batches of 16 with notes", batches, stacks, "windows and torch.stack", 1.43, rounds)


def _window(store: Store, recording: int, start: int, samples: int = WINDOW) -> object:
    return store.window(recording, start, samples)


def _compressed(store: Store) -> list[bytes]:
    """Windows as the original project stores them: each a zstd frame of a float32 tensor's torch.save."""
    frames = []
    for start in range(0, int(store.frames[0]) - WINDOW, WINDOW):
        file = io.BytesIO()
        torch.save(torch.from_numpy(store.window(0, start, WINDOW)).float() / 32768, file)
        frames.append(zstandard.compress(file.getvalue(), 3))
    return frames


def _preparing(recordings: list[Recording]) -> Row:
    recordings = [replace(recording, name=f"{turn} {recording.name}") for turn in range(3) for recording in recordings]
    half = np.full(2, 0.5, np.float32)

    def ours() -> None:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            build_store(Path(folder) / "made", recordings, Samples(RATE // 2), {}, licence="", citation="", processes=1)

    def decode_and_resample() -> None:
        for recording in recordings:
            soxr.resample(soundfile.read(recording.audio, dtype="float32")[0] @ half, RATE, RATE // 2)

    return compare("preparing a store, one process", ours, decode_and_resample, "decode and resample", 1.11, 3)


def _opening(folder: Path, rounds: int) -> Row:
    """Opening a store whose index has 100,000 recordings; their samples are not there."""
    with np.load(folder / INDEX) as index:
        many = {name: np.resize(array, 100_000) for name, array in index.items() if name != "names"}
    names = "\n".join(f"{number:040}" for number in range(100_000))
    np.savez(folder / INDEX, **many, names=np.frombuffer(names.encode(), np.uint8))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][INDEX]["bytes"] = (folder / INDEX).stat().st_size
    (folder / MANIFEST).write_text(json.dumps(manifest))

    def load() -> None:
        with np.load(folder / INDEX) as index:
            dict(index)

    return compare("opening 100,000 recordings", lambda: Store.open(folder), load, "np.load of the index", 1.5, rounds)


def _recording(path: Path, number: int) -> Recording:
    rng = np.random.default_rng(number)
    soundfile.write(path, rng.normal(0, 0.05, (RATE * 60 * MINUTES, 2)), RATE)
    return Recording(path.stem, path, "train", partial(_notes, number))


def _notes(number: int) -> Notes:
    """Random notes, as many as in a long recording of MAESTRO."""
    rng = np.random.default_rng(number)
    onset = np.sort(rng.uniform(0, 60 * MINUTES, 5_600))
    return np.column_stack([onset, onset + 0.3, rng.integers(21, 109, 5_600), rng.integers(1, 128, 5_600)])
