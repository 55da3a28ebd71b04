"""When a run is asked to stop."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from training import stopping
from training.stopping import MIN_RESERVE, Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_of_the_batch_system_asks_to_stop(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    try:
        found = Stopping(None)
        found.listen()
        assert not found.requested(0.0)
        os.kill(os.getpid(), number)
        assert found.requested(0.0)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR1, before[1])


def test_the_time_limit_leaves_time_for_two_pauses(monkeypatch):
    start = psutil.Process().create_time()
    found = Stopping(1000.0)

    def asked_after(seconds: float, longest_pause: float) -> bool:
        monkeypatch.setattr(stopping.time, "time", lambda: start + seconds)
        return found.requested(longest_pause)

    assert not asked_after(1000 - MIN_RESERVE - 1, 0.0)
    assert asked_after(1000 - MIN_RESERVE + 1, 0.0)
    assert not asked_after(599, 200.0)
    assert asked_after(601, 200.0)
