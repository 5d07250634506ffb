"""Write files whole or not at all, read files of strangers safely, and explain errors of the disk."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from wavespace.errors import BadInput, UserError


def cache_folder() -> Path:
    """Where what was downloaded is kept: `$WAVESPACE_CACHE`, or `wavespace/` in the user's cache folder."""
    if own := os.environ.get("WAVESPACE_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wavespace"
    except RuntimeError:
        raise UserError("this user has no home folder; set WAVESPACE_CACHE to a folder for downloads") from None


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, if it is a regular one: a pipe would be waited for, and a device may have no end.

    Raises:
        FileNotFoundError: there is none.
        BadInput: it is something else, or can't be opened.
    """
    odd = BadInput(f"{path}: is not a regular file but a folder, a pipe or a device")
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise odd from None
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror})") from None
    except ValueError as error:  # a name with a NUL byte, or one that can't be encoded
        raise BadInput(f"{path}: can't be read ({error})") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise odd
    return file


def read_regular(path: Path, most: int) -> bytes:
    """All bytes of a regular file that has at most `most`; a larger one is not read.

    Raises:
        FileNotFoundError: there is none.
        BadInput: it is larger, no regular file, or can't be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise BadInput(f"{path}: has {size / 1e6:,.1f} MB, and at most {most / 1e6:,.1f} are read")
        try:
            return file.read(size)
        except OSError as error:
            raise BadInput(f"{path}: can't be read ({error.strerror})") from None


def is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder: not absolute, without `..`, and not empty."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts) and "\0" not in name


def named_file(folder: Path, name: str) -> Path:
    """The path of a file that metadata names, which has to lie in the metadata's folder.

    A folder on the way may be a link, as somebody keeps a part of the data elsewhere; the file may be a link only to
    what lies in the same place.

    Raises:
        BadInput: the name leads out of the folder.
    """
    path = folder / name
    if not is_inside(name):
        raise BadInput(f"{folder}: its metadata names {name[:200]!r}, which is not a path inside of this folder")
    try:
        linked = path.is_symlink()
    except OSError as error:  # the name is too long
        raise BadInput(f"{folder}: its metadata names {name[:80]!r} ({error.strerror})") from None
    if linked:
        target = Path(os.path.realpath(path))
        if not any(target.is_relative_to(os.path.realpath(place)) for place in (folder, path.parent)):
            raise BadInput(f"{path}: is a link to a file outside of {folder}; copy the file there, or link its folder")
    return path


DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO,
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.ENOTDIR,
}  # fmt: skip
"""Errors of the disk, and of names and rights that the user gave, whatever the program does."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of the disk within the block into a `UserError`."""
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
    name = os.fsdecode(os.fsencode(path.name)[:200])  # of 255 bytes that a name has at most
    temporary = path.with_name(f".{name}.{mark}")
    try:
        temporary.unlink(missing_ok=True)  # a stranger's folder may have a link or a pipe of this name
        with temporary.open("xb") as file:
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


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file whole or not at all; processes that write the same file at once do not disturb each other."""
    with written_whole(path, mark=str(os.getpid())) as file:
        file.write(data.encode() if isinstance(data, str) else data)


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


def hash_into(hasher: Any, file: IO[bytes], advance: Callable[[int], object]) -> None:
    """Give the rest of a file to a hash; `advance` is called with the bytes of each block."""
    while block := file.read(2**20):
        hasher.update(block)
        advance(len(block))


@contextmanager
def byte_progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], object]]:
    """A bar with MB/s and the time that is left, on a terminal; yields what to call with the bytes that were done."""
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # without tqdm's thread, which a process that forks may not have

    columns, rows = shutil.get_terminal_size()  # some terminals state none, and tqdm then draws nothing
    size = {"ncols": columns, "nrows": rows}
    with Bar(desc=title, total=total, initial=done, unit="B", unit_scale=True, disable=None, **size) as bar:
        yield bar.update
