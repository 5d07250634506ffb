"""SHA-256 digests of files, cached by path and stamp, so that an unchanged file is not read again.

Imports no torch: a finished run is found by the digests of its data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from wavespace.errors import BadInput
from wavespace.files import byte_progress, hash_into, open_regular
from wavespace.text import counted

CACHE_NAME = ".digests.jsonl"
"""The cache's file in a folder of stores: a line for each file that was read; the last line of a path counts."""

STAMP_STEP = 3_000_000_000
"""Nanoseconds in which a file may change without a new stamp; the coarsest file systems count two seconds."""

ANNOUNCED_BYTES = 2**27
"""Reading this many bytes or more is announced and shown as a bar: it takes about a second."""


class Unread(BadInput):
    """More bytes would have to be read than are allowed."""


class FileDigest(NamedTuple):
    """A file's digest, and its stamp when it was read: size, times of content and inode, and inode number."""

    path: Path
    stamp: str
    digest: str

    def is_unchanged(self) -> bool:
        """Whether the file has the same content; the file is read again where its stamp is too recent to be sure."""
        with suppress(OSError):
            found = self.path.stat()
            if _stamp(found) == self.stamp:
                return time.time_ns() - found.st_ctime_ns > 2 * STAMP_STEP or file_digest(self.path) == self.digest
        return False


def digest(content: Any) -> str:
    """SHA-256 of plain data, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class DigestCache:
    """Digests of files, cached in a folder of stores if it can be written."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / CACHE_NAME

    def of(self, paths: Sequence[Path], most: float = math.inf, *, reread: bool = False) -> list[FileDigest]:
        """Return the digest of each file; reads those whose stamp is not the cached one.

        Args:
            paths: of files.
            most: bytes to read at most.
            reread: read all files.

        Raises:
            Unread: more bytes would have to be read than `most`.
            BadInput: a file can't be read, or is being written to.
        """
        known = {} if reread or not paths else self._read()
        stats = [_stat(path) for path in paths]
        found = {
            path: FileDigest(path, stamp, kept[1])
            for path, stat in zip(paths, stats)
            if (kept := known.get(os.path.abspath(path))) and kept[0] == (stamp := _stamp(stat))
        }
        todo = {path: stat for path, stat in zip(paths, stats) if path not in found}
        total = sum(stat.st_size for stat in todo.values())
        if total > most:
            raise Unread(
                f"not read yet: {counted(len(todo), 'files')} ({total / 1e9:.1f} GB); wavespace prepare reads them"
            )
        if todo:
            found |= self._digest_files(list(todo), total)
        return [found[path] for path in paths]

    def _digest_files(self, paths: list[Path], total: int) -> dict[Path, FileDigest]:
        """Read files, and cache the digests of those whose next change will give them another stamp."""
        if total > ANNOUNCED_BYTES:
            print(
                f"reading {counted(len(paths), 'files')} ({total / 1e9:.1f} GB) to know what they hold", file=sys.stderr
            )
        begun = time.time_ns()
        with byte_progress("reading", total) as advance, ThreadPoolExecutor(4) as threads:

            def read(path: Path) -> tuple[FileDigest, bool]:
                for _ in range(3):
                    stat = _stat(path)
                    content = file_digest(path, advance if total > ANNOUNCED_BYTES else None)
                    if _stamp(_stat(path)) == _stamp(stat):
                        return FileDigest(path, _stamp(stat), content), stat.st_ctime_ns < begun - STAMP_STEP
                raise BadInput(f"{path}: is being written to; wait until it is whole, and repeat the command")

            found = list(threads.map(read, paths))
        self._append(one for one, lasting in found if lasting)
        return {one.path: one for one, _ in found}

    def _read(self) -> dict[str, tuple[str, str]]:
        known: dict[str, tuple[str, str]] = {}
        with suppress(OSError):
            for line in self.file.read_bytes().splitlines():
                with suppress(ValueError, TypeError, RecursionError):  # what a kill left of a line
                    path, stamp, digest = json.loads(line)
                    known[path] = stamp, digest
        return known

    def _append(self, digests: Iterable[FileDigest]) -> None:
        lines = [json.dumps([os.path.abspath(one.path), one.stamp, one.digest]) for one in digests]
        if lines:
            with suppress(OSError):  # of a folder that can't be written, files are read again
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("ab") as file:
                    file.write(("\n" + "\n".join(lines) + "\n").encode())


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror})") from None


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def file_digest(path: Path, advance: Any = None) -> str:
    """SHA-256 of a file, in hexadecimal digits; `advance` is called with the bytes of each block."""
    hasher = hashlib.sha256()
    try:
        with open_regular(path) as file:
            hash_into(hasher, file, advance or (lambda size: None))
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror})") from None
    return hasher.hexdigest()
