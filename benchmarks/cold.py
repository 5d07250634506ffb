"""Bytes and requests that a disk serves for a window that is not cached, which decide the speed on a network volume.

Requests are those that the block device of the temporary folder counts; if it has none, their row is left out.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from harness import Row

from wavespace.data.files.discovery import Recording
from wavespace.data.store.build import Samples, build_store
from wavespace.data.store.format import Store

RATE, MINUTES, WINDOWS = 44_100, 10, 100
SECONDS = 10


def rows() -> Iterator[Row]:
    """Random windows of 10 s at 44.1 kHz, in one process, counted by /proc."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rng = np.random.default_rng(0)
        soundfile.write(folder / "0.wav", rng.normal(0, 0.05, RATE * 60 * MINUTES), RATE)
        recording = Recording("0", folder / "0.wav", "train")
        build_store(folder / "store", [recording], Samples(RATE), {}, licence="", citation="")
        store = Store.open(folder / "store")
        shard = os.open(next(store.folder.glob("*.rows")), os.O_RDONLY)
        store.window(0, 0, 1)  # the file is open
        payload = SECONDS * RATE * 2
        yield Row("size of a store", _size(store.folder), 2 * int(store.frames.sum()), "its samples", 1.001, "B")

        read = requests = 0
        for start in rng.integers(0, RATE * (60 * MINUTES - SECONDS), WINDOWS).tolist():
            os.posix_fadvise(shard, 0, 0, os.POSIX_FADV_DONTNEED)
            before = _bytes_read(), _requests(folder)
            store.window(0, start, SECONDS * RATE)
            read += _bytes_read() - before[0]
            requests += _requests(folder) - before[1]
        os.close(shard)
    yield Row("a cold window, bytes", read / WINDOWS, payload, "its samples", 1.5, "B")
    if requests:
        yield Row("a cold window, requests", requests / WINDOWS, 1.0, "one request", 3.0, "")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _bytes_read() -> int:
    """Bytes that this process has read from a disk."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def _requests(folder: Path) -> int:
    """Reads that the folder's block device has served; 0 if it has none."""
    device = folder.stat().st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        major, minor, _, reads, *_ = line.split()
        if (int(major), int(minor)) == (os.major(device), os.minor(device)):
            return int(reads)
    return 0
