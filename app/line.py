"""The line in front of the models: visitors take turns, and what is asked twice is run once.

Jobs wait in one line. A worker, a thread, takes the next one in turn together with others that
may share its run. Within a visitor the oldest job comes first, and visitors take turns, so that
nobody waits long for somebody who asks for a lot. Equal jobs are one job with several tickets,
which comes in the first turn of any visitor who asks for it.

Nothing waits for ever: a job that waits or runs longer than `request_seconds` fails. A thread
cannot be stopped, so a worker whose run takes too long is left to itself, and another one takes
its place; should the run ever end, nobody looks at what it gives.

One lock guards everything. What holds whenever it is free:

* A job is in the line, or in exactly one running batch, or its outcome is there.
* `_jobs` has just those that wait or run, by key.
* `_workers` are the threads that will take another batch; all those in `_running` are among them.
* While there is a job, there is a watchdog; and while one waits, a worker, unless the machine
  gives no more threads, which the next submit tries again.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

from mae_core import MAEError

# A worker is kept for so long without work: PyTorch sets up threads of its own for each.
_IDLE_SECONDS = 30.0

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item", bound=Hashable)
Job = TypeVar("Job")
Value = TypeVar("Value")
Run = Callable[[Hashable, Sequence[Job]], Sequence[Value | Exception]]

Reason = Literal["full", "visitor", "rate", "stopping"]


class BusyError(MAEError):
    """A job is not taken, or not done, because there are too many.

    Attributes:
        waiting: Jobs in the line.
        reason: `full`, the line is so long that the job's turn does not come in time; `visitor`,
            one visitor has too many of the waiting ones; `rate`, or asks too often; `stopping`,
            the server ends.
        retry_seconds: When it is worth trying again, as the rate always knows; None if nobody does.
    """

    def __init__(self, waiting: int, reason: Reason, retry_seconds: float | None = None) -> None:
        """Say what there is too much of."""
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
    """A job was begun and given up.

    Attributes:
        seconds: How long it was allowed to run.
    """

    def __init__(self, seconds: float) -> None:
        """Say how long is too long."""
        super().__init__(
            f"this took longer than {seconds:g} s and was given up; try a smaller image_size, or "
            "try again later"
        )
        self.seconds = seconds


@dataclass(eq=False)
class _Work(Generic[Job, Value]):
    """A job on its way.

    Attributes:
        job: What is to be done.
        key: Of all jobs that are the same.
        batch_key: Of all jobs that can be run together.
        most: Jobs in the batch that it leads, at most.
        since: When it began to wait, or to run.
        context: Of whoever submitted it.
        tickets: Of each visitor who waits for it, how many are not cancelled.
        outcome: What its tickets look at.
    """

    job: Job
    key: Hashable
    batch_key: Hashable
    most: int
    since: float
    context: Context = field(default_factory=copy_context)
    tickets: Counter[str] = field(default_factory=Counter)
    outcome: Future[Value] = field(default_factory=Future)

    def end(self, outcome: Value | Exception) -> None:
        """Give all tickets the value, or the error."""
        if isinstance(outcome, Exception):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class _Line(Generic[Job, Value]):
    """Who waits, in which order; dictionaries stand for sets that keep their order."""

    def __init__(self) -> None:
        # Visitors who wait, the next in turn first; what each waits for, in the order asked for.
        self._turns: dict[str, dict[_Work[Job, Value], None]] = {}
        # All that wait, the oldest first; and once more by batch key.
        self._works: dict[_Work[Job, Value], None] = {}
        self._mates: dict[Hashable, dict[_Work[Job, Value], None]] = {}
        self._places: dict[_Work[Job, Value], int] = {}

    def __len__(self) -> int:
        return len(self._works)

    def __iter__(self) -> Iterator[_Work[Job, Value]]:
        return iter(self._works)

    def __contains__(self, work: _Work[Job, Value]) -> bool:
        return work in self._works

    def count(self, visitor: str) -> int:
        """How many jobs a visitor waits for."""
        return len(self._turns.get(visitor, ()))

    def add(self, work: _Work[Job, Value], visitor: str) -> None:
        """Let a job wait for a visitor; one who waits for no other takes the last turn."""
        work.tickets[visitor] += 1
        self._turns.setdefault(visitor, {})[work] = None
        self._works[work] = None
        self._mates.setdefault(work.batch_key, {})[work] = None
        self._places.clear()

    def withdraw(self, work: _Work[Job, Value], visitor: str) -> None:
        """Undo one `add`; a job that nobody waits for leaves."""
        if work.tickets.total() == 1:
            self.remove(work)
        elif work.tickets[visitor] == 1:
            _drop(self._turns, visitor, work)
            del work.tickets[visitor]
            self._places.clear()
        else:
            work.tickets[visitor] -= 1

    def remove(self, work: _Work[Job, Value]) -> None:
        """Let a job leave, whoever waits for it."""
        for visitor in work.tickets:
            _drop(self._turns, visitor, work)
        del self._works[work]
        _drop(self._mates, work.batch_key, work)
        self._places.clear()

    def take(self) -> list[_Work[Job, Value]]:
        """Remove the next batch: the job in turn, then the oldest that can be run with it.

        Those come early, which costs their visitors no turn.
        """
        visitor, works = next(iter(self._turns.items()))
        first = next(iter(works))
        # To the end of the turns.
        self._turns[visitor] = self._turns.pop(visitor)
        mates = (work for work in self._mates[first.batch_key] if work is not first)
        batch = [first, *islice(mates, first.most - 1)]
        for work in batch:
            self.remove(work)
        return batch

    def place(self, work: _Work[Job, Value]) -> int:
        """In which run from now a job's turn comes, from 1; 0 if it does not wait."""
        if not self._places:
            self._places = dict(self._plan())
        return self._places.get(work, 0)

    def _plan(self) -> Iterator[tuple[_Work[Job, Value], int]]:
        """The place of every job: what `take` would do."""
        copy: _Line[Job, Value] = _Line()
        copy._turns = {visitor: dict(works) for visitor, works in self._turns.items()}
        copy._works = dict(self._works)
        copy._mates = {key: dict(works) for key, works in self._mates.items()}
        run = 0
        while copy:
            run += 1
            for work in copy.take():
                yield work, run


