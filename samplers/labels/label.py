"""One interface for all labels: masks (TIFF, PNG, …), ASAP XML, QuPath GeoJSON, or none (no tumour).

Positions are in level-0 pixels of the *slide*, sizes in pixels at a downsample of it, values are classes (uint8), or
IGNORED where the class is not known.
Annotations are rasterised per patch, through a spatial index, and never over a whole slide (21 GB for one slide of
CAMELYON16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import shapely

from samplers.labels import polygons
from samplers.labels.annotations import OUTLINE_SUFFIXES, AnnotatedArea, read_areas
from samplers.labels.label_map import DEFAULT_GROUPS, IGNORED, NO_GROUP, LabelMap, shows_tumour
from samplers.slides.errors import DataError
from samplers.slides.frame import SlideFrame, mask_scale
from samplers.slides.slide import Slide, inside

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

MASK_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".svs", ".mrxs", ".ndpi")
_REGION_SIDE = 2048  # pixels of the longer side of the picture in which a mask's regions are found
_MAX_MASK_PIXELS = 64 << 20  # of the level that a mask's thumbnail is made from
_MAX_STRIP_PIXELS = 16 << 20  # that are read of it at once


@dataclass(frozen=True)
class Annotation:
    """The visible part of an annotated area: inside the slide and not painted over by another class."""

    polygon: shapely.Geometry  # Polygon or MultiPolygon, in level-0 pixels
    value: int  # class
    group: str  # for a mask its class


class Label:
    """The label of a slide. The base class is the label of a slide without tumour: all pixels are class 0."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size  # (width, height) of the slide at level 0
        self.left_out: list[str] = []  # annotations of the file that are not used, with the reasons

    def read_at(self, x_l0: float, y_l0: float, width: int, height: int, downsample: float) -> np.ndarray:
        """Return the classes of a region: uint8 (height, width), pixels of `downsample` level-0 pixels.

        A pixel has the class at its centre, (x_l0 + (i + 0.5) · downsample, …). Raises ValueError if the region is
        not inside the slide, ReadError if a mask cannot be decoded.
        """
        for start, size, limit in ((x_l0, width, self.size[0]), (y_l0, height, self.size[1])):
            inside(start / downsample, size, int(np.ceil(limit / downsample)), "label")
        return self._read(x_l0, y_l0, width, height, downsample)

    def _read(self, x_l0: float, y_l0: float, width: int, height: int, downsample: float) -> np.ndarray:
        return np.zeros((height, width), np.uint8)

    def thumbnail(self, width: int, height: int) -> np.ndarray:
        """Return the classes of the whole slide: uint8 (height, width).

        A pixel shows the largest class that covers any part of it, so that no lesion is too small to be seen. It shows
        IGNORED only if no part of it has a known class.
        """
        return np.zeros((height, width), np.uint8)

    def annotations(self) -> list[Annotation]:
        """Return all annotations whose class is known, in the order of painting."""
        return []

    @property
    def held_bytes(self) -> int:
        """The estimated bytes of decoded tiles that libvips keeps in memory."""
        return 0

    def release(self) -> None:
        """Free the memory of tiles that can be decoded again."""

    def close(self) -> None:
        """Close the file, if one is open."""


