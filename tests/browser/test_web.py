"""The page without a server in a real Chromium, beside Python on the same model's file."""

import gzip
import io
import json
import random
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime import InferenceSession
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

from benchmarks.bench_web import pixels_of
from mae_core import load
from mae_core.images import fit_image, open_image, to_pil, to_tensor
from mae_core.inside.uncertainty import Doubt
from mae_core.model.masking import custom_mask, draw_mask
from mae_core.reconstruct import Reconstructor, to_pixels
from mae_core.settings import digest_of
from mae_core.weights import DEFAULT_WEIGHTS
from tests.browser.asking import whole_width
from tests.browser.conftest import (
    DESKTOP,
    ON_A_CHINESE_PHONE,
    ON_A_PHONE,
    TIMEOUT,
    gone,
    watched,
)
from tests.sources import ROOT

EXAMPLES = ROOT / "app/assets/examples"
NAME = DEFAULT_WEIGHTS
FIRST_MASK = {"strategy": "random", "ratio": 0.75, "seed": 2, "rows": []}

# Of the bytes of a reconstruction: sums in another order are rounded to the next level.
MOST_DIFFERING = 1e-3


class Handler(SimpleHTTPRequestHandler):
    """A plain file server: no headers of the page's own. Counts what it sends."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()


class Server(NamedTuple):
    url: str
    asked: list[str]


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[Server]:
    handler = partial(Handler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        asked: list[str] = []
        files.asked = asked  # type: ignore[attr-defined]
        thread = threading.Thread(target=files.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield Server(f"http://127.0.0.1:{files.server_address[1]}/", asked)
        files.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One profile: it fetches the model once."""
    context = browser.new_context(viewport=DESKTOP, locale="en-US", reduced_motion="reduce")
    context.set_default_timeout(TIMEOUT)
    yield context
    context.close()


@pytest.fixture(scope="module")
def shared(context: BrowserContext, server: Server) -> Page:
    """Opened once, as its model is read anew each time."""
    page = context.new_page()
    with watched(context, server.url):
        opened(page, server.url)
    return page


@pytest.fixture
def page(shared: Page, server: Server) -> Iterator[Page]:
    """The page with its first view, at rest; it complains of nothing and asks no other host."""
    with watched(shared.context, server.url):
        first = {"model": NAME, "fit": "crop", "mask": FIRST_MASK}
        set_to(shared, example="cat", **first)
        shared.locator("#tab-film").click()
        yield shared


def opened(page: Page, url: str) -> None:
    page.goto("about:blank")
    page.goto(url)
    page.locator("#panels .panels[data-view*=reconstruction]").wait_for()
    page.locator("#film .main").wait_for()
    at_rest(page)


def at_rest(page: Page) -> None:
    page.locator("#facts .pending").wait_for(state="detached")


def view_of(page: Page) -> dict[str, Any]:
    at_rest(page)
    view: dict[str, Any] = json.loads(page.locator("#panels .panels").get_attribute("data-view"))
    return view


# Sets the controls as a link does, and waits for the view.
OPEN = """async (settings) => {
  const { stage } = await import(new URL('app/stage/stage.js', document.baseURI));
  return stage.open(settings);
}"""


def set_to(page: Page, **settings: Any) -> dict[str, Any]:
    """The view of settings; `mask` is on top of the present ones."""
    request = view_of(page)["settings"]
    mask = request["mask"] | settings.pop("mask", {})
    example = settings.pop("example", None)
    wanted = {"example": example, "request": request | settings | {"mask": mask}}
    assert page.evaluate(OPEN, wanted) == ""
    return view_of(page)


class File:
    """The model's file, run by Python."""

    def __init__(self, site: Path) -> None:
        (description,) = json.loads((site / "models/index.json").read_text())["models"]
        self.content = gzip.decompress((site / "models" / description["file"]).read_bytes())
        self.session = InferenceSession(self.content, providers=["CPUExecutionProvider"])
        self.config = load(NAME).config

    def rebuild(self, picture: Path, mask: dict[str, Any], fit: str = "crop") -> Image.Image:
        """The reconstruction of a picture, under a mask as settings have it."""
        fitted = fit_image(open_image(picture), fit, image_size=224, patch_size=16)
        images = to_tensor(fitted, self.config.mean, self.config.std)
        if mask["rows"]:
            drawn = custom_mask([[cell == "1" for cell in row] for row in mask["rows"]])
        else:
            drawn = draw_mask(mask["strategy"], 1, (14, 14), mask["ratio"], seed=mask["seed"])
        pred, _ = self.session.run(["pred", "changes"], {
            "images": images.numpy(), "ids_keep": drawn.ids_keep.numpy(),
            "ids_restore": drawn.ids_restore.numpy(),
        })  # fmt: skip
        return to_pil(to_pixels(self.config, torch.from_numpy(pred), images, drawn)[0])


