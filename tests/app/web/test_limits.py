import ipaddress
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.web.limits import UNKNOWN, RateLimiter, visitor_of


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


@pytest.mark.parametrize(
    ("address", "visitor"),
    [
        ("192.0.2.7", "192.0.2.7"),
        (" 192.0.2.7\t", "192.0.2.7"),
        ("192.0.2.7:5123", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::7]", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::7]:5123", "2001:db8:1:2::/64"),
        ('"[2001:db8:1:2::7]:5123"', "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("[fe80::1%25eth0]:80", "fe80::/64"),
        ("::1", "::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[::ffff:c000:0207]:443", "192.0.2.7"),
    ],
)
def test_an_address_however_it_is_written(address: str, visitor: str) -> None:
    assert visitor_of(address, None, 0) == visitor
    assert visitor_of("10.0.0.1", address, 1) == visitor


@pytest.mark.parametrize(
    "garbage",
    [
        "", " ", "unknown", "_hidden", "localhost", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4",
        "1.2.3.4/8", "::1/64", "[", "]", "[]", "[::1", ":", "::::", "1.2.3.4:", "%eth0", "\x00",
        "１.2.3.4", "for=192.0.2.7", "192.0.2.7 192.0.2.8", "<b>", "2130706433", "9" * 10**6,
        "1.2.3.4" + " " * 10**6, "[" * 10**6, "::1%" + "z" * 10**6,
    ],
)  # fmt: skip
def test_what_is_no_address(garbage: str) -> None:
    for visitor in (visitor_of(garbage, None, 0), visitor_of("10.0.0.1", garbage, 1)):
        assert visitor in (UNKNOWN, "1.2.3.4", "::/64") or (visitor, garbage) == ("10.0.0.1", "")


def test_nobody_at_all() -> None:
    assert visitor_of(None, None, 0) == UNKNOWN
    assert visitor_of(None, "", 1) == UNKNOWN


def test_who_comes_past_the_proxies_is_not_everybody() -> None:
    one, other = visitor_of("192.0.2.7", None, 1), visitor_of("192.0.2.8", None, 1)
    assert (one, other) == ("192.0.2.7", "192.0.2.8")


def test_without_proxies_the_header_means_nothing() -> None:
    assert visitor_of("192.0.2.7", "203.0.113.1, 203.0.113.2", 0) == "192.0.2.7"


@pytest.mark.parametrize(
    ("proxies", "visitor"),
    [
        (1, "203.0.113.3"),
        (2, "203.0.113.2"),
        (3, "203.0.113.1"),
        (4, "10.0.0.1"),
        (10**9, "10.0.0.1"),
    ],
)
def test_as_many_entries_are_true_as_there_are_proxies(proxies: int, visitor: str) -> None:
    header = "203.0.113.1, 203.0.113.2,203.0.113.3"
    assert visitor_of("10.0.0.1", header, proxies) == visitor


def test_no_garbage_in_front_changes_who_it_is() -> None:
    for forged in ("", "192.0.2.9", ",", "," * 10**6, "x" * 10**6, '"', "[::1", "a, b, c"):
        assert visitor_of("10.0.0.1", f"{forged}, 192.0.2.7", 1) == "192.0.2.7"
        assert visitor_of("10.0.0.1", f"{forged}, 192.0.2.7, 10.0.0.2", 2) == "192.0.2.7"


@given(st.text(max_size=60), st.text(max_size=60), st.integers(0, 3))
def test_whatever_comes_it_is_an_address_or_unknown(
    host: str, forwarded_for: str, proxies: int
) -> None:
    visitor = visitor_of(host, forwarded_for, proxies)
    assert visitor == UNKNOWN or ipaddress.ip_network(visitor)


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_one_customers_addresses_are_one_visitor(
    address: ipaddress.IPv6Address, other: int
) -> None:
    if address.ipv4_mapped is not None:
        return
    neighbour = ipaddress.IPv6Address(int(address) >> 64 << 64 | other)
    if neighbour.ipv4_mapped is None:
        assert visitor_of(str(address), None, 0) == visitor_of(str(neighbour), None, 0)
        beyond = ipaddress.IPv6Address(int(address) ^ 1 << 64)
        assert visitor_of(str(address), None, 0) != visitor_of(str(beyond), None, 0)


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_other_addresses_are_other_visitors(
    one: ipaddress.IPv4Address, other: ipaddress.IPv4Address
) -> None:
    same = visitor_of(str(one), None, 0) == visitor_of(f"::ffff:{other}", None, 0)
    assert same == (one == other)
