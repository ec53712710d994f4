"""Keep and share: what leaves the page, and comes back as it was."""

import io
import json
import re
import runpy
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core import Reconstructor, load
from mae_core.cli import mae
from mae_core.reconstruct import paste_panel
from tests.app.serving import encoded, example
from tests.browser.asking import tab
from tests.browser.conftest import DESKTOP, ON_A_PHONE, Tab, gone, on_a_phone, opened
from tests.browser.test_page import changed, choose_file, panel, pictures, seen, slide
from tests.pictures import draw_picture

pytestmark = pytest.mark.browser

PANELS = ("original", "masked", "reconstruction", "pasted")
EITHER = pytest.mark.parametrize("view", [{}, ON_A_PHONE], indirect=True, ids=["desktop", "phone"])


# The command line and the code know models by their names, so it is a published one.
@pytest.fixture(scope="module")
def service() -> ReconstructionService:
    model = Reconstructor(load("mae-tiny"), "mae-tiny", device="cpu", in_place=True)
    settings = AppSettings(rate=0, max_batch=1, workers=1)
    return ReconstructionService({"mae-tiny": model}, settings=settings)


def keep(page: Page) -> Locator:
    """The part, with its tab open."""
    tab(page, "Keep and share")
    part = page.locator("#keep .keep")
    expect(part.get_by_role("button", name="Copy link")).to_be_enabled()
    return part


def on_show(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        str(page.locator("#panels [data-view]").get_attribute("data-view"))
    )
    return found


def saved(page: Page, control: Locator) -> bytes:
    with page.expect_download() as download:
        control.click()
    return Path(download.value.path()).read_bytes()


def zipped(page: Page) -> dict[str, bytes]:
    data = saved(page, keep(page).get_by_role("button", name="Save panels"))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def own_mask(page: Page) -> None:
    """Show one removed patch and hide the next, by hand."""
    before = on_show(page)
    grid = page.locator("#panel-masked svg.grid")
    grid.focus()
    grid.press("Space")
    gone(page, lambda: on_show(page)["mask"] == before["mask"] and "the mask is as it was")
    assert on_show(page)["settings"]["mask"]["rows"] == on_show(page)["mask"]


def panels_in(folder: Path) -> dict[str, bytes]:
    return {f"{name}.png": (folder / f"{name}.png").read_bytes() for name in PANELS}


