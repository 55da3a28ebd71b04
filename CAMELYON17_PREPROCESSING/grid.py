"""Chooses the places of a slide at which patches are cut, in numpy and without IO.

Names in level-0 pixels end in `_l0`, those in pixels of the thumbnail in `_t`. A pixel of the thumbnail is `cell`
level-0 pixels (x, y) large.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from samplers.tissue import contrast_is_low, window_sums, windows_of

MAX_BLACK = 0.1  # share of a patch; more is the scanner's border, or was never scanned
BLACK = 20  # a pixel is black if none of its channels is above this, of 255


class Place(NamedTuple):
    """The corner of a patch in level-0 pixels, and the share of it that is tissue on the thumbnail."""

    x_l0: int
    y_l0: int
    tissue: float


def places(
    tissue: np.ndarray,
    tumour: np.ndarray,
    cell: tuple[float, float],
    slide_l0: tuple[int, int],
    size_l0: int,
    stride_l0: float,
    min_tissue: float,
) -> list[Place]:
    """Return the places of a grid over the slide, row by row, that meet tumour or have enough tissue.

    tissue, tumour: bool (h, w) of the thumbnail; a pixel is tumour if any part of it is. One grid covers the whole
    slide, from its corner on, so a patch that several regions of tissue touch is cut once.
    """
    starts_l0 = [
        (np.arange(int((extent - size_l0) / stride_l0 + 1e-9) + 1) * stride_l0).round().astype(int)
        for extent in (slide_l0[1], slide_l0[0])
    ]  # rows, columns
    starts_t, stops_t = windows_of(starts_l0, size_l0, cell)
    stops_t = [np.minimum(stop_t, extent_t) for stop_t, extent_t in zip(stops_t, tissue.shape)]  # rounding
    area_t = np.multiply.outer(stops_t[0] - starts_t[0], stops_t[1] - starts_t[1])
    part = window_sums(tissue, starts_t, stops_t) / area_t
    wanted = (window_sums(tumour, starts_t, stops_t) > 0) | (part >= min_tissue)
    return [
        Place(int(starts_l0[1][column]), int(starts_l0[0][row]), round(float(part[row, column]), 4))
        for row, column in np.argwhere(wanted)
    ]


def is_background(image: np.ndarray) -> bool:
    """Return whether a patch, uint8 RGB (H, W, 3), shows nothing: low contrast, or more than a tenth of it black."""
    lowest, highest = (0, 0, 0), (BLACK, BLACK, BLACK)
    black = cv2.countNonZero(cv2.inRange(image, lowest, highest))  # type: ignore[call-overload] # its stub forgets scalars
    return black > MAX_BLACK * image.shape[0] * image.shape[1] or contrast_is_low(image)
