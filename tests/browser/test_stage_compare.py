"""Compare: two answers about one picture, in a real Chromium."""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from app.service import Answer, ReconstructionService
from app.settings import AppSettings
from mae_core import MaskedAutoencoder, Reconstructor
from tests.app.serving import CONFIG, HeldReconstructor, example, small_reconstructor
from tests.browser.asking import tab
from tests.browser.conftest import PHONE, gone, on_a_phone

pytestmark = pytest.mark.browser

Pixels = npt.NDArray[np.uint8]

SIZES = {"fine": {"patch_size": 8}, "large": {"image_size": 160}}


@pytest.fixture(scope="module")
def service(model: HeldReconstructor) -> ReconstructionService:
    """Models of equal and other grids and sizes, and one of normalised pixels."""
    models: dict[str, Reconstructor] = {"small-random": model}
    for name, changes in SIZES.items():
        torch.manual_seed(3)
        other = MaskedAutoencoder(replace(CONFIG, **changes))
        models[name] = Reconstructor(other, name, device="cpu", precision="float32")
    models["other"] = small_reconstructor("other", seed=5)
    models["norm"] = small_reconstructor("norm", seed=6, norm_pix=True)
    return ReconstructionService(models, settings=AppSettings(rate=0, max_batch=1, workers=1))


def part(page: Page) -> Locator:
    """The part, with its tab open and its models known."""
    if page.locator("#compare button.main").is_hidden():
        tab(page, "Compare")
    found = page.locator("#compare")
    expect(found.get_by_label("Model", exact=True).locator("option")).to_have_count(5)
    return found


def ask(page: Page, what: str, value: object) -> Locator:
    """Have B computed, which differs in one thing."""
    found = part(page)
    found.get_by_label("B differs in").select_option(what)
    control = found.locator(f"[data-of={what}]")
    if what in ("seed", "ratio"):
        control.fill(str(value))
    else:
        control.select_option(str(value))
    found.get_by_role("button", name="Compare").click()
    found.locator("table").wait_for()
    return found


def answered(service: ReconstructionService, ratio: float = 0.75, **changes: Any) -> Answer:
    picture = changes.pop("picture", "cat")
    return service.reconstruct(example(picture), ratio, changes.pop("seed", 2), **changes)


def pixels(canvas: Locator) -> Pixels:
    """What a canvas shows."""
    data = str(canvas.evaluate("(canvas) => canvas.toDataURL()"))
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB"))


def shows(canvas: Locator, answer: Answer, name: str = "reconstruction") -> None:
    wanted = np.asarray(answer.panels[name].convert("RGB"))
    gone(
        canvas.page,
        lambda: not np.array_equal(pixels(canvas), wanted) and f"there is no {name}",
    )


def side(page: Page, i: int) -> Locator:
    return page.locator("#compare .side canvas").nth(i)


@pytest.mark.parametrize(
    ("what", "value", "changes"),
    [
        ("model", "other", {"model": "other"}),
        ("seed", 9, {"seed": 9}),
        ("strategy", "grid", {"strategy": "grid"}),
    ],
)
def test_b_is_what_python_gives(
    view: Page, service: ReconstructionService, what: str, value: object, changes: dict[str, Any]
) -> None:
    ask(view, what, value)
    shows(side(view, 0), answered(service))
    shows(side(view, 1), answered(service, **changes))
    view.locator("#compare").get_by_role("button", name="Pasted").click()
    shows(side(view, 1), answered(service, **changes), "pasted")


def test_views_of_normalised_pixels_are_compared(
    view: Page, service: ReconstructionService
) -> None:
    found = part(view)
    expect(found.locator("option[value=view]")).to_be_disabled()
    view.evaluate(
        "async () => { const {stage} = await import(new URL('stage/stage.js', document.baseURI));"
        " stage.open({request: {...stage.view.settings, model: 'norm'}}); }"
    )
    expect(found.locator("option[value=view]")).to_be_enabled()
    ask(view, "view", "answer")
    shows(side(view, 0), answered(service, model="norm"))
    shows(side(view, 1), answered(service, model="norm", view="answer"))
    expect(found.locator("tbody")).to_contain_text("Estimated")


