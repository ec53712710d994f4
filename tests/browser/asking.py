"""What a part of the stage asks, and what it is told."""

import json
import re
from typing import Any

from playwright.sync_api import Locator, Page, expect

from app.service import ReconstructionService
from tests.browser.conftest import gone
from tests.browser.test_page import slide


class Answers:
    """Parts of the answers to the questions that a page asks, from when this is made."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._streams: list[Any] = []
        page.on("requestfinished", lambda r: self._streams.append(r) if _is_answer(r.url) else None)

    def last(self, number: int) -> list[dict[str, Any]]:
        """Parts of the newest of so many answers, once it is whole."""
        gone(self._page, lambda: len(self._streams) < number and "an answer is missing")
        body = self._streams[number - 1].response().text()
        parts = [json.loads(data)[0] for data in re.findall(r"generating\ndata: (.*)\n", body)]
        return [part for part in parts if "waiting" not in part]


def _is_answer(url: str) -> bool:
    return bool(re.search(r"/call/ask/\w+$", url))


def awaited(service: ReconstructionService) -> bool:
    """Whether anybody waits for what is being computed."""
    return any(work.callers for work in service._line._running.values())


def tab(page: Page, name: str) -> None:
    """Open a tab below the panels; where there is no room for its name, from a list."""
    page.locator("#tabs [role=tab]").first.wait_for()
    found = page.get_by_role("tab", name=name)
    if not found.is_visible():
        page.locator("#tabs .overflow-menu > button").click()
        found = page.locator("#tabs .overflow-dropdown button", has_text=name)
    found.click()


def walk(page: Page, to: Locator) -> None:
    """Press Tab until something has the focus."""
    for _ in range(20):
        page.keyboard.press("Tab")
        if to.evaluate("(element) => element === document.activeElement"):
            return
    raise AssertionError(f"the keyboard does not reach {to}")


def whole_width(page: Page) -> None:
    """The page is not wider than its window."""
    width, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= window


def settle(page: Page, slider: str, name: str, value: float) -> None:
    """Move a slider, and wait for the panels of its value, called `name` in the settings."""
    slide(page, slider, value)
    page.locator(f"#panels [data-view*='\"{name}\":{value}']").wait_for(state="attached")
    page.locator("#facts .pending").wait_for(state="detached")


def status(page: Page, part: str, text: str) -> None:
    """Wait until a part says something."""
    expect(page.locator(f"#{part} .asking [role=status]").first).to_contain_text(text)
