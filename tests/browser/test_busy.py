"""A server with much to do, or without its weights, as the page shows it in a real Chromium."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core.weights.formats import save_weights
from tests.app.serving import HeldReconstructor, example, served, small_reconstructor
from tests.app.test_api import CONTROLS, Api
from tests.browser.conftest import (
    DESKTOP,
    ON_A_CHINESE_PHONE,
    PHONE,
    TIMEOUT,
    gone,
    on_a_chinese_phone,
    watched,
)
from tests.browser.test_page import expected, panel, pictures, seen, shows, slide

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def service(model: HeldReconstructor) -> ReconstructionService:
    settings = AppSettings(rate=0, max_batch=1, workers=1, queue=4)
    return ReconstructionService({"small-random": model}, settings=settings)


# What the others ask for is never in the cache.
SEEDS = itertools.count(5000)


class Crowd:
    """Others, whose requests are computed one after the other."""

    def __init__(self, url: str) -> None:
        self._api = Api(url.rstrip("/"))
        self._threads: list[threading.Thread] = []

    def joins(self, requests: int) -> None:
        """Put requests in the line, or at the model if it is idle."""
        for _ in range(requests):
            data = [self._api.cat, 0.5, next(SEEDS), *CONTROLS[2:]]
            self._threads.append(threading.Thread(target=self._api.call, args=(data,)))
            self._threads[-1].start()

    def leaves(self) -> None:
        for thread in self._threads:
            thread.join()
        self._api.http.close()


@contextmanager
def crowded(
    view: Page, model: HeldReconstructor, service: ReconstructionService, waiting: int
) -> Iterator[None]:
    """Have others wait for as long as this lasts."""
    crowd = Crowd(view.url)
    try:
        with model.held():
            crowd.joins(1)
            assert model.begun.wait(TIMEOUT / 1000)
            crowd.joins(waiting)
            while service._line.waiting < waiting:
                threading.Event().wait(0.01)
            yield
    finally:
        crowd.leaves()


def test_who_waits_sees_the_place(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    before = pictures(view)
    with crowded(view, model, service, waiting=3):
        slide(view, "seed", 7)
        seen(view, "3 requests are ahead of yours")
        expect(view.locator("#facts .waiting")).to_be_visible()
        meanwhile, masked = pictures(view), panel(view, "masked")
        # What the page can draw itself follows; the rest stays until there is something else.
        assert meanwhile == before | {"masked": meanwhile["masked"]}
    last = expected(service, example("cat"), 0.75, 7)
    assert np.array_equal(masked, last["masked"])
    shows(view, last)
    expect(view.locator("#facts .waiting")).to_have_count(0)


@on_a_chinese_phone
def test_the_place_fits_a_chinese_phone(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    with crowded(view, model, service, waiting=3):
        slide(view, "seed", 8)
        seen(view, "您前面还有 3 个请求")
        expect(view.locator("#facts .waiting")).to_be_in_viewport(ratio=1)
        width = view.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1] == PHONE["width"]
    shows(view, expected(service, example("cat"), 0.75, 8))


def test_a_full_line_is_said_to_be(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    with crowded(view, model, service, waiting=4):
        slide(view, "seed", 9)
        alert = view.locator("#facts [role=alert]")
        expect(alert).to_contain_text("Too many requests are waiting (4). Please try again in")
        expect(view.locator("#panels figure:not(.empty)")).to_have_count(0)
    slide(view, "seed", 10)
    shows(view, expected(service, example("cat"), 0.75, 10))


def test_a_slider_dragged_while_others_wait_ends_in_the_last_state(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    with crowded(view, model, service, waiting=2):
        for step in range(20):
            slide(view, "mask-ratio", round(0.3 + 0.02 * step, 2))
            slide(view, "seed", 200 + step)
        seen(view, "2 requests are ahead of yours")
        slide(view, "mask-ratio", 0.9)
    seen(view, "4 of 49 patches seen")
    last = expected(service, example("cat"), 0.9, 219)
    shows(view, last)
    view.wait_for_timeout(500)
    shows(view, last)


def test_who_closes_the_page_leaves_the_line(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    with crowded(view, model, service, waiting=1):
        other = view.context.new_page()
        other.goto(view.url)
        other.locator("#panel-pasted:not(.empty) canvas").wait_for()
        slide(other, "seed", 11)
        seen(other, "1 request is ahead of yours")
        assert service._line.waiting == 2
        other.close()
        gone(view, lambda: service._line.waiting == 2 and "the place is kept")


@contextmanager
def page_without_weights(folder: Path) -> Iterator[tuple[str, ReconstructionService]]:
    """A page whose default weights are missing, and second ones good."""
    good = folder / "good.safetensors"
    save_weights(good, small_reconstructor().model, record={})
    names = (str(folder / "missing.safetensors"), str(good))
    settings = AppSettings(device="cpu", weights=names, fetch="none", rate=0)
    service = ReconstructionService.load(settings)
    with served(service) as url:
        yield url, service


@pytest.mark.parametrize(
    ("options", "failed", "words"),
    [
        ({"viewport": DESKTOP, "locale": "en-US"}, "missing · cannot be used now", "missing"),
        (ON_A_CHINESE_PHONE, "missing · 暂时无法使用", "这个模型无法使用"),
    ],
    ids=["desktop", "chinese phone"],
)
def test_a_page_without_its_weights_says_so_and_offers_the_others(
    browser_context: BrowserContext, tmp_path: Path, failed: str, words: str
) -> None:
    with page_without_weights(tmp_path) as (url, service), watched(browser_context, url):
        page = browser_context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto(url)
        alert = page.locator("#facts [role=alert]")
        expect(alert).to_contain_text(words)
        assert str(tmp_path) not in page.content()
        expect(page.locator("#panels figure:not(.empty)")).to_have_count(0)
        expect(page.locator("#model input")).to_have_value(failed)
        width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1]
        page.locator("#model input").click()
        page.locator("#model [role=option]", has_text="good").click()
        shows(page, expected(service, example("cat"), 0.75, 2, "random", "crop", "good"))
        expect(alert).to_have_count(0)


@pytest.fixture
def browser_context(browser: Browser, options: dict[str, Any]) -> Iterator[BrowserContext]:
    context = browser.new_context(**options)
    yield context
    context.close()
