"""From tumour probabilities to lesions, and from a lesion's size to the label of a lymph node."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist

# CAMELYON leaves these to the entrant. 0.5: the more probable of two classes. 75 µm, "the equivalent size of 5
# tumor cells", is what CAMELYON16 merges lesions by; fewer cells than that are more often noise than a lesion.
THRESHOLD, MERGE_UM, MIN_DIAMETER_UM = 0.5, 75.0, 75.0
NODE_LABELS = ("negative", "itc", "micro", "macro")
ITC_MM, MICRO_MM = 0.2, 2.0  # up to and including
_CONNECTED = np.ones((3, 3), int)  # by corners too


@dataclass(frozen=True)
class FoundLesion:
    """A predicted lesion; places are in the level-0 pixels of the slide."""

    label: int  # its pixels in the picture of labels
    confidence: float  # mean probability
    x: float  # the place that is deepest inside of it
    y: float
    diameter: float  # µm, longest, from edge to edge
    area: float  # µm²


def find_lesions(
    probability: np.ndarray,
    spacing: float,
    downsample: float = 1.0,
    threshold: float = THRESHOLD,
    merge: float = MERGE_UM,
    min_diameter: float = MIN_DIAMETER_UM,
) -> tuple[list[FoundLesion], np.ndarray]:
    """Lesions on a map of tumour probabilities (h, w): float of 0 … 1 or uint8 of 0 … 255, `spacing` µm/px.

    A pixel is tumour from `threshold` on; areas that meet when each grows by half of `merge` µm are one
    lesion; lesions that are nowhere as long as `min_diameter` µm are left out. `downsample`: level-0 pixels a
    pixel of the map.
    Returns them in the order of their labels, and the picture of labels: int32 (h, w), 0: no lesion.
    """
    scale = 255.0 if probability.dtype == np.uint8 else 1.0
    tumour = probability >= threshold * scale
    labels = np.zeros(tumour.shape, np.int32)
    if not tumour.any():
        return [], labels
    distance = cv2.distanceTransform((~tumour).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    groups = ndimage.label((distance < merge / spacing / 2) | tumour, _CONNECTED)[0]
    groups[~tumour] = 0
    # A border of background: the slide's edge is a lesion's edge.
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
    """CAMELYON17's label of a node by the longest diameter of its largest lesion; 0: it has none."""
    if diameter_mm <= 0:
        return "negative"
    if diameter_mm <= ITC_MM:
        return "itc"
    return "micro" if diameter_mm <= MICRO_MM else "macro"