@pytest.fixture(scope="module")
def file(site: Path) -> File:
    return File(site)


def same_picture(page: Page, found: str, wanted: Image.Image) -> None:
    """All bytes are equal but for a few that are a level apart."""
    levels = np.abs(pixels_of(page, found).astype(int) - np.asarray(wanted))
    assert levels.max() <= 1
    assert (levels > 0).mean() <= MOST_DIFFERING


# ---------------------------------------------------------------- panels


def test_the_first_view_is_that_of_python(page: Page, file: File) -> None:
    view = view_of(page)
    result = Reconstructor(load(NAME))(EXAMPLES / "cat.jpg", 0.75, 2)
    assert view["mask"] == ["".join("01"[int(cell)] for cell in row) for row in result.removed]
    assert np.array_equal(
        pixels_of(page, view["original"]), np.asarray(result.panels()["original"])
    )
    assert view["facts"]["psnr"] == pytest.approx(result.psnr, abs=0.1)
    assert view["facts"]["ssim"] == pytest.approx(result.ssim, abs=0.005)
    assert view["settings"]["picture"] == digest_of(EXAMPLES / "cat.jpg")
    assert view["facts"]["patches"] == 196
    same_picture(
        page, view["reconstruction"], file.rebuild(EXAMPLES / "cat.jpg", view["settings"]["mask"])
    )
    expect(page.locator("#facts")).to_contain_text("WASM")
    whole_width(page)


def test_pictures_masks_and_fits_are_those_of_python(page: Page, file: File) -> None:
    chance = random.Random(7)
    for picture in chance.sample(sorted(EXAMPLES.glob("*.jpg")), 3):
        for strategy in ("random", "block", "grid"):
            mask = {
                "strategy": strategy, "ratio": chance.choice([0.25, 0.75, 0.95]),
                "seed": chance.randrange(2**53), "rows": [],
            }  # fmt: skip
            fit = chance.choice(["crop", "squash"])
            view = set_to(page, example=picture.stem, mask=mask, fit=fit)
            assert view["settings"]["mask"]["seed"] == mask["seed"]
            same_picture(page, view["reconstruction"], file.rebuild(picture, mask, fit))


def test_an_own_mask_is_rebuilt(page: Page, file: File) -> None:
    rows = ["".join("1" if 3 < i < 9 and 2 < j < 11 else "0" for j in range(14)) for i in range(14)]
    view = set_to(page, mask={"rows": rows})
    assert view["mask"] == rows
    mask = view["settings"]["mask"]
    same_picture(page, view["reconstruction"], file.rebuild(EXAMPLES / "cat.jpg", mask))
    # The sliders take the mask back.
    page.locator("#editor .back").click()
    page.locator("#panels .panels[data-view*='\"rows\":[]']").wait_for()


def test_a_stroke_is_answered(page: Page) -> None:
    before = view_of(page)["mask"]
    page.locator("#panel-masked svg.grid").click(position={"x": 5, "y": 5})
    page.locator("#panels .panels:not([data-view*='\"rows\":[]'])").wait_for()
    after = view_of(page)
    assert after["settings"]["mask"]["rows"] == after["mask"]
    changed = [(i, j) for i in range(14) for j in range(14) if before[i][j] != after["mask"][i][j]]
    assert changed == [(0, 0)]


def test_controls_ask_and_the_last_counts(page: Page) -> None:
    slider = page.locator("#mask-ratio input[type=range]")
    for ratio in (0.3, 0.5, 0.9):
        slider.evaluate(
            "(s, v) => { s.value = v; s.dispatchEvent(new Event('input', {bubbles: true})); }",
            ratio,
        )
    page.locator("#panels .panels[data-view*='\"ratio\":0.9']").wait_for()
    assert view_of(page)["facts"]["visible"] == 19
    page.locator("#seed input[type=number]").fill("9007199254740991")
    page.locator("#panels .panels[data-view*='\"seed\":9007199254740991']").wait_for()
    page.get_by_label("Squash").check()
    page.get_by_label("Blocks").check()
    page.locator("#examples [data-name=rocket]").click()
    page.locator('#panels .panels[data-view*=\'"strategy":"block"\'][data-view*=rocket]').wait_for()
    view = view_of(page)
    assert (view["settings"]["fit"], view["example"]) == ("squash", "rocket")


