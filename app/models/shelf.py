"""Models that are read when they are asked for, and fetched first if need be.

A request never fetches or reads a model: it starts that in another thread and is told how far it
is. Each model has one entry, whose state changes only by the events in `_NEXT`.
"""

import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.models.served import ServedModel
from mae_core import MAEError
from mae_core.errors import CheckpointError, DownloadError
from mae_core.weights import WeightsEntry, find, is_offline, locate

_logger = logging.getLogger(__name__)

# Models that may wait while another one is fetched or read.
MAX_WAITING = 4

# Seconds without a request before a download ends. Hidden browser tabs ask once a minute.
PATIENCE_SECONDS = 120.0

# A download with fewer bytes than this in so many seconds ends if another model waits.
SLOWEST_BYTES, PACE_SECONDS = 60 * 32 * 1024, 60.0

# Seconds between attempts at a model that was given at the start.
RETRY_SECONDS = 30.0

# Folders in front of a file's name, but not those of a URL.
_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s'\"/]+/)+")

State = Literal["absent", "here", "waiting", "fetching", "reading", "ready", "failed"]

# The next state, by event and state; other events change nothing. `ModelShelf._jobs` says what is
# started on the way into a state.
_NEXT: dict[str, dict[State, State]] = {
    "found": {"absent": "here"},
    "lost": {"here": "absent"},
    "asked": {"absent": "waiting", "here": "reading"},
    "turn": {"waiting": "fetching"},
    "bytes": {"fetching": "fetching"},
    "complete": {"fetching": "reading"},
    "read": {"reading": "ready"},
    "left": {"waiting": "absent", "fetching": "absent"},
    "error": {"fetching": "failed", "reading": "failed"},
    "told": {"failed": "absent"},
    "evicted": {"ready": "here"},
}


@dataclass(frozen=True)
class Offer:
    """A model that can be chosen, and its state."""

    name: str
    state: State
    total: int | None = None  # bytes of its files, if known
    done: int = 0  # bytes fetched, while `fetching`
    exact: bool = False  # whether `total` was measured
    licence: str | None = None
    norm_pix: bool | None = None  # whether it predicts normalised pixels, if known
    error: MAEError | None = None  # why it failed

    @property
    def pending(self) -> bool:
        """Whether it is waiting, fetched or read."""
        return self.state in ("waiting", "fetching", "reading")


class NotReadyError(MAEError):
    """A model is pending; `offer` says how far it is."""

    def __init__(self, offer: Offer) -> None:
        super().__init__(f"{offer.name} is not here yet; ask again in a few seconds")
        self.offer = offer


class _LeftError(Exception):
    """No request asks for a download any more."""


@dataclass(eq=False)
class _Entry:
    source: str  # its name; of a model given at the start, what was given
    wanted: bool  # given at the start
    can_draw: bool
    size: int  # bytes in float32, by the registry
    offer: Offer
    since: float = 0.0  # time of the last event
    asked: float = 0.0  # time of the last request
    pace: tuple[float, int] | None = None  # since when bytes are counted, and how many there were
    used: int = 0  # number of the latest use
    model: ServedModel | None = None

    @property
    def is_left(self) -> bool:
        return not self.wanted and time.monotonic() - self.asked > PATIENCE_SECONDS

    def is_slow(self, done: int) -> bool:
        """Whether `PACE_SECONDS` are over with this call and brought too few bytes."""
        now = time.monotonic()
        # Bytes before the first call came in an earlier download.
        since, before = self.pace or (now, done)
        over = now - since >= PACE_SECONDS
        self.pace = (now, done) if over else (since, before)
        return over and done - before < SLOWEST_BYTES


