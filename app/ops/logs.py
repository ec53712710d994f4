"""One line for each thing that happened, without anything of a visitor's.

Lines are in logfmt: `time=… level=info logger=app.service event="request" outcome="computed"`.
Strings are quoted as in JSON, in ASCII, so whatever a message holds it stays on its line. Before a
message or a traceback is written, keys, addresses of people and paths of uploads are taken out.

Wiring: `configure_logging()` once, first thing in `main`. Then

    logging.getLogger(__name__).info("model ready", extra={"fields": {"model": "base", "mb": 110}})
    log_request("computed", 0.35, model="base", batch=4)
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

# A traceback of many causes ends somewhere.
MAX_CHARACTERS = 8000

_GONE = "[redacted]"
# In the names of variables and headers whose values are nobody's business.
_SECRET = r"(?:token|secret|password|passwd|api[_-]?key|authorization|cookie)"
# None of them takes longer than the text is long: visitors have a say in what errors say.
_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # The user and password of an address, and all that follows its question mark: signed
        # addresses of downloads are as good as a key.
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
    # Of version 6, perhaps with one of version 4 at its end; or of version 4.
    r"(?<![\w.:])(?:[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}|\d{1,3})(?:(?:\.\d{1,3}){3})?"
    r"(?![\w:]|\.\d)",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[\w.+-]+", re.ASCII)

_requests = logging.getLogger("app.requests")


def configure_logging() -> None:
    """Write what everything in this process logs as lines of logfmt to standard error."""
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
    # Gradio asks its own server whether it is up; the others log every address they ask.
    for name in ("httpx", "httpx2", "urllib3", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    threading.excepthook = _log_thread


def log_request(outcome: str, seconds: float, **fields: object) -> None:
    """Log that a request was answered.

    Args:
        outcome: How it ended, one of `app.ops.metrics.OUTCOMES`.
        seconds: From its arrival to its answer.
        **fields: What else to say of it: nothing that a visitor typed or sent.
    """
    values = {"outcome": outcome, "seconds": seconds, **fields}
    _requests.info("request", extra={"fields": values})


class LogfmtFormatter(logging.Formatter):
    """Formats a record as one line, with what must not be in a log taken out."""

    def __init__(self, secrets: list[str] | None = None) -> None:
        """Make a formatter.

        Args:
            secrets: Texts to take out beside what looks like a secret.
        """
        super().__init__()
        self._secrets = secrets or []

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        when = datetime.fromtimestamp(record.created, UTC)
        values: dict[str, object] = {
            "time": _Bare(when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z"),
            "level": _Bare(record.levelname.lower()),
            "logger": _Bare(record.name),
            "event": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            values.update(fields)
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        return " ".join(f"{name}={self._written(value)}" for name, value in values.items())

    def _written(self, value: object) -> str:
        if isinstance(value, _Bare) and _PLAIN.fullmatch(value.replace(":", "")):
            return value
        if isinstance(value, bool) or value is None:
            return str(value).lower()
        if isinstance(value, int | float):
            return f"{value:.6g}" if isinstance(value, float) else str(value)
        text = self._cleaned(str(value))
        if len(text) > MAX_CHARACTERS:
            # The end of a traceback says most.
            text = f"{text[: MAX_CHARACTERS // 4]} ... {text[-3 * MAX_CHARACTERS // 4 :]}"
        return json.dumps(text)

    def _cleaned(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _GONE)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return _ADDRESS.sub(_without_visitor, text)


class _Bare(str):
    """Text of our own that needs no quotes."""

    __slots__ = ()


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
