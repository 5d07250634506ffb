"""Files and archives from the web: cut off, killed, repeated, damaged or hostile, they end whole or not at all.

What comes is appended, in order, to a hidden file beside the target (`.name.part`), whose length is all there is to
know when the command is repeated; `.name.from` says which version of which remote file the bytes are of.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import struct
import tarfile
import threading
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import IO, Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter

from wavespace.errors import BadInput, UserError
from wavespace.files import check_space, explained, hash_into, lock, sync_folder, written_whole
from wavespace.terminal import byte_progress

T = TypeVar("T")
Span = tuple[int, int]
"""First byte, and the one after the last."""

SEGMENT = 2**24
"""Bytes a request. Zenodo grants 60 requests a minute, so smaller ones would be slower there."""
CONNECTIONS, AHEAD = 8, 4
"""Requests at once, and how many more segments may wait in memory for one before them."""
TRIES, FIRST_TRIES = 8, 3
"""Of a request; the first of all is given up sooner, so that who is offline is told at once."""
WAIT, MAX_WAIT, MAX_ASKED = 0.5, 30.0, 120.0
"""Seconds before the second try, doubled for each after it, at most; and the most that a server may ask for."""
TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and without a byte."""
BLOCK = 2**16
RATIO, SPARE = 20, 2**26
"""Times its own size, and bytes besides, that an archive may inflate to: audio and scores are far from it."""
AT_ONCE = 2**24
"""Bytes that are inflated at once at most; a header of a tar file that states more is none."""


def fetch(url: str, target: Path, *, digest: str | None = None, connections: int = CONNECTIONS) -> None:
    """Download a file, or the rest of it; one that is there is only held against the digest.

    Args:
        url: of the file.
        target: where it will be, whole or not at all.
        digest: "md5:…" or "sha256:…", of its content.
        connections: requests at once.

    Raises:
        BadInput: the server has no such file, or what it gave is not what it should be.
        UserError: the network or the disk fails, the remote changes meanwhile, or another process is at it.
    """
    if target.exists():
        return verify(target, digest) if digest else None
    hasher = _hasher(digest)
    with explained(target), _Part(target) as part:
        remote = _Remote(url, connections)
        size = remote.size or 0
        kept = part.keep(remote.origin, size) if remote.ranges else part.clear()
        check_space(target.parent, size - kept)
        with byte_progress(target.name, size) as advance:

            def stream() -> None:
                nonlocal hasher
                hasher = _hasher(digest)
                advance(-part.length)
                part.clear()
                for block in remote.whole():
                    part.append(block)
                    hasher.update(block)
                    advance(len(block))

            if remote.ranges:
                part.file.seek(0)
                hash_into(hasher, part.file, advance)
                with closing(remote.pieces(_segments(kept, size), advance)) as pieces:
                    for piece in pieces:
                        part.append(piece)
                        hasher.update(piece)
            else:
                remote.patiently(stream, TRIES)
        if digest and _digest(hasher) != digest:
            part.clear()
            raise BadInput(
                f"{target}: what {url} gives has {_digest(hasher)} and should have {digest}; it was deleted, so "
                "repeat the command, or put the file there yourself"
            )
        part.become_target()


def verify(path: Path, digest: str) -> None:
    """Read a file and hold it against "md5:…" or "sha256:…".

    Raises:
        BadInput: it is another.
        UserError: it can't be read.
    """
    hasher = _hasher(digest)
    with (
        explained(path),
        path.open("rb") as file,
        byte_progress(f"verifying {path.name}", path.stat().st_size) as advance,
    ):
        hash_into(hasher, file, advance)
    if _digest(hasher) != digest:
        raise BadInput(
            f"{path}: has {_digest(hasher)} and should have {digest}; it is damaged, or another file, so delete it "
            "and repeat the command"
        )


