"""A file that is read at any place, with a bounded number of descriptors for all files of the process."""

from __future__ import annotations

import os
from pathlib import Path

from samplers.slides.cache import BoundedCache
from samplers.slides.errors import DataError

MAX_DESCRIPTORS = 128  # of 1024 that a process may have by default; 500 slides and 500 masks are open at once


def require_file(path: Path) -> None:
    """Raise DataError if there is no such file, or nothing in it."""
    if path.is_symlink() and not os.path.exists(path):
        raise DataError(f"{path}: is a link to {os.readlink(path)}, which is not there")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)")


class StoredFile:
    """A file for reading. Several threads may read at once: each read names its place (`os.pread`).

    The descriptor is closed if many other files were read since, and opened again when it is needed. A file that has
    another size or time then is refused: places that were found in it before may hold something else now. Raises
    DataError if it has changed or is too short, OSError if it cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = _Descriptor(path)
        self.size, self._time = descriptor.state()
        _descriptors.put(self, descriptor)

    def read(self, position: int, size: int) -> bytes:
        """Return `size` bytes from a position on."""
        if position < 0 or position + size > self.size:
            raise DataError(f"byte {position + size} is behind the end of the file, at {self.size}")
        descriptor = self._descriptor()  # is not closed while it is known here
        data = os.pread(descriptor.number, size, position)
        while len(data) < size:  # a single read of Linux ends after 2 GB
            more = os.pread(descriptor.number, size - len(data), position + len(data))
            if not more:
                raise DataError(f"the file has been cut off at byte {position + len(data)}")
            data += more
        return data

    @property
    def has_changed(self) -> bool:
        try:
            status = self.path.stat()
        except OSError:
            return True
        return (status.st_size, status.st_mtime_ns) != (self.size, self._time)

    def close(self) -> None:
        _descriptors.pop(self)

    def _descriptor(self) -> _Descriptor:
        found = _descriptors.get(self)
        if found is None:
            found = _Descriptor(self.path)
            if found.state() != (self.size, self._time):
                raise DataError("its size or its time is another")
            _descriptors.put(self, found)
        return found


class _Descriptor:
    """A descriptor that is closed when the last thread that uses it has forgotten it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def state(self) -> tuple[int, int]:
        """Return size and time of the last change in nanoseconds."""
        status = os.fstat(self.number)
        return status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_descriptors: BoundedCache[StoredFile, _Descriptor] = BoundedCache(MAX_DESCRIPTORS)