def test_figures_are_those_of_both_answers(view: Page, service: ReconstructionService) -> None:
    found = ask(view, "ratio", 0.5)
    one, other = answered(service).facts, answered(service, 0.5).facts
    rows = {
        row.locator("th").inner_text(): [cell.inner_text() for cell in row.locator("td").all()]
        for row in found.locator("tbody tr").all()
    }
    assert rows["Model"] == ["small-random", "small-random", ""]
    assert rows["Removed patches"] == ["37 / 49", "25 / 49", "−12"]
    for name, key, digits in (("PSNR (dB)", "psnr", 2), ("SSIM", "ssim", 3)):
        shown = [f"{facts[key]:.{digits}f}" for facts in (one, other)]
        assert rows[name][:2] == shown
        apart = float(rows[name][2].replace("−", "-"))
        assert apart == pytest.approx(float(shown[1]) - float(shown[0]))
    expect(found.locator(".notes")).to_contain_text("remove different patches")


COLOURED = """async ([values, max, width, height]) => {
  const {paintMap} = await import(new URL('stage/colours.js', document.baseURI));
  const image = new ImageData(width, height);
  paintMap(image, Float32Array.from(values, (value) => value ?? NaN), max);
  return [...image.data];
}"""


@pytest.mark.parametrize(
    ("what", "value", "changes"),
    [("seed", 9, {"seed": 9}), ("model", "fine", {"model": "fine"})],
)  # fmt: skip
def test_the_difference_is_that_of_both_pictures(
    view: Page, service: ReconstructionService, what: str, value: object, changes: dict[str, Any]
) -> None:
    found = ask(view, what, value)
    found.get_by_role("button", name="Difference").click()
    answers = answered(service), answered(service, **changes)
    one, other = (
        np.asarray(answer.panels["reconstruction"].convert("RGB"), int) for answer in answers
    )
    apart = np.abs(one - other).mean(axis=2, dtype=np.float64)
    both = np.ones(apart.shape, bool)
    for answer in answers:
        removed = np.array([[cell == "1" for cell in row] for row in answer.mask])
        side = apart.shape[0] // removed.shape[0]
        both &= np.kron(removed, np.ones((side, side), bool))
    largest = float(apart[both].max())
    values = np.where(both, apart, np.nan).ravel()
    listed = [None if np.isnan(value) else value for value in values.tolist()]
    wanted = view.evaluate(COLOURED, [listed, largest, *apart.shape[::-1]])
    canvas = found.locator(".map canvas")
    assert np.array_equal(
        pixels(canvas), np.array(wanted, np.uint8).reshape(*apart.shape, 4)[..., :3]
    )
    caption = found.locator(".map figcaption")
    expect(caption).to_contain_text(f"{100 * both.mean():.0f}% of the picture")
    expect(caption).to_contain_text(f"Mean {apart[both].mean():.1f}, largest {largest:.1f}")


def test_sizes_that_differ_are_said_and_have_no_map(
    view: Page, service: ReconstructionService
) -> None:
    found = ask(view, "model", "large")
    shows(side(view, 1), answered(service, model="large"))
    expect(found.locator(".notes")).to_contain_text("A has 112 × 112 pixels and B 160 × 160")
    found.get_by_role("button", name="Difference").click()
    expect(found.locator(".pictures")).to_contain_text("There is no difference map")


def test_the_divider_moves_by_keyboard_and_by_drag(view: Page) -> None:
    found = ask(view, "seed", 9)
    found.get_by_role("button", name="Swipe").click()
    divider = found.get_by_role("slider", name="Divider between A and B")
    expect(divider).to_have_attribute("aria-valuetext", "A 50%, B 50%")
    divider.press("ArrowRight")
    expect(divider).to_have_attribute("aria-valuetext", "A 51%, B 49%")
    clip = "(c) => getComputedStyle(c).clipPath"
    assert found.locator(".stack canvas").nth(1).evaluate(clip) == "inset(0px 0px 0px 51%)"
    divider.press("Home")
    expect(divider).to_have_attribute("aria-valuetext", "A 0%, B 100%")
    divider.scroll_into_view_if_needed()
    box = divider.bounding_box()
    assert box
    view.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    view.mouse.down()
    view.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 10)
    view.mouse.up()
    expect(divider).to_have_attribute("aria-valuetext", "A 75%, B 25%")


