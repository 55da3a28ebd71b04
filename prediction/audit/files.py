"""Writes what the audit found on a slide: for QuPath, for ASAP to correct, as a picture, and as rows of the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely

from evaluation.truth import is_mask
from prediction.audit.findings import DOUBTFUL, KINDS, MISSED, OUTLINE, SHIFTED, Finding
from prediction.audit.maps import ComparedSlide, Maps
from prediction.outlines import without_holes
from prediction.uncertainty import Marked, write_marked
from prediction.write import OVERLAY, write_polygons
from samplers.labels.annotations import read_areas
from samplers.labels.label_map import IGNORED, LabelMap
from samplers.labels.polygons import trace
from utils.pictures import OUTLINE_LABEL, OUTLINE_PREDICTION, colour_of, draw_outline

# Groups of the files for ASAP and QuPath. A training whose label map has these four as `:ignore` leaves them out.
GROUPS = {kind: f"audit_{kind}" for kind in KINDS}
SUGGESTION = "audit_suggestion"  # a shifted annotation where it agrees; it is no part of a label
OTHER = "audit_other"  # all of a slide that needs no label, where what is not annotated is not known
COLOURS = {
    GROUPS[MISSED]: (213, 0, 0),
    GROUPS[DOUBTFUL]: (41, 98, 255),
    GROUPS[OUTLINE]: (255, 109, 0),
    GROUPS[SHIFTED]: (170, 0, 255),
    SUGGESTION: (0, 184, 212),
    OTHER: (158, 158, 158),
}
COLUMNS = (
    *("rank", "slide", "number", "kind", "score_mm2", "confidence", "area_mm2"),
    *("x", "y", "move_x", "move_y", "move_um"),
)

NamedPolygon = tuple[str, str, shapely.Polygon]  # name, group, without holes


def rows_of(name: str, findings: Sequence[Finding], spacing: float) -> list[dict[str, Any]]:
    """Return the rows of the table, without the rank over all slides. x and y are level-0 pixels in the region.

    `spacing`: µm per level-0 pixel.
    """
    rows = []
    for number, finding in enumerate(findings, 1):
        point = shapely.point_on_surface(finding.outline)
        dx, dy = finding.shift or ("", "")
        rows.append(
            {
                "slide": name,
                "number": number,
                "kind": finding.kind,
                "score_mm2": round(finding.score, 6),
                "confidence": round(finding.confidence, 4),
                "area_mm2": round(finding.area, 6),
                "x": int(point.x),
                "y": int(point.y),
                "move_x": dx,
                "move_y": dy,
                "move_um": round(float(np.hypot(*finding.shift)) * spacing, 1) if finding.shift else "",
            }
        )
    return rows


def write_qupath(
    path: Path, findings: Sequence[Finding], rows: Sequence[dict[str, Any]], slide: ComparedSlide
) -> None:
    """Write the regions, and where shifted annotations agree, as GeoJSON for QuPath."""
    marked = []
    for finding, row in zip(findings, rows):
        named = ("score_mm2", "confidence", "area_mm2", "move_x", "move_y", "move_um")
        numbers = {key: row[key] for key in named if row[key] != ""}
        shown = [(finding.outline, finding.kind, GROUPS[finding.kind])]
        if finding.suggestion is not None:
            shown.append((finding.suggestion, "suggestion for", SUGGESTION))
        for outline, name, group in shown:
            marked.append(Marked(outline, f"{name} {row['number']}", group, COLOURS[group], numbers))
    write_marked(path, marked, slide.slide.origin)


def write_to_correct(path: Path, findings: Sequence[Finding], annotations: Sequence[NamedPolygon]) -> None:
    """Write the annotations and the regions as ASAP's XML, without holes, which ASAP does not know."""
    parts = list(annotations)
    for number, finding in enumerate(findings, 1):
        for outline, group in ((finding.outline, GROUPS[finding.kind]), (finding.suggestion, SUGGESTION)):
            parts += named_polygons(f"{group} {number}", group, outline)
    groups = {
        group: colour_of(number)
        for number, group in enumerate(dict.fromkeys(group for _, group, _ in annotations), 1)
    }
    write_polygons(path, parts, {**groups, **COLOURS})


def named_polygons(name: str, group: str, geometry: shapely.Geometry | None) -> list[NamedPolygon]:
    """Return the polygons of a geometry, cut open where they have holes."""
    return [(name, group, part) for polygon in shapely.get_parts(geometry) for part in without_holes(polygon)]


def annotations_of(
    path: Path | None, slide: ComparedSlide, maps: Maps, label_map: LabelMap, names: Sequence[str]
) -> list[NamedPolygon]:
    """Return the annotations of a slide for ASAP.

    Outlines are as they are in the file, whatever their group. The regions of a mask are exact to a pixel of the maps,
    and their groups are the `names` of the classes.
    """
    width, height = slide.slide.width, slide.slide.height
    if path is None:
        everywhere = shapely.box(0, 0, width, height)
        return named_polygons(OTHER, OTHER, everywhere) if label_map.unannotated == IGNORED else []
    if is_mask(path):
        shown = maps.classes > 0 if label_map.unannotated != IGNORED else np.ones_like(maps.known)
        traced = trace(maps.classes, shown & (maps.classes != IGNORED), (maps.scale, maps.scale))
        found = [(names[value], polygon) for value, polygon in traced]
    else:
        # Regions of an earlier audit that were left in the file are found again, unless the label map names them.
        old = set(COLOURS) - {group for group, _ in label_map.groups}
        found = [area for area in read_areas(path, slide.slide.origin)[0] if area.group not in old]
    return [
        part
        for number, (group, geometry) in enumerate(found, 1)
        for part in named_polygons(f"annotation {number}", group, geometry)
    ]


def write_picture(
    path: Path, findings: Sequence[Finding], slide: ComparedSlide, maps: Maps, threshold: float
) -> None:
    """Write a PNG of the slide: the annotation is outlined in black, the prediction in yellow, and the regions in the
    colour of their kind with their number. ReadError: the slide cannot be read."""
    picture = slide.slide.thumbnail(OVERLAY)
    size = (picture.shape[1], picture.shape[0])
    for mask, colour in (
        (maps.annotated, OUTLINE_LABEL),
        (maps.probability >= threshold, OUTLINE_PREDICTION),
    ):
        inside = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        picture = draw_outline(picture, inside >= 0.5, colour)
    scale = np.array(size) / (slide.slide.width, slide.slide.height)
    for number, finding in reversed(list(enumerate(findings, 1))):  # the first ones on top
        colour = COLOURS[GROUPS[finding.kind]]
        rings = shapely.get_rings(shapely.get_parts(finding.outline))
        points = [(shapely.get_coordinates(ring) * scale).round().astype(np.int32) for ring in rings]
        picture = cv2.polylines(np.ascontiguousarray(picture), points, True, colour, 3)
        left, top = (shapely.bounds(finding.outline)[:2] * scale).round().astype(int)
        place = (max(2, int(left)), max(24, int(top) - 6))
        for thickness, ink in ((7, (255, 255, 255)), (2, colour)):
            picture = cv2.putText(picture, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 0.9, ink, thickness)
    path.write_bytes(cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes())
