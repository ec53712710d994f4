import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from gradio.route_utils import BUILD_PATH_LIB
from starlette.types import Message, Receive, Scope, Send

from app.web.headers import ResponseHeaders

HASH = "0" * 64
KEPT = "max-age=31536000, immutable"


def headers_of(
    path: str, given: Iterable[tuple[bytes, bytes]] = (), status: int = 200, **scope: str
) -> dict[bytes, bytes]:
    """The headers of the answer to a request, of which the application gives some."""
    sent: list[Message] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [*given]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        sent.append(message)

    asked = {"type": "http", "path": path, **scope}
    asyncio.run(ResponseHeaders(answer)(asked, None, send))  # type: ignore[arg-type]
    told = dict(sent[0]["headers"])
    assert len(told) == len(sent[0]["headers"])
    return told


@pytest.mark.parametrize("path", ["/", "/docs", "/assets/a.js", "/gradio_api/info"])
def test_every_answer_tells_browsers_what_not_to_do(path: str) -> None:
    for status in (200, 404, 500):
        told = headers_of(path, [(b"X-Content-Type-Options", b"sniff")], status)
        assert told[b"x-content-type-options"] == b"nosniff"
        assert b"frame-ancestors *" in told[b"content-security-policy"]
        assert b"x-frame-options" not in told


@pytest.mark.parametrize(
    "kind", [b"text/html", b"image/svg+xml", b"text/html; charset=utf-8", b"application/pdf"]
)
def test_a_file_that_is_no_picture_is_only_ever_saved(kind: bytes) -> None:
    given = [(b"content-type", kind), (b"content-disposition", b"inline")]
    for root in ("", "/demo"):
        told = headers_of(f"{root}/gradio_api/file=/cache/{HASH}/a.html", given, root_path=root)
        assert told[b"content-type"] == b"application/octet-stream"
        assert told[b"content-disposition"] == b"attachment"
        assert b"sandbox" in told[b"content-security-policy"]


@pytest.mark.parametrize(
    ("path", "status", "kept"),
    [
        (f"/c/{HASH}/masked.png", 200, True), (f"/c/{HASH}/original.png", 200, True),
        (f"/c/{HASH}/masked.png", 403, False), (f"/c/{HASH}/masked.png", 404, False),
        (f"/c/{HASH}/masked.jpg", 200, False), (f"/c/{HASH}/mine.png", 200, False),
        (f"/c/{HASH[1:]}/masked.png", 200, False), ("/c/masked.png", 200, False),
        (f"/c/{HASH}/a/masked.png", 200, False), (f"/c/{HASH}/masked.png\n", 200, False),
    ],
)  # fmt: skip
def test_browsers_keep_panels_and_no_other_file(path: str, status: int, kept: bool) -> None:
    told = headers_of(f"/gradio_api/file={path}", [(b"content-type", b"image/png")], status)
    assert told.get(b"cache-control") == (f"private, {KEPT}".encode() if kept else None)


@pytest.mark.parametrize(
    ("path", "status", "kept"),
    [
        ("/assets/index-DphvyggB.js", 200, True), ("/assets/Index-Akn07EZk2.js", 200, True),
        ("/assets/index-DphvyggB.js", 404, False), ("/assets/index.js", 200, False),
        ("/assets/a/index-DphvyggB.js", 200, False), ("/static/index-DphvyggB.js", 200, False),
    ],
)  # fmt: skip
def test_browsers_keep_assets_whose_names_are_hashes(path: str, status: int, kept: bool) -> None:
    told = headers_of(path, status=status)
    assert told.get(b"cache-control") == (f"public, {KEPT}".encode() if kept else None)


def test_all_assets_of_gradio_have_hashes_in_their_names() -> None:
    names = [path.name for path in Path(BUILD_PATH_LIB).iterdir()]
    assert names
    assert [n for n in names if b"cache-control" not in headers_of(f"/assets/{n}")] == []


def test_a_picture_is_shown() -> None:
    told = headers_of(f"/gradio_api/file=/c/{HASH}/a.png", [(b"content-type", b"image/png")])
    assert told[b"content-type"] == b"image/png"
    assert b"content-disposition" not in told
