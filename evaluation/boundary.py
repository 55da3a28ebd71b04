"""Counts in histograms how far predicted outlines are from true ones, so that tiles and slides can be summed.

An outline is the pixels of the tumour whose upper, lower, left or right neighbour is not tumour; the slide's edge
makes none. Boundary F1 after Csurka et al., "What is a good evaluation measure for semantic segmentation?" (2013).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

REACH_UM = 100.0  # farther is counted as this far
BIN_UM = 0.5
BINS = int(REACH_UM / BIN_UM)  # bin 0: 0, bin b: above (b - 1) · BIN_UM and up to b · BIN_UM
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def outline(tumour: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of a bool mask (h, w): bool."""
    pixels = tumour.astype(np.uint8)
    return np.asarray(pixels > cv2.erode(pixels, _CROSS))  # OpenCV takes what is outside as tumour


def distance_counts(
    truth: np.ndarray, predicted: np.ndarray, core: tuple[slice, slice], spacing: float
) -> np.ndarray:
    """Outline pixels by their distance to the other outline: int64 (2, BINS + 1).

    truth, predicted: bool (h, w) with a margin of REACH_UM around `core`, whose outline pixels are counted.
    Row 0: of the prediction to the truth; row 1: the other way. The last bin: REACH_UM or more.
    """
    counts = np.zeros((2, BINS + 1), np.int64)
    outlines = [outline(predicted), outline(truth)]
    for row, (own, other) in enumerate((outlines, outlines[::-1])):
        mine = own[core]
        if not mine.any():
            continue
        if not other.any():
            counts[row, BINS] = np.count_nonzero(mine)
            continue
        distance = cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        bins = np.ceil(distance[core][mine] * (spacing / BIN_UM) - 1e-6)
        counts[row] = np.bincount(np.minimum(bins, BINS).astype(np.int64), minlength=BINS + 1)
    return counts


def summarise(counts: np.ndarray, tolerance: float) -> dict[str, Any]:
    """Return precision, recall and F1 of outlines at a tolerance in µm; mean and 95th percentile of
    the distance of both ways in µm, none of it larger than REACH_UM. None: there is no outline.
    """
    near = counts[:, : int(tolerance / BIN_UM) + 1].sum(axis=1)
    sums = counts.sum(axis=1)
    precision, recall = (float(n / s) if s else None for n, s in zip(near, sums))
    both = counts.sum(axis=0)
    result: dict[str, Any] = {
        "boundary_precision": precision,
        "boundary_recall": recall,
        "boundary_f1": None,
        "boundary_mean_um": None,
        "boundary_p95_um": None,
    }
    if both.sum():
        precision, recall = precision or 0.0, recall or 0.0
        result["boundary_f1"] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        result["boundary_mean_um"] = float((both * np.arange(BINS + 1)).sum() / both.sum() * BIN_UM)
        result["boundary_p95_um"] = float(np.searchsorted(both.cumsum(), 0.95 * both.sum()) * BIN_UM)
    return result
