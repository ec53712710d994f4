"""Doubt in a real Chromium."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from app.examples import EXAMPLES
from app.service import ReconstructionService
from mae_core.inside.uncertainty import Doubt, uncertainty
from tests.app.serving import HeldReconstructor
from tests.browser.asking import Answers, awaited, settle, status, tab, whole_width
from tests.browser.conftest import DESKTOP, PHONE, TIMEOUT, gone

pytestmark = pytest.mark.browser

SIZES = [
    {"viewport": DESKTOP},
    {"viewport": PHONE, "is_mobile": True, "has_touch": True},
]
MAPS = ("error", "disagreement")


def measure(page: Page, masks: int) -> None:
    tab(page, "Doubt")
    page.locator("#doubt").get_by_role("button", name=str(masks), exact=True).click()
    page.get_by_role("button", name="Measure the doubt").click()


def picture(page: Page, address: str) -> Image.Image:
    image = Image.open(io.BytesIO(page.request.get(f"{page.url}{address}").body()))
    image.load()
    return image


def decoded(page: Page, part: dict[str, Any]) -> Any:
    """Values of a map as it travels."""
    high, low, known = (np.asarray(band, float) for band in picture(page, part["picture"]).split())
    return np.where(known > 0, (256 * high + low) / 65535 * part["scale"], np.nan)


def sentence(doubt: Doubt, row: int, column: int) -> str:
    """What is said of a patch."""

    def shown(patches: Any) -> str:
        value = patches[row, column]
        return "unknown" if np.isnan(value) else f"{100 * value:.1f}%"

    return (
        f"Row {row + 1}, column {column + 1}: error {shown(doubt.patch_error)}, disagreement "
        f"{shown(doubt.patch_disagreement)}, hidden in {doubt.hidden[row, column]} of "
        f"{doubt.runs} masks"
    )


# Colours of a map's pixels as they should be, in the page.
COLOURED = """async ([name, values, max]) => {
  const {colourOf} = await import(new URL('stage/colours.js', document.baseURI));
  const canvas = document.querySelector(`#doubt canvas[aria-label="${name}"]`);
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return values.filter((value, at) => {
    const [red, green, blue] = data.slice(4 * at, 4 * at + 3);
    if (value === null) return red !== green || green !== blue;
    const wanted = colourOf(value / max);
    return [red, green, blue].some((part, i) => Math.abs(part - wanted[i]) > 1);
  }).length;
}"""


@pytest.mark.parametrize(
    ("view", "masks", "ratio"),
    [(SIZES[0], 16, 0.75), (SIZES[1], 4, 0.3)],
    indirect=["view"],
    ids=["desktop", "phone"],
)
def test_doubt_is_that_of_the_library(
    view: Page, model: HeldReconstructor, masks: int, ratio: float
) -> None:
    settle(view, "mask-ratio", "ratio", ratio)
    answers = Answers(view)
    measure(view, masks)
    result = answers.last(1)[-1]
    doubt = uncertainty(model, EXAMPLES / "cat.jpg", masks, ratio, seed=2)

    assert result["runs"] == masks
    assert result["hidden"] == doubt.hidden.tolist()
    for name in ("mean_psnr", "single_psnr"):
        assert result[name] == pytest.approx(getattr(doubt, name), abs=1e-3)
    mean = np.asarray(picture(view, result["mean"]), float).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(mean, doubt.mean.clip(0, 1), rtol=0, atol=0.51 / 255)
    for name in MAPS:
        values = decoded(view, result[name])
        np.testing.assert_allclose(values, getattr(doubt, name), rtol=0, atol=1e-3)
        patches = np.array(result[name]["patches"], float)
        np.testing.assert_allclose(patches, getattr(doubt, f"patch_{name}"), rtol=0, atol=1e-3)

    expect(view.locator("#doubt .measured")).to_contain_text(
        f"{masks} masks of {round(100 * ratio)}%PSNR of hidden pixels: mean picture "
        f"{doubt.mean_psnr:.1f} dB, a single mask {doubt.single_psnr:.1f} dB on average"
    )
    top = view.locator("#doubt .ticks span").last.inner_text()
    assert top.startswith("≥ ")
    for name in MAPS:
        given = [None if np.isnan(v) else v for v in decoded(view, result[name]).ravel().tolist()]
        wrong = view.evaluate(COLOURED, [name.title(), given, float(top[2:-1]) / 100])
        assert wrong == 0
    whole_width(view)


def test_a_patch_is_pointed_at_in_all_pictures(view: Page, model: HeldReconstructor) -> None:
    measure(view, 4)
    said = view.locator("#doubt .patch")
    doubt = uncertainty(model, EXAMPLES / "cat.jpg", 4, 0.75, seed=2)
    # The largest error is marked first.
    worst = np.nanargmax(doubt.patch_error)
    expect(said).to_have_text(sentence(doubt, worst // 7, worst % 7))
    for place, (row, column) in enumerate([(0, 0), (6, 6), (2, 5), (3, 1)]):
        view.locator("#doubt .picture").nth(place).scroll_into_view_if_needed()
        box = view.locator("#doubt .picture").nth(place).bounding_box()
        assert box
        side = box["width"] / 7
        view.mouse.move(box["x"] + (column + 0.5) * side, box["y"] + (row + 0.5) * side)
        expect(said).to_have_text(sentence(doubt, row, column))
        for mark in view.locator("#doubt .picture rect").all():
            assert (mark.get_attribute("x"), mark.get_attribute("y")) == (str(column), str(row))
    view.locator("#doubt .screens").focus()
    for key, place in (("ArrowUp", (2, 1)), ("ArrowLeft", (2, 0)), ("ArrowLeft", (2, 0)),
                       ("ArrowDown", (3, 0)), ("ArrowRight", (3, 1))):  # fmt: skip
        view.keyboard.press(key)
        expect(said).to_have_text(sentence(doubt, *place))


@pytest.mark.parametrize("view", SIZES[1:], indirect=True, ids=["phone"])
def test_a_patch_is_touched(view: Page, model: HeldReconstructor) -> None:
    measure(view, 4)
    doubt = uncertainty(model, EXAMPLES / "cat.jpg", 4, 0.75, seed=2)
    shown = view.locator("#doubt .picture").nth(2)
    shown.wait_for()
    box = shown.bounding_box()
    assert box
    side = box["width"] / 7
    shown.tap(position={"x": 4.5 * side, "y": 1.5 * side})
    expect(view.locator("#doubt .patch")).to_have_text(sentence(doubt, 1, 4))


def test_cancel_stops_the_runs(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    before = len(model.sizes)
    with model.held():
        measure(view, 64)
        assert model.begun.wait(TIMEOUT / 1000)
        view.get_by_role("button", name="Cancel").and_(view.locator("#doubt button")).click()
        status(view, "doubt", "Cancelled")
        gone(view, lambda: awaited(service) and "the server still answers")
    # It is computed after all that was asked for before.
    settle(view, "seed", "seed", 77)
    expect(view.locator("#doubt .show")).to_be_hidden()
    assert len(model.sizes) == before + 2


def test_another_view_gives_the_question_up(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    with model.held():
        measure(view, 16)
        assert model.begun.wait(TIMEOUT / 1000)
        view.locator("#picture button[aria-label='Remove Image']").click()
        status(view, "doubt", "Cancelled")
        gone(view, lambda: awaited(service) and "the server still answers")


def test_maps_of_another_view_say_so(view: Page) -> None:
    measure(view, 4)
    expect(view.locator("#doubt .measured")).to_contain_text("4 masks of 75%")
    settle(view, "mask-ratio", "ratio", 0.5)
    status(view, "doubt", "This is of another picture or of other settings")
    measure(view, 8)
    expect(view.locator("#doubt .measured")).to_contain_text("8 masks of 50%")
    expect(view.locator("#doubt .asking [role=status]")).to_have_text("")


def test_another_language_keeps_the_maps(view: Page) -> None:
    measure(view, 4)
    expect(view.locator("#doubt .measured")).to_contain_text("4 masks of 75%")
    view.evaluate("document.documentElement.lang = 'zh-CN'")
    expect(view.locator("#doubt .measured")).to_contain_text("4 个掩码，比例 75%")
    expect(view.locator("#doubt figcaption").last).to_have_text("分歧")
