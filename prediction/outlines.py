"""From the predicted classes to outlines of areas, and these as ASAP XML and GeoJSON."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from scipy.spatial.distance import pdist
from shapely import affinity

from prediction.tiling import RawMap
from samplers.label_map import LabelMap
from samplers.polygons import edges_of, fill, outlines_of

TILE = 4096  # pixels a side, that are outlined at a time
COLOURS = ("#F4FA58", "#64FE2E", "#2E64FE", "#FE2E64", "#AC58FA")


@dataclass(frozen=True)
class Area:
    """A connected area of a class, along pixel edges of the output; connected by pixel edges."""

    polygon: shapely.Polygon
    value: int


def diameter(polygon: shapely.Polygon) -> float:
    """The longest distance between two corners."""
    return float(pdist(shapely.get_coordinates(polygon.convex_hull)).max())


def find_areas(prediction: RawMap, least: float) -> list[Area]:
    """All areas whose longest diameter is at least `least` pixels; smaller ones become class 0 in the map.

    Tile by tile, so that memory grows with the outlines and not with the slide.
    """
    pieces: dict[int, list[shapely.Geometry]] = defaultdict(list)
    for y in range(0, prediction.height, TILE):
        for x in range(0, prediction.width, TILE):
            tile = prediction.read(x, y, TILE, TILE)
            for value in np.unique(tile[tile > 0]):
                _, regions, boxes, _ = cv2.connectedComponentsWithStats(
                    (tile == value).astype(np.uint8), connectivity=4
                )
                small = _inside(boxes, tile.shape) & (np.hypot(boxes[:, 2], boxes[:, 3]) < least)
                small[0] = False
                if small.any():
                    tile[small[regions]] = 0
                    prediction.write(x, y, tile)
                    regions[small[regions]] = 0
                outlines = outlines_of(*_numbered(regions), (1.0, 1.0))
                pieces[int(value)] += [affinity.translate(outline, x, y) for outline in outlines]
    areas = []
    for value in sorted(pieces):
        # Pieces of neighbouring tiles become one; what is left of their common edge goes.
        for polygon in shapely.get_parts(shapely.union_all(pieces[value])):
            area = Area(shapely.remove_repeated_points(polygon.simplify(0)), value)
            if diameter(polygon) < least:
                _erase(prediction, polygon)
            else:
                areas.append(area)
    return sorted(areas, key=lambda area: (area.value, area.polygon.bounds))


def _inside(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which boxes (left, top, width, height, …) do not reach the edge of the tile."""
    left, top, width, height = boxes.T[:4]
    return (left > 0) & (top > 0) & (left + width < shape[1]) & (top + height < shape[0])


def _numbered(regions: np.ndarray) -> tuple[np.ndarray, int]:
    """Regions with numbers that have no gap, and their count with the background."""
    numbers, compact = np.unique(regions, return_inverse=True)
    compact = compact.reshape(regions.shape)
    return (compact, len(numbers)) if numbers[0] == 0 else (compact + 1, len(numbers) + 1)


def _erase(prediction: RawMap, polygon: shapely.Polygon) -> None:
    left, top, right, bottom = (round(v) for v in polygon.bounds)
    window = prediction.read(left, top, right - left, bottom - top)
    window[fill(edges_of(polygon), left, top, right - left, bottom - top, 1.0)] = 0
    prediction.write(left, top, window)


def group_names(label_map: LabelMap) -> dict[int, str]:
    """What the classes are called in annotations: as the label map does, CAMELYON17's names for its default."""
    if label_map == LabelMap():
        return {0: "normal", 1: "metastases"}
    names: dict[int, str] = {}
    for group, value in label_map.groups:
        names.setdefault(value, group)
    return {0: "normal", **names}


def asap_xml(areas: list[Area], names: dict[int, str], downsample: float) -> bytes:
    """ASAP's annotations: an area's outer ring in the group of its class, and what its holes leave in that of 0.

    ASAP knows no holes: class 0 is painted over the others, as in CAMELYON17. Level-0 pixels.
    """
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    shapes = [(shapely.Polygon(area.polygon.exterior), area.value) for area in areas]
    tree = shapely.STRtree([area.polygon for area in areas])
    for area in areas:
        for ring in area.polygon.interiors:
            hole = shapely.Polygon(ring)
            islands = [areas[i].polygon for i in tree.query(hole, predicate="intersects")]
            left = hole.difference(shapely.union_all(islands))
            shapes += [(piece, 0) for part in shapely.get_parts(left) for piece in without_holes(part)]
    for number, (polygon, value) in enumerate(shapes):
        element = ET.SubElement(
            annotations,
            "Annotation",
            Name=f"Annotation {number}",
            Type="Polygon",
            PartOfGroup=names.get(value, f"class_{value}"),
            Color=_colour(value),
        )
        coordinates = ET.SubElement(element, "Coordinates")
        for order, (x, y) in enumerate(shapely.get_coordinates(polygon.exterior)[:-1] * downsample):
            ET.SubElement(coordinates, "Coordinate", Order=str(order), X=repr(float(x)), Y=repr(float(y)))
    groups = ET.SubElement(root, "AnnotationGroups")
    for value in sorted({value for _, value in shapes} | {0, 1}):
        name = names.get(value, f"class_{value}")
        group = ET.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color=_colour(value))
        ET.SubElement(group, "Attributes")
    ET.indent(root, "\t")
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def without_holes(polygon: shapely.Geometry) -> list[shapely.Polygon]:
    """The polygon, cut through its holes along pixel edges until no piece has one."""
    if polygon.geom_type != "Polygon" or polygon.area == 0:
        return []
    if not polygon.interiors:
        return [polygon]
    left, top, right, bottom = polygon.bounds
    cut = polygon.interiors[0].bounds[0]  # its left side: that makes a notch of it
    halves = [polygon.intersection(shapely.box(*sides)) for sides in
              ((left, top, cut, bottom), (cut, top, right, bottom))]  # fmt: skip
    return [piece for half in halves for part in shapely.get_parts(half) for piece in without_holes(part)]


def geojson(areas: list[Area], names: dict[int, str], downsample: float) -> bytes:
    """QuPath's annotations: a feature for each area, with its holes. Level-0 pixels."""
    features = []
    for area in areas:
        name, colour = names.get(area.value, f"class_{area.value}"), _colour(area.value)
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        scaled = affinity.scale(area.polygon, downsample, downsample, origin=(0, 0))
        features.append(
            {
                "type": "Feature",
                "geometry": shapely.geometry.mapping(scaled),
                "properties": {"objectType": "annotation", "classification": {"name": name, "color": rgb}},
            }
        )
    return (json.dumps({"type": "FeatureCollection", "features": features}) + "\n").encode()


def _colour(value: int) -> str:
    return COLOURS[(value - 1) % len(COLOURS)]
