"""Decides when a run stops early: after a signal of the batch system, or when its time is nearly up."""

from __future__ import annotations

import signal
import time
from typing import Any

import psutil

MIN_RESERVE = 30.0  # seconds that are left for a checkpoint


class Stopping:
    """Says whether this rank asks to stop. `time_limit` is in seconds since the process started; None for no limit."""

    def __init__(self, time_limit: float | None) -> None:
        self.time_limit = time_limit
        self.signalled = False

    def listen(self) -> None:
        """From now on SIGTERM and SIGUSR1, which Slurm sends before the time is up, ask to stop."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._take_signal)

    def requested(self, longest_pause: float) -> bool:
        """Return whether to write a checkpoint and stop now.

        `longest_pause`: the longest time in seconds that a validation with its checkpoint took so far. Two of them
        fit into the time that is left.
        """
        return self.signalled or self._time_is_up(max(MIN_RESERVE, 2 * longest_pause))

    def _take_signal(self, number: int, frame: Any) -> None:
        self.signalled = True

    def _time_is_up(self, reserve: float) -> bool:
        if self.time_limit is None:
            return False
        return time.time() - psutil.Process().create_time() + reserve > self.time_limit
