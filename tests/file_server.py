"""A server of files that has all the bad habits of servers, each when it is asked to."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Habits:
    """How files are served; the lists say so for one request after another."""

    # Statuses answered instead of a file.
    statuses: list[int] = field(default_factory=list)
    # Bytes after which the connection is cut.
    cuts: list[int] = field(default_factory=list)
    # Requests that are answered with headers, and with no body while the server lives.
    silent: int = 0
    # The same of HEAD requests, which get no headers either.
    silent_heads: int = 0
    # Where a request is led on to.
    redirects: list[str] = field(default_factory=list)
    # Seconds between two pieces of 4096 bytes.
    pause: float = 0.0
    corrupt: bool = False
    ranges: bool = True
    tagged: bool = True
    told_length: bool = True
    # Whether a part is served whatever version was asked for.
    careless: bool = False
    packed: bool = False


@dataclass
class Request:
    """One that came, and what it got."""

    path: str
    asked: str | None
    authorization: str | None
    status: int = 0
    sent: int = 0


class Files:
    """What `send_file` needs of a server."""

    def __init__(self) -> None:
        self.habits = Habits()
        self.downloads: list[Request] = []
        self.heads: list[Request] = []
        # Bodies go on after their first piece when it is set.
        self.gate = threading.Event()
        self.gate.set()
        self.ended = threading.Event()

    @property
    def sent(self) -> list[int]:
        """Bytes of each answer, in order."""
        return [request.sent for request in self.downloads]


def send_file(
    handler: BaseHTTPRequestHandler,
    files: Files,
    data: bytes,
    tag: str,
    more: dict[str, str] | None = None,
) -> None:
    """Answer with a file or what is asked of it, in the way of the habits."""
    habits = files.habits
    request = Request(
        handler.path, handler.headers.get("Range"), handler.headers.get("Authorization")
    )
    body = handler.command != "HEAD"
    # What is asked by HEAD is no download.
    (files.downloads if body else files.heads).append(request)
    if habits.statuses:
        request.status = habits.statuses.pop(0)
        return _send_empty(handler, request.status, more or {})
    if habits.redirects:
        request.status = 302
        return _send_empty(handler, 302, {"Location": habits.redirects.pop(0), **(more or {})})
    # Before the answer begins: whoever gets it may change the habits.
    cut = habits.cuts.pop(0) if habits.cuts and body else len(data)
    if not body and habits.silent_heads:
        habits.silent_heads -= 1
        files.ended.wait()
        return None
    silent = body and habits.silent > 0
    habits.silent -= silent
    start = _first_byte(handler, habits, tag)
    if habits.corrupt:
        data = bytes(byte ^ 0x55 for byte in data[:64]) + data[64:]
    request.status = 200 if start is None else 206
    handler.send_response(request.status)
    for name, value in {**_headers(habits, data, tag, start), **(more or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if silent:
        files.ended.wait()
    if body:
        _send_body(handler, files, request, data[start or 0 :][:cut])
    return None


def _first_byte(handler: BaseHTTPRequestHandler, habits: Habits, tag: str) -> int | None:
    asked = handler.headers.get("Range")
    if asked is None or not habits.ranges:
        return None
    if not habits.careless and handler.headers.get("If-Range") != f'"{tag}"':
        return None
    return int(asked.removeprefix("bytes=").rstrip("-"))


def _headers(habits: Habits, data: bytes, tag: str, start: int | None) -> dict[str, str]:
    headers = {"Connection": "close"}
    if habits.told_length:
        headers["Content-Length"] = str(len(data) - (start or 0))
    if habits.tagged:
        headers["ETag"] = f'"{tag}"'
    if start is not None:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    if habits.packed:
        headers["Content-Encoding"] = "gzip"
    return headers


def _send_empty(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in {**headers, "Content-Length": "0"}.items():
        handler.send_header(name, value)
    handler.end_headers()


def _send_body(
    handler: BaseHTTPRequestHandler, files: Files, request: Request, data: bytes
) -> None:
    handler.close_connection = True
    for first in range(0, len(data), 4096):
        piece = data[first : first + 4096]
        # Before it is sent: whoever has all of it may look at once.
        request.sent += len(piece)
        try:
            handler.wfile.write(piece)
            handler.wfile.flush()
        except OSError:
            # Whoever asked has gone.
            request.sent -= len(piece)
            return
        time.sleep(files.habits.pause)
        files.gate.wait()


class FileServer(ThreadingHTTPServer, Files):
    """Files by path."""

    daemon_threads = True

    def __init__(self) -> None:
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), _Handler)
        Files.__init__(self)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, bytes] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        data = self.server.files.get(self.path.strip("/"))
        if data is None:
            self.server.downloads.append(Request(self.path, None, None, 404))
            return _send_empty(self, 404, {})
        return send_file(self, self.server, data, hashlib.sha256(data).hexdigest())

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def running_file_server() -> Iterator[FileServer]:
    """A server that answers while the context lasts."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.gate.set()
            server.shutdown()
            thread.join()
