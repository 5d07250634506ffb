"""Downloads files and archives from the web, and unpacks them: a target is whole or absent, whatever fails.

Received bytes are appended to a hidden file beside the target (`.name.part`), where a repeated command goes on;
`.name.from` names the remote file and its version.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import remotezip
import requests
import urllib3.exceptions

from wavespace.errors import BadInput, UserError
from wavespace.files import (
    byte_progress,
    check_space,
    explained,
    hash_into,
    is_inside,
    lock,
    sync_folder,
    written_whole,
)

T = TypeVar("T")

CONNECTIONS = 8
"""Members of a remote zip that are fetched at once."""
TRIES, FIRST_TRIES = 8, 3
"""Of a request; the first request is given up sooner, as the user may be offline."""
WAIT, MAX_WAIT, MAX_ASKED = 0.5, 30.0, 120.0
"""Seconds before the second try, doubled for each after it, at most; and the most that a server may ask for."""
TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and without a byte."""
BLOCK = 2**16
RATIO, SPARE = 20, 2**26
"""Times its own size, and bytes besides, that an archive may inflate to: audio and scores are far from it."""
AT_ONCE = 2**24
"""Bytes that are inflated at once at most; a header of a tar file, or the table of a zip, has no more."""

DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, remotezip.RemoteZipError,
    RuntimeError,  # it is encrypted, or compressed in a way that is unknown
)  # fmt: skip
"""What libraries raise for a damaged archive."""


def fetch(url: str, target: Path, *, digest: str | None = None) -> None:
    """Download a file, or the rest of it; one that is there is only compared with the digest.

    Args:
        url: of the file.
        target: where it will be, whole or not at all.
        digest: "md5:…" or "sha256:…", of its content.

    Raises:
        BadInput: the server has no such file, or what it gave is not what it should be.
        UserError: the network or the disk fails, or another process downloads it.
    """
    if target.exists():
        return check_digest(target, digest)
    with explained(target), _Part(target) as part:
        remote = _Remote(url)
        kept = part.keep(remote.version, remote.size or 0) if remote.ranges else part.clear()
        check_space(target.parent, (remote.size or 0) - kept)
        with byte_progress(target.name, remote.size or 0, kept) as advance:
            remote.append_to(part.file, 0, remote.size, advance)
        if digest and (found := _digest(part.file, digest, target.name)) != digest:
            part.clear()
            raise BadInput(
                f"{target}: what {url} gives has {found} and should have {digest}; it was deleted, so "
                "repeat the command, or put the file there yourself"
            )
        part.become_target()


def check_digest(path: Path, digest: str | None) -> None:
    """Compare a file with "md5:…" or "sha256:…", if one is known.

    Raises:
        BadInput: it is another.
        UserError: it can't be read.
    """
    if digest is None:
        return
    with explained(path), path.open("rb") as file:
        found = _digest(file, digest, path.name)
    if found != digest:
        raise BadInput(
            f"{path}: has {found} and should have {digest}; it is damaged, or another file, so delete it "
            "and repeat the command"
        )


def _digest(file: BinaryIO, like: str, name: str) -> str:
    """The digest of a file, of the kind of another."""
    hasher = hashlib.new(like.partition(":")[0], usedforsecurity=False)
    file.seek(0)
    with byte_progress(f"verifying {name}", os.fstat(file.fileno()).st_size) as advance:
        hash_into(hasher, file, advance)
    return f"{hasher.name}:{hasher.hexdigest()}"


