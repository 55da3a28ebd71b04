"""A worker process: `python -m samplers.workers.worker CONTROL_FD RING_FD`, started by samplers.workers.loader.

It writes the batches `first`, `first + step`, … to its ring and talks to the consumer over the control socket:

    consumer → worker   Setup                           once
                        ("start", epoch, first, count)  begin anew at batch `first`; count None means endless
                        ("free", epoch, slot)           the slot may be overwritten
                        ("drop", slide, index)          draw nothing from the slide from batch `index` on
                        ("again", epoch, index, slot, ruling)   fill a batch anew, as the ranks of a group have ruled
    worker → consumer   ("batch", epoch, index, slot, filled)
                        ("error", traceback)            the last message

It is a new process and not a fork, because the consumer runs TensorFlow and MPI, which do not survive a fork.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

import cv2

from samplers.workers import ring
from samplers.workers.ring import IGNORED_SIGNALS, Setup


class ConsumerGoneError(Exception):
    """The other end of the control socket is closed."""


def receive(control: Connection) -> Any:
    try:
        return control.recv()
    except (EOFError, ConnectionError) as error:
        raise ConsumerGoneError from error


def send(control: Connection, message: tuple) -> None:
    try:
        control.send(message)
    except ConnectionError as error:
        raise ConsumerGoneError from error


def serve(control: Connection, ring_fd: int) -> None:
    """Fill batches until the consumer is gone, which raises ConsumerGoneError."""
    setup: Setup = receive(control)
    slots = ring.views(ring_fd, setup.batch_size, setup.img_size, setup.slots, setup.height)
    os.close(ring_fd)
    sampler = setup.make_sampler()
    free: deque[int] = deque()
    epoch, index, count = -1, 0, 0  # nothing to do until the first "start"
    while True:
        while control.poll() or not free or not (count is None or index < count):
            kind, *arguments = receive(control)
            if kind == "start":
                epoch, index, count = arguments
                free = deque(range(setup.slots))
            elif kind == "drop":
                sampler.drop(*arguments)
            elif kind == "again":
                *place, ruling = arguments  # epoch, index, slot
                images, labels = slots[place[2]]
                send(control, ("batch", *place, sampler.fill(place[1], images, labels, ruling)))
            elif arguments[0] == epoch:
                free.append(arguments[1])
        slot = free.popleft()
        filled = sampler.fill(index, *slots[slot])
        send(control, ("batch", epoch, index, slot, filled))
        index += setup.step


def main(argv: list[str]) -> int:
    for signum in IGNORED_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)  # the consumer had blocked them for the start
    faulthandler.enable()
    cv2.setNumThreads(1)
    control, ring_fd = Connection(int(argv[0])), int(argv[1])
    try:
        serve(control, ring_fd)
    except ConsumerGoneError:
        return 0
    except BaseException:
        # The consumer raises whatever error this is; nobody reads the exit code of this process.
        send(control, ("error", traceback.format_exc()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
