"""Where a prediction came from, in a real Chromium: influence and attention."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Locator, Page, expect

from app.examples import EXAMPLES
from mae_core.inside.attention import attend
from mae_core.inside.influence import influence
from mae_core.reconstruct import ReconstructionRequest
from tests.app.serving import HeldReconstructor, small_reconstructor
from tests.browser.asking import status, tab, walk
from tests.browser.conftest import gone, on_a_phone
from tests.browser.test_page import pictures, slide

pytestmark = pytest.mark.browser

CAT = EXAMPLES / "cat.jpg"
FIRST = {"mask_ratio": 0.75, "seed": 2}
# Of the page's first mask: patches of the middle row, removed and visible.
SIDE, PATCH = 7, 16
MEASURED = "All 12 visible patches left out in turn"


def opened_tab(page: Page) -> Locator:
    tab(page, "Where from?")
    page.locator("#origin .study").wait_for()
    return page.locator("#origin")


def measured(page: Page) -> Locator:
    part = opened_tab(page)
    part.get_by_role("button", name="Measure influence").click()
    expect(part.locator(".cost")).to_contain_text(MEASURED)
    return part


def point(part: Locator, patch: int) -> None:
    """Move the mouse to the centre of a patch."""
    part.locator("svg").hover(position=place(part, patch))


def place(part: Locator, patch: int) -> Any:
    box = part.locator("svg").bounding_box()
    assert box
    row, column = divmod(patch, SIDE)
    return {
        "x": (column + 0.5) * box["width"] / SIDE,
        "y": (row + 0.5) * box["height"] / SIDE,
    }


def spot(patch: int) -> str:
    return f"row {patch // SIDE + 1}, column {patch % SIDE + 1}"


def glowing(part: Locator) -> dict[int, float]:
    """Patch -> value, of those that glow."""
    pairs = part.locator("svg .marks").evaluate(
        "(marks) => [...marks.children].map(({dataset}) => [dataset.patch, dataset.value])"
    )
    return {int(patch): float(value) for patch, value in pairs}


def close(found: dict[int, float], wanted: dict[int, float]) -> None:
    assert found.keys() == wanted.keys()
    values = list(wanted.values())
    np.testing.assert_allclose([found[patch] for patch in wanted], values, rtol=1e-3, atol=1e-6)


def brute_force() -> tuple[npt.NDArray[np.bool_], dict[int, npt.NDArray[np.float64]]]:
    """What is removed, and visible patch -> RMS change of each patch without it."""
    reconstructor = small_reconstructor()
    before = reconstructor(CAT, **FIRST)
    changes = {}
    for patch in np.flatnonzero(~before.removed):
        mask = before.removed.copy()
        mask.flat[patch] = True
        after = reconstructor(CAT, mask=mask)
        squares = (after.reconstruction - before.reconstruction).numpy().astype(float) ** 2
        patches = squares.reshape(3, SIDE, PATCH, SIDE, PATCH).mean(axis=(0, 2, 4))
        changes[int(patch)] = np.sqrt(patches).ravel()
    return before.removed.ravel(), changes


def test_the_glow_is_what_brute_force_finds(view: Page) -> None:
    part = opened_tab(view)
    expect(part.locator(".cost")).to_have_text(
        "12 visible patches: 13 runs of the model, one with all of them and one without each"
    )
    assert not glowing(part)
    part.get_by_role("button", name="Measure influence").click()
    expect(part.locator(".cost")).to_contain_text(MEASURED)
    removed, changes = brute_force()
    found = influence(small_reconstructor(), CAT, **FIRST)
    part.locator("svg").scroll_into_view_if_needed()
    box = part.locator("svg").bounding_box()
    assert box
    for patch in range(SIDE**2):
        at = place(part, patch)
        view.mouse.move(box["x"] + at["x"], box["y"] + at["y"])
        expect(part.locator(".where")).to_contain_text(f"{spot(patch)} ({state(removed[patch])})")
        shown = glowing(part)
        if removed[patch]:
            wanted = {visible: float(change[patch]) for visible, change in changes.items()}
            column = found.removed.tolist().index(patch)
            close(shown, dict(zip(changes, found.change[:, column], strict=True)))
        else:
            wanted = {int(one): float(changes[patch][one]) for one in np.flatnonzero(removed)}
        close(shown, wanted)
        strongest = sorted(wanted, key=lambda one: -wanted[one])[:5]
        assert part.locator("ol li").all_text_contents() == [
            f"{spot(one)}: {100 * shown[one]:.2f}%" for one in strongest
        ]


def state(removed: np.bool_) -> str:
    return "removed" if removed else "visible"


def test_pointing_asks_nothing(view: Page) -> None:
    part = measured(view)
    requests: list[str] = []
    view.on("request", lambda r: requests.append(r.url))
    seen = []
    for patch in (0, 8, 24, 30, 48):
        point(part, patch)
        seen.append(tuple(part.locator("ol li").all_text_contents()))
    assert len(set(seen)) == 5
    part.locator("svg").click(position=place(part, 9))
    view.keyboard.press("ArrowRight")
    expect(part.locator(".where")).to_contain_text(spot(10))
    # What is pinned stays when the mouse goes.
    view.locator("#title").hover()
    expect(part.locator(".where")).to_contain_text(spot(10))
    assert not requests


def test_cancel_stops_it(view: Page, model: HeldReconstructor) -> None:
    part = opened_tab(view)
    before = pictures(view)
    model.sizes.clear()
    with model.held():
        part.get_by_role("button", name="Measure influence").click()
        expect(part.get_by_role("progressbar")).to_be_visible()
        assert model.begun.wait(60)
        part.get_by_role("button", name="Cancel").click()
        status(view, "origin", "Cancelled.")
        expect(part.get_by_role("progressbar")).to_be_hidden()
    # What was under way ends before the next request begins.
    slide(view, "seed", 9)
    gone(view, lambda: pictures(view)["masked"] == before["masked"])
    view.locator("#facts .pending").wait_for(state="detached")
    assert sum(model.sizes) < 6
    expect(part.get_by_role("button", name="Measure influence")).to_be_visible()


def attention_of(patch: int) -> Any:
    return attend(small_reconstructor(), ReconstructionRequest(CAT, **FIRST), patch)


def test_attention_is_what_python_says(view: Page) -> None:
    part = opened_tab(view)
    removed, visible = 24, int(np.flatnonzero(~small_reconstructor()(CAT, **FIRST).removed)[0])
    part.locator("svg").click(position=place(part, removed))
    part.get_by_role("button", name="Attention", exact=True).click()
    expect(part.get_by_text("To the class token")).to_be_visible()
    expect(part.get_by_text("Attention is not influence.")).to_be_visible()
    expect(part.get_by_text("The encoder never sees a removed patch")).to_be_visible()
    mean = attention_of(removed).decoder[-1].mean(dim=0).tolist()
    close(glowing(part), dict(enumerate(mean[1:])))
    expect(part.get_by_text("To the class token")).to_contain_text(f"{100 * mean[0]:.2f}%")
    part.get_by_label("Head").select_option("2")
    close(glowing(part), dict(enumerate(attention_of(removed).decoder[-1, 1, 1:].tolist())))

    part.locator("svg").click(position=place(part, visible))
    expect(part.get_by_text("The encoder never sees a removed patch")).to_be_hidden()
    part.get_by_label("Part").select_option("Encoder")
    seen = attention_of(visible)
    assert seen.encoder is not None
    wanted = seen.encoder[-1].mean(dim=0)[1:].tolist()
    close(glowing(part), dict(zip(seen.visible, wanted, strict=True)))


def test_the_newest_patch_wins(view: Page) -> None:
    part = opened_tab(view)
    part.get_by_role("button", name="Attention", exact=True).click()
    part.locator("svg").focus()
    for key in ("ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowRight"):
        view.keyboard.press(key)
    last = int(part.locator(".pin rect").first.evaluate("({y}) => 7 * y.baseVal.value"))
    last += int(part.locator(".pin rect").first.evaluate("({x}) => x.baseVal.value"))
    expect(part.locator(".where")).to_contain_text(spot(last))
    expect(part.locator(".told")).to_contain_text("Strongest")
    expect(part.get_by_role("button", name="Cancel")).to_be_hidden()
    close(glowing(part), dict(enumerate(attention_of(last).decoder[-1].mean(dim=0)[1:].tolist())))


def test_a_measurement_of_an_earlier_picture_is_dimmed(view: Page) -> None:
    part = measured(view)
    first = glowing(part)
    slide(view, "seed", 5)
    expect(part.locator(".study.old")).to_be_visible()
    status(view, "origin", "This is of another picture or of other settings")
    assert glowing(part) == first
    part.get_by_role("button", name="Measure again").click()
    expect(part.locator(".cost")).to_contain_text(MEASURED)
    expect(part.locator(".study.old")).to_have_count(0)
    assert glowing(part) != first


def test_another_language_keeps_the_measurement(view: Page) -> None:
    part = measured(view)
    first = glowing(part)
    view.evaluate("document.documentElement.lang = 'zh-CN'")
    expect(part.locator(".cost")).to_contain_text("12 个可见图块已全部逐一去掉")
    assert glowing(part) == first


@pytest.mark.parametrize("view", [{"locale": "zh-CN"}], indirect=True, ids=["zh-CN"])
def test_too_many_visible_patches_are_not_left_out(view: Page) -> None:
    view.get_by_role("tab", name="依据何处").click()
    part = view.locator("#origin")
    view.locator("#size label", has_text="336").click()
    slide(view, "mask-ratio", 0.2)
    expect(part.locator(".cost")).to_contain_text("441 个图块中有 352 个可见")
    expect(part.locator(".cost")).to_contain_text("可见图块必须有 2 到 256 个")
    expect(part.get_by_role("button", name="测量影响")).to_be_hidden()


def test_attention_after_another_view_is_of_that_view(view: Page) -> None:
    part = measured(view)
    slide(view, "seed", 9)
    expect(part.get_by_role("button", name="Measure again")).to_be_visible()
    part.get_by_role("button", name="Attention", exact=True).click()
    expect(part.get_by_text("It attends most to these patches:")).to_be_visible()
    expect(part.locator(".study.old")).to_have_count(0)


def test_it_works_by_keyboard(view: Page) -> None:
    view.get_by_role("tab", name="Film of the ratio").focus()
    part = view.locator("#origin")
    walk(view, view.get_by_role("tab", name="Where from?"))
    view.keyboard.press("Enter")
    start = part.get_by_role("button", name="Measure influence")
    walk(view, start)
    view.keyboard.press("Enter")
    expect(part.locator(".cost")).to_contain_text(MEASURED)
    # The keyboard is at the picture by now.
    expect(part.locator("svg")).to_be_focused()
    before = part.locator(".where").text_content()
    view.keyboard.press("ArrowDown")
    expect(part.locator(".where")).not_to_have_text(str(before))
    expect(part.locator(".told")).to_contain_text("Strongest: row")
    view.keyboard.press("Shift+Tab")
    expect(part.get_by_role("button", name="Attention", exact=True)).to_be_focused()
    view.keyboard.press("Space")
    expect(part.get_by_text("To the class token")).to_be_visible()
    walk(view, part.get_by_label("Layer"))


@on_a_phone
def test_a_finger_points_too(view: Page) -> None:
    tab(view, "Where from?")
    part = view.locator("#origin")
    part.get_by_role("button", name="Measure influence").tap()
    expect(part.locator(".cost")).to_contain_text(MEASURED)
    for patch in (16, 33):
        part.locator("svg").tap(position=place(part, patch))
        expect(part.locator(".where")).to_contain_text(spot(patch))
        expect(part.locator("ol li")).to_have_count(5)
    width = view.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
