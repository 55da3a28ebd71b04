"""Notices when libvips complains during a read: it returns a damaged tile as grey, with no more than a message."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pyvips

_PARALLEL_READ = "another read of this process failed at the same time"


class _Faults:
    """libvips has one buffer of messages for all threads.

    Who finds a message in it empties it and counts up; other reads during which the count went up may have
    been the cause, so they fail as well and are tried again. While a file is being opened libvips drops all
    messages, so nobody may read then.
    """

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()
        self._readers = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """No read goes on meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: not self._readers)
            yield

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """RuntimeError with the message if libvips complains meanwhile."""
        with self._changed:
            self._readers += 1
        try:
            self._take()  # old messages are nobody's fault
            with self._lock:  # after whoever counts up has emptied the buffer
                begun = self._count
            yield
            problem = self._take() or (_PARALLEL_READ if self._count != begun else "")
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()
        if problem:
            raise RuntimeError(problem)

    def _take(self) -> str:
        text = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
        if not text:
            return ""
        with self._lock:
            self._count += 1
            pyvips.vips_lib.vips_error_clear()
        return " ".join(text.decode(errors="replace").split())


vips_faults = _Faults()
