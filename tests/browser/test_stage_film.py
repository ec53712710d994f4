"""The film of the ratio in a real Chromium."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from app.examples import EXAMPLES
from app.models.served import ServedModel
from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core import MaskedAutoencoder, Reconstruction
from mae_core.inside.snapshots import rebuild_by_snapshots
from mae_core.inside.sweep import baseline_psnr, film_ratios, sweep
from mae_core.weights.formats import save_weights
from tests.app.serving import CONFIG, HeldReconstructor, served, small_reconstructor
from tests.browser.asking import Answers, awaited, settle, status, whole_width
from tests.browser.conftest import DESKTOP, PHONE, TIMEOUT, gone, opened, watched
from tests.browser.test_page import seen, slide

pytestmark = pytest.mark.browser

PANELS = ("masked", "reconstruction", "pasted")
SIZES = [
    {"viewport": DESKTOP},
    {"viewport": PHONE, "is_mobile": True, "has_touch": True},
]


@pytest.fixture(scope="module")
def frames(model: HeldReconstructor) -> list[Reconstruction]:
    """The film of the page's first picture, by the library."""
    return list(sweep(model, EXAMPLES / "cat.jpg", seed=2))


def start(page: Page) -> None:
    page.get_by_role("button", name="Make the film").click()


def finished(page: Page) -> None:
    expect(page.locator("#film .files button").first).to_be_enabled()


def at_frame(page: Page, number: int) -> None:
    """Wait, as the film plays, until it comes by a frame."""
    page.wait_for_function(
        "(number) => Number(document.querySelector('#film .transport input').value) === number",
        arg=number,
    )


def screens(page: Page) -> list[Any]:
    """Pixels of the film's three pictures."""
    drawn = page.locator("#film figure canvas").evaluate_all(
        "(all) => all.map((canvas) => canvas.toDataURL())"
    )
    files = (io.BytesIO(base64.b64decode(each.partition(",")[2])) for each in drawn)
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def shows(page: Page, frame: Reconstruction) -> None:
    """The player shows a frame, and the curve its figures."""
    panels = frame.panels()
    for pixels, name in zip(screens(page), PANELS, strict=True):
        assert np.array_equal(pixels, np.asarray(panels[name])), name
    others = baseline_psnr(frame.original, frame.removed)
    wanted = [f"{value:.1f} dB" for value in (frame.psnr, *others.values()) if value is not None]
    assert page.locator("#film .curve output").all_inner_texts() == wanted


@pytest.mark.parametrize("view", SIZES, indirect=True, ids=["desktop", "phone"])
def test_the_film_is_that_of_the_library(view: Page, frames: list[Reconstruction]) -> None:
    answers = Answers(view)
    expect(view.get_by_role("button", name="Make the film")).to_be_visible()
    # This model has no snapshots.
    expect(view.get_by_role("button", name="Film of its training")).to_be_hidden()
    start(view)
    finished(view)
    # It does not play by itself for those who want less motion.
    expect(view.get_by_role("button", name="Play")).to_be_visible()
    expect(view.locator("#film .transport input")).to_have_value("0")
    parts = answers.last(1)
    assert [part["mask_ratio"] for part in parts] == film_ratios()
    visible = np.zeros((7, 7), bool)
    for part, frame in zip(parts, frames, strict=True):
        removed = np.array([[cell == "1" for cell in row] for row in part["mask"]])
        np.testing.assert_array_equal(removed, frame.removed)
        # What is visible stays visible.
        assert not (visible & removed).any()
        visible = ~removed
        assert part["facts"]["psnr"] == pytest.approx(frame.psnr, abs=1e-3)
    scrubber = view.get_by_label("Mask ratio", exact=True).and_(view.locator("#film input"))
    for at in (4, 0, 18):
        scrubber.fill(str(at))
        expect(scrubber).to_have_attribute("aria-valuetext", f"{95 - 5 * at}%")
        shows(view, frames[at])
    expect(view.locator("#film svg[role=img] .line-0 .mark")).to_have_count(19)
    whole_width(view)


