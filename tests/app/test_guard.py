import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from app.guard import MAX_BODY_BYTES, Message, Receive, RequestGuard, Scope, Send

UPLOAD_LIMIT = 4 * MAX_BODY_BYTES


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


def ask(
    path: str,
    parts: Iterable[bytes] = (b"",),
    headers: Iterable[tuple[bytes, bytes]] = (),
    app: Any = application,
) -> tuple[int, bytes]:
    """Status and body of the answer to one request."""
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    waiting[-1]["more_body"] = False
    sent: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(RequestGuard(app, UPLOAD_LIMIT)(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/file=https://example.com/a.png",
        "/gradio_api/file=HTTP://127.0.0.1/",
        "/gradio_api/file= http://127.0.0.1/",
        "/gradio_api/file/http://127.0.0.1/",
        "/behind/a/proxy/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/proxy=https://example.com/",
    ],
)
def test_nothing_is_fetched(path: str) -> None:
    assert ask(path)[0] == 403


@pytest.mark.parametrize(
    "path", ["/", "/gradio_api/file=/cache/ab12/http.png", "/gradio_api/info", "/assets/proxy.js"]
)
def test_other_requests_pass(path: str) -> None:
    assert ask(path) == (200, b"0")


def test_a_body_up_to_the_limit_passes() -> None:
    parts = [b"x" * (MAX_BODY_BYTES // 2)] * 2
    assert ask("/gradio_api/queue/join", parts) == (200, str(MAX_BODY_BYTES).encode())


def test_a_body_that_says_it_is_too_long_is_refused_unread() -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("passed on")

    length = [(b"content-length", str(MAX_BODY_BYTES + 1).encode())]
    assert ask("/gradio_api/queue/join", headers=length, app=never)[0] == 413


def test_a_body_that_turns_out_too_long_is_refused() -> None:
    assert ask("/gradio_api/queue/join", [b"x" * 1000] * 1000)[0] == 413


def test_an_answer_to_part_of_a_body_is_not_sent() -> None:
    async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert ask("/gradio_api/queue/join", [b"x" * 1000] * 1000, app=hasty)[0] == 413


def test_an_upload_may_be_longer() -> None:
    parts = [b"x" * MAX_BODY_BYTES] * 4
    assert ask("/gradio_api/upload", parts)[0] == 200
    assert ask("/gradio_api/upload", [*parts, b"x"])[0] == 413


def test_an_applications_own_error_is_its_own() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        ask("/", app=broken)


def test_what_is_not_http_passes() -> None:
    seen = []

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    asyncio.run(RequestGuard(lifespan, UPLOAD_LIMIT)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
