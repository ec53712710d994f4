"""Inside: the stages of a model and their cost, in a real Chromium."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from playwright.sync_api import Locator, Page, Request, Route, expect

from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core import MaskedAutoencoder, Reconstructor
from mae_core.inside.stages import trace
from mae_core.model.mae import forward_flops, module_flops
from mae_core.reconstruct import ReconstructionRequest
from tests.app.serving import CONFIG, HeldReconstructor, example
from tests.browser.asking import tab
from tests.browser.conftest import PHONE, gone, on_a_phone
from tests.browser.test_page import slide

pytestmark = pytest.mark.browser

GRID = (7, 7)
STEPS = 9


@pytest.fixture(scope="module")
def service(model: HeldReconstructor) -> ReconstructionService:
    """The small model, and one whose encoder gets mask tokens."""
    torch.manual_seed(1)
    tokens = MaskedAutoencoder(replace(CONFIG, encoder_mask_tokens=True, depth=3))
    other = Reconstructor(tokens, "tokens", device="cpu", precision="float32")
    settings = AppSettings(rate=0, max_batch=1, workers=1)
    return ReconstructionService({"small-random": model, "tokens": other}, settings=settings)


@pytest.fixture(autouse=True)
def asked(view: Page) -> Iterator[list[str]]:
    """Questions that the page sends about the inside of the model."""
    found: list[str] = []

    def note(request: Request) -> None:
        if '"inside"' in (request.post_data or ""):
            found.append(request.url)

    view.on("request", note)
    yield found
    view.remove_listener("request", note)


def part(page: Page) -> Locator:
    """The part, with its tab open and its diagram drawn."""
    tab(page, "Inside")
    found = page.locator("#inside")
    found.locator(".diagram li").first.wait_for()
    return found


def step(found: Locator, name: str) -> Locator:
    return found.locator(f"[data-step={name}]")


def giga(flops: int) -> str:
    return f"{flops / 1e9:.3g}"


@pytest.mark.parametrize("ratio", [0.75, 0.3])
def test_counts_and_cost_are_the_models_own(view: Page, ratio: float) -> None:
    found = part(view)
    slide(view, "mask-ratio", ratio)
    kept, length, config = {0.75: 12, 0.3: 34}[ratio], 49, CONFIG
    expect(step(found, "keep")).to_contain_text(f"1 + {kept} = {1 + kept} tokens × 32")
    expect(step(found, "patches")).to_contain_text("7 × 7 = 49 patches × 768 values")
    expect(step(found, "shuffle")).to_contain_text(f"{kept} stay, {length - kept} removed")
    expect(step(found, "encoder_block")).to_contain_text(f"{1 + kept} tokens × {config.embed_dim}")
    expect(step(found, "encoder_block").locator("canvas")).to_have_count(config.depth)
    expect(step(found, "decoder_embed")).to_contain_text(f"{1 + kept} tokens × 16")
    expect(step(found, "restore")).to_contain_text(
        f"50 tokens × 16, {length - kept} of them mask tokens"
    )
    expect(step(found, "decoder_block").locator("canvas")).to_have_count(config.decoder_depth)
    expect(step(found, "predict")).to_contain_text("49 patches × 768 values")

    flops, flops_all = (forward_flops(config, GRID, share) for share in (ratio, 0.0))
    encoder, encoder_all = (
        sum(count for name, count in module_flops(config, GRID, share).items()
            if name.startswith(("patch_embed", "blocks")))
        for share in (ratio, 0.0)
    )  # fmt: skip
    rows = found.locator(".cost > div")
    for row, (some, every) in zip(
        rows.all(), ((encoder, encoder_all), (flops, flops_all)), strict=True
    ):
        expect(row).to_contain_text(f"{giga(some)} of {giga(every)} GFLOP")
        expect(row).to_contain_text(f"{every / some:.1f} times less")
        width = row.locator("i").evaluate("(bar) => parseFloat(bar.style.width)")
        assert width == pytest.approx(100 * some / every, abs=0.01)
    blocks = module_flops(config, GRID, ratio)
    expect(step(found, "encoder_block")).to_contain_text(f"{giga(blocks['blocks.0'])} GFLOP")


def test_changes_and_order_of_tokens_are_those_of_the_model(
    view: Page, model: HeldReconstructor
) -> None:
    found = part(view)
    wanted = trace(model, ReconstructionRequest(example("cat"), 0.75, 2))
    label = step(found, "encoder_block").locator("canvas").get_attribute("aria-label") or ""
    numbers = re.fullmatch(r"Block 1: tokens change by ([\d.]+) to ([\d.]+)", label)
    assert numbers
    (changes,) = wanted.changes
    assert float(numbers[1]) == pytest.approx(min(changes), rel=0.005)
    assert float(numbers[2]) == pytest.approx(max(changes), rel=0.005)
    # And patches are shown in the order of the mask.
    colours = """(c, cells) => {
      const context = c.getContext('2d');
      return cells.map((i) => [...context.getImageData(
        (i % 7 + 0.5) * c.width / 7, (Math.floor(i / 7) + 0.5) * c.height / 7, 1, 1).data]);
    }"""
    first = step(found, "patches").locator("canvas").evaluate(colours, wanted.ids_keep)
    shuffled = step(found, "shuffle").locator("canvas").evaluate(colours, list(range(12)))
    assert first == shuffled
    alpha = step(found, "shuffle").locator("canvas").evaluate(colours, list(range(12, 49)))
    assert {pixel[3] for pixel in alpha} == {64}


def test_a_model_that_masks_inside_is_told_honestly(view: Page) -> None:
    found = part(view)
    view.evaluate(
        "async () => { const {stage} = await import(new URL('stage/stage.js', document.baseURI));"
        " stage.open({request: {...stage.view.settings, model: 'tokens'}}); }"
    )
    expect(step(found, "keep")).to_contain_text("1 + 12 + 37 = 50 tokens × 32")
    expect(step(found, "restore")).to_contain_text("0 of them mask tokens")
    expect(step(found, "encoder_block").locator("canvas")).to_have_count(3)
    for row in found.locator(".cost > div").all():
        expect(row).to_contain_text("no less")
    for _ in range(2):
        found.get_by_role("button", name="Next").click()
    expect(found.locator(".sentence")).to_contain_text("It saves nothing by masking")


def test_stages_are_walked_through_by_button_and_keyboard(view: Page) -> None:
    found = part(view)
    current = found.locator("[aria-current=step]")
    expect(current).to_have_attribute("data-step", "patches")
    found.get_by_role("button", name="Next").click()
    expect(current).to_have_attribute("data-step", "shuffle")
    said = {found.locator(".sentence").inner_text()}
    found.locator(".diagram").focus()
    for number in range(3, STEPS + 1):
        view.keyboard.press("ArrowRight")
        expect(found.locator("output")).to_have_text(f"{number} / {STEPS}")
        said.add(found.locator(".sentence").inner_text())
    assert len(said) == STEPS - 1
    assert not any("{" in sentence or "undefined" in sentence for sentence in said)
    expect(found.locator(".cost.current")).to_be_visible()
    view.keyboard.press("ArrowLeft")
    expect(current).to_have_attribute("data-step", "predict")
    expect(current).to_be_in_viewport()


def test_it_plays_and_pauses(view: Page) -> None:
    found = part(view)
    found.get_by_role("button", name="Play").click()
    expect(found.locator("output")).to_have_text(f"2 / {STEPS}")
    found.get_by_role("button", name="Pause").click()
    expect(found.get_by_role("button", name="Play")).to_be_visible()


def test_the_newest_view_wins(view: Page) -> None:
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        held.append(route)

    found = part(view)
    view.route("**/gradio_api/call/ask/*", hold_the_first)
    slide(view, "mask-ratio", 0.4)
    gone(view, lambda: not held and "no question was asked")
    expect(found.locator(".body.old")).to_have_count(1)
    slide(view, "mask-ratio", 0.9)
    expect(step(found, "keep")).to_contain_text("1 + 4 = 5 tokens")
    expect(found.locator(".body.old")).to_have_count(0)
    assert len(held) == 2
    held[0].continue_()
    view.unroute("**/gradio_api/call/ask/*")
    expect(found.locator(".cost h2")).to_contain_text("90% removed")


def test_only_an_open_tab_asks(view: Page, asked: list[str]) -> None:
    slide(view, "mask-ratio", 0.5)
    expect(view.locator("#facts")).to_contain_text("24 of 49 patches seen")
    assert not asked
    found = part(view)
    assert len(asked) == 1
    view.get_by_role("tab", name="No leak").click()
    expect(found).to_be_hidden()
    slide(view, "mask-ratio", 0.9)
    expect(view.locator("#facts")).to_contain_text("4 of 49 patches seen")
    assert len(asked) == 1
    part(view)
    expect(step(found, "keep")).to_contain_text("1 + 4 = 5 tokens")
    assert len(asked) == 2


def test_a_refusal_is_said_and_can_be_asked_again(view: Page) -> None:
    view.route("**/gradio_api/call/ask/*", lambda route: route.fulfill(
        content_type="text/event-stream",
        body='event: error\ndata: {"error": "too many requests"}\n\n'))  # fmt: skip
    view.get_by_role("tab", name="Inside").click()
    found = view.locator("#inside")
    expect(found.get_by_role("alert")).to_contain_text("too many requests")
    view.unroute("**/gradio_api/call/ask/*")
    found.get_by_role("button", name="Try again").click()
    expect(step(found, "patches")).to_be_visible()
    expect(found.get_by_role("alert")).to_be_hidden()
    expect(found.get_by_role("button", name="Try again")).to_be_hidden()


@on_a_phone
def test_on_a_phone_the_stages_stand_one_below_the_other(view: Page) -> None:
    found = part(view)
    width = view.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1] == PHONE["width"]
    places = [stage.bounding_box() for stage in found.locator(".diagram li").all()]
    tops = [place["y"] for place in places if place]
    assert tops == sorted(set(tops))
    assert len(tops) == 8
    for canvas in found.locator("canvas").all():
        box = canvas.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    gone(view, lambda: not found.locator(".sentence").inner_text() and "nothing is said")