class RemoteZip:
    """A zip on a server, of which single members are fetched.

    Args:
        url: of the zip; its table of contents is read at once.

    Attributes:
        members: the files in it, by name.

    Raises:
        BadInput: there is no zip.
        UserError: the network fails, or the server can't be asked for a part of it.
    """

    def __init__(self, url: str) -> None:
        self.url, self._remote = url, _Remote(url)
        if not self._remote.ranges:
            raise UserError(
                f"{url}: the server gives this archive as a whole only; download it by other means, such as a "
                "browser, and put it into the data's folder"
            )
        source = SimpleNamespace(fetch=self._remote.buffer)
        with (
            _intact(url, "see whether the address still holds"),
            remotezip.RemoteZip(url, fetcher=lambda *_, **__: source) as archive,
        ):
            self.members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            starts = sorted({info.header_offset for info in archive.infolist()} | {archive.start_dir})
            self._ends = dict(zip(starts, starts[1:]))  # of a member's header and content, by where they begin

    def fetch(self, targets: Mapping[str, Path], folder: Path) -> None:
        """Download members, or the rest of them; those that are there with their size are left alone.

        Args:
            targets: where each member goes, relative to `folder`.
            folder: of all targets; what has come of a member is beside its target.

        Raises:
            BadInput: a member is not in the zip, or damaged in it, or would leave the folder.
            UserError: the network or the disk fails, the remote changed, or another process downloads them.
        """
        if absent := [name for name in targets if name not in self.members]:
            raise BadInput(f"{self.url}: has no member {absent[0]}")
        todo = [(self.members[name], _within(folder, relative, name)) for name, relative in targets.items()]
        todo = [(info, path) for info, path in todo if not _is_there(path, info.file_size)]
        if not todo:
            return
        sizes = [self._ends[info.header_offset] - info.header_offset for info, _ in todo]
        need = sum(info.file_size for info, _ in todo)
        for info, _ in todo:
            _check_method(self.url, info)
        if need > _most(sum(sizes)):
            raise _bomb(self.url, sum(sizes))
        name = PurePosixPath(urlsplit(self.url).path).name
        with explained(folder), _Part(folder / name), byte_progress(name, sum(sizes)) as advance:
            check_space(folder, need + sum(sorted(sizes)[-CONNECTIONS:]))
            self._remote.halted = False
            try:
                with ThreadPool(min(CONNECTIONS, len(todo))) as threads:  # Ctrl-C does not wait for them
                    for _ in threads.imap_unordered(lambda one: self._fetch(*one, advance), todo):
                        pass
            finally:
                self._remote.halted = True

    def _fetch(self, info: zipfile.ZipInfo, path: Path, advance: Callable[[int], object]) -> None:
        start, end = info.header_offset, self._ends[info.header_offset]
        with explained(path), _Part(path, alone=False) as part:
            advance(part.keep(f"{self._remote.version}\nfrom byte {start}", end - start))
            self._remote.append_to(part.file, start, end, advance)
            advice = "repeat the command, and if that doesn't help, download the archive by other means"
            part.file.seek(26)  # in the member's own header: the lengths of its name and of what is behind that
            part.file.seek(30 + sum(int.from_bytes(part.file.read(2), "little") for _ in range(2)))
            try:
                with _intact(f"{self.url}: {info.filename}", advice), written_whole(path) as file:
                    _copy(zipfile.ZipExtFile(part.file, "r", info), file, info.file_size)
                    part.remove()  # before the member has its name: after a kill nobody would look for this
            finally:
                part.clear()


def extract(archive: Path, folder: Path, targets: Callable[[str], Path | None], *, limit: int | None = None) -> None:
    """Take files out of an archive; those that are there with their size are left alone.

    Args:
        archive: a .zip, .tar, .tar.gz or .tgz.
        folder: of all targets.
        targets: where the member of a name goes, relative to `folder`; None: it is not wanted.
        limit: bytes that the wanted files may have together.

    Raises:
        BadInput: the archive is none, or damaged, or hostile: a member that is wanted leaves the folder, or is a link,
            or is beyond the limit. Nothing that was taken out of it stays.
        UserError: the disk fails, or another process is at it.
    """
    if not archive.is_file() or not archive.name.endswith((".zip", ".tar", ".tar.gz", ".tgz")):
        raise BadInput(f"{archive}: there is no .zip, .tar, .tar.gz or .tgz")
    written: list[Path] = []
    with (
        explained(folder),
        archive.open("rb") as raw,
        _Part(folder / archive.name),  # for its lock: who fetches members writes the same files
        _intact(str(archive), "delete it, get it anew and repeat the command", written),
        byte_progress(f"extracting {archive.name}", archive.stat().st_size) as advance,
    ):
        members = _zip_members(raw) if archive.suffix == ".zip" else _tar_members(raw, archive.suffix != ".tar")
        wanted: Iterable[tuple[_Member, Path]] = _wanted(members, archive, folder, targets, limit)
        if archive.suffix == ".zip":
            wanted = list(wanted)
            check_space(folder, sum(member.size for member, _ in wanted))
        done = 0
        for member, path in wanted:
            check_space(folder, member.size)
            with cast(IO[bytes], member.open()) as content, written_whole(path) as file:
                _copy(content, file, member.size)
            written.append(path)
            advance(raw.tell() - done)
            done = raw.tell()


