"""Reads annotations from ASAP's XML and QuPath's GeoJSON, as polygons in level-0 pixels with their groups.

An annotation without area (a dot, a line, a polygon of two points) is left out with a reason, and so is what QuPath
has detected instead of being drawn. A file that cannot be trusted as a whole (malformed XML, an entity bomb, NaN or
absurd coordinates) raises DataError.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

import numpy as np
import shapely
from defusedxml import DefusedXmlException, ElementTree

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


class AnnotatedArea(NamedTuple):
    """An area as it is annotated in a file, whatever is painted over it."""

    group: str
    geometry: shapely.Geometry  # valid Polygon or MultiPolygon with holes, in level-0 pixels


AreasOfFile = tuple[
    list[AnnotatedArea], list[str]
]  # and the annotations that were left out, with their reasons


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
    try:
        root = ElementTree.parse(path, forbid_dtd=True).getroot()
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # the last two: its encoding
        raise DataError(f"{path}: is not valid XML: {error!r}") from error
    if root.tag != "ASAP_Annotations":
        raise DataError(f"{path}: has no ASAP annotations, its root is <{root.tag}>")
    areas, left_out = [], []
    for number, element in enumerate(root.iter("Annotation")):
        name = f"{path.name}: annotation {number} ({element.get('Name')!r})"
        kind = element.get("Type", "Polygon")
        if kind not in ("Polygon", "Rectangle", "Spline"):
            left_out.append(f"{name} is a {kind} and has no area")
            continue
        points = _asap_points(element, path, name)
        if kind == "Rectangle" and len(points) == 2:
            (left, top), (right, bottom) = points
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        geometry = _valid_geometry([points])
        if geometry is None:
            left_out.append(f"{name} has no area ({len(points)} points)")
        else:
            group = element.get("PartOfGroup", "")
            areas.append(AnnotatedArea(group if group.strip() else NO_GROUP, geometry))
    return areas, left_out


def _asap_points(element: Any, path: Path, name: str) -> np.ndarray:
    """Return the points of an annotation in their order: float64 (n, 2), level-0 pixels."""
    rows = []
    for place, point in enumerate(element.iter("Coordinate")):
        try:  # in some locales ASAP writes a decimal comma
            x, y = (float(point.get(key, "nan").replace(",", ".")) for key in ("X", "Y"))
            order = float(point.get("Order", str(place)).replace(",", "."))
        except ValueError as error:
            raise DataError(f"{path}: {name} has a coordinate that is not a number: {error}") from error
        if not math.isfinite(order):
            raise DataError(f"{path}: {name} has a coordinate whose Order is {order}")
        rows.append((order, x, y))
    rows.sort(key=lambda row: row[0])
    points = np.array(rows, np.float64).reshape(-1, 3)[:, 1:]
    return _finite(points, path, name)


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
    areas, left_out, others = [], [], Counter[str]()
    for number, feature in enumerate(features):
        name = f"{path.name}: feature {number}"
        properties = feature.get("properties") or {}
        kind = _object_type(feature, properties)
        group = _classification(properties)
        if kind.casefold() != _ANNOTATION:
            others[kind] += 1
        elif feature.get("geometry") is None:
            left_out.append(f"{name} has no geometry")
        elif group is None:  # often the outline of the tissue, so it must not be painted as background
            left_out.append(f"{name} has no classification")
        else:
            for geometry in _geometries(feature["geometry"], path, name):
                area = _area_of(geometry, bool(properties.get("isEllipse")), path, name)
                if isinstance(area, str):
                    left_out.append(area)
                else:
                    areas.append(AnnotatedArea(group, area))
    del others["root"]  # QuPath's own root of all objects stands for nothing
    if others:
        counts = ", ".join(f"{count} of the type {kind}" for kind, count in sorted(others.items()))
        left_out.append(f"{path.name}: objects that are no annotations: {counts}")
    return areas, left_out


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


def _area_of(geometry: dict[str, Any], ellipse: bool, path: Path, name: str) -> shapely.Geometry | str:
    """Return the area of a geometry, or the reason why it has none."""
    kind, coordinates = str(geometry.get("type")), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        return f"{name} is a {kind} and has no area"
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(rings, list) for rings in polygons):
        raise DataError(f"{path}: {name} is a {kind} without coordinates")
    parts = [_valid_geometry(_json_rings(rings, path, name)) for rings in polygons]
    found = [part for part in parts if part is not None]
    if not found:
        return f"{name} has no area"
    area = shapely.union_all(found) if len(found) > 1 else found[0]
    return _ellipse(area) if ellipse or geometry.get("isEllipse") else area


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


def _valid_geometry(rings: Sequence[np.ndarray]) -> shapely.Geometry | None:
    """Return a valid Polygon or MultiPolygon of an outer ring and holes; None if it has no area.

    Where a ring crosses itself, the even-odd rule decides what is inside. Holes only take away: what of them is outside
    of the outer ring is nothing.
    """
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


def not_ignored(areas: Sequence[AnnotatedArea], ignored: Sequence[bool]) -> list[AnnotatedArea]:
    """Return the areas, of the known ones only what no ignored area that is painted later covers.

    So nothing depends on what lies below an ignored area, the thumbnail's pixels along its outline included.
    """
    if not any(ignored):
        return list(areas)
    tree = shapely.STRtree([area.geometry for area in areas])
    result = []
    for number, area in enumerate(areas):
        later = [int(i) for i in tree.query(area.geometry) if i > number and ignored[i]]
        if later and not ignored[number]:
            covering = shapely.union_all([areas[i].geometry for i in later])
            visible = polygons_of(shapely.difference(area.geometry, covering))
            if visible is None:
                continue
            area = AnnotatedArea(area.group, visible)
        result.append(area)
    return result


def polygons_of(geometry: shapely.Geometry) -> shapely.Geometry | None:
    """Return the Polygon or MultiPolygon of what has an area in a geometry, None if nothing has."""
    parts = [
        p for p in shapely.get_parts(shapely.get_parts(geometry)) if p.geom_type == "Polygon" and p.area > 0
    ]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
