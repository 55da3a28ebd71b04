"""Reads annotations: ASAP's XML and QuPath's GeoJSON. Gives polygons in level-0 pixels, each with its group.

What is no area (dots, lines, a polygon of two points) is left out with a reason; what makes the whole file
untrustworthy (no XML, an entity bomb, NaN coordinates) is a DataError.
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


class Outline(NamedTuple):
    """An annotated area."""

    group: str
    geometry: shapely.Geometry  # valid Polygon or MultiPolygon, level 0, with holes


Outlines = tuple[list[Outline], list[str]]  # and what was left out, with the reason


def read_asap(path: Path) -> Outlines:
    """Return annotations of an ASAP XML file in the file's order; raises DataError if it is not one."""
    try:
        root = ElementTree.parse(path, forbid_dtd=True).getroot()
    except (ParseError, DefusedXmlException, UnicodeError) as error:
        raise DataError(f"{path}: no valid XML: {error!r}") from error
    if root.tag != "ASAP_Annotations":
        raise DataError(f"{path}: no ASAP annotations, its root is <{root.tag}>")
    outlines, left_out = [], []
    for number, element in enumerate(root.iter("Annotation")):
        name = f"{path.name}: annotation {number} ({element.get('Name')!r})"
        kind = element.get("Type", "Polygon")
        if kind not in ("Polygon", "Rectangle", "Spline"):
            left_out.append(f"{name} is a {kind}, no area")
            continue
        points = _asap_points(element, path, name)
        if kind == "Rectangle" and len(points) == 2:
            (left, top), (right, bottom) = points
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        geometry = _area([points])
        if geometry is None:
            left_out.append(f"{name} has no area ({len(points)} points)")
        else:
            outlines.append(Outline(element.get("PartOfGroup", "None"), geometry))
    return outlines, left_out


def _asap_points(element: Any, path: Path, name: str) -> np.ndarray:
    """Level-0 (n, 2) float64 in their order."""
    rows = []
    for place, point in enumerate(element.iter("Coordinate")):
        try:  # ASAP writes the decimal comma of some locales
            x, y = (float(point.get(key, "nan").replace(",", ".")) for key in ("X", "Y"))
            rows.append((int(point.get("Order", place)), x, y))
        except ValueError as error:
            raise DataError(f"{path}: {name} has a coordinate that is no number: {error}") from error
    rows.sort(key=lambda row: row[0])
    points = np.array(rows, np.float64).reshape(-1, 3)[:, 1:]
    return _finite(points, path, name)


def read_geojson(path: Path) -> Outlines:
    """Return annotations of a QuPath GeoJSON file (FeatureCollection, list of features or one feature)."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: no valid JSON: {error}") from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(_is_feature(feature) for feature in features):
        raise DataError(f"{path}: no GeoJSON features")
    outlines, left_out = [], []
    for number, feature in enumerate(features):
        name = f"{path.name}: feature {number}"
        group = _classification(feature.get("properties") or {})
        if group is None:  # often the outline of the tissue, so it must not be painted as background
            left_out.append(f"{name} has no classification")
            continue
        for kind, coordinates in _geometries(feature["geometry"]):
            if kind not in ("Polygon", "MultiPolygon"):
                left_out.append(f"{name} is a {kind}, no area")
                continue
            polygons = [coordinates] if kind == "Polygon" else coordinates
            if not isinstance(polygons, list):
                raise DataError(f"{path}: {name} is a {kind} without coordinates")
            areas = [_area(_json_rings(rings, path, name)) for rings in polygons]
            found = [area for area in areas if area is not None]
            if found:
                outlines.append(Outline(group, shapely.union_all(found) if len(found) > 1 else found[0]))
            else:
                left_out.append(f"{name} has no area")
    return outlines, left_out


def _is_feature(feature: Any) -> bool:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        return False
    return isinstance(feature.get("geometry"), dict) and isinstance(feature.get("properties") or {}, dict)


def _classification(properties: dict[str, Any]) -> str | None:
    """QuPath: {"classification": {"name": …}}, {"names": […]} for derived classes, or just the name."""
    found = properties.get("classification")
    if isinstance(found, dict):
        found = found.get("name") or ": ".join(map(str, found.get("names") or []))
    return str(found) if found else None


def _geometries(geometry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if geometry.get("type") == "GeometryCollection":
        for part in geometry.get("geometries", []):
            yield from _geometries(part)
    else:
        yield str(geometry.get("type")), geometry.get("coordinates")


def _json_rings(rings: Any, path: Path, name: str) -> list[np.ndarray]:
    try:
        arrays = [np.array([point[:2] for point in ring], np.float64).reshape(-1, 2) for ring in rings]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path}: {name} has coordinates that are no numbers: {error}") from error
    return [_finite(points, path, name) for points in arrays]


def _finite(points: np.ndarray, path: Path, name: str) -> np.ndarray:
    if not np.isfinite(points).all():
        raise DataError(f"{path}: {name} has coordinates that are NaN or infinite")
    return points


def _area(rings: Iterable[np.ndarray]) -> shapely.Geometry | None:
    """Valid Polygon or MultiPolygon of an outer ring and holes, even-odd where it crosses itself; or None."""
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
