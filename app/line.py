"""The line in front of the models, on asyncio: visitors take turns, equal requests run once.

To leave the line, cancel the future that `Line.submit` returned, or the task that awaits it. Jobs
with equal keys are one job, which comes in the first turn of any visitor who asked for it. A run
takes the job in turn and the oldest others that may share it. All of this happens in the event loop
of the first `submit`, so there are no locks; other threads may call `stop` and read the numbers.

Jobs run in threads, which cannot be stopped. A run that takes too long is given up: its callers get
an error, its result is dropped, and a new pool replaces its thread. `app.__main__` ends the process
when too many are `abandoned`.
"""

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Generic, Literal, TypeVar

from mae_core import MAEError

# Runs whose mean time is the estimate for the next ones.
_LATEST_RUNS = 10

Job = TypeVar("Job")
Value = TypeVar("Value")
_Outcomes = Sequence[Value | Exception]
Reason = Literal["full", "visitor", "rate", "stopping"]


class BusyError(MAEError):
    """A job is refused, or its turn did not come in time.

    Attributes:
        waiting: Jobs in the line.
        reason: `full`, the line is too long to be answered in time; `visitor`, one visitor has too
            many jobs in it; `rate`, one visitor asks too often; `stopping`, the server ends.
        retry_seconds: When to try again, if known.
    """

    def __init__(self, waiting: int, reason: Reason, retry_seconds: float | None = None) -> None:
        sentences = {
            "full": f"{waiting} requests are waiting, more than this server answers in time; try "
            "again in a minute",
            "visitor": "you have as many requests waiting as one visitor may have; wait for them",
            "rate": f"you ask too often; try again in {math.ceil(min(retry_seconds or 1, 3600))} s",
            "stopping": "this server is about to be restarted; try again in a minute",
        }
        super().__init__(sentences[reason])
        self.waiting, self.reason, self.retry_seconds = waiting, reason, retry_seconds


