import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.rates import RateLimiter


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_and_then_a_steady_rate() -> None:
    clock = Clock()
    limiter = RateLimiter(60, 3, clock=clock)
    assert [limiter.take("ann") for _ in range(5)] == [0, 0, 0, 1, 1]
    clock.now = 0.25
    assert limiter.take("ann") == 0.75
    clock.now = 1
    assert [limiter.take("ann"), limiter.take("ann")] == [0, 1]
    # However long it is unused, a bucket is never more than full.
    clock.now = 1000
    assert [limiter.take("ann") for _ in range(4)] == [0, 0, 0, 1]


def test_each_visitor_has_a_bucket() -> None:
    limiter = RateLimiter(60, 1, clock=Clock())
    assert [limiter.take(name) for name in ("ann", "bob", "ann", "carl")] == [0, 0, 1, 0]


def test_a_larger_amount_waits_longer_and_one_over_the_burst_for_ever() -> None:
    clock = Clock()
    limiter = RateLimiter(60, 10, clock=clock)
    assert limiter.take("ann", 8) == 0
    assert limiter.take("ann", 10) == 8
    assert limiter.take("ann", 11) == math.inf
    # None of them took anything.
    assert limiter.take("ann", 2) == 0
    clock.now = 8
    assert limiter.take("ann", 8) == 0


def test_those_unseen_for_longest_are_forgotten() -> None:
    limiter = RateLimiter(60, 1, clock=Clock(), max_visitors=2)
    for name in ("ann", "bob"):
        assert limiter.take(name) == 0
    # Refused, but seen.
    assert limiter.take("ann") == 1
    assert limiter.take("carl") == 0
    assert limiter.take("ann") == 1
    assert limiter.take("bob") == 0


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 20), st.floats(0, 4)), max_size=40),
    st.integers(1, 600),
    st.integers(1, 8),
)
def test_nobody_gets_more_than_is_allowed_and_nobody_is_put_off_too_long(
    asked: list[tuple[int, float, float]], per_minute: int, burst: int
) -> None:
    clock = Clock()
    limiter = RateLimiter(per_minute, burst, clock=clock)
    taken: dict[int, list[tuple[float, float]]] = {}
    for visitor, pause, amount in asked:
        clock.now += pause
        seconds = limiter.take(str(visitor), amount)
        if seconds == math.inf:
            assert amount > burst
            continue
        if seconds > 0:
            # As soon as it was said, and not before.
            clock.now += seconds * 0.99
            assert limiter.take(str(visitor), amount) > 0
            clock.now += seconds * 0.01 + 1e-6
            assert limiter.take(str(visitor), amount) == 0
        taken.setdefault(visitor, []).append((clock.now, amount))
    for history in taken.values():
        for first in range(len(history)):
            for last in range(first, len(history)):
                minutes = (history[last][0] - history[first][0]) / 60
                total = sum(amount for _, amount in history[first : last + 1])
                assert total <= burst + per_minute * minutes + 1e-6


def test_threads_share_a_bucket() -> None:
    limiter, start = RateLimiter(1e-6, 50), threading.Barrier(8)

    def take(_: int) -> int:
        start.wait()
        return sum(limiter.take("ann") == 0 for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 50


@pytest.mark.parametrize("visitors", [1000])
def test_memory_is_bounded(visitors: int) -> None:
    limiter = RateLimiter(60, 1, clock=Clock(), max_visitors=10)
    for number in range(visitors):
        assert limiter.take(str(number)) == 0
    assert sum(limiter.take(str(number)) > 0 for number in range(visitors - 10, visitors)) == 10
    assert len(limiter._buckets) == 10
