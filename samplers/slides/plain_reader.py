"""Reads plain pictures (PNG, JPEG, BMP) with libvips. They have one level."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from samplers.slides.errors import DataError, ReadError
from samplers.slides.tiff_reader import one_line, refuse_large, region_name

_TYPES = {"uchar": np.uint8, "ushort": np.uint16}

# Otherwise libvips would keep files and their pixels after we have closed them.
pyvips.cache_set_max(0)


def open_picture(path: Path) -> Any:
    """Open a picture with libvips. Raises DataError if it cannot be opened.

    Of a damaged JPEG libjpeg only warns, but libpng also warns of harmless things.
    """
    try:
        # Random access: sequential reading refuses to go back.
        image = pyvips.Image.new_from_file(str(path), access="random", fail_on="error")
        if loader_of(image) == "jpeg":
            image = pyvips.Image.new_from_file(str(path), access="random", fail_on="warning")
    except pyvips.Error as error:
        raise DataError(f"{path}: cannot be opened: {one_line(error)}") from error
    return image


def loader_of(image: Any) -> str:
    """Return the format that a picture was read from, as libvips calls it: "png", "jpeg", …"""
    return str(image.get("vips-loader")).removesuffix("_source").removesuffix("load")


class PlainReader:
    """Reads an image of libvips. Several threads may read at once. `finish`: see `TiffReader`.

    The first read decodes the picture, which stays decoded until the reader is closed. Raises DataError if it is too
    large for that.
    """

    def __init__(self, path: Path, image: Any, finish: Callable[[np.ndarray], np.ndarray]) -> None:
        if image.format not in _TYPES:
            raise DataError(f"{path}: has {image.format} pixels")
        refuse_large(path, image.width, image.height)
        self.path, self._image, self._finish = path, image, finish
        self.held_bytes = image.width * image.height * image.bands * np.dtype(_TYPES[image.format]).itemsize

    def fetch(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Read a region, see `TiffReader.fetch`."""
        try:
            # A region of libvips belongs to the thread that made it.
            data = pyvips.Region.new(self._image).fetch(x, y, width, height)
            pixels = np.frombuffer(data, _TYPES[self._image.format])
            return self._finish(pixels.reshape(height, width, self._image.bands))
        except (pyvips.Error, DataError) as error:
            region = region_name(x, y, width, height, level)
            raise ReadError(f"{self.path}: {region}: {one_line(error)}") from error

    def close(self) -> None:
        self._image = None
