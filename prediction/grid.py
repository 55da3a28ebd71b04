"""Lays patches over a slide and weights them for blending, in numpy and without IO.

Coordinates are pixels of the output unless they end in `_l0` (level 0 of the slide). Pixel (x, y) of the output begins
at (x · downsample, y · downsample) of level 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np

from samplers.slides.errors import DataError
from samplers.slides.slide import Slide
from samplers.tissue import window_sums, windows_of

SAME = 0.001  # relative; downsamples that differ by less do so because the spacing was rounded in the file
MARGIN_UM = 50.0  # around the tissue, predicted as well because the tissue mask is as coarse as a thumbnail


@dataclass(frozen=True)
class Frame:
    """The size and the resolution of the output."""

    width: int  # pixels
    height: int
    downsample: float  # level-0 pixels per pixel of the output
    spacing: float  # µm/px


def frame_of(slide: Slide, resolution: float | None) -> Frame:
    """Return the frame of a slide's output at `resolution` µm/px, or at that of level 0 (None).

    The output has whole pixels only: the rest at the right and at the bottom, less than a pixel, is left out.
    DataError: the slide's spacing is unknown, which `resolution` needs.
    """
    if resolution is not None and not slide.spacing_known:
        raise DataError(
            f"{slide.path} does not say its spacing, so it cannot be predicted at {resolution:g} µm/px"
        )
    downsample = (resolution or slide.spacing) / slide.spacing
    if abs(downsample / max(1, round(downsample)) - 1) < SAME:
        downsample = float(max(1, round(downsample)))
    level = slide.level_at_least(downsample)
    real = slide.downsamples[level] / downsample
    sizes = zip((slide.width, slide.height), slide.level_sizes[level])
    width, height = (max(1, math.floor(min(full / downsample, size * real) + 1e-6)) for full, size in sizes)
    return Frame(width, height, downsample, slide.spacing * downsample)


def starts(extent: int, size: int, overlap: float) -> np.ndarray:
    """Return the first pixel of each patch along an axis, int (n,). The last patch is moved inward to the end.

    Where `extent` is less than `size` there is one patch, which reaches beyond the end.
    """
    stride, last = max(1, round(size * (1 - overlap))), max(0, extent - size)
    return np.append(np.arange(0, last, stride), last)


def blend_weights(first: np.ndarray, size: int) -> np.ndarray:
    """Return the weights along an axis of the patches that begin at `first`: float32 (n, size), with sum 1 per pixel.

    They are squared sines: near its edge a patch sees only half of a pixel's surroundings, so it hardly counts there.
    """
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    total = np.zeros(int(first[-1]) + size)
    for start in first:
        total[start : start + size] += window
    return np.stack([window / total[start : start + size] for start in first]).astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """The patches of a slide. Rows and columns are those of the patches unless pixels are named.

    A patch's weight at a pixel is the product of its weights along both axes. On tissue these add up to 1, since each
    patch that contains a pixel of tissue is predicted. All other pixels are 0.
    """

    frame: Frame
    size: int  # side of a patch in pixels
    overlap: float  # share of a patch that the next one covers as well
    tissue: np.ndarray | None  # bool (h, w), a thumbnail; None: predict everything
    cell: tuple[float, float]  # level-0 pixels (x, y) per pixel of the thumbnail

    @cached_property
    def xs(self) -> np.ndarray:
        return starts(self.frame.width, self.size, self.overlap)

    @cached_property
    def ys(self) -> np.ndarray:
        return starts(self.frame.height, self.size, self.overlap)

    @cached_property
    def chosen(self) -> np.ndarray:
        """Return the patches that are predicted: bool (rows, columns)."""
        if self.tissue is None:
            return np.ones((len(self.ys), len(self.xs)), bool)
        scale = self.frame.downsample
        size_l0 = math.ceil(self.size * scale)
        windows = windows_of((self.ys * scale, self.xs * scale), size_l0, self.cell)
        return window_sums(self.tissue, *windows) > 0

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights along the rows and along the columns: float32 (n, size) each."""
        return blend_weights(self.ys, self.size), blend_weights(self.xs, self.size)

    def batches(self, first: int, stop: int, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield row and columns of each batch in rows [first, stop).

        A batch lies within one row, so that it is the same on however many ranks.
        """
        for row in range(first, stop):
            columns = np.flatnonzero(self.chosen[row])
            for start in range(0, len(columns), batch_size):
                yield row, columns[start : start + batch_size]

    def tissue_at(self, top: int, bottom: int) -> np.ndarray:
        """Return which pixels of the pixel rows [top, bottom) are predicted: bool (bottom - top, width)."""
        return self.predicted_at(np.arange(self.frame.width), np.arange(top, bottom))

    def predicted_at(self, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """Return which pixels of these columns and rows are predicted: bool (len(ys), len(xs))."""
        if self.tissue is None:
            return np.ones((len(ys), len(xs)), bool)
        return self.tissue[np.ix_(self._cells(ys, 1), self._cells(xs, 0))]

    def tissue_rows(self, top: int, bottom: int) -> bool:
        """Return whether any pixel of the pixel rows [top, bottom) is predicted."""
        if self.tissue is None:
            return True
        first, last = self._cells(np.array([top, bottom - 1]), 1)
        return bool(self.tissue[first : last + 1].any())

    def _cells(self, pixels: np.ndarray, axis: int) -> np.ndarray:
        """Return the rows (axis 1) or columns (axis 0) of the thumbnail in which the centres of pixels lie."""
        assert self.tissue is not None
        places = ((pixels + 0.5) * self.frame.downsample / self.cell[axis]).astype(np.int64)
        return np.minimum(places, self.tissue.shape[1 - axis] - 1)

    def bands(self, count: int) -> list[tuple[int, int]]:
        """Divide the pixel rows into `count` bands [first, stop) with about as many patches each, one per rank."""
        patches = np.concatenate([[0], np.cumsum(self.chosen.sum(axis=1))])
        shares = np.searchsorted(patches, patches[-1] * np.arange(1, count) / count)
        cuts = [0, *(int(self.ys[min(row, len(self.ys) - 1)]) for row in shares), self.frame.height]
        return list(pairwise(cuts))

    def rows_of(self, band: tuple[int, int]) -> tuple[int, int]:
        """Return the rows [first, stop) of the patches that contain a pixel of the band."""
        if band[0] >= band[1]:
            return 0, 0
        first = int(np.searchsorted(self.ys, band[0] - self.size, side="right"))
        return first, int(np.searchsorted(self.ys, band[1], side="left"))


def grown(tissue: np.ndarray, spacing_t: float) -> np.ndarray:
    """Return tissue, bool (h, w), with a margin of MARGIN_UM or at least one pixel. `spacing_t`: µm/px of the mask."""
    side = 2 * max(1, math.ceil(MARGIN_UM / spacing_t)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (side, side))
    return np.asarray(cv2.dilate(tissue.astype(np.uint8), kernel) > 0)