def test_frames_that_are_there_can_be_seen_while_others_arrive(
    view: Page, model: HeldReconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(view, "seed", "seed", 5)
    plain, runs = model.batch, 0

    def three(requests: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 4:
            model.gate.clear()
        return plain(requests)

    monkeypatch.setattr(model, "batch", three)
    start(view)
    expect(view.locator("#film .count").first).to_have_text("3 of 19")
    scrubber = view.locator("#film .transport input")
    try:
        scrubber.fill("1")
        expect(scrubber).to_have_attribute("aria-valuetext", "90%")
        # Of the frames that are missing, the nearest that is there.
        scrubber.fill("15")
        expect(scrubber).to_have_attribute("aria-valuetext", "85%")
        expect(view.locator("#film .files button").first).to_be_disabled()
    finally:
        model.gate.set()
    finished(view)


@pytest.mark.parametrize(
    "view", [{"reduced_motion": "no-preference"}], indirect=True, ids=["moving"]
)
def test_it_plays_until_it_is_paused(view: Page) -> None:
    start(view)
    scrubber = view.locator("#film .transport input")
    at_frame(view, 3)
    view.get_by_role("button", name="Pause").click()
    here = scrubber.input_value()
    expect(view.get_by_role("button", name="Play")).to_be_visible()
    finished(view)
    assert scrubber.input_value() == here
    # It begins again after the end.
    scrubber.fill("18")
    view.get_by_role("button", name="Play").click()
    at_frame(view, 0)


def test_cancel_stops_the_runs(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    settle(view, "seed", "seed", 6)
    before = len(model.sizes)
    with model.held():
        start(view)
        assert model.begun.wait(TIMEOUT / 1000)
        view.get_by_role("button", name="Cancel").click()
        status(view, "film", "Cancelled")
        gone(view, lambda: awaited(service) and "the server still answers")
    expect(view.get_by_role("button", name="Make the film")).to_be_focused()
    # It is computed after all that was asked for before.
    settle(view, "mask-ratio", "ratio", 0.5)
    assert len(model.sizes) == before + 2


@pytest.mark.parametrize("form", ["WebP", "GIF"])
def test_the_film_is_saved_as_a_file(
    view: Page, form: str, tmp_path: Path, frames: list[Reconstruction]
) -> None:
    start(view)
    finished(view)
    with view.expect_download() as waiting:
        view.get_by_role("button", name=f"Save as {form}").click()
    name = f"film.{form.lower()}"
    assert waiting.value.suggested_filename == name
    waiting.value.save_as(tmp_path / name)
    expect(view.get_by_role("link", name=name)).to_have_attribute("download", name)
    with Image.open(tmp_path / name) as film:
        assert film.format == form.upper()
        assert getattr(film, "n_frames", 1) == len(frames)
        assert film.size == (3 * 112 + 2 * 8, 112 + 8 + 6)


def test_saving_can_be_cancelled_while_another_film_is_made(
    view: Page, model: HeldReconstructor
) -> None:
    start(view)
    finished(view)
    with model.held():
        settle(view, "seed", "seed", 2)
        # Its frames are kept, so the file would soon be there: the question does not arrive.
        view.route("**/call/ask", _lost_gif)
        view.get_by_role("button", name="Save as GIF").click()
        start(view)
        cancel = view.locator("#film .files").get_by_role("button", name="Cancel")
        expect(cancel).to_be_enabled()
        cancel.click()
        expect(cancel).to_be_hidden()
        view.unroute("**/call/ask")


def _lost_gif(route: Route) -> None:
    if "gif" not in (route.request.post_data or ""):
        route.continue_()


def test_the_curve_scrubs_and_a_ratio_can_be_used(view: Page) -> None:
    start(view)
    finished(view)
    chart = view.locator("#film svg[role=img]")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box
    scrubber = view.locator("#film .transport input")
    y = box["y"] + box["height"] / 2
    view.mouse.move(box["x"] + box["width"] - 4, y)
    view.mouse.down()
    expect(scrubber).to_have_attribute("aria-valuetext", "5%")
    # The middle of the axis.
    view.mouse.move(box["x"] + box["width"] * (38 + 420 - 14) / 2 / 420, y)
    expect(scrubber).to_have_attribute("aria-valuetext", "50%")
    view.mouse.up()
    view.mouse.move(box["x"] + 40, y)
    expect(scrubber).to_have_attribute("aria-valuetext", "50%")
    view.get_by_role("button", name="Use this ratio").click()
    seen(view, "24 of 49 patches seen")
    expect(view.locator("#mask-ratio input[type=number]")).to_have_value("0.5")
    # It is the same film.
    expect(view.locator("#film .show.old")).to_have_count(0)


def test_a_film_of_other_settings_says_so(view: Page) -> None:
    start(view)
    finished(view)
    slide(view, "seed", 9)
    status(view, "film", "This is of another picture or of other settings")
    expect(view.locator("#film .files button").first).to_be_disabled()
    slide(view, "seed", 2)
    finished(view)
    expect(view.locator("#film .asking [role=status]").first).to_have_text("")


def test_a_film_is_of_the_sliders_and_says_so_beside_an_own_mask(
    view: Page, frames: list[Reconstruction]
) -> None:
    note = view.get_by_text("not from your own mask")
    expect(note.first).to_be_hidden()
    view.locator("#panel-masked svg.grid").click(position={"x": 5, "y": 5})
    expect(note.first).to_be_visible()
    start(view)
    finished(view)
    view.locator("#film .transport input").fill("4")
    shows(view, frames[4])


def test_another_language_keeps_the_film(view: Page, frames: list[Reconstruction]) -> None:
    start(view)
    finished(view)
    view.locator("#film .transport input").fill("7")
    view.evaluate("document.documentElement.lang = 'zh-CN'")
    expect(view.locator("#film figcaption").first).to_have_text("掩码后")
    shows(view, frames[7])


def test_a_training_run_is_a_film_of_its_snapshots(browser: Browser, tmp_path: Path) -> None:
    for step in (3, 6, 12):
        torch.manual_seed(step)
        path = tmp_path / "snapshots" / f"step-{step:06d}.safetensors"
        save_weights(path, MaskedAutoencoder(CONFIG), record={"step": step, "steps": 12})
    save_weights(tmp_path / "weights.safetensors", small_reconstructor().model, record={})
    run = ServedModel.open(str(tmp_path), device="cpu")
    service = ReconstructionService({"run": run}, settings=AppSettings(rate=0))
    films = [
        result for _, result in rebuild_by_snapshots(
            tmp_path, EXAMPLES / "cat.jpg", seed=2, device="cpu"
        )
    ]  # fmt: skip
    with served(service) as url:
        context = browser.new_context(reduced_motion="reduce", locale="en-US")
        with watched(context, url):
            page = opened(context.new_page(), url, updates=False)
            page.get_by_role("button", name="Film of its training").click()
            expect(page.locator("#film .ratio")).to_have_text("step 3")
            gone(
                page,
                lambda: page.locator("#film .curve g.line-0 .mark").count() < 3 and "frames miss",
            )
            page.locator("#film input[type=range]").fill("2")
            expect(page.locator("#film .ratio")).to_have_text("step 12")
            for pixels, name in zip(screens(page), PANELS, strict=True):
                assert np.array_equal(pixels, np.asarray(films[2].panels()[name])), name
            # What is of ratios only.
            expect(page.get_by_role("button", name="Use this ratio")).to_be_hidden()
            expect(page.get_by_role("button", name="Save as WebP")).to_be_hidden()
        context.close()
