import asyncio
import contextvars
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.line import BusyError, Line, TookTooLongError

pytestmark = pytest.mark.anyio

# Longer than anything takes that is not broken.
LONG = 240.0


class LateLoop(asyncio.SelectorEventLoop):
    """Its time can be put forward."""

    late = 0.0

    def time(self) -> float:
        return super().time() + self.late


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": LateLoop}


async def later(seconds: float) -> None:
    """Put the time forward, and have all that happens by then."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, LateLoop)
    loop.late += seconds
    await settled()


async def settled() -> None:
    """Let all callbacks run that are due."""
    for _ in range(10):
        await asyncio.sleep(0)


@dataclass
class Stage:
    """A run that waits to be let go, and writes down its batches."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[str]] = field(default_factory=list)

    def __call__(self, jobs: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(jobs))
        self.entered.release()
        assert self.gate.wait(LONG)
        return [job.upper() for job in jobs]

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=LONG)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.gate.set()


def ask(
    line: Line[str, str], job: str, visitor: str = "ann", batch_key: object = 0, most: int = 1
) -> "asyncio.Future[str]":
    return line.submit(job, key=job, batch_key=batch_key, visitor=visitor, most=most)


async def plugged(stage: Stage, line: Line[str, str]) -> "asyncio.Future[str]":
    """A job that is being run until the stage is let go; those that follow wait."""
    caller = ask(line, "plug", "plumber", "plug")
    await stage.wait_until_entered()
    return caller


async def stopped(line: Line[Any, Any], seconds: float = LONG) -> bool:
    return await asyncio.to_thread(line.stop, seconds)


def upper(jobs: Sequence[str]) -> list[str | Exception]:
    return [job.upper() for job in jobs]


def places(line: Line[str, str], *jobs: str) -> list[int]:
    return [line.place(job) for job in jobs]


def workers_since(before: set[threading.Thread]) -> set[threading.Thread]:
    new = set(threading.enumerate()) - before
    return {thread for thread in new if thread.name.startswith("worker")}


def joined(threads: set[threading.Thread]) -> None:
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


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


def most_of(batch_key: int) -> int:
    return {0: 1, 1: 2, 2: 5}[batch_key]


# A visitor asks for something new; for what another caller awaits; or a caller leaves.
visitors = st.sampled_from(["ann", "bob", "carl", "dora"])
new = st.tuples(st.just("new"), visitors, st.integers(0, 2))
same = st.tuples(st.just("same"), visitors, st.integers(0, 15))
cancel = st.tuples(st.just("cancel"), visitors, st.integers(0, 15))


@given(st.lists(st.one_of(new, new, same, cancel), max_size=30))
async def test_places_and_batches_are_those_of_the_rule(moves: list[tuple[str, str, int]]) -> None:
    stage, rule = Stage(), SlowLine(most_of)
    held: list[tuple[Job, str, asyncio.Future[str]]] = []
    line = Line(stage, max_per_visitor=100)
    await plugged(stage, line)
    for number, (move, visitor, choice) in enumerate(moves):
        if move == "cancel" and choice < len(held):
            job, owner, caller = held.pop(choice)
            caller.cancel()
            await asyncio.sleep(0)
            rule.cancel(job, owner)
        elif move == "new" or (move == "same" and choice < len(held)):
            job = Job(f"job {number}", choice) if move == "new" else held[choice][0]
            most = most_of(job.batch_key)
            held.append((job, visitor, ask(line, job.name, visitor, job.batch_key, most)))
            rule.add(job, visitor)
        planned = {job: n for n, batch in enumerate(rule.plan(), 1) for job in batch}
        assert all(line.place(job.name) == planned[job] for job, _, _ in held)
        assert {job for job, _, _ in held} == planned.keys()
        assert line.waiting == len(planned)
    assert line.place("plug") == 0
    stage.gate.set()
    assert await stopped(line)
    assert stage.batches[1:] == [[job.name for job in batch] for batch in rule.plan()]
    assert all(line.place(job.name) == 0 for job, _, _ in held)
    assert all(caller.result() == job.name.upper() for job, _, caller in held)


