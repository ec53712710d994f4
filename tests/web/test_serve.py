"""The server that a built site is tried with."""

import functools
import http.client
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from web.headers import HEADERS
from web.serve import Handler, main


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "site" / "web").mkdir(parents=True)
    (tmp_path / "site" / "index.html").write_text("page")
    for name in ("page.js", "a.mjs", "a.wasm.gz", "a.webmanifest", "a.css", "a.json", "a.onnx"):
        (tmp_path / "site" / "web" / name).write_text("text")
    (tmp_path / "secret").write_text("secret")
    handler = functools.partial(Handler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", "text/html"), ("web/page.js", "text/javascript"), ("web/a.mjs", "text/javascript"),
        ("web/a.wasm.gz", "application/gzip"), ("web/a.css", "text/css"),
        ("web/a.json", "application/json"), ("web/a.onnx", "application/octet-stream"),
        ("web/a.webmanifest", "application/manifest+json"),
    ],
)  # fmt: skip
def test_files_have_their_types_and_the_headers(address: str, name: str, kind: str) -> None:
    for answer in (httpx.get(f"{address}/{name}"), httpx.head(f"{address}/{name}")):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == kind
        assert "content-encoding" not in answer.headers
        for header, value in HEADERS.items():
            assert answer.headers[header] == value


def test_what_a_browser_has_is_not_sent_again(address: str) -> None:
    first = httpx.get(address)
    again = httpx.get(address, headers={"If-Modified-Since": first.headers["last-modified"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["/web/", "/none", "/../secret", "/%2e%2e/secret", "/web/..%2f../secret", "//etc/passwd"],
)
def test_there_is_nothing_beside_the_files(address: str, path: str) -> None:
    # As it is: httpx would tidy the path.
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 404
    assert b"secret" not in answer.read().lower().replace(b"/secret", b"")
    connection.close()


def test_no_site_and_no_port_are_sentences(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "there is no site in" in capsys.readouterr().err
    (tmp_path / "sw.js").write_text("")
    assert main([str(tmp_path), "--port", address.rsplit(":", 1)[1]]) == 2
    assert "give another --port" in capsys.readouterr().err
