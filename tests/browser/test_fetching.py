"""Models that are fetched when they are chosen, from a hub of our own, in a real Chromium."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from playwright.sync_api import Locator, Page, expect

from app.models.served import ServedModel
from app.models.shelf import ModelShelf
from app.service import ReconstructionService
from mae_core.weights import WeightsEntry, registry
from mae_core.weights.formats import save_weights
from mae_core.weights.hub import Progress
from mae_core.weights.registry import list_weights
from tests.app.serving import example, small_reconstructor
from tests.browser.conftest import PHONE, TIMEOUT, on_a_chinese_phone, opened
from tests.browser.test_page import expected, seen, shows, slide
from tests.downloading import isolate, use_hub
from tests.hub import Hub, running_hub

pytestmark = pytest.mark.browser

LONG = "me/a-name-that-is-longer-than-others"


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model of normalised pixels."""
    path = tmp_path_factory.mktemp("published") / "weights.safetensors"
    save_weights(path, small_reconstructor(norm_pix=True).model, record={})
    return path.read_bytes()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with pytest.MonkeyPatch.context() as monkeypatch, running_hub() as hub:
        isolate(monkeypatch, tmp_path_factory.mktemp("caches"))
        use_hub(monkeypatch, hub.url)
        # A browser beside it makes for a slow machine, and no test here is of a slow server.
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 60)
        yield hub


@pytest.fixture(scope="module")
def gate() -> Iterator[threading.Event]:
    """While it is not set, downloads stop after their first bytes."""
    gate = threading.Event()
    gate.set()
    yield gate
    gate.set()


@pytest.fixture(scope="module")
def shelf(hub: Hub, gate: threading.Event) -> Iterator[ModelShelf]:
    def locate(name: str, *, fetch: bool, progress: Progress, account: bool) -> Path:
        def held(done: int, total: int | None) -> None:
            progress(done, total)
            assert not done or gate.wait(TIMEOUT / 1000)

        return registry.locate(name, fetch=fetch, progress=held, account=account)

    def read(name: str) -> ServedModel:
        return ServedModel.open(name, device="cpu")

    names = ("me/flowers", "me/views", "me/later", LONG)
    shelf = ModelShelf(list_weights() | {name: on_the_hub(name) for name in names}, read)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("app.models.shelf.locate", locate)
        yield shelf
        gate.set()
        shelf.join()


@pytest.fixture(scope="module")
def service(shelf: ModelShelf) -> ReconstructionService:
    return ReconstructionService({"small-random": small_reconstructor()}, shelf)


def on_the_hub(name: str) -> WeightsEntry:
    return WeightsEntry(
        name=name, summary="A model of flowers", licence="MIT", kind="autoencoder",
        format="mae_core", target="norm_pix", parameters=1_000_000, repo=name,
    )  # fmt: skip


def published(hub: Hub, name: str, weights: bytes) -> str:
    hub.publish(name, {"config.json": b"{}", "weights.safetensors": weights})
    return name


def choose(page: Page, name: str) -> None:
    page.locator("#model input").click()
    option(page, name).click()
    # The list fades away, and takes a click that comes too early.
    expect(page.locator("#model [role=option]")).to_have_count(0)


def fetched(page: Page, name: str) -> None:
    """Wait until the list says that a model, the one chosen, is here."""
    expect(page.locator("#model input")).to_have_value(f"{name} · on disk · MIT")


def option(page: Page, name: str) -> Locator:
    return page.locator("#model [role=option]", has_text=name)


