"""Traces the outlines of predicted lesions along the edges of pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from rasterio.features import shapes

from prediction.raster import Raster

WINDOW = 4096  # side in pixels of the squares that are traced at once
_CLASSES = 256


@dataclass(frozen=True)
class ClassOutline:
    """The part of a lesion that is of one class: polygons with holes, in pixels of the output."""

    value: int  # the class
    polygons: list[shapely.Polygon]


def trace(classes: Raster, labels: np.ndarray, side: int) -> dict[int, list[ClassOutline]]:
    """Return the outlines of each lesion, one per class, by the lesion's number.

    labels: int32 (h, w), the lesions' numbers in cells of `side` × `side` pixels; 0 means no lesion.
    """
    found: dict[int, list[shapely.Polygon]] = defaultdict(list)
    windows: dict[int, int] = defaultdict(int)
    step = max(1, WINDOW // side)
    for top in range(0, labels.shape[0], step):
        for left in range(0, labels.shape[1], step):
            part = labels[top : top + step, left : left + step]
            if not part.any():
                continue
            x, y = left * side, top * side
            pixels = classes.read(x, y, part.shape[1] * side, part.shape[0] * side)
            numbers = part.repeat(side, axis=0).repeat(side, axis=1)[: pixels.shape[0], : pixels.shape[1]]
            keys = numbers * _CLASSES + pixels
            inside = (numbers > 0) & (pixels > 0)
            in_window: dict[int, list[shapely.Polygon]] = defaultdict(list)
            for geometry, key in shapes(keys, mask=inside, connectivity=4):
                rings = [np.add(ring, (x, y)) for ring in geometry["coordinates"]]
                in_window[int(key)].append(shapely.Polygon(rings[0], rings[1:]))
            for key, polygons in in_window.items():
                found[key] += polygons
                windows[key] += 1
    outlines: dict[int, list[ClassOutline]] = defaultdict(list)
    for key in sorted(found):
        polygons = found[key]
        if windows[key] > 1:  # join the polygons that the windows have cut
            joined = shapely.union_all(polygons).simplify(0)
            polygons = [part for part in shapely.get_parts(joined) if part.geom_type == "Polygon"]
        polygons.sort(key=lambda polygon: polygon.bounds)
        outlines[key // _CLASSES].append(ClassOutline(key % _CLASSES, polygons))
    return outlines


def without_islands(polygons: Sequence[shapely.Polygon]) -> tuple[np.ndarray, list[list[shapely.Polygon]]]:
    """Prepare polygons for a format without holes, where a hole is another polygon that is painted over the first.

    A hole with an island in it cannot be painted over. Its polygon is cut along a row of pixels that opens the hole.
    Returns the holes without islands, and for each polygon the list of its parts.
    """
    if not polygons:
        return np.array([]), []
    # All rings at once: one by one, the 46,000 holes of a noisy map took ten times as long.
    rings, owner = shapely.get_rings(np.array(polygons), return_index=True)
    inner = np.diff(owner, prepend=-1) == 0  # all rings but the first of each polygon
    holes, owner = shapely.polygons(rings[inner]), owner[inner]
    solid = shapely.STRtree(shapely.polygons(rings[~inner]))
    occupied = np.unique(solid.query(holes, predicate="covers")[0]) if len(holes) else []
    rows: dict[int, set[float]] = defaultdict(set)
    for hole in occupied:
        rows[owner[hole]].add(shapely.bounds(holes[hole])[1])
    parts = [
        list(_cut(polygon, sorted(rows[i]))) if i in rows else [polygon] for i, polygon in enumerate(polygons)
    ]
    rings, owner = shapely.get_rings(np.array([part for some in parts for part in some]), return_index=True)
    return shapely.polygons(rings[np.diff(owner, prepend=-1) == 0]), parts


def _cut(shape: shapely.Geometry, rows: Sequence[float]) -> Iterator[shapely.Polygon]:
    """Yield the polygons that remain when `shape` is cut along these rows, which is done by halves."""
    if not rows:
        yield from (part for part in shapely.get_parts(shape) if part.geom_type == "Polygon")
        return
    left, top, right, bottom = shapely.bounds(shape)
    middle = len(rows) // 2
    boxes = shapely.box(left, top, right, rows[middle]), shapely.box(left, rows[middle], right, bottom)
    for box, others in zip(boxes, (rows[:middle], rows[middle + 1 :])):
        yield from _cut(shapely.intersection(shape, box), others)
