"""The page as a visitor uses it, in a real Chromium."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import FloatRect, Page, expect

from app.examples import EXAMPLES
from app.i18n import LABELS
from app.page.events import PANELS
from app.service import ReconstructionService
from tests.app.serving import HeldReconstructor, encoded, example
from tests.browser.conftest import DESKTOP, PHONE, gone, on_a_phone, opened

pytestmark = pytest.mark.browser

Pixels = npt.NDArray[np.uint8]


def panel(page: Page, name: str) -> Pixels | None:
    """The pixels that a panel shows; None if it is empty."""
    return _pixels(pictures(page)[name])


def _pixels(picture: str | None) -> Pixels | None:
    if picture is None:
        return None
    with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


def expected(service: ReconstructionService, picture: bytes, *request: Any) -> dict[str, Pixels]:
    mask_ratio, seed, *others = request
    names = ("strategy", "fit", "model", "image_size", "view")
    given = dict(zip(names, others, strict=False))
    answer = service.reconstruct(picture, mask_ratio, seed, **given)
    return {name: np.asarray(image) for name, image in answer.panels.items()}


def differing(page: Page, wanted: dict[str, Pixels]) -> list[str]:
    """The panels that do not show what is wanted."""
    found = {name: _pixels(picture) for name, picture in pictures(page).items()}
    return [
        name
        for name, pixels in found.items()
        if pixels is None or not np.array_equal(pixels, wanted[name])
    ]


def shows(page: Page, wanted: dict[str, Pixels]) -> None:
    """Wait until all panels show what is wanted and nothing more is on its way."""
    gone(page, lambda: differing(page, wanted))
    page.locator("#facts .pending").wait_for(state="detached")
    assert not differing(page, wanted), "it was there, but did not stay"


def pictures(page: Page) -> dict[str, str | None]:
    """The pictures shown, as they are now; None where a panel is empty."""
    found: dict[str, str | None] = page.evaluate(
        "(names) => Object.fromEntries(names.map((name) => [name, "
        "document.querySelector(`#panel-${name}:not(.empty) canvas`)?.toDataURL() ?? null]))",
        list(PANELS),
    )
    return found


def slide(page: Page, slider: str, value: float) -> None:
    """Move a slider as a finger does: its value, then an input event."""
    page.locator(f"#{slider} input[type=range]").evaluate(
        "(element, value) => { element.value = value;"
        " element.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


def seen(page: Page, text: str) -> None:
    """Wait until the line of facts holds a text."""
    expect(page.locator("#facts")).to_contain_text(text)


def changed(page: Page, name: str, before: str | None) -> None:
    """Wait until a panel shows another picture than before."""
    gone(page, lambda: pictures(page)[name] in (before, None) and f"{name} stays as it was")


def choose_file(page: Page, name: str, data: bytes, kind: str = "image/png") -> None:
    page.locator("#picture input[type=file]").set_input_files(
        {"name": name, "mimeType": kind, "buffer": data}
    )


def test_the_first_view_shows_an_example_reconstructed(
    view: Page, service: ReconstructionService
) -> None:
    shows(view, expected(service, example("cat"), 0.75, 2))
    seen(view, "12 of 49 patches seen")
    seen(view, "small-random")
    expect(view.locator("#trust")).to_contain_text("these pictures are guesses")
    # Side by side.
    places = boxes(view)
    assert len({place["y"] for place in places}) == 1
    assert [place["x"] for place in places] == sorted({place["x"] for place in places})
    assert places[-1]["y"] + places[-1]["height"] < DESKTOP["height"]


def test_a_second_visit_fetches_no_panel_and_no_thumbnail_again(view: Page) -> None:
    again = opened(view.context.new_page(), view.url, updates=False)
    fetched = again.evaluate(
        "performance.getEntriesByType('resource').map((e) => [e.name, e.transferSize])"
        ".filter(([name]) => /[.]png$|[/]thumbnails[/]/.test(name))"
    )
    assert [size for _, size in fetched] == [0] * (2 + 12)


def test_an_uploaded_picture_is_reconstructed(view: Page, service: ReconstructionService) -> None:
    picture = encoded(Image.open(EXAMPLES / "stream.jpg").resize((200, 160)))
    before = pictures(view)
    choose_file(view, "mine.png", picture)
    for name in PANELS:
        changed(view, name, before[name])
    shows(view, expected(service, picture, 0.75, 2))


def test_an_example_works_at_once(view: Page, service: ReconstructionService) -> None:
    before = pictures(view)
    view.locator("#examples button[data-name=raccoon]").click()
    changed(view, "pasted", before["pasted"])
    shows(view, expected(service, example("raccoon"), 0.75, 2))
    expect(view.locator("#examples button[data-name=raccoon]")).to_have_attribute(
        "aria-pressed", "true"
    )


def test_each_slider_changes_the_panels(view: Page, service: ReconstructionService) -> None:
    first = pictures(view)
    slide(view, "mask-ratio", 0.5)
    seen(view, "24 of 49 patches seen")
    shows(view, expected(service, example("cat"), 0.5, 2))
    second = pictures(view)
    slide(view, "seed", 9)
    changed(view, "masked", second["masked"])
    shows(view, expected(service, example("cat"), 0.5, 9))
    # What goes in stays as it is; what comes out differs.
    third = pictures(view)
    assert first["original"] == third["original"]
    for name in ("masked", "reconstruction", "pasted"):
        assert len({first[name], second[name], third[name]}) == 3


def test_the_same_seed_gives_the_same_masked_panel(view: Page) -> None:
    first = panel(view, "masked")
    before = pictures(view)["masked"]
    slide(view, "seed", 3)
    changed(view, "masked", before)
    assert not np.array_equal(panel(view, "masked"), first)
    slide(view, "seed", 2)
    gone(view, lambda: pictures(view)["masked"] != before and "another mask")


def test_rapid_moves_end_in_the_last_state(
    view: Page, service: ReconstructionService, model: HeldReconstructor
) -> None:
    calls: list[str] = []
    view.on("request", lambda r: calls.append(r.url) if "/queue/join" in r.url else None)
    # However slow the browser is, the model is slower: it waits until all moves are made.
    with model.held():
        for step in range(30):
            slide(view, "mask-ratio", round(0.2 + 0.02 * step, 2))
            slide(view, "seed", 100 + step)
        slide(view, "mask-ratio", 0.9)
    seen(view, "4 of 49 patches seen")
    last = expected(service, example("cat"), 0.9, 129)
    shows(view, last)
    view.wait_for_timeout(500)
    shows(view, last)
    # 61 moves, but never more than one request under way and one waiting.
    assert len(calls) == 2


def test_the_dice_throw_another_seed(view: Page, service: ReconstructionService) -> None:
    before = pictures(view)
    view.locator("#dice").click()
    changed(view, "masked", before["masked"])
    seed = int(view.locator("#seed input[type=number]").input_value())
    assert 0 <= seed <= 9999
    shows(view, expected(service, example("cat"), 0.75, seed))


def test_strategy_and_fit_are_obeyed(view: Page, service: ReconstructionService) -> None:
    before = pictures(view)
    view.locator("#strategy label", has_text="Blocks").click()
    changed(view, "masked", before["masked"])
    shows(view, expected(service, example("cat"), 0.75, 2, "block"))
    before = pictures(view)
    view.locator("#fit label", has_text="Whole").click()
    changed(view, "masked", before["masked"])
    shows(view, expected(service, example("cat"), 0.75, 2, "block", "whole"))


def test_a_text_file_gets_a_sentence_and_the_page_goes_on(
    view: Page, service: ReconstructionService
) -> None:
    # One that says what it is, is not sent.
    before = pictures(view)
    choose_file(view, "notes.txt", b"not a picture", "text/plain")
    expect(view.get_by_text("Invalid file type")).to_be_visible()
    assert pictures(view) == before
    choose_file(view, "notes.png", b"not a picture")
    alert = view.locator("#facts [role=alert]")
    expect(alert).to_contain_text("give an image as JPEG, PNG")
    expect(view.locator("#panels figure.empty")).to_have_count(len(PANELS))
    view.locator("#examples button[data-name=dogs]").click()
    view.locator("#panel-pasted:not(.empty)").wait_for()
    expect(alert).to_have_count(0)
    shows(view, expected(service, example("dogs"), 0.75, 2))


def test_a_webcam_picture_is_reconstructed(view: Page) -> None:
    before = pictures(view)
    view.locator("#picture button[aria-label='Capture from camera']").click()
    view.get_by_text("Click to Access Webcam").click()
    # A photo taken before the camera has given a picture is none.
    view.wait_for_function("() => document.querySelector('#picture video')?.videoWidth > 0")
    view.locator("#picture button[aria-label='capture photo']").click()
    changed(view, "original", before["original"])


COPY_A_PICTURE = """async () => {
  const canvas = new OffscreenCanvas(64, 48);
  const context = canvas.getContext('2d');
  context.fillStyle = 'rgb(200, 30, 90)';
  context.fillRect(0, 0, 64, 48);
  const blob = await canvas.convertToBlob({type: 'image/png'});
  await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
}"""


def test_a_cleared_picture_empties_the_panels_and_a_pasted_one_fills_them(view: Page) -> None:
    view.context.grant_permissions(["clipboard-read", "clipboard-write"])
    before = pictures(view)
    view.evaluate(COPY_A_PICTURE)
    view.locator("#picture button[aria-label='Remove Image']").click()
    expect(view.locator("#panels figure.empty")).to_have_count(len(PANELS))
    view.locator("#picture button[aria-label='Paste from clipboard']").click()
    changed(view, "original", before["original"])
    pasted = panel(view, "original")
    assert pasted is not None
    assert (pasted == (200, 30, 90)).all()


def test_a_download_is_lossless(view: Page, tmp_path: Path) -> None:
    for name in PANELS:
        with view.expect_download() as waiting:
            view.locator(f"#panel-{name} .download").click()
        assert waiting.value.suggested_filename == f"{name}.png"
        path = tmp_path / f"{name}.png"
        waiting.value.save_as(path)
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert np.array_equal(np.asarray(picture.convert("RGB")), panel(view, name))


def test_a_panel_can_be_viewed_large(view: Page) -> None:
    canvas, button = view.locator("#panel-pasted canvas"), view.locator("#panel-pasted .enlarge")
    small = canvas.bounding_box()
    assert small
    button.click()
    large = canvas.bounding_box()
    assert large
    assert large["height"] > 2 * small["height"]
    assert large["y"] + large["height"] <= DESKTOP["height"]
    assert large["x"] + large["width"] <= DESKTOP["width"]
    view.keyboard.press("Escape")
    assert canvas.bounding_box() == small
    button.press("Enter")
    assert canvas.bounding_box() == large
    button.press("Enter")
    assert canvas.bounding_box() == small
    # While one is large, nothing else can be reached.
    view.locator("#panel-masked .enlarge").press("Enter")
    for _ in range(6):
        view.keyboard.press("Tab")
        inside = view.evaluate(
            "['body', 'panel-masked'].includes((document.activeElement.closest('figure')"
            " ?? document.activeElement).id || document.activeElement.localName)"
        )
        assert inside
    view.keyboard.press("Escape")
    assert view.locator("[inert]").count() == 0


def test_another_language_keeps_the_panels(view: Page, service: ReconstructionService) -> None:
    view.get_by_role("button", name="Settings").click()
    view.get_by_label("Language").or_(view.locator(".modal input, dialog input")).first.click()
    view.get_by_role("option", name="简体中文").click()
    expect(view.locator("#title")).to_have_text(LABELS["zh"]["title"])
    shows(view, expected(service, example("cat"), 0.75, 2))
    view.keyboard.press("Escape")
    # Errors are in the language that the page shows, whatever the browser's is.
    choose_file(view, "notes.png", b"not a picture")
    expect(view.locator("#facts [role=alert]")).to_contain_text("没有可用的图片")


def test_panels_that_do_not_arrive_are_said_to_be_missing(
    view: Page, service: ReconstructionService
) -> None:
    view.route("**/reconstruction.png", lambda r: r.fulfill(body=b"", content_type="image/png"))
    view.locator("#examples button[data-name=coffee]").click()
    expect(view.locator("#panels [role=alert]")).to_be_visible()
    expect(view.locator("#panels figure.empty")).to_have_count(len(PANELS))
    view.unroute("**/reconstruction.png")
    view.locator("#examples button[data-name=dogs]").click()
    shows(view, expected(service, example("dogs"), 0.75, 2))
    expect(view.locator("#panels [role=alert]")).to_be_hidden()


def boxes(page: Page) -> list[FloatRect]:
    found = [page.locator(f"#panel-{name}").bounding_box() for name in PANELS]
    return [box for box in found if box]


@on_a_phone
def test_a_phone_shows_two_by_two_without_sideways_scroll(view: Page) -> None:
    width = view.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1] == PHONE["width"]
    original, masked, reconstruction, pasted = boxes(view)
    assert original["y"] == masked["y"] < reconstruction["y"] == pasted["y"]
    assert original["x"] == reconstruction["x"] < masked["x"] == pasted["x"]
    sliders = view.locator("#seed").bounding_box()
    # The panels come first; they and the sliders below them are in view together.
    assert sliders
    assert pasted["y"] + pasted["height"] <= sliders["y"]
    assert sliders["y"] + sliders["height"] <= PHONE["height"]


@pytest.mark.parametrize("view", [{"locale": "zh-CN"}], indirect=True, ids=["zh-CN"])
def test_a_chinese_browser_gets_chinese(view: Page) -> None:
    texts = LABELS["zh"]
    expect(view.locator("#title")).to_have_text(texts["title"])
    for place, key in (
        ("#picture", "picture"), ("#mask-ratio", "mask_ratio"), ("#seed", "seed"),
        ("#strategy", "strategy_random"), ("#fit", "fit_crop"), ("#model", "model"),
        ("#panel-original", "原图"), ("#panel-masked", "掩码后"),
        ("#panel-reconstruction", "重建"), ("#panel-pasted", "拼合"),
        ("#facts", "可见 12 / 49 个图块"), ("#trust", "这些图片只是猜测"),
    ):  # fmt: skip
        expect(view.locator(place)).to_contain_text(texts.get(key, key))
    body = view.locator("body").inner_text()
    for key, english in LABELS["en"].items():
        if english not in texts[key] and "{" not in english:
            assert english not in body.split("\n"), english
    choose_file(view, "notes.png", b"not a picture")
    expect(view.locator("#facts [role=alert]")).to_contain_text("没有可用的图片")


ELSEWHERE = ["zh-HK", "zh-MO", "zh-SG", "zh", "zh-Hant-HK"]


@pytest.mark.parametrize(
    "view", [{"locale": locale} for locale in ELSEWHERE], indirect=True, ids=ELSEWHERE
)
def test_chinese_of_other_places_is_chinese_too(view: Page) -> None:
    expect(view.locator("#title")).to_have_text(LABELS["zh"]["title"])
    expect(view.locator("#seed")).to_contain_text(LABELS["zh"]["seed"])


@pytest.mark.parametrize("view", [{"locale": "fr-FR"}], indirect=True, ids=["fr-FR"])
def test_other_browsers_get_english(view: Page) -> None:
    expect(view.locator("#title")).to_have_text(LABELS["en"]["title"])


def test_the_page_works_by_keyboard(view: Page, service: ReconstructionService) -> None:
    before = pictures(view)
    view.locator("#examples button[data-name=coffee]").focus()
    view.keyboard.press("Enter")
    changed(view, "original", before["original"])
    view.locator("#mask-ratio input[type=range]").focus()
    view.keyboard.press("ArrowLeft")
    expect(view.locator("#mask-ratio input[type=number]")).to_have_value("0.74")
    shows(view, expected(service, example("coffee"), 0.74, 2))
