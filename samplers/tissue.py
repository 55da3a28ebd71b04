"""Tissue on a thumbnail, and where a patch around a thumbnail pixel fits: numpy and OpenCV without IO.

Coordinates: `_l0` are level-0 pixels, `_t` are pixels of the thumbnail. A thumbnail pixel is a cell of
`cell` × `cell` level-0 pixels (a float, levels are not powers of two in general).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

MIN_SATURATION, MIN_VALUE = 20, 20  # of 255: less is glass, less light is ink or the scanner's border
CLOSE_UM, OPEN_UM = 50.0, 25.0  # gaps that are filled (lumina, fat), specks that are dust
MIN_CONTRAST = 15.0


def tissue_mask(thumbnail: np.ndarray, spacing_t: float) -> np.ndarray:
    """Find tissue by a threshold in HSV, closed and opened.

    thumbnail: uint8 RGB (h, w, 3) with spacing_t µm/px. Returns bool (h, w).
    """
    hsv = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)
    mask = cv2.inRange(hsv, (0, MIN_SATURATION, MIN_VALUE), (180, 255, 255))
    # Odd kernels, so that the mask is not shifted; a kernel of 1 does nothing.
    closing, opening = (2 * int(extent / spacing_t / 2 + 0.5) + 1 for extent in (CLOSE_UM, OPEN_UM))
    # With a border of glass: else what lies near the slide's edge would be closed up to it.
    mask = cv2.copyMakeBorder(mask, closing, closing, closing, closing, cv2.BORDER_CONSTANT, value=(0,))
    for operation, side in ((cv2.MORPH_CLOSE, closing), (cv2.MORPH_OPEN, opening)):
        mask = cv2.morphologyEx(mask, operation, cv2.getStructuringElement(cv2.MORPH_RECT, (side, side)))
    mask = mask[closing:-closing, closing:-closing]
    return np.asarray(mask > 0)


def contours(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of a bool mask (h, w), holes included, each int32 (n, 1, 2) of (x, y) in its pixels."""
    return list(cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0])


def contrast_is_low(image: np.ndarray) -> bool:
    """Return whether the mean of the channels' standard deviations is below 15; image: uint8 (H, W, 3)."""
    # Every eighth row tells it at an eighth of the price, but for the patches near the limit.
    rough = float(cv2.meanStdDev(image[::8])[1].mean())
    if abs(rough - MIN_CONTRAST) > 5:
        return rough < MIN_CONTRAST
    return float(cv2.meanStdDev(image)[1].mean()) < MIN_CONTRAST


def patch_origin(centre_l0: float, size_l0: int, extent_l0: int) -> int:
    """Start of a patch centred on a point, moved inside of the slide, along one axis in level-0 pixels."""
    return int(min(max(round(centre_l0 - size_l0 / 2), 0), extent_l0 - size_l0))


def window_sums(
    mask: np.ndarray, starts_t: Sequence[np.ndarray], stops_t: Sequence[np.ndarray]
) -> np.ndarray:
    """Number of set pixels in windows of a bool mask (h, w).

    starts_t = (rows (m,), columns (n,)) first pixels, stops_t the same after the last; they are clipped to
    the mask. Returns int (m, n): the sum in the window of each pair of a row and a column range.
    """
    height, width = mask.shape
    integral = cv2.integral(mask.astype(np.uint8))  # int32 (h + 1, w + 1)
    (top, left), (bottom, right) = (
        (np.clip(rows, 0, height), np.clip(columns, 0, width)) for rows, columns in (starts_t, stops_t)
    )
    return (
        integral[np.ix_(bottom, right)]
        - integral[np.ix_(top, right)]
        - integral[np.ix_(bottom, left)]
        + integral[np.ix_(top, left)]
    )


def windows_of(
    starts_l0: Sequence[np.ndarray], size_l0: int, cell: Sequence[float]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return (starts_t, stops_t) for `window_sums` of the pixels that patches meet.

    starts_l0 = (rows, columns) of their corners; cell: (x, y) side of a pixel.
    """
    sides = (cell[1], cell[0])
    starts_t = [(start_l0 / side).astype(int) for start_l0, side in zip(starts_l0, sides)]
    stops_t = [np.ceil((start_l0 + size_l0) / side).astype(int) for start_l0, side in zip(starts_l0, sides)]
    return starts_t, stops_t


def cells_without(
    mask: np.ndarray, cell: Sequence[float], size_l0: int, slide_l0: Sequence[int]
) -> np.ndarray:
    """Return the cells around which a patch meets no set pixel of the mask, wherever in the cell its centre is.

    mask: bool (h, w); cell: (x, y) side of a pixel; slide_l0: (width, height). A patch is moved inside of
    the slide (`patch_origin`). Returns bool (h, w).
    """
    ranges = []
    for axis, count in ((1, mask.shape[0]), (0, mask.shape[1])):  # rows are y
        first_l0, extent_l0 = np.arange(count) * cell[axis], slide_l0[axis]
        # From the patch of the centre at the cell's start to that of the centre at its end, and half a pixel
        # for rounding.
        lowest_l0 = np.clip(first_l0 - size_l0 / 2 - 1, 0, extent_l0 - size_l0)
        highest_l0 = np.clip(first_l0 + cell[axis] - size_l0 / 2 + 1, 0, extent_l0 - size_l0) + size_l0
        ranges.append((np.floor(lowest_l0 / cell[axis]), np.ceil(highest_l0 / cell[axis])))
    (top, bottom), (left, right) = ((a.astype(int), b.astype(int)) for a, b in ranges)
    return window_sums(mask, (top, left), (bottom, right)) == 0


class PixelSet:
    """The set pixels of a bool mask (h, w), an eighth of its memory, from which one can be drawn."""

    def __init__(self, mask: np.ndarray) -> None:
        self.shape = mask.shape
        self._rows = np.packbits(mask, axis=1)
        self._cumulative = np.cumsum(mask.sum(axis=1))

    def __len__(self) -> int:
        return int(self._cumulative[-1]) if len(self._cumulative) else 0

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return (x, y) of a set pixel, each with the same chance. ValueError: there is none."""
        chosen = int(rng.integers(len(self)))
        y = int(np.searchsorted(self._cumulative, chosen, side="right"))
        before = int(self._cumulative[y - 1]) if y else 0
        columns = np.flatnonzero(np.unpackbits(self._rows[y], count=self.shape[1]))
        return int(columns[chosen - before]), y
