"""A killed process is named by the shell that watches it; one that ends by itself is not."""

from __future__ import annotations

import signal
import time

import pytest

from tests.helpers.launch import start_python


def ended(code: str, number: signal.Signals | None = None) -> tuple[int, str]:
    """Exit code and stderr of a process that announced rank 3, then ran the code; the signal comes after it."""
    process = start_python(["-c", f"from utils.ranks import killed_rank; killed_rank.announce(3); {code}"])
    if number is not None:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


WAITS = "print('ready', flush=True); import time; time.sleep(60)"


def test_a_killed_process_is_named():
    code, errors = ended(WAITS, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert errors.startswith("[rank 3] process ")
    assert "was killed" in errors


def test_a_process_killed_with_its_group_is_named():
    """As mpiexec.hydra does it."""
    group = "import os; os.setpgrp(); from utils.ranks import killed_rank; killed_rank.announce(3); os.killpg(0, 9)"
    process = start_python(["-c", group])
    assert "[rank 3] process " in process.communicate(timeout=60)[1]


@pytest.mark.parametrize(
    "code", ["pass", "raise SystemExit(2)", "killed_rank.cancel(); import os; os._exit(1)"]
)
def test_a_process_that_ends_by_itself_is_not(code):
    assert ended(code)[1] == ""


def test_a_watcher_that_is_gone_is_no_error():
    start = time.monotonic()
    kill = "import os; w = killed_rank._watchers[0]; w.kill(); w.wait()"
    assert ended(kill) == (0, "")
    assert time.monotonic() - start < 30
