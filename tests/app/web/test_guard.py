import asyncio
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from app.web import guard, limits
from app.web.guard import MAX_BODY_BYTES, RequestGuard
from app.web.health import PEER
from app.web.limits import RateLimiter

UPLOAD_LIMIT = 4 * MAX_BODY_BYTES
JOIN = "/gradio_api/queue/join"
FOLDER = "/srv/uploads"
UPLOADED = f"{FOLDER}/{'0' * 64}/cat.png"
THUMBNAIL = "0123456789abcdef.jpg"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body and answers with its length."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RuntimeError("the client is gone")
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


Pairs = Iterable[tuple[bytes, bytes]]


class Client:
    """Asks a guarded application, one request after the other."""

    def __init__(self, app: Any = application, **options: Any) -> None:
        self.guard = RequestGuard(app, UPLOAD_LIMIT, FOLDER, **options)
        self.headers: dict[bytes, bytes] = {}

    def ask(
        self,
        path: str,
        parts: Iterable[bytes] | None = None,
        headers: Pairs = (),
        method: str | None = None,
        **scope: Any,
    ) -> tuple[int, bytes]:
        """Status and body of the answer to one request."""
        bodies = [b""] if parts is None else parts
        waiting = [{"type": "http.request", "body": part, "more_body": True} for part in bodies]
        waiting[-1]["more_body"] = False
        sent: list[Message] = []

        async def receive() -> Message:
            return waiting.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        method = method or ("GET" if parts is None else "POST")
        asked = {
            "type": "http", "path": path, "method": method, "headers": list(headers),
            "client": ("127.0.0.1", 5), "query_string": b"", **scope,
        }  # fmt: skip
        asyncio.run(self.guard(asked, receive, send))
        assert [message["type"] for message in sent] == [
            "http.response.start", "http.response.body",
        ]  # fmt: skip
        self.headers = dict(sent[0]["headers"])
        return sent[0]["status"], sent[1]["body"]


def asked(path: str, values: dict[str, Any]) -> Any:
    """The JSON body that a call is passed on with."""
    seen: list[Message] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        await PlainTextResponse("")(scope, receive, send)

    assert ask(path, call(**values), app=look)[0] == 200
    return json.loads(seen[0]["body"])


def ask(
    path: str, parts: Iterable[bytes] | None = None, headers: Pairs = (), app: Any = application
) -> tuple[int, bytes]:
    return Client(app).ask(path, parts, headers)


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("passed on")


def call(**values: Any) -> list[bytes]:
    return [json.dumps(values).encode()]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/file=https://example.com/a.png",
        "/gradio_api/file=HTTP://127.0.0.1/",
        "/gradio_api/file= http://127.0.0.1/",
        "/gradio_api/file=ftp://127.0.0.1/",
        "/gradio_api/file=relative.png",
        "/gradio_api/file/http://127.0.0.1/",
        "/behind/a/proxy/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/proxy=https://example.com/",
    ],
)
def test_nothing_is_fetched(path: str) -> None:
    assert ask(path, app=never)[0] == 404


def test_a_long_path_has_an_end() -> None:
    # Hours, were something looked for from each of them.
    assert ask("/gradio_api/file=" + "/file=" * 400_000)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/", "/config", "/assets/proxy.js", "/static/img/logo.svg", "/theme.css", "/healthz",
        "/gradio_api/file=/cache/ab12/http.png", "/gradio_api/info", "/gradio_api/startup-events",
        "/gradio_api/heartbeat/ab-12", "/gradio_api/queue/data", "/gradio_api/call/look/ab12",
        f"/thumbnails/{THUMBNAIL}",
    ],
)  # fmt: skip
def test_what_the_page_reads_passes(path: str) -> None:
    assert ask(path) == (200, b"0")


