"""A real Chromium on the real page, with a small model."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

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


# Not for the whole session: while Playwright is there, an event loop runs in this thread, which
# other tests would stumble over.
@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def model() -> HeldReconstructor:
    """What answers the page, as slowly as a test wants."""
    return HeldReconstructor()


@pytest.fixture(scope="module")
def service(model: HeldReconstructor) -> ReconstructionService:
    settings = AppSettings(rate=0, max_batch=1, workers=1)
    return ReconstructionService({"small-random": model}, settings=settings)


@pytest.fixture(scope="module")
def page_url(service: ReconstructionService) -> Iterator[str]:
    with served(service) as url:
        yield url


@pytest.fixture(scope="module")
def pages(browser: Browser) -> dict[str, Page]:
    """One for each set of options: to open its address again takes a third of a new one's time."""
    return {}


@pytest.fixture
def view(
    browser: Browser,
    pages: dict[str, Page],
    page_url: str,
    service: ReconstructionService,
    request: pytest.FixtureRequest,
) -> Iterator[Page]:
    """The page, on a desktop, in English and without motion unless parametrized; free of errors."""
    still = {"viewport": DESKTOP, "locale": "en-US", "reduced_motion": "reduce"}
    options = still | getattr(request, "param", {})
    if str(options) not in pages:
        pages[str(options)] = browser.new_context(**options).new_page()
    page = pages[str(options)]
    with watched(page.context, page_url):
        opened(page, page_url, updates=any(service.progress.values()))
        yield page
    page.unroute_all()
    page.goto("about:blank")


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
    # The client cuts a stream when it has all that it waits for, if the server is not first.
    for event in ("requestfinished", "requestfailed"):
        page.on(event, lambda r: streams.append(r.url) if "/queue/data" in r.url else None)
    page.goto(url)
    page.locator("#panel-pasted:not(.empty) canvas").wait_for()
    page.locator("#panels [data-view]").wait_for()
    page.locator("#editor .draw").wait_for()
    gone(page, lambda: updates and not streams and "it got no panels as it opened")
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
