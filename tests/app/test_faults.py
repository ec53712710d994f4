"""What visitors and hosts are told when the machine fails."""

import asyncio
import errno
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.__main__ import main
from app.web.guard import RequestGuard
from tests.forked import ForkedPython


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """`main` sets up logging for the whole process."""
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], threading.excepthook = handlers, hook
    root.setLevel(level)
    logging.captureWarnings(False)


def upload_into(fault: OSError) -> list[Message]:
    """What an upload is answered while the folder of uploads has a fault."""

    async def gradio(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise fault

    async def receive() -> Message:
        return {"type": "http.request", "body": b"a picture", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    sent: list[Message] = []
    scope = {
        "type": "http", "path": "/gradio_api/upload", "method": "POST", "headers": [],
        "client": ("127.0.0.1", 5), "query_string": b"",
    }  # fmt: skip
    asyncio.run(RequestGuard(gradio, 100, "/srv")(scope, receive, send))
    return sent


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_upload_to_a_full_disk_is_refused_in_words(number: int) -> None:
    start, body = upload_into(OSError(number, "no room", "/srv/secret"))
    assert start["status"] == 507
    assert dict(start["headers"])[b"retry-after"] == b"60"
    assert b"disk is full" in body["body"]
    assert b"secret" not in body["body"]


def test_another_fault_of_the_disk_is_unexpected() -> None:
    start, body = upload_into(OSError(errno.EIO, "broken", "/srv/secret"))
    assert start["status"] == 500
    assert b"secret" not in body["body"]


def test_a_disk_that_is_full_at_the_start_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(service: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("app.__main__.ReconstructionService.load", lambda settings: None)
    monkeypatch.setattr("app.__main__.build_page", full)
    assert main([]) == 2
    assert "error: the page cannot be started: [Errno" in capsys.readouterr().err


# Stands in for a page that is interrupted once and takes its time to end.
_ENDLESS = """
import signal, time
from app import serving as app

class Folder:
    bytes = 0
    start = stop = lambda self: None

class Page:
    close = lambda self, verbose: None

class Service:
    class settings:
        drain_seconds = 60
    class metrics:
        watch = lambda *values: None
    alive = lambda self: None
    def stop(self, seconds):
        print("ending", flush=True)
        time.sleep(60)

class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

# Whoever starts the tests in the background has Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Where Python drops an exception.
app.launch = lambda page, service: Dying() and None
app.serve(Page(), Folder(), Service())
"""


def test_a_second_interrupt_waits_for_nothing() -> None:
    with ForkedPython(_ENDLESS) as process:
        assert process.stdout.readline() == "ending\n"
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 130
