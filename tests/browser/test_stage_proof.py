"""Proof that hidden pixels do not reach a prediction, in a real Chromium."""

import base64
import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from app.examples import EXAMPLES
from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core.images import to_pil
from mae_core.inside.leaks import prove
from mae_core.reconstruct import ReconstructionRequest
from tests.app.serving import HeldReconstructor, example, small_reconstructor
from tests.browser.asking import status, tab, walk
from tests.browser.conftest import PHONE, on_a_phone
from tests.browser.test_page import expected, seen, slide

pytestmark = pytest.mark.browser

REQUEST = ReconstructionRequest(EXAMPLES / "cat.jpg", mask_ratio=0.75, seed=2)
SAME = "Same to the last bit: 0 of 37,632 values differ."


@pytest.fixture(scope="module")
def service(model: HeldReconstructor) -> ReconstructionService:
    norm = small_reconstructor("norm", norm_pix=True)
    settings = AppSettings(rate=0, max_batch=1, workers=1)
    return ReconstructionService({"small-random": model, "norm": norm}, settings=settings)


def opened_tab(page: Page) -> Locator:
    tab(page, "No leak")
    part = page.locator("#proof")
    part.get_by_text("The model gets the same visible patches").wait_for()
    return part


def scrambled(page: Page) -> Locator:
    part = opened_tab(page)
    part.get_by_role("button", name="Scramble the hidden pixels").click()
    part.locator("figure").first.wait_for()
    return part


def choose_norm(page: Page) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name="norm").click()
    seen(page, "norm")


def pixels(part: Locator, caption: str) -> npt.NDArray[np.uint8]:
    """Of the first picture with a caption."""
    image = part.locator("figure", has_text=caption).locator("img").first
    data = image.evaluate(
        """async (image) => {
          const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
          return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));
        }"""
    )
    with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
        return np.asarray(opened.convert("RGB"))


def test_scrambled_pixels_change_no_bit(view: Page, service: ReconstructionService) -> None:
    part = scrambled(view)
    expect(part.locator(".verdict")).to_have_text(SAME)
    panels = expected(service, example("cat"), 0.75, 2)
    assert np.array_equal(pixels(part, "Prediction from the original"), panels["reconstruction"])
    assert np.array_equal(pixels(part, "Prediction from the scr"), panels["reconstruction"])
    proof = prove(small_reconstructor(), REQUEST, 0)
    noise = pixels(part, "Hidden pixels scrambled")
    assert np.array_equal(noise, np.asarray(to_pil(proof.scrambled)))
    hidden = proof.removed.repeat(16, axis=0).repeat(16, axis=1)
    assert np.array_equal(noise[~hidden], panels["original"][~hidden])
    assert (noise[hidden] != panels["original"][hidden]).mean() > 0.9
    expect(part.get_by_text("exists only for models of normalised pixels")).to_be_visible()


def test_another_noise_is_another(view: Page) -> None:
    part = scrambled(view)
    first = pixels(part, "Hidden pixels scrambled")
    part.get_by_role("button", name="Another noise").click()
    expect(part.locator("figcaption", has_text="noise 1")).to_be_visible()
    assert not np.array_equal(pixels(part, "Hidden pixels scrambled"), first)
    expect(part.locator(".verdict")).to_have_text(SAME)


@pytest.mark.parametrize("shown", ["estimated", "answer"])
def test_the_answers_statistics_change_it(view: Page, shown: str) -> None:
    choose_norm(view)
    if shown == "answer":
        view.locator("#view label", has_text="uses the answer").click()
        seen(view, "uses the answer")
    part = scrambled(view)
    verdicts = part.locator(".verdict")
    expect(verdicts).to_have_count(2)
    expect(verdicts.first).to_have_text(SAME)
    answer = prove(small_reconstructor("norm", norm_pix=True), REQUEST, 0).answer
    assert answer is not None
    assert answer.changed_values > 20_000
    expect(verdicts.last).to_contain_text(
        f"Not the same: {answer.changed_values:,} of 37,632 values differ, "
        f"by at most {100 * answer.largest_change:.3g}% of the range."
    )
    expect(verdicts.last).to_contain_text("brightness and contrast of its true pixels")
    row = part.locator(".screens").last
    for caption, prediction in zip(("original", "scr"), answer.predictions, strict=True):
        found = pixels(row, f"Prediction from the {caption}")
        assert np.array_equal(found, np.asarray(to_pil(prediction)))


def test_a_proof_of_an_earlier_picture_is_dimmed(view: Page) -> None:
    part = scrambled(view)
    slide(view, "seed", 7)
    expect(part.locator(".show.old")).to_be_visible()
    status(view, "proof", "This is of another picture or of other settings")
    part.get_by_role("button", name="Scramble again").click()
    expect(part.locator(".old")).to_have_count(0)
    expect(part.locator(".verdict")).to_have_text(SAME)


def test_it_works_by_keyboard(view: Page) -> None:
    view.get_by_role("tab", name="Inside").focus()
    walk(view, view.get_by_role("tab", name="No leak"))
    view.keyboard.press("Enter")
    part = view.locator("#proof")
    walk(view, part.get_by_role("button", name="Scramble the hidden pixels"))
    view.keyboard.press("Enter")
    expect(part.locator(".verdict")).to_have_text(SAME)
    again = part.get_by_role("button", name="Another noise")
    expect(again).to_be_focused()
    view.keyboard.press("Enter")
    expect(part.locator("figcaption", has_text="noise 1")).to_be_visible()


@on_a_phone
def test_a_phone_shows_the_proof(view: Page) -> None:
    tab(view, "No leak")
    part = view.locator("#proof")
    part.get_by_role("button", name="Scramble the hidden pixels").tap()
    expect(part.locator(".verdict")).to_have_text(SAME)
    boxes = [figure.bounding_box() for figure in part.locator("figure").all()]
    assert len({round(box["x"]) for box in boxes if box}) == 2
    width = view.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1] == PHONE["width"]
