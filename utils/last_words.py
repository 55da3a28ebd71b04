"""Says which rank was killed: mpiexec.hydra only tells a process id, a batch system often nothing."""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import subprocess

_SCRIPT = 'read -r line || echo "$0 was killed (out of memory? see dmesg, or what the batch system says)" >&2'
_watchers: list[subprocess.Popen[bytes]] = []


def announce(rank: int) -> None:
    """From now on a line on stderr names the rank, should this process be killed.

    A shell waits for the end of a pipe that nobody but this process holds.
    """
    name = f"[rank {rank}] process {os.getpid()} on {platform.node()}"
    _watchers.append(subprocess.Popen(["/bin/sh", "-c", _SCRIPT, name], stdin=subprocess.PIPE))
    atexit.register(cancel)


def cancel() -> None:
    """This process ends by its own will."""
    while _watchers:
        watcher = _watchers.pop()
        with contextlib.suppress(BrokenPipeError):  # a signal to all processes has ended it before
            watcher.communicate(b"done\n")
