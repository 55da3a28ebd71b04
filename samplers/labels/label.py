"""One interface for all labels: masks (TIFF, PNG, …), ASAP XML, QuPath GeoJSON, or none (no tumour).

Positions are in level-0 pixels of the *slide*, sizes in pixels at a downsample of it, values are classes (uint8), or
IGNORED where the class is not known.
Annotations are rasterised per patch, through a spatial index, and never over a whole slide (21 GB for one slide of
CAMELYON16).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely

from samplers.labels import polygons
from samplers.labels.annotations import OUTLINE_SUFFIXES, AnnotatedArea, not_ignored, polygons_of, read_areas
from samplers.labels.base import Annotation, Label
from samplers.labels.label_map import DEFAULT_GROUPS, IGNORED, NO_GROUP, LabelMap
from samplers.labels.mask import MaskLabel
from samplers.slides.errors import DataError
from samplers.slides.frame import SlideFrame
from samplers.slides.part import Part
from samplers.slides.slide import Slide
from samplers.slides.stored_file import require_file

__all__ = [
    "DEFAULT_GROUPS",
    "IGNORED",
    "Annotation",
    "Label",
    "LabelMap",
    "MaskLabel",
    "PolygonLabel",
    "open_label",
]

_FAR = 100_000  # pixels that an annotation may reach beyond a slide, or as many as the slide has
# Measured: an area with 5,000 points takes 0.4 MB, its edges (see `polygons.edges_of`) and what shapely keeps of it.
_BYTES_PER_AREA, _COPIES_OF_EDGES = 2000, 2.5
MASK_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".svs", ".mrxs", ".ndpi")


class PolygonLabel(Label):
    """Polygons that are rasterised per patch.

    An outline that belongs to no group is not annotated, unless the label map was given with this group. DataError:
    there are only such outlines, or all lie outside of the slide, or one reaches far beyond it.
    """

    def __init__(
        self, size: tuple[int, int], areas: Sequence[AnnotatedArea], label_map: LabelMap, name: str
    ) -> None:
        super().__init__(size)
        self.name = name
        self._unannotated = label_map.unannotated
        self.groups = dict(Counter(area.group for area in areas))
        self._seen: list[Annotation] | None = None
        order = {group: (place, value) for place, (group, value) in enumerate(label_map.groups)}
        ungrouped = sum(area.group == NO_GROUP for area in areas)
        if ungrouped and NO_GROUP in order and not label_map.names_no_group:
            order[NO_GROUP] = (order[NO_GROUP][0], label_map.unannotated)
            self.left_out.append(f"{name}: {ungrouped} outlines belong to no group: taken as not annotated")
        if ungrouped == len(areas) > 0 and not label_map.names_no_group:
            raise DataError(
                f"{name}: none of its {ungrouped} outlines belongs to a group, so it is not known what they show; give "
                f"them a group, or take them with --label_map {NO_GROUP}:1"
            )
        used = sorted((area for area in areas if area.group in order), key=lambda area: order[area.group][0])
        unknown = sorted({area.group for area in areas} - set(order))
        if unknown:
            self.unmapped = f"{name}: groups that are not in the label map: {', '.join(unknown)}"
        slide = shapely.box(0, 0, *size)
        outside = [area for area in used if not area.geometry.intersects(slide)]
        if used and len(outside) == len(used):
            raise DataError(
                f"{name}: all annotations are outside of the slide ({size[0]} × {size[1]} pixels)"
            )
        if outside:
            self.left_out.append(f"{name}: {len(outside)} annotations are outside of the slide")
        areas = [area for area in used if area.geometry.intersects(slide)]
        _refuse_far(areas, size, name)
        self._areas = not_ignored(areas, [order[area.group][1] == IGNORED for area in areas])
        self._values = [order[area.group][1] for area in self._areas]
        self.ignores = IGNORED in self._values  # areas are there that are not known
        self._edges = [polygons.edges_of(area.geometry) for area in self._areas]
        points = sum(edges.nbytes for edges in self._edges)
        self._held_bytes = int(_BYTES_PER_AREA * len(self._edges) + _COPIES_OF_EDGES * points)
        self._tree = shapely.STRtree([area.geometry for area in self._areas])

    def _read(
        self, x_l0: float, y_l0: float, width: int, height: int, downsample: float, part: Part
    ) -> np.ndarray:
        classes = np.full((part.height, part.width), self._unannotated, np.uint8)
        for number, window in self._windows(x_l0, y_l0, width, height, downsample):
            seen = window.overlap(part)
            if min(seen.height, seen.width) <= 0:
                continue
            # The centres are counted from the window's corner, for each part of the patch alike.
            corner = (x_l0 + window.left * downsample, y_l0 + window.top * downsample)
            of_window = seen.counted_from(window.top, window.left)
            pixels = polygons.fill(
                self._edges[number], *corner, window.width, window.height, downsample, of_window
            )
            # The same as classes[…][pixels] = value in a tenth of the time: 255 outside of the polygon, 0 inside.
            outside = pixels.view(np.uint8) - np.uint8(1)
            painted = classes[seen.counted_from(part.top, part.left).slices]
            painted &= outside
            painted |= ~outside & np.uint8(self._values[number])
        return classes

    def thumbnail(self, width: int, height: int) -> np.ndarray:
        # The pixels of a thumbnail are not exactly square, so the polygons are scaled to its frame.
        scale = np.array([[width / self.size[0]], [height / self.size[1]]] * 2)
        classes = np.full((height, width), self._unannotated, np.uint8)
        for edges, value in zip(self._edges, self._values):
            filled = polygons.fill(edges * scale, 0, 0, width, height, 1.0)
            border = polygons.touched(edges * scale, 0, 0, width, height, 1.0)
            if value in (0, IGNORED):
                classes[filled & ~border] = value
                classes[border & (classes == IGNORED)] = value
            else:
                classes[filled | border] = value
        return classes

    def annotations(self) -> list[Annotation]:
        return [annotation for annotation in self._visible() if annotation.value != IGNORED]

    def areas(self) -> dict[int, float]:
        shapes = defaultdict(list)
        for annotation in self._visible():
            shapes[annotation.value].append(annotation.polygon)
        # Annotations of one class may overlap.
        found = {value: float(shapely.union_all(shapes[value]).area) for value in sorted(shapes)}
        rest = max(0.0, self.size[0] * self.size[1] - sum(found.values()))
        found[self._unannotated] = found.get(self._unannotated, 0.0) + rest
        return found

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def _visible(self) -> list[Annotation]:
        """Return what is not painted over of each area, of those that are not known too."""
        if self._seen is not None:
            return self._seen
        found = []
        slide = shapely.box(0, 0, *self.size)
        for number, (area, value) in enumerate(zip(self._areas, self._values)):
            later = [
                int(i) for i in self._tree.query(area.geometry) if i > number and self._values[i] != value
            ]
            visible = shapely.intersection(area.geometry, slide)
            if later:
                visible = visible.difference(shapely.union_all([self._areas[i].geometry for i in later]))
            polygon = polygons_of(visible)
            if polygon is not None:
                found.append(Annotation(polygon, value, area.group))
        self._seen = found
        return found

    def _windows(
        self, x_l0: float, y_l0: float, width: int, height: int, downsample: float
    ) -> list[tuple[int, Part]]:
        """Return the areas that a patch meets, in the order of painting: index, window in pixels of the patch."""
        window = shapely.box(x_l0, y_l0, x_l0 + width * downsample, y_l0 + height * downsample)
        result = []
        for number in sorted(int(i) for i in self._tree.query(window)):
            left, top, right, bottom = self._areas[number].geometry.bounds
            columns = [int((x - x_l0) // downsample) + plus for x, plus in ((left, 0), (right, 1))]
            rows = [int((y - y_l0) // downsample) + plus for y, plus in ((top, 0), (bottom, 1))]
            (left_px, right_px), (top_px, bottom_px) = np.clip(columns, 0, width), np.clip(rows, 0, height)
            if left_px < right_px and top_px < bottom_px:
                result.append((number, Part(int(top_px), int(bottom_px), int(left_px), int(right_px))))
        return result


def _refuse_far(areas: Sequence[AnnotatedArea], size: tuple[int, int], name: str) -> None:
    """Raise DataError if an area on the slide also reaches so far beyond it that its coordinates must be wrong."""
    far = max(*size, _FAR)
    for area in areas:
        beyond = max(-area.geometry.bounds[0], -area.geometry.bounds[1],
                     area.geometry.bounds[2] - size[0], area.geometry.bounds[3] - size[1])  # fmt: skip
        if beyond > far:
            raise DataError(
                f"{name}: an annotation of {area.group} reaches {beyond:.0f} pixels beyond the slide "
                f"({size[0]} × {size[1]} pixels): is it of another slide, or in another unit?"
            )


def open_label(path: Path | None, slide: Slide | SlideFrame, label_map: LabelMap) -> Label:
    """Open the label of `slide` by the file's suffix; None means tumour-free. Raises DataError if it is unusable."""
    if path is None:
        return Label((slide.width, slide.height))
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in MASK_SUFFIXES:
        return MaskLabel(path, slide, label_map)
    if suffix not in OUTLINE_SUFFIXES:
        raise DataError(
            f"{path}: a label must be a mask (tif, png, …), an .xml of ASAP or a .geojson of QuPath"
        )
    areas, left_out = read_areas(path, slide.origin)
    label = PolygonLabel((slide.width, slide.height), areas, label_map, path.name)
    label.left_out = left_out + label.left_out
    return label
