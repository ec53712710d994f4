"""The service worker of the static page in a real Chromium, on a small site of a plain host."""

import functools
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.conftest import gone
from tests.sources import ROOT
from web.build import finish
from web.headers import HEADERS

pytestmark = pytest.mark.browser

INDEX = """<!doctype html><html lang="en"><head><!-- policy --><title>…</title>
<link rel="icon" href="icon.png"><script type="module" src="web/page.js"></script></head></html>"""
# As the real page: it fetches what is large once the service worker is there.
SCRIPT = """import { keepOffline } from './offline.js';
import { version } from './version.js';
await keepOffline();
const model = await fetch('models/a.onnx').then((answer) => answer.text(), () => 'none');
document.title = `${version} ${model} ${crossOriginIsolated}`;
"""


class Handler(SimpleHTTPRequestHandler):
    """Sends what is in the folder now and no header that it need not; writes down each request."""

    host: "Host"

    def do_GET(self) -> None:
        if self.host.down:
            self.close_connection = True
            return
        path = self.path.removeprefix("/")
        self.host.requests.append(path)
        if path in self.host.instead:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.host.instead[path])
            return
        super().do_GET()

    def send_header(self, keyword: str, value: str) -> None:
        # It counts whole seconds, and builds follow each other faster here.
        if keyword != "Last-Modified":
            super().send_header(keyword, value)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Host:
    """A plain host of files: it sets no header, and can go away."""

    folder: Path
    url: str = ""
    down: bool = False
    requests: list[str] = field(default_factory=list)
    # Path -> what is sent in place of the file.
    instead: dict[str, bytes] = field(default_factory=dict)

    def publish(self, version: str, model: str = "model") -> None:
        """Put a build there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "web").mkdir(parents=True)
        (self.folder / "models").mkdir()
        shutil.copyfile(ROOT / "web/sw.js", self.folder / "sw.js")
        shutil.copyfile(ROOT / "web/offline.js", self.folder / "web/offline.js")
        (self.folder / "index.html").write_text(INDEX)
        (self.folder / "icon.png").write_bytes(b"")
        (self.folder / "web/page.js").write_text(SCRIPT)
        (self.folder / "web/version.js").write_text(f"export const version = {version!r};\n")
        (self.folder / "web/lazy.js").write_text(f"export const version = {version!r};\n")
        (self.folder / "models/a.onnx").write_text(model)
        finish(self.folder)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "site")
    handler = type("OfHost", (Handler,), {"host": host})
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(host.folder))
    ) as server:
        host.url = f"http://127.0.0.1:{server.server_address[1]}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield host
        server.shutdown()
        thread.join()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    yield context
    context.close()


def visit(context: BrowserContext, host: Host, title: str) -> Page:
    page = context.new_page()
    page.goto(host.url)
    expect(page).to_have_title(title)
    return page


def updated(page: Page) -> None:
    """Have the browser look for a new build until one waits for its turn."""
    look = """navigator.serviceWorker.ready.then((registration) => registration.update())
        .then(({ waiting }) => Boolean(waiting))"""
    # A look that is under way already may have read the build before, and counts for both.
    gone(page, lambda: not page.evaluate(look) and "no build waits")


def visit_newest(context: BrowserContext, host: Host, title: str) -> Page:
    """Open the page once the new build has taken over, which takes the browser a moment."""
    page = context.new_page()

    def other() -> str:
        page.goto("about:blank")
        page.wait_for_timeout(500)
        page.goto(host.url)
        expect(page).not_to_have_title("…")
        return "" if page.title() == title else page.title()

    gone(page, other)
    return page


def test_a_second_visit_fetches_nothing_and_needs_no_network(
    context: BrowserContext, host: Host
) -> None:
    host.publish("one")
    visit(context, host, "one model false").close()
    host.requests.clear()
    # Now it has the headers that this host does not send.
    page = visit(context, host, "one model true")
    assert {*host.requests} <= {"sw.js"}
    told = page.evaluate("""async () => Promise.all(['', 'web/page.js', 'models/a.onnx'].map(
        async (name) => Object.fromEntries((await fetch(name)).headers)))""")
    for headers in told:
        assert headers == headers | {name.lower(): value for name, value in HEADERS.items()}
    page.close()
    host.down = True
    visit(context, host, "one model true").close()


def test_a_new_build_takes_over_once_all_pages_are_closed(
    context: BrowserContext, host: Host
) -> None:
    host.publish("one")
    visit(context, host, "one model false").close()
    page = visit(context, host, "one model true")
    host.publish("two")
    updated(page)
    # What it loads late is of its own build.
    late = "import('./web/lazy.js').then((module) => module.version)"
    host.requests.clear()
    assert page.evaluate(late) == "one"
    assert not host.requests
    other = visit(context, host, "one model true")
    page.close()
    assert other.evaluate(late) == "one"
    other.close()
    page = visit_newest(context, host, "two model true")
    assert page.evaluate(late) == "two"
    # Of the large files it has those that are the same.
    assert "models/a.onnx" not in host.requests
    host.publish("three", "larger")
    updated(page)
    page.close()
    visit_newest(context, host, "three larger true")
    assert host.requests.count("models/a.onnx") == 1


def visit_damaged(
    context: BrowserContext, host: Host, path: str, content: bytes, title: str
) -> None:
    """A first visit while the host sends something else in place of a file."""
    host.publish("one")
    host.instead[path] = content
    visit(context, host, title).close()
    host.instead.clear()


def test_a_damaged_file_is_not_kept(context: BrowserContext, host: Host) -> None:
    visit_damaged(context, host, "models/a.onnx", b"damaged", "one damaged false")
    visit(context, host, "one model true").close()
    host.down = True
    visit(context, host, "one model true").close()


def test_a_page_is_shown_where_a_build_is_not_whole(context: BrowserContext, host: Host) -> None:
    other = b"export const version = 'none';\n"
    visit_damaged(context, host, "web/lazy.js", other, "one model false")
    visit(context, host, "one model false").close()
    visit(context, host, "one model true").close()
