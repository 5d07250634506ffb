"""What files hold, as digests. A digest is kept by path and stamp, so a file that has not changed is not read again.

Imports no torch: a finished run is found by what its data holds.
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

KEPT = ".digests.jsonl"
"""The file of digests in a folder of stores: a line for each file that was read, the last of a path counts."""

FRESH = 3_000_000_000
"""Nanoseconds in which a file may change again without a new stamp; the coarsest file systems count two seconds."""

TOLD = 2**27
"""Bytes from which on it is said that files are read: these take about a second."""


class Unread(BadInput):
    """More bytes would have to be read than was allowed."""


class Seen(NamedTuple):
    """A file as it was when it was read: `stamp` is size, times of content and inode, and inode number."""

    path: Path
    stamp: str
    digest: str

    def is_unchanged(self) -> bool:
        """Whether the file still holds what it held; a stamp that is too new to tell is not trusted."""
        with suppress(OSError):
            found = self.path.stat()
            if _stamp(found) == self.stamp:
                return time.time_ns() - found.st_ctime_ns > 2 * FRESH or file_digest(self.path) == self.digest
        return False


def digest(content: Any) -> str:
    """SHA-256 of plain data, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Digests:
    """Digests of files, kept in a folder of stores where that can be written."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / KEPT

    def of(self, paths: Sequence[Path], most: float = math.inf, *, anew: bool = False) -> list[Seen]:
        """What each file holds. Those with another stamp than when they were last read are read.

        Args:
            paths: of files.
            most: bytes to read at most.
            anew: read all.

        Raises:
            Unread: more bytes would have to be read than `most`.
            BadInput: a file can't be read, or is being written to.
        """
        known = {} if anew or not paths else self._read()
        stats = [_stat(path) for path in paths]
        found = {
            path: Seen(path, stamp, kept[1])
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
            found |= self._look(list(todo), total)
        return [found[path] for path in paths]

    def _look(self, paths: list[Path], total: int) -> dict[Path, Seen]:
        """Read files, and keep the digests of those whose stamps will tell of a change."""
        if total > TOLD:
            print(
                f"reading {counted(len(paths), 'files')} ({total / 1e9:.1f} GB) to know what they hold", file=sys.stderr
            )
        begun = time.time_ns()
        with byte_progress("reading", total) as advance, ThreadPoolExecutor(4) as threads:

            def look(path: Path) -> tuple[Seen, bool]:
                for _ in range(3):
                    stat = _stat(path)
                    seen = Seen(path, _stamp(stat), file_digest(path, advance if total > TOLD else None))
                    if _stamp(_stat(path)) == seen.stamp:
                        return seen, stat.st_ctime_ns < begun - FRESH
                raise BadInput(f"{path}: is being written to; wait until it is whole, and repeat the command")

            looked = list(threads.map(look, paths))
        self._keep(seen for seen, lasting in looked if lasting)
        return {seen.path: seen for seen, _ in looked}

    def _read(self) -> dict[str, tuple[str, str]]:
        known: dict[str, tuple[str, str]] = {}
        with suppress(OSError):
            for line in self.file.read_bytes().splitlines():
                with suppress(ValueError, TypeError, RecursionError):  # what a kill left of a line
                    path, stamp, digest = json.loads(line)
                    known[path] = stamp, digest
        return known

    def _keep(self, seen: Iterable[Seen]) -> None:
        lines = [json.dumps([os.path.abspath(one.path), one.stamp, one.digest]) for one in seen]
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
