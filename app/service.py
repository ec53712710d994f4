"""The demo without a page: models, limits, a line and a cache behind one call.

`ReconstructionService` takes picture files and plain values that nobody has checked yet, and gives
pictures and facts or a `MAEError`. It never imports Gradio.

A request's way: its values are checked; equal ones are answered from the cache; the visitor's rate
is counted; it waits for its turn in the line; a worker reads and decodes its picture and runs the
model, together with others that can share the run. So what is cached or refused never waits.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from cachetools import LRUCache, cachedmethod
from PIL import Image

from app.decoding import DecodersBusyError
from app.line import BusyError, Line, TookTooLongError
from app.models.served import ModelState, Progress, ServedModel
from app.models.shelf import ModelShelf, NotReadyError, Offer, licence_of
from app.models.zerogpu import NoGPUError
from app.ops.logs import log_request
from app.ops.metrics import Metrics, Outcome
from app.pictures import Pictures, PictureSource, bytes_of
from app.request import (
    Mask,
    Request,
    check_choice,
    check_image_size,
    check_patches,
    check_source,
    parse,
)
from app.settings import AppSettings
from app.web.limits import RateLimiter
from mae_core import MAEError, Reconstruction, Reconstructor, list_weights
from mae_core.devices import choose_threads
from mae_core.errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    ImageError,
    MaskError,
)
from mae_core.reconstruct import MAX_PATCHES, ReconstructionRequest, mask_from_drawing, open_fitted
from mae_core.settings import rows_of
from mae_core.weights import DEFAULT_WEIGHTS, weights_name

_logger = logging.getLogger(__name__)

# Four panels of 224 x 224 pixels take 0.6 MiB, and of 1024 x 1024 pixels 12 MiB.
_ANSWERS_BYTES = 32 * 2**20

# A picture of 224 x 224 pixels takes 0.2 MiB, and one of 1024 x 1024 pixels 4 MiB.
_FITTED_BYTES = 16 * 2**20

# Between looks at the place in the line; and between signs of life while it stays the same, by
# which the page learns that nobody waits any more.
_LOOK_SECONDS, _SIGN_SECONDS = 0.5, 3.0

# Pictures of one batch that are decoded at once; each may take some ten MiB meanwhile.
_DECODERS = 4

# Hung runs before the process should be restarted.
_MOST_HUNG = 3

# Of 37 frames, each takes up to 90 MB.
_MOST_FILMS = 2

# Each worker may hold a decoded upload and a run's activations.
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        request: What was asked for, a drawn mask as rows.
        panels: The pictures `original`, `masked`, `reconstruction` and `pasted`.
        facts: What was done and how well it went, as plain data for JSON.
        mask: A text of 0 and 1 for each row of patches, 1 = removed.
    """

    request: Request
    panels: dict[str, Image.Image]
    facts: dict[str, Any]
    mask: tuple[str, ...]


@dataclass(frozen=True)
class Waiting:
    """Where a request is by now that has no answer yet.

    Attributes:
        place: 0 = being computed; n = its run is the n-th from now.
        seconds: What that takes by the latest runs; None while nothing has been run.
        paused: Whether its next run waits until the visitor may ask again, for `seconds`.
    """

    place: int
    seconds: float | None
    paused: bool = False


# A question about a picture that is not answered by panels: in a worker, with the model for itself.
Measure = Callable[[Reconstructor, ReconstructionRequest], Any]


@dataclass(frozen=True)
class Job:
    """A request in the line: with its model, and its pictures as files, not as bytes."""

    request: Request
    version: Hashable
    served: ServedModel
    source: PictureSource
    drawing: PictureSource | None
    measure: Measure | None = None

    @property
    def picture_key(self) -> Hashable:
        """Equal where the model takes the same picture."""
        request = self.request
        return request.picture, request.fit, request.image_size, self.served.config


# An answer with the result that it shows, or what a `Measure` gave; and how many were computed
# together with it.
_Computed = tuple[Any, Reconstruction | None, int]

# Answers of a series that are there or on their way, the oldest first, with their keys in line.
_Pending = deque[tuple["asyncio.Future[_Computed]", Hashable]]


