"""Every use of a Gradio internal.

`check` names the one that has moved when the page starts, and `tests/app/test_gradio_seam.py` tests
each on a real page. Elsewhere only Gradio's documented interface is used.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mae_core.errors import ConfigError

_logger = logging.getLogger(__name__)

# Of `gr.Blocks` while it is served.
INTERNALS = (
    "GRADIO_CACHE",
    "temp_file_sets",
    "fns",
    "process_api",
    "app.iterators_to_reset",
    "server.config.timeout_keep_alive",
    "_queue.__len__",
    "_queue.get_active_worker_count",
    "_queue.event_ids_to_events",
    "_queue.pending_event_ids_session",
    "_queue.pending_messages_per_session.max_size",
)

# Gradio reports to its makers by default, and sums up its last 10,000 events after each event for
# a page of statistics that is switched off here.
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
}

# Sessions of which Gradio keeps the page's configuration, about 100 KB each; 10,000 by default.
SESSION_CONFIGS = 500
# Sessions with unread messages. Gradio forgets the oldest beyond, even those that wait.
_MAX_SESSIONS = 20_000

# Long enough to read the answer of a call, by hand as well.
UNREAD_SECONDS = 600.0
UNREAD_MESSAGES = 200
_SWEEP_SECONDS = 10.0


def check(page: gr.Blocks) -> None:
    """Check that a served page has all internals used here.

    Raises:
        ConfigError: If one has moved.
    """
    for name in INTERNALS:
        try:
            attrgetter(name)(page)
        except AttributeError as error:
            raise ConfigError(
                f"Gradio {gr.__version__} has no Blocks.{name}, which this page needs; install the "
                "version of Gradio in requirements.txt"
            ) from error


def answer_errors(page: gr.Blocks, in_words: Callable[[Exception, Any], gr.Error]) -> None:
    """Turn every error of an event into words.

    Gradio shows no error that it finds before a handler runs (a wrong count or type of values, a
    file that is gone), and logs a traceback for each.

    Args:
        page: Before it is launched.
        in_words: (error, Gradio's request) -> what the client is told.
    """
    process = page.process_api

    async def process_api(
        block_fn: Any, inputs: list[Any], state: Any = None, request: Any = None,
        *args: Any, **kwargs: Any,
    ) -> dict[str, Any]:  # fmt: skip
        try:
            function = page.fns[block_fn] if isinstance(block_fn, int) else block_fn
            if len(inputs) != len(function.inputs):
                raise ConfigError(
                    f"{len(inputs)} values were given; this call takes {len(function.inputs)}"
                )
            return await process(block_fn, inputs, state, request, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise in_words(error, request) from error

    page.process_api = process_api  # type: ignore[method-assign]


def add_api(page: gr.Blocks, function: Callable[..., Any], returns: Sequence[str]) -> None:
    """Add an API function under its own name, as `gr.api`, which labels values "1st", "2nd" ...

    Args:
        page: Under construction.
        function: Typed; its parameters are the endpoint's.
        returns: Labels of what it returns.
    """
    gr.api(function)  # type: ignore[attr-defined]
    endpoint: Any = list(page.fns.values())[-1]
    # The last parameter is Gradio's request. "image" is a key of Gradio's own translations.
    names = list(inspect.signature(function).parameters)[: len(endpoint.inputs)]
    parameters = [name.capitalize() for name in names]
    blocks = [*endpoint.inputs, *endpoint.outputs]
    for block, label in zip(blocks, [*parameters, *returns], strict=True):
        block.label = label


def keep_waiting_sessions(page: gr.Blocks) -> None:
    """Forget no session that waits; call it after `page.queue`."""
    page._queue.pending_messages_per_session.max_size = _MAX_SESSIONS


def is_busy(page: gr.Blocks) -> bool:
    """Whether an event waits or runs."""
    return bool(len(page._queue) or page._queue.get_active_worker_count())


def keep_connections(page: gr.Blocks, seconds: int) -> None:
    """Keep idle connections of a served page open for so long."""
    page.server.config.timeout_keep_alive = seconds


def upload_folder(page: gr.Blocks) -> Path:
    """Folder of `FOLDER/<64 hexadecimal digits>/<name>`, from which Gradio serves files."""
    return Path(page.GRADIO_CACHE).resolve()


def forget_files(page: gr.Blocks, paths: Collection[str]) -> None:
    """Forget deleted files; Gradio remembers every file that it has ever been sent."""
    for known in page.temp_file_sets:
        known.difference_update(paths)


@asynccontextmanager
async def forgetting(app: Any) -> AsyncIterator[None]:
    """Lifespan of Gradio's application during which resting sessions are forgotten."""
    sessions = Sessions(app)

    async def sweep_on() -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                sessions.sweep()
            except Exception:
                _logger.exception("cannot forget sessions")

    task = asyncio.create_task(sweep_on())
    try:
        yield
    finally:
        task.cancel()


class Sessions:
    """Sessions of Gradio's application.

    Gradio deletes a session's messages when they are read. A client that never reads leaves them
    behind, and a session costs nothing to make up.
    """

    def __init__(self, app: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        # Session without an event in line or running -> since when.
        self._idle: dict[str, float] = {}

    def sweep(self) -> None:
        """Forget sessions that rested for `UNREAD_SECONDS`, and all but the last messages."""
        queue, now = self._app.get_blocks()._queue, self._clock()
        messages, names = queue.pending_messages_per_session, queue.pending_event_ids_session
        busy = {event.session_hash for event in queue.event_ids_to_events.values()}
        resting = (set(messages) | set(names)) - busy
        self._idle = {name: self._idle.get(name, now) for name in resting}
        for name, since in self._idle.items():
            if now - since >= UNREAD_SECONDS:
                messages.pop(name, None)
                names.pop(name, None)
        for waiting in messages.values():
            while waiting.qsize() > UNREAD_MESSAGES:
                waiting.get_nowait()
        self._app.iterators_to_reset.intersection_update(queue.event_ids_to_events)


# Gradio's front end takes the browser's language, before the page's own head is there, and knows
# Chinese as zh-CN and zh-TW only. A link may name another language: `#...lang=zh`.
LOCALE_SCRIPT = """
{
  const asked = /[#&]lang=(en|zh)\\b/.exec(location.hash)?.[1] ?? navigator.language;
  const taiwan = /hk|mo|tw|hant/i.test(asked);
  const value = /^zh/i.test(asked) ? (taiwan ? 'zh-TW' : 'zh-CN') : asked;
  Object.defineProperty(navigator, 'language', {value});
}
"""


class LocaleScript:
    """ASGI middleware that puts `LOCALE_SCRIPT` first into the head of the page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        start: Message = {}

        async def send_on(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                if not dict(message["headers"]).get(b"content-type", b"").startswith(b"text/html"):
                    await send(message)
                    start = {}
                return
            if start:
                # Gradio sends the page in one piece.
                script = f"<head><script>{LOCALE_SCRIPT}</script>".encode()
                body = message["body"].replace(b"<head>", script, 1)
                headers = [h for h in start["headers"] if h[0] != b"content-length"]
                headers.append((b"content-length", str(len(body)).encode()))
                await send({**start, "headers": headers})
                message, start = {**message, "body": body}, {}
            await send(message)

        await self._app(scope, receive, send_on)
