"""The visitor's own mask, painted over the masked panel."""

import json

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from app.examples import EXAMPLES
from app.service import ReconstructionService
from mae_core import ModelConfig
from mae_core.reconstruct import mask_from_drawing
from mae_core.settings import rows_of
from tests.app.serving import HeldReconstructor, encoded, example, small_reconstructor
from tests.browser.asking import settle
from tests.browser.conftest import PHONE, gone
from tests.browser.test_page import choose_file, panel, shows, slide

pytestmark = pytest.mark.browser

GRID = "#panel-masked svg.grid"


def rows(page: Page) -> list[str]:
    """The mask of the answer on show."""
    view = page.evaluate("document.querySelector('[data-view]').dataset.view")
    mask: list[str] = json.loads(view)["mask"] if view else []
    return mask


def previewed(page: Page) -> list[str]:
    """The mask that the masked panel shows."""
    pixels = panel(page, "masked")
    assert pixels is not None
    grey = (pixels == 128).all(axis=2)
    side = len(pixels) // 7
    cells = grey.reshape(7, side, 7, side).all(axis=(1, 3))
    return ["".join("01"[int(cell)] for cell in row) for row in cells]


def place(page: Page, row: float, column: float) -> tuple[float, float]:
    """The middle of a patch on the screen."""
    box = page.locator(GRID).bounding_box()
    assert box
    return (
        box["x"] + box["width"] * (column + 0.5) / 7,
        box["y"] + box["height"] * (row + 0.5) / 7,
    )


def stroke(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*place(page, *start))
    page.mouse.down()
    page.mouse.move(*place(page, *end), steps=2)
    page.mouse.up()


def answered(page: Page, wanted: list[str], service: ReconstructionService) -> None:
    """Wait until the panels show the answer to a mask, which is what Python says to it."""
    gone(page, lambda: rows(page) != wanted and f"{rows(page)} in place of {wanted}")
    mask = [[int(cell) for cell in row] for row in wanted]
    answer = service.reconstruct(example("cat"), 0.75, 2, mask=mask)
    assert answer.mask == tuple(wanted)
    shows(page, {name: np.asarray(picture) for name, picture in answer.panels.items()})


def previews(page: Page, wanted: list[str]) -> None:
    """Wait until the masked panel shows a mask."""
    gone(page, lambda: previewed(page) != wanted and f"{previewed(page)} in place of {wanted}")


def with_row(mask: list[str], row: int, cells: str) -> list[str]:
    return [*mask[:row], cells, *mask[row + 1 :]]


def test_a_stroke_is_the_mask_that_python_gets(view: Page, service: ReconstructionService) -> None:
    before = rows(view)
    # Of a patch that is visible, so that the stroke hides; a fast one leaves no gaps.
    row, column = next((i, r.index("0")) for i, r in enumerate(before) if r[0] == "0" or "0" in r)
    stroke(view, (row, column), (row, 6 if column < 3 else 0))
    reach = range(column, 7) if column < 3 else range(column + 1)
    cells = "".join("1" if j in reach else c for j, c in enumerate(before[row]))
    hidden = with_row(before, row, cells)
    answered(view, hidden, service)
    removed = sum(map(str.count, hidden, "1" * 7))
    expect(view.locator("#editor .count")).to_have_text(
        f"{removed} of 49 patches removed · {round(100 * removed / 49)}%"
    )
    view.keyboard.press("Control+z")
    answered(view, before, service)
    view.keyboard.press("Control+Shift+z")
    answered(view, hidden, service)
    # As the tools' hints say.
    view.get_by_role("button", name="Draw the mask").press("Control+z")
    answered(view, before, service)


def test_shift_and_the_right_button_do_the_opposite(view: Page) -> None:
    view.get_by_role("button", name="Draw the mask").click()
    view.get_by_role("button", name="Hide", exact=True).click()
    view.mouse.click(*place(view, 3, 3))
    gone(view, lambda: rows(view)[3][3] != "1" and "not hidden")
    view.keyboard.down("Shift")
    view.mouse.click(*place(view, 3, 3))
    view.keyboard.up("Shift")
    gone(view, lambda: rows(view)[3][3] != "0" and "not shown by Shift")
    view.get_by_role("button", name="Show", exact=True).click()
    view.mouse.click(*place(view, 3, 3), button="right")
    gone(view, lambda: rows(view)[3][3] != "1" and "not hidden by the right button")
    view.mouse.click(*place(view, 3, 3), button="middle")
    assert previewed(view)[3][3] == "1"
    # A release that the page does not hear of ends the stroke with the next move.
    view.mouse.move(*place(view, 3, 3))
    view.mouse.down()
    before = previewed(view)
    assert before[3][3] == "0"
    view.locator(GRID).dispatch_event(
        "pointermove", {"pointerId": 1, "buttons": 0, "bubbles": True}
    )
    view.mouse.move(*place(view, 3, 0))
    view.mouse.up()
    assert previewed(view) == before
    # Where a pointer is that draws nothing is not measured.
    view.evaluate(
        "() => { SVGGraphicsElement.prototype.getScreenCTM = () => { throw Error('measured'); } }"
    )
    view.mouse.move(*place(view, 3, 1))