@pytest.mark.parametrize("mode", ["Side by side", "Difference"])
def test_the_original_is_shown_while_a_key_is_held(
    view: Page, service: ReconstructionService, mode: str
) -> None:
    found = ask(view, "seed", 9)
    found.get_by_role("button", name=mode).click()
    canvas = found.locator(".pictures canvas").last
    before = pixels(canvas)
    view.keyboard.down("o")
    shows(canvas, answered(service), "original")
    view.keyboard.up("o")
    gone(view, lambda: not np.array_equal(pixels(canvas), before) and "the original stays")
    held = found.get_by_role("button", name="Hold for original")
    held.hover()
    view.mouse.down()
    shows(canvas, answered(service), "original")
    expect(held).to_have_attribute("aria-pressed", "true")
    view.mouse.up()
    gone(view, lambda: not np.array_equal(pixels(canvas), before) and "the original stays")


def test_what_is_on_show_can_be_kept_while_the_page_changes(
    view: Page, service: ReconstructionService
) -> None:
    found = part(view)
    found.get_by_role("button", name="Keep as A").click()
    expect(found.locator(".notes")).to_contain_text("A is kept")
    view.locator("#strategy label", has_text="Blocks").click()
    shows(side(view, 1), answered(service, strategy="block"))
    shows(side(view, 0), answered(service))
    view.locator("#examples button[data-name=dogs]").click()
    shows(side(view, 1), answered(service, strategy="block", picture="dogs"))
    found.get_by_role("button", name="Difference").click()
    expect(found.locator(".pictures")).to_contain_text("the pixels of A and B do not match")
    found.get_by_role("button", name="Keep as A").click()
    view.locator("#examples button[data-name=cat]").click()
    expect(found.locator(".notes")).to_contain_text("The page shows something else by now")


def test_the_newest_question_wins(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    found = part(view)
    found.get_by_label("B differs in").select_option("seed")
    with model.held():
        for seed in (901, 902, 903):
            found.locator("[data-of=seed]").fill(str(seed))
            found.get_by_role("button", name="Compare").click()
    shows(side(view, 1), answered(service, seed=903))
    expect(found.get_by_role("button", name="Cancel")).to_be_hidden()
    shows(side(view, 1), answered(service, seed=903))


def test_a_model_that_is_not_there_yet_is_said_and_can_be_asked_again(
    view: Page, service: ReconstructionService
) -> None:
    sentence = "other is waiting to be fetched (8 MB)"

    def refuse(route: Route) -> None:
        route.fulfill(content_type="text/event-stream",
                      body=f'event: error\ndata: {{"error": "{sentence}"}}\n\n')  # fmt: skip

    found = part(view)
    found.get_by_label("B differs in").select_option("model")
    found.locator("[data-of=model]").select_option("other")
    view.route("**/gradio_api/call/ask/*", refuse)
    found.get_by_role("button", name="Compare").click()
    expect(found.get_by_role("alert")).to_contain_text(sentence)
    view.unroute("**/gradio_api/call/ask/*")
    found.get_by_role("button", name="Compare").click()
    shows(side(view, 1), answered(service, model="other"))
    expect(found.get_by_role("alert")).to_be_hidden()


@on_a_phone
def test_a_phone_compares_without_sideways_scroll(
    view: Page, service: ReconstructionService
) -> None:
    found = ask(view, "seed", 9)
    shows(side(view, 1), answered(service, seed=9))
    for mode in ("Side by side", "Swipe", "Difference"):
        found.get_by_role("button", name=mode).click()
        width = view.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1] == PHONE["width"]
