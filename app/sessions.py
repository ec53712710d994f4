"""What Gradio would keep of visitors who have left, forgotten.

Gradio deletes the messages of a session as they are read, and the names of its events with them.
Who never reads leaves both behind, and a session costs nothing to make up.

Wiring: `launch(app_kwargs={"lifespan": forgetting}, state_session_capacity=SESSIONS)`. Of each
session Gradio also keeps a copy of the whole page's configuration, about 100 KB, for 10,000 of
them as it comes; this page keeps nothing in it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

SESSIONS = 500

# Long enough to read the answer of a call, by hand as well.
UNREAD_SECONDS = 600.0
UNREAD_MESSAGES = 200

_SWEEP_SECONDS = 10.0

_logger = logging.getLogger(__name__)


@asynccontextmanager
async def forgetting(app: Any) -> AsyncIterator[None]:
    """Forget for as long as Gradio's application runs, in its event loop."""
    sessions = Sessions(app)

    async def sweep_on() -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                sessions.sweep()
            except Exception:  # whatever it is, the next sweep may do
                _logger.exception("cannot forget sessions")

    task = asyncio.create_task(sweep_on())
    try:
        yield
    finally:
        task.cancel()


class Sessions:
    """Gradio's sessions, of which those at rest for long are forgotten."""

    def __init__(self, app: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """Look after an application's sessions.

        Args:
            app: Gradio's application.
            clock: Seconds that never go back.
        """
        self._app = app
        self._clock = clock
        # Session without an event in line or running -> since when.
        self._idle: dict[str, float] = {}

    def sweep(self) -> None:
        """Forget sessions that rested for ten minutes, and all but the last unread messages.

        It must be called in the application's event loop.
        """
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
