"""One interface for all labels: masks (TIFF, PNG, …), ASAP XML, QuPath GeoJSON, or none (no tumour).

Positions are in level-0 pixels of the *slide*, sizes in pixels at a downsample of it, values are classes (uint8), or
IGNORED where the class is not known.
Annotations are rasterised per patch, through a spatial index, and never over a whole slide (21 GB for one slide of
CAMELYON16).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely

from samplers.labels import polygons
from samplers.labels.annotations import OUTLINE_SUFFIXES, read_areas
from samplers.labels.areas import AnnotatedArea, meetings, not_ignored, polygons_of, without_later
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
# Measured: an area takes its edges (see `polygons.edges_of`) and what shapely keeps of it, 57 to 67 bytes per point.
_BYTES_PER_AREA, _COPIES_OF_EDGES = 1200, 2.2
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
        on_slide = shapely.intersects(
            np.array([area.geometry for area in used], object), shapely.box(0, 0, *size)
        )
        if used and not on_slide.any():
            raise DataError(
                f"{name}: all annotations are outside of the slide ({size[0]} × {size[1]} pixels)"
            )
        if not on_slide.all():
            self.left_out.append(f"{name}: {np.sum(~on_slide)} annotations are outside of the slide")
        areas = [area for area, is_on_slide in zip(used, on_slide) if is_on_slide]
        _refuse_far(areas, size, name)
        areas = not_ignored(areas, [order[area.group][1] == IGNORED for area in areas])
        self._groups = [area.group for area in areas]
        self._values = np.array([order[group][1] for group in self._groups], np.int64)
        self.ignores = IGNORED in self._values  # areas are there that are not known
        self._geometries = np.array([area.geometry for area in areas], object)
        self._bounds = shapely.bounds(self._geometries).reshape(-1, 4)
        self._edges, self._first_edges = polygons.edges_of_all(self._geometries)
        self._held_bytes = int(_BYTES_PER_AREA * len(areas) + _COPIES_OF_EDGES * self._edges.nbytes)
        self._tree = shapely.STRtree(self._geometries)

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
                self._edges_of(number), *corner, window.width, window.height, downsample, of_window
            )
            # The same as classes[…][pixels] = value in a tenth of the time: 255 outside of the polygon, 0 inside.
            outside = pixels.view(np.uint8) - np.uint8(1)
            painted = classes[seen.counted_from(part.top, part.left).slices]
            painted &= outside
            painted |= ~outside & np.uint8(self._values[number])
        return classes

    def _edges_of(self, first: int, end: int | None = None) -> np.ndarray:
        """Return the edges of an area, or of those up to `end`: float64 (4, n)."""
        return self._edges[:, self._first_edges[first] : self._first_edges[first + 1 if end is None else end]]

    def thumbnail(self, width: int, height: int) -> np.ndarray:
        # The pixels of a thumbnail are not exactly square, so the polygons are scaled to its frame.
        scale = np.array([[width / self.size[0]], [height / self.size[1]]] * 2)
        classes = np.full((height, width), self._unannotated, np.uint8)
        ends = [*(np.flatnonzero(np.diff(self._values)) + 1), len(self._values)] if len(self._values) else []
        for first, end in zip([0, *ends], ends):  # areas of one class that are painted one after the other
            value = self._values[first]
            owners = np.repeat(np.arange(end - first), np.diff(self._first_edges[first : end + 1]))
            covered = polygons.cover(self._edges_of(first, end) * scale, owners, width, height)
            if value in (0, IGNORED):
                classes[covered.within] = value
                classes[covered.border & (classes == IGNORED)] = value
            else:
                classes[covered.filled | covered.border] = value
        return classes

    def _find_annotations(self) -> list[Annotation]:
        return [annotation for annotation in self._visible() if annotation.value != IGNORED]

    def areas(self) -> dict[int, float]:
        visible = self._visible()
        found: dict[int, float] = {}
        for value in sorted({annotation.value for annotation in visible}):
            shapes = np.array([a.polygon for a in visible if a.value == value], object)
            meet = np.zeros(len(shapes), bool)
            meet[meetings(shapes).ravel()] = True  # annotations of one class may overlap
            found[value] = float(shapely.area(shapes[~meet]).sum() + shapely.union_all(shapes[meet]).area)
        rest = max(0.0, self.size[0] * self.size[1] - sum(found.values()))
        found[self._unannotated] = found.get(self._unannotated, 0.0) + rest
        return found

    @property
    def held_bytes(self) -> int:
        return self._held_bytes + super().held_bytes

    def _visible(self) -> list[Annotation]:
        """Return what is not painted over of each area, of those that are not known too."""
        if self._seen is not None:
            return self._seen
        pairs = meetings(self._geometries)
        shown = without_later(self._geometries, pairs[:, self._values[pairs[0]] != self._values[pairs[1]]])
        low, high = self._bounds[:, :2], self._bounds[:, 2:]
        reach_beyond = np.flatnonzero((low < 0).any(axis=1) | (high > self.size).any(axis=1))
        slide = shapely.box(0, 0, *self.size)
        for number in reach_beyond.tolist():
            shown[number] = shapely.intersection(shown.get(number, self._geometries[number]), slide)
        found = []
        for number, (geometry, value, group) in enumerate(zip(self._geometries, self._values, self._groups)):
            polygon = polygons_of(shown[number]) if number in shown else geometry
            if polygon is not None:
                found.append(Annotation(polygon, int(value), group))
        self._seen = found
        return found

    def _windows(
        self, x_l0: float, y_l0: float, width: int, height: int, downsample: float
    ) -> list[tuple[int, Part]]:
        """Return the areas that a patch meets, in the order of painting: index, window in pixels of the patch."""
        window = shapely.box(x_l0, y_l0, x_l0 + width * downsample, y_l0 + height * downsample)
        result = []
        for number in sorted(int(i) for i in self._tree.query(window)):
            left, top, right, bottom = self._bounds[number]
            columns = [int((x - x_l0) // downsample) + plus for x, plus in ((left, 0), (right, 1))]
            rows = [int((y - y_l0) // downsample) + plus for y, plus in ((top, 0), (bottom, 1))]
            (left_px, right_px), (top_px, bottom_px) = np.clip(columns, 0, width), np.clip(rows, 0, height)
            if left_px < right_px and top_px < bottom_px:
                result.append((number, Part(int(top_px), int(bottom_px), int(left_px), int(right_px))))
        return result


def _refuse_far(areas: Sequence[AnnotatedArea], size: tuple[int, int], name: str) -> None:
    """Raise DataError if an area on the slide also reaches so far beyond it that its coordinates must be wrong."""
    bounds = shapely.bounds(np.array([area.geometry for area in areas], object)).reshape(-1, 4)
    beyond = np.concatenate([-bounds[:, :2], bounds[:, 2:] - size], axis=1).max(axis=1)
    for area, reach in zip(areas, beyond):
        if reach > max(*size, _FAR):
            raise DataError(
                f"{name}: an annotation of {area.group} reaches {reach:.0f} pixels beyond the slide "
                f"({size[0]} × {size[1]} pixels): is it of another slide, or in another unit?"
            )


def open_label(path: Path | None, slide: Slide | SlideFrame, label_map: LabelMap) -> Label:
    """Open the label of `slide` by the file's suffix; None means tumour-free. Raises DataError if it is unusable."""
    if path is None:
        return Label((slide.width, slide.height))
    suffix = path.suffix.lower()
    if suffix not in (*MASK_SUFFIXES, *OUTLINE_SUFFIXES):
        raise DataError(
            f"{path}: a label must be a mask (tif, png, …), an .xml of ASAP or a .geojson of QuPath"
        )
    require_file(path)
    if suffix in MASK_SUFFIXES:
        return MaskLabel(path, slide, label_map)
    areas, left_out = read_areas(path, slide.origin)
    label = PolygonLabel((slide.width, slide.height), areas, label_map, path.name)
    label.left_out = left_out + label.left_out
    return label