class PolygonLabel(Label):
    """Polygons that are rasterised per patch.

    An outline that belongs to no group is not annotated, unless the label map was given with this group. DataError:
    there are only such outlines, or all lie outside of the slide.
    """

    def __init__(
        self, size: tuple[int, int], areas: Sequence[AnnotatedArea], label_map: LabelMap, name: str
    ) -> None:
        super().__init__(size)
        self.name = name
        self._unannotated = label_map.unannotated
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
            self.left_out.append(f"{name}: groups that are not in the label map: {', '.join(unknown)}")
        slide = shapely.box(0, 0, *size)
        outside = [area for area in used if not area.geometry.intersects(slide)]
        if used and len(outside) == len(used):
            raise DataError(
                f"{name}: all annotations are outside of the slide ({size[0]} × {size[1]} pixels)"
            )
        if outside:
            self.left_out.append(f"{name}: {len(outside)} annotations are outside of the slide")
        areas = [area for area in used if area.geometry.intersects(slide)]
        self._areas = _not_ignored(areas, [order[area.group][1] == IGNORED for area in areas])
        self._values = [order[area.group][1] for area in self._areas]
        self.ignores = IGNORED in self._values  # areas are there that are not known
        self._edges = [polygons.edges_of(area.geometry) for area in self._areas]
        self._tree = shapely.STRtree([area.geometry for area in self._areas])

    def _read(self, x_l0: float, y_l0: float, width: int, height: int, downsample: float) -> np.ndarray:
        classes = np.full((height, width), self._unannotated, np.uint8)
        for number, (top, bottom, left, right) in self._windows(x_l0, y_l0, width, height, downsample):
            corner = (x_l0 + left * downsample, y_l0 + top * downsample)
            pixels = polygons.fill(self._edges[number], *corner, right - left, bottom - top, downsample)
            # The same as classes[…][pixels] = value in a tenth of the time: 255 outside of the polygon, 0 inside.
            outside = pixels.view(np.uint8) - np.uint8(1)
            window = classes[top:bottom, left:right]
            window &= outside
            window |= ~outside & np.uint8(self._values[number])
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
        found = []
        slide = shapely.box(0, 0, *self.size)
        for number, (area, value) in enumerate(zip(self._areas, self._values)):
            if value == IGNORED:
                continue
            later = [
                int(i) for i in self._tree.query(area.geometry) if i > number and self._values[i] != value
            ]
            visible = shapely.intersection(area.geometry, slide)
            if later:
                visible = visible.difference(shapely.union_all([self._areas[i].geometry for i in later]))
            polygon = _polygons_of(visible)
            if polygon is not None:
                found.append(Annotation(polygon, value, area.group))
        return found

    def _windows(
        self, x_l0: float, y_l0: float, width: int, height: int, downsample: float
    ) -> list[tuple[int, tuple[int, int, int, int]]]:
        """Return the areas that a window meets, in the order of painting.

        Each is (index of the area, (first row, end row, first column, end column) in pixels of the window).
        """
        window = shapely.box(x_l0, y_l0, x_l0 + width * downsample, y_l0 + height * downsample)
        result = []
        for number in sorted(int(i) for i in self._tree.query(window)):
            left, top, right, bottom = self._areas[number].geometry.bounds
            columns = [int((x - x_l0) // downsample) + plus for x, plus in ((left, 0), (right, 1))]
            rows = [int((y - y_l0) // downsample) + plus for y, plus in ((top, 0), (bottom, 1))]
            (left_px, right_px), (top_px, bottom_px) = np.clip(columns, 0, width), np.clip(rows, 0, height)
            if left_px < right_px and top_px < bottom_px:
                result.append((number, (int(top_px), int(bottom_px), int(left_px), int(right_px))))
        return result


def _not_ignored(areas: Sequence[AnnotatedArea], ignored: Sequence[bool]) -> list[AnnotatedArea]:
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
            visible = _polygons_of(shapely.difference(area.geometry, covering))
            if visible is None:
                continue
            area = AnnotatedArea(area.group, visible)
        result.append(area)
    return result


def _polygons_of(geometry: shapely.Geometry) -> shapely.Geometry | None:
    """Return the Polygon or MultiPolygon of what has an area in a geometry, None if nothing has."""
    parts = [p for p in shapely.get_parts(geometry) if p.geom_type == "Polygon" and p.area > 0]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


class MaskLabel(Label):
    """A mask image of the whole slide, of its size or shrunk, see `mask_scale`."""

    def __init__(self, path: Path, slide: Slide | SlideFrame, label_map: LabelMap) -> None:
        super().__init__((slide.width, slide.height))
        self.mask = Slide(path, kind="label")
        self._scale = mask_scale(self.mask, slide)  # level-0 pixels of the slide per pixel of the mask
        self._values = label_map.values()
        self._unannotated = label_map.unannotated

    def _read(self, x_l0: float, y_l0: float, width: int, height: int, downsample: float) -> np.ndarray:
        pixels = self.mask.read_grid(
            x_l0 / self._scale, y_l0 / self._scale, width, height, downsample / self._scale
        )
        return cv2.LUT(pixels, self._values)

    def thumbnail(self, width: int, height: int) -> np.ndarray:
        """Return the whole slide, each pixel the largest class that it covers, from a level of at most 64 Mpx."""
        sizes = self.mask.level_sizes
        level = next((i for i, (w, h) in enumerate(sizes) if w * h <= _MAX_MASK_PIXELS), len(sizes) - 1)
        level_width, level_height = sizes[level]
        width_px, height_px = min(width, level_width), min(height, level_height)
        columns = np.arange(width_px) * level_width // width_px
        rows = np.arange(height_px) * level_height // height_px
        # How many pixels of the level a pixel of the thumbnail meets at most.
        ratios = (level_height / height_px, level_width / width_px)
        span = tuple(int(ratio) if ratio == int(ratio) else int(ratio) + 2 for ratio in ratios)
        result = np.empty((height_px, width_px), np.uint8)
        step = max(1, int(_MAX_STRIP_PIXELS / level_width / span[0]))
        for first in range(0, height_px, step):
            part = rows[first : first + step]
            bottom = min(int(part[-1]) + span[0], level_height)
            strip = self.mask.read_level(0, int(part[0]), level_width, bottom - int(part[0]), level)
            shifted = cv2.LUT(strip, self._values + np.uint8(1))  # IGNORED becomes 0, less than every class
            classes = cv2.dilate(shifted, np.ones(span, np.uint8), anchor=(0, 0))
            result[first : first + step] = classes[np.ix_(part - part[0], columns)] - np.uint8(1)
        if (width_px, height_px) == (width, height):
            return result
        return cv2.resize(result, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

    def annotations(self) -> list[Annotation]:
        """Return the regions of the mask, exact to a pixel of a thumbnail of at most 2048 pixels a side.

        Class 0 has regions only where unannotated pixels are ignored: else it is what no region covers.
        """
        shrink = max(1.0, max(self.size) / _REGION_SIDE)
        width, height = (max(1, round(side / shrink)) for side in self.size)
        classes = self.thumbnail(width, height)
        scale = (self.size[0] / width, self.size[1] / height)
        shown = classes != IGNORED if self._unannotated == IGNORED else shows_tumour(classes)
        return [
            Annotation(polygon, value, str(value)) for value, polygon in polygons.trace(classes, shown, scale)
        ]

    @property
    def held_bytes(self) -> int:
        return self.mask.held_bytes

    def release(self) -> None:
        self.mask.release()

    def close(self) -> None:
        self.mask.close()


def open_label(path: Path | None, slide: Slide | SlideFrame, label_map: LabelMap) -> Label:
    """Open the label of `slide` by the file's suffix; None means tumour-free. Raises DataError if it is unusable."""
    if path is None:
        return Label((slide.width, slide.height))
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)")
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