def test_the_mask_is_painted_by_keys_alone(view: Page, service: ReconstructionService) -> None:
    before = rows(view)
    view.locator(GRID).focus()
    view.keyboard.press("ArrowLeft")
    view.keyboard.press("ArrowUp")
    view.keyboard.press("Space")
    flipped = "1" if before[2][2] == "0" else "0"
    answered(view, with_row(before, 2, before[2][:2] + flipped + before[2][3:]), service)
    state = "removed" if flipped == "1" else "visible"
    expect(view.locator("#editor .said")).to_have_text(f"Row 3, column 3: {state}")
    view.keyboard.press("]")
    view.keyboard.press("Space")
    gone(view, lambda: rows(view)[1][2] == before[1][2] == rows(view)[3][2] and "a small brush")
    # The largest brush in the middle reaches every patch.
    for key in ("]", "]", "]", "ArrowRight", "ArrowDown"):
        view.keyboard.press(key)
    for _ in range(1 + int(previewed(view)[3][3])):
        view.keyboard.press("Space")
    expect(view.locator("#editor .said")).to_have_text(
        "One patch has to stay visible. Row 4, column 4: removed"
    )


def test_shapes_and_what_is_done_to_all(view: Page, service: ReconstructionService) -> None:
    view.get_by_role("button", name="Draw the mask").click()
    shapes = view.get_by_role("group", name="Shapes")
    # From one to the next by keys, which does nothing yet.
    shapes.get_by_role("button", name="Lower half").focus()
    view.keyboard.press("Tab")
    view.keyboard.press("Enter")
    board = ["".join("01"[(i + j) % 2] for j in range(7)) for i in range(7)]
    answered(view, board, service)
    view.get_by_role("button", name="Invert").click()
    answered(view, ["".join("10"[int(c)] for c in row) for row in board], service)
    view.get_by_role("button", name="Show all").click()
    answered(view, ["0" * 7] * 7, service)
    view.get_by_role("button", name="Invert").click()
    expect(view.locator("#editor .said")).to_have_text("One patch has to stay visible.")
    assert previewed(view) == ["0" * 7] * 7


def load_drawing(page: Page, data: bytes) -> None:
    page.locator("#editor input[type=file]").set_input_files(
        {"name": "mask.png", "mimeType": "image/png", "buffer": data}
    )


def test_a_black_and_white_picture_is_a_mask(view: Page, service: ReconstructionService) -> None:
    pixels = np.zeros((70, 70), np.uint8)
    pixels[:, :30] = 255
    view.get_by_role("button", name="Draw the mask").click()
    load_drawing(view, encoded(Image.fromarray(pixels)))
    answered(view, ["1110000"] * 7, service)
    load_drawing(view, b"no picture")
    expect(view.locator("#editor .said")).to_contain_text("cannot be read")
    assert rows(view) == ["1110000"] * 7


def test_a_drawing_is_cut_as_the_picture_is(view: Page) -> None:
    pixels = np.zeros((100, 150, 3), np.uint8)
    pixels[:, :45] = 255
    view.get_by_role("button", name="Draw the mask").click()
    load_drawing(view, encoded(Image.fromarray(pixels)))
    config = ModelConfig(image_size=112, patch_size=16)
    wanted = mask_from_drawing(pixels[:, :, 0], (150, 100), config)
    assert wanted.any()
    gone(view, lambda: rows(view) != list(rows_of(wanted)) and f"it is {rows(view)}")


def test_who_hears_the_page_hears_what_undo_did(view: Page) -> None:
    grid = view.locator(GRID)
    grid.focus()
    said = view.locator("#editor .said")
    before = ("visible", "removed") if rows(view)[3][3] == "0" else ("removed", "visible")
    grid.press("Space")
    expect(said).to_have_text(f"Row 4, column 4: {before[1]}")
    grid.press("Control+z")
    expect(said).to_have_text(f"Row 4, column 4: {before[0]}")


def test_without_a_reconstruction_there_is_nothing_to_draw_on(view: Page) -> None:
    choose_file(view, "tiny.png", encoded(Image.new("RGB", (3, 2))))
    draw = view.get_by_role("button", name="Draw the mask")
    expect(draw).to_be_disabled()
    expect(view.locator("#editor .count")).to_have_text("")
    expect(view.locator("#film [role=status]").first).to_have_text(
        "There is no reconstruction to ask about."
    )


