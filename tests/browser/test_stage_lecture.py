"""The lecture on the real page."""

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.i18n import LOCALES
from app.service import ReconstructionService
from tests.app.serving import example
from tests.browser.conftest import PHONE, gone, on_a_phone
from tests.browser.test_page import expected, pictures, shows, slide

pytestmark = pytest.mark.browser

PROJECTOR = {"viewport": {"width": 1280, "height": 720}}
CHINESE = {"viewport": {"width": 1280, "height": 720}, "locale": "zh-CN"}

# Panels on show, mask ratio, strategy and tab of each step.
STEPS: list[tuple[list[str], float, str, str | None]] = [
    (["original", "masked"], 0.05, "random", None),
    (["masked"], 0.75, "random", None),
    (["masked", "reconstruction", "pasted"], 0.75, "random", None),
    (["original", "masked", "pasted"], 0.95, "random", None),
    (["original", "masked", "pasted"], 0.75, "block", None),
    (["masked"], 0.75, "random", "inside"),
    (["original", "pasted"], 0.75, "random", "doubt"),
    (["masked", "pasted"], 0.75, "random", None),
]
# Presets remove the middle half of the 7 x 7 patches.
CENTRE = ["0000000"] * 2 + ["0011100"] * 3 + ["0000000"] * 2


def settled(page: Page, step: int) -> dict[str, Any]:
    """Wait until the panels show a step; the view."""
    expect(page.locator("#lecture a[aria-current]")).to_have_text(str(step))
    page.locator("#lecture .sentence[aria-busy=false]").wait_for()
    view: dict[str, Any] = json.loads(page.locator("[data-view]").get_attribute("data-view") or "")
    return view


def inside(page: Page) -> None:
    """Sentence and panels are on the screen without scrolling."""
    size = page.viewport_size
    assert size
    places = page.evaluate(
        "[...document.querySelectorAll('#lecture .sentence, #lecture nav, #panels figure')]"
        ".filter((e) => e.checkVisibility()).map((e) => e.getBoundingClientRect().toJSON())"
    )
    assert len(places) >= 3
    for place in places:
        assert place["width"] > 200
        assert place["left"] >= 0
        assert place["top"] >= 0
        assert place["right"] <= size["width"]
        assert place["bottom"] <= size["height"]
    whole = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert page.evaluate(whole) == [size["width"], size["height"]]


@pytest.mark.parametrize("view", [PROJECTOR, CHINESE], indirect=True, ids=["en", "zh"])
def test_eight_steps_by_arrow_keys(view: Page, request: pytest.FixtureRequest) -> None:
    language = request.node.callspec.id
    sentences = LOCALES[language]["stage"]["lecture"]["sentences"]
    view.locator("#lecture .begin").press("Enter")
    for step, (panels, ratio, strategy, tab) in enumerate(STEPS, 1):
        shown = settled(view, step)
        mask = shown["settings"]["mask"]
        assert (mask["ratio"], mask["strategy"], mask["seed"]) == (ratio, strategy, 2)
        assert mask["rows"] == (CENTRE if step == len(STEPS) else [])
        assert shown["mask"] == CENTRE or step < len(STEPS)
        for name in ("original", "masked", "reconstruction", "pasted"):
            expect(view.locator(f"#panel-{name}")).to_be_visible(visible=name in panels)
        for name in ("film", "doubt", "inside"):
            expect(view.locator(f"#{name} .part")).to_be_visible(visible=name == tab)
        expect(view.locator("#inputs")).to_be_hidden()
        expect(view.locator("footer")).to_be_hidden()
        visible, patches = shown["facts"]["visible"], shown["facts"]["patches"]
        percent = round(100 - 100 * visible / patches)
        said = sentences[step - 1].format(
            visible=visible, patches=patches, removed=patches - visible, percent=percent
        )
        expect(view.locator("#lecture .sentence")).to_have_text(said)
        size = view.locator("#lecture .sentence").evaluate("(e) => getComputedStyle(e).fontSize")
        assert float(size.removesuffix("px")) >= 30
        inside(view)
        assert view.url.endswith(f"/#lecture={step}")
        view.keyboard.press("ArrowRight")
    # The last step stays, with the tools to draw by; and the way back is the same.
    settled(view, 8)
    expect(view.locator("#editor .tools")).to_be_visible()
    view.keyboard.press("ArrowLeft")
    assert settled(view, 7)["settings"]["mask"]["rows"] == []
    view.keyboard.press("PageUp")
    settled(view, 6)
    view.keyboard.press("PageDown")
    settled(view, 7)


