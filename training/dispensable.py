"""What a run can do without: a picture, a curve or a page that cannot be written never ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf

from samplers.slides.errors import DataError
from utils.failures import reason_of

# A full disk, a slide that vanished, and a full disk as TensorFlow reports it.
EXPECTED = OSError, DataError, tf.errors.OpError


class Dispensable:
    """Lets the run go on where something that it can do without fails, and says so once for each kind of thing.

    `with dispensable("report.html"): …` warns of any error but used-up memory, which the next step would not have
    either. The traceback of an error that nobody expected is kept in failures.log. No collective may be in the block:
    the other ranks would wait for this one.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()
        self.failures = 0

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failures += 1
            reason = reason_of(error, what, EXPECTED)
            if what not in self._said:
                self._said.add(what)
                self._say(f"warning: {what} cannot be written, the run goes on without: {reason}")
