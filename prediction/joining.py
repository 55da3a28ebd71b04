"""Joins polygons along the edges of pixels where the windows in which they were traced have cut them.

Where a region's indicator has the four values f around a corner of pixels, f(right, below) - f(left, below)
- f(right, above) + f(left, above) is 0 on straight edges and elsewhere ±1 at a vertex of the outline, or ±2 where two
of its pixels touch at this corner only. It is a sum over the region's pixels, so what is left of the vertices of all
parts of a region, once those at the same place are added up, are the vertices of the whole. Along each row of corners
the outline then runs from the first of them to the second, from the third to the fourth, and so on, and so it does
along each column. This takes a time that grows as sorting does; a union of polygons looks for crossings, of which there
are none, and runs over all vertices again for each pair of neighbours that it joins.
"""

from __future__ import annotations

from array import array

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_LINE = 1 << 32  # above all coordinates


def join(polygons: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return polygons of which those that share an edge on the border of their windows are one.

    polygons: shapely polygons (n,) along the edges of pixels, none of which overlap. windows: int (n, 4), the window
    of each as left, top, right, bottom.
    """
    rings, polygon_of = shapely.get_rings(polygons, return_index=True)
    points, ring_of = shapely.get_coordinates(rings, return_index=True)
    points = points.astype(np.int64)
    edges = np.flatnonzero(ring_of[:-1] == ring_of[1:])  # a ring's last point is its first one
    begins, ends, ring_of = points[edges], points[edges + 1], ring_of[edges]
    owner = polygon_of[ring_of]
    region = _regions(begins, ends, owner, windows)
    is_cut = np.bincount(region)[region] > 1
    kept = is_cut[owner]
    outer = np.diff(polygon_of, prepend=-1) > 0
    vertices = _vertices(begins[kept], ends[kept], ring_of[kept], outer)
    joined = _polygons(region[owner[kept]], *vertices)
    return np.concatenate([polygons[~is_cut], joined])


def _regions(begins: np.ndarray, ends: np.ndarray, owner: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the number of the region of each polygon, by the edges (n, 2) of polygons `owner` (n,)."""
    pairs = [np.empty((2, 0), np.int64)]
    for axis in (0, 1):
        line = np.where(begins[:, axis] == ends[:, axis], begins[:, axis], -1)
        first, last = (
            line * _LINE + way(begins[:, 1 - axis], ends[:, 1 - axis]) for way in (np.minimum, np.maximum)
        )
        # On both sides of a border the edges are disjoint, so they have one order.
        after, before = (np.flatnonzero(line == windows[owner, side]) for side in (axis, axis + 2))
        after, before = after[np.argsort(first[after])], before[np.argsort(first[before])]
        start = np.searchsorted(last[after], first[before], side="right")
        count = np.searchsorted(first[after], last[before], side="left") - start
        number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        pairs.append(
            np.stack([owner[np.repeat(before, count)], owner[after[np.repeat(start, count) + number]]])
        )
    joined = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(joined.shape[1], bool), joined), shape=(len(windows),) * 2)
    return np.asarray(connected_components(graph, directed=False)[1])


def _vertices(
    begins: np.ndarray, ends: np.ndarray, ring_of: np.ndarray, outer: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places where edges begin (n, 2), and the value there of what the module's docstring defines (n,)."""
    is_first = np.diff(ring_of, prepend=-1) > 0
    firsts = np.flatnonzero(is_first)
    before = np.arange(len(ring_of)) - 1
    before[firsts] = np.append(firsts[1:], len(ring_of)) - 1
    level = begins[:, 1] == ends[:, 1]
    areas = np.add.reduceat(begins[:, 0] * ends[:, 1] - begins[:, 1] * ends[:, 0], firsts)
    # The sign alternates along a ring. It is known from the way the ring runs, and on which side its pixels are.
    sign = np.sign(areas) * np.where(outer[ring_of[firsts]], 1, -1)
    sign = sign[np.cumsum(is_first) - 1] * np.where(level[before], -1, 1)
    return begins, sign * (level != level[before])


def _polygons(region: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the polygon of each region, of whose parts the vertices are given."""
    order = np.lexsort((places[:, 0], places[:, 1], region))
    region, (x, y), values = region[order], places[order].T, values[order]
    is_new = np.flatnonzero(np.diff(region, prepend=-1) | np.diff(x, prepend=-1) | np.diff(y, prepend=-1))
    if not len(is_new):
        return np.empty(0, object)
    values = np.add.reduceat(values, is_new)
    chosen = np.repeat(is_new, np.abs(values))
    region, x, y = region[chosen], x[chosen], y[chosen]
    # Where two pixels of a region touch at a corner there are two vertices: the first one belongs to the edge on the
    # left, the second one to that on the right. They are joined with the edges above and below such that rings touch
    # there, as valid polygons have it, and none crosses itself.
    values = np.repeat(values, np.abs(values))
    second = np.diff(chosen, prepend=-1) == 0
    columns = np.lexsort((second ^ (values > 0), y, x, region))
    partner = np.empty(len(columns), np.int32)
    partner[columns[::2]], partner[columns[1::2]] = columns[1::2], columns[::2]

    path, starts = array("i"), array("i")
    is_seen, across = bytearray(len(columns)), partner.data
    for start in range(0, len(columns), 2):  # a region's first vertex is on its outer ring
        if is_seen[start]:
            continue
        starts.append(len(path))
        vertex = start
        while not is_seen[vertex]:
            other = vertex ^ 1  # along the row
            is_seen[vertex] = is_seen[other] = 1
            path.append(vertex)
            path.append(other)
            vertex = across[other]
    sizes = np.diff(np.append(starts, len(path)))
    corners = np.stack([x, y], axis=1)[np.frombuffer(path, np.int32)]
    rings = shapely.linearrings(corners, indices=np.repeat(np.arange(len(sizes)), sizes))
    numbers = np.unique(
        region[np.frombuffer(path, np.int32)[np.frombuffer(starts, np.int32)]], return_inverse=True
    )[1]
    return np.asarray(shapely.polygons(rings, indices=numbers))
