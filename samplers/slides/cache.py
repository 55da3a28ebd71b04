"""A bounded cache that several threads may use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Keeps the values that were used last, as long as their costs add up to at most `limit`.

    The newest one stays, whatever it costs. The lock is held for a look-up only, never while a value is made.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.cost = limit, 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, cost: int = 1) -> list[V]:
        """Keep a value, or state its new cost. Return the values that are kept no longer."""
        dropped = []
        with self._lock:
            self.cost += cost - self._values.pop(key, (value, 0))[1]
            self._values[key] = value, cost
            while self.cost > self.limit and len(self._values) > 1:
                old, its_cost = self._values.popitem(last=False)[1]
                self.cost -= its_cost
                dropped.append(old)
        return dropped

    def pop(self, key: K) -> V | None:
        """Forget a value and return it; None if it is not there."""
        with self._lock:
            value, cost = self._values.pop(key, (None, 0))
            self.cost -= cost
            return value

    def __len__(self) -> int:
        return len(self._values)

    def clear(self) -> list[V]:
        """Forget all values and return them."""
        with self._lock:
            values = [value for value, _ in self._values.values()]
            self._values.clear()
            self.cost = 0
            return values
