"""A part of a patch, and how to resample it such that it has the very pixels of the whole patch."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import pyvips

_MARGIN = (
    2  # pixels of the source that a bilinear interpolation looks at beyond its place, and one for rounding
)


class Part(NamedTuple):
    """The rows `top` to `bottom` and the columns `left` to `right` of a patch, without the last ones."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Return what cuts the part out of the whole patch, an array (H, W, …)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def overlap(self, other: Part) -> Part:
        """Return the common part of both; it has no rows or no columns, or fewer, if there is none."""
        starts = max(self.top, other.top), max(self.left, other.left)
        return Part(starts[0], min(self.bottom, other.bottom), starts[1], min(self.right, other.right))

    def counted_from(self, top: int, left: int) -> Part:
        """Return the same part, counted from another row and column than the patch's first ones."""
        return Part(self.top - top, self.bottom - top, self.left - left, self.right - left)


def shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return an image, uint8 (h, w, 3), shrunk to `width` × `height`.

    With whole factors a pixel is the mean of the pixels that it covers. With other factors OpenCV's mean takes longer
    than reading the patch (27 ms from 1475² to 1024²), so libvips weighs the pixels by a triangle, in 8 ms.
    """
    rows, columns = pixels.shape[:2]
    if rows % height == 0 and columns % width == 0:
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return _written(_reduced(_vips_image(pixels), width, height))


def source_of(part: Part, size: tuple[int, int], source: tuple[int, int]) -> Part:
    """Return the part of the source that `part` is resampled from, with the margin that this needs.

    The patch has `size` (width, height) pixels and is resampled from `source` (width, height).
    """
    spans = []
    for start, stop, pixels, sources in zip((part.left, part.top), (part.right, part.bottom), size, source):
        scale = sources / pixels
        margin = 0 if sources % pixels == 0 else _MARGIN * math.ceil(scale) + _MARGIN
        spans += [max(0, math.floor(start * scale) - margin), min(sources, math.ceil(stop * scale) + margin)]
    left, right, top, bottom = spans
    return Part(top, bottom, left, right)


def resample_part(
    pixels: np.ndarray, needed: Part, source: tuple[int, int], part: Part, size: tuple[int, int]
) -> np.ndarray:
    """Return `part` of the patch of `size` that is resampled from `source`; `pixels` are its part `needed`.

    Every pixel is that of the whole patch, bit for bit. The rounding of an interpolation depends on the pixels' places
    in the whole, so the part is resampled in its place in a frame of the whole source. Nothing else of it is used.
    """
    (width, height), (columns, rows) = size, source
    if rows % height == 0 and columns % width == 0:
        if source == size:
            return pixels
        return cv2.resize(pixels, (part.width, part.height), interpolation=cv2.INTER_AREA)
    if columns < width:
        frame = np.zeros((rows, columns, 3), np.uint8)
        frame[needed.slices] = pixels
        return cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)[part.slices]
    frame = _vips_image(pixels).embed(needed.left, needed.top, columns, rows)
    # Columns from 0 and rows from a multiple of the tiles' height on: libvips adds up the places of the pixels from the
    # first one of a tile on.
    top = part.top // _TILE * _TILE
    strip = _reduced(frame, width, height).crop(0, top, part.right, part.bottom - top)
    return _written(strip)[part.top - top :, part.left :]


_TILE = 128  # a multiple of the heights of all tiles that libvips computes at once


def _vips_image(pixels: np.ndarray) -> pyvips.Image:
    rows, columns = pixels.shape[:2]
    return pyvips.Image.new_from_memory(np.ascontiguousarray(pixels), columns, rows, 3, "uchar")


def _reduced(image: pyvips.Image, width: int, height: int) -> pyvips.Image:
    return image.reduce(image.width / width, image.height / height, kernel="linear")


def _written(image: pyvips.Image) -> np.ndarray:
    return np.frombuffer(image.write_to_memory(), np.uint8).reshape(image.height, image.width, 3)