def _drop(groups: dict[Key, dict[Item, None]], key: Key, item: Item) -> None:
    """Remove an item from its group, and an empty group."""
    del groups[key][item]
    if not groups[key]:
        del groups[key]


class Ticket(Generic[Value]):
    """What one who has submitted a job holds. Safe to share between threads."""

    def __init__(
        self, scheduler: "Scheduler[Any, Value]", work: _Work[Any, Value], visitor: str
    ) -> None:
        """`Scheduler.submit` makes them."""
        self._scheduler, self._work, self._visitor = scheduler, work, visitor
        self._cancelled = False
        self._ended: asyncio.Future[None] | None = None

    @property
    def place(self) -> int:
        """0 = being run or done; n = it is run n-th from now on, after n - 1 others that wait.

        Jobs of others that come later may go before it where those have had fewer turns.
        """
        return self._scheduler._place(self._work)

    def done(self) -> bool:
        """Whether `result` returns, or raises, at once."""
        return self._work.outcome.done()

    def cancel(self) -> None:
        """Do not ask for the result any more.

        A job that waits and that no other ticket is for leaves the line, and `result` raises
        `concurrent.futures.CancelledError`. One that is being run goes on.
        """
        self._scheduler._leave(self)

    def result(self, timeout: float | None = None) -> Value:
        """The job's value, as soon as there is one.

        Args:
            timeout: Seconds to wait at most; None is as long as it takes.

        Raises:
            BusyError: If its turn did not come in time, or the server stopped.
            TookTooLongError: If it ran for too long.
            concurrent.futures.TimeoutError: If `timeout` is over.
            Exception: What the job itself ended in.
        """
        return self._work.outcome.result(timeout)

    async def wait(self, seconds: float) -> bool:
        """Wait without a thread, always in the same event loop.

        Args:
            seconds: How long at most.

        Returns:
            Whether the job is done, well or not.
        """
        if self._ended is None:
            self._ended = _when_done(self._work.outcome)
        await asyncio.wait([self._ended], timeout=seconds)
        return self.done()


