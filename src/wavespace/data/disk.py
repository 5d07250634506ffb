"""Files that are whole or absent, and what a disk refuses, told in a sentence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from wavespace.errors import UserError


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the disk refuses within, as a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: can't be read or written ({error.strerror or error}); what is finished is kept, so see to that "
            "and repeat the command"
        ) from None


def check_space(folder: Path, need: int) -> None:
    """Raise `UserError` where a folder's disk has fewer free bytes than are needed."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder}: this takes {need / 1e9:.1f} GB more and {free / 1e9:.1f} GB are free; make room, or choose a "
            "folder on another disk"
        )


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that has its name only when all of it is on the disk; what a kill leaves is written over next time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_into(hasher: Any, file: IO[bytes], advance: Callable[[int], None]) -> None:
    """Give the rest of a file to a hash; `advance` is called with the bytes of each block."""
    while block := file.read(2**20):
        hasher.update(block)
        advance(len(block))
