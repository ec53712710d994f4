"""Texts of the page, in the languages of `locales/`: one JSON file a language.

`labels` are shown by the browser, in its own language. `sentences` are made on the server, in the
language that the page shows or the request asks for. `errors` are sentences by the code of an
error, with its parameters; the messages of the errors themselves are English.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

from app.line import BusyError, TookTooLongError
from app.models.shelf import NotReadyError, Offer
from mae_core import MAEError
from mae_core.photographs import ImageLimits

LANGUAGES = ("en", "zh")

LOCALE_FOLDER = Path(__file__).parent / "locales"

LOCALES = {
    language: json.loads((LOCALE_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    for language in LANGUAGES
}
LABELS: dict[str, dict[str, str]] = {name: texts["labels"] for name, texts in LOCALES.items()}


def preferred_language(accept_language: str | None) -> str:
    """The language of `LANGUAGES` that an Accept-Language header asks for first.

    Args:
        accept_language: Such as `zh-CN,zh;q=0.9,en;q=0.8`; English if there is none.
    """
    wanted = []
    for item in (accept_language or "").split(","):
        tag, _, weight = item.partition(";q=")
        language = tag.strip().partition("-")[0].lower()
        if language in LANGUAGES:
            wanted.append((_weight(weight), language))
    # max keeps the earlier of equals, and browsers list the preferred one first.
    return max(wanted, key=lambda pair: pair[0])[1] if wanted else "en"


def _weight(text: str) -> float:
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0


def error_sentence(error: MAEError, language: str) -> str:
    """What a visitor is told about an error, as a sentence in their language."""
    if isinstance(error, NotReadyError):
        stop = "。" if language == "zh" else ". "
        words = (progress_sentence(error.offer, language), text("ask_again", language), "")
        return stop.join(words).strip()
    if isinstance(error, BusyError):
        return _busy_sentence(error, language)
    if isinstance(error, TookTooLongError):
        return text("too_long", language, seconds=f"{error.seconds:g}")
    errors = LOCALES[language]["errors"]
    if language != "en" or error.code in errors:
        limits = asdict(ImageLimits())
        limits["max_mib"] = limits["max_bytes"] >> 20
        sentence: str = errors.get(error.code, errors["other"]).format(**limits, **error.parameters)
        return sentence
    message = str(error)
    # A parameter's name, such as mask_ratio, stays as it is.
    if message.partition(" ")[0].isalpha():
        message = message[0].upper() + message[1:]
    return f"{message}."


def _busy_sentence(error: BusyError, language: str) -> str:
    when = text("when_later", language)
    if error.retry_seconds is not None:
        when = text("when_seconds", language, seconds=_seconds(error.retry_seconds))
    return text(f"busy_{error.reason}", language, waiting=error.waiting, when=when)


def line_sentence(place: int, seconds: float | None, language: str, *, paused: bool = False) -> str:
    """Where in the line a request is; without a full stop.

    Args:
        place: 0 = being computed; n = its turn is the n-th from now.
        seconds: How long that takes, where it is known.
        language: One of `LANGUAGES`.
        paused: Whether the next of its runs is not in line yet.
    """
    if paused:
        return text("line_paused", language)
    key = ("line_computing", "line_next", "line_one")[place] if place < 3 else "line_many"
    line = text(key, language, count=place - 1)
    if seconds is None:
        return line
    return text("line_seconds", language, line=line, seconds=_seconds(seconds))


def _seconds(seconds: float) -> str:
    return str(max(1, math.ceil(min(seconds, 3600))))


def progress_sentence(offer: Offer, language: str) -> str:
    """How far a model is that is on its way; without a full stop."""
    done, size = _amount(offer.done), size_of(offer, language)
    return text(f"model_{offer.state}", language, model=offer.name, done=done, size=size)


def size_of(offer: Offer, language: str) -> str:
    """The size of a model's files in 10^6 or 10^9 bytes, with a sign where it is a guess."""
    if offer.total is None:
        return text("size_unknown", language)
    return _amount(offer.total) if offer.exact else f"≈ {_amount(offer.total)}"


def _amount(size: int) -> str:
    return f"{size / 10**9:.1f} GB" if size >= 10**9 else f"{size / 10**6:.0f} MB"


def text(key: str, language: str, **values: object) -> str:
    """A sentence in a language, with its `{placeholders}` filled."""
    sentence: str = LOCALES[language]["sentences"][key]
    return sentence.format(**values)
