"""What the page is served with: host, port, device, weights."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mae_core import ConfigError


@dataclass(frozen=True)
class AppSettings:
    """Where the page is served and what it runs.

    Attributes:
        host: Address to listen on; `0.0.0.0` is every one of the machine's.
        port: TCP port, 1..65535.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        weights: Names, files or folders of runs offered, the first one chosen at the start;
            empty offers every bundled model.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    device: str = "auto"
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be from 1 to 65535, such as 7860")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "AppSettings":
        """Read MAE_HOST, MAE_PORT, MAE_DEVICE and MAE_WEIGHTS (names or paths, by commas).

        An empty variable counts as not set.

        Args:
            environ: Variables to read; the process's own if not given.

        Raises:
            ConfigError: If MAE_PORT is not a port.
        """
        given = os.environ if environ is None else environ
        return cls(
            host=given.get("MAE_HOST") or cls.host,
            port=parse_port(given.get("MAE_PORT") or str(cls.port)),
            device=given.get("MAE_DEVICE") or cls.device,
            weights=parse_weights(given.get("MAE_WEIGHTS", "")),
        )


def parse_port(text: str) -> int:
    """A port from text.

    Raises:
        ConfigError: If it is not a whole number.
    """
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(
            f"port is {text!r}; it must be a whole number from 1 to 65535, such as 7860"
        ) from error


def parse_weights(text: str) -> tuple[str, ...]:
    """Names or paths from text that separates them by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
