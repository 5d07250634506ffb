"""A file server on the loopback interface that fails in the ways in which servers and networks fail."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What was asked for.

    Attributes:
        path: without its "/".
        start: first byte of the range, or None.
        stop: the byte after the last, or None.
    """

    path: str
    start: int | None
    stop: int | None


@dataclass(frozen=True)
class Fault:
    """How an answer differs from a good one.

    Attributes:
        status: in place of 200 or 206; the body is then `body` or nothing.
        headers: over the usual ones; "" leaves one out.
        body: in place of the bytes that were asked for.
        cut: body bytes after which the connection is closed.
        reset: whether that is a reset (a packet that says so), not an end.
        until: wait for this before the body is sent, or after `cut` bytes of it.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    reset: bool = False
    until: threading.Event | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # such as of a client that has gone
            super().handle_error(request, client_address)


class FileServer:
    """Serves `files` by name, and counts.

    Attributes:
        files: content by path; may be changed at any time.
        ranges: whether it heeds the Range header.
        fault: asked at each request for what shall go wrong with it.
        requests: all that came, in order.
        most_at_once: the largest number of requests that were answered at one time.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self._lock = threading.Condition()
        self._at_once = 0
        self.reset()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10
            disable_nagle_algorithm = True
            server_: FileServer = self

            def do_GET(self) -> None:
                with self.server_._counted():
                    self.server_._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def reset(self) -> None:
        """Forget counts and faults."""
        self._rest()
        self.ranges = True
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.requests: list[Request] = []
        self._served = self.most_at_once = 0

    @property
    def served(self) -> int:
        """Bytes of bodies that were sent, when no request is being answered any more."""
        self._rest()
        return self._served

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _rest(self) -> None:
        with self._lock:
            assert self._lock.wait_for(lambda: self._at_once == 0, 10)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1
                self._lock.notify_all()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/").partition("?")[0]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        request = Request(path, int(asked[1]), int(asked[2]) + 1) if asked else Request(path, None, None)
        with self._lock:
            self.requests.append(request)
            fault = self.fault(request) or Fault()
        content = self.files.get(path)
        status, body, headers = 200, content or b"", {"Content-Type": "application/octet-stream"}
        if content is None:
            status = 404
        else:
            headers |= {"ETag": f'"{hash(content):x}"', "Accept-Ranges": "bytes" if self.ranges else "none"}
            if self.ranges and request.start is not None and request.stop is not None:
                stop = min(request.stop, len(content))
                if request.start < stop:
                    status, body = 206, content[request.start : stop]
                    headers["Content-Range"] = f"bytes {request.start}-{stop - 1}/{len(content)}"
                else:
                    status, body = 416, b""
                    headers["Content-Range"] = f"bytes */{len(content)}"
        if fault.status is not None:
            status, body = fault.status, b""
        if fault.body is not None:
            body = fault.body
        headers |= {"Content-Length": str(len(body))} | fault.headers
        try:
            handler.send_response(status)
            for name, value in headers.items():
                if value:
                    handler.send_header(name, value)
            handler.end_headers()
            if fault.cut is not None:
                self._send(handler, body[: fault.cut])
            if fault.until is not None:
                fault.until.wait(10)
            if fault.cut is None:
                self._send(handler, body)
            else:
                handler.close_connection = True
                if fault.reset:
                    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    os.close(handler.connection.detach())
        except OSError:  # the client has gone
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        for first in range(0, len(body), 2**16):
            block = body[first : first + 2**16]
            with self._lock:
                self._served += len(block)
            handler.wfile.write(block)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[FileServer]:
    """A server as long as the block lasts."""
    server = FileServer(files)
    try:
        yield server
    finally:
        server.close()
