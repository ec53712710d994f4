"""Numbers about what the server does, in the format that Prometheus reads.

Wiring:

    metrics = Metrics()
    metrics.watch("mae_queue_waiting", "Jobs in line.", lambda: line.waiting)
    metrics.watch("mae_queue_running", "Jobs being run.", lambda: line.running)
    metrics.watch("mae_workers_abandoned", "Hung runs.", lambda: line.abandoned)
    metrics.watch("mae_upload_folder_bytes", "Uploads and panels.", lambda: folder.bytes)
    metrics.count("computed", 0.35)    # once for each request, however it ended
    metrics.observe_batch(4)           # once for each forward pass
"""

import logging
import math
from collections.abc import Callable
from typing import Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

Outcome = Literal["computed", "cached", "busy", "refused", "failed", "timeout", "waiting"]
OUTCOMES: tuple[Outcome, ...] = (
    "computed", "cached", "busy", "refused", "failed", "timeout", "waiting",
)  # fmt: skip

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0)
_BATCHES = (1, 2, 4, 8, 16, 32)

_logger = logging.getLogger(__name__)


class Metrics:
    """What has been counted since the start. Safe to share between threads.

    No label holds a visitor's words, so the number of series never grows.
    """

    def __init__(self) -> None:
        """Start counting, from zero, apart from any other object's counts."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "mae_requests", "Requests for a reconstruction, by how they ended.",
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
        """Count one request.

        Args:
            outcome: How it ended: `computed`, `cached`, `busy` (line full or too many by one
                visitor), `refused` (bad input), `failed`, `timeout`, or `waiting` (its model is
                on its way).
            seconds: From its arrival to its answer, from 0.
        """
        self._requests.labels(outcome).inc()
        self._seconds.labels(outcome).observe(max(0.0, seconds))

    def observe_batch(self, size: int) -> None:
        """Count one forward pass over so many pictures."""
        self._batches.observe(size)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Show a number that is read whenever somebody asks.

        Args:
            name: In Prometheus's style, such as `mae_queue_waiting`.
            help: What it is, a sentence.
            value: Reads it. If it fails, the number is NaN and the others are shown all the same.

        Raises:
            ValueError: If there is one of that name.
        """
        gauge = Gauge(name, help, registry=self._registry)
        gauge.set_function(lambda: _read(name, value))

    def exposition(self) -> tuple[bytes, str]:
        """All numbers as text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


def _read(name: str, value: Callable[[], float]) -> float:
    try:
        return float(value())
    except Exception:
        _logger.warning("cannot read %s", name, exc_info=True)
        return math.nan