class TookTooLongError(MAEError):
    """A run was given up after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"this took longer than {seconds:g} s and was given up; try a smaller image_size, or "
            "try again later"
        )
        self.seconds = seconds


@dataclass(eq=False)
class _Work(Generic[Job, Value]):
    job: Job
    key: Hashable
    batch_key: Hashable
    most: int
    too_late: asyncio.TimerHandle
    context: Context = field(default_factory=copy_context)
    # The visitor of each future.
    callers: dict["asyncio.Future[Value]", str] = field(default_factory=dict)

    def end(self, outcome: Value | Exception) -> None:
        for caller in self.callers:
            if caller.done():  # cancelled just now
                continue
            if isinstance(outcome, Exception):
                caller.set_exception(outcome)
                # Or asyncio logs it if the caller is about to leave.
                caller.exception()
            else:
                caller.set_result(outcome)


class Line(Generic[Job, Value]):
    """Runs jobs in threads, in turn."""

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Sequence[Value | Exception]],
        *,
        workers: int = 1,
        max_waiting: int = 100,
        max_per_visitor: int = 8,
        seconds: float = 60.0,
    ) -> None:
        """Begin with an empty line.

        Args:
            run: Returns a value or an exception for each job, in order; what it raises is the
                error of all. Called with jobs of one batch key, in the first one's context.
            workers: Runs at the same time.
            max_waiting: Jobs in the line.
            max_per_visitor: Jobs of one visitor in the line.
            seconds: How long a job may wait, and then how long its run may take.
        """
        self._run, self._workers, self._seconds = run, workers, seconds
        self._max_waiting, self._max_per_visitor = max_waiting, max_per_visitor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool = ThreadPoolExecutor(workers, "worker")
        # By key, the oldest first; by visitor, the next in turn first, each in the order asked for.
        self._waiting: dict[Hashable, _Work[Job, Value]] = {}
        self._turns: dict[str, dict[_Work[Job, Value], None]] = {}
        self._places: dict[Hashable, int] = {}
        self._running: dict[Hashable, _Work[Job, Value]] = {}
        self._runs: set[asyncio.Task[_Outcomes[Value]]] = set()
        self._abandoned: list[Future[_Outcomes[Value]]] = []
        self._run_seconds: deque[float] = deque(maxlen=_LATEST_RUNS)
        self.stopping = False

    @property
    def waiting(self) -> int:
        """Jobs in the line."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs in runs that were not given up."""
        return len(self._running)

    @property
    def abandoned(self) -> int:
        """Runs that were given up and have not ended yet."""
        return sum(not run.done() for run in self._abandoned)

    def submit(
        self, job: Job, *, key: Hashable, batch_key: Hashable, visitor: str, most: int = 1
    ) -> "asyncio.Future[Value]":
        """Put a job into the line.

        Args:
            job: Given to `run`.
            key: Jobs with equal keys are the same.
            batch_key: Jobs with equal batch keys may share a run.
            visitor: Whose turn it takes.
            most: Jobs in a run that this one leads.

        Returns:
            Its value or error, which may be `TookTooLongError`, or `BusyError` after a long wait.

        Raises:
            BusyError: If it is a new job and there are too many, or the server stops.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop and not self._loop.is_closed():
            raise RuntimeError("this line is used in another event loop")
        self._loop = loop
        if self.stopping:
            raise BusyError(self.waiting, "stopping")
        work = self._running.get(key) or self._waiting.get(key)
        if work is None:
            if len(self._turns.get(visitor, ())) >= self._max_per_visitor:
                raise self._busy("visitor")
            if self.waiting >= self._max_waiting:
                raise self._busy("full")
            too_late = loop.call_later(self._seconds, self._refuse, key, "full")
            work = self._waiting[key] = _Work(job, key, batch_key, most, too_late)
        caller: asyncio.Future[Value] = loop.create_future()
        work.callers[caller] = visitor
        caller.add_done_callback(lambda caller: self._leave(work, caller))
        if key in self._waiting:
            self._turns.setdefault(visitor, {})[work] = None
            self._places.clear()
            self._start_runs()
        return caller

    def place(self, key: Hashable) -> int:
        """The run from now, from 1, that a waiting job is in; later jobs may still go before it."""
        if not self._places:
            batches = enumerate(self._plan(), 1)
            self._places = {work.key: place for place, batch in batches for work in batch}
        return self._places.get(key, 0)

    def expected_seconds(self, runs: int) -> float | None:
        """Estimate for so many runs from the latest ones; None before the first."""
        return runs * fmean(self._run_seconds) / self._workers if self._run_seconds else None

    def stop(self, seconds: float) -> bool:
        """Take no more jobs; end those that are left after so long with `BusyError`.

        Must not be called in the line's own loop, which has to go on meanwhile.

        Returns:
            Whether none was left.
        """
        self.stopping, drained = True, True
        if self._loop is not None and self._loop.is_running():
            drained = asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop).result()
        self._pool.shutdown(wait=False)
        return drained

    def _busy(self, reason: Reason) -> BusyError:
        runs = sum(1 for _ in self._plan())
        return BusyError(self.waiting, reason, self.expected_seconds(runs))

    def _refuse(self, key: Hashable, reason: Reason) -> None:
        error, work = self._busy(reason), self._waiting[key]
        self._remove(work, *work.callers.values())
        work.end(error)

    def _leave(self, work: _Work[Job, Value], caller: "asyncio.Future[Value]") -> None:
        visitor = work.callers.pop(caller)
        if self._waiting.get(work.key) is work and visitor not in work.callers.values():
            self._remove(work, visitor)

    def _remove(self, work: _Work[Job, Value], *visitors: str) -> None:
        """Take the turns of visitors from a job, and the job from the line if that is all."""
        for visitor in set(visitors):
            del self._turns[visitor][work]
            if not self._turns[visitor]:
                del self._turns[visitor]
        if not set(work.callers.values()).difference(visitors):
            work.too_late.cancel()
            del self._waiting[work.key]
        self._places.clear()

    def _plan(self) -> Iterator[list[_Work[Job, Value]]]:
        """The runs to come. A job in a run that another visitor leads costs no turn."""
        grouped: defaultdict[Hashable, list[_Work[Job, Value]]] = defaultdict(list)
        for work in self._waiting.values():
            grouped[work.batch_key].append(work)
        mates = {key: iter(works) for key, works in grouped.items()}
        turns = deque(map(iter, self._turns.values()))
        planned: set[_Work[Job, Value]] = set()
        while turns:
            works = turns.popleft()
            first = next((work for work in works if work not in planned), None)
            if first is not None:
                planned.add(first)
                others = (work for work in mates[first.batch_key] if work not in planned)
                batch = [first, *islice(others, first.most - 1)]
                planned.update(batch)
                yield batch
                turns.append(works)

    def _start_runs(self) -> None:
        while self._waiting and len(self._runs) < self._workers:
            batch = next(self._plan())
            visitor = next(iter(self._turns))
            self._turns[visitor] = self._turns.pop(visitor)  # to the end
            for work in batch:
                self._remove(work, *work.callers.values())
                self._running[work.key] = work
            # In empty contexts: the end of a run starts the next one, of another visitor.
            assert self._loop is not None
            task = self._loop.create_task(self._serve(batch), context=Context())
            self._runs.add(task)
            # A callback also ends a task that is cancelled before its first step.
            task.add_done_callback(partial(self._end, batch), context=Context())

    async def _serve(self, batch: list[_Work[Job, Value]]) -> _Outcomes[Value]:
        jobs, began = [work.job for work in batch], time.monotonic()

        def run() -> _Outcomes[Value]:
            try:
                outcomes = self._run(jobs)
                if len(outcomes) != len(jobs):
                    raise RuntimeError(f"{len(jobs)} jobs were run, with {len(outcomes)} results")
            except Exception as error:  # of any kind: the line goes on
                return [error] * len(jobs)
            return outcomes

        try:
            running = self._pool.submit(batch[0].context.run, run)
        except RuntimeError as error:  # no more threads
            return [error] * len(batch)
        try:
            await asyncio.wait([asyncio.wrap_future(running)], timeout=self._seconds)
        finally:
            if not running.done():
                self._abandoned = [*(r for r in self._abandoned if not r.done()), running]
        if not running.done():
            self._pool.shutdown(wait=False)
            self._pool = ThreadPoolExecutor(self._workers, "worker")
            return [TookTooLongError(self._seconds)] * len(batch)
        outcomes = running.result()
        if not all(isinstance(outcome, Exception) for outcome in outcomes):
            self._run_seconds.append(time.monotonic() - began)
        return outcomes

    def _end(self, batch: list[_Work[Job, Value]], task: "asyncio.Task[_Outcomes[Value]]") -> None:
        self._runs.remove(task)
        outcomes: _Outcomes[Value] = [BusyError(0, "stopping")] * len(batch)
        if not task.cancelled():
            outcomes = task.result()
        for work, outcome in zip(batch, outcomes, strict=True):
            del self._running[work.key]
            work.end(outcome)
        if not task.cancelled():
            self._start_runs()

    async def _drain(self, seconds: float) -> bool:
        latest = time.monotonic() + seconds
        while self._runs and (left := latest - time.monotonic()) > 0:
            await asyncio.wait(self._runs, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        drained = not self._runs
        for key in [*self._waiting]:
            self._refuse(key, "stopping")
        for task in self._runs:
            task.cancel()
        if self._runs:
            await asyncio.wait(self._runs)
        return drained
