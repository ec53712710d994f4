import asyncio
import contextvars
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTimeError
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import line as scheduler_module
from app.line import BusyError, Scheduler, Ticket, TookTooLongError

# Longer than anything takes that is not broken.
LONG = 240.0


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Stage:
    """A run that waits to be let go, and writes down its batches."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[tuple[Hashable, list[str]]] = field(default_factory=list)

    def __call__(self, batch_key: Hashable, jobs: Sequence[str]) -> list[str | Exception]:
        self.batches.append((batch_key, list(jobs)))
        self.entered.release()
        assert self.gate.wait(LONG)
        return [job.upper() for job in jobs]

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=LONG)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.gate.set()


def ask(
    scheduler: Scheduler[str, str], job: str, visitor: str = "ann", batch_key: Hashable = 0
) -> Ticket[str]:
    return scheduler.submit(job, key=job, batch_key=batch_key, visitor=visitor)


def plugged(stage: Stage, scheduler: Scheduler[str, str]) -> Ticket[str]:
    """A job that is being run until the stage is let go; those that follow wait."""
    ticket = ask(scheduler, "plug", "plumber", "plug")
    stage.wait_until_entered()
    return ticket


def upper(batch_key: Hashable, jobs: Sequence[str]) -> list[str | Exception]:
    return [job.upper() for job in jobs]


def error_of(ticket: Ticket[str]) -> Exception | None:
    try:
        ticket.result(LONG)
    except Exception as error:
        return error
    return None


def threads_since(before: set[threading.Thread]) -> set[threading.Thread]:
    return set(threading.enumerate()) - before


@dataclass(frozen=True)
class Job:
    """A job of the slow line."""

    name: str
    batch_key: int


class SlowLine:
    """The rule in plain lists: turns of visitors, oldest first, then the oldest mates."""

    def __init__(self, most: Callable[[int], int]) -> None:
        self.most, self.jobs, self.turns = most, list[Job](), list[str]()
        # Who asked for what, in that order, and how often.
        self.asked: dict[tuple[str, Job], int] = {}

    def add(self, job: Job, visitor: str) -> None:
        if job not in self.jobs:
            self.jobs.append(job)
        self.asked[visitor, job] = self.asked.get((visitor, job), 0) + 1
        if visitor not in self.turns:
            self.turns.append(visitor)

    def cancel(self, job: Job, visitor: str) -> None:
        self.asked[visitor, job] -= 1
        self.tidy()

    def tidy(self) -> None:
        self.asked = {ask: count for ask, count in self.asked.items() if count > 0}
        self.jobs = [job for job in self.jobs if any(job == asked for _, asked in self.asked)]
        self.turns = [v for v in self.turns if any(v == visitor for visitor, _ in self.asked)]

    def take(self) -> list[Job]:
        visitor = self.turns[0]
        first = next(job for asking, job in self.asked if asking == visitor)
        others = [job for job in self.jobs if job.batch_key == first.batch_key and job != first]
        batch = [first, *others][: self.most(first.batch_key)]
        self.turns = [*self.turns[1:], visitor]
        self.asked = {ask: count for ask, count in self.asked.items() if ask[1] not in batch}
        self.tidy()
        return batch

    def plan(self) -> list[list[Job]]:
        copy = SlowLine(self.most)
        copy.jobs, copy.turns, copy.asked = list(self.jobs), list(self.turns), dict(self.asked)
        batches = []
        while copy.jobs:
            batches.append(copy.take())
        return batches


def most_of(batch_key: Hashable) -> int:
    return {0: 1, 1: 2, 2: 5}.get(batch_key, 1)  # type: ignore[call-overload, no-any-return]


# A visitor asks for something new; for what another ticket is for; or cancels a ticket.
visitors = st.sampled_from(["ann", "bob", "carl", "dora"])
new = st.tuples(st.just("new"), visitors, st.integers(0, 2))
same = st.tuples(st.just("same"), visitors, st.integers(0, 15))
cancel = st.tuples(st.just("cancel"), visitors, st.integers(0, 15))


@given(st.lists(st.one_of(new, new, same, cancel), max_size=30))
def test_places_and_batches_are_those_of_the_rule(moves: list[tuple[str, str, int]]) -> None:
    stage, line = Stage(), SlowLine(most_of)
    held: list[tuple[Job, str, Ticket[str]]] = []
    scheduler = Scheduler(stage, max_batch=most_of, max_per_visitor=100)
    plug = plugged(stage, scheduler)
    for number, (move, visitor, choice) in enumerate(moves):
        if move == "cancel" and choice < len(held):
            job, owner, ticket = held.pop(choice)
            ticket.cancel()
            line.cancel(job, owner)
        elif move == "new" or (move == "same" and choice < len(held)):
            job = Job(f"job {number}", choice) if move == "new" else held[choice][0]
            held.append((job, visitor, ask(scheduler, job.name, visitor, job.batch_key)))
            line.add(job, visitor)
        places = {job: n for n, batch in enumerate(line.plan(), 1) for job in batch}
        assert all(ticket.place == places[job] for job, _, ticket in held)
        assert {job for job, _, _ in held} == places.keys()
        assert scheduler.waiting == len(places)
    assert plug.place == 0
    stage.gate.set()
    assert scheduler.stop(LONG)
    assert stage.batches[1:] == [
        (batch[0].batch_key, [job.name for job in batch]) for batch in line.plan()
    ]
    assert all(ticket.place == 0 for _, _, ticket in held)
    assert all(ticket.result(0) == job.name.upper() for job, _, ticket in held)


def test_who_asks_for_a_lot_goes_after_whoever_asks_for_one(stage: Stage) -> None:
    scheduler = Scheduler(stage)
    plugged(stage, scheduler)
    greedy = [ask(scheduler, f"greedy {n}", "greedy") for n in range(5)]
    modest = ask(scheduler, "modest", "modest")
    assert [ticket.place for ticket in greedy] == [1, 3, 4, 5, 6]
    assert modest.place == 2
    stage.gate.set()
    scheduler.stop(LONG)


def test_what_another_visitor_is_late_with_comes_in_ones_own_turn(stage: Stage) -> None:
    scheduler = Scheduler(stage)
    plugged(stage, scheduler)
    greedy = [ask(scheduler, f"{n}", "greedy") for n in range(5)]
    modest = ask(scheduler, "4", "modest")
    assert [ticket.place for ticket in greedy] == [1, 3, 4, 5, 2]
    modest.cancel()
    assert [ticket.place for ticket in greedy] == [1, 2, 3, 4, 5]
    modest = ask(scheduler, "4", "modest")
    greedy[4].cancel()
    assert (modest.place, greedy[4].done(), scheduler.waiting) == (2, False, 5)
    stage.gate.set()
    scheduler.stop(LONG)
    assert [jobs[0] for _, jobs in stage.batches[1:]] == ["0", "4", "1", "2", "3"]


def test_equal_jobs_are_run_once(stage: Stage) -> None:
    scheduler = Scheduler(stage, max_waiting=1, max_per_visitor=1)
    plug, again = plugged(stage, scheduler), ask(scheduler, "plug", "bob")
    tickets = [ask(scheduler, "same", visitor) for visitor in ("ann", "bob", "ann")]
    assert (scheduler.running, scheduler.waiting) == (1, 1)
    assert [ticket.place for ticket in tickets] == [1, 1, 1]
    stage.gate.set()
    assert [ticket.result(LONG) for ticket in [plug, again, *tickets]] == 2 * ["PLUG"] + 3 * [
        "SAME"
    ]
    assert [jobs for _, jobs in stage.batches] == [["plug"], ["same"]]
    # What is over is not the same any more.
    assert ask(scheduler, "same").result(LONG) == "SAME"
    assert len(stage.batches) == 3
    scheduler.stop(LONG)


def test_a_shared_job_leaves_with_its_last_ticket(stage: Stage) -> None:
    scheduler = Scheduler(stage)
    plug = plugged(stage, scheduler)
    first, second = ask(scheduler, "same"), ask(scheduler, "same", "bob")
    for _ in range(3):
        # One ticket counts once, however often it is cancelled.
        first.cancel()
    assert scheduler.waiting == 1
    assert not second.done()
    second.cancel()
    assert scheduler.waiting == 0
    assert second.place == 0
    with pytest.raises(CancelledError):
        second.result(LONG)
    plug.cancel()
    stage.gate.set()
    assert plug.result(LONG) == "PLUG"
    scheduler.stop(LONG)
    assert [jobs for _, jobs in stage.batches] == [["plug"]]


def test_a_job_cancelled_can_be_submitted_again(stage: Stage) -> None:
    scheduler = Scheduler(stage)
    plugged(stage, scheduler)
    ask(scheduler, "job").cancel()
    ticket = ask(scheduler, "job")
    stage.gate.set()
    assert ticket.result(LONG) == "JOB"
    scheduler.stop(LONG)


def test_a_line_has_an_end(stage: Stage) -> None:
    scheduler = Scheduler(stage, max_waiting=3, max_per_visitor=2)
    plugged(stage, scheduler)
    ask(scheduler, "1"), ask(scheduler, "2")
    with pytest.raises(BusyError, match="one visitor") as many:
        ask(scheduler, "3")
    assert (many.value.reason, many.value.waiting) == ("visitor", 2)
    last = ask(scheduler, "4", "bob")
    with pytest.raises(BusyError, match="3 requests are waiting") as full:
        ask(scheduler, "5", "carl")
    assert (full.value.reason, full.value.waiting) == ("full", 3)
    last.cancel()
    assert ask(scheduler, "5", "carl").place == 2
    stage.gate.set()
    scheduler.stop(LONG)
    assert scheduler.waiting == 0


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, 1), (0.2, 1), (5, 5), (5.1, 6), (float("inf"), 3600)]
)
def test_a_rate_says_when(seconds: float | None, said: int) -> None:
    assert f"again in {said} s" in str(BusyError(0, "rate", seconds))


def test_what_a_run_raises_all_its_jobs_get(stage: Stage) -> None:
    calls = itertools.count()

    def run(batch_key: Hashable, jobs: Sequence[str]) -> list[str | Exception]:
        if next(calls) == 0:
            return stage(batch_key, jobs)
        raise MemoryError(" and ".join(jobs))

    scheduler = Scheduler(run, max_batch=2)
    plugged(stage, scheduler)
    tickets = [ask(scheduler, name) for name in "ab"]
    stage.gate.set()
    for ticket in tickets:
        with pytest.raises(MemoryError, match="a and b"):
            ticket.result(LONG)
    scheduler.stop(LONG)


def test_one_job_may_fail_alone(stage: Stage) -> None:
    def run(batch_key: Hashable, jobs: Sequence[str]) -> list[str | Exception]:
        results = stage(batch_key, jobs)
        return [ValueError("bad") if result == "BAD" else result for result in results]

    scheduler = Scheduler(run, max_batch=3)
    plugged(stage, scheduler)
    good, bad, other = (ask(scheduler, name) for name in ("good", "bad", "other"))
    stage.gate.set()
    assert (good.result(LONG), other.result(LONG)) == ("GOOD", "OTHER")
    with pytest.raises(ValueError, match="bad"):
        bad.result(LONG)
    scheduler.stop(LONG)


@pytest.mark.parametrize("results", [[], ["one", "too many"], None])
def test_a_wrong_number_of_results_fails_and_the_worker_goes_on(results: list[str]) -> None:
    answers = iter([results, ["right"]])
    scheduler: Scheduler[str, str] = Scheduler(lambda batch_key, jobs: next(answers))
    with pytest.raises((RuntimeError, TypeError)):
        ask(scheduler, "a").result(LONG)
    assert ask(scheduler, "b").result(LONG) == "right"
    scheduler.stop(LONG)


def test_a_hung_worker_is_replaced_and_what_it_gives_in_the_end_is_dropped(stage: Stage) -> None:
    clock, before = Clock(), set(threading.enumerate())

    def run(batch_key: Hashable, jobs: Sequence[str]) -> list[str | Exception]:
        return stage(batch_key, jobs) if batch_key == "plug" else upper(batch_key, jobs)

    scheduler = Scheduler(run, request_seconds=60, clock=clock)
    plug, same = plugged(stage, scheduler), ask(scheduler, "plug", "bob")
    hung = {thread for thread in threads_since(before) if thread.name == "worker"}
    clock.now = 30
    waiting = ask(scheduler, "waiting")
    clock.now = 59.9
    scheduler.end_late()
    assert not plug.done()
    clock.now = 60
    scheduler.end_late()
    for ticket in (plug, same):
        with pytest.raises(TookTooLongError, match="60 s") as late:
            ticket.result(0)
        assert late.value.seconds == 60
    assert waiting.result(LONG) == "WAITING"
    assert (scheduler.abandoned, scheduler.running) == (1, 0)

    stage.gate.set()
    for thread in hung:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in hung)
    assert ask(scheduler, "another").result(LONG) == "ANOTHER"
    assert scheduler.abandoned == 0
    assert scheduler.stop(LONG)
    assert not threads_since(before)


def test_the_same_job_can_be_tried_again_while_the_hung_one_still_runs(stage: Stage) -> None:
    clock, calls = Clock(), itertools.count()

    def run(batch_key: Hashable, jobs: Sequence[str]) -> list[str | Exception]:
        return stage(batch_key, jobs) if next(calls) == 0 else ["second"]

    scheduler = Scheduler(run, request_seconds=60, clock=clock)
    first = plugged(stage, scheduler)
    clock.now = 60
    scheduler.end_late()
    assert ask(scheduler, "plug").result(LONG) == "second"
    stage.gate.set()
    assert scheduler.stop(LONG)
    with pytest.raises(TookTooLongError):
        first.result(0)


def test_who_has_waited_too_long_is_told_that_the_server_is_busy(stage: Stage) -> None:
    clock = Clock()
    scheduler = Scheduler(stage, request_seconds=60, clock=clock)
    clock.now = 1
    plug = plugged(stage, scheduler)
    clock.now = 0  # So that the job waits for longer than the plug runs.
    waiting = ask(scheduler, "waiting")
    clock.now = 60
    scheduler.end_late()
    with pytest.raises(BusyError, match="1 requests are waiting") as late:
        waiting.result(0)
    assert (late.value.reason, scheduler.waiting, plug.done()) == ("full", 0, False)
    stage.gate.set()
    assert plug.result(LONG) == "PLUG"
    scheduler.stop(LONG)


def test_waiting_does_not_count_as_running(stage: Stage) -> None:
    clock, plugs = Clock(), Stage()

    def run(batch_key: Hashable, jobs: Sequence[str]) -> list[str | Exception]:
        return (plugs if batch_key == "plug" else stage)(batch_key, jobs)

    scheduler = Scheduler(run, request_seconds=60, clock=clock)
    plugged(plugs, scheduler)
    job = ask(scheduler, "job")
    clock.now = 59
    plugs.gate.set()
    stage.wait_until_entered()
    clock.now = 118
    scheduler.end_late()
    assert not job.done()
    clock.now = 119
    scheduler.end_late()
    with pytest.raises(TookTooLongError):
        job.result(0)
    stage.gate.set()
    scheduler.stop(LONG)


def test_the_watchdog_needs_nobody_to_ask(stage: Stage) -> None:
    scheduler = Scheduler(stage, request_seconds=0.05)
    running, waiting = ask(scheduler, "running"), ask(scheduler, "waiting", "bob")
    with pytest.raises(TookTooLongError):
        running.result(LONG)
    # It is given up as well, or its turn does not come in time.
    with pytest.raises((TookTooLongError, BusyError)):
        waiting.result(LONG)
    stage.gate.set()
    scheduler.stop(LONG)


def test_a_bound_may_be_endless(stage: Stage) -> None:
    scheduler = Scheduler(stage, request_seconds=float("inf"))
    ticket = plugged(stage, scheduler)
    scheduler.end_late()
    stage.gate.set()
    assert ticket.result(LONG) == "PLUG"
    scheduler.stop(LONG)


def test_several_workers_run_side_by_side(stage: Stage) -> None:
    scheduler = Scheduler(stage, workers=2)
    tickets = [ask(scheduler, name) for name in "abc"]
    stage.wait_until_entered()
    stage.wait_until_entered()
    assert (scheduler.running, scheduler.waiting) == (2, 1)
    assert [ticket.place for ticket in tickets] == [0, 0, 1]
    stage.gate.set()
    assert [ticket.result(LONG) for ticket in tickets] == ["A", "B", "C"]
    scheduler.stop(LONG)


_WHO: contextvars.ContextVar[str] = contextvars.ContextVar("_WHO")


def test_a_batch_runs_in_the_context_of_its_first_submitter(stage: Stage) -> None:
    def run(batch_key: Hashable, jobs: Sequence[str]) -> list[str | Exception]:
        if batch_key == "plug":
            stage(batch_key, jobs)
        return [_WHO.get("nobody")] * len(jobs)

    scheduler = Scheduler(run, max_batch=2)
    plugged(stage, scheduler)
    tickets = []
    for name in ("ann", "bob"):
        context = contextvars.copy_context()
        context.run(_WHO.set, name)
        tickets.append(context.run(ask, scheduler, name, name))
    stage.gate.set()
    assert [ticket.result(LONG) for ticket in tickets] == ["ann", "ann"]
    scheduler.stop(LONG)


def test_stopping_lets_finish_what_is_there_and_takes_no_more(stage: Stage) -> None:
    before = set(threading.enumerate())
    scheduler = Scheduler(stage, workers=2)
    tickets = [ask(scheduler, name) for name in "abcd"]
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(scheduler.stop, LONG)
        while not scheduler.stopping:
            time.sleep(0.001)
        with pytest.raises(BusyError) as refused:
            ask(scheduler, "a")
        assert refused.value.reason == "stopping"
        assert not stopped.done()
        stage.gate.set()
        assert stopped.result(LONG)
    assert [ticket.result(0) for ticket in tickets] == ["A", "B", "C", "D"]
    assert not threads_since(before)
    assert scheduler.stop(0)


def test_what_is_left_when_time_is_up_fails(stage: Stage) -> None:
    before = set(threading.enumerate())
    scheduler = Scheduler(stage)
    tickets = [plugged(stage, scheduler), ask(scheduler, "waiting")]
    assert not scheduler.stop(0)
    for ticket in tickets:
        with pytest.raises(BusyError) as error:
            ticket.result(0)
        assert error.value.reason == "stopping"
    assert (scheduler.waiting, scheduler.running) == (0, 0)
    stage.gate.set()
    for thread in threads_since(before):
        thread.join(LONG)
    assert not threads_since(before)
    assert len(stage.batches) == 1


def test_nobody_is_there_before_there_is_work() -> None:
    before = set(threading.enumerate())
    scheduler = Scheduler(upper)
    assert not threads_since(before)
    assert scheduler.stop(0)


def test_an_idle_worker_leaves_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "_IDLE_SECONDS", 0.01)
    before = set(threading.enumerate())
    scheduler = Scheduler(upper)
    for name in "ab":
        assert ask(scheduler, name).result(LONG) == name.upper()
        for thread in threads_since(before):
            thread.join(LONG)
        assert not threads_since(before)


@pytest.mark.parametrize("refused", ["worker", "watchdog"])
def test_a_thread_that_cannot_be_started_is_started_later(
    refused: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == refused:
            raise RuntimeError("can't start new thread")
        start(thread)

    clock = Clock()
    scheduler = Scheduler(stage, request_seconds=60, clock=clock)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start new thread"):
        ask(scheduler, "first")
    monkeypatch.undo()
    before = set(threading.enumerate())
    second = ask(scheduler, "second")
    assert refused in {thread.name for thread in threads_since(before)}
    stage.gate.set()
    assert second.result(LONG) == "SECOND"
    assert ask(scheduler, "first").result(LONG) == "FIRST"
    assert scheduler.stop(LONG)


class Picture:
    """Something that can be seen to go."""


def test_an_idle_worker_holds_nothing_of_the_last_batch() -> None:
    done = threading.Event()

    def run(batch_key: Hashable, jobs: Sequence[Picture]) -> list[Picture | Exception]:
        return [Picture() for _ in jobs]

    scheduler: Scheduler[Picture, Picture] = Scheduler(run)
    job = Picture()
    ticket = scheduler.submit(job, key=0, batch_key=0, visitor="ann")
    value = ticket.result(LONG)
    gone = [weakref.ref(job, lambda _: done.set()), weakref.ref(value)]
    del job, ticket, value
    # The worker may still be on its way out of the function that ran the batch.
    assert done.wait(LONG)
    scheduler.stop(LONG)
    assert [there() for there in gone] == [None, None]


def test_a_result_can_be_waited_for_in_vain(stage: Stage) -> None:
    scheduler = Scheduler(stage)
    ticket = plugged(stage, scheduler)
    with pytest.raises(NotInTimeError):
        ticket.result(0.01)
    stage.gate.set()
    scheduler.stop(LONG)


def test_a_hundred_wait_without_threads(stage: Stage) -> None:
    scheduler = Scheduler(stage)
    plug = plugged(stage, scheduler)
    tickets = [ask(scheduler, f"{n % 50}", f"{n % 20}") for n in range(100)]
    before = set(threading.enumerate())

    async def wait_for(ticket: Ticket[str]) -> str:
        # Often enough to see that a second wait sees the end too.
        while not await ticket.wait(0.02):
            assert not threads_since(before)
        return ticket.result(0)

    async def wait() -> list[str]:
        assert not await plug.wait(0.05)
        waits = [asyncio.ensure_future(wait_for(ticket)) for ticket in tickets]
        await asyncio.sleep(0.1)
        # Whoever goes away takes nobody along, not even others with the same ticket.
        gone = asyncio.ensure_future(tickets[0].wait(LONG))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        stage.gate.set()
        results = await asyncio.gather(*waits)
        assert await tickets[0].wait(0)
        return results

    assert asyncio.run(wait()) == [f"{n % 50}" for n in range(100)]
    scheduler.stop(LONG)


def test_waiting_ends_with_an_error_or_a_cancellation_too(stage: Stage) -> None:
    scheduler = Scheduler(stage)
    plugged(stage, scheduler)
    cancelled, left = ask(scheduler, "cancelled"), ask(scheduler, "left")

    async def wait() -> None:
        waits = [asyncio.ensure_future(ticket.wait(LONG)) for ticket in (cancelled, left)]
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await waits[0]
        scheduler.stop(0)
        assert await waits[1]

    asyncio.run(wait())
    with pytest.raises(BusyError):
        left.result(0)


def test_a_loop_may_be_closed_before_the_job_is_done(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = Scheduler(stage)
    ticket = plugged(stage, scheduler)
    assert not asyncio.run(ticket.wait(0.01))
    stage.gate.set()
    assert ticket.result(LONG) == "PLUG"
    scheduler.stop(LONG)
    assert not caplog.records


def test_hammered_by_threads_nothing_is_lost_or_done_twice() -> None:
    lock, begun, running = threading.Lock(), dict[str, int](), set[str]()

    def run(batch_key: Hashable, jobs: Sequence[str]) -> list[str | Exception]:
        with lock:
            assert len(jobs) <= 3
            assert all(int(job) % 3 == batch_key for job in jobs)
            assert not running.intersection(jobs), "run twice at the same time"
            running.update(jobs)
            for job in jobs:
                begun[job] = begun.get(job, 0) + 1
        # So that a line forms.
        time.sleep(0.0005)
        with lock:
            running.difference_update(jobs)
        return [KeyError(job) if int(job) % 7 == 0 else job for job in jobs]

    scheduler = Scheduler(run, workers=3, max_batch=3, max_waiting=20, max_per_visitor=6)

    def hammer(number: int) -> tuple[int, int]:
        chance, submitted, cancelled = random.Random(number), 0, 0
        held: list[tuple[str, Ticket[str]]] = []
        for _ in range(300):
            job = str(chance.randrange(40))
            try:
                ticket = scheduler.submit(
                    job, key=job, batch_key=int(job) % 3, visitor=str(number % 5)
                )
            except BusyError:
                continue
            submitted += 1
            held.append((job, ticket))
            assert ticket.place <= 20
            if chance.random() < 0.4:
                chance.choice(held)[1].cancel()
        for job, ticket in held:
            error = error_of(ticket)
            cancelled += isinstance(error, CancelledError)
            expected = KeyError if int(job) % 7 == 0 else type(None)
            assert isinstance(error, CancelledError | expected)
            assert error is not None or ticket.result(0) == job
        return submitted, cancelled

    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(hammer, range(8)))
    submitted, cancelled = map(sum, zip(*counts, strict=True))
    assert scheduler.stop(LONG)
    assert (scheduler.waiting, scheduler.running, scheduler.abandoned) == (0, 0, 0)
    # What is run has a ticket that was not cancelled in time.
    assert 0 < sum(begun.values()) <= submitted - cancelled
    assert 0 < cancelled < submitted
