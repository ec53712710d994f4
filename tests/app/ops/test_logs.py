import io
import json
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
import uvicorn.config

from app.ops.logs import MAX_CHARACTERS, LogfmtFormatter, configure_logging, log_request

HASH = "3c96616a6fa655f4e11b2df71c11b6f0" * 2


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is written once logging is configured; all is as before afterwards."""
    root, written = logging.getLogger(), io.StringIO()
    handlers, level, settings = root.handlers[:], root.level, dict(uvicorn.config.LOGGING_CONFIG)
    loud = {name: logging.getLogger(name).level for name in ("httpx", "httpx2", "urllib3")}
    monkeypatch.setattr("sys.stderr", written)
    # A server that an earlier test has started gave it handlers of its own.
    for name, value in (("handlers", []), ("propagate", True)):
        monkeypatch.setattr(logging.getLogger("uvicorn"), name, value)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setenv("SOME_API_KEY", "hunter2hunter2")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        configure_logging()
        yield written
        logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    uvicorn.config.LOGGING_CONFIG.update(settings)
    for name, was in loud.items():
        logging.getLogger(name).setLevel(was)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    """The fields of each line."""
    pattern = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)(?: |$)')
    found = []
    for line in log.getvalue().splitlines():
        assert "".join(match[0] for match in pattern.finditer(line)) == line
        found.append({
            name: json.loads(value) if value.startswith('"') else value
            for name, value in pattern.findall(line)
        })  # fmt: skip
    return found


def formatted(message: str) -> str:
    record = logging.LogRecord("a", logging.INFO, "", 1, message, None, None)
    return LogfmtFormatter().format(record)


def test_a_record_is_one_line_of_fields(log: io.StringIO) -> None:
    fields = {"model": "base 2", "batch": 4, "gpu": False, "seconds": 0.25, "why": None}
    logging.getLogger("app.x").warning("model %s", "ready", extra={"fields": fields})
    (line,) = lines(log)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning", "logger": "app.x", "event": "model ready", "model": "base 2",
        "batch": "4", "gpu": "false", "seconds": "0.25", "why": "none",
    }  # fmt: skip


def test_a_request_is_logged(log: io.StringIO) -> None:
    log_request("computed", 0.123456789, model="base")
    (line,) = lines(log)
    assert (line["event"], line["outcome"], line["seconds"]) == ("request", "computed", "0.123457")


def test_nobody_forges_a_line(log: io.StringIO) -> None:
    forged = 'a\ntime=now level=error event="x"\r\x1b[2J\u2028b\x85c\x00'
    logging.getLogger("a").info(forged, extra={"fields": {"value": forged}})
    try:
        raise ValueError(forged)
    except ValueError:
        logging.getLogger("a").exception("failed")
    assert len(log.getvalue().splitlines()) == 2
    assert log.getvalue().isascii()
    assert [line["level"] for line in lines(log)] == ["info", "error"]
    assert lines(log)[1]["trace"].startswith("Traceback")


SECRETS = [
    "https://cas.example.org/a.bin?X-Amz-Signature=SECRET&Expires=1",
    "GET /gradio_api/queue/data?session_hash=SECRET HTTP/1.1",
    "GET /?__sign=SECRET",
    "https://user:SECRET@example.org/",
    "token hf_SECRETsecret",
    "Authorization: Bearer SECRET",
    "{'Authorization': 'Basic SECRET=='}",
    '{"authorization": "Bearer SECRET"}',
    "[(b'cookie', b'SECRET=1')]",
    "Cookie: a=SECRET",
    "HF_TOKEN=SECRET",
    'password="SECRET"',
    "MAE_METRICS_TOKEN: SECRET",
    f"cannot open /tmp/gradio/{HASH}/my SECRET cat.png",
    f"No such file: '/tmp/gradio/{HASH}/SECRET.png' (2)",
    f"C:\\\\gradio\\\\{HASH}\\\\SECRET.png",
    f"https://a.example/gradio_api/file=/tmp/{HASH}/SECRET.png",
]


@pytest.mark.parametrize("message", SECRETS)
def test_secrets_and_names_of_files_are_taken_out(log: io.StringIO, message: str) -> None:
    logging.getLogger("a").error("before %s", message, extra={"fields": {"value": message}})
    try:
        raise OSError(message)
    except OSError as error:
        logging.getLogger("a").error("failed", exc_info=error)
    assert "SECRET" not in log.getvalue()
    assert lines(log)[0]["event"].startswith("before ")


def test_the_environments_secrets_are_known(log: io.StringIO) -> None:
    logging.getLogger("a").info("it is hunter2hunter2!")
    assert lines(log)[0]["event"] == "it is [redacted]!"


@pytest.mark.parametrize("address", ["8.8.8.8", "10.1.2.3", "2001:db8::1", "::ffff:8.8.8.8"])
def test_addresses_of_people_are_taken_out(address: str) -> None:
    for message in (f"from {address}", f"({address})", f"{address}/64", f"{address}, then"):
        assert address not in formatted(message)


@pytest.mark.parametrize(
    "message",
    [
        "Running on http://127.0.0.1:7860", "listening on 0.0.0.0", "torch 2.13.0 at 12:30:59",
        "base: 3 of 4, sha256 3c96616a, 75 %", "std::vector", "version 1.2.3.4.5",
        "what? yes", "mae_core.images: ok", "a/b/c.safetensors",
    ],
)  # fmt: skip
def test_what_is_harmless_stays(message: str) -> None:
    assert json.dumps(message) in formatted(message)


@pytest.mark.parametrize(
    "text", ["x", "a-", "token", "token=", "? ", "?a", "://", "1.", ":", "0", " ", "'", "bearer "]
)
def test_a_line_has_an_end(text: str) -> None:
    # Minutes, were a pattern to look at the same text over and over.
    line = formatted(text * 10 * MAX_CHARACTERS + "\nthe end")
    assert len(line) < 3 * MAX_CHARACTERS
    assert line.endswith('the end"')


def test_everybodys_records_come_the_same_way(log: io.StringIO) -> None:
    # As Gradio makes it, which would give uvicorn's loggers their own handlers again.
    uvicorn.Config(lambda: None, log_level="warning")
    logging.getLogger("uvicorn.error").error("broken pipe")
    logging.getLogger("uvicorn.access").info("GET /gradio_api/file=cat.png")
    logging.getLogger("httpx").info("HTTP Request: GET https://example.org")
    warnings.warn("old", stacklevel=1)
    thread = threading.Thread(target=lambda: [][1])
    thread.start()
    thread.join()
    assert [line["logger"] for line in lines(log)] == ["uvicorn.error", "py.warnings", "threading"]
    assert "IndexError" in lines(log)[2]["trace"]
