"""Reads annotations from ASAP's XML and QuPath's GeoJSON, as polygons in level-0 pixels with their groups.

An annotation without area (a dot, a line, a polygon of two points) is left out with a reason. A file that cannot be
trusted as a whole (malformed XML, an entity bomb, NaN coordinates) raises DataError.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

import numpy as np
import shapely
from defusedxml import DefusedXmlException, ElementTree

from samplers.slides.errors import DataError


class AnnotatedArea(NamedTuple):
    """An area as it is annotated in a file, whatever is painted over it."""

    group: str
    geometry: shapely.Geometry  # valid Polygon or MultiPolygon with holes, in level-0 pixels


AreasOfFile = tuple[
    list[AnnotatedArea], list[str]
]  # and the annotations that were left out, with their reasons


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
            areas.append(AnnotatedArea(element.get("PartOfGroup", "None"), geometry))
    return areas, left_out


def _asap_points(element: Any, path: Path, name: str) -> np.ndarray:
    """Return the points of an annotation in their order: float64 (n, 2), level-0 pixels."""
    rows = []
    for place, point in enumerate(element.iter("Coordinate")):
        try:  # in some locales ASAP writes a decimal comma
            x, y = (float(point.get(key, "nan").replace(",", ".")) for key in ("X", "Y"))
            rows.append((int(point.get("Order", place)), x, y))
        except ValueError as error:
            raise DataError(f"{path}: {name} has a coordinate that is not a number: {error}") from error
    rows.sort(key=lambda row: row[0])
    points = np.array(rows, np.float64).reshape(-1, 3)[:, 1:]
    return _finite(points, path, name)


def read_geojson(path: Path) -> AreasOfFile:
    """Read the annotations of a QuPath GeoJSON file: a FeatureCollection, a list of features or one feature."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON: {error}") from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(_is_feature(feature) for feature in features):
        raise DataError(f"{path}: has no GeoJSON features")
    areas, left_out = [], []
    for number, feature in enumerate(features):
        name = f"{path.name}: feature {number}"
        group = _classification(feature.get("properties") or {})
        if group is None:  # often the outline of the tissue, so it must not be painted as background
            left_out.append(f"{name} has no classification")
            continue
        for kind, coordinates in _geometries(feature["geometry"], path, name):
            if kind not in ("Polygon", "MultiPolygon"):
                left_out.append(f"{name} is a {kind} and has no area")
                continue
            polygons = [coordinates] if kind == "Polygon" else coordinates
            if not isinstance(polygons, list):
                raise DataError(f"{path}: {name} is a {kind} without coordinates")
            parts = [_valid_geometry(_json_rings(rings, path, name)) for rings in polygons]
            found = [part for part in parts if part is not None]
            if found:
                geometry = shapely.union_all(found) if len(found) > 1 else found[0]
                areas.append(AnnotatedArea(group, geometry))
            else:
                left_out.append(f"{name} has no area")
    return areas, left_out


def _is_feature(feature: Any) -> bool:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        return False
    return isinstance(feature.get("geometry"), dict) and isinstance(feature.get("properties") or {}, dict)


def _classification(properties: dict[str, Any]) -> str | None:
    """Return QuPath's class: {"classification": {"name": …}}, {"names": […]} for derived classes, or the name alone."""
    found = properties.get("classification")
    if isinstance(found, dict):
        found = found.get("name") or ": ".join(map(str, found.get("names") or []))
    return str(found) if found else None


def _geometries(geometry: Any, path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (type, coordinates) of a geometry, or of each part of a collection."""
    if not isinstance(geometry, dict):
        raise DataError(f"{path}: {name} has a geometry that is not an object")
    if geometry.get("type") == "GeometryCollection":
        parts = geometry.get("geometries", [])
        if not isinstance(parts, list):
            raise DataError(f"{path}: {name} is a GeometryCollection without geometries")
        for part in parts:
            yield from _geometries(part, path, name)
    else:
        yield str(geometry.get("type")), geometry.get("coordinates")


def _json_rings(rings: Any, path: Path, name: str) -> list[np.ndarray]:
    try:
        arrays = [np.array([point[:2] for point in ring], np.float64).reshape(-1, 2) for ring in rings]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path}: {name} has coordinates that are not numbers: {error}") from error
    return [_finite(points, path, name) for points in arrays]


def _finite(points: np.ndarray, path: Path, name: str) -> np.ndarray:
    if not np.isfinite(points).all():
        raise DataError(f"{path}: {name} has coordinates that are NaN or infinite")
    return points


def _valid_geometry(rings: Iterable[np.ndarray]) -> shapely.Geometry | None:
    """Return a valid Polygon or MultiPolygon of an outer ring and holes; None if it has no area.

    Where the ring crosses itself, the even-odd rule decides what is inside.
    """
    usable = [points for points in rings if len(points) >= 3]
    if not usable:
        return None
    geometry = shapely.Polygon(usable[0], usable[1:])
    if not shapely.is_valid(geometry):
        geometry = shapely.make_valid(geometry)
    parts = [part for part in shapely.get_parts(shapely.get_parts(geometry)) if part.geom_type == "Polygon"]
    parts = [part for part in parts if part.area > 0]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