@EITHER
def test_a_link_gives_a_fresh_profile_the_same_panels(
    view: Page, browser: Browser, page_url: str
) -> None:
    view.locator("#examples button[data-name=raccoon]").click()
    slide(view, "mask-ratio", 0.5)
    slide(view, "seed", 77)
    view.locator("#fit label", has_text="Whole").click()
    gone(view, lambda: on_show(view)["settings"]["fit"] != "whole" and "another fit")
    gone(view, lambda: on_show(view)["settings"]["mask"]["seed"] != 77 and "another seed")
    own_mask(view)
    view.context.grant_permissions(["clipboard-read", "clipboard-write"])
    keep(view).get_by_role("button", name="Copy link").click()
    expect(keep(view).get_by_text("Copied.")).to_be_visible()
    link = view.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{page_url}/#s=")

    fresh = browser.new_context(locale="de-DE", viewport=DESKTOP)
    page = opened(fresh.new_page(), link, updates=False)
    gone(page, lambda: on_show(page)["mask"] != on_show(view)["mask"] and "another mask")
    gone(page, lambda: pictures(page) != pictures(view) and "other panels")
    assert on_show(page)["settings"] == on_show(view)["settings"]
    for name in ("original", "reconstruction"):
        here, there = (
            tab.request.get(f"{page_url}/{on_show(tab)[name]}").body() for tab in (view, page)
        )
        assert here == there
    expect(page.locator("#examples button[data-name=raccoon]")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert zipped(page).keys() == zipped(view).keys()
    fresh.close()


@pytest.mark.parametrize("view", [{"locale": "zh-CN"}], indirect=True, ids=["zh-CN"])
def test_a_link_brings_its_language_and_its_tab(view: Page, page_url: str) -> None:
    view.locator("#tabs [role=tab]", has_text="保存").click()
    link = view.get_by_role("textbox", name="链接").input_value()

    english = Tab(view.context)
    english.suit(DESKTOP, "en-US", "reduce")
    page = opened(english.page, link, updates=True)
    expect(page.get_by_role("tab", name="保存")).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    script = """async (language) => {
      const {toFragment} = await import(new URL('stage/link.js', document.baseURI));
      return toFragment({example: 'dogs', tab: 'keep'}, language);
    }"""
    fragment = page.evaluate(script, "en")
    # Another fragment alone would not open it.
    page.goto("about:blank")
    opened(page, page_url + fragment, updates=False)
    expect(page.locator("#keep .keep")).to_be_visible()
    gone(page, lambda: on_show(page)["example"] != "dogs" and "another picture")


def test_a_link_of_ones_own_picture_has_its_settings_only(view: Page) -> None:
    before = pictures(view)
    choose_file(view, "mine.png", encoded(draw_picture(3, 130, 90)))
    changed(view, "original", before["original"])
    slide(view, "seed", 41)
    gone(view, lambda: on_show(view)["settings"]["mask"]["seed"] != 41 and "another seed")
    part = keep(view)
    expect(part.get_by_text("Your picture does not travel")).to_be_visible()
    link = part.get_by_role("textbox", name="Link").input_value()
    page = opened(view.context.new_page(), link, updates=False)
    gone(page, lambda: on_show(page)["settings"]["mask"]["seed"] != 41 and "another seed")
    assert on_show(page)["example"] == "cat"
    expect(page.locator("#opener [role=status]")).to_contain_text("does not travel")


DAMAGED = [
    ("#s=%25%25", "damaged"),
    ("#s=e30", "damaged"),  # {}
    ("#s=eyJ2IjoxLCJyZXF1ZXN0I", "damaged"),
    # {"v":1,"request":{"v":1,"model":"none"}}
    ("#s=eyJ2IjoxLCJyZXF1ZXN0Ijp7InYiOjEsIm1vZGVsIjoibm9uZSJ9fQ", "cannot be opened"),
    ("#s=eyJ2IjoxLCJleGFtcGxlIjoibm9uZSJ9", "no such example"),
    ("#s=eyJ2IjoxLCJyZXF1ZXN0IjpbXX0", "JSON object"),  # {"v":1,"request":[]}
]


def test_a_damaged_link_gets_a_sentence_and_the_page_goes_on(view: Page, page_url: str) -> None:
    page = opened(view.context.new_page(), page_url + DAMAGED[0][0], updates=False)
    for fragment, sentence in DAMAGED:
        # The first as the page opens, the others in the page's address.
        page.evaluate("(hash) => { location.hash = hash; }", fragment)
        expect(page.locator("#opener [role=alert]")).to_contain_text(sentence)
        assert pictures(page) == pictures(view)
        page.locator("#opener button").click()
        expect(page.locator("#opener")).to_be_hidden()
    slide(page, "mask-ratio", 0.5)
    gone(page, lambda: on_show(page)["settings"]["mask"]["ratio"] != 0.5 and "another ratio")


def test_where_copying_is_forbidden_the_text_is_selected(view: Page) -> None:
    view.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    part = keep(view)
    part.get_by_role("button", name="Copy link").click()
    expect(part.get_by_text("The text is selected")).to_be_visible()
    field = part.get_by_role("textbox", name="Link")
    assert field.evaluate("(e) => e.value.slice(e.selectionStart, e.selectionEnd)") == (
        field.input_value()
    )
    part.get_by_role("button", name="Copy code").click()
    assert view.evaluate("String(getSelection())").startswith("import mae_core")


def test_settings_and_zip_are_what_the_command_line_makes(view: Page, tmp_path: Path) -> None:
    slide(view, "seed", 5)
    gone(view, lambda: on_show(view)["settings"]["mask"]["seed"] != 5 and "another seed")
    for number in range(2):
        files = zipped(view)
        settings = saved(view, keep(view).get_by_role("button", name="Save settings.json"))
        assert files["settings.json"] == settings
        assert json.loads(settings) == on_show(view)["settings"]
        assert json.loads(files["facts.json"]) == on_show(view)["facts"]
        (tmp_path / "settings.json").write_bytes(settings)
        (tmp_path / "cat.jpg").write_bytes(example("cat"))
        out = tmp_path / str(number)
        picture, settings_file = str(tmp_path / "cat.jpg"), str(tmp_path / "settings.json")
        command = ["reconstruct", picture, "--settings", settings_file, "--device", "cpu"]
        assert mae([*command, "--out", str(out)]) == 0
        assert panels_in(out) == {name: files[name] for name in panels_in(out)}
        # And the same with a mask drawn by hand.
        own_mask(view)


def test_opened_settings_set_the_controls(view: Page, tmp_path: Path) -> None:
    slide(view, "mask-ratio", 0.4)
    gone(view, lambda: on_show(view)["settings"]["mask"]["ratio"] != 0.4 and "another ratio")
    own_mask(view)
    kept = on_show(view)
    settings = saved(view, keep(view).get_by_role("button", name="Save settings.json"))
    view.get_by_role("button", name="Back to the sliders' mask").click()
    slide(view, "mask-ratio", 0.9)
    gone(view, lambda: on_show(view)["settings"]["mask"]["ratio"] != 0.9 and "another ratio")
    load_settings(view, settings)
    expect(keep(view).get_by_text("The settings are set;")).to_be_visible()
    gone(view, lambda: on_show(view)["settings"] != kept["settings"] and "other settings")
    other = settings.replace(kept["settings"]["picture"].encode(), b"0" * 64)
    load_settings(view, other)
    expect(keep(view).get_by_text("made with another picture")).to_be_visible()


def load_settings(page: Page, data: bytes) -> None:
    keep(page).locator("input[type=file]").set_input_files(
        {"name": "mine.json", "mimeType": "application/json", "buffer": data}
    )


def test_damaged_settings_get_a_sentence_and_change_nothing(view: Page) -> None:
    own_mask(view)
    before, shown = on_show(view), pictures(view)
    settings = before["settings"]
    for data, sentence in [
        (b"\xff\xfe", "mine.json is no settings file"),
        (b"7", "mine.json is no settings file"),
        (b"[]", "Settings are a JSON object"),
        (json.dumps(settings | {"v": 9}).encode(), "of version 9"),
        (json.dumps(settings | {"model": "none"}).encode(), "Model is 'none'"),
        (json.dumps(settings | {"mask": {"ratio": 7, "seed": 1}}).encode(), "mask_ratio is 7"),
        (json.dumps(settings | {"mask": {"seed": 2**53 + 1}}).encode(), "beyond 9007199254740991"),
    ]:
        load_settings(view, data)
        expect(keep(view).locator(".settings [role=alert]")).to_contain_text(sentence)
        expect(view.locator("#facts [role=alert]")).to_have_count(0)
    assert (on_show(view), pictures(view)) == (before, shown)
    expect(view.get_by_role("button", name="Back to the sliders' mask")).to_be_visible()


@pytest.mark.parametrize("drawn", [False, True], ids=["seed", "own-mask"])
def test_the_code_runs_and_makes_the_same_panels(
    view: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: bool
) -> None:
    if drawn:
        own_mask(view)
    files = zipped(view)
    part = keep(view)
    picture = saved(view, part.get_by_role("link", name="Save cat.jpg"))
    assert picture == example("cat")
    wanted = {f"{name}.png": files[f"{name}.png"] for name in PANELS}
    for name, result in [("Python", "panels"), ("Python, through this page", "."), ("cURL", ".")]:
        part.get_by_role("button", name=name, exact=True).click()
        folder = tmp_path / name
        folder.mkdir()
        (folder / "cat.jpg").write_bytes(picture)
        (folder / "code").write_text(str(part.locator("pre").text_content()), "utf-8")
        monkeypatch.chdir(folder)
        if name != "cURL":
            runpy.run_path("code")
        elif shutil.which("curl") is None:
            pytest.skip("there is no curl")
        else:
            subprocess.run(["sh", "code"], check=True)
        assert panels_in(folder / result) == wanted, name


def turned(picture: Image.Image) -> bytes:
    """A PNG that lies on its side, and says so."""
    exif, buffer = picture.getexif(), io.BytesIO()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("fit", ["Crop", "Whole"])
def test_the_prediction_is_pasted_into_the_whole_picture(view: Page, fit: str) -> None:
    picture = draw_picture(4, 900, 700).convert("RGB")
    before = pictures(view)
    choose_file(view, "mine.png", turned(picture))
    changed(view, "original", before["original"])
    view.locator("#fit label", has_text=fit).click()
    gone(view, lambda: on_show(view)["settings"]["fit"] != fit.lower() and "another fit")
    gone(view, lambda: on_show(view)["example"] and "another picture")
    data = saved(view, keep(view).get_by_role("button", name="Save in original resolution"))
    with Image.open(io.BytesIO(data)) as opened_picture:
        assert opened_picture.format == "PNG"
        pasted = np.asarray(opened_picture.convert("RGB")).astype(int)
    reconstruction = panel(view, "reconstruction")
    assert reconstruction is not None
    removed = np.array([[cell == "1" for cell in row] for row in on_show(view)["mask"]])
    prediction = Image.fromarray(reconstruction)
    wanted = paste_panel(picture, prediction, removed, fit.lower())
    places = paste_panel(
        Image.new("RGB", picture.size), Image.new("RGB", prediction.size, "white"), removed,
        fit.lower(),
    )  # fmt: skip
    hidden = np.asarray(places)[:, :, 0] == 255
    assert pasted.shape == np.asarray(wanted).shape
    assert np.array_equal(pasted[~hidden], np.asarray(picture)[~hidden])
    # The browser's bicubic curve is another one.
    assert np.abs(pasted - np.asarray(wanted))[hidden].mean() < 1


def test_a_format_that_the_browser_cannot_read_gets_a_sentence(view: Page) -> None:
    before = pictures(view)
    choose_file(view, "mine.tif", encoded(draw_picture(5, 200, 160), "TIFF"), "image/tiff")
    changed(view, "original", before["original"])
    part = keep(view)
    part.get_by_role("button", name="Save in original resolution").click()
    expect(part.locator(".files [role=alert]")).to_contain_text("cannot read the picture's format")


def visits(page: Page) -> Locator:
    return page.locator("#keep .history li button")


def test_the_history_brings_views_back_after_a_reload(view: Page) -> None:
    view.evaluate("sessionStorage.clear()")
    view.reload()
    view.locator("#panel-pasted:not(.empty) canvas").wait_for()
    keep(view)
    expect(visits(view)).to_have_count(1)
    first = on_show(view)
    before = pictures(view)
    choose_file(view, "mine.png", encoded(draw_picture(6, 160, 120)))
    changed(view, "original", before["original"])
    expect(visits(view)).to_have_count(2)
    mine, mine_pictures = on_show(view), pictures(view)
    own_mask(view)
    expect(visits(view)).to_have_count(3)
    view.reload()
    view.locator("#panel-pasted:not(.empty) canvas").wait_for()
    keep(view)
    names = [str(button.get_attribute("aria-label")) for button in visits(view).all()]
    assert names[0].startswith("mine.png, own mask of 7")
    assert names[1].startswith("mine.png, 75%, seed 2, mae-tiny, ")
    assert names[2].startswith("cat, 75%, seed 2, mae-tiny, ")
    visits(view).nth(1).click()
    gone(view, lambda: on_show(view)["settings"] != mine["settings"] and "another view")
    gone(view, lambda: pictures(view) != mine_pictures and "other pictures")
    expect(visits(view).nth(1)).to_have_attribute("aria-current", "true")
    visits(view).nth(2).click()
    gone(view, lambda: on_show(view)["settings"] != first["settings"] and "another view")
    expect(visits(view)).to_have_count(3)
    keep(view).get_by_role("button", name="Clear history").click()
    expect(visits(view)).to_have_count(0)
    expect(keep(view).get_by_text("Nothing yet.")).to_be_visible()


def test_a_visit_pressed_early_is_opened_once_the_page_can(view: Page) -> None:
    slide(view, "seed", 33)
    keep(view)
    expect(visits(view).first).to_have_attribute("aria-label", re.compile("seed 33"))
    held: list[Route] = []
    view.route("**/stage/opener.js", lambda route: held.append(route))
    view.reload()
    view.locator("#panel-pasted:not(.empty) canvas").wait_for()
    keep(view)
    visits(view).first.click()
    gone(view, lambda: not held and "nobody has asked for the opener")
    held[0].continue_()
    gone(view, lambda: on_show(view)["settings"]["mask"]["seed"] != 33 and "another seed")


def test_a_visit_whose_picture_was_deleted_gets_a_sentence(view: Page) -> None:
    before = pictures(view)
    choose_file(view, "mine.png", encoded(draw_picture(7, 160, 120)))
    changed(view, "original", before["original"])
    keep(view)
    expect(visits(view).first).to_have_attribute("aria-current", "true")
    Path(on_show(view)["image"]["path"]).unlink()
    slide(view, "seed", 1)
    seen(view, "no longer on the server")
    visits(view).first.click()
    alert = view.locator("#keep .history [role=alert]")
    expect(alert).to_contain_text("no longer on the server")


@on_a_phone
def test_on_a_phone_nothing_is_wider_than_the_page(view: Page) -> None:
    own_mask(view)
    part = keep(view)
    for name in ("Python", "Python, through this page", "cURL"):
        part.get_by_role("button", name=name, exact=True).click()
        assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