def test_the_sliders_take_the_mask_back(view: Page, service: ReconstructionService) -> None:
    before = rows(view)
    view.mouse.click(*place(view, 0, 0))
    back = view.get_by_role("button", name="Back to the sliders' mask")
    expect(back).to_be_visible()
    back.click()
    answered(view, before, service)
    expect(back).to_be_hidden()
    view.mouse.click(*place(view, 0, 0))
    expect(back).to_be_visible()
    slide(view, "seed", 5)
    drawn = service.reconstruct(example("cat"), 0.75, 5)
    gone(view, lambda: tuple(rows(view)) != drawn.mask and "not the mask of the seed")
    expect(back).to_be_hidden()
    # Nor does undo skip it, after masks of the sliders alone.
    settle(view, "seed", "seed", 6)
    drawn = service.reconstruct(example("cat"), 0.75, 6)
    assert tuple(previewed(view)) == drawn.mask
    view.mouse.click(*place(view, 0, 0))
    view.get_by_role("button", name="Undo").click()
    assert tuple(previewed(view)) == drawn.mask


def test_the_masked_panel_follows_before_the_answer(
    view: Page, model: HeldReconstructor, service: ReconstructionService
) -> None:
    for seed, strategy in enumerate(("random", "block", "grid"), 77):
        removed = small_reconstructor()(EXAMPLES / "cat.jpg", 0.4, seed, strategy=strategy).removed
        wanted = list(rows_of(removed))
        with model.held():
            view.locator(f"#strategy input[value={strategy}]").check()
            slide(view, "mask-ratio", 0.4)
            slide(view, "seed", seed)
            previews(view, wanted)
            assert rows(view) != wanted, "the answer was there before"
        answered(view, wanted, service)


def test_the_last_of_many_strokes_ends_up_shown(
    view: Page, model: HeldReconstructor, service: ReconstructionService
) -> None:
    with model.held():
        for column in range(7):
            view.mouse.click(*place(view, 5, column))
        wanted = previewed(view)
    answered(view, wanted, service)


def test_an_own_mask_stays_with_another_picture_and_another_size(view: Page) -> None:
    view.get_by_role("button", name="Draw the mask").click()
    view.get_by_role("button", name="Left half").click()
    gone(view, lambda: rows(view) != ["1110000"] * 7 and "not there yet")
    view.locator("#examples button[data-name=coffee]").click()
    view.locator("#size").get_by_label("336").check(force=True)
    # Three times as fine.
    gone(view, lambda: rows(view) != ["1" * 9 + "0" * 12] * 21 and f"{rows(view)[:1]}")
    expect(view.locator("#editor .count")).to_have_text("189 of 441 patches removed · 43%")


@pytest.mark.parametrize(
    "view", [{"viewport": PHONE, "has_touch": True, "is_mobile": True}], indirect=True
)
def test_fingers_draw_once_they_are_told_to(view: Page) -> None:
    before = rows(view)
    view.locator(GRID).scroll_into_view_if_needed()
    view.touchscreen.tap(*place(view, 3, 3))
    view.get_by_role("button", name="Draw the mask").tap()
    assert rows(view) == before
    assert view.locator(GRID).evaluate("(grid) => getComputedStyle(grid).touchAction") == "none"
    view.locator(GRID).scroll_into_view_if_needed()
    view.touchscreen.tap(*place(view, 3, 3))
    gone(view, lambda: rows(view)[3][3] == before[3][3] and "the tap did nothing")
    # A second finger draws nothing, nor a line to the first.
    before = previewed(view)
    first, second = ({"x": x, "y": y} for x, y in (place(view, 1, 1), place(view, 1, 5)))
    hand = view.context.new_cdp_session(view)
    for event, fingers in {
        "touchStart": [[first], [first, second]],
        "touchMove": [[first, second | {"x": second["x"] + 2}]],
        "touchEnd": [[]],
    }.items():
        for points in fingers:
            touches = [point | {"id": number} for number, point in enumerate(points)]
            hand.send("Input.dispatchTouchEvent", {"type": event, "touchPoints": touches})
    flipped = "10"[int(before[1][1])]
    assert previewed(view) == with_row(before, 1, before[1][0] + flipped + before[1][2:])


@pytest.mark.parametrize("view", [{"locale": "zh-CN"}], indirect=True)
def test_the_tools_speak_chinese(view: Page) -> None:
    expect(view.get_by_role("button", name="绘制掩码")).to_be_visible()
    expect(view.locator("#editor .count")).to_have_text("已移除 37 / 49 个图块 · 76%")
    english, held = "**/locales/en.json", list[Route]()
    # Texts that are damaged leave the part as it is.
    view.route(english, lambda route: route.fulfill(body="{"))
    speak = "(lang) => { document.documentElement.lang = lang }"
    with view.expect_console_message(lambda message: message.type == "warning"):
        view.evaluate(speak, "en")
    view.unroute(english)
    # They are asked for again; when they come, another language is wanted already.
    view.route(english, lambda route: held.append(route))
    with view.expect_request(english):
        view.evaluate(speak, "en")
    view.evaluate(speak, "zh-CN")
    with view.expect_response(english):
        gone(view, lambda: not held and "not asked for")
        held[0].continue_()
    view.evaluate("0")
    expect(view.get_by_role("button", name="绘制掩码")).to_be_visible()
    view.evaluate(speak, "en")
    expect(view.get_by_role("button", name="Draw the mask")).to_be_visible()
