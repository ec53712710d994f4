import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest

from app.__main__ import _folder, main
from app.service import ReconstructionService
from app.serving import launch, launch_options
from app.settings import AppSettings
from mae_core.errors import ConfigError
from mae_core.weights.formats import save_weights
from tests.app.serving import built, example, free_port, inside_a_loop, small_reconstructor
from tests.forked import ForkedPython
from tests.sources import ROOT


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """`main` sets up logging and the environment of the whole process."""
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = root.handlers[:], root.level
    with patch.dict(os.environ):
        yield
    root.handlers[:], threading.excepthook = handlers, hook
    root.setLevel(level)
    logging.captureWarnings(False)


def test_an_unknown_device_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "abacus"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "abacus" in error


def test_a_bad_port_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "none"]) == 2
    assert "error: port is 'none'; it must be a whole number" in capsys.readouterr().err


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_uploads_are_in_a_folder_of_one_page_and_one_user(temp: Path) -> None:
    one, other = (Path(_folder(AppSettings(port=port))) for port in (1, 2))
    assert one.parent == other.parent == temp
    assert one != other
    one.chmod(0o777)
    assert _folder(AppSettings(port=1)) == str(one)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (one, other)] == [0o700, 0o700]


def test_a_folder_that_somebody_else_has_put_there_is_not_used(
    temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(_folder(AppSettings(port=1)))
    folder.rmdir()
    (temp / "theirs").mkdir()
    folder.symlink_to(temp / "theirs")
    with pytest.raises(ConfigError, match="set GRADIO_TEMP_DIR"):
        _folder(AppSettings(port=1))
    monkeypatch.setattr("os.getuid", lambda: -1)
    (temp / "mae-app--1-1").mkdir()
    with pytest.raises(ConfigError, match="set GRADIO_TEMP_DIR"):
        _folder(AppSettings(port=1))


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
            inside_a_loop(lambda: launch(page, service, settings))


def test_a_host_that_is_not_here_is_said_to_be(service: ReconstructionService) -> None:
    with pytest.raises(ConfigError, match="cannot listen on 192.0.2.1, port"):
        launch(built(service), service, AppSettings(host="192.0.2.1", port=free_port()))


def test_nothing_is_shared_reported_or_kept(service: ReconstructionService) -> None:
    options = launch_options(built(service), service.settings, service)
    for name in ("share", "ssr_mode", "show_error", "run_history", "enable_monitoring"):
        assert options[name] is False, name


def test_a_page_that_is_up_says_so(page_url: str) -> None:
    for path in ("healthz", "readyz"):
        assert httpx.get(f"{page_url}/{path}").text == "ok\n"
    assert 'mae_requests_total{outcome="computed"}' in httpx.get(f"{page_url}/metrics").text


# The page, whose models stand still while a file is there.
_HELD = """
import sys, time
from pathlib import Path
from app.__main__ import main
from mae_core import Reconstructor

hold, batch = Path(sys.argv[1]), Reconstructor.batch

def held(reconstructor, requests):
    while hold.exists():
        time.sleep(0.01)
    return batch(reconstructor, requests)

Reconstructor.batch = held
sys.exit(main(sys.argv[2:]))
"""


# The page, whose downloads never end.
_STUCK = """
import sys, time
from app.__main__ import main
from app.models.shelf import ModelShelf

ModelShelf._fetch = lambda shelf, entry: time.sleep(10**6)
sys.exit(main(sys.argv[1:]))
"""


# The page, as `python -m app` has it.
_PLAIN = """
import sys
from app.__main__ import main

sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def running(
    *flags: str, code: str = _PLAIN, hold: Path | None = None
) -> Iterator[tuple[str, ForkedPython]]:
    """The page's address and its process, which has ended afterwards; its output is kept.

    Args:
        *flags: Of its command line.
        code: What Python runs.
        hold: Its models stand still while there is such a file.
    """
    arguments = [*flags]
    if hold is not None:
        code, arguments = _HELD, [str(hold), *flags]
    port = free_port()
    environ = os.environ | served_at(port)
    with ForkedPython(code, *arguments, environ=environ) as process:
        yield f"http://127.0.0.1:{port}", process


def served_at(port: int) -> dict[str, str]:
    """What says so to a page in its environment."""
    return {"MAE_PORT": str(port), "MAE_DEVICE": "cpu", "MAE_FETCH": "none"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_weights(path, small_reconstructor().model, record={})
    return path


def test_the_command_serves_the_page_until_it_is_stopped(weights: Path) -> None:
    port = free_port()
    # A shell that runs the tests in the background has Ctrl-C ignored in all they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "app", "--weights", str(weights)], cwd=ROOT,
        env={**os.environ, **served_at(port)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        signal.signal(signal.SIGINT, before)
        try:
            assert "Masked Autoencoder" in first_answer(f"http://127.0.0.1:{port}/", process)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=240)
        finally:
            process.kill()
    assert "Traceback" not in output
    # As from a shell, if it came before the page was told to be up.
    assert process.returncode in (0, 130)


def test_told_to_end_it_answers_what_it_has(weights: Path, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    flags = "--weights", str(weights), "--drain-seconds", "600"
    with running(*flags, hold=hold) as (url, process):
        first_answer(f"{url}/", process)
        hold.touch()
        with httpx.Client(base_url=f"{url}/gradio_api", timeout=240) as http:
            files = {"files": ("cat.jpg", example("cat"))}
            path = http.post("/upload", files=files).json()[0]
            picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
            events = [
                http.post(
                    "/call/reconstruct",
                    json={
                        "data": [
                            picture,
                            0.1,
                            seed,
                            "random",
                            "crop",
                            "mine",
                            112,
                            "estimated",
                            None,
                        ]
                    },
                ).json()["event_id"]
                for seed in range(4)
            ]
            with ThreadPoolExecutor(4) as pool:
                reading = [
                    pool.submit(lambda event=event: http.get(f"/call/reconstruct/{event}").text)
                    for event in events
                ]
                wait_until(lambda: arrived(httpx.get(f"{url}/metrics").text) == 4)
                process.send_signal(signal.SIGTERM)
                wait_until(
                    lambda: httpx.get(f"{url}/readyz").text == "the server is about to end\n"
                )
                hold.unlink()
                answers = [answer.result() for answer in reading]
        output = process.communicate()
    assert process.returncode == 0, output
    assert "Traceback" not in output
    # Before it there are signs of life, if it takes long.
    assert all("event: complete\n" in answer for answer in answers), answers


def test_what_is_left_when_it_ends_is_told_so(weights: Path, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    with running("--weights", str(weights), "--drain-seconds", "0", hold=hold) as (url, process):
        first_answer(f"{url}/", process)
        hold.touch()
        with httpx.Client(base_url=f"{url}/gradio_api", timeout=240) as http:
            path = http.post("/upload", files={"files": ("cat.jpg", example("cat"))}).json()[0]
            picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
            controls = ["random", "crop", "mine", 112, "estimated", None]
            for seed in range(4):
                http.post("/call/reconstruct", json={"data": [picture, 0.1, seed, *controls]})
            wait_until(lambda: arrived(httpx.get(f"{url}/metrics").text) == 4)
            process.send_signal(signal.SIGTERM)
        output = process.communicate()
    assert process.returncode == 0, output
    assert "some requests were given up" in output


def test_after_three_hung_runs_it_ends_to_be_restarted(weights: Path, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    flags = ["--weights", str(weights), "--workers", "3", "--max-batch", "1"]
    flags += ["--request-seconds", "1", "--drain-seconds", "0"]
    with running(*flags, hold=hold) as (url, process):
        first_answer(f"{url}/", process)
        hold.touch()
        with httpx.Client(base_url=f"{url}/gradio_api", timeout=240) as http:
            path = http.post("/upload", files={"files": ("cat.jpg", example("cat"))}).json()[0]
            picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
            controls = ["random", "crop", "mine", 112, "estimated", None]
            for seed in range(3):
                http.post("/call/reconstruct", json={"data": [picture, 0.1, seed, *controls]})
        output = process.communicate()
    assert process.returncode == 1, output
    assert "3 runs hang and cannot be stopped: this process has to be restarted" in output


def test_a_download_does_not_keep_it_from_ending(weights: Path) -> None:
    flags = "--weights", f"{weights},no-such-weights"
    with running(*flags, code=_STUCK) as (url, process):
        first_answer(f"{url}/", process)
        process.send_signal(signal.SIGTERM)
        output = process.communicate()
    assert process.returncode == 0, output
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
        with running(*flags, "--port", port, code=_STUCK) as (_, process):
            output = process.communicate()
    assert process.returncode == 2, output
    assert "error: cannot listen on" in output


def test_weights_that_cannot_be_used_do_not_keep_the_page_away(
    weights: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(weights.read_bytes()[:3000])
    with running("--weights", f"{broken},no-such-weights,{weights}") as (url, process):
        page = first_answer(f"{url}/", process)
        for name in ("broken", "no-such-weights", "mine"):
            assert name in page
        assert str(tmp_path) not in page
        assert httpx.get(f"{url}/healthz").status_code == 200
        ready = httpx.get(f"{url}/readyz")
        assert (ready.status_code, "broken is not there" in ready.text) == (503, True)
        process.send_signal(signal.SIGTERM)
        output = process.communicate()
    assert process.returncode == 0
    assert "no-such-weights could not be opened at the start" in output


def test_an_interrupt_before_the_page_is_served_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.__main__.ReconstructionService.load", interrupted)
    assert main([]) == 130
    assert "Traceback" not in "".join(capfd.readouterr())


def arrived(metrics: str) -> float:
    """Requests that have come so far as to the line."""
    names = r'mae_queue_(?:waiting|running)|mae_requests_total{outcome="computed"}'
    return sum(map(float, re.findall(rf"^(?:{names}) (.*)$", metrics, re.MULTILINE)))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def first_answer(url: str, process: subprocess.Popen[str] | ForkedPython) -> str:
    """The page's HTML, as soon as it is served."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(str(process.communicate()))
        try:
            return httpx.get(url, timeout=30).text
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError(url)
