"""Models that are read when somebody asks for them, and fetched first if need be.

Nothing is fetched or read on a request's path: a request for a model that is not in memory starts
that in another thread and is told how far it is. Each model has one entry, whose state changes only
as `_MOVES` says.
"""

import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from app.models.served import ServedModel
from mae_core import MAEError
from mae_core.errors import CheckpointError, DownloadError
from mae_core.weights import WeightsEntry, find, is_offline, locate

_logger = logging.getLogger(__name__)

# Models that wait while another is fetched or read; further ones are refused.
MAX_WAITING = 4

# A download that nobody has asked after for so long ends. Browsers let hidden pages ask once a
# minute.
PATIENCE_SECONDS = 120.0

# A download that brings fewer bytes than this in so many seconds ends if another one waits.
SLOWEST_BYTES, PACE_SECONDS = 60 * 32 * 1024, 60.0

# What failed of the models given at the start is not tried again for so long.
RETRY_SECONDS = 30.0

# What a model takes in float32, while it is read at the latest.
_BYTES_PER_PARAMETER = 4

# The folders in front of a file's name; addresses have none that begin like this.
_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s'\"/]+/)+")

State = Literal["absent", "here", "waiting", "fetching", "reading", "ready", "failed"]

# Which state may follow which, and why.
_MOVES: dict[tuple[State, State], str] = {
    ("absent", "here"): "its files came to this machine by other ways",
    ("here", "absent"): "its files were deleted",
    ("absent", "waiting"): "it was asked for",
    ("here", "reading"): "it was asked for",
    ("waiting", "fetching"): "its first bytes came",
    ("fetching", "fetching"): "more bytes came",
    ("waiting", "reading"): "its files were here by its turn",
    ("fetching", "reading"): "its files are complete",
    ("reading", "ready"): "it was read",
    ("waiting", "absent"): "nobody waits for it",
    ("fetching", "absent"): "nobody waits for it",
    ("waiting", "failed"): "there is an error, or it is too large",
    ("fetching", "failed"): "there is an error, or it is too large, or too slow while others wait",
    ("reading", "failed"): "there is an error, or it is too large",
    ("failed", "absent"): "the error was told, or its time is over",
    ("ready", "here"): "others need the memory",
}


@dataclass(frozen=True)
class Offer:
    """A model that can be chosen, and where it is by now.

    Attributes:
        name: What it is called.
        state: Not on this machine, on its disk, waiting to be fetched, being fetched, being read
            or waiting to be, in memory, or it could not be had.
        total: Bytes of its files, or None if nobody knows.
        done: Bytes of them that are here, while it is fetched.
        exact: Whether `total` was measured.
        licence: Under which it may be used, where that is known.
        norm_pix: Whether it predicts normalised pixels; None if nobody knows yet.
        error: Why it failed.
    """

    name: str
    state: State
    total: int | None = None
    done: int = 0
    exact: bool = False
    licence: str | None = None
    norm_pix: bool | None = None
    error: MAEError | None = None

    @property
    def pending(self) -> bool:
        """Whether it is on its way."""
        return self.state in ("waiting", "fetching", "reading")


class NotReadyError(MAEError):
    """A model was asked for that is still on its way.

    Attributes:
        offer: How far it is.
    """

    def __init__(self, offer: Offer) -> None:
        """Say how far a model is."""
        super().__init__(f"{offer.name} is not here yet; ask again in a few seconds")
        self.offer = offer


class _LeftError(Exception):
    """Nobody waits for a model any more."""


