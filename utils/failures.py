"""What is said of an error that nobody expected: one line for the user, and the traceback in a file.

One slide that fails must not end the work on the others. Such an error may all the same be a fault of the program, so
it is never hidden: the line says its kind, the slide counts as failed, and the traceback is kept.
"""

from __future__ import annotations

import errno
import logging
import os
import traceback
from pathlib import Path

FILE = "failures.log"  # in the folder of the run or of the results
_VARIABLE = "FAILURES_FOLDER"  # of the environment, by which worker processes know the folder
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_EXHAUSTED = "ResourceExhaustedError"  # TensorFlow's, of the memory and of the disk alike
_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())
_log.propagate = False


class _File(logging.Handler):
    """Appends to a file whose folder is made when there is something to write."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / FILE

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self.format(record) + "\n")
        except OSError:  # a full disk: what failed is said on the terminal all the same
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Do nothing: logging would print a traceback of its own."""


def write_failures_to(folder: Path) -> None:
    """Write the tracebacks of `failure_of`, in worker processes as well, to failures.log in this folder from now on."""
    os.environ[_VARIABLE] = str(folder.absolute())
    handler = _File(folder)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _log.handlers = [handler]


def disk_is_full(error: Exception) -> bool:
    """Return whether an error says that the disk, or the user's share of it, is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_ROOM
    return type(error).__name__ == _EXHAUSTED and any(
        os.strerror(number) in str(error) for number in _NO_ROOM
    )


def ends_all(error: Exception) -> bool:
    """Return whether an error is not that of one slide: the memory is used up, for the next one as well."""
    return isinstance(error, MemoryError) or (type(error).__name__ == _EXHAUSTED and not disk_is_full(error))


def reason_of(error: Exception, what: str, expected: tuple[type[Exception], ...]) -> str:
    """Return the message of an `expected` error, or what `failure_of` says of another. Raises it if it `ends_all`."""
    return str(error) if isinstance(error, expected) and not ends_all(error) else failure_of(error, what)


def failure_of(error: Exception, what: str) -> str:
    """Return the line for an error that nobody expected in `what`, a slide say, and keep its traceback.

    Raises the error if it `ends_all`.
    """
    if ends_all(error):
        raise error
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return keep(type(error).__name__, str(error), what, trace)


def keep(kind: str, message: str, what: str, trace: str) -> str:
    """Do the same for an error of which only texts are left, as it came from another process."""
    _log.error("%s\n%s", what, trace)
    return f"failed: {kind}: {message}"


if os.environ.get(_VARIABLE):
    write_failures_to(Path(os.environ[_VARIABLE]))
