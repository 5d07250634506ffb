"""Whatever servers, disks and archives do: a file is there whole, or it is not there and a sentence says why."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from standins.files import Fault, FileServer, Request, serving
from wavespace.data.files import download as module
from wavespace.data.files.download import RemoteZip, check_digest, extract, fetch
from wavespace.errors import BadInput, UserError

SEGMENT = 1_000
DATA = random.Random(1).randbytes(10_500)
OTHER = random.Random(2).randbytes(10_500)
CSV = b"name,split\n" * 400


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, no waits, no proxy."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "BLOCK", 100)
    monkeypatch.setattr(module, "WAIT", 0.0)


@pytest.fixture(scope="module")
def one_server() -> Iterator[FileServer]:
    with serving({}) as server:
        yield server


@pytest.fixture
def server(one_server: FileServer) -> FileServer:
    one_server.reset()
    one_server.files = {"data": DATA}
    return one_server


MORE_THAN_STATED = r"(is damaged \((Bad CRC-32 for file 'b'|it ends early)\)|set\.zip: has .* inflates to more)"


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def content(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing_from(place: int, fault: Fault) -> Callable[[Request], Fault | None]:
    """What is asked for up to a place comes; what is asked for from there on does not."""

    def answer(request: Request) -> Fault | None:
        if request.start is None or request.stop is None or request.stop <= place:
            return None
        return Fault(cut=place - request.start) if request.start < place else fault

    return answer


def stopped_at(server: FileServer, place: int, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Download until the server fails for good."""
    server.fault = failing_from(place, Fault(status=503))
    with few_tries(monkeypatch), pytest.raises(UserError, match="503"):
        fetch(server.url("data"), target)
    server.reset()


@contextmanager
def few_tries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two tries, and nothing of them goes on afterwards."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "TRIES", 2)
        yield
    at_rest()


def at_rest() -> None:
    """Threads of a download that failed end by themselves."""
    for thread in threading.enumerate():
        if "(worker)" in thread.name:
            thread.join(5)
            assert not thread.is_alive()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full at this length of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A file


@pytest.mark.parametrize("size", [1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 10 * SEGMENT])
@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_arrives_whole_and_alone(server: FileServer, tmp_path: Path, size: int, algorithm: str) -> None:
    server.files["data"] = DATA[:size]
    fetch(server.url("data?download=1"), tmp_path / "new" / "a.bin", digest=digest_of(DATA[:size], algorithm))
    assert content(tmp_path) == {"new/a.bin": DATA[:size]}
    assert server.served == size + 1  # each byte once, and one to see what the server can do


FAULTS = [
    None,
    Fault(cut=0),
    Fault(cut=1),
    Fault(cut=7),
    Fault(cut=7, reset=True),
    Fault(status=503),
    Fault(status=429),
    Fault(headers={"Content-Range": "bytes 9000-9006/10000"}),
    Fault(body=b""),
    Fault(body=bytes(3_000)),
    Fault(body=bytes(4_000), headers={"Content-Length": "", "Connection": "close"}, cut=4_000),
    Fault(status=200, body=bytes(50), headers={"Content-Range": ""}),
]


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 3_000),
    block=st.integers(1, 1_000),
    kept=st.integers(0, 3_000),
    seed=st.integers(0, 2**16),
    share=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_any_size_in_any_blocks_through_any_faults_is_put_together(
    one_server: FileServer,
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    block: int,
    kept: int,
    seed: int,
    share: float,
) -> None:
    one_server.reset()
    one_server.files = {"data": DATA[:size]}
    target = tmp_path_factory.mktemp("any") / "data"
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "BLOCK", block)
        patched.setattr(module, "TRIES", 100)
        if 0 < kept < size:  # an earlier call came as far as this
            with module._Part(target) as part:
                part.keep(module._Remote(one_server.url("data")).version, size)
                module._write(part.file, DATA[:kept])
        one_server.fault = lambda r: rng.choice(FAULTS) if r.stop != 1 and rng.random() < share else None
        fetch(one_server.url("data"), target, digest=digest_of(DATA[:size]))
    assert content(target.parent) == {"data": DATA[:size]}


