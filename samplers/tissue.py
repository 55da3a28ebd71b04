"""Finds tissue on a thumbnail, and the thumbnail pixels around which a patch fits: numpy and OpenCV without IO.

Coordinates: `_l0` are level-0 pixels, `_t` are pixels of the thumbnail. A thumbnail pixel is a cell of
cell[0] × cell[1] level-0 pixels (floats, because levels are not powers of two in general).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

MIN_SATURATION, MIN_VALUE = 20, 20  # of 255: paler is glass, darker is ink or the border of the scan
CLOSE_UM, OPEN_UM = 50.0, 25.0  # smaller gaps (lumina, fat) are filled, smaller specks (dust) are removed
MIN_CONTRAST = 15.0
# µm/px of a thumbnail. On a coarser one the glass around a speck of 0.1 mm, as of a biopsy, pales it too much.
MAX_CELL_UM = 64.0


def least_side(extent_um: float) -> int:
    """Return the least longer side in pixels of a thumbnail that shows small tissue of a slide `extent_um` long."""
    return math.ceil(extent_um / MAX_CELL_UM)


def tissue_mask(thumbnail: np.ndarray, spacing_t: float) -> np.ndarray:
    """Return the mask of the tissue, bool (h, w): a threshold in HSV, closed and opened.

    thumbnail: uint8 RGB (h, w, 3) with spacing_t µm/px.
    """
    hsv = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)
    lowest, highest = (0, MIN_SATURATION, MIN_VALUE), (180, 255, 255)
    mask = cv2.inRange(hsv, lowest, highest)  # type: ignore[call-overload] # its stub forgets scalars
    # Odd kernels do not shift the mask; a kernel of 1 does nothing.
    closing, opening = (2 * int(extent / spacing_t / 2 + 0.5) + 1 for extent in (CLOSE_UM, OPEN_UM))
    # Without a border of glass, tissue near the edge of the slide would be closed up to the edge.
    mask = cv2.copyMakeBorder(mask, closing, closing, closing, closing, cv2.BORDER_CONSTANT, value=(0,))
    for operation, side in ((cv2.MORPH_CLOSE, closing), (cv2.MORPH_OPEN, opening)):
        mask = cv2.morphologyEx(mask, operation, cv2.getStructuringElement(cv2.MORPH_RECT, (side, side)))
    mask = mask[closing:-closing, closing:-closing]
    return np.asarray(mask > 0)


def contours(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outlines of a bool mask (h, w) and of its holes, each int32 (n, 1, 2) of (x, y) in pixels."""
    return list(cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0])


def contrast_is_low(image: np.ndarray) -> bool:
    """Return whether the mean of the channels' standard deviations is below 15; image: uint8 (H, W, 3)."""
    # Every eighth row decides at an eighth of the cost, except for patches near the limit.
    rough = float(cv2.meanStdDev(image[::8])[1].mean())
    if abs(rough - MIN_CONTRAST) > 5:
        return rough < MIN_CONTRAST
    return float(cv2.meanStdDev(image)[1].mean()) < MIN_CONTRAST


def contrast_sums(pixels: np.ndarray, top: int) -> np.ndarray:
    """Return what `contrast_is_low` needs of a part of an image, such that the parts' sums are those of the whole.

    pixels: uint8 (h, w, 3), whose first row is the image's row `top`. Returns int64 (2, 7), of every eighth row of the
    image and of all rows: number of pixels, then by channel the sum of the values and of their squares.
    """
    rows = []
    for chosen in (pixels[-top % 8 :: 8], pixels):
        count = chosen.shape[0] * chosen.shape[1]
        mean, deviation = (v.ravel() for v in cv2.meanStdDev(chosen)) if count else np.zeros((2, 3))
        # Whole numbers below 2^53: what they lost in the division comes back by rounding.
        rows.append([count, *np.rint(mean * count), *np.rint((deviation**2 + mean**2) * count)])
    return np.array(rows).astype(np.int64)


