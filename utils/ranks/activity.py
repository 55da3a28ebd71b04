"""What a rank is doing, and since when: by that it is known which rank the others wait for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

DRAWS, WORKS, WAITS = range(3)


class Doing(NamedTuple):
    """What a rank is doing. Of two ranks the one with the smaller (place, order) is behind.

    `place`: how many activities were begun before, the same on all ranks. `order`: within it a rank that waits for
    patches (DRAWS) is behind one that works, and one that waits for the other ranks (WAITS) is never the cause.
    """

    place: int
    order: int
    what: str
    since: float  # of time.monotonic()


class Activity:
    """Notes what this rank is doing. The main thread writes, any thread reads `now`."""

    def __init__(self) -> None:
        self.now = Doing(0, WORKS, "starting", time.monotonic())

    def begin(self, what: str) -> None:
        """Note that the next activity begins. All ranks call it in the same order."""
        self.now = Doing(self.now.place + 1, WORKS, what, time.monotonic())

    def goes_on(self) -> None:
        """Note that this rank goes on within its activity: one that takes long is no stall."""
        self.now = self.now._replace(since=time.monotonic())

    def waiting(self) -> AbstractContextManager[None]:
        """Note that this rank waits for the other ones, inside of the `with` block."""
        return self._within(WAITS, self.now.what)

    def drawing(self) -> AbstractContextManager[None]:
        """Note that this rank waits for its sampler processes, inside of the `with` block."""
        return self._within(DRAWS, "waiting for patches")

    @contextmanager
    def _within(self, order: int, what: str) -> Iterator[None]:
        before = self.now
        self.now = Doing(before.place, order, what, time.monotonic())
        try:
            yield
        finally:
            self.now = before._replace(since=time.monotonic())
