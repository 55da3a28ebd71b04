"""Clocks of a run: one that can be paused, and one that times batch after batch."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator

import numpy as np


class Stopwatch:
    """Counts seconds from `start` on, without its pauses. `seconds`: what it begins with."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + running

    def start(self) -> None:
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time that is spent inside the `with` block."""
        self._before, self._started = self.seconds, None
        yield
        self.start()


class Laps:
    """Times the last 500 batches, each by itself."""

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=500)

    def start(self) -> None:
        self._started = time.perf_counter()

    def lap(self) -> None:
        """End the present batch and begin the next one."""
        self.seconds.append(time.perf_counter() - self._started)
        self.start()

    @property
    def usual(self) -> float:
        """Return the mean seconds per batch without outliers: the first batch waits for its graph."""
        seconds = np.array(self.seconds)
        return float(seconds[seconds <= 3 * np.median(seconds)].mean())
