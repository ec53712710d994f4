"""Each use of a Gradio internal, on a page that is served: a failure here names what moved."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest

from app import gradio_seam
from app.gradio_seam import INTERNALS, UNREAD_MESSAGES, UNREAD_SECONDS, Sessions
from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core.errors import ConfigError
from tests.app.serving import HeldReconstructor, example, launched

Served = tuple[gr.Blocks, httpx.Client]


@pytest.fixture(scope="module")
def model() -> HeldReconstructor:
    return HeldReconstructor()


@pytest.fixture(scope="module")
def served(model: HeldReconstructor) -> Iterator[Served]:
    settings = AppSettings(rate=0)
    service = ReconstructionService({"small-random": model}, settings=settings)
    with launched(service) as (page, url), httpx.Client(base_url=url, timeout=240) as http:
        yield page, http


@pytest.fixture
def page(served: Served) -> gr.Blocks:
    return served[0]


@pytest.fixture
def http(served: Served) -> httpx.Client:
    return served[1]


class Without:
    """An object one of whose attributes, or one of an attribute's, is not there."""

    def __init__(self, whole: object, name: str) -> None:
        self._whole, (self._name, _, self._rest) = whole, name.partition(".")

    def __getattr__(self, name: str) -> Any:
        if name != self._name:
            return getattr(self._whole, name)
        if not self._rest:
            raise AttributeError(name)
        return Without(getattr(self._whole, name), self._rest)


@pytest.mark.parametrize("name", INTERNALS)
def test_an_internal_that_has_moved_is_named(page: gr.Blocks, name: str) -> None:
    gradio_seam.check(page)
    moved: Any = Without(page, name)
    with pytest.raises(ConfigError, match=rf"has no Blocks\.{name}, .* requirements\.txt"):
        gradio_seam.check(moved)


def upload(http: httpx.Client) -> str:
    files = {"files": ("cat.jpg", example("cat"))}
    return str(http.post("/gradio_api/upload", files=files).json()[0])


def function_id(http: httpx.Client, name: str) -> int:
    dependencies = http.get("/config").json()["dependencies"]
    return next(int(d["id"]) for d in dependencies if d["api_name"] == name)


def join(http: httpx.Client, session: str, data: list[Any], name: str = "reconstruct") -> None:
    call = {"fn_index": function_id(http, name), "data": data, "session_hash": session}
    http.post("/gradio_api/queue/join", json=call).raise_for_status()


def reconstruct(path: str, seed: int = 0) -> list[Any]:
    picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return [picture, 0.75, seed, "random", "crop", "small-random", None, "estimated", None]


def error_of(http: httpx.Client, session: str) -> str:
    """What a session that has one event is told in the end."""
    with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        line = next(line for line in stream.iter_lines() if "process_completed" in line)
    output = httpx.Response(200, text=line.partition(": ")[2]).json()["output"]
    return str(output["error"])


def test_uploads_are_in_the_folder_and_can_be_forgotten(
    page: gr.Blocks, http: httpx.Client
) -> None:
    path = upload(http)
    assert Path(path).is_relative_to(gradio_seam.upload_folder(page))
    assert any(path in known for known in page.temp_file_sets)
    gradio_seam.forget_files(page, [path])
    assert not any(path in known for known in page.temp_file_sets)


def test_a_page_is_busy_while_an_event_runs(
    page: gr.Blocks, http: httpx.Client, model: HeldReconstructor
) -> None:
    assert not gradio_seam.is_busy(page)
    with model.held():
        join(http, "busy", reconstruct(upload(http), 1))
        assert model.begun.wait(240)
        assert gradio_seam.is_busy(page)
    rest(page)


def rest(page: gr.Blocks) -> None:
    deadline = time.monotonic() + 240
    # Gradio forgets an event a moment after its worker is free.
    while gradio_seam.is_busy(page) or page._queue.event_ids_to_events:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_connections_stay_open_for_more_than_uvicorns_five_seconds(page: gr.Blocks) -> None:
    assert page.server.config.timeout_keep_alive == 75


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("reconstruct", [1, 2], "2 values were given; this call takes 9."),
        ("reconstruct", [5, *reconstruct("")[1:]], "The picture must be an uploaded file"),
        ("update", [5, 0.75, 2, "random", "crop", "small-random", 0, "estimated", None, "en"],
         "The picture must be an uploaded file"),
        ("update", [["a"], 0.75, 2, "random", "crop", "small-random", 0, "estimated", None, "en"],
         "The picture must be an uploaded file"),
        ("choose_example", ["dog"], "There is no such example; choose one of those shown."),
    ],
    ids=str,
)  # fmt: skip
def test_errors_before_and_in_a_function_are_words(
    http: httpx.Client, name: str, data: list[Any], words: str
) -> None:
    join(http, f"words-{name}", data, name)
    message = error_of(http, f"words-{name}")
    assert words in message
    assert "/" not in message


def test_what_gradio_keeps_of_sessions_at_rest_is_forgotten(
    page: gr.Blocks, http: httpx.Client
) -> None:
    rest(page)
    path, now = upload(http), 0.0
    sessions = Sessions(page.app, lambda: now)
    queue = page._queue
    for session in ("left", "left", "also-left"):
        join(http, session, reconstruct(path))
    rest(page)
    assert {"left", "also-left"} <= set(queue.pending_messages_per_session)
    assert {"left", "also-left"} <= set(queue.pending_event_ids_session)
    messages = queue.pending_messages_per_session["left"]
    some = messages.get_nowait()
    while messages.qsize() <= UNREAD_MESSAGES:
        messages.put_nowait(some)
    sessions.sweep()
    assert messages.qsize() == UNREAD_MESSAGES
    now += UNREAD_SECONDS - 1
    sessions.sweep()
    assert "left" in queue.pending_event_ids_session
    now += 1
    sessions.sweep()
    assert not {"left", "also-left"} & set(queue.pending_messages_per_session)
    assert not {"left", "also-left"} & set(queue.pending_event_ids_session)
    assert not page.app.iterators_to_reset


def test_a_session_that_waits_is_not_forgotten(
    page: gr.Blocks, http: httpx.Client, model: HeldReconstructor
) -> None:
    now = 0.0
    sessions = Sessions(page.app, lambda: now)
    with model.held():
        join(http, "waits", reconstruct(upload(http), 3))
        assert model.begun.wait(240)
        for _ in range(3):
            sessions.sweep()
            now += UNREAD_SECONDS
        assert "waits" in page._queue.pending_event_ids_session
        assert "waits" in page._queue.pending_messages_per_session
    rest(page)


def test_more_sessions_may_wait_than_gradio_keeps_by_itself(page: gr.Blocks) -> None:
    assert page._queue.pending_messages_per_session.max_size == 20_000
