"""Ranks that are threads of this process: their exchanges are real, and one that a rank stays away from fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from utils.ranks.single import Ranks

T = TypeVar("T")
WAIT = 60.0  # seconds after which a rank that does not come is taken as one that never will


class Meeting:
    """The place where the threads meet."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=WAIT)


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """One of `size` ranks."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1), kw_only=True, compare=False, repr=False)

    def gather(self, value: T) -> list[T]:
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        found = list(self.meeting.values)
        self.meeting.barrier.wait()
        return found

    def broadcast(self, value: T) -> T:
        return self.gather(value)[0]


def on_ranks(size: int, function: Callable[[ThreadRanks], T]) -> list[T]:
    """Return what `function` returns on each rank. BrokenBarrierError: a rank was missing in an exchange."""
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        ranks = [ThreadRanks(rank, size, meeting=meeting) for rank in range(size)]
        return list(pool.map(function, ranks))
