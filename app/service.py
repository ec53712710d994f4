"""The demo without a page: models, limits, a line and a cache behind one call.

`ReconstructionService` takes picture files and plain values that nobody has checked yet, and gives
pictures and facts or a `MAEError`. It never imports Gradio.

A request's way: its values are checked; equal ones are answered from the cache; the visitor's rate
is counted; it waits for its turn in the scheduler's line; a worker reads and decodes its picture
and runs the model, together with others that can share the run. So what is cached or refused
never waits.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from cachetools import LRUCache
from PIL import Image

from app.line import BusyError, Scheduler, Ticket, TookTooLongError
from app.models.served import ModelState, Progress, ServedModel
from app.models.shelf import ModelShelf, NotReadyError, Offer, licence_of
from app.models.zerogpu import NoGPUError
from app.ops.logs import log_request
from app.ops.metrics import Metrics, Outcome
from app.pictures import Pictures, PictureSource, bytes_of
from app.request import Request, check_choice, check_source, parse
from app.settings import AppSettings
from app.web.limits import RateLimiter
from mae_core import MAEError, Reconstruction, Reconstructor, list_weights
from mae_core.errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    ImageError,
    MaskError,
)
from mae_core.reconstruct import MAX_PATCHES
from mae_core.weights import DEFAULT_WEIGHTS, weights_name

_logger = logging.getLogger(__name__)

# Four panels of 224 x 224 pixels take 0.6 MiB, and of 1024 x 1024 pixels 12 MiB.
_ANSWERS_BYTES = 64 * 2**20

# Between looks at the place in the line; and between signs of life while it stays the same, by
# which the page learns that nobody waits any more.
_LOOK_SECONDS, _SIGN_SECONDS = 0.5, 3.0

# Pictures of one batch that are decoded at once; each may take some ten MiB meanwhile.
_DECODERS = 4

# Workers that hang until the process had better be started anew.
_MOST_ABANDONED = 3

# The weight of the latest run in what the next ones are expected to take.
_LATEST_WEIGHT = 0.2


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        panels: The pictures `original`, `masked`, `reconstruction` and `pasted`.
        facts: What was done and how well it went, as plain data for JSON.
        mask: A text of 0 and 1 for each row of patches, 1 = removed.
    """

    panels: dict[str, Image.Image]
    facts: dict[str, Any]
    mask: tuple[str, ...]


@dataclass(frozen=True)
class Waiting:
    """Where a request is by now that has no answer yet.

    Attributes:
        place: 0 = being computed; n = its run is the n-th from now.
        seconds: What that takes by the latest runs; None while nothing has been run.
    """

    place: int
    seconds: float | None


@dataclass(frozen=True)
class _Job:
    """A request in the line: with its model, and the picture as a file, not as bytes."""

    request: Request
    version: Hashable
    served: ServedModel
    source: PictureSource


@dataclass(frozen=True)
class _Computed:
    """What a job gives: the answer, and how many were computed together with it."""

    answer: Answer
    batch: int


