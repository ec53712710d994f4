"""Who a visitor is, how often each may ask, and how long a request's body may be."""

import asyncio
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

UNKNOWN = "unknown"

# Seconds without new body bytes before a request is dropped.
BODY_SECONDS = 30.0

# An IPv6 address with zone, brackets and port is shorter.
_MAX_ADDRESS_CHARACTERS = 100


class RateLimiter:
    """A token bucket for each visitor. Thread-safe.

    A visitor who is not remembered has a full bucket. A bucket that is not used for
    `burst / per_minute` minutes is full again, so forgetting an older one changes nothing; of more
    than `max_visitors` in that time, those unseen for longest get theirs filled early.
    """

    def __init__(
        self,
        per_minute: float,
        burst: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_visitors: int = 10_000,
    ) -> None:
        """Begin with full buckets.

        Args:
            per_minute: What each visitor may take in the long run, above 0.
            burst: What each visitor may take at once.
            clock: Seconds that never go back.
            max_visitors: How many are remembered.
        """
        self._per_second, self._burst = per_minute / 60, burst
        self._clock, self._max_visitors = clock, max_visitors
        # Visitor -> what was left, and when; the one seen last at the end.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, visitor: str, amount: float = 1, spare: float = 0) -> float:
        """Take an amount, if it is there.

        Args:
            visitor: Whose bucket.
            amount: How much.
            spare: How much has to be left in the bucket, if it can hold both.

        Returns:
            0.0 if it was taken; otherwise nothing was, and this is the number of seconds until it
            may be: infinity for more than the burst.
        """
        with self._lock:
            now = self._clock()
            left, then = self._buckets.pop(visitor, (self._burst, now))
            left = min(self._burst, left + (now - then) * self._per_second)
            missing = amount + max(0.0, min(spare, self._burst - amount)) - left
            self._buckets[visitor] = (left if missing > 0 else left - amount, now)
            if len(self._buckets) > self._max_visitors:
                self._buckets.popitem(last=False)
        if amount > self._burst:
            return float("inf")
        return max(missing, 0.0) / self._per_second


def visitor_of(client_host: str | None, forwarded_for: str | None, proxies: int) -> str:
    """The visitor behind a request.

    A client can write anything into `X-Forwarded-For`; each proxy appends the address that it was
    asked from. With n trusted proxies, the n-th entry from the right is true and all before it
    may be made up.

    Args:
        client_host: Address that the connection comes from.
        forwarded_for: The request's `X-Forwarded-For`, several of them joined by commas.
        proxies: Number of trusted proxies that every request comes through.

    Returns:
        An IPv4 address, the /64 network of an IPv6 address (what one customer gets), or `unknown`.
        Of a request with fewer entries than proxies, the client host's.
    """
    # From the right, and no further than needed: the header may be long.
    entries = forwarded_for.rsplit(",", proxies)[-proxies:] if forwarded_for and proxies else []
    through_all = 0 < proxies == len(entries)
    text = entries[0] if through_all else client_host or ""
    try:
        address = ipaddress.ip_address(_bare(text) if len(text) <= _MAX_ADDRESS_CHARACTERS else "")
    except ValueError:
        return UNKNOWN
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))


def _bare(text: str) -> str:
    """An address without quotes, brackets, port and zone, which some proxies add."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return text.partition("%")[0]


def bounded_body(
    scope: Scope, receive: Receive, limit: int, count: Callable[[int], None] | None = None
) -> Receive:
    """`receive` of a request, which refuses a body that is too long, too slow or cut off.

    Args:
        scope: Of the request.
        receive: What bounds are set to.
        limit: Bytes of the body.
        count: Is called with the length of each part, and may raise.

    Raises:
        HTTPException: 413 at once, if the body is declared longer.
    """
    length, left, whole = Headers(scope=scope).get("content-length", ""), limit, False
    too_long = HTTPException(413, f"This request's body may have at most {limit} bytes.")
    if length.isdecimal() and int(length) > limit:
        raise too_long

    async def receive_part() -> Message:
        nonlocal left, whole
        if whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), BODY_SECONDS)
        except TimeoutError as error:
            raise HTTPException(408, "The request's body did not arrive in time.") from error
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "The request ended before its body did.")
        part = len(message.get("body", b""))
        left -= part
        if left < 0:
            raise too_long
        if count is not None:
            count(part)
        whole = not message.get("more_body", False)
        return message

    return receive_part