async def test_a_visitor_with_many_requests_goes_after_one_with_a_single_one(stage: Stage) -> None:
    line = Line(stage)
    await plugged(stage, line)
    for n in range(5):
        ask(line, f"{n}", "greedy")
    ask(line, "modest", "modest")
    assert places(line, *"01234", "modest") == [1, 3, 4, 5, 6, 2]
    stage.gate.set()
    await stopped(line)


async def test_a_shared_job_comes_in_the_first_turn_of_any_visitor(stage: Stage) -> None:
    line = Line(stage)
    await plugged(stage, line)
    greedy = [ask(line, f"{n}", "greedy") for n in range(5)]
    modest = ask(line, "4", "modest")
    assert places(line, *"01234") == [1, 3, 4, 5, 2]
    modest.cancel()
    await settled()
    assert places(line, *"01234") == [1, 2, 3, 4, 5]
    modest = ask(line, "4", "modest")
    greedy[4].cancel()
    await settled()
    assert (line.place("4"), modest.done(), line.waiting) == (2, False, 5)
    stage.gate.set()
    await stopped(line)
    assert [jobs[0] for jobs in stage.batches[1:]] == ["0", "4", "1", "2", "3"]


async def test_equal_jobs_are_run_once(stage: Stage) -> None:
    line = Line(stage, max_waiting=1, max_per_visitor=1)
    callers = [await plugged(stage, line), ask(line, "plug", "bob")]
    callers += [ask(line, "same", visitor) for visitor in ("ann", "bob", "ann")]
    assert (line.running, line.waiting, line.place("same")) == (1, 1, 1)
    stage.gate.set()
    assert await asyncio.gather(*callers) == 2 * ["PLUG"] + 3 * ["SAME"]
    assert stage.batches == [["plug"], ["same"]]
    # A job that is over is not the same any more.
    assert await ask(line, "same") == "SAME"
    assert len(stage.batches) == 3
    await stopped(line)


async def test_a_shared_job_leaves_with_its_last_caller(stage: Stage) -> None:
    line = Line(stage)
    plug = await plugged(stage, line)
    first, second = ask(line, "same"), ask(line, "same", "bob")
    first.cancel()
    await settled()
    assert (line.waiting, second.done()) == (1, False)
    second.cancel()
    await settled()
    assert (line.waiting, line.place("same")) == (0, 0)
    plug.cancel()
    stage.gate.set()
    assert await stopped(line)
    assert stage.batches == [["plug"]]


async def test_cancelling_the_awaiting_task_leaves(stage: Stage) -> None:
    line = Line(stage)
    await plugged(stage, line)

    async def wait() -> str:
        return await ask(line, "job")

    task = asyncio.create_task(wait())
    await settled()
    assert line.waiting == 1
    task.cancel()
    await settled()
    assert (line.waiting, task.cancelled()) == (0, True)
    caller = ask(line, "job")
    stage.gate.set()
    assert await caller == "JOB"
    await stopped(line)


async def test_a_job_asked_for_again_before_the_first_caller_has_left_stays(stage: Stage) -> None:
    line = Line(stage)
    await plugged(stage, line)
    ask(line, "job").cancel()
    caller = ask(line, "job")
    await settled()
    assert (line.waiting, line.place("job")) == (1, 1)
    stage.gate.set()
    assert await caller == "JOB"
    await stopped(line)


async def test_a_line_has_an_end(stage: Stage) -> None:
    line = Line(stage, max_waiting=3, max_per_visitor=2)
    await plugged(stage, line)
    ask(line, "1"), ask(line, "2")
    with pytest.raises(BusyError, match="one visitor") as many:
        ask(line, "3")
    assert (many.value.reason, many.value.waiting) == ("visitor", 2)
    last = ask(line, "4", "bob")
    with pytest.raises(BusyError, match="3 requests are waiting") as full:
        ask(line, "5", "carl")
    assert (full.value.reason, full.value.waiting) == ("full", 3)
    # Nothing was run yet.
    assert full.value.retry_seconds is None
    last.cancel()
    await settled()
    ask(line, "5", "carl")
    assert line.place("5") == 2
    stage.gate.set()
    await stopped(line)
    assert line.waiting == 0


