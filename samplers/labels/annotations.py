"""Reads annotations from ASAP's XML and QuPath's GeoJSON, as polygons in level-0 pixels with their groups.

An annotation without area (a dot, a line, a polygon of two points) is left out with a reason, and so is what QuPath
has detected instead of being drawn. A file that cannot be trusted as a whole (malformed XML, an entity bomb, NaN or
absurd coordinates) raises DataError.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely

from samplers.labels.areas import AnnotatedArea, valid_geometries
from samplers.labels.asap import read_annotations
from samplers.labels.label_map import NO_GROUP
from samplers.slides.errors import DataError

OUTLINE_SUFFIXES = (".xml", ".geojson", ".json")
_MAX_DEPTH = 16  # of collections of geometries inside each other
_MAX_COORDINATE = 1e8  # level-0 pixels, a hundred times as far as slides reach; far above it GEOS overflows
_ANNOTATION = "annotation"  # the only type of QuPath's objects that somebody has drawn
_OLD_IDS = {  # QuPath before 0.3 gives the type as the id of the feature
    "PathAnnotationObject": _ANNOTATION,
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}


AreasOfFile = tuple[
    list[AnnotatedArea], list[str]
]  # and the annotations that were left out, with their reasons


class _Shape(NamedTuple):
    """What a file says of an area."""

    group: str
    parts: list[list[np.ndarray]]  # of each polygon the points of its rings, the outer one first
    no_area: str  # what is said if none of them has an area
    ellipse: bool = False


def read_areas(path: Path, origin: tuple[int, int]) -> AreasOfFile:
    """Read a file of OUTLINE_SUFFIXES. `origin`: where QuPath's image of the slide begins, in level-0 pixels."""
    if path.suffix.lower() == ".xml":
        return read_asap(path)
    areas, left_out = read_geojson(path)
    if any(origin):
        moved = shapely.transform([area.geometry for area in areas], lambda points: points + origin)
        areas = [area._replace(geometry=geometry) for area, geometry in zip(areas, moved)]
    return areas, left_out


def read_asap(path: Path) -> AreasOfFile:
    """Read the annotations of an ASAP XML file, in the file's order. Raises DataError if it is not such a file."""
    shapes: list[_Shape | str] = []
    for name, attributes, points in read_annotations(path):
        kind = attributes.get("Type", "Polygon")
        if kind not in ("Polygon", "Rectangle", "Spline"):
            shapes.append(f"{name} is a {kind} and has no area")
            continue
        points = _finite(points, path, name)
        if kind == "Rectangle" and len(points) == 2:
            (left, top), (right, bottom) = points
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        group = attributes.get("PartOfGroup", "")
        no_area = f"{name} has no area ({len(points)} points)"
        shapes.append(_Shape(group if group.strip() else NO_GROUP, [[points]], no_area))
    return _areas_of(shapes)


def read_geojson(path: Path) -> AreasOfFile:
    """Read the annotations of a QuPath GeoJSON file: a FeatureCollection, a list of features or one feature.

    The positions are pixels of QuPath's image, which begins at the slide's `openslide.bounds-x` and `-y`.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON: {error}") from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(_is_feature(feature) for feature in features):
        raise DataError(f"{path}: has no GeoJSON features")
    shapes: list[_Shape | str] = []
    others = Counter[str]()
    for number, feature in enumerate(features):
        name = f"{path.name}: feature {number}"
        properties = feature.get("properties") or {}
        kind = _object_type(feature, properties)
        group = _classification(properties)
        if kind.casefold() != _ANNOTATION:
            others[kind] += 1
        elif feature.get("geometry") is None:
            shapes.append(f"{name} has no geometry")
        elif group is None:  # often the outline of the tissue, so it must not be painted as background
            shapes.append(f"{name} has no classification")
        else:
            ellipse = bool(properties.get("isEllipse"))
            for geometry in _geometries(feature["geometry"], path, name):
                shapes.append(_json_shape(group, geometry, ellipse, path, name))
    del others["root"]  # QuPath's own root of all objects stands for nothing
    if others:
        counts = ", ".join(f"{count} of the type {kind}" for kind, count in sorted(others.items()))
        shapes.append(f"{path.name}: objects that are no annotations: {counts}")
    return _areas_of(shapes)


def _is_feature(feature: Any) -> bool:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        return False
    return isinstance(feature.get("properties") or {}, dict)


def _object_type(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """Return QuPath's type of an object. What has none, as from other programs, is an annotation."""
    found = properties.get("objectType") or properties.get("object_type")
    if "nucleusGeometry" in feature:
        found = "cell"
    return str(found) if found else _OLD_IDS.get(str(feature.get("id")), _ANNOTATION)


