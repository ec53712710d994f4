"""A real Chromium on the real page, with a small model."""

import functools
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Error,
    Page,
    Request,
    expect,
    sync_playwright,
)

from app.service import ReconstructionService
from app.settings import AppSettings
from tests.app.serving import HeldReconstructor, served

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}

ON_A_PHONE = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
ON_A_CHINESE_PHONE = ON_A_PHONE | {"locale": "zh-CN"}
# Of a test of `view`.
on_a_phone = pytest.mark.parametrize("view", [ON_A_PHONE], indirect=True, ids=["phone"])
on_a_chinese_phone = pytest.mark.parametrize(
    "view", [ON_A_CHINESE_PHONE], indirect=True, ids=["phone"]
)

# Milliseconds; a machine that does much else at a time is slow.
TIMEOUT = 60_000
expect.set_options(timeout=TIMEOUT)


# Of this folder, not of the whole session: while Playwright is there, an event loop runs in this
# thread, which other tests would stumble over.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"no Chromium on this machine: none of {', '.join(NAMES)} is on the PATH"
        if os.environ.get("MAE_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def port() -> Iterator[int]:
    """Of the pages of all modules, one after the other.

    What the browser has of one is good for the next: addresses whose answers it may keep hold a
    hash of them. Nobody else is given a port that is bound.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@pytest.fixture(scope="module")
def model() -> HeldReconstructor:
    """What answers the page, as slowly as a test wants."""
    return HeldReconstructor()


@pytest.fixture(scope="module")
def service(model: HeldReconstructor) -> ReconstructionService:
    settings = AppSettings(rate=0, max_batch=1, workers=1)
    return ReconstructionService({"small-random": model}, settings=settings)


@pytest.fixture(scope="module")
def page_url(service: ReconstructionService, port: int) -> Iterator[str]:
    with served(service, port) as url:
        yield url


class Tab:
    """A page that is opened again and again, which takes a third of a new one's time."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.page = context.new_page()
        self._client = context.new_cdp_session(self.page)

    def suit(self, viewport: Any, locale: str, reduced_motion: Any) -> None:
        """Make it as it would be in a new context with these options."""
        self.page.set_viewport_size(viewport)
        self.page.emulate_media(reduced_motion=reduced_motion)
        agent = {"userAgent": "", "acceptLanguage": locale}
        self._client.send("Emulation.setUserAgentOverride", agent)
        self._client.send("Emulation.setLocaleOverride", {"locale": locale})

    def forget(self) -> None:
        """Leave nothing of a visit but what the browser may keep of answers."""
        self.page.unroute_all()
        # What the page remembers a while after it has changed is not written any more.
        self.page.evaluate("Storage.prototype.setItem = () => {}; sessionStorage.clear()")
        self.context.clear_permissions()
        self.context.clear_cookies()
        self.page.goto("about:blank")


@pytest.fixture(scope="package")
def tabs(browser: Browser) -> Any:
    """The tab of a phone, or that of a desktop: a page stays what it is in this."""
    return functools.cache(lambda touch: Tab(browser.new_context(is_mobile=touch, has_touch=touch)))


@pytest.fixture
def view(
    tabs: Any,
    page_url: str,
    service: ReconstructionService,
    request: pytest.FixtureRequest,
) -> Iterator[Page]:
    """The page, on a desktop, in English and without motion unless parametrized; free of errors."""
    still = {"viewport": DESKTOP, "locale": "en-US", "reduced_motion": "reduce"}
    options = still | getattr(request, "param", {})
    tab = tabs(options.pop("is_mobile", False) and options.pop("has_touch"))
    tab.suit(**options)
    try:
        with watched(tab.context, page_url):
            yield opened(tab.page, page_url, updates=any(service.progress.values()))
    finally:
        try:
            tab.forget()
        except Error:
            # Its page has crashed or is closed: the next test gets another.
            tabs.cache_clear()
            tab.context.close()
            raise


@contextmanager
def watched(context: BrowserContext, page_url: str) -> Iterator[None]:
    """See that no page complains or asks another server; keep only the first at the end."""
    complaints: list[str] = []
    foreign: list[str] = []
    listeners: dict[Any, Callable[[Any], None]] = {
        "weberror": lambda problem: complaints.append(str(problem.error)),
        "console": lambda m: complaints.append(m.text) if m.type == "error" else None,
        "request": lambda r: None if _is_local(r.url, page_url) else foreign.append(r.url),
    }
    # Of the context, so that pages which a test opens itself are heard too.
    for event, listener in listeners.items():
        context.on(event, listener)
    try:
        yield
    finally:
        for page in context.pages:
            # What the page has said by now is heard by the time that it answers; what it says
            # of streams that are cut as it goes is not listened to.
            page.evaluate("0")
        for event, listener in listeners.items():
            context.remove_listener(event, listener)
        for page in context.pages[1:]:
            page.close()
    assert not complaints
    assert not foreign, "the page asked another server"


def opened(page: Page, url: str, *, updates: bool) -> Page:
    """The page at an address, which nobody has touched, at rest.

    Args:
        page: Where to open it.
        url: The address.
        updates: Whether it asks for its panels anew as it opens, as it does while a model is
            being trained; then it is at rest when it has them.
    """
    page.set_default_timeout(TIMEOUT)
    streams: list[str] = []

    def ended(request: Request) -> None:
        if "/queue/data" in request.url:
            streams.append(request.url)

    # The client cuts a stream when it has all that it waits for, if the server is not first.
    events: list[Any] = ["requestfinished", "requestfailed"]
    for event in events:
        page.on(event, ended)
    page.goto(url)
    page.locator("#panel-pasted:not(.empty) canvas").wait_for()
    page.locator("#panels [data-view]").wait_for()
    page.locator("#editor .draw").wait_for()
    gone(page, lambda: updates and not streams and "it got no panels as it opened")
    for event in events:
        page.remove_listener(event, ended)
    page.locator("#facts .pending").wait_for(state="detached")
    # Pictures that have not come have no size, and move what is around them when they do.
    page.wait_for_function("() => [...document.images].every((image) => image.complete)")
    return page


def gone(page: Page, problem: Callable[[], object]) -> None:
    """Wait until there is no problem, while the page goes on; fail with the one that stays."""
    deadline = time.monotonic() + TIMEOUT / 1000
    while found := problem():
        assert time.monotonic() < deadline, found
        page.wait_for_timeout(50)


def _is_local(url: str, page_url: str) -> bool:
    return url.startswith((page_url, "data:", "blob:"))
