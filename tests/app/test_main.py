import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from app.__main__ import launch, launch_options, main
from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core import ConfigError
from mae_core.checkpoint import save_weights
from tests.app.serving import built, free_port, inside_a_loop, small_reconstructor
from tests.sources import ROOT


def test_weights_that_are_not_there_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", "no-such-weights"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 'no-such-weights'")


def test_a_bad_port_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "none"]) == 2
    assert "error: port is 'none'; it must be a whole number" in capsys.readouterr().err


def test_addresses_of_downloads_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("httpx", "httpx2"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    assert main(["--port", "none"]) == 2
    for name in ("httpx", "httpx2"):
        assert logging.getLogger(name).level == logging.WARNING


def test_a_port_that_is_taken_is_said_to_be(service: ReconstructionService) -> None:
    page = built(service)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        settings = AppSettings(port=listener.getsockname()[1])
        with pytest.raises(ConfigError, match="give others with --host and --port"):
            inside_a_loop(lambda: launch(page, settings, wait=False))


def test_a_host_that_is_not_here_is_said_to_be(service: ReconstructionService) -> None:
    with pytest.raises(ConfigError, match="cannot listen on 192.0.2.1, port"):
        launch(built(service), AppSettings(host="192.0.2.1", port=free_port()), wait=False)


def test_nothing_is_shared_reported_or_kept() -> None:
    options = launch_options()
    for name in ("share", "ssr_mode", "show_error", "run_history", "enable_monitoring"):
        assert options[name] is False, name


def test_the_command_serves_the_page_until_it_is_stopped(tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    save_weights(weights, small_reconstructor().model, record={})
    port = free_port()
    environ = {**os.environ, "MAE_PORT": str(port), "MAE_DEVICE": "cpu"}
    command = [sys.executable, "-m", "app", "--weights", str(weights)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert "Masked Autoencoder" in first_answer(f"http://127.0.0.1:{port}/", process)
        finally:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output


def test_an_interrupt_before_the_page_is_served_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.__main__.ReconstructionService.load", interrupted)
    assert main([]) == 130
    assert "Traceback" not in "".join(capfd.readouterr())


def first_answer(url: str, process: subprocess.Popen[str]) -> str:
    """The page's HTML, as soon as it is served."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        try:
            return httpx.get(url, timeout=30).text
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError(url)
