"""Reads an image of a TIFF file with GDAL: the stored numbers, where libvips gives colours or cannot decode.

That is the indices of a palette, compression with Zstandard, and 64-bit numbers.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

_CACHE_MB = 64  # for all files together; by default GDAL takes a twentieth of the memory in each process

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # slides have no place on earth


class GdalHandle:
    """An image opened by one thread. `fetch` raises RuntimeError if a region cannot be decoded."""

    def __init__(self, path: Path, offset: int, alpha: bool) -> None:
        self.alpha = alpha
        try:
            with rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
                self._data: Any = rasterio.open(f"GTIFF_DIR:off:{offset}:{path}")
        except RasterioError as error:
            raise RuntimeError(f"cannot be opened: {error}") from error
        self.bands = int(self._data.count)
        self.held_bytes, self.tiles = 0, 0.0

    def fetch(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region: (height, width, bands), in the file's type."""
        try:
            pixels = self._data.read(window=Window(x, y, width, height))
        except RasterioError as error:
            raise RuntimeError(str(error)) from error
        return np.asarray(pixels.transpose(1, 2, 0))
