"""Finds lesions on maps of tumour probabilities, and labels lymph nodes by the size of their lesions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist

# CAMELYON leaves these to the participant. 0.5 selects the more probable of two classes. CAMELYON16 merges lesions over
# 75 µm, "the equivalent size of 5 tumor cells"; fewer cells than that are more often noise than a lesion.
THRESHOLD, MERGE_UM, MIN_DIAMETER_UM = 0.5, 75.0, 75.0
NODE_LABELS = ("negative", "itc", "micro", "macro")
ITC_MM, MICRO_MM = 0.2, 2.0  # largest diameters, inclusive
_CONNECTED = np.ones((3, 3), int)  # pixels that share a corner are connected as well


@dataclass(frozen=True)
class FoundLesion:
    """A lesion on a map of probabilities. Places are in level-0 pixels of the slide."""

    label: int  # value of its pixels in the picture of labels
    confidence: float  # mean probability
    x: float  # the place that is farthest from its edge
    y: float
    diameter: float  # µm, the longest distance from edge to edge
    area: float  # µm²


def find_lesions(
    probability: np.ndarray,
    spacing: float,
    downsample: float = 1.0,
    threshold: float = THRESHOLD,
    merge: float = MERGE_UM,
    min_diameter: float = MIN_DIAMETER_UM,
) -> tuple[list[FoundLesion], np.ndarray]:
    """Return the lesions on a map of probabilities, by label, and a picture of their labels: int32 (h, w), 0 for none.

    probability: (h, w), float from 0 to 1 or uint8 from 0 to 255, with `spacing` µm/px and `downsample` level-0 pixels
    per pixel. A pixel is tumour from `threshold` on. Areas that meet when each grows by half of `merge` µm are one
    lesion. Lesions whose longest diameter is below `min_diameter` µm are left out.
    """
    scale = 255.0 if probability.dtype == np.uint8 else 1.0
    tumour = probability >= threshold * scale
    labels = np.zeros(tumour.shape, np.int32)
    if not tumour.any():
        return [], labels
    distance = cv2.distanceTransform((~tumour).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    groups = ndimage.label((distance < merge / spacing / 2) | tumour, _CONNECTED)[0]
    groups[~tumour] = 0
    # With a border of background, the slide's edge is a lesion's edge.
    padded = np.pad(tumour.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    found: list[FoundLesion] = []
    for group, window in enumerate(ndimage.find_objects(groups), 1):
        inside = groups[window] == group
        diameter = longest_diameter(inside) * spacing
        if diameter < min_diameter:
            continue
        labels[window][inside] = len(found) + 1
        row, column = np.unravel_index(np.argmax(np.where(inside, depth[window], -1)), inside.shape)
        found.append(
            FoundLesion(
                label=len(found) + 1,
                confidence=float(probability[window][inside].mean() / scale),
                x=float((column + window[1].start + 0.5) * downsample),
                y=float((row + window[0].start + 0.5) * downsample),
                diameter=diameter,
                area=float(np.count_nonzero(inside) * spacing**2),
            )
        )
    return found, labels


def longest_diameter(inside: np.ndarray) -> float:
    """Return the longest distance between two pixel corners of a bool mask (h, w), in pixels; 0 if none is set."""
    rows = np.flatnonzero(inside.any(axis=1))
    if not len(rows):
        return 0.0
    first = inside[rows].argmax(axis=1)
    last = inside.shape[1] - inside[rows, ::-1].argmax(axis=1)
    corners = np.concatenate(
        [np.stack([column, row], axis=1) for column in (first, last) for row in (rows, rows + 1)]
    )
    hull = cv2.convexHull(corners.astype(np.int32))[:, 0]
    return float(pdist(hull).max())


def node_label(diameter_mm: float) -> str:
    """Return CAMELYON17's label of a node whose largest lesion has this longest diameter, 0 if it has no lesion."""
    if diameter_mm <= 0:
        return "negative"
    if diameter_mm <= ITC_MM:
        return "itc"
    return "micro" if diameter_mm <= MICRO_MM else "macro"
