"""Sends Ctrl-C to a program as a terminal does, and tells what the user then sees."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.launch import start_python, wait_for


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let programs that are started within take SIGINT.

    A shell that runs in the background ignores the signal, and so would the tests and whatever they start.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt(
    command: Sequence[Any], ready: Callable[[subprocess.Popen[str]], Any], late: float, ranks: int = 1
) -> tuple[int, list[str]]:
    """Start a program, wait until `ready` is true and `late` seconds more, and send SIGINT to its process group.

    Returns the exit code and the lines on stderr, without warnings about the slides.
    """
    with interruptible():
        process = start_python(list(command), ranks, start_new_session=True)
    wait_for(lambda: ready(process), process)
    time.sleep(late)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, [line for line in errors.splitlines() if line and line[:8] != "warning:"]


def imports(process: subprocess.Popen[str]) -> bool:
    """Return whether the program is at its slow imports."""
    return "numpy" in Path(f"/proc/{process.pid}/maps").read_text()