async def test_what_runs_take_is_known_after_the_first(stage: Stage) -> None:
    line = Line(stage, workers=2, max_waiting=2)
    assert line.expected_seconds(1) is None
    stage.gate.set()
    assert await ask(line, "first") == "FIRST"
    one = line.expected_seconds(1)
    assert one is not None
    assert line.expected_seconds(4) == 4 * one
    stage.gate.clear()
    for job in "abcd":
        ask(line, job)
    with pytest.raises(BusyError) as full:
        ask(line, "e")
    assert full.value.retry_seconds == 2 * one
    stage.gate.set()
    await stopped(line)


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, 1), (0.2, 1), (5, 5), (5.1, 6), (float("inf"), 3600)]
)
async def test_a_rate_says_when(seconds: float | None, said: int) -> None:
    assert f"again in {said} s" in str(BusyError(0, "rate", seconds))


async def test_an_error_of_a_run_is_that_of_all_its_jobs(stage: Stage) -> None:
    calls = itertools.count()

    def run(jobs: Sequence[str]) -> list[str | Exception]:
        if next(calls) == 0:
            return stage(jobs)
        raise MemoryError(" and ".join(jobs))

    line = Line(run)
    await plugged(stage, line)
    callers = [ask(line, name, most=2) for name in "ab"]
    stage.gate.set()
    for caller in callers:
        with pytest.raises(MemoryError, match="a and b"):
            await caller
    await stopped(line)


async def test_one_job_may_fail_alone(stage: Stage) -> None:
    def run(jobs: Sequence[str]) -> list[str | Exception]:
        results = stage(jobs)
        return [ValueError("bad") if result == "BAD" else result for result in results]

    line = Line(run)
    await plugged(stage, line)
    good, bad, other = (ask(line, name, most=3) for name in ("good", "bad", "other"))
    stage.gate.set()
    assert (await good, await other) == ("GOOD", "OTHER")
    with pytest.raises(ValueError, match="bad"):
        await bad
    await stopped(line)


@pytest.mark.parametrize("results", [[], ["one", "too many"], None])
async def test_a_wrong_number_of_results_fails_and_the_line_goes_on(results: list[str]) -> None:
    answers = iter([results, ["right"]])
    line: Line[str, str] = Line(lambda jobs: next(answers))
    with pytest.raises((RuntimeError, TypeError)):
        await ask(line, "a")
    assert await ask(line, "b") == "right"
    await stopped(line)


async def test_a_hung_run_is_given_up_and_its_result_is_dropped(stage: Stage) -> None:
    before = set(threading.enumerate())

    def run(jobs: Sequence[str]) -> list[str | Exception]:
        return stage(jobs) if jobs[0] == "plug" else upper(jobs)

    line = Line(run, seconds=60)
    plug, same = await plugged(stage, line), ask(line, "plug", "bob")
    hung = workers_since(before)
    await later(30)
    waiting = ask(line, "waiting")
    await later(29)
    assert not plug.done()
    await later(2)
    for caller in (plug, same):
        with pytest.raises(TookTooLongError, match="60 s") as late:
            await caller
        assert late.value.seconds == 60
    assert await waiting == "WAITING"
    # The same job can be tried again meanwhile.
    assert (line.abandoned, line.running, line.place("plug")) == (1, 0, 0)
    stage.gate.set()
    joined(hung)
    assert line.abandoned == 0
    assert await ask(line, "another") == "ANOTHER"
    assert await stopped(line)
    joined(workers_since(before))


async def test_the_same_job_can_be_tried_again_while_the_hung_one_still_runs(stage: Stage) -> None:
    calls = itertools.count()

    def run(jobs: Sequence[str]) -> list[str | Exception]:
        return stage(jobs) if next(calls) == 0 else ["second"]

    line = Line(run, seconds=60)
    first = await plugged(stage, line)
    await later(61)
    assert await ask(line, "plug") == "second"
    stage.gate.set()
    assert await stopped(line)
    with pytest.raises(TookTooLongError):
        first.result()


