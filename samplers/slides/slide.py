"""Reads whole-slide images: one thin class over what reads TIFFs, plain pictures and all other formats.

Positions are in level-0 pixels (`_l0`), sizes in pixels of the level or spacing that is read, spacings in µm/px.
"""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Literal

import cv2
import numpy as np

from samplers.slides.formats import Reader, open_slide
from samplers.slides.levels import downsample_of
from samplers.slides.mask_file import open_mask
from samplers.slides.part import Part, resample_part, shrink, source_of
from samplers.slides.stored_file import require_file
from samplers.slides.tiff_directory import Page
from samplers.slides.tiff_reader import region_name

log = logging.getLogger(__name__)

DEFAULT_SPACING = 0.25  # µm/px, 40×
_MAX_STRIP_PIXELS = 16 << 20  # that are read at once for a thumbnail


class Slide:
    """An open slide (uint8 RGB; a file or a folder) or label mask (uint8, one band).

    It is a context manager, and several threads may read at once.

    Attributes: `path`; `width` and `height` at level 0; `level_sizes` ((width, height), …); `downsamples`, the real
    ones, with [0] == 1.0; `spacing` in µm/px at level 0; `spacing_known`, False if the spacing is assumed; `remarks`,
    what it was warned of; `origin` (x, y) of QuPath's coordinates, which is (0, 0) unless the file has
    `openslide.bounds-*`; `pages`, all images of a TIFF file; of a mask also `bits` (per pixel) and `nodata` (a value,
    see `MaskFile`). Raises DataError if the file cannot be opened, ReadError if a region cannot be decoded and
    ValueError if a region is not inside the slide.
    """

    def __init__(self, path: str | os.PathLike[str], kind: Literal["image", "label"] = "image") -> None:
        self.path = Path(path)
        self.kind = kind
        self._closed = False
        self.nodata: int | None = None
        self.bits = 8
        self.origin = (0, 0)
        self.pages: tuple[Page, ...] = ()
        self._reader: Reader
        self.remarks: list[str] = []
        if kind == "label":
            require_file(self.path)
            self._reader, sizes, spacing, self.bits, self.nodata, self.pages = open_mask(self.path)
        else:
            self._reader, sizes, spacing, self.origin, self.pages, remarks = open_slide(self.path)
            self.remarks += remarks
        self.level_sizes = tuple(sizes)
        self.width, self.height = sizes[0]
        self.downsamples = tuple(downsample_of(self.level_sizes[0], size) for size in self.level_sizes)
        self.spacing_known = spacing is not None
        self.spacing = DEFAULT_SPACING if spacing is None else spacing
        if spacing is None and kind == "image":
            self.remarks.append(
                f"{self.path}: no spacing in its metadata, assuming {DEFAULT_SPACING:g} µm/px"
            )
        for remark in self.remarks:
            log.warning("%s", remark)

    def read(self, x_l0: int, y_l0: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Return a region of `width` × `height` pixels of `level`: uint8 (h, w, 3), of a label (h, w).

        The corner is in level-0 pixels, and rounded to the nearest pixel of the level.
        """
        if not 0 <= level < len(self.level_sizes):
            raise ValueError(f"{self.path}: has no level {level}, only 0 to {len(self.level_sizes) - 1}")
        return self.read_level(*self._corner(x_l0, y_l0, width, height, level), width, height, level)

    def _corner(self, x_l0: int, y_l0: int, width: int, height: int, level: int) -> tuple[int, int]:
        """Return the corner of a region in pixels of `level`. ValueError if the region is not inside."""
        x, y = (
            inside(start / self.downsamples[level], size, limit, f"{self.path}, level {level}")
            for start, size, limit in zip((x_l0, y_l0), (width, height), self.level_sizes[level])
        )
        return x, y

    def read_at(
        self, x_l0: int, y_l0: int, width: int, height: int, spacing: float, part: Part | None = None
    ) -> np.ndarray:
        """Return a region of `width` × `height` pixels of `spacing` µm/px, or a part of it, otherwise like `read`.

        The next finer level is read and shrunk, each pixel from all that it covers; a spacing finer than level 0
        is interpolated. A label has the nearest values, see `read_grid`. A part has the pixels of the whole, but only
        what it needs is read.
        """
        downsample = spacing / self.spacing
        if self.kind == "label":
            return self.read_grid(x_l0, y_l0, width, height, downsample, part=part)
        level = self.level_at_least(downsample)
        scale = downsample / self.downsamples[level]
        source = (max(1, round(width * scale)), max(1, round(height * scale)))
        if part is not None:
            needed, (x, y) = (
                source_of(part, (width, height), source),
                self._corner(x_l0, y_l0, *source, level),
            )
            corner = x + needed.left, y + needed.top
            pixels = self.read_level(*corner, needed.width, needed.height, level)
            return resample_part(pixels, needed, source, part, (width, height))
        pixels = self.read(x_l0, y_l0, *source, level)
        if source == (width, height):
            return pixels
        if scale < 1:
            return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        return shrink(pixels, width, height)

    def read_grid(
        self,
        x_l0: float,
        y_l0: float,
        width: int,
        height: int,
        downsample: float,
        level: int | None = None,
        part: Part | None = None,
    ) -> np.ndarray:
        """Return values of a label at the points of a grid, or of a part of it, without interpolation: uint8 (h, w).

        A value is that of the pixel of `level` in which the point (x_l0 + (i + 0.5) · downsample, …) lies; None means
        the next finer level.
        """
        if level is None:
            level = self.level_at_least(downsample)
        part = part or Part(0, height, 0, width)
        places = []
        for start, size, limit, span in zip(
            (x_l0, y_l0), (width, height), self.level_sizes[level], (part[2:], part[:2])
        ):
            inside(
                start / downsample,
                size,
                math.ceil(
                    (limit + 1) * self.downsamples[level] / downsample
                ),  # the level may be rounded down
                str(self.path),
            )
            centres = (start + (np.arange(*span) + 0.5) * downsample) / self.downsamples[level]
            places.append(np.minimum(centres.astype(np.int64), limit - 1))
        xs, ys = places
        spans = (int(xs[-1] - xs[0]) + 1, int(ys[-1] - ys[0]) + 1)
        pixels = self.read_level(int(xs[0]), int(ys[0]), *spans, level)
        return pixels if spans == (part.width, part.height) else pixels[np.ix_(ys - ys[0], xs - xs[0])]

    def thumbnail(self, max_side: int) -> np.ndarray:
        """Return the whole slide at `max_side` pixels of its longer side, or at level 0 if that is smaller.

        uint8 (h, w, 3), of a label (h, w). The next finer level is read in strips of rows, which is slow for a large
        slide without a pyramid.
        """
        level = max(i for i, size in enumerate(self.level_sizes) if i == 0 or max(size) >= max_side)
        level_width, level_height = self.level_sizes[level]
        shrink = max(1.0, max(level_width, level_height) / max_side)
        width, height = max(1, round(level_width / shrink)), max(1, round(level_height / shrink))
        rows = np.linspace(0, level_height, height + 1).round().astype(int)
        step = max(1, int(_MAX_STRIP_PIXELS / (level_width * shrink)))  # rows of the thumbnail
        method = cv2.INTER_AREA if self.kind == "image" else cv2.INTER_NEAREST
        strips = []
        for first in range(0, height, step):
            last = min(first + step, height)
            strip = self.read_level(0, int(rows[first]), level_width, int(rows[last] - rows[first]), level)
            strips.append(cv2.resize(strip, (width, last - first), interpolation=method))
        return np.concatenate(strips)

    def level_at_least(self, downsample: float) -> int:
        """Return the coarsest level of at most this downsample, to 0.1 % (4.0003 serves for 4); else 0."""
        return max(i for i, d in enumerate(self.downsamples) if i == 0 or d <= downsample * 1.001)

    def read_level(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Return a region like `read`, with the corner in pixels of `level`."""
        level_width, level_height = self.level_sizes[level]
        if min(x, y, width - 1, height - 1) < 0 or x + width > level_width or y + height > level_height:
            raise ValueError(
                f"{self.path}: {region_name(x, y, width, height, level)} of {level_width} × {level_height}"
            )
        if self._closed:
            raise ValueError(f"{self.path}: is closed")
        return self._reader.fetch(x, y, width, height, level)

    @property
    def held_bytes(self) -> int:
        """The estimated bytes that the open slide keeps in memory."""
        return self._reader.held_bytes

    def close(self) -> None:
        self._closed = True
        self._reader.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def inside(start: float, size: int, limit: int, name: str) -> int:
    """Return `start` rounded to a pixel such that `size` pixels end before `limit`.

    Raises ValueError if they are not inside, with a tolerance of one pixel: the size of a level is rounded, so a
    region that ends with level 0 may end behind the level.
    """
    if size < 1 or start < 0 or start + size >= limit + 1 or size > limit:
        raise ValueError(f"{name}: {start:g} + {size} pixels are not inside 0 to {limit}")
    return min(int(start + 0.5), limit - size)
