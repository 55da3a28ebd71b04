"""Where patches lie on a slide and how they are blended: numpy without IO.

Coordinates are pixels of the output unless they end in `_l0` (level 0 of the slide): pixel (j, i) of the output
begins at level 0 (j · downsample, i · downsample).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from samplers.slides.errors import DataError
from samplers.slides.slide import Slide
from samplers.tissue import window_sums, windows_of

SAME = 0.001  # of a downsample: a difference in how the spacing was written
MARGIN_UM = 50.0  # around the tissue that is predicted as well: its mask is as coarse as a thumbnail


@dataclass(frozen=True)
class Frame:
    """The output's size in pixels, level-0 pixels a pixel of it, and its µm/px."""

    width: int
    height: int
    downsample: float
    spacing: float


def frame_of(slide: Slide, resolution: float | None) -> Frame:
    """The output of a slide at `resolution` µm/px, None: of level 0. DataError: the slide's spacing is unknown.

    Whole pixels only: less than one of them is left out at the right and at the bottom.
    """
    if resolution is not None and not slide.spacing_known:
        raise DataError(f"{slide.path}: spacing missing, {resolution:g} µm/px cannot be predicted at")
    downsample = (resolution or slide.spacing) / slide.spacing
    if abs(downsample / max(1, round(downsample)) - 1) < SAME:
        downsample = float(max(1, round(downsample)))
    level = slide.level_at_least(downsample)
    real = slide.downsamples[level] / downsample
    sizes = zip((slide.width, slide.height), slide.level_sizes[level])
    width, height = (max(1, math.floor(min(full / downsample, size * real) + 1e-6)) for full, size in sizes)
    return Frame(width, height, downsample, slide.spacing * downsample)


def starts(extent: int, size: int, overlap: float) -> np.ndarray:
    """First pixels of the patches along an axis, int; the last patch is moved inward.

    One patch, which reaches beyond the end, where `extent` is less than its `size`.
    """
    stride, last = max(1, round(size * (1 - overlap))), max(0, extent - size)
    return np.append(np.arange(0, last, stride), last)


def blend_weights(first: np.ndarray, size: int) -> np.ndarray:
    """Weights of the patches at `first` along an axis: float32 (n, size), at each pixel their sum is 1.

    A squared sine: near its edge a patch has seen half of what is around a pixel, and hardly counts there.
    """
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    total = np.zeros(int(first[-1]) + size)
    for start in first:
        total[start : start + size] += window
    return np.stack([window / total[start : start + size] for start in first]).astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """The patches of a slide. Rows and columns are numbers of patches.

    A pixel's weights are products of its row's and its column's. They add up to 1 where there is tissue: each
    patch that has this pixel meets tissue, so it is predicted. Other pixels are 0.
    """

    frame: Frame
    size: int  # side of a patch
    overlap: float
    tissue: np.ndarray | None  # bool (h, w) of a thumbnail, None: everywhere
    cell: tuple[float, float]  # level-0 pixels (x, y) a pixel of it

    @cached_property
    def xs(self) -> np.ndarray:
        return starts(self.frame.width, self.size, self.overlap)

    @cached_property
    def ys(self) -> np.ndarray:
        return starts(self.frame.height, self.size, self.overlap)

    @cached_property
    def chosen(self) -> np.ndarray:
        """Which patches are predicted: bool (rows, columns)."""
        if self.tissue is None:
            return np.ones((len(self.ys), len(self.xs)), bool)
        scale = self.frame.downsample
        size_l0 = math.ceil(self.size * scale)
        windows = windows_of((self.ys * scale, self.xs * scale), size_l0, self.cell)
        return window_sums(self.tissue, *windows) > 0

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the rows and of the columns: float32 (n, size)."""
        return blend_weights(self.ys, self.size), blend_weights(self.xs, self.size)

    def batches(self, first: int, stop: int, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
        """(row, columns) of the batches of these rows. A batch is of one row, so it is the same on any rank."""
        for row in range(first, stop):
            columns = np.flatnonzero(self.chosen[row])
            for start in range(0, len(columns), batch_size):
                yield row, columns[start : start + batch_size]

    def tissue_at(self, top: int, bottom: int) -> np.ndarray:
        """Which pixels of these rows are predicted: bool (bottom - top, width)."""
        if self.tissue is None:
            return np.ones((bottom - top, self.frame.width), bool)
        rows = self._cells(np.arange(top, bottom), 1)
        return self.tissue[np.ix_(rows, self._cells(np.arange(self.frame.width), 0))]

    def tissue_rows(self, top: int, bottom: int) -> bool:
        """Whether any pixel of these rows is predicted."""
        if self.tissue is None:
            return True
        first, last = self._cells(np.array([top, bottom - 1]), 1)
        return bool(self.tissue[first : last + 1].any())

    def _cells(self, pixels: np.ndarray, axis: int) -> np.ndarray:
        """Rows or columns of the tissue's thumbnail in which the centres of pixels lie."""
        assert self.tissue is not None
        places = ((pixels + 0.5) * self.frame.downsample / self.cell[axis]).astype(np.int64)
        return np.minimum(places, self.tissue.shape[1 - axis] - 1)

    def bands(self, count: int) -> list[tuple[int, int]]:
        """Pixel rows [first, stop) of `count` ranks, with about as many patches each; together all rows."""
        patches = np.concatenate([[0], np.cumsum(self.chosen.sum(axis=1))])
        shares = np.searchsorted(patches, patches[-1] * np.arange(1, count) / count)
        cuts = [0, *(int(self.ys[min(row, len(self.ys) - 1)]) for row in shares), self.frame.height]
        return list(zip(cuts, cuts[1:]))

    def rows_of(self, band: tuple[int, int]) -> tuple[int, int]:
        """Rows [first, stop) of the patches that have a pixel of the band."""
        if band[0] >= band[1]:
            return 0, 0
        first = int(np.searchsorted(self.ys, band[0] - self.size, side="right"))
        return first, int(np.searchsorted(self.ys, band[1], side="left"))


def grown(tissue: np.ndarray, spacing_t: float) -> np.ndarray:
    """Tissue with MARGIN_UM around it, at least a pixel of its thumbnail: bool (h, w)."""
    side = 2 * max(1, math.ceil(MARGIN_UM / spacing_t)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (side, side))
    return np.asarray(cv2.dilate(tissue.astype(np.uint8), kernel) > 0)
