"""Python processes that begin with the program imported.

Importing torch and gradio takes a core six seconds, more than most of what tests of a process do
in it. multiprocessing's server imports them once, and each process is a fork of it. The server
runs nothing else and no thread of Python's, so that a fork is what a Python is that has just
imported the same. What the environment changes while modules are imported needs a Python of its
own, and so does what looks at /proc/PID/environ or at the command line.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self
from unittest.mock import patch

from tests.sources import ROOT

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.forked", "app.__main__", "mae_core.training.train"])

# Of the process that tests run in, before any of them changes it.
_ENVIRON = dict(os.environ)


class ForkedPython:
    """A process that runs code as `python -c CODE ARGUMENTS` does; killed when its context ends.

    Attributes:
        stdout: What it writes to standard output and standard error.
        pid: Its number.
    """

    def __init__(
        self, code: str, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> None:
        reader, writer = _context.Pipe(duplex=False)
        environ = dict(os.environ if environ is None else environ)
        self._process = _context.Process(
            target=_run, args=(writer, code, arguments, environ), daemon=True
        )
        # The first one starts the server, whose modules read the environment once.
        with patch.dict(os.environ, _ENVIRON, clear=True):
            self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Return when it has ended."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """End it, and forget what it has written."""
        self.kill()
        self.stdout.close()

    def communicate(self, timeout: float = 240) -> str:
        """What it still writes until it ends; it is killed if that takes longer."""
        timer = threading.Timer(timeout, self._process.kill)
        timer.start()
        try:
            output = self.stdout.read()
            self._process.join()
        finally:
            timer.cancel()
        return output


def _run(
    output: Connection, code: str, arguments: tuple[str, ...], environ: Mapping[str, str]
) -> None:
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    # Those of the server may be of a file, and say that one can seek in them.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