class ModelShelf:
    """Models that are fetched and read on request. Thread-safe.

    One is fetched and one is read at a time; reading takes about twice a model's size. A download
    ends if no request asks for it, or if it is slow while others wait; its bytes are kept for the
    next attempt. The models used last stay in memory, up to a bound, and those given at the start.
    """

    def __init__(
        self,
        registry: Mapping[str, WeightsEntry],
        open_model: Callable[[str], ServedModel],
        *,
        fetch: bool = True,
        max_bytes: int = 4 * 10**9,
        wanted: Mapping[str, str] | None = None,
    ) -> None:
        """Offer models.

        Args:
            registry: Models by name; those without a decoder are known, but not offered.
            open_model: Reads a model on disk, by name or by its source in `wanted`.
            fetch: Whether models that visitors choose are fetched.
            max_bytes: Of such models in memory.
            wanted: Name -> source of models given at the start; see `start_wanted`.
        """
        wanted = wanted or {}
        self._entries: dict[str, _Entry] = {}
        for name in dict.fromkeys([*wanted, *registry]):
            offer, can_draw, size = Offer(name, "absent"), True, 0
            if weights := registry.get(name):
                offer = Offer(
                    name, "absent", weights.expected_bytes, exact=weights.bytes is not None,
                    licence=licence_of(weights), norm_pix=weights.target == "norm_pix",
                )  # fmt: skip
                can_draw, size = weights.kind == "autoencoder", 4 * weights.parameters
            given = name in wanted
            source = wanted.get(name, name)
            self._entries[name] = _Entry(source, given, given or can_draw, size, offer)
        self._open, self._fetching_allowed, self._max_bytes = open_model, fetch, max_bytes
        self._uses = itertools.count(1)
        # Of all entries; re-entrant, as an event may be part of a larger change.
        self._lock = threading.RLock()
        # Python joins these threads at its end; `app.__main__` does not wait for them.
        self._jobs: dict[State, tuple[ThreadPoolExecutor, Callable[[_Entry], None]]] = {
            "waiting": (ThreadPoolExecutor(1), self._fetch),
            "reading": (ThreadPoolExecutor(1), self._read),
        }

    def start_wanted(self) -> None:
        """Fetch and read the models given at the start.

        After a failure, the first request later than `RETRY_SECONDS` starts another attempt.
        """
        for entry in self._entries.values():
            if entry.wanted:
                self._begin(entry)

    def offers(self) -> list[Offer]:
        """What can be chosen: models given at the start, then those here, then those to fetch."""
        ranked = []
        for name, entry in self._entries.items():
            offer = self.offer(name)
            to_fetch = offer.state == "absent" and not entry.wanted
            if entry.can_draw and (self._may_fetch or not to_fetch):
                rank = 0 if entry.wanted else 1 if offer.state in ("ready", "here") else 2
                ranked.append((rank, offer))
        return [offer for _, offer in sorted(ranked, key=lambda pair: pair[0])]

    def offer(self, name: str) -> Offer:
        """State of a model that it `knows`, offered or not."""
        entry = self._entries[name]
        if entry.offer.state in ("absent", "here"):
            path = None
            with suppress(CheckpointError):
                path = find(entry.source)
            self._apply(entry, "lost" if path is None else "found")
        return entry.offer

    def ask_after(self, name: str) -> None:
        """Keep the download of a model going."""
        if name in self._entries:
            self._entries[name].asked = time.monotonic()

    def knows(self, name: str) -> bool:
        """Whether there is a model of this name; other names are never looked up anywhere."""
        return name in self._entries

    def get(self, name: str) -> ServedModel:
        """Return a model that it `knows`, or start to fetch or read it.

        Raises:
            NotReadyError: If it is pending.
            DownloadError: If it could not be fetched, or too many others are waiting. The next
                call tries again; for a model given at the start, after `RETRY_SECONDS`.
            CheckpointError: If it cannot be read, likewise; or if it has no decoder, is too
                large, or may not be fetched.
        """
        entry = self._entries[name]
        with self._lock:
            if entry.model is not None:
                entry.used = next(self._uses)
                return entry.model
            error = entry.offer.error
            early = entry.wanted and time.monotonic() - entry.since < RETRY_SECONDS
            if not early:
                self._apply(entry, "told")
        if error is not None and (early or not entry.wanted):
            # Or each request would add its frames, and all that they hold.
            raise error.with_traceback(None)
        raise NotReadyError(self._begin(entry))

    def forget_failure(self, name: str) -> None:
        """Let the next `get` try again, unless the model was given at the start."""
        entry = self._entries.get(name)
        if entry is not None and not entry.wanted:
            self._apply(entry, "told")

    @property
    def busy(self) -> bool:
        """Whether a model is pending."""
        return any(entry.offer.pending for entry in self._entries.values())

    def join(self) -> None:
        """Wait until no model is pending."""
        for pool, _ in self._jobs.values():
            pool.submit(int).result()

    @property
    def _may_fetch(self) -> bool:
        return self._fetching_allowed and not is_offline()

    def _apply(self, entry: _Entry, event: str, **changes: Any) -> Offer | None:
        """Make the change of state that `_NEXT` has for an event; None if it has none."""
        with self._lock:
            before, state = entry.offer.state, _NEXT[event].get(entry.offer.state)
            if state is None:
                return None
            if state in self._jobs:
                pool, job = self._jobs[state]
                # Before the change, as it fails if there are no more threads.
                pool.submit(self._attempt, entry, job)
            changes = {"state": state, "done": 0, "error": None, **changes}
            entry.offer, entry.since = replace(entry.offer, **changes), time.monotonic()
            if state != before:
                _logger.info("%s: %s, now %s", entry.offer.name, event, state)
            return entry.offer

    def _begin(self, entry: _Entry) -> Offer:
        """Start what a model needs, unless it is pending; return its state at that moment."""
        name = entry.offer.name
        if not entry.can_draw:
            raise CheckpointError(
                f"{name} has no decoder, so there is nothing to draw with; choose a model that "
                "the page lists"
            )
        self._check_size(entry, entry.size)
        if self.offer(name).state == "absent" and not (entry.wanted or self._may_fetch):
            raise CheckpointError(
                f"{name} is not on this machine, and this page fetches nothing; whoever runs it "
                f"can fetch it by `mae fetch {name}`"
            )
        with self._lock:
            entry.asked = time.monotonic()
            self._drop_left()
            pending = sum(other.offer.pending for other in self._entries.values())
            if pending > MAX_WAITING and not (entry.wanted or entry.offer.pending):
                raise DownloadError(
                    f"{pending} models are being fetched or read already; choose one that is "
                    "here, or try again later"
                )
            offer = self._apply(entry, "asked") or entry.offer
        # It may have ended just now: the next request gets the model or the error.
        return offer if offer.pending else replace(offer, state="reading")

    def _attempt(self, entry: _Entry, job: Callable[[_Entry], None]) -> None:
        name = entry.offer.name
        try:
            job(entry)
        except _LeftError:
            self._apply(entry, "left")
        except Exception as error:  # of any kind: the page goes on
            # A new error is told: this one holds frames, and they hold tensors.
            told: MAEError
            if isinstance(error, MAEError):
                _logger.warning("could not get %s: %s", name, error)
                # Visitors need not know where the host keeps its files.
                told = type(error)(_FOLDERS.sub("", str(error)), code=error.code)
            else:
                _logger.exception("could not get %s", name)
                told = CheckpointError(f"{name} could not be read; the server's log says why")
            self._apply(entry, "error", error=told)

    def _fetch(self, entry: _Entry) -> None:
        def progress(done: int, total: int | None) -> None:
            self._check_size(entry, total or done)
            with self._lock:
                if entry.is_left:
                    raise _LeftError
                self._drop_left()
                others_wait = any(o.offer.state == "waiting" for o in self._entries.values())
                if entry.is_slow(done) and others_wait:
                    raise DownloadError(
                        f"{entry.offer.name} comes too slowly, and others are waiting; what has "
                        "come is kept, so try again later"
                    )
                known = entry.offer
                self._apply(
                    entry, "bytes", done=done, total=total or known.total,
                    exact=known.exact or total is not None,
                )  # fmt: skip

        self._drop_left()
        if self._apply(entry, "turn"):
            entry.pace = None
            # Only models given at the start may be read with the host's account.
            locate(entry.source, fetch=self._may_fetch, progress=progress, account=entry.wanted)
            self._apply(entry, "complete")

    def _read(self, entry: _Entry) -> None:
        self._make_room(entry, entry.size)
        model = self._open(entry.source)
        with self._lock:
            self._make_room(entry, model.bytes)
            if self._apply(entry, "read", norm_pix=model.config.norm_pix):
                entry.model, entry.used = model, next(self._uses)

    def _make_room(self, entry: _Entry, size: int) -> None:
        """Drop the models used least recently; requests that run one keep it until they end."""
        self._check_size(entry, size)
        with self._lock:
            kept = [other for other in self._entries.values() if other.model and not other.wanted]
            kept.sort(key=lambda other: other.used)
            size = 0 if entry.wanted else size
            while kept and size + sum(e.model.bytes for e in kept if e.model) > self._max_bytes:
                oldest = kept.pop(0)
                oldest.model = None
                self._apply(oldest, "evicted")

    def _drop_left(self) -> None:
        """Drop models from the line that no request asks for."""
        for entry in self._entries.values():
            if entry.offer.state == "waiting" and entry.is_left:
                self._apply(entry, "left")

    def _check_size(self, entry: _Entry, size: int) -> None:
        if size > self._max_bytes and not entry.wanted:
            raise CheckpointError(
                f"{entry.offer.name} takes {size / 10**9:.2g} GB, and this page keeps models of at "
                f"most {self._max_bytes / 10**9:.2g} GB in memory; choose a smaller one, or start "
                "the page with another --memory-gb"
            )


def licence_of(entry: WeightsEntry | None) -> str | None:
    """Short name of a licence; None for bundled weights, and if it is not known."""
    if entry is None or entry.bundled:
        return None
    return entry.licence.partition(",")[0]