class _Pace:
    """How fast requests are computed, by the latest runs."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._seconds: float | None = None
        self._size = 1.0

    def learn(self, seconds: float, size: int) -> None:
        """A run of so many requests took so long."""
        if self._seconds is None:
            self._seconds, self._size = seconds, size
        self._seconds += _LATEST_WEIGHT * (seconds - self._seconds)
        self._size += _LATEST_WEIGHT * (size - self._size)

    def of_runs(self, runs: int) -> float | None:
        """What so many runs take in seconds; None while there was none."""
        return None if self._seconds is None else runs * self._seconds / self._workers

    def of_requests(self, requests: int) -> float | None:
        """Likewise, of requests."""
        return self.of_runs(math.ceil(requests / self._size))


class ReconstructionService:
    """Answers reconstruct requests: from a cache where it can, and in turn where it cannot.

    Models that are being trained answer by their newest checkpoint. Models that could not be
    opened at the start keep their place, and the shelf goes on trying.

    Attributes:
        names: Of the models given at the start, the default first.
        settings: What visitors may ask for, and how much of it.
        metrics: The numbers about what was answered.
    """

    def __init__(
        self,
        models: Mapping[str, Reconstructor | ServedModel],
        shelf: ModelShelf | None = None,
        *,
        names: Sequence[str] | None = None,
        settings: AppSettings | None = None,
    ) -> None:
        """Serve some models.

        Args:
            models: Name -> model.
            shelf: Further models, read when they are asked for.
            names: The models to offer first, the default before all; those in `models` if not
                given.
            settings: How many may wait, how often one may ask, and so on.

        Raises:
            ConfigError: If there is none.
        """
        self.names = tuple(models if names is None else names)
        if not self.names:
            raise ConfigError("there is no model to serve; give weights by name or path")
        self._models = {
            name: ServedModel.fixed(model) if isinstance(model, Reconstructor) else model
            for name, model in models.items()
        }
        self._shelf = shelf
        self.settings = settings = settings or AppSettings()
        self._pictures = Pictures()
        self._answers_lock = threading.Lock()
        # Of a model's version, so that no answer of an older state is given.
        self._answers: LRUCache[tuple[Request, Hashable], Answer] = LRUCache(
            _ANSWERS_BYTES, lambda answer: sum(map(bytes_of, answer.panels.values()))
        )
        self._rate = (
            RateLimiter(settings.rate, max(1, settings.rate / 6)) if settings.rate else None
        )
        self._scheduler: Scheduler[_Job, _Computed] = Scheduler(
            self._run,
            workers=settings.workers,
            max_batch=self._max_batch,
            max_waiting=settings.queue,
            max_per_visitor=settings.per_visitor,
            request_seconds=settings.request_seconds,
        )
        self._pace = _Pace(settings.workers)
        self.metrics = Metrics()
        self._watch()

    @classmethod
    def load(cls, settings: AppSettings) -> "ReconstructionService":
        """Load models and serve them; those that visitors choose are loaded then.

        Weights that cannot be opened, whatever the reason, are fetched and read in the
        background, and the log says why.

        Args:
            settings: Their names or paths, the first the default, and what visitors may choose
                beside them.

        Raises:
            ConfigError: If two weights have the same name, some are of pictures that the page does
                not take, or the device is not there.
        """
        models: dict[str, Reconstructor | ServedModel] = {}
        wanted: dict[str, str] = {}
        for source in settings.weights or _bundled_weights():
            name = weights_name(source)
            if name in models or name in wanted:
                raise ConfigError(f"two weights are called {name!r}; give each a name of its own")
            try:
                models[name] = ServedModel.open(source, device=settings.device)
            except ConfigError:
                # Nothing that waiting mends.
                raise
            except Exception as error:
                unforeseen = not isinstance(error, MAEError)
                _logger.warning(
                    "%s could not be opened at the start: %s", name, error, exc_info=unforeseen
                )
                wanted[name] = source
        shelf = ModelShelf(
            {name: entry for name, entry in list_weights().items() if name not in models},
            lambda source: ServedModel.open(source, device=settings.device),
            fetch=settings.fetch == "published",
            max_bytes=int(settings.memory_gb * 10**9),
            wanted=wanted,
        )
        shelf.start_wanted()
        names = [weights_name(source) for source in settings.weights or _bundled_weights()]
        return cls(models, shelf, names=names, settings=settings)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, the default first."""
        return tuple(offer.name for offer in self.offers())

    @property
    def progress(self) -> dict[str, Progress | None]:
        """How far the training of each model loaded is now; None where it is finished."""
        return {name: model.progress for name, model in self._models.items()}

    def alive(self) -> str | None:
        """None, or why the process should be started anew."""
        abandoned = self._scheduler.abandoned
        return f"{abandoned} workers hang" if abandoned >= _MOST_ABANDONED else None

    def ready(self) -> str | None:
        """None, or why no visitors should be sent here; a default model that failed is tried."""
        if self._scheduler.stopping:
            return "the server is about to end"
        default = self.names[0]
        try:
            self._model(default)
        except MAEError:
            return f"the model {default} is not there: {self.ask_after(default).state}"
        return None

    def stop(self, seconds: float) -> bool:
        """Take no more requests, and wait for those that are there.

        Args:
            seconds: How long at most.

        Returns:
            Whether all were answered, and no worker hangs.
        """
        return self._scheduler.stop(seconds) and not self._scheduler.abandoned

    def offers(self) -> list[Offer]:
        """The models that can be chosen, the default first."""
        others = self._shelf.offers() if self._shelf else []
        first = map(self.offer, self.names)
        return [*first, *(offer for offer in others if offer.name not in self.names)]

    def offer(self, name: object) -> Offer:
        """Where a model is by now.

        Raises:
            ConfigError: If there is no such model.
        """
        known = self._check_model(name)
        if known not in self._models:
            assert self._shelf is not None
            offer = self._shelf.offer(known)
            if known in self.names and offer.error is not None:
                offer = replace(offer, error=_for_visitors(known, offer.error))
            return offer
        licence = licence_of(list_weights().get(known))
        return Offer(known, "ready", licence=licence, norm_pix=self._models[known].config.norm_pix)

    def ask_after(self, name: object) -> Offer:
        """As `offer`, for somebody who waits for the model: its download goes on.

        Raises:
            ConfigError: If there is no such model.
        """
        if self._shelf is not None and isinstance(name, str):
            self._shelf.ask_after(name)
        return self.offer(name)

    def forget_failure(self, name: object) -> None:
        """Have the next request for a model try again what failed."""
        if self._shelf is not None and isinstance(name, str):
            self._shelf.forget_failure(name)

    def nearest_size(self, name: object, image_size: int) -> int:
        """The size in pixels next to another one that a model takes of square pictures.

        Raises:
            ConfigError: If there is no such model.
            MAEError: If the model is not in memory.
        """
        patch = self._model(self._check_model(name)).config.patch_size
        most = min(self.settings.max_image_size // patch, math.isqrt(MAX_PATCHES))
        return min(max(round(image_size / patch), 1), most) * patch

    def reconstruct(
        self, image: object, mask_ratio: object, seed: object, **values: object
    ) -> Answer:
        """As `answer`, for the host itself: without a rate, and waiting in this thread."""
        given = {"image": image, "mask_ratio": mask_ratio, "seed": seed, **values}
        begun = self._begin(given, None)
        return begun if isinstance(begun, Answer) else begun.result().answer

    async def answer(
        self, values: Mapping[str, object], visitor: str
    ) -> AsyncGenerator[Waiting | Answer, None]:
        """Remove patches of a picture and rebuild it.

        Closing the generator gives up the place in the line.

        Args:
            values: Anything, by the names of `app.request`; they are checked here.
            visitor: Who asks, by whatever tells visitors apart.

        Yields:
            The place in the line whenever it has changed, and every few seconds; then the answer.

        Raises:
            ImageError: If the picture is missing or cannot be used.
            FileNotFoundError: If its file is no longer there.
            MaskError: If the ratio, the seed or the strategy is not allowed.
            ConfigError: If the fit, the model, the size or the view is not one of those offered.
            NotReadyError: If the model is on its way.
            CheckpointError: If the model cannot be used.
            DownloadError: If the model cannot be fetched.
            BusyError: If too many wait, or the visitor asks too often.
            TookTooLongError: If it was given up.
        """
        with self._recorded(values.get("model")) as fields:
            begun = await self._begun(values, visitor)
            if isinstance(begun, Answer):
                fields["outcome"], answer = "cached", begun
            else:
                fields["place"] = begun.place
                try:
                    told, when = None, 0.0
                    while not await begun.wait(_LOOK_SECONDS):
                        place, now = begun.place, time.monotonic()
                        if place != told or now - when >= _SIGN_SECONDS:
                            told, when = place, now
                            yield Waiting(place, self._pace.of_runs(place + 1))
                    computed = begun.result()
                finally:
                    begun.cancel()
                fields["batch"], answer = computed.batch, computed.answer
        yield answer

    async def _begun(
        self, values: Mapping[str, object], visitor: str
    ) -> Answer | Ticket[_Computed]:
        """As `_begin`, in a thread, as files are looked at; who leaves meanwhile keeps no place."""
        begun = asyncio.ensure_future(asyncio.to_thread(self._begin, values, visitor))
        try:
            return await asyncio.shield(begun)
        except asyncio.CancelledError:
            begun.add_done_callback(_leave)
            raise

    def _begin(
        self, values: Mapping[str, object], visitor: str | None
    ) -> Answer | Ticket[_Computed]:
        """The answer, if it is in the cache; otherwise a ticket for it."""
        source, model = check_source(values.get("image")), values.get("model")
        name = self.names[0] if model is None else self._check_model(model)
        request = parse(
            values, name, self.settings.max_image_size, lambda: self._pictures.digest(source)
        )
        # Only for a request that is right in all else is a model fetched.
        served = self._model(name)
        version = served.version
        with self._answers_lock:
            answer = self._answers.get((request, version))
        if answer is not None:
            return answer
        return self._submit(_Job(request, version, served, source), visitor)

    def _submit(self, job: _Job, visitor: str | None) -> Ticket[_Computed]:
        wait = self._rate.take(visitor) if self._rate and visitor is not None else 0.0
        if wait:
            raise BusyError(self._scheduler.waiting, "rate", wait)
        try:
            return self._scheduler.submit(
                job,
                key=(job.request, job.version),
                batch_key=(job.served, job.served.batch_key(job.request)),
                visitor=visitor or "",
            )
        except BusyError as error:
            if error.reason in ("full", "visitor"):
                seconds = self._pace.of_requests(error.waiting)
                raise BusyError(error.waiting, error.reason, seconds) from None
            raise

    def _run(self, batch_key: Hashable, jobs: Sequence[_Job]) -> list[_Computed | Exception]:
        """What a worker does with a batch; each job fails for itself."""
        began = time.monotonic()
        pictures: dict[int, Image.Image] = {}
        outcomes: dict[int, _Computed | Exception] = {}
        for i, decoded in enumerate(self._decoded(jobs)):
            if isinstance(decoded, Exception):
                outcomes[i] = decoded
            else:
                pictures[i] = decoded
        if pictures:
            results, state = jobs[0].served.run(
                [jobs[i].request.of(picture) for i, picture in pictures.items()]
            )
            for i, result in zip(pictures, results, strict=True):
                outcomes[i] = (
                    result
                    if isinstance(result, Exception)
                    else _Computed(self._keep(jobs[i].request, result, state), len(pictures))
                )
            self.metrics.observe_batch(len(pictures))
            self._pace.learn(time.monotonic() - began, len(pictures))
        return [outcomes[i] for i in range(len(jobs))]

    def _decoded(self, jobs: Sequence[_Job]) -> list[Image.Image | Exception]:
        """The picture of each job, those of several jobs decoded once."""

        def decode(job: _Job) -> Image.Image | Exception:
            try:
                value_range = job.served.config.value_range or "auto"
                return self._pictures.decoded(job.source, job.request.picture, value_range)
            except Exception as error:  # whatever it is, it is this job's alone
                return error

        distinct = {job.request.picture: job for job in jobs}
        if len(distinct) == 1:
            return [decode(jobs[0])] * len(jobs)
        with ThreadPoolExecutor(_DECODERS) as pool:
            decoded = dict(zip(distinct, pool.map(decode, distinct.values()), strict=True))
        return [decoded[job.request.picture] for job in jobs]

    def _keep(self, request: Request, result: Reconstruction, state: ModelState) -> Answer:
        licence = self.offer(request.model).licence
        facts = state.facts(result) | ({"licence": licence} if licence else {})
        mask = tuple("".join("01"[int(cell)] for cell in row) for row in result.removed)
        answer = Answer(result.panels(), facts, mask)
        # What only want of memory has put on the CPU is tried again.
        if "notice" not in facts:
            # An answer above the bound is a ValueError, and is not kept.
            with self._answers_lock, suppress(ValueError):
                self._answers[request, state.version] = answer
        return answer

    def _max_batch(self, batch_key: Hashable) -> int:
        served: ServedModel = batch_key[0]  # type: ignore[index]
        return self.settings.max_batch or served.max_batch

    @contextmanager
    def _recorded(self, model: object) -> Iterator[dict[str, Any]]:
        """Count and log a request when it ends, unless whoever asked has left."""
        began = time.monotonic()
        name = self.names[0] if model is None else model
        # What visitors type is nobody's business.
        fields: dict[str, Any]
        fields = {"outcome": "computed", "model": name if name in self.names else "other"}
        try:
            yield fields
        except Exception as error:
            fields["outcome"] = _outcome_of(error)
            raise
        except BaseException:
            fields["outcome"] = None
            raise
        finally:
            outcome, seconds = fields.pop("outcome"), time.monotonic() - began
            if outcome is not None:
                self.metrics.count(outcome, seconds)
                log_request(outcome, seconds, **fields)

    def _watch(self) -> None:
        watch, scheduler = self.metrics.watch, self._scheduler
        watch("mae_queue_waiting", "Requests in line.", lambda: scheduler.waiting)
        watch("mae_queue_running", "Requests being computed.", lambda: scheduler.running)
        watch(
            "mae_workers_abandoned", "Workers given up, still at it.", lambda: scheduler.abandoned
        )
        watch("mae_answers_bytes", "Answers kept in memory.", lambda: self._answers.currsize)
        watch("mae_pictures_bytes", "Pictures kept in memory.", lambda: self._pictures.bytes)

    def _model(self, name: str) -> ServedModel:
        if name in self._models:
            return self._models[name]
        assert self._shelf is not None
        try:
            return self._shelf.get(name)
        except (CheckpointError, DownloadError) as error:
            if name not in self.names:
                raise
            raise _for_visitors(name, error) from error

    def _check_model(self, value: object) -> str:
        known = isinstance(value, str) and (
            value in self.names or (self._shelf is not None and self._shelf.knows(value))
        )
        return str(value) if known else check_choice("model", value, self.models)


def _leave(begun: "asyncio.Future[Answer | Ticket[_Computed]]") -> None:
    """Give up the place in the line, if there is one."""
    if not begun.cancelled() and begun.exception() is None:
        result = begun.result()
        if isinstance(result, Ticket):
            result.cancel()


def _for_visitors(name: str, error: MAEError) -> MAEError:
    """Why a model given at the start cannot be had; what the host has to mend is in the log."""
    why = "could not be fetched" if isinstance(error, DownloadError) else "are missing or damaged"
    return type(error)(
        f"{name} cannot be used now, as its weights {why}; choose another model, or try again in "
        "a minute"
    )


def _outcome_of(error: Exception) -> Outcome:
    outcomes: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Outcome], ...] = (
        ((BusyError, NoGPUError), "busy"),
        (TookTooLongError, "timeout"),
        (NotReadyError, "waiting"),
        ((CheckpointError, DownloadError), "failed"),
        ((ImageError, MaskError, ConfigError, FileNotFoundError), "refused"),
    )
    return next((outcome for kind, outcome in outcomes if isinstance(error, kind)), "failed")


def _bundled_weights() -> list[str]:
    names = (name for name, entry in list_weights().items() if entry.bundled)
    return [DEFAULT_WEIGHTS, *(name for name in names if name != DEFAULT_WEIGHTS)]
