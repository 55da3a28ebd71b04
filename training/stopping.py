"""Decides when a run stops early: at Ctrl-C, after a signal of the batch system, or when its time is nearly up."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from utils.interrupt import end_interrupted

MIN_RESERVE = 30.0  # seconds that are left for a checkpoint
ONCE = "Ctrl-C: the run stops with a checkpoint after this step or validation; Ctrl-C again ends it at once"


class Stopping:
    """Says whether this rank asks to stop. `time_limit` is in seconds since the process started; None for no limit."""

    def __init__(self, time_limit: float | None) -> None:
        self.time_limit = time_limit
        self.signalled = False
        self.interrupts = 0  # how often Ctrl-C was pressed

    def listen(self, say: Callable[[str], None]) -> None:
        """From now on SIGTERM and SIGUSR1, which Slurm sends before the time is up, and Ctrl-C ask to stop.

        A shell's background job, which ignores Ctrl-C, keeps doing so.
        """
        read, write = os.pipe()
        os.set_blocking(write, False)
        threading.Thread(target=self._watch, args=(read, say), daemon=True).start()
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take_signal)

    def requested(self, longest_pause: float, next_update: float = 0.0) -> bool:
        """Return whether to write a checkpoint and stop now.

        `longest_pause`: the longest time in seconds that a validation with its checkpoint took so far. Two of them
        fit into the time that is left, and before them the next update, which takes `next_update` seconds.
        """
        return self.signalled or self.seconds_left(longest_pause) < next_update

    def seconds_left(self, longest_pause: float) -> float:
        """Return the seconds until the run has to stop for its time limit, see `requested`; infinity without one."""
        if self.time_limit is None:
            return math.inf
        passed = time.time() - psutil.Process().create_time()
        return self.time_limit - passed - max(MIN_RESERVE, 2 * longest_pause)

    def _take_signal(self, number: int, frame: Any) -> None:
        self.signalled = True

    def _watch(self, descriptor: int, say: Callable[[str], None]) -> None:
        """Take signals in a thread: Python calls `_take_signal` after TensorFlow's step only, which may take long."""
        while numbers := os.read(descriptor, 64):
            self.signalled = True
            for _ in range(numbers.count(signal.SIGINT)):
                self.interrupts += 1
                if self.interrupts > 1:
                    end_interrupted(signal.SIGINT)
                say(ONCE)
