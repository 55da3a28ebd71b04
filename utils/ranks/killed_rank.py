"""Says which rank was killed: mpiexec.hydra only tells a process id, a batch system often nothing."""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from utils.cli import EXIT_FAILED, NO_ROOM
from utils.failures import disk_is_full, ends_all
from utils.ranks.abort import abort_all
from utils.ranks.launcher import launcher_rank

_SCRIPT = (
    'read -r line || echo "$0 was killed (out of memory? see dmesg, or what the batch system says; '
    'of several ranks the first one named is the cause)" >&2'
)
_watchers: list[subprocess.Popen[bytes]] = []


def announce(rank: int) -> None:
    """Have a line on stderr name the rank, should this process be killed from now on.

    A shell waits for the end of a pipe that nobody but this process holds, in a session of its own:
    mpiexec.hydra kills the whole process group of a rank that is gone.
    """
    name = f"[rank {rank}] process {os.getpid()} on {platform.node()}"
    shell = ["/bin/sh", "-c", _SCRIPT, name]
    _watchers.append(subprocess.Popen(shell, stdin=subprocess.PIPE, start_new_session=True))
    atexit.register(cancel)


def cancel() -> None:
    """Note that this process ends by its own will."""
    while _watchers:
        watcher = _watchers.pop()
        with contextlib.suppress(BrokenPipeError):  # a signal to all processes has ended it before
            watcher.communicate(b"done\n")


def text_of(error: Exception, advice: str, expected: tuple[type[Exception], ...] = ()) -> str:
    """Return what a rank says of the error that ends it: its traceback, unless its message explains it.

    Running out of memory is answered with `advice`, a full disk and an `expected` error with their messages alone.
    """
    if disk_is_full(error):
        return f"{NO_ROOM.format(f'the disk is full: {str(error)[:500]}')}\n"
    if ends_all(error):
        return f"{str(error)[:500]}\n{advice}\n"
    if isinstance(error, expected):
        return f"{error}\n"
    return "\n" + "".join(traceback.format_exception(type(error), error, error.__traceback__))


def end_at_once(text: str, code: int = EXIT_FAILED, before: Callable[[], None] = lambda: None) -> NoReturn:
    """Say why this rank failed, and end at once: a rank that failed must not wait in Horovod's shutdown.

    The launcher ends the others. Without a `text` it ends quietly, because another rank says why. `before` is called
    when all is said.
    """
    with contextlib.suppress(OSError, ValueError):  # what reads the output may have ended, as `head` does
        sys.stdout.flush()  # os._exit would lose what is still in the buffer
    if text:
        sys.stderr.write(f"[rank {launcher_rank()[0]}] failed: {text}")
    sys.stderr.flush()
    cancel()
    before()
    abort_all(code)
    os._exit(code)
