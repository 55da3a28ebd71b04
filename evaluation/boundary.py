"""Counts in histograms how far predicted outlines are from true ones, so that tiles and slides can be summed.

An outline consists of the tumour pixels whose upper, lower, left or right neighbour is not tumour. The edge of the
slide is no outline, nor is the edge of what is known. Boundary F1 after Csurka et al., "What is a good evaluation
measure for semantic segmentation?" (2013).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

REACH_UM = 100.0  # larger distances are counted as this one
BIN_UM = 0.5
BINS = int(REACH_UM / BIN_UM)  # bin 0 counts distance 0, bin b those above (b - 1) · BIN_UM up to b · BIN_UM
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def outline(tumour: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Return the outermost pixels of a bool mask (h, w), where they and what is beside them are known: bool."""
    known = np.ones(tumour.shape, bool) if known is None else known
    pixels = (tumour | ~known).astype(np.uint8)
    # OpenCV takes everything outside the mask as tumour.
    return np.asarray((pixels > cv2.erode(pixels, _CROSS)) & known)


def distance_counts(
    truth: np.ndarray,
    predicted: np.ndarray,
    core: tuple[slice, slice],
    spacing: float,
    known: np.ndarray | None = None,
) -> np.ndarray:
    """Count outline pixels by their distance to the other outline: int64 (2, BINS + 1).

    truth, predicted: bool (h, w) with a margin of REACH_UM around `core`, whose outline pixels are counted. `known`:
    the same for where the truth is known (None: everywhere); there are no outlines elsewhere.
    Row 0 counts pixels of the prediction by their distance to the truth, row 1 the other way round. The last bin is for
    REACH_UM and more.
    """
    counts = np.zeros((2, BINS + 1), np.int64)
    outlines = [outline(predicted, known), outline(truth, known)]
    for row, (own, other) in enumerate((outlines, outlines[::-1])):
        mine = own[core]
        if not mine.any():
            continue
        if not other.any():
            counts[row, BINS] = np.count_nonzero(mine)
            continue
        distance = cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # OpenCV's last bits depend on where the array lies in memory; the squares of distances are whole numbers.
        pixels = np.sqrt(np.rint(distance[core][mine].astype(np.float64) ** 2))
        bins = np.ceil(pixels * (spacing / BIN_UM) - 1e-6)
        counts[row] = np.bincount(np.minimum(bins, BINS).astype(np.int64), minlength=BINS + 1)
    return counts


def summarise(counts: np.ndarray, tolerance: float) -> dict[str, Any]:
    """Return the boundary metrics of `distance_counts`; None where there is no outline.

    These are precision, recall and F1 of the outlines at a tolerance in µm, and the mean and the 95th percentile of the
    distances of both ways in µm, in which none is larger than REACH_UM.
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