@dataclass(eq=False)
class _Entry:
    """All that is known of a model.

    Attributes:
        source: Its name; of one given at the start, what was given.
        weights: Of the registry, if it is there.
        wanted: Whether it was given at the start.
        offer: Its state, and what visitors are told.
        asked: When somebody asked for it last, while it is on its way.
        failed: When it failed.
        pace: When the time began in which its download's bytes are counted, and how many were here.
        used: Number of its latest use.
        model: Once it is read.
    """

    source: str
    weights: WeightsEntry | None
    wanted: bool
    offer: Offer
    asked: float = 0.0
    failed: float = 0.0
    pace: tuple[float, int] | None = None
    used: int = 0
    model: ServedModel | None = None

    @property
    def can_draw(self) -> bool:
        return self.wanted or self.weights is None or self.weights.kind == "autoencoder"

    def move(self, state: State, **changes: Any) -> Offer:
        """Change the state; what is not given of `done` and `error` is over."""
        why = _MOVES[self.offer.state, state]
        if state != self.offer.state:
            _logger.debug("%s: %s, %s", self.offer.name, state, why)
        self.offer = replace(self.offer, state=state, **{"done": 0, "error": None, **changes})
        return self.offer

    def is_slow(self, done: int) -> bool:
        """Whether too few bytes came in the `PACE_SECONDS` that are over with this call."""
        now = time.monotonic()
        # Bytes that were here before the first call count for nothing.
        since, before = self.pace or (now, done)
        over = now - since >= PACE_SECONDS
        self.pace = (now, done) if over else (since, before)
        return over and done - before < SLOWEST_BYTES