class _Member(NamedTuple):
    name: str
    size: int
    regular: bool
    open: Callable[[], IO[bytes] | None]


def _most(size: int) -> int:
    """Bytes that an archive of a size may inflate to."""
    return RATIO * size + SPARE


def _bomb(archive: str, size: int) -> BadInput:
    return BadInput(
        f"{archive}: has {size / 1e6:.1f} MB and inflates to more than {_most(size) / 1e6:.0f} MB, so the archive "
        "isn't trusted"
    )


def _check_method(archive: str, info: zipfile.ZipInfo) -> None:
    """Raise `BadInput` where a member is compressed as none of a dataset is: others may take memory without bounds."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadInput(f"{archive}: {info.filename} is compressed in a way that is unknown here; zip it anew")


def _zip_members(file: BinaryIO) -> Iterator[_Member]:
    archive = zipfile.ZipFile(file)
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if not info.is_dir():
            regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            _check_method(file.name, info)
            yield _Member(info.filename, info.file_size, regular, partial(archive.open, info))


class _Inflated:
    """What a tar file holds, compressed or not, up to the bytes that `_most` allows."""

    def __init__(self, file: BinaryIO, content: Any) -> None:
        self.archive, self.content, self.tell = file.name, content, content.tell
        self.size = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= AT_ONCE:
            raise tarfile.ReadError("a header states more than a header has")
        data = self.content.read(size)
        self._check(self.tell())
        return data

    def seek(self, place: int) -> int:
        self._check(place)
        return self.content.seek(place)

    def _check(self, place: int) -> None:
        if place > _most(self.size):
            raise _bomb(self.archive, self.size)


def _tar_members(file: BinaryIO, zipped: bool) -> Iterator[_Member]:
    content = _Inflated(file, gzip.GzipFile(fileobj=file) if zipped else file)
    archive: Any = tarfile.TarFile(fileobj=cast(Any, content))
    while (info := archive.next()) is not None:
        archive.members.clear()  # a small archive may have millions
        if info.size < 0:  # it would be read again and again
            raise tarfile.ReadError("a member has less than no bytes")
        if not info.isdir():
            yield _Member(info.name, info.size, info.isreg(), partial(archive.extractfile, info))
    # A header that can't be read looks like the end to tarfile, and gzip's checksum is behind the last member.
    while block := content.read(BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("a member can't be read")


def _wanted(
    members: Iterator[_Member], archive: Path, folder: Path, targets: Callable[[str], Path | None], limit: int | None
) -> Iterator[tuple[_Member, Path]]:
    """What is to be written, and where."""
    total = 0
    for member in members:
        relative = targets(member.name)
        if relative is None:
            continue
        path = _within(folder, relative, f"{archive}: {member.name}")
        if not member.regular:
            raise BadInput(f"{archive}: {member.name} is a link or a device, not a file, so the archive isn't trusted")
        total += member.size
        if total > _most(archive.stat().st_size):
            raise _bomb(str(archive), archive.stat().st_size)
        if limit is not None and total > limit:
            raise BadInput(
                f"{archive}: has more than the {limit / 1e9:.1f} GB that it may ({total / 1e9:.1f} with "
                f"{member.name}), so the archive isn't trusted"
            )
        if not _is_there(path, member.size):
            yield member, path


class _Again(Exception):
    """A failure that may pass; `asked` is the seconds that the server wants between tries."""

    def __init__(self, why: str, asked: float = 0.0) -> None:
        super().__init__(why)
        self.asked = asked


class _Remote:
    """A file on a server.

    Attributes:
        ranges: whether a part of it can be asked for.
        size: in bytes; None: the server doesn't say.
        version: all that is known of which version of which file it is.
        halted: whether threads that download should stop.
    """

    def __init__(self, url: str) -> None:
        self.url, self.halted, self._session = url, False, requests.Session()
        # The answer is the proof: what servers say in Accept-Ranges is wrong at times.
        with self.retry(lambda: self._get(0, 1), FIRST_TRIES) as answer:
            total = re.fullmatch(r"bytes 0-0/(\d+)", answer.headers.get("Content-Range", ""))
            self.ranges = answer.status_code == 206 and total is not None
            self.size = int(total[1]) if total else _stated(answer)
            self.version = self._version(answer)

    def retry(self, job: Callable[[], T], tries: int, came: Callable[[], int] = lambda: 0) -> T:
        """Call `job` until it succeeds; give up after so many failures in a row in which no more bytes `came`."""
        failed, had = 0, came()
        while True:
            try:
                return job()
            except (_Again, urllib3.exceptions.HTTPError) as error:
                why, asked = _reason(error), min(getattr(error, "asked", 0.0), MAX_ASKED)
            failed, had = 1 if came() > had else failed + 1, came()
            if failed == tries:
                raise UserError(
                    f"{self.url}: can't be downloaded ({why}, {tries} times in a row); what has come is kept, so "
                    "repeat the command to resume"
                )
            time.sleep(max(asked, min(WAIT * 2 ** (failed - 1), MAX_WAIT)))

    def buffer(self, span: tuple[int, int | None], stream: bool = False) -> remotezip.PartialBuffer:
        """Bytes from the first to the last of a span, or the last `-span[0]`, as remotezip asks for them."""
        assert self.size is not None
        start = span[0] if span[0] >= 0 else max(0, self.size + span[0])
        stop = self.size if span[1] is None else span[1] + 1
        if stop - start > AT_ONCE:
            raise zipfile.BadZipFile("its table of contents is too large")
        data = io.BytesIO()
        self.append_to(data, start, stop)
        return remotezip.PartialBuffer(io.BytesIO(data.getvalue()), start, stop - start, stream=False)

    def append_to(
        self, file: BinaryIO, start: int, stop: int | None, advance: Callable[[int], object] = lambda size: None
    ) -> None:
        """Append what a file lacks of a span of the remote one; after a cut it resumes from there."""

        def length() -> int:
            return file.seek(0, os.SEEK_END)

        def go_on() -> None:
            if not self.ranges:  # all of it, anew
                advance(-length())
                file.truncate(0)
            had = done = length()
            if start + had == stop:
                return
            with self._get(start + had, stop if self.ranges else None) as answer:
                size = stop - start - had if self.ranges and stop is not None else _stated(answer)
                self._check(answer, start + had, stop)
                for block in answer.raw.stream(BLOCK, decode_content=False):
                    if self.halted:
                        raise UserError(f"{self.url}: the download was stopped")
                    _write(file, block)
                    done += len(block)
                    advance(len(block))
                    if size is not None and done - had > size:
                        advance(had - done)
                        file.truncate(had)
                        raise _Again("the server gives more than was asked for")
            if size is not None and done - had < size:
                raise _Again("the connection was cut")

        self.retry(go_on, TRIES, length if self.ranges else lambda: 0)

    def _get(self, start: int = 0, stop: int | None = None) -> requests.Response:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-{stop - 1}"} if stop else {})
        try:
            answer = self._session.get(self.url, headers=headers, stream=True, timeout=TIMEOUT)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Again(_reason(error)) from None
        except requests.RequestException as error:
            raise BadInput(f"{self.url}: can't be downloaded ({_reason(error)})") from None
        status, says = answer.status_code, f"the server says {answer.status_code} {answer.reason}"
        if status in (200, 206) and not answer.headers.get("Content-Type", "").startswith("text/html"):
            return answer
        answer.close()
        if status in (200, 206):
            raise BadInput(
                f"{self.url}: gives a web page in place of the file; open it in a browser to see why (a login or a "
                "proxy is in between, or the file has moved)"
            )
        if status in (408, 429) or status >= 500:
            asked = answer.headers.get("Retry-After", "")
            raise _Again(says, float(asked) if asked.isdigit() else 0.0)
        raise BadInput(f"{self.url}: can't be downloaded ({says}); see in a browser whether the address still holds")

    def _check(self, answer: requests.Response, start: int, stop: int | None) -> None:
        """Raise where an answer is not the part that was asked for, of the same version of the file."""
        if not self.ranges or stop is None:
            return
        stated = answer.headers.get("Content-Range", "").rpartition("/")[0], _stated(answer) or stop - start
        if answer.status_code != 206 or stated != (f"bytes {start}-{stop - 1}", stop - start):
            raise _Again("the server gives something other than the part that was asked for")
        if self._version(answer) != self.version:
            raise UserError(f"{self.url}: changed while it was downloaded; repeat the command to start over")

    def _version(self, answer: requests.Response) -> str:
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return "\n".join([self.url, size, *(answer.headers.get(name, "") for name in ("ETag", "Last-Modified"))])


def _stated(answer: requests.Response) -> int | None:
    """Bytes of an answer, where its header says so."""
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _reason(error: BaseException) -> str:
    """What is at the bottom of an error."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Part:
    """The bytes of a file that were downloaded so far, and the version that they are of; open for one process.

    Args:
        target: the whole file.
        alone: whether no other process may have it at the same time.
    """

    def __init__(self, target: Path, alone: bool = True) -> None:
        self.target, self.alone = target, alone
        self._path, self._version = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.from")

    def __enter__(self) -> _Part:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Its only descriptor in this process: to close another would give up the lock.
        self.file = cast(BinaryIO, self._path.open("a+b", buffering=0))
        try:
            held = not self.alone or (
                lock(self.file, unguarded="nothing keeps a second process from fetching this: start no other")
                and os.path.samestat(os.fstat(self.file.fileno()), self._path.stat())
            )
        except FileNotFoundError:
            held = False
        if not held:  # or not any more: another process has just made the target of it
            self.file.close()
            raise UserError(
                f"{self.target}: another process is at it; wait until it has done, or stop it and repeat the command"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if os.fstat(self.file.fileno()).st_size == 0:
            self.remove()
        self.file.close()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)

    def keep(self, version: str, size: int) -> int:
        """How many bytes are there of this version; those of another are dropped."""
        length = os.fstat(self.file.fileno()).st_size
        if self._version.is_file() and self._version.read_bytes() == version.encode() and length <= size:
            return length
        self.clear()
        self._version.write_bytes(version.encode())
        return 0

    def clear(self) -> int:
        return self.file.truncate(0)

    def become_target(self) -> None:
        os.fsync(self.file.fileno())
        os.replace(self._path, self.target)
        sync_folder(self.target.parent)
        self._version.unlink(missing_ok=True)


@contextmanager
def _intact(archive: str, advice: str, written: Iterable[Path] = ()) -> Iterator[None]:
    """Raise `BadInput` for what a damaged archive raises, and delete what was written of it: a tar.gz has its only
    checksum at the end.
    """
    try:
        yield
    except DAMAGED as error:  # BadInput, too, is a ValueError
        if isinstance(error, BadInput) or not isinstance(error, UserError):
            for path in written:
                path.unlink(missing_ok=True)
        if isinstance(error, UserError):
            raise
        raise BadInput(f"{archive}: is damaged ({str(error) or 'it ends early'}); {advice}") from None


def _within(folder: Path, relative: Path, name: str) -> Path:
    if not is_inside(str(relative)):
        raise BadInput(f"{name}: would be written outside of {folder}, so the archive isn't trusted")
    return folder / relative


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write(file: BinaryIO, block: bytes) -> None:
    """Write all of a block to a file without a buffer, which may take less at once."""
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


def _copy(content: Any, file: IO[bytes], size: int) -> None:
    """Copy all that there is to read to a file, which must be of that size."""
    shutil.copyfileobj(content, file, 2**20)
    if file.tell() != size:
        raise EOFError
