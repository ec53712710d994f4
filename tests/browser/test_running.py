"""A run that is still being trained, as the page shows it in a real Chromium."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, expect

from app.i18n import text
from app.models.served import ServedModel
from app.service import ReconstructionService
from tests.app.serving import example, save_step, small_reconstructor
from tests.browser.conftest import PHONE, opened
from tests.browser.test_page import expected, seen, shows, slide

pytestmark = pytest.mark.browser

STEPS = 1000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "flowers"


@pytest.fixture(scope="module")
def service(run: Path) -> ReconstructionService:
    save_step(run, 400, STEPS)
    running = ServedModel.open(str(run), device="cpu")
    return ReconstructionService({"flowers": running, "finished": small_reconstructor("finished")})


@pytest.fixture(autouse=True)
def begun(service: ReconstructionService, run: Path) -> None:
    """Each test finds the run at step 400."""
    save_step(run, 400, STEPS)


def label(step: int, language: str = "en") -> str:
    return text("model_running", language, model="flowers", step=step, steps=STEPS)


def model_shown(page: Page, text: str) -> None:
    expect(page.locator("#model input")).to_have_value(text)


def another(page: Page) -> Page:
    """The page once more, opened now. Leaving a page cuts its streams, and it says so."""
    return opened(page.context.new_page(), page.url, updates=True)


def test_the_list_says_how_far_a_run_is_and_choosing_works_by_names(view: Page) -> None:
    assert label(400) == "flowers (step 400 of 1000)"
    model_shown(view, label(400))
    view.locator("#model input").click()
    options = view.locator("#model [role=option]")
    expect(options).to_have_count(2)
    assert [text.strip("✓ \n") for text in options.all_inner_texts()] == [label(400), "finished"]
    view.locator("#model [role=option]", has_text="finished").click()
    seen(view, "finished")
    view.locator("#model input").click()
    view.locator("#model [role=option]", has_text="flowers").click()
    seen(view, "flowers (400 / 1000)")
    model_shown(view, label(400))


def test_a_newer_checkpoint_is_picked_up(
    view: Page, service: ReconstructionService, run: Path
) -> None:
    seen(view, "flowers (400 / 1000)")
    save_step(run, 600, STEPS)
    slide(view, "seed", 3)
    seen(view, "flowers (600 / 1000)")
    shows(view, expected(service, example("cat"), 0.75, 3))


def test_a_page_opened_later_shows_the_newest_checkpoint(
    view: Page, service: ReconstructionService, run: Path
) -> None:
    seen(view, "flowers (400 / 1000)")
    save_step(run, 600, STEPS)
    later = another(view)
    model_shown(later, label(600))
    seen(later, "flowers (600 / 1000)")
    shows(later, expected(service, example("cat"), 0.75, 2))


def test_opening_the_page_asks_once(view: Page) -> None:
    calls: list[str] = []

    def count(request: Request) -> None:
        if "/queue/join" in request.url:
            calls.append(request.url)

    view.context.on("request", count)
    later = another(view)
    model_shown(later, label(400))
    seen(later, "flowers (400 / 1000)")
    later.wait_for_timeout(1000)
    view.context.remove_listener("request", count)
    # The new list of models does not count as a choice.
    assert len(calls) == 1


@pytest.mark.parametrize("view", [{"locale": "zh-CN"}], indirect=True, ids=["zh-CN"])
def test_a_chinese_browser_gets_a_chinese_label(view: Page) -> None:
    model_shown(view, label(400, "zh"))


@pytest.mark.parametrize(
    "view", [{"viewport": PHONE, "is_mobile": True, "has_touch": True}], indirect=True,
    ids=["phone"],
)  # fmt: skip
def test_the_label_fits_a_phone(view: Page) -> None:
    model_shown(view, label(400))
    fits = view.locator("#model input").evaluate("(e) => e.scrollWidth <= e.clientWidth")
    assert fits
    width = view.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1] == PHONE["width"]