class ModelShelf:
    """The models that are not read at the start. Safe to share between threads.

    One model is fetched and one is read at a time. A download that nobody asks after any more
    ends, as does a slow one while others wait; its bytes are kept for the next attempt. In memory
    the models used last are kept, up to a bound; while one is read it takes about twice its size.
    Models given at the start are under no bound, and stay.
    """

    def __init__(
        self,
        registry: Mapping[str, WeightsEntry],
        open_model: Callable[[str], ServedModel],
        *,
        fetch: bool = True,
        max_bytes: int = 4 * 10**9,
        wanted: Mapping[str, str] | None = None,
        offline: Callable[[], bool] = is_offline,
        find: Callable[[str], Path | None] = find,
        locate: Callable[..., Path] = locate,
    ) -> None:
        """Offer some models.

        Args:
            registry: Models by name; those that cannot draw are known, but not offered.
            open_model: Reads a model that is on disk, by name or, of those wanted, by source.
            fetch: Whether models that visitors choose are fetched.
            max_bytes: Of the models kept in memory, all together.
            wanted: Name -> source of models that were given at the start and could not be opened
                then; see `start_wanted`.
            offline: Says whether the network is forbidden.
            find: Says where a model is on disk, as `find` does.
            locate: Fetches a model, as `locate` does.
        """
        wanted = wanted or {}
        self._entries: dict[str, _Entry] = {}
        for name in dict.fromkeys([*wanted, *registry]):
            weights = registry.get(name)
            offer = Offer(name, "absent")
            if weights is not None:
                offer = replace(
                    offer, total=weights.expected_bytes, exact=weights.bytes is not None,
                    licence=licence_of(weights), norm_pix=weights.target == "norm_pix",
                )  # fmt: skip
            self._entries[name] = _Entry(wanted.get(name, name), weights, name in wanted, offer)
        self._fetching_allowed, self._offline = fetch, offline
        self._open, self._find, self._locate = open_model, find, locate
        self._max_bytes = max_bytes
        self._uses = itertools.count(1)
        # Of all entries.
        self._lock = threading.Lock()
        # Python waits for their threads when it ends; `app.__main__` does not.
        self._downloads, self._readings = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def start_wanted(self) -> None:
        """Fetch and read the models that were given at the start.

        A failure is kept; a request that comes `RETRY_SECONDS` later has it tried again.
        """
        for entry in self._entries.values():
            if entry.wanted:
                self._begin(entry)

    def offers(self) -> list[Offer]:
        """What can be chosen: what was given, then what is here, then what would be fetched."""
        ranked = []
        for name, entry in self._entries.items():
            offer = self.offer(name)
            if entry.wanted or (entry.can_draw and (self._may_fetch or offer.state != "absent")):
                here = offer.state in ("ready", "here")
                ranked.append((0 if entry.wanted else 1 if here else 2, offer))
        return [offer for _, offer in sorted(ranked, key=lambda pair: pair[0])]

    def offer(self, name: str) -> Offer:
        """Where a model is by now, whether it is offered or not; `name` is one that it `knows`."""
        entry = self._entries[name]
        at_rest = entry.offer.state in ("absent", "here")
        here: State = "here" if at_rest and self._is_here(entry) else "absent"
        with self._lock:
            if entry.offer.state in ("absent", "here") and entry.offer.state != here:
                entry.move(here)
            return entry.offer

    def ask_after(self, name: str) -> None:
        """Have a download go on, as somebody waits for the model."""
        if name in self._entries:
            self._entries[name].asked = time.monotonic()

    def knows(self, name: str) -> bool:
        """Whether a name is that of a model at all; another one is never looked for anywhere."""
        return name in self._entries

    def get(self, name: str) -> ServedModel:
        """A model for a request; what is missing for it is begun.

        Args:
            name: One that it `knows`.

        Raises:
            NotReadyError: If it is on its way.
            DownloadError: If it could not be fetched, after which the next call tries again, or
                of a model given at the start one after `RETRY_SECONDS`; or if too many others are
                waiting.
            CheckpointError: If it cannot be read, likewise; or if it has no decoder, is too
                large, or may not be fetched.
        """
        entry = self._entries[name]
        with self._lock:
            if entry.model is not None:
                entry.used = next(self._uses)
                return entry.model
            if entry.offer.error is not None:
                error = entry.offer.error
                holds = entry.wanted and time.monotonic() - entry.failed < RETRY_SECONDS
                if not holds:
                    entry.move("absent")
                if holds or not entry.wanted:
                    raise error
        raise NotReadyError(self._begin(entry))

    def forget_failure(self, name: str) -> None:
        """Have the next call of `get` try again what was not given at the start."""
        entry = self._entries.get(name)
        with self._lock:
            if entry is not None and entry.offer.state == "failed" and not entry.wanted:
                entry.move("absent")

    @property
    def busy(self) -> bool:
        """Whether something is fetched or read."""
        return any(entry.offer.pending for entry in self._entries.values())

    def join(self) -> None:
        """Wait until nothing is fetched or read any more."""
        for pool in (self._downloads, self._readings):
            pool.submit(int).result()

    @property
    def _may_fetch(self) -> bool:
        return self._fetching_allowed and not self._offline()

    def _is_here(self, entry: _Entry) -> bool:
        try:
            return self._find(entry.source) is not None
        except CheckpointError:
            return False

    def _begin(self, entry: _Entry) -> Offer:
        """Start what a model needs, if that is allowed and has not begun; says how far it is."""
        name, state = entry.offer.name, self.offer(entry.offer.name).state
        if not entry.can_draw:
            raise CheckpointError(
                f"{name} has no decoder, so there is nothing to draw with; choose a model that "
                "the page lists"
            )
        self._check_size(entry, _registered_bytes(entry))
        if state == "absent" and not (entry.wanted or self._may_fetch):
            raise CheckpointError(
                f"{name} is not on this machine, and this page fetches nothing; whoever runs it "
                f"can fetch it by `mae fetch {name}`"
            )
        with self._lock:
            entry.asked = time.monotonic()
            if entry.offer.pending:
                return entry.offer
            if entry.offer.state not in ("absent", "here"):
                # Another request was faster; the next one gets the model or the error.
                return replace(entry.offer, state="reading")
            pending = sum(other.offer.pending for other in self._entries.values())
            if pending > MAX_WAITING and not entry.wanted:
                raise DownloadError(
                    f"{pending} models are being fetched or read already; choose one that is "
                    "here, or try again later"
                )
            absent = entry.offer.state == "absent"
            begun = entry.move("waiting" if absent else "reading")
        if absent:
            self._downloads.submit(self._attempt, entry, self._fetch)
        else:
            self._readings.submit(self._attempt, entry, self._read)
        # As it was begun: by now it may be over.
        return begun

    def _attempt(self, entry: _Entry, job: Callable[[_Entry], None]) -> None:
        """Do a job; where it fails, keep why."""
        name = entry.offer.name
        try:
            job(entry)
        except _LeftError:
            _logger.info("%s is not fetched any further: nobody waits for it", name)
            with self._lock:
                entry.move("absent")
        except MAEError as error:
            _logger.warning("could not get %s: %s", name, error)
            # Visitors need not know where the host keeps its files.
            self._fail(entry, type(error)(_FOLDERS.sub("", str(error))))
        except Exception:  # whatever it is, the page goes on, and this model can be tried again
            _logger.exception("could not get %s", name)
            told = CheckpointError(f"{name} could not be read; the server's log says why")
            self._fail(entry, told)

    def _fail(self, entry: _Entry, error: MAEError) -> None:
        with self._lock:
            entry.failed = time.monotonic()
            entry.move("failed", error=error)

    def _fetch(self, entry: _Entry) -> None:
        def progress(done: int, total: int | None) -> None:
            self._check_size(entry, total or done)
            with self._lock:
                self._check_waited_for(entry)
                others_wait = any(o.offer.state == "waiting" for o in self._entries.values())
                if entry.is_slow(done) and others_wait:
                    raise DownloadError(
                        f"{entry.offer.name} comes too slowly, and others are waiting; what has "
                        "come is kept, so try again later"
                    )
                known = entry.offer
                entry.move(
                    "fetching", done=done, total=total or known.total,
                    exact=known.exact or total is not None,
                )  # fmt: skip

        entry.pace = None
        with self._lock:
            self._check_waited_for(entry)
        # An account's own files are for models that its owner gave, not for visitors' choices.
        self._locate(
            entry.source, fetch=self._may_fetch, progress=progress, account=entry.wanted
        )  # fmt: skip
        with self._lock:
            entry.move("reading")
        self._readings.submit(self._attempt, entry, self._read)

    def _read(self, entry: _Entry) -> None:
        with self._lock:
            self._make_room(_registered_bytes(entry))
        model = self._open(entry.source)
        self._check_size(entry, model.bytes)
        with self._lock:
            self._make_room(model.bytes)
            entry.model, entry.used = model, next(self._uses)
            entry.move("ready", norm_pix=model.config.norm_pix)

    def _make_room(self, wanted: int) -> None:
        """Let models go that were not used for longest; one that answers a request ends that."""
        kept = [entry for entry in self._entries.values() if entry.model and not entry.wanted]
        kept.sort(key=lambda entry: entry.used)
        while kept and wanted + sum(e.model.bytes for e in kept if e.model) > self._max_bytes:
            oldest = kept.pop(0)
            oldest.model = None
            oldest.move("here")
            _logger.info("%s leaves the memory", oldest.offer.name)

    def _check_waited_for(self, entry: _Entry) -> None:
        if time.monotonic() - entry.asked > PATIENCE_SECONDS and not entry.wanted:
            raise _LeftError

    def _check_size(self, entry: _Entry, size: int) -> None:
        if size > self._max_bytes and not entry.wanted:
            raise CheckpointError(
                f"{entry.offer.name} takes {size / 10**9:.2g} GB, and this page keeps models of at "
                f"most {self._max_bytes / 10**9:.2g} GB in memory; choose a smaller one, or start "
                "the page with another --memory-gb"
            )


def _registered_bytes(entry: _Entry) -> int:
    return _BYTES_PER_PARAMETER * entry.weights.parameters if entry.weights else 0


def licence_of(entry: WeightsEntry | None) -> str | None:
    """A licence in a word or two; None for weights that are ours, and where it is not known."""
    if entry is None or entry.bundled:
        return None
    return entry.licence.partition(",")[0]
