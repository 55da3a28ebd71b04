"""Finds the ground truth of slides, and the tumour in it."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from pathlib import Path

import numpy as np

from samplers.labels.annotations import AnnotatedArea, read_asap, read_geojson
from samplers.labels.label import MASK_SUFFIXES, LabelMap, PolygonLabel, open_label
from samplers.labels.mask_levels import checked_levels
from samplers.labels.mask_values import MaskValues
from samplers.pairs.pairing import listed
from samplers.slides.errors import DataError
from samplers.slides.slide import Slide

OUTLINE_SUFFIXES = (".xml", ".geojson", ".json")
_SAME_LEVEL = (
    0.1  # relative; levels are a factor of 2 apart, and rounding of small sizes explains less than this
)
_STRIP_ROWS = 512  # rows of a mask's level 0 that are read at once
_MARGIN = 8  # pixels around annotations on a slide of unknown size; lesions grow by less than 5


def slide_key(name: str) -> str:
    """Return the slide that a file's stem is about: without `_mask`, `mask_`, `_prediction`, in lower case."""
    return name.casefold().removeprefix("mask_").removesuffix("_mask").removesuffix("_prediction")


def find_files(folder: Path, suffixes: Iterable[str], ending: str = "") -> dict[str, Path]:
    """Return the files of a folder whose stems have this `ending`, by slide.

    DataError: there is no such folder, or it has two files for one slide.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    wanted = tuple(suffixes)
    found: dict[str, Path] = {}
    for path in listed(folder):
        if path.suffix.lower() not in wanted or path.name.startswith(".") or not path.stem.endswith(ending):
            continue
        other = found.setdefault(slide_key(path.stem), path)
        if other != path:
            raise DataError(f"{folder}: two files for one slide, {other.name} and {path.name}")
    return found


def find_truth(folder: Path) -> dict[str, Path]:
    """Return the masks and annotations of a folder by slide. A slide without one is tumour-free. DataError: none."""
    found = find_files(folder, (*MASK_SUFFIXES, *OUTLINE_SUFFIXES))
    if not found:
        raise DataError(f"{folder}: no masks ({', '.join(MASK_SUFFIXES)}) or annotations (.xml, .geojson)")
    return found


def tumour_at(path: Path, downsample: int, label_map: LabelMap, slide: Path | None = None) -> np.ndarray:
    """Return the tumour (any class but 0) of a whole slide at a downsample of level 0: bool (h, w).

    A mask that has a level of this downsample is read at this level, pixel by pixel, as the organisers do; else at the
    pixels' centres in level 0. Annotations do not say how large the slide is: without `slide` it is assumed to end
    shortly after the last of them.
    """
    if path.suffix.lower() in MASK_SUFFIXES:
        with Slide(path, kind="label") as mask:
            if slide is None or (mask.width, mask.height) == _size_of(slide):
                return _mask_at(mask, downsample, label_map)
    if slide is not None:
        with Slide(slide) as opened:
            label = open_label(path, opened, label_map)
            try:
                return label.read_at(0, 0, *_grid(label.size, downsample), downsample) > 0
            finally:
                label.close()
    end = reach_of(path)
    size = (end[0] + _MARGIN * downsample, end[1] + _MARGIN * downsample)
    polygons = PolygonLabel(size, _outlines(path), label_map, str(path))
    return polygons.read_at(0, 0, *_grid(size, downsample), downsample) > 0


def reach_of(path: Path) -> tuple[int, int]:
    """Return how far right and down annotations reach, in level-0 pixels; (1, 1) if there are none."""
    ends = [outline.geometry.bounds[2:] for outline in _outlines(path)]
    return (max(1, ceil(max(x for x, _ in ends))), max(1, ceil(max(y for _, y in ends)))) if ends else (1, 1)


def has_tumour(path: Path, label_map: LabelMap) -> bool:
    """Return whether a label has any tumour, however small."""
    if path.suffix.lower() not in MASK_SUFFIXES:
        outlines = _outlines(path)
        classes = dict(label_map.groups)
        return any(classes.get(outline.group, 0) > 0 for outline in outlines)
    with Slide(path, kind="label") as mask:
        label = open_label(path, mask, label_map)
        try:
            return bool(label.thumbnail(min(mask.width, 1024), min(mask.height, 1024)).any())
        finally:
            label.close()


def _outlines(path: Path) -> list[AnnotatedArea]:
    return (read_asap(path) if path.suffix.lower() == ".xml" else read_geojson(path))[0]


def _mask_at(mask: Slide, downsample: int, label_map: LabelMap) -> np.ndarray:
    values, levels = MaskValues(label_map, mask), checked_levels(mask)
    for reason in values.reasons(levels.counts):
        raise DataError(reason)
    for level, real in enumerate(mask.downsamples):
        if abs(real / downsample - 1) < _SAME_LEVEL:
            pixels = mask.read_level(0, 0, *mask.level_sizes[level], level)
            if pixels.max() == 255 and values.classes[1:].all():
                # Averages of a 0/255 mask: for the organisers only 255 is tumour.
                return np.asarray(pixels == 255)
            if level in levels.exact:
                return np.asarray(values.of(pixels) > 0)
    columns, rows = (
        np.minimum(np.arange(count) * downsample + downsample // 2, limit - 1)
        for count, limit in zip(_grid((mask.width, mask.height), downsample), (mask.width, mask.height))
    )
    strips = []
    for part in np.array_split(rows, max(1, mask.height // _STRIP_ROWS)):
        top, bottom = int(part[0]), int(part[-1]) + 1
        strips.append(mask.read_level(0, top, mask.width, bottom - top, 0)[np.ix_(part - top, columns)])
    return np.asarray(values.of(np.concatenate(strips)) > 0)


def _size_of(slide: Path) -> tuple[int, int]:
    with Slide(slide) as opened:
        return opened.width, opened.height


def _grid(size: tuple[int, int], downsample: int) -> tuple[int, int]:
    """Return (width, height) that covers all of the slide."""
    return ceil(size[0] / downsample), ceil(size[1] / downsample)