@pytest.mark.parametrize("name", ["queue/join", "cancel", "reset", "run/look", "call/v2/go"])
def test_what_the_page_calls_passes(name: str) -> None:
    values = {"data": [1, {"a": None}, "\u00e4"], "session_hash": "ab12", "event_id": None}
    assert asked(f"/gradio_api/{name}", values) == values


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/monitoring"), ("GET", "/login"),
        ("POST", "/login"), ("GET", "/gradio_api/deep_link"), ("GET", "/gradio_api/dev/reload"),
        ("POST", "/gradio_api/component_server"), ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/vibe-code"), ("POST", "/gradio_api/stream/ab12"),
        ("POST", "/gradio_api/process_recording"), ("GET", "/gradio_api/token"),
        ("GET", "/gradio_api/custom_component/a/client/b/c"), ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/mcp/sse"), ("GET", "/assets/../app.py"), ("GET", "//"),
        ("GET", f"/gradio_api/heartbeat/{'a' * 65}"), ("GET", "/gradio_api/heartbeat/a/b"),
        ("PUT", "/"), ("DELETE", JOIN), ("GET", JOIN), ("POST", "/gradio_api/upload_progress"),
        ("TRACE", "/"), ("GET", "/gradio_api/call/look/ab12\n"),
    ],
)  # fmt: skip
def test_nothing_else_does(method: str, path: str) -> None:
    assert Client(never).ask(path, method=method)[0] == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""), ("GET", "/"), ("GET", "/cat.jpg"), ("GET", f"/{THUMBNAIL}/"),
        ("GET", f"/{THUMBNAIL}.png"), ("GET", f"/{THUMBNAIL[:-4]}"), ("GET", f"/0{THUMBNAIL}"),
        ("GET", f"/{THUMBNAIL[1:]}"), ("GET", f"/{THUMBNAIL.upper()}"), ("GET", f"/../{THUMBNAIL}"),
        ("GET", f"/{THUMBNAIL}\n"), ("GET", f"/a/{THUMBNAIL}"), ("POST", f"/{THUMBNAIL}"),
    ],
)  # fmt: skip
def test_nothing_beside_thumbnails_does(method: str, path: str) -> None:
    assert Client(never).ask(f"/thumbnails{path}", method=method)[0] == 404


def test_a_page_below_a_path_is_the_same_page() -> None:
    for path in ("gradio_api/info", f"thumbnails/{THUMBNAIL}"):
        assert Client().ask(f"/demo/{path}", root_path="/demo")[0] == 200
    assert Client().ask("/demo/docs", root_path="/demo")[0] == 404


