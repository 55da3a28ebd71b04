"""When a run is asked to stop."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from tests.helpers.interrupting import imports
from tests.helpers.launch import start_python, wait_for
from training import stopping
from training.stopping import MIN_RESERVE, ONCE, Stopping
from utils.cli import EXIT_STOPPED
from utils.interrupt import MESSAGE, STOPPED

LONG_STEP = """
import os, signal, subprocess, sys, threading, time, numpy
from training.stopping import Stopping
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started this process
numbers = numpy.random.default_rng(0).random(20_000_000)
stopping = Stopping(None)
stopping.listen(lambda line: os.write(1, line.encode()))
words = " ".join(sys.argv[1:])
sender = subprocess.Popen(["sh", "-c", f"for number in {words}; do sleep 0.2; kill -$number $PPID; done"])
within, seen = [True], []
def watch():
    while within and not stopping.signalled:
        time.sleep(0.01)
    seen.append(bool(within))
watcher = threading.Thread(target=watch)
watcher.start()
numbers.sort(kind="stable")  # holds the main thread for seconds, as a step does: Python's handlers wait
within.clear()
sender.wait()
watcher.join()
print("", stopping.requested(0.0), stopping.interrupts, *seen)
"""


def after(*numbers: signal.Signals) -> tuple[int, str]:
    """Return the exit code and the output of a process that gets these signals while it computes."""
    command = [sys.executable, "-c", LONG_STEP, *(str(int(number)) for number in numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_of_the_batch_system_asks_to_stop(number):
    assert after(number, number) == (0, " True 0 True\n")
    assert after() == (0, " False 0 False\n")


def test_ctrl_c_asks_to_stop_and_a_second_one_ends_at_once():
    assert after(signal.SIGINT) == (0, f"{ONCE} True 1 True\n")
    assert after(signal.SIGINT, signal.SIGINT) == (130, f"{ONCE}\n{MESSAGE}\n")


def test_the_time_limit_leaves_time_for_two_pauses(monkeypatch):
    start = psutil.Process().create_time()
    found = Stopping(1000.0)

    def asked_after(seconds: float, longest_pause: float, next_update: float = 0.0) -> bool:
        monkeypatch.setattr(stopping.time, "time", lambda: start + seconds)
        return found.requested(longest_pause, next_update)

    assert not asked_after(1000 - MIN_RESERVE - 1, 0.0)
    assert asked_after(1000 - MIN_RESERVE + 1, 0.0)
    assert not asked_after(599, 200.0)
    assert asked_after(601, 200.0)
    # and for the update that would be begun
    assert not asked_after(499, 200.0, 100.0)
    assert asked_after(501, 200.0, 100.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_there_is_anything_to_save_stops_the_run_as_well(number, tmp_path):
    process = start_python(["train.py", "--slide_path", tmp_path])
    wait_for(lambda: imports(process), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED
    assert errors.strip() == STOPPED
