"""A visitor who speaks to a served page in plain HTTP and notes what came back."""

import itertools
import json
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from tests.security.encoded_pictures import encoded_pictures

# Strategy, fit, model, size and view of `/reconstruct`, after picture, mask ratio and seed.
CONTROLS: list[Any] = ["random", "crop", "small-random", None, "estimated", None]
GOOD = encoded_pictures()["png"]

_visitors = itertools.count()


@dataclass(frozen=True)
class Outcome:
    """What a visitor sees.

    Attributes:
        status: "picture", "error" (a sentence at the end of an event stream), an HTTP status, or
            "closed" where the server hung up.
        text: The sentence, the body, or what is answered with a picture: a JSON list.
    """

    status: str
    text: str = ""

    def __str__(self) -> str:
        shown = " ".join(self.text.split())
        return self.status if self.status == "picture" else f"{self.status}: {shown[:160]}"


class Attacker:
    """One visitor, with an address of its own where loopback has more than one."""

    def __init__(self, url: str) -> None:
        number = next(_visitors)
        # So that one attack's flood limit is none of the next.
        address = f"127.1.{number // 200}.{number % 200 + 1}" if sys.platform == "linux" else None
        self.url = url
        self.host, self.port = url.removeprefix("http://").split(":")
        # Loading certificates takes longer than most attacks, and nothing here is encrypted.
        transport = httpx.HTTPTransport(
            local_address=address,
            verify=False,
            # The server closes a connection after an error, which the next request would notice.
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self._source = (address, 0) if address else None
        self.http = httpx.Client(base_url=url, transport=transport, timeout=30)

    def close(self) -> None:
        self.http.close()

    def good(self, path: str, seed: int) -> Outcome:
        """Have an uploaded picture reconstructed."""
        return self.call([self.reference(path), 0.75, seed, *CONTROLS])

    def upload(self, data: bytes, name: str = "picture.png") -> str:
        """The path of a file on the server."""
        answer = self.http.post("/gradio_api/upload", files={"files": (name, data)})
        return str(answer.raise_for_status().json()[0])

    def reference(self, path: str) -> dict[str, Any]:
        """How a call names an uploaded file."""
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def picture(self, data: bytes, name: str = "picture.png") -> Outcome:
        """Upload a file and have it reconstructed."""
        answer = self.http.post("/gradio_api/upload", files={"files": (name, data)})
        if answer.status_code != 200:
            return Outcome(str(answer.status_code), answer.text)
        return self.good(answer.json()[0], 0)

    def call(self, values: list[Any]) -> Outcome:
        """Reconstruct with any values."""
        return self.body(json.dumps({"data": values}))

    def body(self, body: str | bytes, **headers: str) -> Outcome:
        """Post any body to `/call/reconstruct`, and read its events to the end."""
        path = "/gradio_api/call/reconstruct"
        answer = self.http.post(
            path, content=body, headers={"content-type": "application/json", **headers}
        )
        if answer.status_code != 200:
            return Outcome(str(answer.status_code), answer.text)
        return self.events(f"{path}/{answer.json()['event_id']}")

    def events(self, path: str) -> Outcome:
        """How an event stream ends."""
        status, lines = self.stream(path)
        kind, data = "", ""
        for line in lines:
            name, _, value = line.partition(": ")
            kind, data = (value, data) if name == "event" else (kind, value or data)
        if status == 200 and kind == "complete":
            return Outcome("picture", data)
        return Outcome("error" if kind == "error" else str(status), data)

    def stream(self, path: str) -> tuple[int, list[str]]:
        """The status and the lines of an event stream, which the server may break off."""
        lines: list[str] = []
        with self.http.stream("GET", path) as answer, suppress(httpx.RemoteProtocolError):
            lines.extend(answer.iter_lines())
        return answer.status_code, lines

    def join(self, body: Mapping[str, Any]) -> Outcome:
        """Put an event into the queue as the page does, and wait for its end."""
        answer = self.http.post("/gradio_api/queue/join", json=dict(body))
        if answer.status_code != 200:
            return Outcome(str(answer.status_code), answer.text)
        session = quote(str(body["session_hash"]), safe="")
        _, lines = self.stream(f"/gradio_api/queue/data?session_hash={session}")
        messages = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        output = next((m["output"] for m in reversed(messages) if "output" in m), messages)
        kind = "error" if "error" in json.dumps(output) else "picture"
        return Outcome(kind, json.dumps(output))

    def request(self, method: str, path: str, **options: Any) -> Outcome:
        """Any request, whose path is sent as it is."""
        url = httpx.URL(self.url).copy_with(raw_path=path.encode())
        try:
            answer = self.http.request(method, url, **options)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            return Outcome("closed")
        return Outcome(str(answer.status_code), answer.text)

    def raw(self, data: bytes) -> Outcome:
        """Bytes that no HTTP client would send; the first answer to them."""
        connection = socket.create_connection((self.host, int(self.port)), 5, self._source)
        with connection:
            connection.sendall(data)
            answer = b""
            try:
                while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
                    answer += part
            except (TimeoutError, ConnectionResetError):
                pass
        head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
        return Outcome(head.split(" ")[1] if head.startswith("HTTP/1.1 ") else "closed", body)


class Decoy:
    """A server that nobody should ever connect to; it counts who does."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        # Wakes the thread that waits in `accept`; closing alone does not.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextmanager
def decoy() -> Iterator[Decoy]:
    server = Decoy()
    try:
        yield server
    finally:
        server.close()
