"""The line in front of the models, on asyncio: visitors take turns, equal requests run once.

`Line.submit` gives each caller a future of their own. To leave, cancel it or the task that awaits
it; a job without callers leaves the line. Jobs of equal keys are one job, which comes in the first
turn of any visitor who asked for it. A run takes the job in turn and the oldest others that may
share it. All of this happens in one event loop, that of the first `submit`, so there are no locks:
Gradio runs its handlers in one. Other threads may call `stop`, which hands a coroutine to that
loop, and read the numbers.

Jobs run in threads, and a thread cannot be stopped. A run that takes too long is given up: its
callers get an error, its result is dropped, and a new pool of threads takes the place of the old
one. `app.__main__` looks at `abandoned` and ends the process when there are too many.
"""

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Literal, TypeVar

from mae_core import MAEError

# Weight of the latest run in the moving average of their seconds.
_LATEST_WEIGHT = 0.2

Job = TypeVar("Job")
Value = TypeVar("Value")
Reason = Literal["full", "visitor", "rate", "stopping"]


class BusyError(MAEError):
    """A job is refused, or its turn did not come in time.

    Attributes:
        waiting: Jobs in the line.
        reason: `full`, the line is longer than what is answered in time; `visitor`, one visitor has
            too many jobs in it; `rate`, one visitor asks too often; `stopping`, the server ends.
        retry_seconds: When to try again, where that is known.
    """

    def __init__(self, waiting: int, reason: Reason, retry_seconds: float | None = None) -> None:
        """Put the reason into a sentence."""
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
        """Put the time into a sentence."""
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
    # The futures that await it, and whose they are.
    callers: dict["asyncio.Future[Value]", str] = field(default_factory=dict)

    def end(self, outcome: Value | Exception) -> None:
        for caller in self.callers:
            if caller.done():  # cancelled just now
                continue
            if isinstance(outcome, Exception):
                caller.set_exception(outcome)
                # Or asyncio logs it where the caller is about to leave.
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
            run: Does jobs of one batch key, in the context of whoever submitted the first: one
                value or exception for each, in order. What it raises, all of them get.
            workers: Runs at the same time.
            max_waiting: Jobs in the line.
            max_per_visitor: Of them, those of one visitor.
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
        self._runs: set[asyncio.Task[None]] = set()
        self._abandoned: list[Future[Sequence[Value | Exception]]] = []
        self._run_seconds: float | None = None
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
        """Have a job done.

        Args:
            job: What `run` gets.
            key: Jobs of equal keys are the same.
            batch_key: Jobs of equal batch keys may share a run.
            visitor: Who asks.
            most: Jobs in the run that this one leads.

        Returns:
            Its value or error; `TookTooLongError`, or `BusyError` if its turn did not come in time.

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
        """What so many runs take by the latest ones; None before the first."""
        return None if self._run_seconds is None else runs * self._run_seconds / self._workers

    def stop(self, seconds: float) -> bool:
        """Take no more jobs; end those that are left after so long with `BusyError`.

        Not to be called in the line's own loop, which has to go on meanwhile.

        Returns:
            Whether none was left.
        """
        self.stopping, drained = True, True
        if self._loop is not None and not self._loop.is_closed():
            drained = asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop).result()
        self._pool.shutdown(wait=False)
        return drained

    def _busy(self, reason: Reason) -> BusyError:
        runs = sum(1 for _ in self._plan())
        return BusyError(self.waiting, reason, self.expected_seconds(runs))

    def _refuse(self, key: Hashable, reason: Reason) -> None:
        error, work = self._busy(reason), self._waiting[key]
        self._remove(work)
        work.end(error)

    def _leave(self, work: _Work[Job, Value], caller: "asyncio.Future[Value]") -> None:
        visitor = work.callers.pop(caller)
        if self._waiting.get(work.key) is work and visitor not in work.callers.values():
            self._lose_turn(work, visitor)
            if not work.callers:
                self._remove(work)

    def _lose_turn(self, work: _Work[Job, Value], visitor: str) -> None:
        del self._turns[visitor][work]
        if not self._turns[visitor]:
            del self._turns[visitor]
        self._places.clear()

    def _remove(self, work: _Work[Job, Value]) -> None:
        work.too_late.cancel()
        del self._waiting[work.key]
        for visitor in set(work.callers.values()):
            self._lose_turn(work, visitor)

    def _plan(self) -> Iterator[list[_Work[Job, Value]]]:
        """The runs to come. Jobs that come early, in others' runs, cost their visitors no turn."""
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
                self._remove(work)
                self._running[work.key] = work
            # In an empty context: the next run is started from it, for another visitor.
            assert self._loop is not None
            self._runs.add(self._loop.create_task(self._serve(batch), context=Context()))

    async def _serve(self, batch: list[_Work[Job, Value]]) -> None:
        outcomes: Sequence[Value | Exception]
        outcomes = [BusyError(0, "stopping")] * len(batch)  # where this task is cancelled
        try:
            outcomes = await self._outcomes(batch)
        finally:
            self._runs.remove(asyncio.current_task())  # type: ignore[arg-type]
            for work, outcome in zip(batch, outcomes, strict=True):
                del self._running[work.key]
                work.end(outcome)
        self._start_runs()

    async def _outcomes(self, batch: list[_Work[Job, Value]]) -> Sequence[Value | Exception]:
        jobs, began = [work.job for work in batch], time.monotonic()
        try:
            run = self._pool.submit(batch[0].context.run, self._in_thread, jobs)
        except RuntimeError as error:  # the machine gives no more threads
            return [error] * len(batch)
        try:
            await asyncio.wait([asyncio.wrap_future(run)], timeout=self._seconds)
        finally:
            if not run.done():
                self._abandoned = [*(other for other in self._abandoned if not other.done()), run]
        if not run.done():
            self._pool.shutdown(wait=False)
            self._pool = ThreadPoolExecutor(self._workers, "worker")
            return [TookTooLongError(self._seconds)] * len(batch)
        outcomes = run.result()
        if not all(isinstance(outcome, Exception) for outcome in outcomes):
            latest = time.monotonic() - began
            before = latest if self._run_seconds is None else self._run_seconds
            self._run_seconds = before + _LATEST_WEIGHT * (latest - before)
        return outcomes

    def _in_thread(self, jobs: Sequence[Job]) -> Sequence[Value | Exception]:
        try:
            outcomes = self._run(jobs)
            if len(outcomes) != len(jobs):
                raise RuntimeError(f"{len(jobs)} jobs were run, and {len(outcomes)} results came")
        except Exception as error:  # whatever it is, it is those jobs' alone
            return [error] * len(jobs)
        return outcomes

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
