import logging
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio.exceptions import ComponentProcessingError

from app.components import as_gradio_error
from app.page.build import EXAMPLES
from app.page.events import OWN_SIZE, PANELS, Handlers
from app.service import Answer, ReconstructionService, Waiting
from mae_core.errors import MaskError
from tests.app.serving import asked, example, shown, small_reconstructor

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


@pytest.fixture
def handlers(service: ReconstructionService) -> Handlers:
    return Handlers(service, {"cat": EXAMPLES / "cat.jpg"})


def test_outputs_are_the_panels_in_order_and_the_facts(
    handlers: Handlers, service: ReconstructionService
) -> None:
    *panels, facts = asked(handlers, example("cat"), *CONTROLS)
    answer = service.reconstruct(example("cat"), 0.75, 2)
    for name, panel in zip(PANELS, panels, strict=True):
        assert np.array_equal(np.asarray(panel), np.asarray(answer.panels[name]))
    assert facts == answer.facts


def test_the_page_shows_what_the_api_gives(handlers: Handlers) -> None:
    picture = example("cat")
    assert shown(handlers, picture, *PAGE_CONTROLS)[4] == asked(handlers, picture, *CONTROLS)[4]


@pytest.mark.parametrize(("size", "pixels"), [(336, 336), (450, 448), (1024, 1024), (9, 16)])
def test_the_pages_sizes_are_brought_to_patches(handlers: Handlers, size: int, pixels: int) -> None:
    facts = shown(handlers, example("cat"), *CONTROLS, size, "estimated")[4]
    assert (facts["height"], facts["width"]) == (pixels, pixels)


def test_a_size_that_is_none_gets_a_sentence(handlers: Handlers) -> None:
    facts = shown(handlers, example("cat"), *CONTROLS, "huge", "estimated")[4]
    assert "whole number of pixels up to 1024" in facts["error"]


@pytest.fixture
def norm_pix() -> Handlers:
    return Handlers(ReconstructionService({"norm": small_reconstructor("norm", norm_pix=True)}), {})


def test_the_view_that_uses_the_answer_is_said_to(norm_pix: Handlers) -> None:
    def facts(view: str, request: Any = None) -> Any:
        controls = (0.75, 2, "random", "crop", "norm", OWN_SIZE, view)
        return shown(norm_pix, example("cat"), *controls, request)[4]

    assert "note" not in facts("estimated")
    assert facts("answer")["note"].startswith("uses the answer")
    assert facts("answer", CHINESE)["note"].startswith("用到了答案")
    assert facts("normalized")["note"].startswith("as predicted")
    assert facts("normalized")["psnr"] is None


def test_views_are_shown_for_normalised_pixels_only(handlers: Handlers, norm_pix: Handlers) -> None:
    assert norm_pix.show_views("norm")["visible"] is True
    assert handlers.show_views("small-random")["visible"] is False
    assert handlers.show_views("nothing of the kind")["visible"] is False


def test_no_picture_empties_the_page(handlers: Handlers) -> None:
    *outputs, timer = shown(handlers, None, *PAGE_CONTROLS)
    assert outputs == [None] * 5
    assert not timer.active


def test_a_bad_picture_empties_the_panels_and_says_why(handlers: Handlers) -> None:
    *panels, facts, timer = shown(handlers, b"no picture", *PAGE_CONTROLS)
    assert not timer.active
    assert panels == [None] * 4
    assert facts is not None
    assert facts.keys() == {"error"}
    assert "JPEG" in facts["error"]
    assert facts["error"].endswith(".")


def test_errors_speak_the_language_of_the_request(handlers: Handlers) -> None:
    facts = shown(handlers, b"no picture", *PAGE_CONTROLS, CHINESE)[4]
    assert facts is not None
    assert "图片" in facts["error"]
    with pytest.raises(gr.Error, match="图片") as caught:
        asked(handlers, b"no picture", *CONTROLS, request=CHINESE)
    assert caught.value.title == "操作未成功"


def test_a_mae_error_becomes_one_sentence(handlers: Handlers) -> None:
    with pytest.raises(gr.Error) as caught:
        asked(handlers, example("cat"), 2, 2, "random", "crop", "small-random")
    error = caught.value
    assert error.message == (
        "mask_ratio is 2; it must be a number from 0.05 to 0.95, such as 0.75."
    )
    assert (error.title, error.print_exception) == ("That did not work", False)


def test_a_clients_words_are_no_markup(handlers: Handlers) -> None:
    with pytest.raises(gr.Error) as caught:
        asked(handlers, example("cat"), 0.5, 2, "<img src=x>", "crop", "small-random")
    assert "<" not in caught.value.message
    assert "&lt;img" in caught.value.message


def test_an_unknown_error_shows_an_id_and_logs_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Handlers(BrokenService(), {})
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
    facts = shown(Handlers(BrokenService(), {}), example("cat"), *PAGE_CONTROLS)[4]
    assert facts is not None
    assert "Something went wrong (id " in facts["error"]
    assert "secret" not in facts["error"]
    assert len(caplog.records) == 1


def test_a_file_that_is_gone_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    wrapped = ComponentProcessingError("could not preprocess")
    wrapped.__cause__ = FileNotFoundError("/somewhere/cat.jpg")
    for error in (FileNotFoundError("/somewhere/cat.jpg"), wrapped):
        assert as_gradio_error(error, None).message == (
            "The picture is no longer on the server. Please choose it again."
        )
    assert not caplog.records


def test_what_gradio_wraps_is_unwrapped() -> None:
    wrapped = ComponentProcessingError("could not preprocess /somewhere")
    wrapped.__cause__ = MaskError("seed is 7; it must be 8")
    assert as_gradio_error(wrapped, None).message == "Seed is 7; it must be 8."


def test_an_example_is_chosen_by_name(handlers: Handlers) -> None:
    assert Path(handlers.choose_example("cat")) == EXAMPLES / "cat.jpg"


@pytest.mark.parametrize("name", ["dog", "../cat", "", None, 3, ["cat"], {"cat": 1}])
def test_no_other_example_is_to_be_had(handlers: Handlers, name: object) -> None:
    with pytest.raises(gr.Error, match="choose one of those shown"):
        handlers.choose_example(name)
