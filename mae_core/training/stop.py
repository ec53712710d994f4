"""A run that is asked to stop saves first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether the run was asked to stop.

    Attributes:
        signal: The signal that asked; 0 as long as none has.
    """

    signal: int = 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note SIGTERM and the first Ctrl-C instead of ending at once; a second one ends at once."""
    request = StopRequest()
    numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    # A signal that is ignored stays so, as Ctrl-C is for what a shell runs in the background.
    before = {number: h for number, h in handlers.items() if h is not signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
