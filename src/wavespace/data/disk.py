"""Files that are whole or absent, and what a disk refuses, told in a sentence."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from wavespace.errors import UserError

FULL_OR_BROKEN = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO,
}  # fmt: skip
"""Errors that tell of a disk, whatever the program does."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the disk refuses within, as a `UserError`."""
    try:
        yield
    except OSError as error:
        raise refusal(error, path) from None


def refusal(error: OSError, path: Path | str | None = None) -> UserError:
    """The sentence for an error of the disk; `path` stands in where the error names no file."""
    return UserError(
        f"{error.filename or path or 'a file'}: can't be read or written ({error.strerror or error}); what is finished "
        "is kept, so see to that and repeat the command"
    )


def check_space(folder: Path, need: int) -> None:
    """Raise `UserError` where a folder's disk has fewer free bytes than are needed."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder}: this takes {need / 1e9:.1f} GB more and {free / 1e9:.1f} GB are free; make room, or choose a "
            "folder on another disk"
        )


@contextmanager
def written_whole(path: Path, mark: str = "new") -> Iterator[IO[bytes]]:
    """A file that has its name only when all of it is on the disk; what a kill leaves is written over next time.

    Args:
        path: of the file; its folder is made.
        mark: ends the temporary name. Processes that may write the same file at once need different ones.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{mark}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails names no file
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Names, too, are on the disk only when their folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a network file system that can't
            raise
    finally:
        os.close(descriptor)


def lock(file: IO[Any], *, of_process: bool = True, unguarded: str | None = None) -> bool:
    """Lock an open file until it is closed; False where another holds it.

    Args:
        file: open for writing.
        of_process: a lock that forks don't inherit, and that this process loses with the first descriptor of the file
            that it closes; else one of this descriptor.
        unguarded: what to say, and go on, where the file system has no locks.

    Raises:
        UserError: the file system has no locks.
    """
    import fcntl

    try:
        (fcntl.lockf if of_process else fcntl.flock)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        said = f"{file.name}: this file system has no locks ({error.strerror})"
        if unguarded is None:
            raise UserError(f"{said}; choose a folder on another one") from None
        print(f"wavespace: {said}, so {unguarded}", file=sys.stderr)
    return True


def is_locked(path: Path, *, of_process: bool = True) -> bool:
    """Whether another holds the lock of a file; False where the file system has no locks."""
    with path.open("a") as file, suppress(UserError):
        return not lock(file, of_process=of_process)
    return False


def hash_into(hasher: Any, file: IO[bytes], advance: Callable[[int], None]) -> None:
    """Give the rest of a file to a hash; `advance` is called with the bytes of each block."""
    while block := file.read(2**20):
        hasher.update(block)
        advance(len(block))