def test_a_picture_of_the_visitor_and_what_is_none(page: Page, tmp_path: Path, file: File) -> None:
    turned = Image.open(EXAMPLES / "rocket.jpg").convert("RGB").resize((320, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = tmp_path / "turned & named.png"
    turned.save(picture, exif=exif)
    page.locator("#picture input").set_input_files(picture)
    page.locator("#panels .panels[data-view*='turned & named.png']").wait_for()
    view = view_of(page)
    assert view["example"] is None
    assert view["settings"]["picture"] == digest_of(picture)
    same_picture(page, view["reconstruction"], file.rebuild(picture, view["settings"]["mask"]))
    # All of it is shown small, upright.
    preview = page.locator("#picture canvas")
    assert preview.evaluate("canvas => [canvas.width, canvas.height]") == [200, 320]
    for name, content, sentence in (
        ("none.jpg", b"", "of none of the formats"),
        ("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "of none of the formats"),
        ("cut.jpg", (EXAMPLES / "cat.jpg").read_bytes()[:700], "damaged"),
        ("huge.png", _huge_png(), "at most 33.5 million"),
    ):
        page.locator("#picture input").set_input_files(
            {"name": name, "mimeType": "image/png", "buffer": content}
        )
        expect(page.locator("#facts [role=alert]")).to_contain_text(sentence)
        expect(page.locator("#panel-pasted")).to_have_class("empty")
        expect(preview).to_be_hidden()
    page.locator("#examples [data-name=cat]").click()
    page.locator("#panel-pasted:not(.empty)").wait_for()
    expect(preview).to_be_visible()


def test_of_two_files_none_is_taken(page: Page) -> None:
    page.evaluate("""() => {
        const dataTransfer = new DataTransfer();
        for (const name of ['a.png', 'b.png']) dataTransfer.items.add(new File([], name));
        document.dispatchEvent(new DragEvent('drop', { dataTransfer, cancelable: true }));
    }""")
    expect(page.locator("#facts [role=alert]")).to_contain_text("one file at a time")
    assert view_of(page)["example"] == "cat"


def test_webgpu_is_a_choice_where_there_is_a_card(plain: Page, server: Server) -> None:
    plain.add_init_script("""Object.defineProperty(navigator, 'gpu', {
        value: { requestAdapter: async () => ({}) } })""")
    opened(plain, server.url)
    plain.locator("#device").wait_for()


def _huge_png() -> bytes:
    """The header of a picture of 60,000 x 60,000 pixels."""
    header = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + header + b"\0" * 4


# ---------------------------------------------------------------- parts


ASK = """async (question) => {
  const { stage } = await import(new URL('app/stage/stage.js', document.baseURI));
  const parts = [];
  for await (const part of stage.ask(question, new AbortController().signal)) parts.push(part);
  return parts;
}"""


def test_the_film_is_saved(page: Page, tmp_path: Path) -> None:
    page.locator("#film .main").click()
    page.locator("#film .files .webp:not([disabled])").wait_for()
    expect(page.locator("#film .gif")).to_have_count(0)
    with page.expect_download() as saving:
        page.locator("#film .webp").click()
    saved = tmp_path / "film.webp"
    saving.value.save_as(saved)
    with Image.open(saved) as film:
        assert (film.n_frames, film.size) == (19, (3 * 224 + 16, 224 + 14))  # type: ignore[attr-defined]


def test_doubt_is_that_of_python(page: Page, file: File) -> None:
    (*_, part) = page.evaluate(ASK, {"kind": "doubt", "masks": 4})
    doubt = Doubt()
    reconstructor = Reconstructor(load(NAME))
    for seed in range(2, 6):
        doubt.add(reconstructor(EXAMPLES / "cat.jpg", 0.75, seed))
    assert part["hidden"] == doubt.hidden.tolist()
    # The file's weights have 8 bits.
    assert part["mean_psnr"] == pytest.approx(doubt.mean_psnr, abs=0.1)
    maps = [np.array(part[name]["patches"], float) for name in ("error", "disagreement")]
    for found, wanted in zip(maps, (doubt.patch_error, doubt.patch_disagreement), strict=True):
        assert np.nanmax(np.abs(found - wanted)) < 0.02
    page.locator("#tab-doubt").click()
    page.locator("#doubt .main").click()
    expect(page.locator("#doubt")).to_contain_text("16 masks of 75%")


def test_influence_and_no_leak(page: Page, file: File) -> None:
    set_to(page, mask={"ratio": 0.95})
    parts = page.evaluate(ASK, {"kind": "influence"})
    assert [part["done"] for part in parts] == [*range(1, 10)]
    # Attention takes the page with a server, so there is no choice.
    page.locator("#tab-origin").click()
    expect(page.locator("#origin .choice")).to_have_count(0)
    page.locator("#origin .main").click()
    expect(page.locator("#origin")).to_contain_text("All 9 visible patches left out in turn")
    page.locator("#tab-proof").click()
    page.locator("#proof .main").first.click()
    expect(page.locator("#proof .verdict")).to_contain_text("Same to the last bit")


def test_two_are_compared_and_the_inside_is_shown(page: Page) -> None:
    page.locator("#tab-compare").click()
    page.locator("#compare .main").click()
    expect(page.locator("#compare .side canvas")).to_have_count(2)
    page.locator("#tab-inside").click()
    expect(page.locator("#inside")).to_contain_text(
        f"1 + 49 = 50 tokens × {load(NAME).config.embed_dim}"
    )


def test_panels_settings_and_the_link_are_kept(
    page: Page, context: BrowserContext, tmp_path: Path
) -> None:
    set_to(page, example="coffee", mask={"seed": 77})
    page.locator("#tab-keep").click()
    expect(page.locator("#keep")).not_to_contain_text("cURL")
    expect(page.locator("#keep code")).to_contain_text(f'mae_core.load("{NAME}")')
    with page.expect_download() as saving:
        page.locator("#keep .settings .main").click()
    settings = json.loads(Path(saving.value.path()).read_text())
    assert settings == view_of(page)["settings"]
    with page.expect_download() as saving:
        page.locator("#keep .files button").nth(1).click()
    with Image.open(saving.value.path()) as pasted, Image.open(EXAMPLES / "coffee.jpg") as original:
        assert pasted.size == original.size
    link = page.locator("#keep .link input").input_value()
    other = context.new_page()
    opened(other, link)
    assert view_of(other)["settings"] == settings
    assert view_of(other)["example"] == "coffee"
    other.close()


def test_settings_that_need_a_server_are_refused(page: Page) -> None:
    request = view_of(page)["settings"]
    for change, sentence in (
        ({"fit": "whole"}, "choose crop, squash"), ({"image_size": 448}, "448"),
        ({"model": "mae-huge"}, f"choose {NAME}"), ({"v": 9}, "version"),
    ):  # fmt: skip
        assert sentence in page.evaluate(OPEN, {"request": request | change})
    assert view_of(page)["settings"] == request


@pytest.mark.parametrize("options", [{"viewport": DESKTOP}, ON_A_PHONE], ids=["desktop", "phone"])
def test_the_lecture_runs_to_its_end(
    browser: Browser, server: Server, options: dict[str, Any]
) -> None:
    context = browser.new_context(**options, locale="en-US")
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    with watched(context, server.url):
        opened(page, server.url)
        page.locator("#lecture .begin").click()
        for step in range(1, 9):
            expect(page.locator("#lecture .sentence")).to_have_attribute("aria-busy", "false")
            expect(page.locator("#lecture .count")).to_have_text(f"Step {step} of 8")
            whole_width(page)
            if step < 8:
                page.locator("#lecture .next").click()
        page.keyboard.press("Escape")
        expect(page.locator("#lecture .begin")).to_be_visible()
    context.close()


def test_it_speaks_chinese_on_a_phone(browser: Browser, server: Server) -> None:
    context = browser.new_context(**ON_A_CHINESE_PHONE)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    with watched(context, server.url):
        opened(page, server.url)
        expect(page.locator("#panel-masked figcaption")).to_contain_text("掩码后")
        expect(page.locator("#facts")).to_contain_text("可见 49 / 196")
        whole_width(page)
        masked, slider = (page.locator(s).bounding_box() for s in ("#panel-masked", "#mask-ratio"))
        assert masked
        assert slider
        assert masked["y"] < slider["y"]
        page.get_by_role("button", name="English").click()
        expect(page.locator("#panel-masked figcaption")).to_contain_text("Masked")
        expect(page.locator("#facts")).to_contain_text("49 of 196")
        expect(page.locator("#picture canvas")).to_be_visible()
    context.close()


# ---------------------------------------------------------------- files of models


def test_a_model_of_the_visitor_is_run(page: Page, file: File) -> None:
    # Of the same length, so that the file stays whole.
    own = NAME.replace("mae", "own")
    mine = file.content.replace(f'"name": "{NAME}"'.encode(), f'"name": "{own}"'.encode())
    page.locator("#model button").focus()
    page.locator("#model input").set_input_files(
        {"name": "mine.onnx", "mimeType": "application/octet-stream", "buffer": mine}
    )
    page.locator(f'#panels .panels[data-view*=\'"model":"{own}"\']').wait_for()
    expect(page.locator("#model select")).to_have_value(own)
    expect(page.locator("#model button")).to_be_focused()
    # It can be compared with the other.
    page.locator("#tab-compare").click()
    page.locator("#compare select").first.select_option("model")
    expect(page.locator("#compare select").nth(1)).to_have_value(NAME)
    page.locator("#compare .main").click()
    expect(page.locator("#compare .side canvas")).to_have_count(2)


def test_files_that_are_no_models_get_a_sentence(page: Page, file: File) -> None:
    content, before = file.content, view_of(page)
    for bad, sentence in (
        (b"", "no file that mae export-web wrote"),
        (random.Random(1).randbytes(4000), "no file that mae export-web wrote"),
        (content[:-2000], "no file that mae export-web wrote"),
        (content.replace(b'"patch_size": 16', b'"patch_size": -1'), "says patch_size = -1"),
        (content.replace(b'"grid": [14, 14]', b'"grid": [ 7,  7]'), "cannot be run here"),
        (content.replace(b"ids_restore", b"ids_resting"), "it has to be images, ids_keep"),
        (content.replace(b"MatMul", b"MatMad"), "cannot be run here"),
    ):
        page.locator("#model input").set_input_files(
            {"name": "bad.onnx", "mimeType": "application/octet-stream", "buffer": bad}
        )
        expect(page.locator("#facts [role=alert]")).to_contain_text(sentence)
    # What is on show stays, and goes on.
    assert view_of(page) == before
    page.locator("#dice").click()
    page.locator("#facts [role=alert]").wait_for(state="detached")


# ---------------------------------------------------------------- without a network


# How many of the model's file, two of the runtime's and the examples are kept.
KEPT = """async () => (await Promise.all((await caches.keys()).map(
  async (name) => (await (await caches.open(name)).keys()).map(({ url }) => url))))
  .flat().filter((url) => /[.]onnx|[.]wasm|examples[/]\\w+[.]jpg/.test(url)).length"""


def test_a_second_visit_fetches_nothing_and_needs_no_network(
    browser: Browser, server: Server
) -> None:
    context = browser.new_context(viewport=DESKTOP, locale="en-US")
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    opened(page, server.url)
    # What was not used is fetched a little later.
    gone(page, lambda: page.evaluate(KEPT) < 15 and "files are not kept yet")
    server.asked.clear()
    opened(page, server.url)
    assert {path.partition("?")[0] for path in server.asked} <= {"/sw.js"}
    assert page.evaluate("crossOriginIsolated")
    context.set_offline(True)
    with watched(context, server.url):
        opened(page, server.url)
        page.locator("#dice").click()
        page.locator("#panels .panels:not([data-view*='\"seed\":2,'])").wait_for()
        # One that was not looked at.
        page.locator("#examples [data-name=rocket]").click()
        page.locator("#panels .panels[data-view*=rocket]").wait_for()
        page.locator("#tab-doubt").click()
        page.locator("#doubt .main").click()
        expect(page.locator("#doubt")).to_contain_text("16 masks of 75%")
    context.close()


def test_without_webassembly_there_is_a_sentence(
    browser: Browser, server: Server, site: Path
) -> None:
    context = browser.new_context(service_workers="block")
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    worker = (site / "web/worker.js").read_text("utf-8")
    context.route("**/web/worker.js", lambda route: route.fulfill(
        content_type="text/javascript", body=f"delete globalThis.WebAssembly;\n{worker}"
    ))  # fmt: skip
    page.goto(server.url)
    expect(page.locator("#facts [role=alert]")).to_contain_text("needs WebAssembly")
    context.close()


def test_a_file_that_arrives_damaged_is_not_run(browser: Browser, server: Server) -> None:
    context = browser.new_context(service_workers="block")
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    context.route("**/models/*.onnx*", lambda route: route.fulfill(body=b"GIF89a"))
    page.goto(server.url)
    expect(page.locator("#facts [role=alert]")).to_contain_text("arrived damaged")
    context.unroute("**/models/*.onnx*")
    page.locator("#dice").click()
    page.locator("#panel-pasted:not(.empty)").wait_for()
    context.close()


# ---------------------------------------------------------------- what goes wrong


@pytest.fixture
def plain(browser: Browser, server: Server) -> Iterator[Page]:
    """A page whose requests a test can change, not opened yet."""
    context = browser.new_context(viewport=DESKTOP, locale="en-US", service_workers="block")
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    yield page
    context.close()


def test_a_picture_that_does_not_come_holds_nothing_up(plain: Page, server: Server) -> None:
    plain.route("**/examples/coffee.jpg", lambda route: None)
    opened(plain, server.url)
    plain.locator("#examples [data-name=coffee]").click()
    plain.locator("#examples [data-name=rocket]").click()
    plain.locator("#panels .panels[data-view*=rocket]").wait_for()


def test_a_worker_that_is_lost_is_started_again(plain: Page, server: Server) -> None:
    plain.route("**/web/worker.js", lambda route: route.abort())
    plain.goto(server.url)
    expect(plain.locator("#facts [role=alert]")).to_contain_text("cannot compute here")
    plain.unroute("**/web/worker.js")
    plain.locator("#dice").click()
    plain.locator("#panels .panels[data-view*=reconstruction]").wait_for()


def test_an_endless_model_is_stopped(plain: Page, server: Server, site: Path, file: File) -> None:
    script = (site / "web/backend-onnx.js").read_text("utf-8").replace("120_000", "2_000")
    plain.route(
        "**/web/backend-onnx.js",
        lambda route: route.fulfill(content_type="text/javascript", body=script),
    )
    opened(plain, server.url)
    before = view_of(plain)
    plain.locator("#model input").set_input_files(
        {"name": "endless.onnx", "mimeType": "application/octet-stream", "buffer": _endless(file)}
    )
    # It holds up what is asked meanwhile.
    plain.locator("#dice").click()
    expect(plain.locator("#facts [role=alert]")).to_contain_text("no picture within 2 s")
    assert view_of(plain) == before
    expect(plain.locator("#panel-pasted")).not_to_have_class("empty")
    plain.locator("#dice").click()
    plain.locator("#facts [role=alert]").wait_for(state="detached")


def _endless(file: File) -> bytes:
    """A graph that takes and gives what a model does, and never ends."""
    facts = next(p.value for p in onnx.load_from_string(file.content).metadata_props)
    numbers, ids = TensorProto.FLOAT, TensorProto.INT64
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("Add", ["value", "value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", ids, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", numbers, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", numbers, None),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["", "yes", "images"], ["pred"], body=body),
            helper.make_node("Identity", ["images"], ["changes"]),
        ],
        "endless",
        [
            helper.make_tensor_value_info("images", numbers, ["N", 3, 224, 224]),
            helper.make_tensor_value_info("ids_keep", ids, ["N", "K"]),
            helper.make_tensor_value_info("ids_restore", ids, ["N", 196]),
        ],
        [
            helper.make_tensor_value_info("pred", numbers, None),
            helper.make_tensor_value_info("changes", numbers, None),
        ],
        [helper.make_tensor("yes", TensorProto.BOOL, [], [True])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.add(key="mae_web", value=facts)
    return model.SerializeToString()


def test_the_history_never_opens_another_picture(plain: Page, server: Server) -> None:
    kept = "JSON.parse(sessionStorage['mae.visits'] ?? '[]').some((v) => !v.example)"
    opened(plain, server.url)
    for name, color in (("first", "red"), ("second", "blue")):
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), color).save(picture, "PNG")
        plain.locator("#picture input").set_input_files(
            {"name": "image.png", "mimeType": "image/png", "buffer": picture.getvalue()}
        )
        plain.locator("#panels .panels[data-view*='image.png']").wait_for()
        plain.locator("#tab-keep").click()
        if name == "first":
            # It has stayed long enough to be kept.
            expect(plain.locator("#keep .history li")).not_to_have_count(0)
            plain.locator("#keep .history li img").first.wait_for()
            gone(plain, lambda: not plain.evaluate(kept) and "the visit is not kept")
            opened(plain, server.url)
    plain.locator("#keep .history button[aria-label^='image.png']").last.click()
    expect(plain.locator("#keep .history [role=alert]")).to_contain_text("no longer in this tab")
