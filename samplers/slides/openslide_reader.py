"""Reads slides of other formats than TIFF, and TIFFs that we do not decode, with OpenSlide."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide

from samplers.slides.errors import DataError, ReadError
from samplers.slides.spacing import plausible
from samplers.slides.tiff_reader import region_name

HELD_BYTES = 4 << 20  # lists of tiles, and descriptors; decoded tiles are in one cache for all slides
OPENSLIDE_CACHE_BYTES = 64 << 20  # for all slides together, not 32 MB for each as by default


class OpenSlideReader:
    """Reads the levels of a slide with OpenSlide. Several threads may read at once.

    Attributes: `sizes` of the levels ((width, height), …); `spacing` in µm/px, None if it is not known; `origin`, where
    the scanned part of level 0 begins (x, y), to which QuPath crops the slide. `file` is what OpenSlide is given of a
    slide that is a folder.
    """

    def __init__(self, path: Path, file: Path | None = None, held_bytes: int = HELD_BYTES) -> None:
        self.path, self._file, self.held_bytes = path, file or path, held_bytes
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        try:
            self._slide = openslide.OpenSlide(self._file)
            self._slide.set_cache(_openslide_cache())
            self.sizes = [(int(width), int(height)) for width, height in self._slide.level_dimensions]
            properties = dict(self._slide.properties)
        except openslide.OpenSlideError as error:
            raise DataError(f"{self.path}: cannot be opened: {error}") from error
        mpp = properties.get(openslide.PROPERTY_NAME_MPP_X)
        self.spacing = plausible(mpp) if mpp else None
        names = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
        x, y = (int(properties.get(name, 0)) for name in names)
        self.origin = (x, y)

    def fetch(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Read a region, see `TiffReader.fetch`."""
        downsample = self._slide.level_downsamples[level]
        corner_l0 = (round(x * downsample), round(y * downsample))
        try:
            rgba = np.asarray(self._slide.read_region(corner_l0, level, (width, height)))
        except openslide.OpenSlideError as error:
            with self._lock:
                self._open()  # after an error OpenSlide refuses every further read
            raise ReadError(f"{self.path}: {region_name(x, y, width, height, level)}: {error}") from error
        pixels = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
        pixels[rgba[:, :, 3] == 0] = 255  # never scanned
        return pixels

    def close(self) -> None:
        self._slide.close()


_shared_cache: list[Any] = []


def _openslide_cache() -> Any:
    if not _shared_cache:
        _shared_cache.append(openslide.OpenSlideCache(OPENSLIDE_CACHE_BYTES))
    return _shared_cache[0]