async def test_hung_runs_leave_the_other_workers_alone(stage: Stage) -> None:
    plugs = Stage()

    def run(jobs: Sequence[str]) -> list[str | Exception]:
        return (plugs if jobs[0] == "plug" else stage)(jobs)

    line = Line(run, workers=2, seconds=60)
    await plugged(plugs, line)
    await later(30)
    beside = ask(line, "beside")
    await stage.wait_until_entered()
    await later(31)
    after = ask(line, "after")
    await stage.wait_until_entered()
    assert (line.abandoned, line.running, beside.done()) == (1, 2, False)
    stage.gate.set()
    assert (await beside, await after) == ("BESIDE", "AFTER")
    plugs.gate.set()
    assert await stopped(line)


async def test_a_job_that_waited_too_long_is_refused(stage: Stage) -> None:
    plugs = Stage()

    def run(jobs: Sequence[str]) -> list[str | Exception]:
        return (plugs if jobs[0] == "plug" else stage)(jobs)

    line = Line(run, seconds=60)
    await plugged(plugs, line)
    first, second = ask(line, "first"), ask(line, "second")
    await later(40)
    plugs.gate.set()
    await stage.wait_until_entered()
    await later(21)
    with pytest.raises(BusyError, match="1 requests are waiting") as late:
        await second
    assert (late.value.reason, line.waiting, first.done()) == ("full", 0, False)
    # Waiting does not count as running.
    await later(38)
    assert not first.done()
    await later(2)
    with pytest.raises(TookTooLongError):
        await first
    stage.gate.set()
    await stopped(line)


async def test_several_workers_run_side_by_side(stage: Stage) -> None:
    line = Line(stage, workers=2)
    callers = [ask(line, name) for name in "abc"]
    await stage.wait_until_entered()
    await stage.wait_until_entered()
    assert (line.running, line.waiting, places(line, *"abc")) == (2, 1, [0, 0, 1])
    stage.gate.set()
    assert await asyncio.gather(*callers) == ["A", "B", "C"]
    await stopped(line)


_WHO: contextvars.ContextVar[str] = contextvars.ContextVar("_WHO")


async def test_a_batch_runs_in_the_context_of_its_first_submitter(stage: Stage) -> None:
    def run(jobs: Sequence[str]) -> list[str | Exception]:
        if jobs[0] == "plug":
            stage(jobs)
        return [_WHO.get("nobody")] * len(jobs)

    line = Line(run)
    await plugged(stage, line)
    callers = []
    for name in ("ann", "bob", "carl"):
        context = contextvars.copy_context()
        context.run(_WHO.set, name)
        callers.append(context.run(ask, line, name, name, 0, 2))
    stage.gate.set()
    assert await asyncio.gather(*callers) == ["ann", "ann", "carl"]
    await stopped(line)


async def test_stopping_finishes_the_jobs_and_takes_no_more(stage: Stage) -> None:
    before = set(threading.enumerate())
    line = Line(stage, workers=2)
    callers = [ask(line, name) for name in "abcd"]
    stopping = asyncio.create_task(stopped(line))
    while not line.stopping:
        await asyncio.sleep(0)
    with pytest.raises(BusyError) as refused:
        ask(line, "a")
    assert refused.value.reason == "stopping"
    assert not stopping.done()
    stage.gate.set()
    assert await stopping
    assert [caller.result() for caller in callers] == ["A", "B", "C", "D"]
    joined(workers_since(before))
    assert await stopped(line, 0)


async def test_jobs_that_are_left_when_time_is_up_fail(stage: Stage) -> None:
    before = set(threading.enumerate())
    line = Line(stage)
    callers = [await plugged(stage, line), ask(line, "waiting")]
    assert not await stopped(line, 0)
    for caller in callers:
        with pytest.raises(BusyError) as error:
            await caller
        assert error.value.reason == "stopping"
    assert (line.waiting, line.running, line.abandoned) == (0, 0, 1)
    stage.gate.set()
    joined(workers_since(before))
    assert len(stage.batches) == 1


async def test_a_run_that_has_not_begun_when_time_is_up_fails(stage: Stage) -> None:
    line = Line(stage)
    caller = ask(line, "job")
    # Without a step of the loop in between.
    assert not await line._drain(0)
    with pytest.raises(BusyError, match="restarted"):
        await asyncio.wait_for(caller, LONG)
    assert (line.running, line._runs, stage.batches) == (0, set(), [])


def test_a_loop_that_stands_still_does_not_hold_up_the_end() -> None:
    line, loop = Line(upper), asyncio.new_event_loop()

    async def once() -> str:
        return await ask(line, "job")

    assert loop.run_until_complete(once()) == "JOB"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(line.stop, LONG).result(LONG)
    loop.close()


