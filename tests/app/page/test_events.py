import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest

from app.page.events import OWN_SIZE, PANELS, Events, as_gradio_error
from app.service import Answer, ReconstructionService, Waiting
from mae_core.errors import ImageError
from tests.app.serving import (
    asked,
    events_of,
    example,
    pixels_of,
    shown,
    small_reconstructor,
    small_service,
)

CHINESE: Any = SimpleNamespace(headers={"accept-language": "zh-CN,zh;q=0.9"})
CONTROLS = (0.75, 2, "random", "crop", "small-random")
PAGE_CONTROLS = (*CONTROLS, OWN_SIZE, "estimated")


class BrokenService(ReconstructionService):
    """Fails as no service should."""

    def __init__(self) -> None:
        pass

    async def answer(
        self, values: Mapping[str, object], visitor: str
    ) -> AsyncGenerator[Waiting | Answer, None]:
        raise RuntimeError("secret at /home/somebody/weights")
        yield  # what makes it a generator

    def forget_failure(self, name: object) -> None:
        pass


@pytest.fixture(scope="module")
def service() -> ReconstructionService:
    """One of these tests' own: the line of one that is served lives in its server's event loop."""
    return small_service()


@pytest.fixture
def events(service: ReconstructionService) -> Events:
    return events_of(service)


def test_outputs_are_the_panels_in_order_and_the_facts(
    events: Events, service: ReconstructionService
) -> None:
    *panels, facts = asked(events, example("cat"), *CONTROLS)
    answer = service.reconstruct(example("cat"), 0.75, 2)
    for name, panel in zip(PANELS, panels, strict=True):
        assert np.array_equal(panel, np.asarray(answer.panels[name]))
    assert facts == answer.facts


def test_the_page_shows_what_the_api_gives(events: Events) -> None:
    picture = example("cat")
    view, facts, timer = shown(events, picture, *PAGE_CONTROLS)
    original, masked, reconstruction, pasted, api_facts = asked(events, picture, *CONTROLS)
    assert facts == api_facts
    assert not timer.active
    shown_pixels = [
        pixels_of(view[name].removeprefix("gradio_api/file="))
        for name in ("original", "reconstruction")
    ]
    assert np.array_equal(shown_pixels, [original, reconstruction])
    # What the browser composes.
    removed = np.array([[cell == "1" for cell in row] for row in view["mask"]])
    assert removed.shape == (7, 7)
    pixels = np.kron(removed, np.ones((16, 16), dtype=bool))[:, :, None]
    assert np.array_equal(np.where(pixels, 128, original), masked)
    assert np.array_equal(np.where(pixels, reconstruction, original), pasted)


@pytest.mark.parametrize(("size", "pixels"), [(336, 336), (450, 448), (1024, 1024), (9, 16)])
def test_the_pages_sizes_are_brought_to_patches(events: Events, size: int, pixels: int) -> None:
    facts = shown(events, example("cat"), *CONTROLS, size, "estimated")[1]
    assert (facts["height"], facts["width"]) == (pixels, pixels)


def test_a_size_that_is_none_gets_a_sentence(events: Events) -> None:
    facts = shown(events, example("cat"), *CONTROLS, "huge", "estimated")[1]
    assert "whole number of pixels up to 1024" in facts["error"]


@pytest.fixture
def norm_pix() -> Events:
    return events_of(ReconstructionService({"norm": small_reconstructor("norm", norm_pix=True)}))


def test_the_view_that_uses_the_answer_is_said_to(norm_pix: Events) -> None:
    def facts(view: str, request: Any = None) -> Any:
        controls = (0.75, 2, "random", "crop", "norm", OWN_SIZE, view)
        return shown(norm_pix, example("cat"), *controls, request)[1]

    assert "note" not in facts("estimated")
    assert facts("answer")["note"].startswith("uses the answer")
    assert facts("answer", CHINESE)["note"].startswith("用到了答案")
    assert facts("normalized")["note"].startswith("as predicted")
    assert facts("normalized")["psnr"] is None


def test_views_are_shown_for_normalised_pixels_only(events: Events, norm_pix: Events) -> None:
    assert norm_pix.show_views("norm")["visible"] is True
    assert events.show_views("small-random")["visible"] is False
    assert events.show_views("nothing of the kind")["visible"] is False


