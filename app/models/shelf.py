"""Models that are read when somebody asks for them, and fetched first if need be.

Nothing is fetched or read on a request's path: a request for a model that is not in memory
starts what it needs in a thread of its own and is told how far that is.
"""

import logging
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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

State = Literal["ready", "here", "absent", "waiting", "fetching", "reading", "failed"]


@dataclass(frozen=True)
class Offer:
    """A model that can be chosen, and where it is by now.

    Attributes:
        name: What it is called.
        state: In memory, on this machine's disk, not here; waiting to be fetched, being fetched,
            being read or waiting to be; or it could not be.
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


class _Pace:
    """Whether a download is too slow for others to wait for it."""

    def __init__(self) -> None:
        self._begun: tuple[float, int] | None = None

    def is_slow(self, done: int) -> bool:
        """Whether too little has come in the `PACE_SECONDS` that are over with this call."""
        now = time.monotonic()
        # What was here before the first call is no speed.
        since, before = self._begun or (now, done)
        if now - since < PACE_SECONDS:
            self._begun = since, before
            return False
        self._begun = now, done
        return done - before < SLOWEST_BYTES


@dataclass(frozen=True)
class _Failure:
    """Why a model could not be had, and when that was."""

    error: MAEError
    time: float


class _Line:
    """Does one job after the other in a thread that is there while there are any."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, job: Callable[[], None]) -> None:
        """Do a job, which must not raise, after those that wait."""
        with self._lock:
            self._jobs.append(job)
            if self._thread is None:
                # A download that nobody waits for any more must not keep the program running.
                thread = threading.Thread(target=self._work, daemon=True)
                # Where it cannot be started, the next job tries again.
                thread.start()
                self._thread = thread

    def join(self) -> None:
        """Wait until there is nothing to do."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
            job()


class ModelShelf:
    """The models that are not read at the start. Safe to share between threads.

    One model is fetched and one is read at a time. A download that nobody asks after any more
    ends, as does a slow one that others wait for, and what has come is kept for the next who
    wants it. Of those in memory the ones used last are kept, up to a bound; while one is read it
    takes about twice its size. What was given at the start is under no bound, and stays.
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
            registry: Models by name; those that cannot draw are left out.
            open_model: Reads a model that is on disk, by name or, of those wanted, by source.
            fetch: Whether what visitors choose is fetched.
            max_bytes: Of the models kept in memory, all together.
            wanted: Name -> source of models that were given at the start and could not be opened
                then; see `start_wanted`.
            offline: Says whether the network is forbidden.
            find: Says where a model is on disk, as `find` does.
            locate: Fetches a model, as `locate` does.
        """
        self._wanted = dict(wanted or {})
        self._registry = {name: e for name, e in registry.items() if e.kind == "autoencoder"}
        self._drawless = registry.keys() - self._registry.keys() - self._wanted.keys()
        self._fetching_allowed, self._offline = fetch, offline
        self._open, self._find, self._locate = open_model, find, locate
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._downloads, self._readings = _Line(), _Line()
        self._ready: OrderedDict[str, ServedModel] = OrderedDict()
        self._pending: dict[str, Offer] = {}
        # When somebody asked last for each model that is pending.
        self._asked: dict[str, float] = {}
        self._failed: dict[str, _Failure] = {}

    def start_wanted(self) -> None:
        """Fetch and read, behind everybody's back, the models that were given at the start.

        A failure is kept; a request that comes `RETRY_SECONDS` later, or later still, has it tried
        again.
        """
        for name in self._wanted:
            self._begin(name)

    def offers(self) -> list[Offer]:
        """What can be chosen: what was given, then what is here, then what would be fetched."""
        names = dict.fromkeys([*self._wanted, *self._registry])
        offers = [offer for offer in map(self.offer, names) if self._is_offered(offer)]
        return sorted(offers, key=self._rank)

    def offer(self, name: str) -> Offer:
        """Where a model is by now, whether it is offered or not."""
        entry = self._registry.get(name)
        offer = Offer(name, "absent")
        if entry is not None:
            offer = replace(
                offer, total=entry.expected_bytes, exact=entry.bytes is not None,
                licence=licence_of(entry),
                norm_pix=entry.target == "norm_pix",
            )  # fmt: skip
        with self._lock:
            if name in self._ready:
                norm_pix = self._ready[name].config.norm_pix
                return replace(offer, state="ready", norm_pix=norm_pix)
            if name in self._pending:
                return self._pending[name]
            if name in self._failed:
                return replace(offer, state="failed", error=self._failed[name].error)
        return replace(offer, state="here") if self._is_here(name) else offer

    def ask_after(self, name: str) -> None:
        """Have a download go on, as somebody waits for the model."""
        with self._lock:
            if name in self._pending:
                self._note_asking(name)

    def knows(self, name: str) -> bool:
        """Whether a name is that of a model at all; another one is never looked for anywhere."""
        return any(name in names for names in (self._wanted, self._registry, self._drawless))

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
        with self._lock:
            if name in self._ready:
                self._ready.move_to_end(name)
                return self._ready[name]
            self._raise_failure(name)
        raise NotReadyError(self._begin(name))

    def forget_failure(self, name: str) -> None:
        """Have the next call of `get` try again what was not given at the start."""
        with self._lock:
            if name not in self._wanted:
                self._failed.pop(name, None)

    def join(self) -> None:
        """Wait until nothing is fetched or read any more."""
        self._downloads.join()
        self._readings.join()

    @property
    def _may_fetch(self) -> bool:
        return self._fetching_allowed and not self._offline()

    def _is_offered(self, offer: Offer) -> bool:
        return self._may_fetch or offer.name in self._wanted or offer.state != "absent"

    def _rank(self, offer: Offer) -> int:
        return 0 if offer.name in self._wanted else 1 if offer.state in ("ready", "here") else 2

    def _is_here(self, name: str) -> bool:
        try:
            return self._find(self._source(name)) is not None
        except CheckpointError:
            return False

    def _source(self, name: str) -> str:
        return self._wanted.get(name, name)

    def _raise_failure(self, name: str) -> None:
        """Tell why a model could not be had; of those given at the start, as long as that holds."""
        failure = self._failed.get(name)
        if failure is None:
            return
        holds = name in self._wanted and time.monotonic() - failure.time < RETRY_SECONDS
        if not holds:
            del self._failed[name]
        if holds or name not in self._wanted:
            raise failure.error

    def _begin(self, name: str) -> Offer:
        """Start what a model needs, if that is allowed and has not begun; says how far it is."""
        offer = self.offer(name)
        entry = self._registry.get(name)
        self._check_drawing(name)
        if entry is not None:
            self._check_size(name, _BYTES_PER_PARAMETER * entry.parameters)
        # What has just failed may not be here either.
        absent = offer.state not in ("ready", "here")
        if absent and name not in self._wanted:
            self._check_fetching(name)
        with self._lock:
            if name in self._pending:
                self._note_asking(name)
                return self._pending[name]
            if name in self._ready:
                # Another request was faster; who asks again gets it.
                return replace(offer, state="reading")
            if len(self._pending) > MAX_WAITING and name not in self._wanted:
                raise DownloadError(
                    f"{len(self._pending)} models are being fetched or read already; choose one "
                    "that is here, or try again later"
                )
            waiting: State = "waiting" if absent else "reading"
            self._pending[name] = begun = replace(offer, state=waiting, error=None)
            self._note_asking(name)
        if absent:
            self._downloads.add(lambda: self._attempt(name, self._fetch))
        else:
            self._readings.add(lambda: self._attempt(name, self._read))
        # As it was begun: by now it may be over.
        return begun

    def _note_asking(self, name: str) -> None:
        self._asked[name] = time.monotonic()

    def _end(self, name: str) -> None:
        del self._pending[name], self._asked[name]

    def _attempt(self, name: str, job: Callable[[str], None]) -> None:
        """Do a job; where it fails, keep why."""
        failure: MAEError | None
        try:
            job(name)
        except _LeftError:
            _logger.info("%s is not fetched any further: nobody waits for it", name)
            failure = None
        except MAEError as error:
            _logger.warning("could not get %s: %s", name, error)
            # Where the host keeps its files is nobody's business.
            failure = type(error)(_FOLDERS.sub("", str(error)))
        except Exception:  # whatever it is, the page goes on, and this model can be tried again
            _logger.exception("could not get %s", name)
            failure = CheckpointError(f"{name} could not be read; the server's log says why")
        else:
            return
        with self._lock:
            self._end(name)
            if failure is not None:
                self._failed[name] = _Failure(failure, time.monotonic())

    def _fetch(self, name: str) -> None:
        pace = _Pace()

        def progress(done: int, total: int | None) -> None:
            self._check_size(name, total or done)
            with self._lock:
                self._check_waited_for(name)
                self._check_pace(name, pace.is_slow(done))
                known = self._pending[name]
                self._pending[name] = replace(
                    known, state="fetching", done=done, total=total or known.total,
                    exact=known.exact or total is not None,
                )  # fmt: skip

        with self._lock:
            self._check_waited_for(name)
        # What only the host may read is not for visitors; what was given at the start, the host
        # has given.
        self._locate(
            self._source(name), fetch=self._may_fetch, progress=progress,
            account=name in self._wanted,
        )  # fmt: skip
        with self._lock:
            self._pending[name] = replace(self._pending[name], state="reading")
        self._readings.add(lambda: self._attempt(name, self._read))

    def _read(self, name: str) -> None:
        entry = self._registry.get(name)
        with self._lock:
            self._make_room(_BYTES_PER_PARAMETER * entry.parameters if entry else 0)
        model = self._open(self._source(name))
        self._check_size(name, model.bytes)
        with self._lock:
            self._make_room(model.bytes)
            self._ready[name] = model
            self._end(name)

    def _make_room(self, wanted: int) -> None:
        """Let models go that were not used for longest; one that answers a request ends that."""
        free = {name: m.bytes for name, m in self._ready.items() if name not in self._wanted}
        while free and wanted + sum(free.values()) > self._max_bytes:
            name = next(iter(free))
            del free[name], self._ready[name]
            _logger.info("%s leaves the memory", name)

    def _check_waited_for(self, name: str) -> None:
        left = time.monotonic() - self._asked[name] > PATIENCE_SECONDS
        if left and name not in self._wanted:
            raise _LeftError

    def _check_pace(self, name: str, slow: bool) -> None:
        if slow and any(offer.state == "waiting" for offer in self._pending.values()):
            raise DownloadError(
                f"{name} comes too slowly, and others are waiting; what has come is kept, so try "
                "again later"
            )

    def _check_drawing(self, name: str) -> None:
        if name in self._drawless:
            raise CheckpointError(
                f"{name} has no decoder, so there is nothing to draw with; choose a model that "
                "the page lists"
            )

    def _check_fetching(self, name: str) -> None:
        if not self._may_fetch:
            raise CheckpointError(
                f"{name} is not on this machine, and this page fetches nothing; whoever runs it "
                f"can fetch it by `mae fetch {name}`"
            )

    def _check_size(self, name: str, size: int) -> None:
        if size > self._max_bytes and name not in self._wanted:
            raise CheckpointError(
                f"{name} takes {size / 10**9:.2g} GB, and this page keeps models of at most "
                f"{self._max_bytes / 10**9:.2g} GB in memory; choose a smaller one, or start the "
                "page with another --memory-gb"
            )


def licence_of(entry: WeightsEntry | None) -> str | None:
    """A licence in a word or two; None for weights that are ours, and where it is not known."""
    if entry is None or entry.bundled:
        return None
    return entry.licence.partition(",")[0]
