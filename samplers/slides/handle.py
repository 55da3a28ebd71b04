"""An image that libvips has opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from samplers.slides.errors import DataError
from samplers.slides.vips_errors import vips_faults

_TYPES = {
    **{"uchar": np.uint8, "char": np.int8, "ushort": np.uint16, "short": np.int16, "uint": np.uint32},
    **{"int": np.int32, "float": np.float32, "double": np.float64},
}

# Otherwise libvips would keep files and their tiles after we have closed them.
pyvips.cache_set_max(0)


def open_image(path: Path, options: dict[str, int]) -> Any:
    """Open an image of a file with libvips. Raises DataError if it cannot be opened."""
    try:
        # Random access: sequential reading refuses to go back.
        with vips_faults.opening():
            return pyvips.Image.new_from_file(str(path), access="random", fail_on="error", **options)
    except pyvips.Error as error:
        raise DataError(f"{path}: cannot be opened: {one_line(error)}") from error


class VipsHandle:
    """A level opened by one thread, because libvips regions belong to the thread that made them."""

    def __init__(self, image: Any, alpha: bool = False) -> None:
        self.bands, self.alpha = image.bands, alpha
        self._type = _TYPES.get(image.format)
        if self._type is None:
            raise DataError(f"has {image.format} pixels")
        self._image = image  # may own the pixels
        self._region = pyvips.Region.new(image)
        self.tiles = 0.0  # estimate of how many libvips keeps decoded
        self.held_bytes = 0

    def fetch(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region: (height, width, bands)."""
        data = self._region.fetch(x, y, width, height)
        return np.frombuffer(data, self._type).reshape(height, width, self.bands)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
