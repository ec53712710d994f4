"""What the page is served with: host, port, device, weights, and what visitors may ask for."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from app.fetching import FETCH_POLICIES
from mae_core import MAX_IMAGE_SIZE, ConfigError


@dataclass(frozen=True)
class AppSettings:
    """Where the page is served and what it runs.

    Attributes:
        host: Address to listen on; `0.0.0.0` is every one of the machine's.
        port: TCP port, 1..65535.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        weights: Names, files or folders of runs offered, the first one chosen at the start;
            empty offers every bundled model.
        fetch: What visitors may have fetched, one of `FETCH_POLICIES`: `none`; the `published`
            weights that have a name; or also `any` repository of the Hugging Face hub.
        memory_gb: Bound on the models that visitors have read beside `weights`, in 10^9 bytes.
        max_image_size: Largest size of pictures that can be asked for, in pixels.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    device: str = "auto"
    weights: tuple[str, ...] = ()
    fetch: str = "published"
    memory_gb: float = 4.0
    max_image_size: int = MAX_IMAGE_SIZE

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be from 1 to 65535, such as 7860")
        if self.fetch not in FETCH_POLICIES:
            raise ConfigError(f"fetch is {self.fetch!r}; choose {', '.join(FETCH_POLICIES)}")
        if not 0 <= self.memory_gb < math.inf:
            raise ConfigError(f"memory_gb is {self.memory_gb}; give a number from 0, such as 4")
        if not 1 <= self.max_image_size <= MAX_IMAGE_SIZE:
            raise ConfigError(
                f"max_image_size is {self.max_image_size}; it must be from 1 to {MAX_IMAGE_SIZE}"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "AppSettings":
        """Read MAE_HOST, MAE_PORT and so on; MAE_WEIGHTS is names or paths, by commas.

        An empty variable counts as not set.

        Args:
            environ: Variables to read; the process's own if not given.

        Raises:
            ConfigError: If one of them is not what it should be.
        """
        given = os.environ if environ is None else environ
        return cls(
            host=given.get("MAE_HOST") or cls.host,
            port=parse_port(given.get("MAE_PORT") or str(cls.port)),
            device=given.get("MAE_DEVICE") or cls.device,
            weights=parse_weights(given.get("MAE_WEIGHTS", "")),
            fetch=given.get("MAE_FETCH") or cls.fetch,
            memory_gb=parse_gigabytes(given.get("MAE_MEMORY_GB") or str(cls.memory_gb)),
            max_image_size=parse_pixels(given.get("MAE_MAX_IMAGE_SIZE") or str(cls.max_image_size)),
        )


def parse_port(text: str) -> int:
    """A port from text.

    Raises:
        ConfigError: If it is not a whole number.
    """
    return _whole_number("port", text, "from 1 to 65535, such as 7860")


def parse_gigabytes(text: str) -> float:
    """A number of gigabytes from text.

    Raises:
        ConfigError: If it is none.
    """
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"memory_gb is {text!r}; give a number from 0, such as 4") from error


def parse_pixels(text: str) -> int:
    """A size in pixels from text.

    Raises:
        ConfigError: If it is not a whole number.
    """
    return _whole_number("max_image_size", text, f"up to {MAX_IMAGE_SIZE}")


def _whole_number(name: str, text: str, allowed: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}; it must be a whole number {allowed}") from error


def parse_weights(text: str) -> tuple[str, ...]:
    """Names or paths from text that separates them by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
