"""How often each visitor may ask."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimiter:
    """A bucket of tokens for each visitor, which fills steadily. Safe to share between threads.

    Whoever is not among the visitors remembered has a full bucket. A bucket is full again after
    `burst / per_minute` minutes without use, so forgetting an older one changes nothing; where
    more visitors than `max_visitors` come within that time, the ones unseen for longest get
    theirs filled early.
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

    def take(self, visitor: str, amount: float = 1) -> float:
        """Take some, if it is there.

        Args:
            visitor: Who asks.
            amount: What for; more than the burst is never there.

        Returns:
            0.0 if it was taken; otherwise nothing was, and this is how many seconds it takes
            until it may be: infinitely many for what is more than the burst.
        """
        with self._lock:
            now = self._clock()
            left, then = self._buckets.pop(visitor, (self._burst, now))
            left = min(self._burst, left + (now - then) * self._per_second)
            missing = amount - left
            self._buckets[visitor] = (left if missing > 0 else -missing, now)
            if len(self._buckets) > self._max_visitors:
                self._buckets.popitem(last=False)
        if amount > self._burst:
            return float("inf")
        return max(missing, 0.0) / self._per_second