def test_a_call_goes_on_where_the_one_before_stopped(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(server, 4 * SEGMENT, tmp_path / "data", monkeypatch)
    assert (tmp_path / ".data.part").read_bytes() == DATA[: 4 * SEGMENT]
    assert not (tmp_path / "data").exists()
    fetch(server.url("data"), tmp_path / "data", digest=digest_of(DATA))
    assert content(tmp_path) == {"data": DATA}
    assert server.served == len(DATA) - 4 * SEGMENT + 1


CHILD = """
import signal, sys
from pathlib import Path
from wavespace.data.files import download
signal.signal(signal.SIGINT, signal.default_int_handler)  # which what a shell runs in the background ignores
download.BLOCK = 100
download.fetch(sys.argv[1], Path(sys.argv[2]))
"""


@contextmanager
def stalled_child(server: FileServer, target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that downloads, with 4,000 bytes on the disk and a server that has become silent."""
    silence = threading.Event()
    server.fault = failing_from(4 * SEGMENT, Fault(cut=99, until=silence))
    child = subprocess.Popen([sys.executable, "-c", CHILD, server.url("data"), str(target)], stderr=subprocess.PIPE)
    try:
        part, patience = target.with_name(f".{target.name}.part"), time.monotonic() + 20
        while len(server.requests) < 3 or not part.exists() or part.stat().st_size < 4 * SEGMENT:
            assert time.monotonic() < patience
            time.sleep(0.01)
        yield child
    finally:
        child.kill()
        child.communicate()
        silence.set()
        server.reset()


def test_a_second_process_is_told_and_a_killed_one_is_gone_on_from(server: FileServer, tmp_path: Path) -> None:
    with stalled_child(server, tmp_path / "data") as child:
        with pytest.raises(UserError, match="data: another process is at it; wait"):
            fetch(server.url("data"), tmp_path / "data")
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert set(content(tmp_path)) == {".data.part", ".data.from"}
    fetch(server.url("data"), tmp_path / "data", digest=digest_of(DATA))
    assert content(tmp_path) == {"data": DATA}
    assert server.served == len(DATA) - 4 * SEGMENT + 1


def test_what_another_process_makes_of_the_part_meanwhile_is_left_alone(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / ".data.part"
    part.write_bytes(DATA)
    monkeypatch.setattr(fcntl, "lockf", lambda *_: os.replace(part, tmp_path / "data"))
    with pytest.raises(UserError, match="another process is at it"):
        fetch(server.url("data"), tmp_path / "data")
    assert content(tmp_path) == {"data": DATA}


def test_a_part_that_is_longer_than_the_file_is_dropped(server: FileServer, tmp_path: Path) -> None:
    with module._Part(tmp_path / "data") as part:
        part.keep(module._Remote(server.url("data")).version, len(DATA))
        module._write(part.file, DATA + b"?")
    fetch(server.url("data"), tmp_path / "data")
    assert content(tmp_path) == {"data": DATA}


def test_ctrl_c_ends_it_at_once_though_the_server_is_silent(server: FileServer, tmp_path: Path) -> None:
    with stalled_child(server, tmp_path / "data") as child:
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=5)  # and the silence is longer
        assert errors.decode().strip().endswith("KeyboardInterrupt")
        assert content(tmp_path)[".data.part"] == DATA[: 4 * SEGMENT]


@pytest.mark.parametrize("new", [OTHER, OTHER[:6_000], DATA[:-1]], ids=["as long", "shorter", "by a byte"])
def test_a_remote_that_changed_since_is_downloaded_from_the_start(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bytes
) -> None:
    stopped_at(server, 7 * SEGMENT, tmp_path / "data", monkeypatch)
    server.files["data"] = new
    fetch(server.url("data"), tmp_path / "data")
    assert content(tmp_path) == {"data": new}
    assert server.served == len(new) + 1


def test_another_address_does_not_go_on_with_the_part_of_the_first(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(server, 7 * SEGMENT, tmp_path / "data", monkeypatch)
    server.files["other"] = OTHER
    server.fault = lambda request: Fault(headers={"ETag": ""})
    fetch(server.url("other"), tmp_path / "data")
    assert content(tmp_path) == {"data": OTHER}


def test_a_remote_that_changes_meanwhile_is_never_mixed(server: FileServer, tmp_path: Path) -> None:
    def change(request: Request) -> Fault | None:
        if request.start == 5 * SEGMENT:
            server.files["data"] = OTHER
        return failing_from(5 * SEGMENT, Fault())(request)

    server.fault = change
    with pytest.raises(UserError, match="changed while it was downloaded; repeat the command to start over"):
        fetch(server.url("data"), tmp_path / "data")
    assert content(tmp_path)[".data.part"] == DATA[: 5 * SEGMENT]
    fetch(server.url("data"), tmp_path / "data")
    assert content(tmp_path) == {"data": OTHER}


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_to_wait_is_heard_up_to_a_limit(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(module, "MAX_ASKED", 0.3)
    busy = [Fault(status=status, headers={"Retry-After": "3600"})]
    server.fault = lambda request: busy.pop() if request.stop != 1 and busy else None
    began = time.monotonic()
    fetch(server.url("data"), tmp_path / "data", digest=digest_of(DATA))
    assert 0.3 < time.monotonic() - began < 1.5


def test_waits_grow_between_tries_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, server: FileServer) -> None:
    monkeypatch.setattr(module, "WAIT", 0.5)
    pauses: list[float] = []

    def job() -> None:
        raise module._Again("no luck")

    remote = module._Remote(server.url("data"))
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(UserError, match="no luck, 9 times in a row"):
        remote.retry(job, tries=9)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]


WRONG = {
    "another part": Fault(headers={"Content-Range": f"bytes 0-{SEGMENT - 1}/{len(DATA)}"}, body=DATA[:SEGMENT]),
    "no part": Fault(headers={"Content-Range": ""}),
    "all of it": Fault(status=200, headers={"Content-Range": ""}, body=DATA),
    "more": Fault(body=DATA),
    "more, unannounced": Fault(
        body=bytes(8 * SEGMENT), headers={"Content-Length": "", "Connection": "close"}, cut=8 * SEGMENT
    ),
    "less": Fault(body=DATA[: SEGMENT - 1]),
    "nothing": Fault(body=b""),
    "a cut": Fault(cut=0),
    "a reset": Fault(cut=0, reset=True),
    "503": Fault(status=503),
    "429": Fault(status=429),
    "500": Fault(status=500),
}


@pytest.mark.parametrize("fault", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_asked_for_again_and_never_appended(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(module, "TRIES", 3)
    server.fault = failing_from(3 * SEGMENT, fault)
    with pytest.raises(UserError, match=r"3 times in a row.*; what has come is kept, so repeat the command"):
        fetch(server.url("data"), tmp_path / "data")
    at_rest()
    assert content(tmp_path)[".data.part"] == DATA[: 3 * SEGMENT]
    assert [request.start for request in server.requests].count(3 * SEGMENT) == 2  # after the cut, which is a try, too

    once = [fault]
    server.fault = lambda request: once.pop() if request.start == 3 * SEGMENT and once else None
    fetch(server.url("data"), tmp_path / "data")
    assert content(tmp_path) == {"data": DATA}


def test_a_silent_server_is_left_after_a_time(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", (1.0, 0.1))
    silences = [threading.Event(), threading.Event()]
    faults = [Fault(until=silences[0]), Fault(cut=300, until=silences[1])]
    server.fault = lambda request: faults.pop() if request.stop != 1 and faults else None
    fetch(server.url("data"), tmp_path / "data")
    assert (tmp_path / "data").read_bytes() == DATA
    for silence in silences:
        silence.set()


def test_a_server_without_ranges_is_read_in_one_go_and_anew_after_a_cut(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(server, 7 * SEGMENT, tmp_path / "data", monkeypatch)  # of which nothing can be used
    server.ranges = False
    faults = [Fault(cut=600), Fault(cut=9_000, reset=True), Fault(status=503)]
    server.fault = lambda request: faults.pop() if request.start is None and faults else None
    fetch(server.url("data"), tmp_path / "data", digest=digest_of(DATA))
    assert content(tmp_path) == {"data": DATA}
    assert [request.start for request in server.requests] == [0, None, None, None, None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_is_seen_though_the_http_library_says_nothing(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    get = module._Remote._get

    def lenient(self: Any, *span: int) -> Any:
        answer = get(self, *span)
        answer.raw.enforce_content_length = False  # as it was by default in urllib3 1
        return answer

    monkeypatch.setattr(module._Remote, "_get", lenient)
    server.ranges = ranges
    faults = [Fault(cut=600), Fault(cut=0)]
    server.fault = lambda request: faults.pop() if request.stop != 1 and faults else None
    fetch(server.url("data"), tmp_path / "data")
    assert content(tmp_path) == {"data": DATA}
    assert not faults


def test_a_length_that_nobody_says_is_no_hindrance(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.fault = lambda request: Fault(headers={"Content-Length": "", "Connection": "close"}, cut=len(DATA))
    fetch(server.url("data"), tmp_path / "data", digest=digest_of(DATA))
    assert content(tmp_path) == {"data": DATA}


def test_an_encoding_that_a_server_adds_by_the_name_is_not_undone(server: FileServer, tmp_path: Path) -> None:
    zipped = gzip.compress(DATA)
    server.files["data.tar.gz"] = zipped
    for server.ranges in (True, False):
        server.fault = lambda request: Fault(headers={"Content-Encoding": "gzip"})
        fetch(server.url("data.tar.gz"), tmp_path / f"{server.ranges}")
        assert (tmp_path / f"{server.ranges}").read_bytes() == zipped


@pytest.mark.parametrize("ranges", [True, False])
def test_wrong_content_is_deleted_and_told(server: FileServer, tmp_path: Path, ranges: bool) -> None:
    server.ranges = ranges
    with pytest.raises(BadInput, match=r"data: what http://.* gives has md5:\w{32} and should have md5:\w{32};"):
        fetch(server.url("data"), tmp_path / "data", digest=digest_of(OTHER, "md5"))
    assert content(tmp_path) == {}
    server.files["data"] = OTHER
    fetch(server.url("data"), tmp_path / "data", digest=digest_of(OTHER, "md5"))
    assert content(tmp_path) == {"data": OTHER}


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault(status=404), r"can't be downloaded \(the server says 404 Not Found\); see in a browser"),
        (Fault(status=403), r"can't be downloaded \(the server says 403 Forbidden\); see in a browser"),
        (Fault(status=503), r"can't be downloaded \(the server says 503 Service Unavailable, 3 times in a row\)"),
        (
            Fault(status=200, body=b"<html>Log in</html>", headers={"Content-Type": "text/html; charset=utf-8"}),
            "gives a web page in place of the file; open it in a browser",
        ),
    ],
)
def test_a_server_that_has_no_such_file_is_told(
    server: FileServer, tmp_path: Path, fault: Fault, sentence: str
) -> None:
    server.fault = lambda request: fault
    with pytest.raises(UserError, match=f"{server.url('data')}: {sentence}"):
        fetch(server.url("data"), tmp_path / "data")
    assert content(tmp_path) == {}


def test_an_address_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(UserError, match=r"can't be downloaded \(Connection refused, 3 times in a row\)"):
            fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/data", tmp_path / "data")
    with pytest.raises(BadInput, match=r"nonsense: can't be downloaded .*No scheme supplied"):
        fetch("nonsense", tmp_path / "data")
    assert content(tmp_path) == {}


def test_where_an_address_leads_is_asked_for_anew_after_a_cut(server: FileServer, tmp_path: Path) -> None:
    def fault(request: Request) -> Fault | None:
        if request.path == "moved":
            return Fault(status=302, headers={"Location": "/data"})
        return failing_from(5 * SEGMENT, Fault())(request)

    server.fault = fault
    server.files["moved"] = b""
    fetch(server.url("moved"), tmp_path / "data")
    assert (tmp_path / "data").read_bytes() == DATA
    assert [request.path for request in server.requests].count("moved") == 3


def test_a_disk_without_room_is_told_before(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(server, 4 * SEGMENT, tmp_path / "data", monkeypatch)
    rest = len(DATA) - 4 * SEGMENT
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=rest - 1))
    with pytest.raises(UserError, match=r"this takes 0\.0 GB more and 0\.0 GB are free; make room"):
        fetch(server.url("data"), tmp_path / "data")
    assert server.served == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=rest))
    fetch(server.url("data"), tmp_path / "data")
    assert content(tmp_path) == {"data": DATA}


def test_a_disk_that_fills_up_is_told_and_what_has_come_is_kept(server: FileServer, tmp_path: Path) -> None:
    with files_of_at_most(4_300), pytest.raises(UserError, match=r"data: can't be read or written \(File too large\)"):
        fetch(server.url("data"), tmp_path / "data")
    at_rest()
    assert content(tmp_path)[".data.part"] == DATA[:4_300]
    server.reset()
    fetch(server.url("data"), tmp_path / "data", digest=digest_of(DATA))
    assert content(tmp_path) == {"data": DATA}
    assert server.served == len(DATA) - 4_300 + 1


def test_a_folder_that_can_t_be_made_is_a_sentence(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: can't be read or written \(File exists\)"):
        fetch(server.url("data"), tmp_path / "file" / "data")


def test_a_file_that_is_there_is_held_against_its_digest_and_not_asked_for(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(OTHER)
    fetch(server.url("data"), tmp_path / "data")
    fetch(server.url("data"), tmp_path / "data", digest=digest_of(OTHER))
    with pytest.raises(BadInput, match=r"data: has sha256:\w{64} and should have sha256:\w{64}; it is damaged"):
        fetch(server.url("data"), tmp_path / "data", digest=digest_of(DATA))
    assert content(tmp_path) == {"data": OTHER}
    assert server.requests == []


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_digest_is_verified(tmp_path: Path, algorithm: str) -> None:
    (tmp_path / "data").write_bytes(DATA)
    check_digest(tmp_path / "data", digest_of(DATA, algorithm))
    with pytest.raises(BadInput, match=f"has {digest_of(DATA, algorithm)} and"):
        check_digest(tmp_path / "data", digest_of(DATA[:-1], algorithm))
    with pytest.raises(UserError, match="No such file"):
        check_digest(tmp_path / "none", digest_of(DATA))


# Members of a remote zip

NAMES = ("set/a.wav", "set/b.wav", "set/c.csv", "set/d.csv", "set/empty")
FILES = dict(zip(NAMES, (DATA, OTHER, CSV, CSV[::-1], b"")))
PLACES = {name: Path(name.removeprefix("set/")) for name in NAMES}
PLACED = {str(PLACES[name]): content for name, content in FILES.items()}


def zip_of(files: dict[str, bytes], file: Any = None) -> bytes:
    """A zip with all kinds of members: stored and deflated in turn, some with zip64's long sizes."""
    buffer = io.BytesIO() if file is None else file
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.mkdir("set")
        for number, (name, data) in enumerate(files.items()):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            with archive.open(info, "w", force_zip64=number % 3 == 0) as member:
                member.write(data)
    return buffer.getvalue() if file is None else b""


def test_members_of_a_remote_zip_arrive(server: FileServer, tmp_path: Path) -> None:
    server.files["set.zip"] = zip_of(FILES)
    remote = RemoteZip(server.url("set.zip"))
    assert {name: info.file_size for name, info in remote.members.items()} == {n: len(d) for n, d in FILES.items()}
    assert len(server.requests) == 2  # what it is, and its table of contents
    remote.fetch(PLACES, tmp_path / "data")
    assert content(tmp_path) == {f"data/{name}": data for name, data in PLACED.items()}

    before = len(server.requests)
    remote.fetch(PLACES, tmp_path / "data")
    assert len(server.requests) == before
    (tmp_path / "data" / "b.wav").unlink()
    (tmp_path / "data" / "c.csv").write_bytes(CSV[:-1])
    remote.fetch(PLACES, tmp_path / "data")
    assert content(tmp_path / "data") == PLACED
    asked = {name: remote.members[name].compress_size for name in ("set/b.wav", "set/c.csv")}
    spans = [request.stop - request.start for request in server.requests[before:]]  # type: ignore[operator]
    assert sum(spans) < sum(asked.values()) + 2 * 100  # with their headers


def test_a_zip_beyond_4_gib_is_read_at_its_end_alone(server: FileServer, tmp_path: Path) -> None:
    with (tmp_path / "large.zip").open("w+b") as file:
        file.seek(5 * 2**30)  # a hole, which takes no disk
        zip_of(FILES, file)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as large:
            server.files["large.zip"] = large  # type: ignore[assignment]
            remote = RemoteZip(server.url("large.zip"))
            assert min(info.header_offset for info in remote.members.values()) > 5 * 2**30
            remote.fetch(PLACES, tmp_path / "data")
    assert content(tmp_path / "data") == PLACED
    assert server.served < 2**20 + 2 * sum(map(len, FILES.values()))


def test_many_small_members_are_fetched_side_by_side(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 4)
    files = {f"set/{number}": DATA[:number] for number in range(50)}
    server.files["set.zip"] = zip_of(files)
    remote = RemoteZip(server.url("set.zip"))
    together = threading.Event()

    def fault(request: Request) -> Fault:
        if len(server.requests) == 4:
            together.set()
        return Fault(until=together)

    server.requests.clear()
    server.fault = fault
    remote.fetch({name: Path(name) for name in files}, tmp_path)
    assert server.most_at_once == 4
    assert content(tmp_path) == files


def test_a_stopped_fetch_of_members_goes_on_within_the_member(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["set.zip"] = zip_of(FILES)
    remote = RemoteZip(server.url("set.zip"))
    second = remote.members["set/b.wav"]
    server.fault = failing_from(second.header_offset + 4_000, Fault(cut=0))
    with few_tries(monkeypatch), pytest.raises(UserError, match="2 times"):
        remote.fetch({name: PLACES[name] for name in NAMES[:2]}, tmp_path)
    assert (tmp_path / "a.wav").read_bytes() == DATA
    assert len(content(tmp_path)[".b.wav.part"]) == 4 * SEGMENT
    server.reset()
    RemoteZip(server.url("set.zip")).fetch({name: PLACES[name] for name in NAMES[:2]}, tmp_path)
    assert content(tmp_path) == {"a.wav": DATA, "b.wav": OTHER}
    spans = [request.stop - request.start for request in server.requests[2:]]  # type: ignore[operator]
    assert second.compress_size < sum(spans) + 4 * SEGMENT < second.compress_size + 100


def test_what_came_of_a_member_is_gone_when_the_member_has_its_name(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["set.zip"] = zip_of(FILES)
    there, replace = [], os.replace

    def replace_and_look(source: Path, target: Path) -> None:
        replace(source, target)  # a kill at this moment
        there.extend(path.name for path in (tmp_path / "data").rglob(f".{Path(target).name}.*"))

    monkeypatch.setattr(os, "replace", replace_and_look)
    RemoteZip(server.url("set.zip")).fetch(PLACES, tmp_path / "data")
    assert content(tmp_path / "data") == PLACED
    assert there == []


def test_a_part_of_another_member_or_another_zip_is_not_gone_on_with(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for files, name in [(FILES, "set/b.wav"), ({"set/a.wav": OTHER}, "set/a.wav")]:
        server.reset()
        server.files["set.zip"] = zip_of(FILES)
        remote = RemoteZip(server.url("set.zip"))
        server.fault = failing_from(remote.members["set/a.wav"].header_offset + 4_000, Fault(cut=0))
        with few_tries(monkeypatch), pytest.raises(UserError):
            remote.fetch({"set/a.wav": Path("a")}, tmp_path)
        assert len(content(tmp_path)[".a.part"]) == 4 * SEGMENT
        server.reset()
        server.files["set.zip"] = zip_of(files)
        RemoteZip(server.url("set.zip")).fetch({name: Path("a")}, tmp_path)
        assert content(tmp_path) == {"a": files[name]}
        (tmp_path / "a").unlink()


def test_a_fetch_of_members_that_failed_asks_for_no_more(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    files = {f"set/{number}": DATA for number in range(9)}
    server.files["set.zip"] = zip_of(files)
    remote, others = RemoteZip(server.url("set.zip")), threading.Event()
    server.requests.clear()
    first = remote.members["set/0"].header_offset
    server.fault = lambda request: Fault(status=404) if request.start == first else Fault(until=others)
    with pytest.raises(BadInput, match="404"):
        remote.fetch({name: Path(name) for name in files}, tmp_path)
    others.set()
    at_rest()
    assert len(server.requests) <= 3  # of nine


@pytest.mark.parametrize("name", ["set/a.wav", "set/b.wav"], ids=["stored", "deflated"])
def test_a_damaged_member_is_told_and_fetched_anew(server: FileServer, tmp_path: Path, name: str) -> None:
    good = zip_of(FILES)
    bad = bytearray(good)
    bad[good.index(DATA if name == "set/a.wav" else OTHER[:50]) + 40] ^= 1  # random bytes are stored by deflate, too
    server.files["set.zip"] = bytes(bad)
    with pytest.raises(BadInput, match=rf"set\.zip: {name}: is damaged \(.*\); repeat the command, and if that"):
        RemoteZip(server.url("set.zip")).fetch({name: PLACES[name]}, tmp_path)
    assert content(tmp_path) == {}
    server.files["set.zip"] = good
    RemoteZip(server.url("set.zip")).fetch({name: PLACES[name]}, tmp_path)
    assert content(tmp_path) == {PLACES[name].name: FILES[name]}


def lying(archive: bytes, true_size: int, size: int) -> bytes:
    """A zip whose table of contents gives a member of one size another."""
    table = archive.index(b"PK\1\2")
    place = archive.index(struct.pack("<I", true_size), table)
    return archive[:place] + struct.pack("<I", size) + archive[place + 4 :]


@pytest.mark.parametrize("size", [100, 10**9], ids=["less", "more"])
def test_a_remote_member_of_another_size_than_declared_is_refused(
    server: FileServer, tmp_path: Path, size: int
) -> None:
    server.files["set.zip"] = lying(zip_of({"a": b"", "b": bytes(10**6)}), 10**6, size)
    with pytest.raises(BadInput, match=MORE_THAN_STATED):
        RemoteZip(server.url("set.zip")).fetch({"b": Path("b")}, tmp_path)
    assert content(tmp_path) == {}


def test_a_server_without_ranges_can_t_give_members(server: FileServer) -> None:
    server.files["set.zip"] = zip_of(FILES)
    server.ranges = False
    with pytest.raises(UserError, match=r"gives this archive as a whole only; download it by other means.*folder"):
        RemoteZip(server.url("set.zip"))


@pytest.mark.parametrize("data", [DATA, zip_of(FILES)[:-30], zip_of(FILES)[50:-300], b"PK"])
def test_what_is_no_zip_is_told(server: FileServer, data: bytes) -> None:
    server.files["set.zip"] = data
    with pytest.raises(BadInput, match=r"set\.zip: is damaged"):
        RemoteZip(server.url("set.zip"))


def test_members_that_are_absent_or_leave_the_folder_are_refused(server: FileServer, tmp_path: Path) -> None:
    server.files["set.zip"] = zip_of({"../evil": DATA, "/etc/evil": DATA, "good": DATA})
    remote = RemoteZip(server.url("set.zip"))
    before = len(server.requests)
    for name in ("../evil", "/etc/evil"):
        with pytest.raises(BadInput, match=f"{name}: would be written outside"):
            remote.fetch({"good": Path("good"), name: Path(name)}, tmp_path / "folder")
    with pytest.raises(BadInput, match="has no member other"):
        remote.fetch({"good": Path("good"), "other": Path("other")}, tmp_path / "folder")
    assert len(server.requests) == before
    assert content(tmp_path) == {}


def test_room_for_all_members_and_some_compressed_is_asked_for(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    server.files["set.zip"] = zip_of(FILES)
    remote = RemoteZip(server.url("set.zip"))
    sizes = [remote._ends[info.header_offset] - info.header_offset for info in remote.members.values()]
    need = sum(map(len, FILES.values())) + sum(sorted(sizes)[-2:])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need - 1))
    with pytest.raises(UserError, match="make room"):
        remote.fetch(PLACES, tmp_path)
    assert content(tmp_path) == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need))
    remote.fetch(PLACES, tmp_path)
    assert content(tmp_path) == PLACED


# Archives on the disk


def tar_of(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("set")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for member in members:
            archive.addfile(member)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def archive_of(files: dict[str, bytes], suffix: str, *members: tarfile.TarInfo) -> bytes:
    if suffix == ".zip":
        return zip_of(files)
    return tar_of(files, *members) if suffix == ".tar" else gzip.compress(tar_of(files, *members))


SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
GOOD = {suffix: archive_of(FILES, suffix) for suffix in SUFFIXES}


def inside(name: str) -> Path:
    return Path(name.removeprefix("set/"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_wanted_of_an_archive_is_taken(tmp_path: Path, suffix: str) -> None:
    archive, folder = tmp_path / f"set{suffix}", tmp_path / "data"
    archive.write_bytes(GOOD[suffix])
    extract(archive, folder, lambda name: Path("csv", Path(name).name) if name.endswith(".csv") else None)
    assert content(folder) == {"csv/c.csv": CSV, "csv/d.csv": CSV[::-1]}
    extract(archive, folder, inside, limit=sum(map(len, FILES.values())))
    assert content(folder) == PLACED | {"csv/c.csv": CSV, "csv/d.csv": CSV[::-1]}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_stopped_extraction_goes_on(tmp_path: Path, suffix: str) -> None:
    archive, folder = tmp_path / f"set{suffix}", tmp_path / "data"
    archive.write_bytes(archive_of(FILES | {"set/e": DATA * 3}, suffix))
    with (
        files_of_at_most(3 * len(DATA) - 1),
        pytest.raises(UserError, match=r"data.*: can't .* \(File too large\); what"),
    ):
        extract(archive, folder, inside)
    assert content(folder) == PLACED
    kept = {name: (folder / name).stat().st_mtime_ns for name in PLACED}
    (folder / ".e.new").write_bytes(b"what a kill leaves")
    (folder / "a.wav").write_bytes(b"too short")
    extract(archive, folder, inside)
    assert content(folder) == PLACED | {"e": DATA * 3}
    assert {name for name, at in kept.items() if (folder / name).stat().st_mtime_ns != at} == {"a.wav"}


def test_room_for_a_zip_is_asked_for_before_and_for_a_tar_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [len(data) for data in FILES.values()]
    for suffix, free in [(".zip", sum(sizes)), (".tar.gz", max(sizes))]:
        archive, folder = tmp_path / f"set{suffix}", tmp_path / suffix
        archive.write_bytes(GOOD[suffix])
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free - 1))
        with pytest.raises(UserError, match="make room"):
            extract(archive, folder, inside)
        assert content(folder) == {}
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        extract(archive, folder, inside)
        assert content(folder) == PLACED


def member_of(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("name", ["../evil", "set/../../evil", "/tmp/evil", ".", "set/.."])
def test_a_name_that_leaves_the_folder_is_refused_unless_unwanted(tmp_path: Path, suffix: str, name: str) -> None:
    archive, folder = tmp_path / f"set{suffix}", tmp_path / "in" / "data"
    archive.write_bytes(archive_of({name: DATA, "good": CSV}, suffix))
    before = content(tmp_path)
    with pytest.raises(BadInput, match="would be written outside of"):
        extract(archive, folder, Path)
    assert content(tmp_path) == before
    extract(archive, folder, lambda name: Path(name) if name == "good" else None)
    assert content(folder) == {"good": CSV}


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused_unless_unwanted_and_never_followed(
    tmp_path: Path, suffix: str, kind: bytes
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "evil").write_bytes(b"as it was")
    archive, folder = tmp_path / f"set{suffix}", tmp_path / "data"
    files = {"door/evil": DATA}
    archive.write_bytes(archive_of(files, suffix, member_of("door", kind, str(outside))))
    with pytest.raises(BadInput, match="door is a link or a device"):
        extract(archive, folder, Path)
    assert content(folder) == {}
    extract(archive, folder, lambda name: Path(name) if name != "door" else None)
    assert content(folder) == files
    assert not (folder / "door").is_symlink()
    assert content(outside) == {"evil": b"as it was"}


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        info = zipfile.ZipInfo("door")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/tmp")
    with pytest.raises(BadInput, match="door is a link or a device"):
        extract(tmp_path / "set.zip", tmp_path / "data", Path)


@pytest.mark.parametrize("size", [100, 10**9], ids=["less", "more"])
def test_a_zip_that_lies_about_a_size_leaves_nothing(tmp_path: Path, size: int) -> None:
    (tmp_path / "set.zip").write_bytes(lying(zip_of({"a": b"", "b": bytes(10**6)}), 10**6, size))
    with pytest.raises(BadInput, match=MORE_THAN_STATED):
        extract(tmp_path / "set.zip", tmp_path / "data", inside, limit=10**9)
    assert content(tmp_path / "data") == {}


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_more_than_the_limit_is_not_written(tmp_path: Path, suffix: str) -> None:
    archive, folder = tmp_path / f"set{suffix}", tmp_path / "data"
    bomb = {"set/a": CSV, "set/b": bytes(6 * 10**7)}
    archive.write_bytes(archive_of(bomb, suffix) if suffix == ".tgz" else zip_of(bomb))
    with pytest.raises(BadInput, match=r"has more than the 0\.1 GB that it may \(0\.1 with set/b\)"):
        extract(archive, folder, inside, limit=len(CSV) + 6 * 10**7 - 1)
    assert content(folder) == {}
    extract(archive, folder, lambda name: Path("a") if name == "set/a" else None, limit=len(CSV))
    assert content(folder) == {"a": CSV}


def test_a_tar_that_would_be_read_for_ever_is_refused(tmp_path: Path) -> None:
    whole = bytearray(tar_of({"a": CSV, "b": CSV}))
    header = whole.index(b"b\0")
    whole[header + 124 : header + 136] = b"\xff" * 10 + (2**16 - 2_048).to_bytes(2, "big")  # less than 0, in base 256
    checksum = sum(whole[header : header + 148]) + 8 * 32 + sum(whole[header + 156 : header + 512])
    whole[header + 148 : header + 156] = f"{checksum:06o}\0 ".encode()
    (tmp_path / "set.tar").write_bytes(whole)
    with pytest.raises(BadInput, match="less than no bytes"):
        extract(tmp_path / "set.tar", tmp_path / "data", lambda name: None)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_tar_does_not_end_at_a_member_that_can_t_be_read(tmp_path: Path, name: str) -> None:
    data = bytearray(GOOD[".tar"])
    data[data.index(name.encode()) + 1] ^= 1
    (tmp_path / "set.tar").write_bytes(data)
    with pytest.raises(BadInput, match="is damaged"):
        extract(tmp_path / "set.tar", tmp_path / "data", inside)
    assert content(tmp_path / "data") == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_archive_is_told(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"set{suffix}"
    with pytest.raises(BadInput, match=r"there is no \.zip, \.tar"):
        extract(archive, tmp_path / "data", inside)
    for data in (b"", DATA, b"<html>", gzip.compress(DATA), b"\x1f\x8b" + DATA):
        archive.write_bytes(data)
        with pytest.raises(BadInput, match=rf"set{suffix}: is damaged \(.+\); delete it, get it anew"):
            extract(archive, tmp_path / "data", inside)
    assert content(tmp_path / "data") == {}
    with pytest.raises(BadInput, match=r"there is no \.zip, \.tar"):
        extract(Path(shutil.copy(archive, tmp_path / "set.rar")), tmp_path / "data", inside)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([".zip", ".tar", ".tgz"]), st.floats(0, 1), st.booleans(), st.integers(0, 7))
@example(".tgz", 1.0, True, 0)
def test_a_damaged_archive_is_a_sentence_and_gives_nothing_half(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, place: float, cut: bool, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    archive = folder / f"set{suffix}"
    data = bytearray(GOOD[suffix])
    at = min(int(place * len(data)), len(data) - 1)
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    archive.write_bytes(data)
    sentence = ""
    try:
        extract(archive, folder / "data", lambda name: inside(name) if name in FILES else None)
    except UserError as error:
        sentence = str(error)
    found = content(folder / "data")
    if suffix == ".tar" and not cut:  # which has no checksum for content
        return
    assert found == {} if sentence else found.items() <= PLACED.items()
    if cut and suffix != ".tar":
        assert "is damaged" in sentence
    if suffix == ".tgz" and not sentence:  # a bit that says nothing, such as of a time
        assert found == PLACED
