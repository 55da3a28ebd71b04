"""A picture of a whole slide that is too large for the memory, in a file: what was not written takes no room."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from utils.files import OutputError


class Raster:
    """uint8 (height, width) in a sparse file without header; what was not written is 0.

    Several processes may write, each its own pixels. OutputError: the file cannot be written (a full disk).
    """

    def __init__(self, path: Path, width: int, height: int) -> None:
        self.path, self.width, self.height = path, width, height
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._file, width * height)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error}") from error

    def write(self, x: int, y: int, pixels: np.ndarray) -> None:
        """Puts uint8 (h, w) at (x, y). Not through a map: a full disk would kill the process without a word."""
        try:
            for row, line in enumerate(np.ascontiguousarray(pixels), y):
                if os.pwrite(self._file, line.data, row * self.width + x) != len(line):
                    raise OSError("no space left")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """uint8 (height, width) of what is there; less at the right and the bottom end."""
        pixels = np.memmap(self.path, np.uint8, "r", shape=(self.height, self.width))
        return np.array(pixels[y : y + height, x : x + width])

    def close(self) -> None:
        os.close(self._file)

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