def contrast_of_sums_is_low(sums: np.ndarray) -> bool:
    """Return `contrast_is_low` of an image from the added `contrast_sums` of its parts."""
    inverse = 1.0 / sums[:, :1]
    mean = sums[:, 1:4] * inverse
    rough, exact = np.sqrt(np.maximum(sums[:, 4:] * inverse - mean**2, 0)).mean(axis=1)
    return bool((rough if abs(rough - MIN_CONTRAST) > 5 else exact) < MIN_CONTRAST)


def patch_origin(centre_l0: float, size_l0: int, extent_l0: int) -> int:
    """Return the start of a patch centred on a point and moved inside the slide, on one axis in level-0 pixels."""
    return int(min(max(round(centre_l0 - size_l0 / 2), 0), extent_l0 - size_l0))


def window_sums(
    mask: np.ndarray, starts_t: Sequence[np.ndarray], stops_t: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the number of set pixels in windows of a bool mask (h, w): int (m, n).

    starts_t = (rows (m,), columns (n,)) are the first pixels of the windows and stops_t the pixels after the last ones;
    both are clipped to the mask. There is a window for each pair of a row range and a column range.
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
    """Return (starts_t, stops_t) of the pixels that patches meet, for `window_sums`.

    starts_l0 = (rows, columns) are the corners of the patches, cell is the (width, height) of a pixel.
    """
    sides = (cell[1], cell[0])
    starts_t = [(start_l0 / side).astype(int) for start_l0, side in zip(starts_l0, sides)]
    stops_t = [np.ceil((start_l0 + size_l0) / side).astype(int) for start_l0, side in zip(starts_l0, sides)]
    return starts_t, stops_t


def cells_without(
    mask: np.ndarray, cell: Sequence[float], size_l0: int, slide_l0: Sequence[int]
) -> np.ndarray:
    """Return the cells around which a patch meets no set pixel of the mask: bool (h, w).

    That holds wherever in the cell the centre of the patch is, and although the patch is moved inside the slide
    (`patch_origin`). mask: bool (h, w); cell: (width, height) of a pixel; slide_l0: (width, height) of the slide.
    """
    ranges = []
    for axis, count in ((1, mask.shape[0]), (0, mask.shape[1])):  # rows are y
        first_l0, extent_l0 = np.arange(count) * cell[axis], slide_l0[axis]
        # From the patch centred on the cell's start to the patch centred on its end, with a pixel for rounding.
        lowest_l0 = np.clip(first_l0 - size_l0 / 2 - 1, 0, extent_l0 - size_l0)
        highest_l0 = np.clip(first_l0 + cell[axis] - size_l0 / 2 + 1, 0, extent_l0 - size_l0) + size_l0
        ranges.append((np.floor(lowest_l0 / cell[axis]), np.ceil(highest_l0 / cell[axis])))
    (top, bottom), (left, right) = ((a.astype(int), b.astype(int)) for a, b in ranges)
    return window_sums(mask, (top, left), (bottom, right)) == 0


class PixelSet:
    """The set pixels of a bool mask (h, w), stored in an eighth of its memory, from which pixels can be drawn."""

    def __init__(self, mask: np.ndarray) -> None:
        self.shape = mask.shape
        self._rows = np.packbits(mask, axis=1)
        self._cumulative = np.cumsum(mask.sum(axis=1))

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes + self._cumulative.nbytes

    def __len__(self) -> int:
        return int(self._cumulative[-1]) if len(self._cumulative) else 0

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return (x, y) of a set pixel, each with the same chance. Raises ValueError if there is none."""
        chosen = int(rng.integers(len(self)))
        y = int(np.searchsorted(self._cumulative, chosen, side="right"))
        before = int(self._cumulative[y - 1]) if y else 0
        columns = np.flatnonzero(np.unpackbits(self._rows[y], count=self.shape[1]))
        return int(columns[chosen - before]), y
