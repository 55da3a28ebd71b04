"""Read pixels of a level of a slide with libvips or OpenSlide. Positions and sizes are in pixels of the level.

A region that cannot be decoded must never come back grey or black. libvips fills the lost part of a damaged JPEG tile
and, whatever `fail_on` says, only leaves a message in its error buffer, so we look there after each read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pyvips

from samplers.slides.errors import DataError, ReadError
from samplers.slides.handle import one_line
from samplers.slides.levels import Level
from samplers.slides.tiff_pages import missing_tiles
from samplers.slides.vips_errors import vips_faults

# libvips keeps rows of decoded tiles for each level, 300 MB for a width of 100 000 pixels. Above this limit the level
# is opened anew, which takes less than a millisecond.
MAX_LEVEL_BYTES = 64 << 20
# Of what can only be decoded as a whole, in main memory or in a temporary file: 0.5 GB of a mask, 1.6 GB of an image.
MAX_WHOLE_PIXELS = 1 << 29
_CACHED_ROWS = 3.5  # measured: 37 MB (3 MB of it the region's own) with 12 tiles of 0.79 MB in a row
OPENSLIDE_CACHE_BYTES = 64 << 20  # for all slides together, not 32 MB for each as by default


class VipsReader:
    """Reads the levels of a file with libvips (some masks with GDAL). Several threads may read at once.

    `open_level` opens a level: a handle with `fetch`. `finish` makes uint8 (h, w, 3), or of a label (h, w), of what a
    handle fetches, and raises DataError if it cannot be that. DataError: a level is too large to be decoded as a whole,
    and has no tiles.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        levels: Sequence[Level],
        open_level: Callable[[Level], Any],
        finish: Callable[[np.ndarray, bool], np.ndarray],
    ) -> None:
        for level in levels:
            if level.tile is None and level.width * level.height > MAX_WHOLE_PIXELS:
                raise DataError(
                    f"{path}: {level.width} × {level.height} pixels can only be decoded at once, which takes "
                    f"gigabytes in each process (at most {MAX_WHOLE_PIXELS} pixels may): make it a tiled TIFF"
                )
        self.path, self.kind, self._levels = path, kind, levels
        self._open_level, self._finish = open_level, finish
        self._threads = threading.local()
        self._handles: list[dict[int, Any]] = []  # of all threads
        self._missing: dict[
            int, np.ndarray
        ] = {}  # by level: tiles that are not in the file, looked up after an error
        self._lock = threading.Lock()

    def fetch(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Return a region inside the level: uint8 (h, w, 3), of a label (h, w). Raises ReadError if it is damaged."""
        if level not in self._missing:
            try:
                return self._fetch(x, y, width, height, level)
            except ReadError:
                missing = missing_tiles(self.path, self._levels[level].options)
                if missing is None or not missing.any():
                    raise
                self._missing[level] = missing
        return self._fetch_sparse(x, y, width, height, level)

    @property
    def held_bytes(self) -> int:
        return sum(handle.held_bytes for handles in self._handles for handle in list(handles.values()))

    def release(self) -> None:
        """Free the memory; the next read opens its level anew. Must not be called while another thread reads."""
        with self._lock:
            for handles in self._handles:
                handles.clear()

    close = release

    def _fetch(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        handles = self._thread_handles()
        try:
            if level not in handles:
                handles[level] = self._open_level(self._levels[level])
            handle = handles[level]
            with vips_faults.watched():
                pixels = handle.fetch(x, y, width, height)
            pixels = self._finish(pixels, handle.alpha)
        except (pyvips.Error, DataError, RuntimeError) as error:
            handles.pop(level, None)  # it may keep the damaged tile, and return it without an error next time
            region = region_name(x, y, width, height, level)
            raise ReadError(f"{self.path}: {region}: {one_line(error)}") from error
        self._count(handles, level, width, height)
        return pixels

    def _fetch_sparse(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Read tile by tile, white (a label: 0) where a tile is missing: TIFFs may leave out what was not scanned."""
        shape = (height, width) if self.kind == "label" else (height, width, 3)
        pixels = np.full(shape, 0 if self.kind == "label" else 255, np.uint8)
        missing = self._missing[level]
        tile_width, tile_height = self._levels[level].tile or (width, height)
        for row in range(y // tile_height, (y + height - 1) // tile_height + 1):
            top, bottom = max(y, row * tile_height), min(y + height, (row + 1) * tile_height)
            for column in range(x // tile_width, (x + width - 1) // tile_width + 1):
                if not missing[row, column]:
                    left, right = max(x, column * tile_width), min(x + width, (column + 1) * tile_width)
                    part = self._fetch(left, top, right - left, bottom - top, level)
                    pixels[top - y : bottom - y, left - x : right - x] = part
        return pixels

    def _thread_handles(self) -> dict[int, Any]:
        handles: dict[int, Any] | None = getattr(self._threads, "handles", None)
        if handles is None:
            handles = self._threads.handles = {}
            with self._lock:
                self._handles.append(handles)
        return handles

    def _count(self, handles: dict[int, Any], level: int, width: int, height: int) -> None:
        """Add the tiles that a read leaves in libvips' cache; a level with too many is opened anew next time."""
        spec, handle = self._levels[level], handles[level]
        if spec.tile is None:
            handle.held_bytes = spec.width * spec.height * handle.bands
            return
        columns, rows = (-(-size // tile) + 1 for size, tile in zip((width, height), spec.tile))
        limit = _CACHED_ROWS * (-(-spec.width // spec.tile[0]) + 1)
        tile_bytes = spec.tile[0] * spec.tile[1] * handle.bands
        handle.tiles = min(handle.tiles + 1.25 * columns * rows, limit)
        handle.held_bytes = int(handle.tiles * tile_bytes) + width * height * handle.bands
        if handle.held_bytes > MAX_LEVEL_BYTES:
            del handles[level]


class OpenSlideReader:
    """Reads the levels of a slide with OpenSlide. Several threads may read at once."""

    held_bytes = 0  # one cache serves all slides

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        try:
            self.slide = openslide.OpenSlide(self.path)
            self.slide.set_cache(_openslide_cache())
        except openslide.OpenSlideError as error:
            raise DataError(f"{self.path}: cannot be opened: {error}") from error

    def fetch(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Read a region, see `VipsReader.fetch`."""
        downsample = self.slide.level_downsamples[level]
        corner_l0 = (round(x * downsample), round(y * downsample))
        try:
            rgba = np.asarray(self.slide.read_region(corner_l0, level, (width, height)))
        except openslide.OpenSlideError as error:
            with self._lock:
                self._open()  # after an error OpenSlide refuses every further read
            raise ReadError(f"{self.path}: {region_name(x, y, width, height, level)}: {error}") from error
        pixels = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
        pixels[rgba[:, :, 3] == 0] = 255  # never scanned
        return pixels

    def release(self) -> None:
        """Do nothing: there is only the common cache."""

    def close(self) -> None:
        self.slide.close()


def region_name(x: int, y: int, width: int, height: int, level: int) -> str:
    return f"level {level}, x {x}, y {y}, {width} × {height}"


_shared_cache: list[Any] = []


def _openslide_cache() -> Any:
    if not _shared_cache:
        _shared_cache.append(openslide.OpenSlideCache(OPENSLIDE_CACHE_BYTES))
    return _shared_cache[0]
