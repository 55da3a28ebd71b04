"""Keeps a picture of a whole slide, which is too large for memory, in a sparse file of tiles."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.files import output_errors

TILE = 512  # side of a tile in pixels, as in ASAP's files; a tile of the raster is one of the TIFF


class Raster:
    """uint8 (height, width) in a sparse file without header, tile after tile, each row by row.

    Tiles in which no pixel but 0 was written are holes of the file: they take no room and are not read. In a file of
    rows of pixels the glass between two pieces of tissue would take room, and every pixel would have to be read again
    to find the tissue. Several processes may write, each its own pixels, and go on with a file that is there.
    OutputError: the file cannot be written, say on a full disk.
    """

    def __init__(self, path: Path, width: int, height: int) -> None:
        self.path, self.width, self.height = path, width, height
        self.rows, self.columns = -(-height // TILE), -(-width // TILE)  # of tiles
        with output_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._file, self.rows * self.columns * TILE * TILE)

    def write(self, x: int, y: int, pixels: np.ndarray) -> None:
        """Write uint8 (h, w) at (x, y).

        Not through a memory map, with which a full disk would kill the process without a message.
        """
        with output_errors(self.path):
            for row, column, inside, outside in self._parts(x, y, pixels.shape[1], pixels.shape[0]):
                part = pixels[outside]
                if part.any() or (self.holds(row, column) and self._read(row, column, inside).any()):
                    self._write(row, column, inside, part)

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return the pixels from (x, y) on: uint8 (height, width), or less at the right and the bottom end."""
        width, height = min(width, self.width - x), min(height, self.height - y)
        pixels = np.zeros((height, width), np.uint8)
        for row, column, inside, outside in self._parts(x, y, width, height):
            if self.holds(row, column):
                pixels[outside] = self._read(row, column, inside)
        return pixels

    def tile(self, row: int, column: int) -> np.ndarray:
        """Return a tile: uint8 (TILE, TILE), with 0 beyond the right and the bottom end."""
        whole = slice(0, TILE), slice(0, TILE)
        return self._read(row, column, whole)

    def holds(self, row: int, column: int) -> bool:
        """Return whether a tile may have other pixels than 0.

        File systems that do not say where their holes are (NFS before 4.2) say so of each tile.
        """
        first = self._place(row, column)
        try:
            return os.lseek(self._file, first, os.SEEK_DATA) < first + TILE * TILE
        except OSError as error:
            return error.errno != errno.ENXIO  # which says that there is nothing from here to the end

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        with output_errors(self.path):
            os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def discard(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _place(self, row: int, column: int) -> int:
        return (row * self.columns + column) * TILE * TILE

    def _parts(
        self, x: int, y: int, width: int, height: int
    ) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
        """Yield row and column of each tile that a rectangle touches, its part of the tile and of the rectangle."""
        for row in range(y // TILE, -(-(y + height) // TILE)):
            inside_y, outside_y = _shared(row, y, height)
            for column in range(x // TILE, -(-(x + width) // TILE)):
                inside_x, outside_x = _shared(column, x, width)
                yield row, column, (inside_y, inside_x), (outside_y, outside_x)

    def _read(self, row: int, column: int, inside: tuple[slice, slice]) -> np.ndarray:
        rows, columns = inside
        first = self._place(row, column) + rows.start * TILE
        pixels = np.empty((rows.stop - rows.start, TILE), np.uint8)
        if os.preadv(self._file, [pixels.data], first) != pixels.nbytes:
            raise OSError(f"{self.path} was cut short while it was read")
        return pixels[:, columns]

    def _write(self, row: int, column: int, inside: tuple[slice, slice], pixels: np.ndarray) -> None:
        rows, columns = inside
        first = self._place(row, column) + rows.start * TILE + columns.start
        # The rows of a part as wide as the tile lie one behind the other.
        lines = pixels if pixels.shape[1] < TILE else pixels.reshape(1, -1)
        for number, line in enumerate(np.ascontiguousarray(lines)):
            if os.pwrite(self._file, line.data, first + number * TILE) != len(line):
                raise OSError("no space left")


def _shared(tile: int, first: int, extent: int) -> tuple[slice, slice]:
    """Return where a tile and [first, first + extent) overlap along an axis: in the tile, and in the extent."""
    start, stop = max(first, tile * TILE), min(first + extent, (tile + 1) * TILE)
    return slice(start - tile * TILE, stop - tile * TILE), slice(start - first, stop - first)
