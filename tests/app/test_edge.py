"""What the real server says to strangers over HTTP, Gradio and all that it brings included."""

import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from gradio.route_utils import FileUploadProgress

from app.ops.metrics import Metrics
from tests.app.serving import example

HOSTILE = (
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"
)

NO_FUNCTION = (
    "This page has no such function, or it takes other values; GET /gradio_api/info lists both."
)


@pytest.fixture(scope="module")
def http(page_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page_url, timeout=60) as client:
        yield client


@pytest.fixture
def complaints(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[[], list[str]]]:
    """What the page and its server, whose log is its own, have complained of so far."""

    def complaints() -> list[str]:
        # The server has done with what it was asked before.
        assert http.get("/healthz").status_code == 200
        return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]

    server = logging.getLogger("uvicorn")
    server.addHandler(caplog.handler)
    yield complaints
    server.removeHandler(caplog.handler)


def connected(http: httpx.Client) -> socket.socket:
    url = urlsplit(str(http.base_url))
    return socket.create_connection((url.hostname, url.port), 10)


def uploaded(http: httpx.Client, name: str, data: bytes) -> httpx.Response:
    """A file as it is given to whoever opens its address."""
    path = http.post("/gradio_api/upload", files={"files": (name, data)}).json()[0]
    return http.get(f"/gradio_api/file={path}", headers={"range": "bytes=0-3"})


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.xhtml", "a.xml", "a.js", "a.pdf", "a"])
def test_nothing_uploaded_runs(http: httpx.Client, name: str) -> None:
    answer = uploaded(http, name, HOSTILE)
    assert (answer.status_code, answer.content) == (200, HOSTILE)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_what_calls_itself_a_picture_is_taken_for_nothing_else(http: httpx.Client) -> None:
    answer = uploaded(http, "a.png", HOSTILE)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_picture_is_shown_in_place(http: httpx.Client) -> None:
    answer = uploaded(http, "cat.jpg", example("cat"))
    assert (answer.content, answer.headers["content-type"]) == (example("cat"), "image/jpeg")
    assert "attachment" not in answer.headers.get("content-disposition", "")


def test_nothing_but_what_the_page_needs_is_there(http: httpx.Client) -> None:
    # These are there in Gradio as it comes.
    for path in (
        "/docs", "/openapi.json", "/login_check", "/monitoring", "/gradio_api/openapi.json",
        "/gradio_api/user", "/gradio_api/queue/status",
    ):  # fmt: skip
        assert http.get(path).status_code == 404, path


@pytest.mark.parametrize("depth", [20, 900, 50_000])
def test_json_that_is_nested_deeply_harms_nobody(http: httpx.Client, depth: int) -> None:
    body = b'{"fn_index": 0, "session_hash": "a", "data": ' + b"[" * depth + b"]" * depth + b"}"
    headers = {"content-type": "application/json"}
    answer = http.post("/gradio_api/queue/join", content=body, headers=headers)
    assert answer.status_code == 400
    assert "nested at most 16 deep" in answer.json()["detail"] or depth > 900
    assert "must be" in answer.json()["detail"]
    assert http.get("/healthz").status_code == 200


def test_the_page_may_be_shown_by_the_hub_and_runs_only_what_is_here(http: httpx.Client) -> None:
    answer = http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors *" in policy
    assert "x-frame-options" not in answer.headers


def test_scripts_of_other_sites_read_nothing(http: httpx.Client) -> None:
    foreign = {"origin": "https://evil.example", "sec-fetch-site": "cross-site",
               "sec-fetch-mode": "cors", "host": "demo.example"}  # fmt: skip
    assert http.get("/config", headers=foreign).status_code == 403


