"""Counts of what the server does, for Prometheus."""

import logging
import math
from collections.abc import Callable
from typing import Literal, get_args

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

# `busy`: the line is full, or the visitor has too many in it. `refused`: bad input. `waiting`: the
# model is on its way.
Outcome = Literal["computed", "cached", "busy", "refused", "failed", "timeout", "waiting"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0)
_BATCHES = (1, 2, 4, 8, 16, 32)

_logger = logging.getLogger(__name__)


class Metrics:
    """Counts since the start. Thread-safe.

    No label holds a visitor's words, so the number of series never grows.
    """

    def __init__(self) -> None:
        """Start at zero, apart from any other object's counts."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "mae_requests", "Requests for a reconstruction, by outcome.",
            ["outcome"], registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "mae_request_seconds", "From a request to its answer, waiting included.",
            ["outcome"], buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._batches = Histogram(
            "mae_batch_size", "Pictures in one forward pass.",
            buckets=_BATCHES, registry=self._registry,
        )  # fmt: skip
        for outcome in OUTCOMES:
            # Series that are there from the start can be added up and alarmed on.
            self._requests.labels(outcome)
            self._seconds.labels(outcome)

    def count(self, outcome: Outcome, seconds: float) -> None:
        """Count one request, which took some seconds from its arrival to its answer."""
        self._requests.labels(outcome).inc()
        self._seconds.labels(outcome).observe(max(0.0, seconds))

    def observe_batch(self, size: int) -> None:
        """Count one forward pass over so many pictures."""
        self._batches.observe(size)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Show a number that is read at each exposition; NaN if that fails.

        Raises:
            ValueError: If there is one of that name.
        """

        def read() -> float:
            try:
                return float(value())
            except Exception:
                _logger.warning("cannot read %s", name, exc_info=True)
                return math.nan

        Gauge(name, help, registry=self._registry).set_function(read)

    def exposition(self) -> tuple[bytes, str]:
        """All numbers as text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
