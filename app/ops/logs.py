"""One line of logfmt for each event, with nothing of a visitor's.

    time=… level=info logger=app.service event="model ready" model="base" mb=110

Strings are quoted as in JSON, in ASCII, so whatever a message holds it stays on its line. Keys,
people's addresses and paths of uploads are taken out of messages and tracebacks.

Wiring: `configure_logging()` first in `main`; then
`logging.getLogger(__name__).info("model ready", extra={"fields": {"model": "base", "mb": 110}})`.
"""

import ipaddress
import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from datetime import UTC, datetime

import uvicorn.config

MAX_CHARACTERS = 8000

_GONE = "[redacted]"
# In names of variables and headers.
_SECRET = r"(?:token|secret|password|passwd|api[_-]?key|authorization|cookie)"
# Each takes linear time: visitors have a say in what errors say.
_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # User and password of an address, and its query: a signed address is as good as a key.
        (r"(\w{1,20}://)[^\s/@'\"]+@", rf"\1{_GONE}@"),
        (r"\?[^\s?='\"]*=[^\s'\"]*", f"?{_GONE}"),
        (r"\b(bearer|basic)\s+[\w.~+/=-]+", rf"\1 {_GONE}"),
        (
            rf"({_SECRET}[\w-]{{0,40}}['\"]?\s{{0,4}}[:=,]\s{{0,4}}b?['\"]?)[^\s'\",;)\]}}]+",
            rf"\1{_GONE}",
        ),
        (r"\bhf_\w{6,}", _GONE),
        # Gradio's files, whose names are the visitor's: to the quote or the line's end.
        (r"[0-9a-f]{64}[/\\][^'\"\n]*", "[upload]"),
    )
]
_ADDRESS = re.compile(
    # IPv6, perhaps with IPv4 at its end; or IPv4.
    r"(?<![\w.:])(?:[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}|\d{1,3})(?:(?:\.\d{1,3}){3})?"
    r"(?![\w:]|\.\d)",
    re.IGNORECASE,
)


def configure_logging() -> None:
    """Write what everything in this process logs as logfmt to standard error."""
    secrets = [
        value
        for name, value in os.environ.items()
        if re.search(_SECRET, name, re.IGNORECASE) and len(value) >= 8
    ]
    handler = logging.StreamHandler()
    handler.setFormatter(LogfmtFormatter(secrets))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # uvicorn would put its own handlers back when it starts.
    uvicorn.config.LOGGING_CONFIG.update(formatters={}, handlers={}, loggers={})
    # They log every address that is asked.
    for name in ("httpx", "httpx2", "urllib3", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    threading.excepthook = _log_thread


def log_request(outcome: str, seconds: float, **fields: object) -> None:
    """Log that a request was answered; `fields` hold nothing that a visitor typed or sent."""
    values = {"outcome": outcome, "seconds": seconds, **fields}
    logging.getLogger("app.requests").info("request", extra={"fields": values})


class LogfmtFormatter(logging.Formatter):
    """Formats a record as one line, without secrets."""

    def __init__(self, secrets: list[str] | None = None) -> None:
        """Take `secrets` out, beside what looks like one."""
        super().__init__()
        self._secrets = secrets or []

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        values: dict[str, object] = {"event": record.getMessage()}
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            values.update(fields)
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        head = f"time={when.replace('+00:00', 'Z')} level={record.levelname.lower()}"
        rest = (f"{name}={self._written(value)}" for name, value in values.items())
        return " ".join([head, f"logger={record.name}", *rest])

    def _written(self, value: object) -> str:
        if isinstance(value, bool) or value is None:
            return str(value).lower()
        if isinstance(value, int | float):
            return f"{value:.6g}" if isinstance(value, float) else str(value)
        text = str(value)
        for secret in self._secrets:
            text = text.replace(secret, _GONE)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        text = _ADDRESS.sub(_without_visitor, text)
        if len(text) > MAX_CHARACTERS:
            # The end of a traceback says most.
            text = f"{text[: MAX_CHARACTERS // 4]} ... {text[-3 * MAX_CHARACTERS // 4 :]}"
        return json.dumps(text)


def _without_visitor(found: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:
        return found[0]
    return found[0] if address.is_loopback or address.is_unspecified else "[address]"


def _log_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logging.getLogger("threading").error("a thread has ended", exc_info=error)
