"""What the page is served with: host, port, device, weights, and what visitors may ask for.

A field of `AppSettings` is a setting: the flag `--max-batch` and the variable MAE_MAX_BATCH come
from `max_batch`, its type, its default and the sentence about it.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from mae_core.errors import ConfigError
from mae_core.reconstruct import MAX_IMAGE_SIZE

_FETCH = ("none", "published")

Value = TypeVar("Value")


def _setting(
    default: Value,
    about: str,
    *others: str,
    least: float = -math.inf,
    most: float = math.inf,
) -> Value:
    """A field with what `--help` says of it.

    Args:
        default: Its value.
        about: What it is.
        *others: Variables of other programs that are read as well.
        least: Of a number, the smallest allowed.
        most: Of a number, the largest allowed.
    """
    metadata = {"about": about, "others": others, "least": least, "most": most}
    described: Value = field(default=default, metadata=metadata)
    return described


@dataclass(frozen=True)
class AppSettings:
    """Where the page is served, what it runs, and how much of it visitors get.

    Attributes:
        host: Address to listen on; `0.0.0.0` is every one of the machine's.
        port: TCP port, 1..65535.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        weights: Names, files or folders of runs offered, the first one chosen at the start;
            empty offers every bundled model.
        fetch: What visitors may have fetched: `none`, or the `published` weights that have a name.
        memory_gb: Bound on the models that visitors have read beside `weights`, in 10^9 bytes.
        max_image_size: Largest size of pictures that can be asked for, in pixels.
        workers: Batches that run at the same time, from 1.
        max_batch: Requests that share a forward pass, at most; 0 is as many as pay off on the
            device.
        queue: Requests that wait, at most.
        per_visitor: Of them, those of one visitor, who may be a class behind one address.
        rate: Requests that are computed for one visitor in a minute; a sixth of them may come
            at once. 0 is no bound.
        request_seconds: How long a request may wait, and then how long it may run.
        proxies: Trusted proxies in front of the page, which add to X-Forwarded-For.
        disk_gb: Bound on uploads and panels on disk, in 10^9 bytes.
        drain_seconds: How long requests may go on once the page is told to end.
    """

    host: str = _setting("127.0.0.1", "address to listen on", "GRADIO_SERVER_NAME")
    port: int = _setting(7860, "port to listen on", "GRADIO_SERVER_PORT", least=1, most=65535)
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps")
    weights: tuple[str, ...] = _setting(
        (), "names, files or folders of training runs, by commas; all bundled ones if not given"
    )
    fetch: str = _setting(
        "published", "what visitors may have fetched: none, or published (weights that have a name)"
    )
    memory_gb: float = _setting(
        4.0, "memory for models that visitors choose beside --weights", least=0
    )
    max_image_size: int = _setting(
        MAX_IMAGE_SIZE, "largest size of pictures in pixels", least=1, most=MAX_IMAGE_SIZE
    )
    workers: int = _setting(1, "batches that run at the same time", least=1, most=64)
    max_batch: int = _setting(0, "requests in a batch; 0 is by device", least=0, most=256)
    queue: int = _setting(100, "requests that may wait", least=1, most=10_000)
    per_visitor: int = _setting(32, "requests of one visitor that may wait", least=1, most=10_000)
    rate: float = _setting(
        600.0, "requests computed for one visitor in a minute; 0 is no bound", least=0
    )
    request_seconds: float = _setting(
        60.0, "how long a request may wait, and then run", least=0.1, most=3600
    )
    proxies: int = _setting(
        0, "trusted proxies in front, which write X-Forwarded-For", least=0, most=10
    )
    disk_gb: float = _setting(2.0, "disk for uploads and panels", least=0.1)
    drain_seconds: float = _setting(
        20.0, "how long requests may go on after SIGTERM", least=0, most=3600
    )

    def __post_init__(self) -> None:
        if self.fetch not in _FETCH:
            advice = ""
            if self.fetch == "any":
                advice = "; serve a repository of the hub by --weights USER/NAME (MAE_WEIGHTS)"
            raise ConfigError(f"fetch is {self.fetch!r}; choose {' or '.join(_FETCH)}{advice}")
        for setting in fields(self):
            value = getattr(self, setting.name)
            least, most = setting.metadata["least"], setting.metadata["most"]
            # Not a number is in no range.
            if isinstance(value, int | float) and not (
                least <= value <= most and math.isfinite(value)
            ):
                raise ConfigError(f"{setting.name} is {value}; it must be {_allowed(setting)}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "AppSettings":
        """Read MAE_HOST, MAE_PORT and so on; MAE_WEIGHTS is names or paths, by commas.

        An empty variable counts as not set. A Hugging Face Space has one proxy in front.

        Args:
            environ: Variables to read; the process's own if not given.

        Raises:
            ConfigError: If one of them is not what it should be.
        """
        given = os.environ if environ is None else environ
        values: dict[str, Any] = {"proxies": 1} if given.get("SPACE_ID") else {}
        for setting in fields(cls):
            names = (f"MAE_{setting.name.upper()}", *setting.metadata["others"])
            text = next(filter(None, map(given.get, names)), None)
            if text is not None:
                values[setting.name] = parser_of(setting)(text)
        return cls(**values)


def parser_of(setting: "Field[Any]") -> Callable[[str], Any]:
    """What reads a setting from text; it raises ConfigError where it cannot."""

    def read(text: str) -> Any:
        kind: type[Any] = type(setting.default)
        try:
            return _parse_names(text) if kind is tuple else kind(text)
        except ValueError as error:
            raise ConfigError(
                f"{setting.name} is {text!r}; it must be {_allowed(setting)}"
            ) from error

    return read


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _allowed(setting: "Field[Any]") -> str:
    """What a number may be."""
    kind = "a whole number" if isinstance(setting.default, int) else "a number"
    least, most = setting.metadata["least"], setting.metadata["most"]
    up_to = "" if most == math.inf else f" to {most:g}"
    return f"{kind} from {least:g}{up_to}, such as {setting.default:g}"
