"""Keeps a picture of a whole slide, which is too large for memory, in a sparse file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from utils.files import output_errors


class Raster:
    """uint8 (height, width) in a sparse file without header. Pixels that were not written are 0 and take no room.

    Several processes may write, each its own pixels. OutputError: the file cannot be written, say on a full disk.
    """

    def __init__(self, path: Path, width: int, height: int) -> None:
        self.path, self.width, self.height = path, width, height
        with output_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._file, width * height)

    def write(self, x: int, y: int, pixels: np.ndarray) -> None:
        """Write uint8 (h, w) at (x, y).

        Not through a memory map, with which a full disk would kill the process without a message.
        """
        with output_errors(self.path):
            for row, line in enumerate(np.ascontiguousarray(pixels), y):
                if os.pwrite(self._file, line.data, row * self.width + x) != len(line):
                    raise OSError("no space left")

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return the pixels from (x, y) on: uint8 (height, width), or less at the right and the bottom end."""
        pixels = np.memmap(self.path, np.uint8, "r", shape=(self.height, self.width))
        return np.array(pixels[y : y + height, x : x + width])

    def close(self) -> None:
        os.close(self._file)

    def discard(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)