def test_a_web_socket_is_closed() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(RequestGuard(never, UPLOAD_LIMIT, FOLDER)({"type": "websocket"}, None, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_a_body_up_to_the_limit_passes() -> None:
    (body,) = call(data=["x"])
    body += b" " * (MAX_BODY_BYTES - len(body))
    parts = [body[: MAX_BODY_BYTES // 2], body[MAX_BODY_BYTES // 2 :]]
    assert ask(JOIN, parts)[0] == 200


@pytest.mark.parametrize("path", [JOIN, "/gradio_api/upload"])
def test_a_body_that_says_it_is_too_long_is_refused_unread(path: str) -> None:
    length = [(b"content-length", str(UPLOAD_LIMIT + 1).encode())]
    assert ask(path, [b""], length, never)[0] == 413


def test_a_body_that_turns_out_too_long_is_refused() -> None:
    assert ask(JOIN, [b"x" * 1000] * 1000, app=never)[0] == 413


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[1]", b"{", b'{"data": NaNa}', b"\xff\xfe", b"[" * 200_000,
        b'{"data": ' + b"[" * 16 + b"]" * 16 + b"}", b'{"data":' * 30_000,
        b'{"data": 1' + b"0" * 5000 + b"}", b'{"data": [NaN]}', b'{"data": [-Infinity]}',
        b'{"data": [1e999]}', b'{"data": ["\\ud800"]}',
    ],
    ids=lambda body: body[:12],
)  # fmt: skip
def test_a_body_that_is_not_as_it_should_be_is_refused(body: bytes) -> None:
    assert ask(JOIN, [body], app=never)[0] == 400


@pytest.mark.parametrize("key", ["", "a" * 65, "a b", "ä", "../x", "a\n", 5, ["a"], {"a": 1}])
def test_the_name_of_a_session_is_short_and_plain(key: Any) -> None:
    for name in ("session_hash", "event_id"):
        assert ask(JOIN, call(data=[], **{name: key}), app=never)[0] == 400


@pytest.mark.parametrize(
    "query", [b"session_hash=" + b"a" * 65, b"session_hash=a%2Fb", b"session_hash="]
)
def test_the_name_of_a_session_is_plain_where_it_is_read(query: bytes) -> None:
    client = Client(never)
    assert client.ask("/gradio_api/queue/data", query_string=query)[0] == 400


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever() -> Message:
        await asyncio.sleep(3600)
        return {}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    monkeypatch.setattr(limits, "BODY_SECONDS", 0.01)
    for path in (JOIN, "/gradio_api/upload"):
        scope = {"type": "http", "path": path, "method": "POST", "headers": [], "client": None}
        asyncio.run(RequestGuard(application, UPLOAD_LIMIT, FOLDER)(scope, forever, send))
    assert [message["status"] for message in sent if "status" in message] == [408, 408]


def test_an_upload_may_be_longer() -> None:
    parts = [b"x" * MAX_BODY_BYTES] * 4
    assert ask("/gradio_api/upload", parts)[0] == 200
    assert ask("/gradio_api/upload", [*parts, b"x"])[0] == 413


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1/a.png", "HTTPS://example.com/a.png", "data:image/png;base64,AAAA",
        "ftp://127.0.0.1/a", f"file://{UPLOADED}", "/etc/passwd", "cat.png", "", "/", FOLDER,
        f"{FOLDER}/", f"{FOLDER}2/a.png", f"{FOLDER}/../a.png", f"{FOLDER}/a/../../a.png",
        f"{UPLOADED}\0", "C:\\a.png", f" {UPLOADED}", "x" * 5000, "a/" * 100_000,
    ],
    ids=lambda path: path[:30],
)  # fmt: skip
def test_no_file_but_an_upload_reaches_gradio(path: str) -> None:
    """Gradio downloads a file at an address, and moves others, before a handler runs."""
    for more in ({"meta": {"_type": "gradio.FileData"}}, {"meta": {}}, {"meta": 5}, {}):
        for wrapped in ([{"path": path, **more}], [[{"a": {"path": path, **more}}]]):
            status, body = ask(JOIN, call(data=wrapped), app=never)
            assert status == 400
            assert json.loads(body)["detail"].startswith("A picture must be an uploaded file")


def test_of_an_upload_gradio_is_told_the_path_only() -> None:
    file = {"path": UPLOADED, "meta": {"_type": "gradio.FileData"}}
    told = {"url": "http://127.0.0.1/a", "size": "x", "orig_name": {"a": 1}, "is_stream": True}
    sent = {
        "data": [{**file, **told}, {"path": UPLOADED, "meta": 5}, {"path": UPLOADED}, {"path": 7}]
    }
    assert asked(JOIN, sent) == {"data": [file, file, file, {"path": 7}]}


def test_uploads_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    guarded = Client()
    guarded.guard = RequestGuard(application, UPLOAD_LIMIT, tmp_path / "link")
    for name, status in (("link", 200), ("real", 200), ("other", 400)):
        path = str(tmp_path / name / "a.png")
        assert guarded.ask(JOIN, call(data=[{"path": path, "meta": {}}]))[0] == status


class FnIndexInferError(Exception):
    """As Gradio's own."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyError(7), 400), (FnIndexInferError("nothing"), 400), (TypeError("Parameter `a`"), 400),
        (ValueError("more values"), 400), (OSError("mine"), 500), (RuntimeError("mine"), 500),
    ],
)  # fmt: skip
def test_functions_and_values_that_gradio_does_not_find(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def confused(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    assert ask("/gradio_api/call/look", call(data=[]), app=confused)[0] == status
    assert len(caplog.records) == (status == 500)


def test_two_lengths_end_the_connection() -> None:
    both = [(b"content-length", b"4"), (b"transfer-encoding", b"chunked")]
    for path, parts in ((JOIN, call(data=[])), ("/", None), ("/assets/a.js", None)):
        client = Client(never)
        assert client.ask(path, parts, both)[0] == 400
        assert client.headers[b"connection"] == b"close"


def test_an_error_is_an_id(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("mine")

    status, body = ask("/", app=broken)
    assert status == 500
    assert b"mine" not in body
    (record,) = caplog.records
    assert record.getMessage().removeprefix("request failed, id ").encode() in body


def test_an_answer_in_pieces_is_the_servers_to_end() -> None:
    def broken_by(error: Exception) -> Any:
        async def broken(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise RuntimeError("response already started") from error

        return broken

    with pytest.raises(RuntimeError):
        ask("/", app=broken_by(ValueError("mine")))
    # As Gradio ends the stream of a session that it does not know.
    assert ask("/gradio_api/queue/data", app=broken_by(HTTPException(404))) == (200, b"")


@pytest.mark.parametrize("path", [JOIN, "/gradio_api/upload"])
def test_who_hangs_up_is_not_logged(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None: ...

    scope = {"type": "http", "path": path, "method": "POST", "headers": [], "client": None}
    caplog.set_level(logging.DEBUG, "app")
    asyncio.run(RequestGuard(application, UPLOAD_LIMIT, FOLDER)(scope, gone, send))
    assert not caplog.records


def test_what_is_not_http_passes() -> None:
    seen = []

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    asyncio.run(RequestGuard(lifespan, UPLOAD_LIMIT, FOLDER)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_the_visitor_is_who_the_proxies_say() -> None:
    seen: list[Any] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["client"], scope[PEER]))
        await application(scope, receive, send)

    told = [(b"x-forwarded-for", b"6.6.6.6, 1.2.3.4")]
    Client(look).ask("/", headers=told)
    Client(look, proxies=1).ask("/", headers=told)
    two = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"1.2.3.4")]
    Client(look, proxies=1).ask("/", headers=two)
    peer = ("127.0.0.1", 5)
    assert seen == [(("127.0.0.1", 0), peer), (("1.2.3.4", 0), peer), (("1.2.3.4", 0), peer)]


@pytest.mark.parametrize(
    ("proxies", "told", "warned"),
    [
        (0, b"1.2.3.4", 1),
        (2, b"1.2.3.4", 1),
        (1, b"1.2.3.4", 0),
        (1, b"a, 1.2.3.4", 0),
        (1, b"", 0),
    ],
)
def test_proxies_that_nobody_counted_are_told_once(
    proxies: int, told: bytes, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(proxies=proxies)
    for _ in range(3):
        client.ask("/", headers=[(b"x-forwarded-for", told)] if told else [])
    assert caplog.text.count(f"--proxies is {proxies}") == warned
    assert "1.2.3.4" not in caplog.text


def test_a_flood_is_told_when_to_come_back() -> None:
    client = Client(proxies=1, requests=RateLimiter(60, 3, clock=lambda: 0.0))
    one, other = ([(b"x-forwarded-for", address)] for address in (b"1.1.1.1", b"2.2.2.2"))
    statuses = [client.ask("/", headers=one)[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert client.headers[b"retry-after"] == b"1"
    for free in ("/assets/a.js", f"/thumbnails/{THUMBNAIL}"):
        assert client.ask(free, headers=one)[0] == 200
    assert client.ask("/", headers=other)[0] == 200
    # In the form in which the page and gradio_client look for it.
    status, body = client.ask(JOIN, call(data=[]), one)
    assert status == 429
    assert json.loads(body)["detail"] == (
        "Too many requests come from your address; try again in 1 second."
    )


def test_uploads_are_bounded_by_their_real_length() -> None:
    client = Client(uploads=RateLimiter(60, 1000, clock=lambda: 0.0))
    lying = [(b"content-length", b"1")]
    assert client.ask("/gradio_api/upload", [b"x" * 400] * 2, lying) == (200, b"800")
    assert client.ask("/gradio_api/upload", [b"x" * 150] * 2, lying)[0] == 429
    assert client.headers[b"retry-after"] == b"100"
    # More than may ever be taken at once.
    assert client.ask("/gradio_api/upload", [b"x" * 2000], lying)[0] == 429
    assert client.headers[b"retry-after"] == b"3600"


def test_connections_that_stay_open_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_STREAMS_PER_VISITOR", 1)
    path, inner = "/gradio_api/heartbeat/ab", []

    async def ask_again(scope: Scope, receive: Receive, send: Send) -> None:
        async def keep(message: Message) -> None:
            inner.append(message)

        scope["headers"] = []
        await client.guard(scope | {"client": scope[PEER]}, receive, keep)
        await application(scope, receive, send)

    client = Client(ask_again)
    for _ in range(2):
        assert client.ask(path)[0] == 200
    assert [message["status"] for message in inner if "status" in message] == [503, 503]


def test_scripts_of_other_sites_are_not_answered() -> None:
    script = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"cors")]
    link = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")]
    own = [(b"sec-fetch-site", b"same-origin"), (b"sec-fetch-mode", b"cors")]
    assert ask(JOIN, call(data=[]), script, never)[0] == 403
    assert ask("/config", headers=script, app=never)[0] == 403
    assert ask("/", headers=link)[0] == 200
    assert ask(JOIN, call(data=[]), own)[0] == 200
    for mode in (b"no-cors", b"navigate"):
        blind = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", mode)]
        assert ask(JOIN, call(data=[]), blind, never)[0] == 403


@pytest.mark.parametrize(
    ("headers", "options", "status"),
    [
        ([(b"origin", b"http://evil.example")], {}, 403),
        ([(b"origin", b"null")], {}, 403),
        ([(b"origin", b"http://demo.lan:7860")], {}, 200),
        ([(b"origin", b"http://demo.lan")], {}, 403),
        ([], {}, 200),
        ([(b"origin", b"https://demo.example"), (b"x-forwarded-host", b"demo.example")], {}, 403),
        ([(b"origin", b"https://demo.example"), (b"x-forwarded-host", b"demo.example")],
         {"proxies": 1}, 200),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("path", [JOIN, "/config", "/metrics", "/"])
def test_where_browsers_say_less_the_origin_has_to_be_the_host(
    headers: Pairs, options: dict[str, Any], status: int, path: str
) -> None:
    client = Client(application, **options)
    given = [(b"host", b"demo.lan:7860"), *headers]
    assert client.ask(path, call(data=[]) if path == JOIN else None, given)[0] == status


def test_gradio_is_told_neither_parts_of_files_nor_names_of_uploads() -> None:
    seen: list[Any] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["headers"], scope["query_string"]))
        await application(scope, receive, send)

    client = Client(look)
    left_out = [(b"range", b"bytes=0-1"), (b"accept-encoding", b"gzip")]
    client.ask(f"/gradio_api/file={UPLOADED}", headers=left_out)
    client.ask("/gradio_api/upload", [b"x"], query_string=b"upload_id=ab")
    assert seen == [([], b""), ([], b"")]
    assert Client(never).ask("/gradio_api/upload_progress") == (200, b'data: {"msg": "done"}\n\n')