def test_the_end_brings_the_page_back(view: Page, service: ReconstructionService) -> None:
    view.locator("#panel-masked svg.grid").click(position={"x": 4, "y": 4})
    view.wait_for_function("() => document.querySelector('[data-view]').dataset.view"
                           ".includes('\"rows\":[\"')")  # fmt: skip
    own = pictures(view)
    view.locator("#lecture .begin").click()
    settled(view, 1)
    view.locator("#lecture .end").click()
    gone(view, lambda: pictures(view) != own and "another picture")
    view.locator("#examples button[data-name=dogs]").click()
    slide(view, "mask-ratio", 0.5)
    slide(view, "seed", 9)
    view.locator("#strategy label", has_text="Grid").click()
    view.locator("#fit label", has_text="Squash").click()
    before = expected(service, example("dogs"), 0.5, 9, "grid", "squash")
    shows(view, before)
    view.get_by_role("tab", name="Compare").click()
    view.locator("#lecture .begin").press("Enter")
    settled(view, 1)
    for step in range(2, 8):
        view.keyboard.press("ArrowRight")
        settled(view, step)
    view.keyboard.press("Escape")
    shows(view, before)
    assert "#" not in view.url
    expect(view.locator("#examples [aria-pressed=true]")).to_have_attribute("data-name", "dogs")
    expect(view.locator("#mask-ratio input[type=number]")).to_have_value("0.5")
    expect(view.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    expect(view.locator("#inputs")).to_be_visible()
    expect(view.locator("#lecture .begin")).to_be_focused()


def test_a_link_opens_its_step(view: Page) -> None:
    url, before = view.url, pictures(view)
    for step, (_, ratio, strategy, tab) in enumerate(STEPS, 1):
        view.goto(f"{url}#lecture={step}")
        mask = settled(view, step)["settings"]["mask"]
        assert (mask["ratio"], mask["strategy"]) == (ratio, strategy)
        if tab:
            expect(view.locator(f"#{tab} .part")).to_be_visible()
        view.keyboard.press("Escape")
        assert view.url == url
        expect(view.locator("#mask-ratio input[type=number]")).to_have_value("0.75")
        gone(view, lambda: pictures(view) != before and "other pictures")


def test_presses_in_quick_succession(view: Page) -> None:
    view.evaluate(
        "import(new URL('stage/stage.js', document.baseURI)).then(({stage}) => {"
        " window.asked = [];"
        " stage.addEventListener('ask', (event) => window.asked.push("
        "[event.detail, stage.view.settings.mask.strategy])); })"
    )
    view.locator("#lecture .begin").press("Enter")
    for _ in range(4):
        view.keyboard.press("ArrowRight")
    assert settled(view, 5)["settings"]["mask"]["strategy"] == "block"
    # A part is asked when its step is on show: once as the view is there, and once more if the
    # part was mounted later.
    assert view.evaluate("window.asked") == []
    view.keyboard.press("ArrowRight")
    settled(view, 6)
    assert {*map(tuple, view.evaluate("window.asked"))} == {("inside", "random")}
    # The numbers are links.
    view.get_by_role("link", name="Step 5 of 8").click()
    settled(view, 5)
    assert view.url.endswith("#lecture=5")
    # What takes an arrow key itself keeps it.
    view.evaluate(
        "document.querySelector('#panels').addEventListener('keydown',"
        " (event) => event.preventDefault(), { once: true })"
    )
    view.locator("#panels").dispatch_event("keydown", {"key": "ArrowRight"})
    view.locator("#tabs [role=tab]").first.dispatch_event("keydown", {"key": "ArrowRight"})
    settled(view, 5)
    # What is drawn in the last step does not.
    view.get_by_role("link", name="Step 8 of 8").click()
    settled(view, 8)
    view.locator("#panel-masked svg.grid").click(position={"x": 4, "y": 4})
    view.keyboard.press("ArrowLeft")
    settled(view, 7)


@on_a_phone
def test_a_phone_has_buttons_in_reach(view: Page) -> None:
    view.locator("#lecture .begin").tap()
    for step in range(1, 9):
        settled(view, step)
        assert view.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        place = view.locator("#lecture .next").bounding_box()
        assert place
        assert place["height"] >= 32
        assert PHONE["height"] - 80 < place["y"] < PHONE["height"] - place["height"]
        if step < 8:
            view.locator("#lecture .next").tap()
    view.locator("#lecture .end").tap()
    expect(view.locator("#lecture .begin")).to_be_visible()


def test_the_end_brings_back_what_was_asked_for_last(view: Page) -> None:
    slide(view, "seed", 41)
    view.locator("#lecture .begin").press("Enter")
    settled(view, 1)
    view.keyboard.press("Escape")
    expect(view.locator("#seed input[type=number]")).to_have_value("41")
    view.locator("[data-view*='\"seed\":41']").wait_for(state="attached")


def test_another_address_ends_it(view: Page) -> None:
    view.locator("#lecture .begin").press("Enter")
    settled(view, 1)
    view.evaluate(
        "location.hash = '#s=eyJ2IjoxLCJleGFtcGxlIjoiZG9ncyJ9'"
    )  # {"v":1,"example":"dogs"}
    expect(view.locator("#lecture .begin")).to_be_visible()
    expect(view.locator("#examples button[data-name=dogs]")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert "#s=" in view.url
    expect(view.locator("#lecture .sentence")).to_be_hidden()


def test_a_step_that_cannot_be_set_says_why(view: Page) -> None:
    view.evaluate("""async () => {
      const {stage} = await import(new URL('stage/stage.js', document.baseURI));
      const {opener} = stage;
      stage.opener = async (settings) => {
        stage.opener = opener;
        return 'There is no such model.';
      };
    }""")
    view.locator("#lecture .begin").press("Enter")
    expect(view.locator("#lecture .sentence")).to_have_text("There is no such model.")
    view.keyboard.press("ArrowRight")
    settled(view, 2)