class ReconstructionService:
    """Answers reconstruct requests: from a cache where it can, and in turn where it cannot.

    Models that are being trained answer by their newest checkpoint. Models that could not be
    opened at the start keep their place, and the shelf goes on trying.

    Attributes:
        names: Of the models given at the start, the default first.
        settings: What visitors may ask for, and how much of it.
        metrics: The numbers about what was answered.
        films: To be held while a film is made that is saved as a file.
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
        self._fitted_lock, self._answers_lock = threading.Lock(), threading.Lock()
        self._fitted: LRUCache[Hashable, Image.Image] = LRUCache(_FITTED_BYTES, bytes_of)
        # Of a model's version, so that no answer of an older state is given.
        self._answers: LRUCache[tuple[Request, Hashable], Answer] = LRUCache(
            _ANSWERS_BYTES, lambda answer: sum(map(bytes_of, answer.panels.values()))
        )
        self._rate = (
            RateLimiter(settings.rate, max(1, settings.rate / 6)) if settings.rate else None
        )
        self._line: Line[Job, _Computed] = Line(
            self._run,
            workers=settings.workers or _workers_for([*self._models.values()]),
            max_waiting=settings.queue,
            max_per_visitor=settings.per_visitor,
            seconds=settings.request_seconds,
        )
        self.metrics = Metrics()
        # Films to be saved that are made at the same time; each keeps its frames till the end.
        self.films = asyncio.Semaphore(_MOST_FILMS)
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
        """None, or why the process should be restarted."""
        hung = self._line.abandoned
        return f"{hung} runs hang" if hung >= _MOST_HUNG else None

    @property
    def busy(self) -> bool:
        """Whether a thread is in a model or a download, where nothing can stop it."""
        return bool(
            self._line.running or self._line.abandoned or (self._shelf and self._shelf.busy)
        )

    def ready(self) -> str | None:
        """None, or why no visitors should be sent here; a default model that failed is tried."""
        if self._line.stopping:
            return "the server is about to end"
        default = self.names[0]
        try:
            self._model(default)
        except MAEError:
            return f"the model {default} is not there: {self.ask_after(default).state}"
        return None

    def stop(self, seconds: float) -> bool:
        """Take no more requests, and wait for those that are there; not in their event loop.

        Args:
            seconds: How long at most.

        Returns:
            Whether all were answered.
        """
        return self._line.stop(seconds)

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

    def nearest_size(self, name: object, image_size: object) -> int:
        """The size in pixels next to another one that a model takes of square pictures.

        Raises:
            ConfigError: If there is no such model.
            MAEError: If the model is not in memory.
        """
        size = check_image_size(image_size, self.settings.max_image_size) or 0
        patch = self._model(self._check_model(name)).config.patch_size
        most = min(self.settings.max_image_size // patch, math.isqrt(MAX_PATCHES))
        return min(max(round(size / patch), 1), most) * patch

    def reconstruct(
        self, image: object, mask_ratio: object, seed: object, **values: object
    ) -> Answer:
        """As `answer`, for the host itself: in this thread, without a line and a rate."""
        job = self._prepare({"image": image, "mask_ratio": mask_ratio, "seed": seed, **values})
        answer = self._kept(job)
        if answer is None:
            (outcome,) = self._run([job])
            if isinstance(outcome, Exception):
                raise outcome
            answer = outcome[0]
        assert isinstance(answer, Answer)
        return answer

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
            # In a thread, as files are looked at.
            job = await asyncio.to_thread(self._prepare, values)
            answer = self._kept(job)
            if answer is not None:
                fields["outcome"] = "cached"
            else:
                self._charge(visitor)
                outcome, key = self._submit(job, visitor)
                fields["place"] = self._line.place(key)
                try:
                    async for waiting in self._waiting(outcome, key):
                        yield waiting
                    answer, _, fields["batch"] = outcome.result()
                    answer = _as_asked(answer, job.request)
                finally:
                    outcome.cancel()
        yield answer

    async def prepare(self, values: Mapping[str, object]) -> Job:
        """Check a request of which more than its panels is asked.

        Raises:
            MAEError: As `answer`.
        """
        began = time.monotonic()
        try:
            return await asyncio.to_thread(self._prepare, values)
        except Exception as error:
            self.metrics.count(_outcome_of(error), time.monotonic() - began)
            raise

    async def series(
        self,
        job: Job,
        masks: Sequence[Mask],
        visitor: str,
        *,
        exact: bool = False,
        begun: bool = False,
    ) -> AsyncGenerator[Waiting | tuple[Answer, Reconstruction | None], None]:
        """The answers to one request under several masks, in order, as they come.

        An answer comes with its result, or without where it is from the cache. Each mask is a
        request in line, and one in the visitor's rate even where it is cached; a visitor beyond the
        rate waits between them.

        Args:
            job: From `prepare`.
            masks: In place of the request's own.
            visitor: As for `answer`.
            exact: Whether each result is needed, so that no answer comes from the cache.
            begun: Whether the question has begun before, so that it waits in place of being
                refused where the visitor asks too often.

        Raises:
            MAEError: As `answer`.
        """
        pending: _Pending = deque()
        # As many as may share a run, so that others come in between.
        most = max(1, min(job.served.max_batch, self.settings.per_visitor // 2))
        if job.served.runs_alone(job.request):
            most = 1
        with self._recorded(job.request.model) as fields:
            fields["runs"] = len(masks)
            try:
                for i, mask in enumerate(masks):
                    one = replace(job, request=replace(job.request, mask=mask))
                    async for waiting in self._turn(visitor, first=i == 0 and not begun):
                        yield waiting
                    kept = None if exact else self._kept(one)
                    while not (
                        entry := self._entered(one, kept, visitor, first=i == 0 and not begun)
                    ):
                        yield Waiting(0, None, paused=True)
                        await asyncio.sleep(_LOOK_SECONDS)
                    pending.append(entry)
                    if len(pending) == most:
                        async for step in self._oldest(pending):
                            yield step
                while pending:
                    async for step in self._oldest(pending):
                        yield step
            finally:
                for outcome, _ in pending:
                    outcome.cancel()

    async def _turn(self, visitor: str, *, first: bool) -> AsyncGenerator[Waiting, None]:
        """Take one run from the visitor's rate; only the first of a question is refused.

        The others leave half of what may come at once, for what the visitor asks meanwhile.
        """
        if first:
            self._charge(visitor)
            return
        spare = self.settings.rate / 12
        while wait := self._rate.take(visitor, 1, spare) if self._rate else 0.0:
            yield Waiting(0, wait, paused=True)
            await asyncio.sleep(min(wait, _SIGN_SECONDS))

    def _entered(
        self, job: Job, kept: Answer | None, visitor: str, *, first: bool
    ) -> tuple["asyncio.Future[_Computed]", Hashable] | None:
        """The job in the line; None if there is no place yet for another one of a question."""
        if kept is not None:
            done: asyncio.Future[_Computed] = asyncio.get_running_loop().create_future()
            done.set_result((kept, None, 0))
            return done, None
        try:
            return self._submit(job, visitor)
        except BusyError as error:
            if first or error.reason not in ("visitor", "full"):
                raise
            return None

    async def _oldest(
        self, pending: "_Pending"
    ) -> AsyncGenerator[Waiting | tuple[Answer, Reconstruction | None], None]:
        """Wait for the oldest answer, and take it out."""
        outcome, key = pending[0]
        async for waiting in self._waiting(outcome, key):
            yield waiting
        pending.popleft()
        answer, result, _ = outcome.result()
        yield answer, result

    async def measure(
        self, job: Job, measure: Measure, visitor: str, runs: int = 1, *, begun: bool = False
    ) -> AsyncGenerator[Waiting | Any, None]:
        """What a function says of a request, in a worker; its value is the last item.

        Args:
            job: From `prepare`.
            measure: Takes the model and the request with its decoded picture.
            visitor: As for `answer`.
            runs: How many runs of the model it costs.
            begun: As for `series`.

        Raises:
            MAEError: As `answer`.
        """
        with self._recorded(job.request.model) as fields:
            for i in range(runs):
                async for waiting in self._turn(visitor, first=i == 0 and not begun):
                    yield waiting
            outcome, key = self._submit(replace(job, measure=measure), visitor)
            fields["runs"] = runs
            try:
                async for waiting in self._waiting(outcome, key):
                    yield waiting
                value = outcome.result()[0]
            finally:
                outcome.cancel()
        yield value

    async def _waiting(
        self, outcome: "asyncio.Future[_Computed]", key: Hashable
    ) -> AsyncGenerator[Waiting, None]:
        """Where a job is, until it has an outcome."""
        told, when = None, 0.0
        while not (await asyncio.wait([outcome], timeout=_LOOK_SECONDS))[0]:
            place, now = self._line.place(key), time.monotonic()
            if place != told or now - when >= _SIGN_SECONDS:
                told, when = place, now
                yield Waiting(place, self._line.expected_seconds(place + 1))

    def _prepare(self, values: Mapping[str, object]) -> Job:
        source, model = check_source(values.get("image")), values.get("model")
        name = self.names[0] if model is None else self._check_model(model)
        request = parse(values, name, self.settings.max_image_size, self._pictures.digest)
        # Only for a request that is right in all else is a model fetched.
        served = self._model(name)
        version = served.version
        check_patches(request, served.config.patch_size)
        drawing = check_source(values["mask"]) if request.mask.drawing else None
        return Job(request, version, served, source, drawing)

    def _kept(self, job: Job) -> Answer | None:
        with self._answers_lock:
            answer = self._answers.get((job.request.key, job.version))
        return answer and _as_asked(answer, job.request)

    def _charge(self, visitor: str) -> None:
        wait = self._rate.take(visitor) if self._rate else 0.0
        if wait:
            raise BusyError(self._line.waiting, "rate", wait)

    def _submit(self, job: Job, visitor: str) -> tuple["asyncio.Future[_Computed]", Hashable]:
        """The job in the line, and its key there."""
        key: Hashable = (job.request.key, job.version, job.measure)
        batch_key: Hashable = (job.served, job.served.batch_key(job.request))
        outcome = self._line.submit(
            job,
            key=key,
            batch_key=batch_key if job.measure is None else key,
            visitor=visitor,
            most=self.settings.max_batch or job.served.max_batch,
        )
        return outcome, key

    def _run(self, jobs: Sequence[Job]) -> list[_Computed | Exception]:
        """What a worker does with a batch; each job fails for itself."""
        outcomes: dict[int, _Computed | Exception] = {}
        ready: dict[int, ReconstructionRequest] = {}
        for i, (job, fitted) in enumerate(zip(jobs, self._fitted_of(jobs), strict=True)):
            try:
                if isinstance(fitted, Exception):
                    raise fitted
                ready[i] = self._drawn(job).of(fitted)
            except Exception as error:  # whatever it is, it is this job's alone
                outcomes[i] = error
        if ready and jobs[0].measure is not None:
            (request,) = ready.values()
            return [jobs[0].served.measure(jobs[0].measure, request)]
        if ready:
            results, state = jobs[0].served.run([*ready.values()])
            for i, result in zip(ready, results, strict=True):
                outcomes[i] = (
                    result
                    if isinstance(result, Exception)
                    else (self._keep(jobs[i].request, result, state), result, len(ready))
                )
            self.metrics.observe_batch(len(ready))
        return [outcomes[i] for i in range(len(jobs))]

    def _drawn(self, job: Job) -> Request:
        """The request, a drawn mask as rows."""
        request, config = job.request, job.served.config
        if job.drawing is None:
            return request
        drawing = self._pictures.decoded(job.drawing, request.mask.drawing, drawing=True)
        removed = mask_from_drawing(
            np.asarray(drawing.convert("L")), self._decoded(job).size, config, request.fit,
            request.image_size,
        )  # fmt: skip
        return replace(request, mask=replace(request.mask, rows=rows_of(removed), drawing=""))

    def _fitted_of(self, jobs: Sequence[Job]) -> list[Image.Image | Exception]:
        """The picture of each job, those of several jobs decoded once."""

        def fit(job: Job) -> Image.Image | Exception:
            try:
                return self._fit(job)
            except Exception as error:  # whatever it is, it is this job's alone
                return error

        distinct = {job.picture_key: job for job in jobs}
        with ThreadPoolExecutor(_DECODERS) as pool:
            fitted = dict(zip(distinct, pool.map(fit, distinct.values()), strict=True))
        return [fitted[job.picture_key] for job in jobs]

    @cachedmethod(
        lambda self: self._fitted,
        key=lambda self, job: job.picture_key,
        lock=lambda self: self._fitted_lock,
    )
    def _fit(self, job: Job) -> Image.Image:
        """The picture as the model takes it; fitting it again, as a `Reconstructor` does, is free.

        A large one takes longer to fit than a small model takes to run.
        """
        request, config = job.request, job.served.config
        fitted = open_fitted(self._decoded(job), config, request.fit, request.image_size)
        return cast(Image.Image, fitted)

    def _decoded(self, job: Job) -> Image.Image:
        value_range = job.served.config.value_range or "auto"
        return self._pictures.decoded(job.source, job.request.picture, value_range)

    def _keep(self, request: Request, result: Reconstruction, state: ModelState) -> Answer:
        licence = self.offer(request.model).licence
        facts = state.facts(result) | ({"licence": licence} if licence else {})
        served = self._models.get(request.model)
        if served is not None and (snapshots := len(served.snapshots)):
            facts["snapshots"] = snapshots
        rows = rows_of(result.removed)
        shown = request
        if request.mask.drawing:
            shown = replace(request, mask=replace(request.mask, rows=rows, drawing=""))
        answer = Answer(shown, result.panels(), facts, rows)
        # What only want of memory has put on the CPU is tried again.
        if "notice" not in facts:
            # An answer above the bound is a ValueError, and is not kept.
            with self._answers_lock, suppress(ValueError):
                self._answers[request.key, state.version] = answer
        return answer

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
        watch, line = self.metrics.watch, self._line
        watch("mae_queue_waiting", "Requests in line.", lambda: line.waiting)
        watch("mae_queue_running", "Requests being computed.", lambda: line.running)
        watch("mae_workers_abandoned", "Hung runs.", lambda: line.abandoned)
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


def _workers_for(models: Sequence[ServedModel]) -> int:
    """One for each core if all models are so small that a run takes one thread; otherwise one."""
    small = models and all(model.is_small for model in models)
    return min(choose_threads(), _MOST_WORKERS) if small else 1


def _as_asked(answer: Answer, request: Request) -> Answer:
    """The answer to a request that is equal to its own but for what an own mask does not need."""
    drawn, mask = request.mask, answer.request.mask
    asked = replace(mask, strategy=drawn.strategy, ratio=drawn.ratio, seed=drawn.seed)
    if asked == mask:
        return answer
    return replace(answer, request=replace(answer.request, mask=asked))


def _for_visitors(name: str, error: MAEError) -> MAEError:
    """Why a model given at the start cannot be had; what the host has to mend is in the log."""
    why = "could not be fetched" if isinstance(error, DownloadError) else "are missing or damaged"
    return type(error)(
        f"{name} cannot be used now, as its weights {why}; choose another model, or try again in "
        "a minute"
    )


def _outcome_of(error: Exception) -> Outcome:
    outcomes: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Outcome], ...] = (
        ((BusyError, DecodersBusyError, NoGPUError), "busy"),
        (TookTooLongError, "timeout"),
        (NotReadyError, "waiting"),
        ((CheckpointError, DownloadError), "failed"),
        ((ImageError, MaskError, ConfigError, FileNotFoundError), "refused"),
    )
    return next((outcome for kind, outcome in outcomes if isinstance(error, kind)), "failed")


def _bundled_weights() -> list[str]:
    names = (name for name, entry in list_weights().items() if entry.bundled)
    return [DEFAULT_WEIGHTS, *(name for name in names if name != DEFAULT_WEIGHTS)]