def test_a_model_is_fetched_while_others_are_answered(
    view: Page, service: ReconstructionService, hub: Hub, gate: threading.Event, flowers: bytes
) -> None:
    name = published(hub, "me/flowers", flowers)
    gate.clear()
    choose(view, name)
    seen(view, f"Fetching {name}")
    expect(view.locator("#facts progress[value]")).to_have_count(1)
    expect(view.locator("#panels figure:not(.empty)")).to_have_count(0)
    other = opened(view.context.new_page(), view.url, updates=False)
    slide(other, "seed", 5)
    shows(other, expected(service, example("cat"), 0.75, 5))
    assert service.offer(name).state == "fetching"
    gate.set()
    fetched(view, name)
    shows(view, expected(service, example("cat"), 0.75, 2, "random", "crop", name))
    expect(view.locator("#view")).to_be_visible()
    assert [request.path.rsplit("/", 1)[-1] for request in hub.downloads] == [
        "config.json", "weights.safetensors",
    ]  # fmt: skip


def test_the_views_of_normalised_pixels(
    view: Page, service: ReconstructionService, hub: Hub, flowers: bytes
) -> None:
    expect(view.locator("#view")).to_have_count(0)
    choose(view, name := published(hub, "me/views", flowers))
    fetched(view, name)
    request = (example("cat"), 0.75, 2, "random", "crop", name, None)
    shows(view, expected(service, *request, "estimated"))
    for label, key in (("uses the answer", "answer"), ("As predicted", "normalized")):
        view.locator("#view label", has_text=label).click()
        shows(view, expected(service, *request, key))
        expect(view.locator("#facts em")).to_contain_text(label.lower())
    view.locator("#view label", has_text="Estimated").click()
    shows(view, expected(service, *request, "estimated"))
    expect(view.locator("#facts em")).to_have_count(0)
    choose(view, "small-random")
    shows(view, expected(service, example("cat"), 0.75, 2))
    expect(view.locator("#view")).to_have_count(0)


def test_a_failure_is_a_sentence_and_can_be_tried_again(
    view: Page, service: ReconstructionService, hub: Hub, flowers: bytes
) -> None:
    choose(view, "me/later")
    alert = view.locator("#facts [role=alert]")
    expect(alert).to_contain_text("me/later")
    expect(view.locator("#model input")).to_have_value("me/later · fetch ≈ 4 MB · MIT")
    expect(view.locator("#panels figure:not(.empty)")).to_have_count(0)
    choose(view, "small-random")
    shows(view, expected(service, example("cat"), 0.75, 2))
    published(hub, "me/later", flowers)
    choose(view, "me/later")
    fetched(view, "me/later")
    shows(view, expected(service, example("cat"), 0.75, 2, "random", "crop", "me/later"))
    expect(alert).to_have_count(0)


def test_the_list_says_what_would_be_fetched_and_a_size_makes_larger_panels(
    view: Page, service: ReconstructionService
) -> None:
    view.locator("#model input").click()
    expect(view.locator("#model [role=option]").first).to_contain_text("small-random")
    expect(option(view, "mae-tiny")).to_contain_text("on disk")
    large = option(view, "mae-large-visualize")
    expect(large).to_contain_text("fetch 1.3 GB · CC-BY-NC-4.0")
    expect(option(view, "mae-base-pretrain").filter(has_not_text="full")).to_have_count(0)
    view.keyboard.press("Escape")
    # A size makes larger panels.
    view.locator("#size label", has_text="448").click()
    seen(view, "196 of 784 patches seen")
    shows(view, expected(service, example("cat"), 0.75, 2, "random", "crop", None, 448))


@on_a_chinese_phone
def test_a_chinese_phone_has_room_for_all_of_it(
    view: Page, hub: Hub, gate: threading.Event, flowers: bytes
) -> None:
    gate.clear()
    choose(view, name := published(hub, LONG, flowers))
    seen(view, f"正在下载 {name}")
    gate.set()
    expect(view.locator("#view")).to_be_visible()
    view.locator("#view label", has_text="用到了答案").click()
    expect(view.locator("#facts em")).to_contain_text("用到了答案")
    view.locator("#model input").click()
    expect(option(view, "mae-large-visualize")).to_contain_text("需下载 1.3 GB · CC-BY-NC-4.0")
    width = view.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1] == PHONE["width"]