def test_the_operators_pages(http: httpx.Client) -> None:
    assert [http.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    assert http.head("/healthz").status_code == 200
    assert "mae_requests_total" in http.get("/metrics").text
    stranger = http.get("/metrics", headers={"x-forwarded-for": "8.8.8.8"})
    assert stranger.status_code == 403
    assert "mae_" not in stranger.text


@pytest.mark.parametrize("route", ["queue/join", "run/reconstruct"])
@pytest.mark.parametrize(
    "values",
    [
        '"fn_index": 1000000', '"fn_index": -1', '"fn_index": "x"', '"fn_index": {}',
        '"fn_index": NaN', '"trigger_id": "x"', '"trigger_id": 1e999', '"data": "x"',
        '"data": "\\ud800"', '"data": Infinity', '"batched": []', '"oauth_token": 5',
    ],
)  # fmt: skip
def test_a_call_of_the_wrong_form_is_refused_in_a_sentence(
    http: httpx.Client, complaints: Callable[[], list[str]], route: str, values: str
) -> None:
    body = f'{{"session_hash": "edge", "data": [], {values}}}'
    headers = {"content-type": "application/json"}
    answer = http.post(f"/gradio_api/{route}", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    # A sentence that repeats nothing of what was sent.
    assert re.fullmatch(
        r"This page has no such function.*\.|The request body must be JSON.*\.|Session hash.*\.",
        answer.json()["detail"],
    )
    assert not complaints()


@pytest.mark.parametrize("route", ["run", "api", "call", "call/v2"])
def test_an_unknown_function_is_not_there(
    http: httpx.Client, complaints: Callable[[], list[str]], route: str
) -> None:
    answer = http.post(f"/gradio_api/{route}/nothing", json={"data": []})
    assert (answer.status_code, answer.json()["detail"]) == (400, NO_FUNCTION)
    assert not complaints()


@pytest.mark.parametrize("values", [{}, {"nothing": 1}, {"picture": None, "fn_index": 0}])
def test_values_given_by_name_are_those_of_the_function(
    http: httpx.Client, complaints: Callable[[], list[str]], values: dict[str, Any]
) -> None:
    answer = http.post("/gradio_api/call/v2/reconstruct", json=values)
    assert (answer.status_code, answer.json()["detail"]) == (400, NO_FUNCTION)
    assert not complaints()


@pytest.mark.parametrize(
    "path", ["queue/data?session_hash=nobody", "call/reconstruct/nothing", "call/v2/a/nothing"]
)
def test_the_events_of_nobody_end_at_once(
    http: httpx.Client, complaints: Callable[[], list[str]], path: str
) -> None:
    answer = http.get(f"/gradio_api/{path}")
    assert answer.status_code == 200
    assert "404: Not Found" in answer.text
    assert not complaints()


@pytest.mark.parametrize("path", ["http://example.com/a.png", "/etc/passwd"])
@pytest.mark.parametrize("marked", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_no_file_but_an_upload_is_taken(
    http: httpx.Client, complaints: Callable[[], list[str]], path: str, marked: dict[str, Any]
) -> None:
    values = {"data": [{"path": path, **marked}]}
    answer = http.post("/gradio_api/call/reconstruct", json=values)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("A picture must be an uploaded file")
    assert not complaints()


def test_the_progress_of_an_upload_is_told_and_not_kept(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    for name in ("track", "is_tracked"):
        monkeypatch.setattr(FileUploadProgress, name, lambda self, upload: kept.append(upload))
    http.post("/gradio_api/upload?upload_id=mine", files={"files": ("a.png", b"x")})
    answer = http.get("/gradio_api/upload_progress?upload_id=mine")
    assert answer.text == 'data: {"msg": "done"}\n\n'
    assert not kept


def test_the_headers_of_a_request_are_not_repeated(
    http: httpx.Client, complaints: Callable[[], list[str]]
) -> None:
    path = http.post("/gradio_api/upload", files={"files": ("a.png", b"x" * 9)}).json()[0]
    for told in ("bytes=0-3", "bytes=0-1,3-4"):
        answer = http.get(f"/gradio_api/file={path}", headers={"range": told, "x-mine": "mine"})
        assert (answer.status_code, answer.content) == (200, b"x" * 9)
        assert "x-mine" not in answer.headers
    assert not complaints()


def test_an_unexpected_error_is_an_id_and_one_line(
    http: httpx.Client, complaints: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(metrics: Metrics) -> None:
        raise ValueError("/etc/passwd")

    monkeypatch.setattr(Metrics, "exposition", broken)
    answer = http.get("/metrics")
    found = re.fullmatch(r"Something went wrong.* Error id: ([0-9a-f]{8})\.", answer.text)
    assert answer.status_code == 500
    assert found is not None
    # On the same connection: closed late, it would break a request that is already on its way.
    assert "connection" not in answer.headers
    assert complaints() == [f"request failed, id {found[1]}"]


def test_nothing_is_answered_behind_a_request_of_two_lengths(http: httpx.Client) -> None:
    body = json.dumps({"data": []}).encode()
    smuggled = (
        b"POST /gradio_api/call/reconstruct HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n"
    ) % (len(body), body)
    with connected(http) as connection:
        connection.sendall(smuggled)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1") == 1


def test_who_hangs_up_in_an_upload_is_not_logged(
    http: httpx.Client, complaints: Callable[[], list[str]]
) -> None:
    head = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    )
    with connected(http) as connection:
        connection.sendall(head)
        assert http.get("/healthz").status_code == 200
    # The server may hear of it after the first.
    for _ in range(3):
        assert not complaints()
