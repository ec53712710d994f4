"""A command that trains, interrupted as soon as a step is in its log.

    python -m tests.mae_core.interrupted SIGNAL STEP COMMAND [argument …]

SIGKILL ends this process; GROUP is SIGTERM for its whole process group; any other signal goes to
its parent, torchrun, which hands it on.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

from mae_core.cli import entry
from mae_core.training.callbacks import Logger
from mae_core.training.checkpoint import RunState


def main(sent: str, last: int, arguments: list[str]) -> NoReturn:
    """Train, and end the process unless it is killed."""
    write = Logger.on_log

    def interrupted(logger: Logger, state: RunState, values: Mapping[str, float]) -> None:
        write(logger, state, values)
        if state.step == last:
            interrupt(sent)

    Logger.on_log = interrupted  # type: ignore[method-assign]
    entry(arguments)


def interrupt(sent: str) -> None:
    """Return when the signal has arrived, for torchrun when it has come back from there."""
    number = signal.SIGTERM if sent == "GROUP" else signal.Signals[sent]
    if number == signal.SIGKILL:
        os.kill(os.getpid(), number)
    # The run's handler is replaced when it has noted the signal.
    handler = signal.getsignal(number)
    if sent == "GROUP":
        os.killpg(os.getpgrp(), number)
    else:
        os.kill(os.getppid(), number)
    while signal.getsignal(number) is handler:
        time.sleep(0.01)


def run() -> NoReturn:
    """`main` with the process's own arguments."""
    chosen, at, *others = sys.argv[1:]
    main(chosen, int(at), others)


if __name__ == "__main__":
    run()