class RemoteZip:
    """A zip on a server, of which single members are fetched.

    Args:
        url: of the zip; its table of contents is read at once.
        connections: requests at once.

    Attributes:
        members: the files in it, by name.

    Raises:
        BadInput: there is no zip.
        UserError: the network fails, or the server can't be asked for a part of it.
    """

    def __init__(self, url: str, connections: int = CONNECTIONS) -> None:
        self.url, self._remote = url, _Remote(url, connections)
        if not self._remote.ranges:
            raise UserError(
                f"{url}: the server gives this archive as a whole only; download it by other means, such as a "
                "browser, and put it into the data's folder"
            )
        file = io.BufferedReader(_RangeFile(self._remote))  # whose reads are never short
        with _intact(url, "see whether the address still holds"), zipfile.ZipFile(cast(BinaryIO, file)) as archive:
            self.members = {info.filename: info for info in archive.infolist() if not info.is_dir()}

    def fetch(self, targets: Mapping[str, Path], folder: Path) -> None:
        """Download members, or the rest of them; those that are there with their size are left alone.

        Args:
            targets: where each member goes, relative to `folder`.
            folder: of all targets; what has come of a member is in it, too.

        Raises:
            BadInput: a member is not in the zip, or damaged in it, or would leave the folder.
            UserError: the network or the disk fails, the remote changed, or another process is at it.
        """
        if absent := [name for name in targets if name not in self.members]:
            raise BadInput(f"{self.url}: has no member {absent[0]}")
        todo = [(self.members[name], _within(folder, relative, name)) for name, relative in targets.items()]
        todo = [(info, path) for info, path in todo if not _is_there(path, info.file_size)]
        if not todo:
            return
        compressed = [info.compress_size for info, _ in todo]
        for info, _ in todo:
            _check_method(self.url, info)
        if sum(info.file_size for info, _ in todo) > _most(sum(compressed)):
            raise _bomb(self.url, sum(compressed))
        name = PurePosixPath(urlsplit(self.url).path).name
        with explained(folder), _Part(folder / name) as part:
            kept = part.keep(self._origin(todo[0][0]), compressed[0])
            check_space(folder, sum(info.file_size for info, _ in todo) + max(compressed) - kept)
            starts = self._data_starts([info for info, _ in todo])
            starts[0], compressed[0] = starts[0] + kept, compressed[0] - kept
            spans = [span for start, size in zip(starts, compressed) for span in _segments(start, start + size)]
            with (
                byte_progress(name, sum(compressed) + kept, kept) as advance,
                closing(self._remote.pieces(spans, advance)) as pieces,
            ):
                for info, path in todo:
                    part.keep(self._origin(info), info.compress_size)
                    while part.length < info.compress_size:
                        part.append(next(pieces))
                    try:
                        self._inflate(part.file, info, path)
                    finally:
                        part.clear()

    def _inflate(self, compressed: IO[bytes], info: zipfile.ZipInfo, path: Path) -> None:
        way_out = "repeat the command, and if that doesn't help, download the archive by other means"
        compressed.seek(0)
        with _intact(f"{self.url}: {info.filename}", way_out), zipfile.ZipExtFile(compressed, "r", info) as content:
            _copy(content, path, info.file_size)

    def _origin(self, info: zipfile.ZipInfo) -> str:
        return f"{self._remote.origin}\nfrom byte {info.header_offset}"

    def _data_starts(self, members: list[zipfile.ZipInfo]) -> list[int]:
        """Where their bytes begin: each is behind a header of its own, with a name and extras of any length."""
        spans = [(info.header_offset, info.header_offset + 30) for info in members]
        with closing(self._remote.pieces(spans)) as headers:
            lengths = [30 + sum(struct.unpack("<HH", header[26:])) for header in headers]
        return [start + length for (start, _), length in zip(spans, lengths)]


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
    with (
        explained(folder),
        archive.open("rb") as raw,
        _Part(folder / archive.name) as part,  # for its lock: who fetches members writes the same files
        _trusted_or_none() as written,
        _intact(str(archive), "delete it, get it anew and repeat the command"),
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
            with cast(IO[bytes], member.open()) as content:
                _copy(content, path, member.size)
            written.append(path)
            advance(raw.tell() - done)
            done = raw.tell()
        part.clear()


@contextmanager
def _trusted_or_none() -> Iterator[list[Path]]:
    """Of an archive that turns out bad no file stays: a tar.gz has its only checksum at the end."""
    written: list[Path] = []
    try:
        yield written
    except BadInput:
        for path in written:
            path.unlink(missing_ok=True)
        raise


class _Member(NamedTuple):
    name: str
    size: int
    regular: bool
    open: Callable[[], IO[bytes] | None]


def _most(size: int) -> int:
    """Bytes that an archive of a size may inflate to."""
    return RATIO * size + SPARE


def _check_method(archive: str, info: zipfile.ZipInfo) -> None:
    """Raise `BadInput` where a member is compressed as none of a dataset is: others may take memory without bounds."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadInput(f"{archive}: {info.filename} is compressed in a way that is unknown here; zip it anew")


def _bomb(archive: str, size: int) -> BadInput:
    return BadInput(
        f"{archive}: has {size / 1e6:.1f} MB and inflates to more than {_most(size) / 1e6:.0f} MB, so the archive "
        "isn't trusted"
    )


class _Inflated:
    """What a tar file holds, compressed or not, as far as an honest one of its size goes."""

    def __init__(self, file: BinaryIO, content: Any) -> None:
        self.archive, self.content = getattr(file, "name", "archive"), content
        self.size = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= AT_ONCE:
            raise tarfile.ReadError("a header states more than a header has")
        return self._checked(self.content.read(size))

    def seek(self, place: int) -> int:
        if place > _most(self.size):
            raise _bomb(self.archive, self.size)
        return self.content.seek(place)

    def tell(self) -> int:
        return self.content.tell()

    def _checked(self, data: bytes) -> bytes:
        if self.content.tell() > _most(self.size):
            raise _bomb(self.archive, self.size)
        return data


def _zip_members(file: BinaryIO) -> Iterator[_Member]:
    archive = zipfile.ZipFile(file)
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if not info.is_dir():
            regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            _check_method(str(getattr(file, "name", "archive")), info)
            yield _Member(info.filename, info.file_size, regular, partial(archive.open, info))


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
    """What another try may mend, after the seconds that the server asks to wait."""

    def __init__(self, why: str, asked: float = 0.0) -> None:
        super().__init__(why)
        self.asked = asked


class _Remote:
    """A file on a server.

    Attributes:
        ranges: whether a part of it can be asked for.
        size: in bytes; None: the server doesn't say.
        origin: all that is known of which version of which file it is.
    """

    def __init__(self, url: str, connections: int) -> None:
        self.url, self.connections = url, connections
        self._at = url  # or where it led to: to ask there saves a request each time
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=connections))
        # The answer is the proof: what servers say in Accept-Ranges is wrong at times.
        with self.patiently(lambda: self._get(0, 1), FIRST_TRIES) as answer:
            spanned = _content_range(answer)
            length = answer.headers.get("Content-Length", "")
            self.ranges = spanned is not None
            self.size = spanned[2] if spanned else int(length) if length.isdigit() else None
            self.origin = self._origin(answer)

    def patiently(self, job: Callable[[], T], tries: int, pause: Callable[[float], object] = time.sleep) -> T:
        """Do what may fail for a while."""
        for attempt in range(tries):
            try:
                return job()
            except (_Again, urllib3.exceptions.HTTPError) as error:
                why, asked = _reason(error), min(getattr(error, "asked", 0.0), MAX_ASKED)
            self._at = self.url
            if attempt + 1 < tries:
                pause(max(asked, min(WAIT * 2**attempt, MAX_WAIT)))
        raise UserError(
            f"{self.url}: can't be downloaded ({why}, {tries} times in a row); what has come is kept, so repeat the "
            "command to go on"
        )

    def whole(self) -> Iterator[bytes]:
        """All of it in one go."""
        with self._get() as answer:
            came = 0
            for block in answer.raw.stream(BLOCK, decode_content=False):
                came += len(block)
                yield block
        if answer.headers.get("Content-Length", str(came)) != str(came):
            raise _Again("the connection was cut")

    def pieces(
        self, spans: Sequence[Span], advance: Callable[[int], None] = lambda size: None
    ) -> Generator[bytearray, None, None]:
        """The bytes of each span, in order; threads fetch them side by side, and a few ahead.

        `advance` is called in this thread with what has come of any span (less than 0: that was no good).
        """
        halt = threading.Event()
        arrived: SimpleQueue[int] = SimpleQueue()
        todo: SimpleQueue[tuple[Span, Future[bytearray]] | None] = SimpleQueue()

        def work() -> None:
            while (job := todo.get()) is not None:
                span, future = job
                try:
                    future.set_result(self.segment(span, arrived.put, halt))
                except BaseException as error:
                    future.set_exception(error)

        # Not an executor's threads: with these, Ctrl-C would wait for a server that is silent.
        threads = min(self.connections, len(spans))
        for _ in range(threads):
            threading.Thread(target=work, name="download", daemon=True).start()
        ahead: deque[Future[bytearray]] = deque()
        rest = iter(spans)
        try:
            while True:
                for span in islice(rest, self.connections + AHEAD - len(ahead)):
                    ahead.append(Future())
                    todo.put((span, ahead[-1]))
                if not ahead:
                    return
                done = False
                while not done:
                    done = bool(wait([ahead[0]], 0.1).done)
                    while not arrived.empty():
                        advance(arrived.get())
                yield ahead.popleft().result()
        finally:
            halt.set()
            for _ in range(threads):
                todo.put(None)

    def segment(
        self, span: Span, arrived: Callable[[int], None] = lambda size: None, halt: threading.Event | None = None
    ) -> bytearray:
        """The bytes of a span; after a cut it goes on from there."""
        halt = halt or threading.Event()
        data = bytearray()
        size = span[1] - span[0]

        def check_halt() -> None:
            if halt.is_set():
                raise UserError(f"{self.url}: the download was stopped")

        def go_on() -> None:
            check_halt()
            had = len(data)
            with self._get(span[0] + had, span[1]) as answer:
                self._check_span(answer, (span[0] + had, span[1]))
                for block in answer.raw.stream(BLOCK, decode_content=False):
                    check_halt()
                    data.extend(block)
                    arrived(len(block))
                    if len(data) > size:
                        break
            if len(data) > size:
                arrived(had - len(data))
                del data[had:]
            if len(data) < size:
                raise _Again("the connection was cut")

        self.patiently(go_on, TRIES, halt.wait)
        return data

    def _get(self, start: int = 0, stop: int | None = None) -> requests.Response:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-{stop - 1}"} if stop else {})
        at = self._at
        try:
            answer = self._session.get(at, headers=headers, stream=True, timeout=TIMEOUT)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Again(_reason(error)) from None
        except requests.RequestException as error:
            raise BadInput(f"{self.url}: can't be downloaded ({_reason(error)})") from None
        status, says = answer.status_code, f"the server says {answer.status_code} {answer.reason}"
        if status in (200, 206) and not answer.headers.get("Content-Type", "").startswith("text/html"):
            self._at = answer.url
            return answer
        answer.close()
        if status in (200, 206):
            raise BadInput(
                f"{self.url}: gives a web page in place of the file; open it in a browser to see why (a login or a "
                "proxy is in between, or the file has moved)"
            )
        if status in (408, 429) or status >= 500 or at != self.url:  # where it led to may hold for a while only
            asked = answer.headers.get("Retry-After", "")
            raise _Again(says, float(asked) if asked.isdigit() else 0.0)
        raise BadInput(f"{self.url}: can't be downloaded ({says}); see in a browser whether the address still holds")

    def _check_span(self, answer: requests.Response, span: Span) -> None:
        spanned = _content_range(answer)
        length = answer.headers.get("Content-Length", str(span[1] - span[0]))
        if spanned is None or spanned[:2] != span or length != str(span[1] - span[0]):
            raise _Again("the server gives something other than the part that was asked for")
        if self._origin(answer) != self.origin:
            raise UserError(f"{self.url}: changed while it was downloaded; repeat the command to start over")

    def _origin(self, answer: requests.Response) -> str:
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return "\n".join([self.url, size, *(answer.headers.get(name, "") for name in ("ETag", "Last-Modified"))])


def _content_range(answer: requests.Response) -> tuple[int, int, int] | None:
    """First byte, the one after the last, and the size of the file; None: the answer is not a part."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
    return (int(found[1]), int(found[2]) + 1, int(found[3])) if found and answer.status_code == 206 else None


def _reason(error: BaseException) -> str:
    """What is at the bottom of an error."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _RangeFile(io.RawIOBase):
    """A remote file to read and seek in; a mebibyte around the last place is kept."""

    def __init__(self, remote: _Remote) -> None:
        self._remote, self._size = remote, remote.size or 0
        self._place, self._first, self._kept = 0, 0, bytearray()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        if not self._first <= self._place < self._first + len(self._kept) and self._place < self._size:
            self._first = self._place // 2**20 * 2**20
            self._kept = self._remote.segment((self._first, min(self._first + 2**20, self._size)))
        found = self._kept[self._place - self._first :][: len(buffer)]
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)


class _Part:
    """The first bytes of a file that is on its way, and words that say of which; for one process alone."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self._path, self._words = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.from")

    def __enter__(self) -> _Part:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Its only descriptor in this process: to close another would give up the lock.
        self.file = self._path.open("a+b", buffering=0)
        try:
            held = lock(self.file, unguarded="nothing keeps a second process from fetching this: start no other")
            held = held and os.path.samestat(os.fstat(self.file.fileno()), self._path.stat())
        except FileNotFoundError:
            held = False
        if not held:  # or not any more: another process has just made the target of it
            self.file.close()
            raise UserError(
                f"{self.target}: another process is at it; wait until it has done, or stop it and repeat the command"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.length == 0:
            self._path.unlink(missing_ok=True)
            self._words.unlink(missing_ok=True)
        self.file.close()

    @property
    def length(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def keep(self, origin: str, size: int) -> int:
        """How many bytes are there of this origin; those of another are dropped."""
        if not self._words.is_file() or self._words.read_bytes() != origin.encode() or self.length > size:
            self.clear()
            self._words.write_bytes(origin.encode())
        return self.length

    def clear(self) -> int:
        return self.file.truncate(0)

    def append(self, block: bytes | bytearray) -> None:
        rest = memoryview(block)
        while rest:
            rest = rest[self.file.write(rest) :]

    def become_target(self) -> None:
        os.fsync(self.file.fileno())
        os.replace(self._path, self.target)
        sync_folder(self.target.parent)
        self._words.unlink(missing_ok=True)


_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError,
    RuntimeError,  # it is encrypted, or compressed in a way that is unknown
)  # fmt: skip


@contextmanager
def _intact(archive: str, way_out: str) -> Iterator[None]:
    """What the libraries say of an archive that is none, in a sentence."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGED as error:
        raise BadInput(f"{archive}: is damaged ({str(error) or 'it ends early'}); {way_out}") from None


def _within(folder: Path, relative: Path, name: str) -> Path:
    if relative.is_absolute() or ".." in relative.parts or not relative.parts or "\0" in str(relative):
        raise BadInput(f"{name}: would be written outside of {folder}, so the archive isn't trusted")
    return folder / relative


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _segments(start: int, stop: int) -> list[Span]:
    return [(first, min(first + SEGMENT, stop)) for first in range(start, stop, SEGMENT)]


def _hasher(digest: str | None) -> Any:
    return hashlib.new(digest.partition(":")[0] if digest else "md5", usedforsecurity=False)


def _digest(hasher: Any) -> str:
    return f"{hasher.name}:{hasher.hexdigest()}"


def _copy(content: Any, path: Path, size: int) -> None:
    """All that there is to read to a file, which must be of that size."""
    with written_whole(path) as file:
        shutil.copyfileobj(content, file, 2**20)
        if file.tell() != size:
            raise EOFError
