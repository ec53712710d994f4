"""A real Chromium on the real page, with a small model."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from app.service import ReconstructionService
from tests.app.serving import served, small_service

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


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
def service() -> ReconstructionService:
    return small_service()


@pytest.fixture(scope="module")
def page_url(service: ReconstructionService) -> Iterator[str]:
    with served(service) as url:
        yield url


@pytest.fixture(scope="module")
def contexts(browser: Browser) -> dict[str, BrowserContext]:
    """One for each set of options; pages of one share the browser's cache."""
    return {}


@pytest.fixture
def view(
    browser: Browser,
    contexts: dict[str, BrowserContext],
    page_url: str,
    request: pytest.FixtureRequest,
) -> Iterator[Page]:
    """The page, on a desktop and in English unless parametrized otherwise, free of errors."""
    options = {"viewport": DESKTOP, "locale": "en-US"} | getattr(request, "param", {})
    if str(options) not in contexts:
        contexts[str(options)] = browser.new_context(**options)
    page = contexts[str(options)].new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    foreign: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: None if _is_local(r.url, page_url) else foreign.append(r.url))
    page.goto(page_url)
    page.locator("#panel-pasted img").wait_for()
    yield page
    page.close()
    assert not complaints
    assert not foreign, "the page asked another server"


def _is_local(url: str, page_url: str) -> bool:
    return url.startswith((page_url, "data:", "blob:"))
