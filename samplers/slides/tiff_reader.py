"""Reads regions of the levels of a TIFF file: finds the tiles in the file, reads and decodes them one by one.

A region's tiles are looked up in the lists of the file, which takes two reads. Tiles that lie one after the other, as
most programs leave a row of them, take one read together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from samplers.slides.cache import BoundedCache
from samplers.slides.errors import DataError, ReadError
from samplers.slides.stored_file import StoredFile
from samplers.slides.tiff_directory import Page
from samplers.slides.tiff_tile import CODEC_ERRORS, decode_tile

TILE_CACHE_BYTES = 128 << 20  # of decoded tiles of all files of a process, for patches that overlap
_GAP = 4096  # bytes between two tiles that are read and thrown away, rather than reading twice
_MAX_READ = 16 << 20  # bytes that are read at once
# Of a tile, or a picture that can only be decoded as a whole: 0.5 GB of a mask, 1.6 GB of an image.
MAX_WHOLE_PIXELS = 1 << 29

Place = tuple[int, int]  # row and column of a tile


class TiffReader:
    """Reads the images `levels` of a file. Several threads may read at once.

    `finish` makes pixels of the numbers that a tile stores, (h, w, bands): uint8 (h, w, 3), of a label (h, w). It
    raises DataError if it cannot. `blank` is a pixel that was never scanned and is not in the file: uint8 (3,) or ().
    Raises DataError if tiles of a level are not listed or very large.
    """

    held_bytes = 32 << 10  # the directory; decoded tiles are in one cache for all files

    def __init__(
        self,
        file: StoredFile,
        levels: Sequence[Page],
        finish: Callable[[np.ndarray], np.ndarray],
        blank: np.ndarray,
    ) -> None:
        self.file, self._levels, self._finish, self._blank = file, levels, finish, blank
        for number, page in enumerate(levels):
            if page.problem:
                raise DataError(f"{file.path}: truncated or damaged, level {number} {page.problem}")
            refuse_large(file.path, *page.tile)

    def fetch(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Return a region inside the level: uint8 (h, w, 3), of a label (h, w). Raises ReadError if it is damaged."""
        page = self._levels[level]
        tile_width, tile_height = page.tile
        rows = range(y // tile_height, (y + height - 1) // tile_height + 1)
        columns = range(x // tile_width, (x + width - 1) // tile_width + 1)
        region = np.empty((height, width, *self._blank.shape), np.uint8)
        try:
            for (row, column), tile in self._tiles(level, list(product(rows, columns))):
                left, top = column * tile_width - x, row * tile_height - y
                part = tile[max(0, -top) : height - top, max(0, -left) : width - left]
                region[max(0, top) :, max(0, left) :][: part.shape[0], : part.shape[1]] = part
        except (DataError, OSError, *CODEC_ERRORS) as error:
            changed = "; the file has changed since it was opened" if self.file.has_changed else ""
            name = region_name(x, y, width, height, level)
            raise ReadError(f"{self.file.path}: {name}: {one_line(error)}{changed}") from error
        return region

    def close(self) -> None:
        self.file.close()

    def _tiles(self, level: int, places: list[Place]) -> Iterator[tuple[Place, np.ndarray]]:
        """Yield tiles, as far as they lie in the image."""
        absent = []
        for place in places:
            tile = _tiles.get((self.file, level, *place))
            if tile is None:
                absent.append(place)
            else:
                yield place, tile
        if not absent:
            return
        page = self._levels[level]
        for place, numbers in decoded_tiles(self.file, page, absent):
            (row, column), (width, height) = place, page.tile
            shape = min(height, page.height - row * height), min(width, page.width - column * width)
            if numbers is None:
                tile = np.broadcast_to(self._blank, (*shape, *self._blank.shape))
            else:
                tile = self._finish(numbers[: shape[0], : shape[1]])
                if tile.shape[:2] != shape:
                    raise DataError(f"a tile of {tile.shape[1]} × {tile.shape[0]} pixels is too small")
                _tiles.put((self.file, level, *place), tile, tile.nbytes)
            yield place, tile


def decoded_tiles(
    file: StoredFile, page: Page, places: Sequence[Place]
) -> Iterator[tuple[Place, np.ndarray | None]]:
    """Yield the numbers that tiles of an image store, (h, w, bands); None: the tile is not in the file.

    Raises DataError, OSError or one of CODEC_ERRORS if a tile cannot be read.
    """
    planes = range(page.samples if page.separate else 1)
    found: dict[Place, list[np.ndarray | None]] = defaultdict(list)
    for plane in planes:
        for place, stored in stored_tiles(file, page, places, plane):
            found[place].append(None if stored is None else decode_tile(page, stored))
            if len(found[place]) == len(planes):
                bands = [band for band in found.pop(place) if band is not None]
                if bands and len(bands) < len(planes):
                    raise DataError("a tile is there in some bands only")
                yield place, np.dstack(bands) if len(bands) > 1 else bands[0] if bands else None


def stored_tiles(
    file: StoredFile, page: Page, places: Sequence[Place], plane: int = 0
) -> Iterator[tuple[Place, memoryview | None]]:
    """Yield the bytes of tiles, in the order in which they lie in the file; None: the tile is not in the file."""
    columns, rows = page.grid
    numbers = [(plane * rows + row) * columns + column for row, column in places]
    first, stop = min(numbers), max(numbers) + 1
    chosen = np.array(numbers) - first
    starts, sizes = (part.read(file, first, stop)[chosen].tolist() for part in (page.offsets, page.sizes))
    runs: list[tuple[int, int, list[tuple[Place, int, int]]]] = []  # start, end, tiles
    for start, size, place in sorted(zip(starts, sizes, places)):
        if not size:
            yield place, None
            continue
        end = start + size
        if runs and start <= runs[-1][1] + _GAP and end - runs[-1][0] <= _MAX_READ:
            begin, last, tiles = runs.pop()
            tiles.append((place, start, end))
            runs.append((begin, max(last, end), tiles))
        else:
            runs.append((start, end, [(place, start, end)]))
    for begin, end, tiles in runs:
        data = memoryview(file.read(begin, end - begin))
        for place, start, stop in tiles:
            yield place, data[start - begin : stop - begin]


def refuse_large(path: Path, width: int, height: int) -> None:
    """Raise DataError if so many pixels are too many to be decoded at once."""
    if width * height > MAX_WHOLE_PIXELS:
        raise DataError(
            f"{path}: {width} × {height} pixels can only be decoded at once, which takes gigabytes in each process (at "
            f"most {MAX_WHOLE_PIXELS} pixels may): make it a tiled TIFF"
        )


def region_name(x: int, y: int, width: int, height: int, level: int) -> str:
    return f"level {level}, x {x}, y {y}, {width} × {height}"


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


_tiles: BoundedCache[tuple[StoredFile, int, int, int], np.ndarray] = BoundedCache(TILE_CACHE_BYTES)
