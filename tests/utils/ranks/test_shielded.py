"""A program to which SIGTERM does not come, while its own children get it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.helpers.interrupting import interruptible
from tests.helpers.launch import ROOT

# Its child takes all signals, as the ranks of Open MPI do.
PROGRAM = """
import signal, subprocess, sys, time
child = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, []))
print(child.pid, flush=True)
print(child.wait(), flush=True)
time.sleep(60)
"""


def test_sigterm_waits_at_the_program_and_reaches_its_children():
    words = [sys.executable, str(ROOT / "utils/ranks/shielded.py"), sys.executable, "-c", PROGRAM]
    with interruptible():
        started = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    with started as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        subprocess.run(["kill", str(child)], check=True)
        assert process.stdout.readline() == f"{-signal.SIGTERM}\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
