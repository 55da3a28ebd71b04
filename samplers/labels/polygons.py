"""Polygons to pixels, such that a pixel does not depend on the window in which it is drawn, and pixels to polygons.

A pixel is inside a polygon if its centre is, by the even-odd rule over all rings of a valid polygon, so that holes
need no special treatment. Level-0 pixel i covers [i, i + 1). Nothing is clipped: clipping makes new vertices, and
their rounding would move an outline by a pixel from one window to the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

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
    return edges_of_all(np.array([geometry]))[0]


def edges_of_all(geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `edges_of` all (multi)polygons, one after the other, and where those of each begin: int (n + 1,)."""
    parts, owner_of_part = shapely.get_parts(geometries, return_index=True)
    rings, part_of_ring = shapely.get_rings(parts, return_index=True)
    points, ring_of_point = shapely.get_coordinates(rings, return_index=True)
    begins = np.flatnonzero(
        ring_of_point[:-1] == ring_of_point[1:]
    )  # of an edge; a ring's last point is its first one
    edges = np.hstack([points[begins], points[begins + 1]])
    # All point the same way, so that an edge that two polygons share gives the same crossings for both.
    flip = edges[:, 1] > edges[:, 3]
    edges[flip] = edges[flip][:, [2, 3, 0, 1]]
    owners = owner_of_part[part_of_ring[ring_of_point[begins]]]
    return np.ascontiguousarray(edges.T), np.searchsorted(owners, np.arange(len(geometries) + 1))


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
    centres_x = x + (np.arange(part.left, part.right) + 0.5) * downsample
    centres_y = y + (np.arange(part.top, part.bottom) + 0.5) * downsample
    _, row, column = _crossings(edges[:, near], centres_x, centres_y)
    # Row after row, the pixels from each odd crossing to the next crossing are inside.
    turns = np.concatenate([[0], np.sort(row * width + column), [height * width]])
    odd = np.arange(len(turns) - 1) % 2 == 1
    return np.repeat(odd, np.diff(turns)).reshape(height, width)


def _crossings(
    edges: np.ndarray, centres_x: np.ndarray, centres_y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where edges cross rows of pixels, given the pixels' centres: edge, row and column, int (n,) each.

    The column is the first one whose centre is right of the crossing, or their number if there is none.
    """
    x1, y1, x2, y2 = edges
    first, end = np.searchsorted(centres_y, y1), np.searchsorted(centres_y, y2)
    rows_of_edge = end - first
    edge = np.repeat(np.arange(len(x1)), rows_of_edge)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows_of_edge) - end, rows_of_edge)
    slope = np.divide(x2 - x1, y2 - y1, out=np.zeros_like(x1), where=y1 != y2)  # what is level crosses no row
    crossing = x1[edge] + (centres_y[row] - y1[edge]) * slope[edge]
    return edge, row, np.searchsorted(centres_x, crossing)


def touched(edges: np.ndarray, x: float, y: float, width: int, height: int, downsample: float) -> np.ndarray:
    """Return the pixels of a window that an edge runs through, to an eighth of a pixel: bool (height, width).

    The arguments are those of `fill`.
    """
    result = np.zeros(height * width, bool)
    for _, pixels in _steps(edges, x, y, width, height, downsample):
        result[pixels] = True
    return result.reshape(height, width)


def _steps(
    edges: np.ndarray, x: float, y: float, width: int, height: int, downsample: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield edges, and pixels of the window that they run through, row · width + column: int (n,) each."""
    delta = edges[2:] - edges[:2]
    steps = (np.abs(delta).max(axis=0, initial=0) / downsample * _STEPS_PER_PIXEL).astype(np.int64) + 1
    # An outline may be long: its points are looked at a share at a time.
    share = np.cumsum(steps) // _MAX_STEPS
    for chunk in np.split(np.arange(len(steps)), np.flatnonzero(np.diff(share)) + 1):
        edge = np.repeat(chunk, steps[chunk])
        first = np.cumsum(steps[chunk]) - steps[chunk]
        part = (np.arange(len(edge)) - np.repeat(first, steps[chunk])) / steps[edge]
        points = edges[:2, edge] + part * delta[:, edge]
        column, row = np.floor((points - [[x], [y]]) / downsample).astype(np.int64)
        hit = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        yield edge[hit], row[hit] * width + column[hit]


class Cover(NamedTuple):
    """The pixels of a picture that some polygons cover: bool (height, width) each."""

    filled: np.ndarray  # the centre is inside of a polygon, see `fill`
    border: np.ndarray  # an edge of a polygon runs through, see `touched`
    within: np.ndarray  # the centre is inside of a polygon none of whose edges runs through


def cover(edges: np.ndarray, owners: np.ndarray, width: int, height: int) -> Cover:
    """Return what polygons cover of a picture, by their edges (4, n) in its pixels, and each edge's polygon, int (n,).

    The polygons, each of which may overlap others, are looked at all at once: there may be 100,000 of them.
    """
    size = height * width
    edge, row, column = _crossings(edges, np.arange(width) + 0.5, np.arange(height) + 0.5)
    turns = np.sort(owners[edge] * size + row * width + column)  # polygon after polygon, row after row
    starts, ends = turns[::2], turns[1::2]
    # How many polygons begin at a pixel in its row, less those that end there.
    local = starts // size * size
    changes = np.bincount(starts - local, minlength=size + 1) - np.bincount(ends - local, minlength=size + 1)
    filled = np.cumsum(changes[:size])

    found = [
        np.unique(owners[edge] * size + pixels) for edge, pixels in _steps(edges, 0, 0, width, height, 1.0)
    ]
    border = np.unique(np.concatenate(found))
    span = np.searchsorted(starts, border, side="right") - 1
    of_filled = border[(span >= 0) & (border < ends[span])] if len(ends) else border[:0]
    within = filled - np.bincount(of_filled % size, minlength=size)
    outline = np.zeros(size, bool)
    outline[border % size] = True
    return Cover(*(pixels.reshape(height, width) for pixels in (filled > 0, outline, within > 0)))


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