class Scheduler(Generic[Job, Value]):
    """Runs jobs in threads of its own, in turn. Safe to share between threads.

    Attributes:
        stopping: Whether no more jobs are taken.
    """

    def __init__(
        self,
        run: Run[Job, Value],
        *,
        workers: int = 1,
        max_batch: Callable[[Hashable], int] | int = 1,
        max_waiting: int = 100,
        max_per_visitor: int = 8,
        request_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with an empty line; threads are started when there is work.

        Args:
            run: Does jobs of one batch key: one value or exception for each, in order. What it
                raises all of them get. It runs in the context of whoever submitted the first.
            workers: Batches that may run at the same time.
            max_batch: Jobs in a batch, at most; of a batch key, where it is a function.
            max_waiting: Jobs in the line.
            max_per_visitor: Jobs in the line that one visitor waits for, when another is new.
            request_seconds: How long a job may wait, and then how long it may run.
            clock: Seconds that never go back.
        """
        self._run, self._max_batch = run, max_batch
        self._max_workers, self._max_waiting = workers, max_waiting
        self._max_per_visitor, self._request_seconds = max_per_visitor, request_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._line: _Line[Job, Value] = _Line()
        self._jobs: dict[Hashable, _Work[Job, Value]] = {}
        self._workers: set[threading.Thread] = set()
        self._running: dict[threading.Thread, list[_Work[Job, Value]]] = {}
        self._watchdog: threading.Thread | None = None
        # Given up, and still at it.
        self._abandoned: set[threading.Thread] = set()
        self.stopping = False

    @property
    def waiting(self) -> int:
        """Jobs in the line."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Jobs that are being run, less those given up."""
        with self._changed:
            return sum(map(len, self._running.values()))

    @property
    def abandoned(self) -> int:
        """Runs that were given up and have not ended all the same."""
        return len(self._abandoned)

    def submit(
        self, job: Job, *, key: Hashable, batch_key: Hashable, visitor: str
    ) -> Ticket[Value]:
        """Have a job done.

        Args:
            job: What `run` gets.
            key: Jobs of equal keys are the same: while one of them waits or runs, no other one
                is begun.
            batch_key: Jobs of equal batch keys may be run together.
            visitor: Who asks.

        Raises:
            BusyError: If it is a new job and there are too many, or the server stops.
        """
        most = self._max_batch if isinstance(self._max_batch, int) else self._max_batch(batch_key)
        with self._changed:
            if self.stopping:
                raise BusyError(len(self._line), "stopping")
            work = self._jobs.get(key)
            if work is None:
                self._check_room(visitor)
                work = self._jobs[key] = _Work(job, key, batch_key, most, self._clock())
                self._line.add(work, visitor)
                self._start_threads()
                self._changed.notify_all()
            elif work in self._line:
                self._line.add(work, visitor)
        return Ticket(self, work, visitor)

    def end_late(self) -> None:
        """Give up what has waited or run for too long by now; the watchdog does it in time."""
        with self._changed:
            latest = self._clock() - self._request_seconds
            waiting = len(self._line)
            for work in [work for work in self._line if work.since <= latest]:
                self._line.remove(work)
                self._end([work], [BusyError(waiting, "full")])
            for worker in [w for w, batch in self._running.items() if batch[0].since <= latest]:
                self._give_up(worker, TookTooLongError(self._request_seconds))
                self._abandoned.add(worker)
            self._start_threads()

    def stop(self, seconds: float) -> bool:
        """Take no more jobs, and wait for those that are there.

        Args:
            seconds: How long at most. Jobs that are left then fail with `BusyError`.

        Returns:
            Whether none was left.
        """
        with self._changed:
            self.stopping = True
            self._changed.notify_all()
            drained = self._changed.wait_for(lambda: not self._jobs, seconds)
            for work in list(self._line):
                self._line.remove(work)
                self._end([work], [BusyError(0, "stopping")])
            for worker in list(self._running):
                self._give_up(worker, BusyError(0, "stopping"))
            ending = [*self._workers, *([self._watchdog] if self._watchdog else [])]
        for thread in ending:
            thread.join()
        return drained

    def _check_room(self, visitor: str) -> None:
        if self._line.count(visitor) >= self._max_per_visitor:
            raise BusyError(len(self._line), "visitor")
        if len(self._line) >= self._max_waiting:
            raise BusyError(len(self._line), "full")

    def _start_threads(self) -> None:
        """See to it that what waits is taken, and what is there is watched."""
        if self._line and len(self._workers) < self._max_workers:
            worker = threading.Thread(target=self._work, name="worker", daemon=True)
            worker.start()
            self._workers.add(worker)
        if self._jobs and self._watchdog is None:
            watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            watchdog.start()
            self._watchdog = watchdog

    def _place(self, work: _Work[Job, Value]) -> int:
        with self._changed:
            return self._line.place(work)

    def _leave(self, ticket: Ticket[Value]) -> None:
        with self._changed:
            work = ticket._work
            if work in self._line and not ticket._cancelled:
                self._line.withdraw(work, ticket._visitor)
                if work not in self._line:
                    del self._jobs[work.key]
                    work.outcome.cancel()
                    self._changed.notify_all()
            ticket._cancelled = True

    def _work(self) -> None:
        """What a worker does."""
        while self._serve():
            pass

    def _serve(self) -> bool:
        """Take a batch and run it; whether this worker goes on.

        A function of its own, so that an idle worker holds nothing of the batch before.
        """
        batch = self._take()
        if not batch:
            return False
        outcomes = self._outcomes(batch)
        with self._changed:
            if self._running.pop(threading.current_thread(), None) is None:
                self._abandoned.discard(threading.current_thread())
                return False
            self._end(batch, outcomes)
        return True

    def _take(self) -> list[_Work[Job, Value]]:
        """The next batch, which runs from now on; an empty one if there is nothing more to do."""
        worker = threading.current_thread()
        with self._changed:
            self._changed.wait_for(lambda: self._line or self.stopping, _IDLE_SECONDS)
            if not self._line:
                self._workers.discard(worker)
                return []
            self._running[worker] = batch = self._line.take()
            for work in batch:
                work.since = self._clock()
            return batch

    def _outcomes(self, batch: Sequence[_Work[Job, Value]]) -> Sequence[Value | Exception]:
        first, jobs = batch[0], [work.job for work in batch]
        try:
            outcomes = first.context.run(self._run, first.batch_key, jobs)
            if len(outcomes) != len(jobs):
                raise RuntimeError(f"{len(jobs)} jobs were run, and {len(outcomes)} results came")
        except Exception as error:  # whatever it is, it is those jobs' alone
            return [error] * len(jobs)
        return outcomes

    def _end(
        self, batch: Sequence[_Work[Job, Value]], outcomes: Sequence[Value | Exception]
    ) -> None:
        for work, outcome in zip(batch, outcomes, strict=True):
            del self._jobs[work.key]
            work.end(outcome)
        self._changed.notify_all()

    def _give_up(self, worker: threading.Thread, error: Exception) -> None:
        """Leave a worker to itself; it ends when its run does."""
        self._workers.discard(worker)
        batch = self._running.pop(worker)
        self._end(batch, [error] * len(batch))

    def _watch(self) -> None:
        """What the watchdog does, until there is nothing to watch."""
        with self._changed:
            try:
                while self._jobs:
                    oldest = min(work.since for work in self._jobs.values())
                    left = oldest + self._request_seconds - self._clock()
                    self._changed.wait(min(max(left, 0), threading.TIMEOUT_MAX))
                    self.end_late()
            finally:
                # Also where no worker can be started: the next submit tries again.
                self._watchdog = None


def _when_done(outcome: Future[Value]) -> "asyncio.Future[None]":
    """A future of the running loop that is done when another one is; it has nothing to tell."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def tell(_: Future[Value]) -> None:
        # The loop may be closed by now; then nobody waits there.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set_result, None)

    outcome.add_done_callback(tell)
    return ended