async def test_there_are_no_threads_before_there_is_work() -> None:
    before = set(threading.enumerate())
    line = Line(upper)
    assert not workers_since(before)
    assert await stopped(line, 0)


async def test_where_no_thread_can_be_started_the_job_fails_and_the_next_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    line = Line(upper)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start new thread"):
            await ask(line, "first")
    assert await ask(line, "second") == "SECOND"
    assert await ask(line, "first") == "FIRST"
    assert await stopped(line)


class Picture:
    """Something that can be seen to go."""


async def test_an_idle_line_holds_nothing_of_the_last_batch() -> None:
    done = threading.Event()

    def run(jobs: Sequence[Picture]) -> list[Picture | Exception]:
        return [Picture() for _ in jobs]

    line: Line[Picture, Picture] = Line(run)
    job = Picture()
    caller = line.submit(job, key=0, batch_key=0, visitor="ann")
    value = await caller
    gone = [weakref.ref(job, lambda _: done.set()), weakref.ref(value)]
    del job, caller, value
    await settled()
    # The worker may still be on its way out of the function that ran the batch.
    assert await asyncio.to_thread(done.wait, LONG)
    assert [there() for there in gone] == [None, None]
    await stopped(line)


async def test_a_hundred_wait_without_threads(stage: Stage) -> None:
    line = Line(stage)
    await plugged(stage, line)
    before = set(threading.enumerate())
    waits = [asyncio.ensure_future(ask(line, f"{n % 50}", f"{n % 20}")) for n in range(100)]
    await settled()
    assert set(threading.enumerate()) == before
    stage.gate.set()
    assert await asyncio.gather(*waits) == [f"{n % 50}" for n in range(100)]
    await stopped(line)


def test_a_line_is_used_in_one_event_loop_at_a_time() -> None:
    line = Line(upper)

    async def once() -> str:
        return await ask(line, "job")

    async def in_another() -> None:
        await once()
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, once())

    assert asyncio.run(once()) == "JOB"
    # That loop is closed.
    asyncio.run(in_another())
    assert line.stop(LONG)


async def test_hammered_nothing_is_lost_or_done_twice() -> None:
    lock, begun, running = threading.Lock(), dict[str, int](), set[str]()

    def run(jobs: Sequence[str]) -> list[str | Exception]:
        with lock:
            assert len(jobs) <= 3
            assert len({int(job) % 3 for job in jobs}) == 1
            assert not running.intersection(jobs), "run twice at the same time"
            running.update(jobs)
            for job in jobs:
                begun[job] = begun.get(job, 0) + 1
        # So that a line forms.
        time.sleep(0.0005)
        with lock:
            running.difference_update(jobs)
        return [KeyError(job) if int(job) % 7 == 0 else job for job in jobs]

    line = Line(run, workers=3, max_waiting=20, max_per_visitor=6)

    async def hammer(number: int) -> tuple[int, int]:
        chance, cancelled = random.Random(number), 0
        held: list[tuple[str, asyncio.Future[str]]] = []
        for _ in range(300):
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
            job = str(chance.randrange(40))
            try:
                held.append((job, ask(line, job, str(number % 5), int(job) % 3, 3)))
            except BusyError:
                continue
            assert line.place(job) <= 20
            if chance.random() < 0.4:
                chance.choice(held)[1].cancel()
        for job, caller in held:
            (outcome,) = await asyncio.gather(caller, return_exceptions=True)
            cancelled += caller.cancelled()
            if not caller.cancelled():
                assert outcome == job or (isinstance(outcome, KeyError) and int(job) % 7 == 0)
        return len(held), cancelled

    counts = await asyncio.gather(*map(hammer, range(8)))
    submitted, cancelled = map(sum, zip(*counts, strict=True))
    assert await stopped(line)
    assert (line.waiting, line.running, line.abandoned) == (0, 0, 0)
    assert (line._turns, line._places, line._runs) == ({}, {}, set())
    # Some run may have lost its callers after it had begun.
    assert 0 < sum(begun.values()) <= submitted
    assert 0 < cancelled < submitted
