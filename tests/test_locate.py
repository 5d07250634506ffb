"""A checkpoint at an address comes by https, whole, in bounded time and size, or not at all."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from standins.files import Fault, serving
from wavespace import locate as places
from wavespace.errors import BadCheckpoint, UserError
from wavespace.locate import locate


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAVESPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WAVESPACE_ALLOW_HTTP", "1")  # of the loopback interface
    return tmp_path / "cache"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    torch.save({"weight": torch.randn(1000)}, tmp_path / "given.ckpt")
    return (tmp_path / "given.ckpt").read_bytes()


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("scheme", ["http", "HTTP", "ftp", "file", "gopher"])
def test_other_schemes_are_refused(scheme: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAVESPACE_ALLOW_HTTP")
    with pytest.raises(UserError, match=r"by https.*WAVESPACE_ALLOW_HTTP=1"):
        locate(f"{scheme}://127.0.0.1/model.ckpt")
    assert not kept(cache)


@pytest.mark.parametrize("name", ["model.ckpt", "a/..%2f..%2fx.ckpt?b=c/../d", "", "..", "é%20日.ckpt"])
def test_it_is_kept_once_and_inside_the_cache(name: str, cache: Path, content: bytes) -> None:
    with serving({}) as server:
        server.fault = lambda request: Fault(status=200, body=content)
        found = locate(server.url(name))
        assert found.read_bytes() == content
        assert found.resolve().is_relative_to(cache.resolve())
        assert len(server.requests) == 1
    assert locate(server.url(name)) == found  # the server is gone
    assert kept(cache) == [found]


@pytest.mark.parametrize("bad", ["cut", "damaged", "empty", "another file", "404"])
def test_what_is_no_checkpoint_is_not_kept_and_its_address_works_later(bad: str, cache: Path, content: bytes) -> None:
    damaged = bytearray(content)
    damaged[content.index(b"data/0") + 100] ^= 1
    with serving({"model.ckpt": content}) as server:
        faults = {
            "cut": Fault(cut=len(content) // 2),
            "damaged": Fault(body=bytes(damaged)),
            "empty": Fault(body=b""),
            "another file": Fault(body=b"<html>log in</html>"),
            "404": Fault(status=404),
        }
        server.fault = lambda request: faults[bad]
        with pytest.raises(UserError) as told:
            locate(server.url("model.ckpt"))
        assert str(told.value).startswith(server.url("model.ckpt"))
        assert not kept(cache)
        server.reset()
        assert locate(server.url("model.ckpt")).read_bytes() == content


def test_what_is_damaged_in_the_cache_is_downloaded_anew(cache: Path, content: bytes) -> None:
    with serving({"model.ckpt": content}) as server:
        found = locate(server.url("model.ckpt"))
        found.write_bytes(content[:100])
        assert locate(server.url("model.ckpt")).read_bytes() == content


@pytest.mark.parametrize(
    "location", ["file:///etc/hostname", "ftp://127.0.0.1/x", "gopher://127.0.0.1/", "/model.ckpt"]
)
def test_a_redirect_to_another_scheme_and_a_circle_are_refused(location: str, cache: Path, content: bytes) -> None:
    with serving({"model.ckpt": content}) as server:
        server.fault = lambda request: Fault(status=302, headers={"Location": location})
        with pytest.raises(UserError, match=r"leads (to|from)"):
            locate(server.url("model.ckpt"))
    assert not kept(cache)


def test_a_redirect_from_https_to_http_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from requests import Response
    from requests.adapters import HTTPAdapter

    asked: list[str] = []

    def send(self: HTTPAdapter, request: Any, **_: Any) -> Response:
        asked.append(request.url)
        answer = Response()
        answer.raw = io.BytesIO()
        answer.status_code, answer.headers["Location"] = 302, "http://127.0.0.1/model.ckpt"
        return answer

    monkeypatch.setattr(HTTPAdapter, "send", send)
    with pytest.raises(UserError, match="which is not https"):
        locate("https://example.invalid/model.ckpt")
    assert asked == ["https://example.invalid/model.ckpt"]


@contextmanager
def streaming(status: int, blocks: Iterator[bytes], pause: float = 0.0) -> Iterator[str]:
    """A server that gives blocks for as long as it is asked, without a length."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/")
            self.end_headers()
            try:
                for block in blocks:
                    self.wfile.write(block)
                    if over.wait(pause):
                        return
            except OSError:  # the client has gone
                pass

        def log_message(self, *_: object) -> None:
            pass

    over = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/model.ckpt"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [200, 302])
def test_an_endless_stream_is_refused(status: int, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MOST_BYTES", 5_000_000)
    told = pytest.raises(UserError, match=r"gives more than 0\.005 GB|leads from address to address")
    with streaming(status, itertools.repeat(b"PK\3\4" * 2**14)) as url, told:
        locate(url)
    assert not kept(cache)


def test_a_server_that_drips_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "FIRST_SECONDS", 0.5)
    start = time.monotonic()
    with streaming(200, itertools.repeat(b"P"), pause=0.05) as url, pytest.raises(UserError, match="comes too slowly"):
        locate(url)
    assert time.monotonic() - start < 10
    assert not kept(cache)


def test_a_length_beyond_the_limit_is_refused_before_it_comes(
    cache: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MOST_BYTES", 100)
    with serving({"model.ckpt": content}) as server, pytest.raises(UserError, match="gives more than"):
        locate(server.url("model.ckpt"))


def test_what_came_is_still_a_strangers(cache: Path, tmp_path: Path) -> None:
    import wavespace

    with serving({"model.ckpt": b"PK\3\4"}) as server, pytest.raises(BadCheckpoint, match="nothing of it was kept"):
        wavespace.load(server.url("model.ckpt"))
