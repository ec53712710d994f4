"""The host's token is in no page, answer or log line, and no answer says where the program is."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from mae_core.weights.formats import save_weights
from tests.app.serving import free_port, small_reconstructor
from tests.security.abuse_table import abuses
from tests.security.attacker import Attacker
from tests.security.internals import internals_in
from tests.sources import ROOT

# Put together here, so that no file holds what looks like a token.
TOKEN = "hf_" + "SecretOfTheHost" * 3

ROUTES = [
    "/", "/config", "/gradio_api/info", "/gradio_api/info?all_endpoints=true",
    "/gradio_api/openapi.json", "/gradio_api/app_id", "/gradio_api/token", "/gradio_api/user",
    "/gradio_api/queue/status", "/gradio_api/startup-events", "/gradio_api/nothing",
    "/gradio_api/file=nothing", "/gradio_api/file=/proc/self/environ", "/metrics", "/healthz",
    "/readyz", "/theme.css", "/robots.txt", "/manifest.json", "/pwa_icon", "/docs", "/redoc",
    "/openapi.json", "/monitoring/summary", "/nothing", "/?view=api", "/?deep_link=nothing",
]  # fmt: skip

# Lines of the abuse table that make the server fail in as many ways as there are.
FAILURES = ("body ", "queue ", "model ", "route ", "file path", "picture text", "upload no-")


class Page(NamedTuple):
    """A page that runs as a process of its own, and the file that it logs to."""

    url: str
    log: Path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    weights, log, port = folder / "small-random.safetensors", folder / "log.txt", free_port()
    save_weights(weights, small_reconstructor().model, record={})
    environ = {
        **os.environ,
        "HF_TOKEN": TOKEN,
        "HUGGING_FACE_HUB_TOKEN": TOKEN,
        "MAE_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "app", "--weights", str(weights), "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=file, stderr=file)
    try:
        wait_for(f"http://127.0.0.1:{port}/", process)
        yield Page(f"http://127.0.0.1:{port}", log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(240)


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            httpx.get(url, timeout=30)
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(url)


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_tells_a_secret_or_where_the_program_is(page: Page, path: str) -> None:
    visitor = Attacker(page.url)
    answer = visitor.http.get(path)
    visitor.close()
    told = answer.text + str(dict(answer.headers))
    assert TOKEN not in told
    assert answer.status_code != 500
    # A page without errors may hold such words in its scripts.
    assert not internals_in(told if "html" not in answer.headers["content-type"] else "")
    assert str(ROOT) not in told


def test_no_failure_writes_a_secret_into_the_log(page: Page) -> None:
    for abuse in abuses():
        if abuse.name.startswith(FAILURES):
            visitor = Attacker(page.url)
            outcome = abuse.send(visitor, f"http://127.0.0.1:9/?token={TOKEN}")
            visitor.close()
            assert TOKEN not in outcome.text
    logged = page.log.read_text(errors="replace")
    assert logged
    assert TOKEN not in logged