def _classification(properties: dict[str, Any]) -> str | None:
    """Return QuPath's class: {"classification": {"name": …}}, {"names": […]} for derived classes, or the name alone."""
    found = properties.get("classification")
    if isinstance(found, dict):
        found = found.get("name") or found.get("names")
    if isinstance(found, list):
        found = ": ".join(map(str, found))
    return str(found) if found else None


def _geometries(geometry: Any, path: Path, name: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a geometry, or each part of a collection."""
    if not isinstance(geometry, dict):
        raise DataError(f"{path}: {name} has a geometry that is not an object")
    if geometry.get("type") != "GeometryCollection":
        yield geometry
        return
    parts = geometry.get("geometries", [])
    if not isinstance(parts, list):
        raise DataError(f"{path}: {name} is a GeometryCollection without geometries")
    if depth == _MAX_DEPTH:
        raise DataError(f"{path}: {name} has collections in collections, more than {_MAX_DEPTH} deep")
    for part in parts:
        yield from _geometries(part, path, name, depth + 1)


def _json_shape(group: str, geometry: dict[str, Any], ellipse: bool, path: Path, name: str) -> _Shape | str:
    """Return the rings of a geometry, or the reason why it has no area."""
    kind, coordinates = str(geometry.get("type")), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        return f"{name} is a {kind} and has no area"
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(rings, list) for rings in polygons):
        raise DataError(f"{path}: {name} is a {kind} without coordinates")
    parts = [_json_rings(rings, path, name) for rings in polygons]
    return _Shape(group, parts, f"{name} has no area", ellipse or bool(geometry.get("isEllipse")))


def _ellipse(area: shapely.Geometry) -> shapely.Geometry:
    """Return the ellipse in the bounds of an area. That is how QuPath reads what it has marked as an ellipse."""
    left, top, right, bottom = shapely.bounds(area)
    circle = shapely.get_coordinates(shapely.buffer(shapely.Point(0, 0), 1, quad_segs=64))
    radii, centre = ((right - left) / 2, (bottom - top) / 2), ((left + right) / 2, (top + bottom) / 2)
    return shapely.Polygon(circle * radii + centre)


def _json_rings(rings: list[Any], path: Path, name: str) -> list[np.ndarray]:
    try:
        arrays = [
            np.array([(point[0], point[1]) for point in ring], np.float64).reshape(-1, 2) for ring in rings
        ]
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise DataError(f"{path}: {name} has coordinates that are not numbers: {error}") from error
    return [_finite(points, path, name) for points in arrays]


def _finite(points: np.ndarray, path: Path, name: str) -> np.ndarray:
    if not np.isfinite(points).all():
        raise DataError(f"{path}: {name} has coordinates that are NaN or infinite")
    farthest = float(np.abs(points).max(initial=0))
    if farthest > _MAX_COORDINATE:
        raise DataError(f"{path}: {name} has a coordinate of {farthest:g} pixels, which is on no slide")
    return points


def _areas_of(shapes: Sequence[_Shape | str]) -> AreasOfFile:
    """Return the areas of all shapes, and why some have none. What is no shape is such a reason already."""
    valid = iter(
        valid_geometries([rings for shape in shapes if isinstance(shape, _Shape) for rings in shape.parts])
    )
    areas, left_out = [], []
    for shape in shapes:
        if isinstance(shape, str):
            left_out.append(shape)
            continue
        found = [part for part in islice(valid, len(shape.parts)) if part is not None]
        if not found:
            left_out.append(shape.no_area)
            continue
        area = shapely.union_all(found) if len(found) > 1 else found[0]
        areas.append(AnnotatedArea(shape.group, _ellipse(area) if shape.ellipse else area))
    return areas, left_out
