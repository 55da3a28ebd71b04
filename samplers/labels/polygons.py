"""Polygons to pixels, such that a pixel does not depend on the window in which it is drawn, and pixels to polygons.

A pixel is inside a polygon if its centre is, by the even-odd rule over all rings of a valid polygon, so that holes
need no special treatment. Level-0 pixel i covers [i, i + 1). Nothing is clipped: clipping makes new vertices, and
their rounding would move an outline by a pixel from one window to the next.
"""

from __future__ import annotations

import warnings

import numpy as np
import shapely
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes

from samplers.slides.part import Part

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # slides have no place on earth

_STEPS_PER_PIXEL = 8  # with which `touched` follows an outline
_MAX_STEPS = 1 << 20  # about as many at a time, in 60 MB


def edges_of(geometry: shapely.Geometry) -> np.ndarray:
    """Return the edges of all rings of a (multi)polygon: float64 (4, n), rows x1, y1, x2, y2, with y1 ≤ y2."""
    parts = [shapely.get_coordinates(ring) for ring in shapely.get_rings(shapely.get_parts(geometry))]
    if not parts:
        return np.zeros((4, 0))
    edges = np.concatenate([np.hstack([points[:-1], points[1:]]) for points in parts])
    # All point the same way, so that an edge that two polygons share gives the same crossings for both.
    flip = edges[:, 1] > edges[:, 3]
    edges[flip] = edges[flip][:, [2, 3, 0, 1]]
    return np.ascontiguousarray(edges.T)


def fill(
    edges: np.ndarray,
    x: float,
    y: float,
    width: int,
    height: int,
    downsample: float,
    part: Part | None = None,
) -> np.ndarray:
    """Return the pixels of a window, or of a part of it, whose centres lie inside: bool (height, width).

    `edges` (4, n) and the window's corner (x, y) are in level-0 pixels. The window's size is in pixels that span
    `downsample` level-0 pixels. A pixel is inside if, to the left of its centre, the row crosses an odd number of
    edges. An edge includes its smaller y but not its larger one, so that a vertex counts once and each row crosses
    an even number of edges.
    """
    part = part or Part(0, height, 0, width)
    height, width = part.height, part.width
    near = (edges[1] < y + part.bottom * downsample) & (edges[3] > y + part.top * downsample)
    x1, y1, x2, y2 = edges[:, near & (edges[1] != edges[3])]
    centres_x = x + (np.arange(part.left, part.right) + 0.5) * downsample
    centres_y = y + (np.arange(part.top, part.bottom) + 0.5) * downsample
    first, end = np.searchsorted(centres_y, y1), np.searchsorted(centres_y, y2)
    rows_of_edge = end - first
    edge = np.repeat(np.arange(len(x1)), rows_of_edge)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows_of_edge) - end, rows_of_edge)
    slope = (x2 - x1) / (y2 - y1)
    crossing = x1[edge] + (centres_y[row] - y1[edge]) * slope[edge]
    column = np.searchsorted(centres_x, crossing)  # the first pixel right of it, `width` if there is none
    # Row after row, the pixels from each odd crossing to the next crossing are inside.
    turns = np.concatenate([[0], np.sort(row * width + column), [height * width]])
    odd = np.arange(len(turns) - 1) % 2 == 1
    return np.repeat(odd, np.diff(turns)).reshape(height, width)


def touched(edges: np.ndarray, x: float, y: float, width: int, height: int, downsample: float) -> np.ndarray:
    """Return the pixels of a window that an edge runs through, to an eighth of a pixel: bool (height, width).

    The arguments are those of `fill`.
    """
    delta = edges[2:] - edges[:2]
    steps = (np.abs(delta).max(axis=0, initial=0) / downsample * _STEPS_PER_PIXEL).astype(np.int64) + 1
    result = np.zeros((height, width), bool)
    # An outline may be long: its points are looked at a share at a time.
    share = np.cumsum(steps) // _MAX_STEPS
    for chunk in np.split(np.arange(len(steps)), np.flatnonzero(np.diff(share)) + 1):
        edge = np.repeat(chunk, steps[chunk])
        first = np.cumsum(steps[chunk]) - steps[chunk]
        part = (np.arange(len(edge)) - np.repeat(first, steps[chunk])) / steps[edge]
        points = edges[:2, edge] + part * delta[:, edge]
        column, row = np.floor((points - [[x], [y]]) / downsample).astype(np.int64)
        hit = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        result[row[hit], column[hit]] = True
    return result


def trace(
    classes: np.ndarray, shown: np.ndarray, scale: tuple[float, float]
) -> list[tuple[int, shapely.Polygon]]:
    """Return (class, polygon) for each region of `classes`, uint8 (height, width), where `shown` (bool) is set.

    A region is a set of pixels of one class connected by edges. Its polygon runs along the edges of its pixels,
    with holes, in pixels times `scale` (x, y). The list is sorted by class, then by the regions' first pixels, row
    by row.
    """
    found = []
    for geometry, value in shapes(classes, mask=shown, connectivity=4):
        rings = geometry["coordinates"]
        first_pixel = min((y, x) for x, y in rings[0])
        outer, *holes = (np.multiply(ring, scale) for ring in rings)
        found.append((int(value), first_pixel, shapely.Polygon(outer, holes)))
    found.sort(key=lambda region: region[:2])
    return [(value, polygon) for value, _, polygon in found]