def test_no_picture_empties_the_page(events: Events) -> None:
    *outputs, timer = shown(events, None, *PAGE_CONTROLS)
    assert outputs == [None] * 2
    assert not timer.active


def test_a_bad_picture_empties_the_panels_and_says_why(events: Events) -> None:
    panels, facts, timer = shown(events, b"no picture", *PAGE_CONTROLS)
    assert not timer.active
    assert panels is None
    assert facts is not None
    assert facts.keys() == {"error"}
    assert "JPEG" in facts["error"]
    assert facts["error"].endswith(".")


def test_errors_speak_the_language_that_the_page_shows(events: Events) -> None:
    async def facts(language: object, request: Any) -> Any:
        controls = dict(zip(
            ("mask_ratio", "seed", "strategy", "fit", "model", "image_size", "view"),
            PAGE_CONTROLS, strict=True,
        ))  # fmt: skip
        outputs = events.update(request, language, image=5, **controls)
        return [output async for output in outputs][-1][1]["error"]

    english, chinese = "The picture must be an uploaded file", "图片必须是已上传的文件"
    for language, request, words in (
        ("en", CHINESE, english), ("zh-TW", None, chinese), ("fr", CHINESE, english),
        ("", CHINESE, chinese), (7, CHINESE, chinese), (["zh"], None, english),
    ):  # fmt: skip
        assert asyncio.run(facts(language, request)).startswith(words)


def test_errors_speak_the_language_of_the_request(events: Events) -> None:
    facts = shown(events, b"no picture", *PAGE_CONTROLS, CHINESE)[1]
    assert facts is not None
    assert "图片" in facts["error"]
    with pytest.raises(gr.Error, match="图片") as caught:
        asked(events, b"no picture", *CONTROLS, request=CHINESE)
    assert caught.value.title == "操作未成功"


def test_a_mae_error_becomes_one_sentence(events: Events) -> None:
    with pytest.raises(gr.Error) as caught:
        asked(events, example("cat"), 2, 2, "random", "crop", "small-random")
    error = caught.value
    assert error.message == (
        "mask_ratio is 2; it must be a number from 0.05 to 0.95, such as 0.75."
    )
    assert (error.title, error.print_exception) == ("That did not work", False)


def test_a_clients_words_are_no_markup(events: Events) -> None:
    with pytest.raises(gr.Error) as caught:
        asked(events, example("cat"), 0.5, 2, "<img src=x>", "crop", "small-random")
    assert "<" not in caught.value.message
    assert "&lt;img" in caught.value.message


def test_an_unknown_error_shows_an_id_and_logs_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = events_of(BrokenService())
    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as caught:
        asked(broken, example("cat"), *CONTROLS)
    message = caught.value.message
    assert "secret" not in message
    assert caught.value.print_exception is False
    error_id = message.split("(id ")[1].split(")")[0]
    (record,) = caplog.records
    assert error_id in record.getMessage()
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1])


def test_an_unknown_error_on_the_page_shows_an_id(caplog: pytest.LogCaptureFixture) -> None:
    facts = shown(events_of(BrokenService()), example("cat"), *PAGE_CONTROLS)[1]
    assert facts is not None
    assert "Something went wrong (id " in facts["error"]
    assert "secret" not in facts["error"]
    assert len(caplog.records) == 1


def test_a_file_that_is_gone_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    assert as_gradio_error(FileNotFoundError("/somewhere/cat.jpg"), None).message == (
        "The picture is no longer on the server. Please choose it again."
    )
    assert not caplog.records


def test_a_path_that_gradio_refuses_is_no_upload(caplog: pytest.LogCaptureFixture) -> None:
    error = gr.exceptions.InvalidPathError("Cannot move /etc/passwd to the cache")
    assert "must be an uploaded file" in as_gradio_error(error, None).message
    assert not caplog.records


def test_an_example_is_chosen_by_name(events: Events) -> None:
    copy = Path(events.choose_example("cat").path)
    assert copy.read_bytes() == example("cat")
    assert copy.is_relative_to(events._folder.path)


@pytest.mark.parametrize("name", ["dog", "../cat", "", None, 3, ["cat"], {"cat": 1}])
def test_no_other_example_is_to_be_had(events: Events, name: object) -> None:
    with pytest.raises(ImageError, match="choose one of those shown"):
        events.choose_example(name)
