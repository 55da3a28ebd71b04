"""Finds out whether libvips complained during a read: a damaged tile comes back grey, and there is only a message."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pyvips

_PARALLEL_READ = "another read of this process failed at the same time"


class _Faults:
    """Watches libvips' buffer of messages, of which there is one for all threads.

    A read that finds a message empties the buffer and increments the count. Other reads during which the count rose
    may have been the cause, so they fail as well and are tried again. While a file is being opened libvips drops all
    messages, so no thread may read then.
    """

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()
        self._readers = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Wait until no thread reads, and let none begin."""
        with self._changed:
            self._changed.wait_for(lambda: not self._readers)
            yield

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Raise RuntimeError with libvips' message if it complains in the body."""
        with self._changed:
            self._readers += 1
        try:
            self._take()  # an old message is not this read's
            with self._lock:  # waits for a thread that is emptying the buffer
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


def vips_call(operation: str, *arguments: Any, **options: Any) -> Any:
    """Call an operation of libvips, the way to do so while other threads may read.

    `image.crop(…)` is the same, but asks first whether the image has a property of this name, and libvips writes that
    it has none into its buffer of messages, where another thread's read takes it for damage of its own file.
    """
    return pyvips.Operation.call(operation, *arguments, **options)
