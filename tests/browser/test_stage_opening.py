"""The film that the page opens with."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from app.page.events import PANELS
from app.service import ReconstructionService
from mae_core.inside.sweep import film_ratios
from tests.app.serving import example
from tests.browser.conftest import DESKTOP, TIMEOUT, Tab, watched
from tests.browser.test_page import differing, expected, panel, shows, slide
from tests.browser.test_stage_lecture import settled

pytestmark = pytest.mark.browser

# Pixels of each picture that the masked panel shows, one after the other.
RECORD = """
  window.frames_seen = [];
  const look = () => {
    const canvas = document.querySelector('#panel-masked canvas');
    const film = document.querySelector('#panels')?.classList.contains('film');
    if (film && canvas.width) {
      const now = canvas.toDataURL();
      if (window.frames_seen.at(-1) !== now) window.frames_seen.push(now);
    }
    requestAnimationFrame(look);
  };
  look();
"""
# A film stands still until the test lets it go on.
HELD = """
  const real = window.setTimeout;
  window.setTimeout = (does, wait, ...others) => {
    if (wait > 400 && wait < 450 && !window.released) return 0;
    return real(does, wait, ...others);
  };
"""
# As at the beginning of a visit, in a page that is open.
AGAIN = """async () => {
  const {mount} = await import(new URL('stage/opening.js', document.baseURI));
  const {props} = gradio_config.components.find(({props}) => props.elem_id === 'opening');
  sessionStorage.removeItem('opened');
  window.played = false;
  mount({props, signal: new AbortController().signal}).then(() => { window.played = true; });
}"""
Visit = Callable[..., Page]


@pytest.fixture
def visit(tabs: Callable[[bool], Tab], page_url: str) -> Iterator[Visit]:
    """Open the page in a tab of its own, as a first visit, where motion is allowed."""
    context = tabs(False).context
    with watched(context, page_url):

        def opened(*scripts: str, path: str = "/") -> Page:
            tab = Tab(context)
            tab.suit(DESKTOP, "en-US", "no-preference")
            page = tab.page
            page.set_default_timeout(TIMEOUT)
            for script in scripts:
                page.add_init_script(script)
            page.goto(page_url + path)
            page.locator("#panels [data-view]").wait_for()
            return page

        yield opened


@pytest.fixture(scope="module")
def first(service: ReconstructionService, page_url: str) -> dict[str, Any]:
    """The panels of the first view."""
    return expected(service, example("cat"), 0.75, 2)


def begun(page: Page) -> None:
    page.locator("#panels.film").wait_for()


def over(page: Page) -> None:
    page.locator("#panels:not(.film)").wait_for()


def again(page: Page) -> None:
    page.evaluate(AGAIN)


def fetched(page: Page) -> list[str]:
    names: list[str] = page.evaluate(
        "performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    return [name for name in names if name.endswith("frame.webp")]


def test_the_first_view_moves_once_and_ends_as_it_is(visit: Visit, first: dict[str, Any]) -> None:
    page = visit(RECORD)
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if "/queue/join" in r.url else None)
    begun(page)
    over(page)
    # Of 49 patches some ratios leave equally many.
    visible = {int(49 * (1 - ratio) + 1e-9) for ratio in film_ratios(7, 0.95, 0.75)[:-1]}
    assert page.evaluate("window.frames_seen.length") == len(visible) > 3
    shows(page, first)
    assert len(fetched(page)) == 6
    assert not asked
    page.reload()
    page.locator("#panels [data-view]").wait_for()
    page.wait_for_load_state("networkidle")
    assert page.evaluate("window.frames_seen.length") == 0
    assert not fetched(page)
    shows(page, first)


def test_whatever_the_visitor_does_ends_it(
    visit: Visit, service: ReconstructionService, first: dict[str, Any]
) -> None:
    page = visit(HELD)
    begun(page)
    # The frames are the model's.
    wanted = expected(service, example("cat"), 0.95, 2)
    masked, reconstruction = panel(page, "masked"), panel(page, "reconstruction")
    assert masked is not None
    assert reconstruction is not None
    assert np.array_equal(masked, wanted["masked"])
    file = io.BytesIO()
    Image.fromarray(wanted["reconstruction"]).save(file, "WEBP", quality=80)
    with Image.open(file) as frame:
        error = np.abs(np.asarray(frame.convert("RGB")).astype(int) - reconstruction)
    assert error.max() <= 2
    touches: list[Callable[[], None]] = [
        lambda: page.keyboard.press("Shift"),
        lambda: page.mouse.wheel(0, 1),
        page.mouse.down,
    ]
    for touch in touches:
        assert differing(page, first)
        touch()
        over(page)
        shows(page, first)
        again(page)
        begun(page)
    page.mouse.up()
    # It is not taken for an own mask.
    state = "import(new URL('stage/stage.js', document.baseURI)).then(({stage}) => [stage.mask," \
        " stage.view.mask, stage.ahead])"  # fmt: skip
    mask, true, ahead = page.evaluate(state)
    assert mask == true
    assert not ahead
    expect(page.locator("#editor .count")).to_contain_text("37 of 49")
    expect(page.locator("#editor .undo")).to_be_disabled()
    # A stroke starts from the true mask.
    page.locator("#panel-masked svg.grid").click(position={"x": 4, "y": 4})
    page.locator("#editor .undo:not([disabled])").click()
    shows(page, first)
    again(page)
    begun(page)
    slide(page, "mask-ratio", 0.5)
    over(page)
    shows(page, expected(service, example("cat"), 0.5, 2))


def test_it_does_not_run(visit: Visit) -> None:
    # The lecture begins in its place.
    page = visit(RECORD, path="/#lecture=6")
    mask = settled(page, 6)["settings"]["mask"]
    assert (mask["ratio"], mask["strategy"]) == (0.75, "random")
    expect(page.locator("#inside .part")).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert page.evaluate("window.frames_seen.length") == 0
    page.evaluate("location.hash = '#s=x'")
    again(page)
    page.evaluate("history.replaceState(null, '', '/')")
    page.emulate_media(reduced_motion="reduce")
    again(page)
    page.wait_for_function("window.played")
    assert page.evaluate("window.frames_seen.length") == 0
    assert not fetched(page)
    assert all(panel(page, name) is not None for name in PANELS)
    # Nor after a touch before the first view.
    page.emulate_media(reduced_motion="no-preference")
    module = "const {stage} = await import(new URL('stage/stage.js', document.baseURI));"
    page.evaluate("async () => {" + module + "window.view = stage.view; stage.view = null; }")
    again(page)
    page.wait_for_load_state("networkidle")
    assert not page.evaluate("window.played")
    page.keyboard.press("Shift")
    page.wait_for_function("window.played")
    page.evaluate("async () => {" + module + "stage.show(window.view, stage.images); }")
    assert page.evaluate("window.frames_seen.length") == 0
    # It could have.
    again(page)
    begun(page)
    page.keyboard.press("Escape")
    assert "#" not in page.url
    expect(page.locator("#mask-ratio input[type=number]")).to_have_value("0.75")
