import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.visitors import UNKNOWN, visitor_of


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
