"""Ends a program at Ctrl-C, quietly at any moment: one line instead of a traceback, and exit code 130.

Only for programs that may be killed at any moment, since the same command goes on where they stopped. Imports
nothing slow, because a program can be interrupted while it imports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from utils.ranks import killed_rank
from utils.ranks.launcher import launcher_rank

MESSAGE = "interrupted: the same command goes on"
STOPPED = "stopped before there was anything to save: the same command starts again"


def end_interrupted(number: int, stopped: int | None = None) -> NoReturn:
    """End this process and those of `multiprocessing` that it started, as one that a signal has ended.

    `stopped`: the exit code of a run that a batch system has stopped, instead.
    """
    with contextlib.suppress(RuntimeError, OSError):  # RuntimeError: the signal came during a write
        sys.stdout.flush()
    if (number == signal.SIGINT or stopped is not None) and launcher_rank()[0] == 0:
        os.write(2, f"\n{MESSAGE if stopped is None else STOPPED}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    killed_rank.cancel()  # it would say that this process was killed
    os._exit(128 + number if stopped is None else stopped)  # as a shell reports it


def end_quietly(stopped: int | None = None) -> None:
    """Let Ctrl-C end this process, and the processes of `multiprocessing` that it started, from now on.

    Only rank 0 says so. SIGTERM ends it as quietly: Open MPI's mpirun sends it to its ranks at Ctrl-C. This is a signal
    handler because Python may raise a KeyboardInterrupt anywhere: in a destructor, a thread's start or the
    interpreter's shutdown nothing can catch it, and its traceback is printed. A shell's background job, which ignores
    Ctrl-C, keeps doing so.

    `stopped`: SIGTERM and SIGUSR1, by which batch systems stop a run, end it with this exit code.
    """
    by_hand = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    codes: dict[int, int | None] = dict.fromkeys((signal.SIGINT, signal.SIGTERM)) if by_hand else {}
    if stopped is not None:
        codes |= dict.fromkeys((signal.SIGTERM, signal.SIGUSR1), stopped)
    for number in codes:
        signal.signal(number, lambda number, _: end_interrupted(number, codes[number]))
    if by_hand:
        # Python's resource tracker, a process of its own, cleans up after this one, and would warn of it.
        warnings = os.environ.get("PYTHONWARNINGS", "")
        os.environ["PYTHONWARNINGS"] = ",".join(
            filter(None, [warnings, "ignore:resource_tracker:UserWarning"])
        )


@contextlib.contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Let Ctrl-C take effect at the end of the block, in which processes are started. For the main thread only.

    The processes are started with SIGINT blocked: a terminal sends it to all of them, and this one answers for them.
    Blocking it here alone would not do, since the signal may come to another thread.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN if before is signal.SIG_IGN else lambda *_: pressed.append(1))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)
