"""The areas of annotations: valid geometries of their rings, and what later areas leave of earlier ones.

A file may have 100,000 annotations, so what can be done for all of them at once is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import shapely


class AnnotatedArea(NamedTuple):
    """An area as it is annotated in a file, whatever is painted over it."""

    group: str
    geometry: shapely.Geometry  # valid Polygon or MultiPolygon with holes, in level-0 pixels


def valid_geometries(outlines: Sequence[Sequence[np.ndarray]]) -> list[shapely.Geometry | None]:
    """Return a valid Polygon or MultiPolygon of each outline's rings, an outer one and holes; None if it has no area.

    A ring is its points, float64 (n, 2). Where a ring crosses itself, the even-odd rule decides what is inside. Holes
    only take away: what of them is outside of the outer ring is nothing.
    """
    found: list[shapely.Geometry | None] = [None] * len(outlines)
    done = np.zeros(len(outlines), bool)
    single = np.array(
        [i for i, rings in enumerate(outlines) if len(rings) == 1 and len(rings[0]) > 3], np.int64
    )
    if len(single):
        points = [outlines[i][0] for i in single]
        rings = np.repeat(np.arange(len(single)), [len(ring) for ring in points])
        polygons = shapely.polygons(shapely.linearrings(np.concatenate(points), indices=rings))
        done[single] = shapely.is_valid(polygons) & (shapely.area(polygons) > 0)
        for i, polygon in zip(single, polygons):
            found[i] = polygon
    for i in np.flatnonzero(~done):
        found[i] = _valid_geometry(outlines[i])
    return found


def _valid_geometry(rings: Sequence[np.ndarray]) -> shapely.Geometry | None:
    outer, *holes = rings or [np.zeros((0, 2))]
    if len(outer) < 3:
        return None
    holes = [points for points in holes if len(points) >= 3]
    geometry = shapely.Polygon(outer, holes)
    if not shapely.is_valid(geometry):
        geometry, *inner = shapely.make_valid([shapely.Polygon(points) for points in (outer, *holes)])
        if inner:
            geometry = shapely.difference(geometry, shapely.union_all(inner))
    return polygons_of(geometry)


def polygons_of(geometry: shapely.Geometry) -> shapely.Geometry | None:
    """Return the Polygon or MultiPolygon of what has an area in a geometry, None if nothing has."""
    parts = [
        p for p in shapely.get_parts(shapely.get_parts(geometry)) if p.geom_type == "Polygon" and p.area > 0
    ]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def meetings(geometries: np.ndarray) -> np.ndarray:
    """Return the pairs of geometries, an array of them, that meet: int (2, n), the earlier one first."""
    pairs = shapely.STRtree(geometries).query(geometries, predicate="intersects")
    return np.asarray(pairs[:, pairs[0] < pairs[1]])


def without_later(geometries: np.ndarray, pairs: np.ndarray) -> dict[int, shapely.Geometry]:
    """Return what the second geometries of some `meetings` leave of the first ones, by the numbers of these."""
    found = {}
    for first, later in groupby(
        pairs[:, np.argsort(pairs[0], kind="stable")].T, key=lambda pair: int(pair[0])
    ):
        covering = shapely.union_all(geometries[[second for _, second in later]])
        found[first] = shapely.difference(geometries[first], covering)
    return found


def not_ignored(areas: Sequence[AnnotatedArea], ignored: Sequence[bool]) -> list[AnnotatedArea]:
    """Return the areas, of the known ones only what no ignored area that is painted later covers.

    So nothing depends on what lies below an ignored area, the thumbnail's pixels along its outline included.
    """
    if not any(ignored):
        return list(areas)
    geometries, unknown = np.array([area.geometry for area in areas]), np.array(ignored)
    pairs = meetings(geometries)
    visible = without_later(geometries, pairs[:, ~unknown[pairs[0]] & unknown[pairs[1]]])
    result = []
    for number, area in enumerate(areas):
        geometry = polygons_of(visible[number]) if number in visible else area.geometry
        if geometry is not None:
            result.append(AnnotatedArea(area.group, geometry))
    return result
