import asyncio
from types import SimpleNamespace
from typing import Any

from app.sessions import UNREAD_MESSAGES, UNREAD_SECONDS, Sessions


class Gradio:
    """An application with what Gradio keeps of sessions: a clock, messages, events."""

    def __init__(self) -> None:
        self.now = 0.0
        self.iterators_to_reset = {"running", "done"}
        self.queue = SimpleNamespace(
            pending_messages_per_session={}, pending_event_ids_session={}, event_ids_to_events={}
        )
        self.sessions = Sessions(self, lambda: self.now)

    def get_blocks(self) -> Any:
        return SimpleNamespace(_queue=self.queue)

    def join(self, session: str, messages: int = 1) -> None:
        waiting: asyncio.Queue[int] = asyncio.Queue()
        for number in range(messages):
            waiting.put_nowait(number)
        self.queue.pending_messages_per_session[session] = waiting
        self.queue.pending_event_ids_session[session] = {"done"}

    def sweep(self, seconds: float) -> list[str]:
        """The sessions known after so many more seconds."""
        self.now += seconds
        self.sessions.sweep()
        names = self.queue.pending_event_ids_session
        assert set(names) >= set(self.queue.pending_messages_per_session)
        return sorted(names)


def test_a_session_that_nobody_reads_is_forgotten() -> None:
    gradio = Gradio()
    gradio.join("left")
    assert gradio.sweep(0) == ["left"]
    gradio.join("new")
    assert gradio.sweep(UNREAD_SECONDS - 1) == ["left", "new"]
    assert gradio.sweep(1) == ["new"]
    assert gradio.sweep(UNREAD_SECONDS) == []


def test_a_session_with_a_job_is_not() -> None:
    gradio = Gradio()
    gradio.join("busy")
    gradio.queue.event_ids_to_events["running"] = SimpleNamespace(session_hash="busy")
    assert gradio.sweep(0) == gradio.sweep(10 * UNREAD_SECONDS) == ["busy"]
    # It rests from when its job is done.
    gradio.queue.event_ids_to_events.clear()
    assert gradio.sweep(0) == gradio.sweep(UNREAD_SECONDS - 1) == ["busy"]
    assert gradio.sweep(1) == []


def test_unread_messages_are_bounded() -> None:
    gradio = Gradio()
    gradio.join("flood", UNREAD_MESSAGES + 50)
    gradio.sweep(0)
    waiting = gradio.queue.pending_messages_per_session["flood"]
    assert (waiting.qsize(), waiting.get_nowait()) == (UNREAD_MESSAGES, 50)


def test_names_of_cancelled_events_are_forgotten() -> None:
    gradio = Gradio()
    gradio.queue.event_ids_to_events["running"] = SimpleNamespace(session_hash="busy")
    gradio.sweep(0)
    assert gradio.iterators_to_reset == {"running"}
