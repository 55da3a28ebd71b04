"""Traces the outlines of predicted lesions along the edges of pixels."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from rasterio.features import shapes

from prediction.joining import join
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

    labels: int32 (h, w), the lesions' numbers in cells of `side` × `side` pixels; 0 means no lesion. The polygons are
    normalized, so they do not depend on the windows in which they are traced.
    """
    whole: dict[int, list[np.ndarray]] = defaultdict(list)
    # Polygons on the border of a window, and their windows.
    cut: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    step = max(1, WINDOW // side)
    for top in range(0, labels.shape[0], step):
        for left in range(0, labels.shape[1], step):
            part = labels[top : top + step, left : left + step]
            if not part.any():
                continue
            x, y = left * side, top * side
            pixels = classes.read(x, y, part.shape[1] * side, part.shape[0] * side)
            keys, polygons = _traced(pixels, part.repeat(side, axis=0).repeat(side, axis=1), (x, y))
            window = np.array([x, y, x + step * side, y + step * side])
            is_cut = (shapely.bounds(polygons) == window).any(axis=1)
            for key in np.unique(keys):
                chosen = keys == key
                whole[key].append(shapely.normalize(polygons[chosen & ~is_cut]))
                found = polygons[chosen & is_cut]
                cut[key].append((found, np.tile(window, (len(found), 1))))
    outlines: dict[int, list[ClassOutline]] = defaultdict(list)
    for key in sorted(whole):
        parts, windows = (np.concatenate(arrays) for arrays in zip(*cut.pop(key)))
        polygons = np.concatenate([*whole.pop(key), shapely.normalize(join(parts, windows))])
        order = np.lexsort(shapely.bounds(polygons).T[::-1])
        outlines[int(key) // _CLASSES].append(ClassOutline(int(key) % _CLASSES, polygons[order].tolist()))
    return outlines


def _traced(
    pixels: np.ndarray, numbers: np.ndarray, corner: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the polygons of a window (n,), and for each the lesion's number · 256 + its class: int64 (n,)."""
    numbers = numbers[: pixels.shape[0], : pixels.shape[1]]
    keys, points, sizes, holes = array("q"), [], array("q"), array("q")
    for geometry, key in shapes(
        numbers * _CLASSES + pixels, mask=(numbers > 0) & (pixels > 0), connectivity=4
    ):
        keys.append(int(key))
        holes.append(len(geometry["coordinates"]))
        for ring in geometry["coordinates"]:
            points.append(np.array(ring))
            sizes.append(len(ring))
    if not keys:
        return np.empty(0, np.int64), np.empty(0, object)
    rings = shapely.linearrings(
        np.concatenate(points) + corner, indices=np.repeat(np.arange(len(sizes)), sizes)
    )
    polygons = shapely.polygons(rings, indices=np.repeat(np.arange(len(holes)), holes))
    return np.frombuffer(keys, np.int64), polygons


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
    # A hole covers a polygon, whatever holes that has, if it covers its outer ring.
    occupied = np.unique(shapely.STRtree(polygons).query(holes, predicate="covers")[0]) if len(holes) else []
    rows: dict[int, set[float]] = defaultdict(set)
    for hole in occupied:
        rows[owner[hole]].add(shapely.bounds(holes[hole])[1])
    parts = [
        list(_cut(polygon, sorted(rows[i]))) if i in rows else [polygon] for i, polygon in enumerate(polygons)
    ]
    rings, owner = shapely.get_rings(np.array([part for some in parts for part in some]), return_index=True)
    return shapely.polygons(rings[np.diff(owner, prepend=-1) == 0]), parts


def without_holes(polygon: shapely.Polygon) -> list[shapely.Polygon]:
    """Return a polygon as parts without holes: it is cut open along a row through the middle of each of its holes."""
    middles = {float(np.mean(shapely.bounds(ring)[[1, 3]])) for ring in polygon.interiors}
    return list(_cut(polygon, sorted(middles)))


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
