"""A bounded memory of what was used last."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """Keeps the values used last, up to a total size. Safe to share between threads."""

    def __init__(self, max_size: int, size_of: Callable[[Value], int]) -> None:
        """Bound the cache.

        Args:
            max_size: Sum of the sizes of the values kept; a larger value is never kept.
            size_of: Size of a value, in the unit of `max_size`.
        """
        self._max_size = max_size
        self._size_of = size_of
        self._size = 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Sum of the sizes of the values kept."""
        return self._size

    def __len__(self) -> int:
        """How many values are kept."""
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The value of a key, which becomes the one used last; None if it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, dropping those unused for longest until all fit."""
        with self._lock:
            if key in self._values:
                self._size -= self._size_of(self._values.pop(key))
            self._values[key] = value
            self._size += self._size_of(value)
            while self._size > self._max_size:
                _, dropped = self._values.popitem(last=False)
                self._size -= self._size_of(dropped)
