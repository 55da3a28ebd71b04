"""Ends a program at Ctrl-C, quietly at any moment: one line instead of a traceback, and exit code 130.

Only for programs that may be killed at any moment, since the same command goes on where they stopped. Imports
nothing slow, because a program can be interrupted while it imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def end_quietly(before_end: Callable[[], None] = lambda: None, speaks: bool = True) -> None:
    """Let Ctrl-C end this process from now on. `before_end` is called first; one rank of several `speaks`.

    This is a signal handler because Python may raise a KeyboardInterrupt anywhere. In a destructor, a thread's start
    or the interpreter's shutdown nothing can catch it, and its traceback is printed. A shell's background job, which
    ignores Ctrl-C, keeps doing so.
    """

    def end(*_: object) -> None:
        with contextlib.suppress(RuntimeError, OSError):  # RuntimeError: the signal came during a write
            sys.stdout.flush()
        if speaks:
            os.write(2, b"\ninterrupted: the same command goes on\n")
        before_end()
        os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)


@contextlib.contextmanager
def interrupt_deferred() -> Iterator[Callable[[], bool]]:
    """Keep Ctrl-C from ending the block: it takes effect at the block's end. For the main thread only.

    Yields a function that returns whether Ctrl-C was pressed, so that the block can end early.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)
