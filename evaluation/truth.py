"""Finds the ground truth of slides, and the tumour in it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import ceil
from pathlib import Path

import numpy as np

from evaluation.each import spared
from evaluation.froc import SPACING
from samplers.labels.annotations import OUTLINE_SUFFIXES, AnnotatedArea, read_areas
from samplers.labels.label import MASK_SUFFIXES, Label, LabelMap, PolygonLabel, open_label
from samplers.labels.label_map import IGNORED, shows_tumour
from samplers.labels.mask_levels import checked_levels
from samplers.labels.mask_values import MaskValues
from samplers.pairs.checks import check_label
from samplers.pairs.folders import is_of, listed
from samplers.pairs.names import is_normal, plain_key, slide_key
from samplers.slides.errors import DataError
from samplers.slides.frame import SlideFrame, described_frame, frame_of_file
from samplers.slides.slide import Slide
from samplers.slides.stored_slide import slide_name

log = logging.getLogger(__name__)

_SAME_LEVEL = (
    0.1  # relative; levels are a factor of 2 apart, and rounding of small sizes explains less than this
)
_STRIP_ROWS = 512  # rows of a mask's level 0 that are read at once
_MARGIN = 8  # pixels around annotations on a slide of unknown size; lesions grow by less than 5
_LEVEL_0 = 1.5  # a mask whose spacing is further from CAMELYON16's than by this factor may be a shrunken one
_SIDE = 1024  # of the picture in which tumour is looked for
_DOWNSAMPLE = 32  # of the picture in which pixels that are not known are looked for

TRUTH_SUFFIXES = (*MASK_SUFFIXES, *OUTLINE_SUFFIXES)
SlideOrFrame = Path | SlideFrame


def find_files(folder: Path, suffixes: Iterable[str], ending: str = "") -> dict[str, Path]:
    """Return the files of a folder whose stems have this `ending`, by slide.

    DataError: there is no such folder, or it has two files for one slide.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    wanted = tuple(suffixes)
    found: dict[str, Path] = {}
    for path in listed(folder):
        if not is_of(path, wanted) or not plain_key(slide_name(path)).endswith(ending):
            continue
        other = found.setdefault(slide_key(slide_name(path)), path)
        if other != path:
            raise DataError(f"{folder}: two files for one slide, {other.name} and {path.name}")
    return found


def find_truth(folder: Path) -> dict[str, Path]:
    """Return the masks and annotations of a folder by slide. DataError: there are none."""
    found = find_files(folder, TRUTH_SUFFIXES)
    if not found:
        raise DataError(f"{folder}: no masks ({', '.join(MASK_SUFFIXES)}) or annotations (.xml, .geojson)")
    return found


def is_mask(path: Path) -> bool:
    """Return whether a label is a mask; else it is a file of outlines."""
    return path.suffix.lower() in MASK_SUFFIXES


def frame_of_detections(detections: Path, slide: Path | None) -> SlideFrame | None:
    """Return the frame of a slide, or as predict.py has written it beside its CSV; None if neither is there."""
    said = described_frame(detections.parent.parent / f"{detections.stem}_prediction.tif")
    if slide is None:
        return said[0] if said else None
    frame = frame_of_file(slide)
    if said and (said[0].width, said[0].height) != (frame.width, frame.height):
        raise DataError(
            f"{detections}: predicted on a slide of {said[0].width} × {said[0].height} pixels, but {slide} is "
            f"{frame.width} × {frame.height}"
        )
    return frame


def tumour_at(
    path: Path, downsample: int, label_map: LabelMap, slide: SlideOrFrame | None = None
) -> np.ndarray:
    """Return where a whole slide shows tumour (any known class but 0) at a downsample of level 0: bool (h, w).

    A mask that has a level of this downsample is read at this level, pixel by pixel, as the organisers do; else at the
    pixels' centres in level 0. Annotations do not say how large the slide is: without `slide` it is assumed to end
    shortly after the last of them. DataError: the label cannot be used, or the slide is needed to know its frame.
    """
    return shows_tumour(_classes_at(path, downsample, label_map, slide, say=True))


def ignored_at(
    path: Path, downsample: int, label_map: LabelMap, slide: SlideOrFrame | None = None
) -> np.ndarray:
    """Return which pixels of the same picture are not known: bool (h, w)."""
    return np.asarray(_classes_at(path, downsample, label_map, slide) == IGNORED)


def has_tumour(path: Path, label_map: LabelMap) -> bool | None:
    """Return whether a label shows tumour, however little. None: it does not, but has pixels that are not known."""
    if is_mask(path):
        frame = frame_of_file(path, "label")
        label = open_label(path, frame, label_map)
        try:
            classes = label.thumbnail(min(frame.width, _SIDE), min(frame.height, _SIDE))
        finally:
            label.close()
        tumour = bool(shows_tumour(classes).any())
        ignored = label_map.ignores and bool(ignored_at(path, _DOWNSAMPLE, label_map, frame).any())
    else:
        outlines = _outlines(path, label_map)
        tumour = any(annotation.value > 0 for annotation in outlines.annotations())
        ignored = outlines.ignores or label_map.unannotated == IGNORED
    return True if tumour else None if ignored else False


def slide_labels(
    scores: dict[str, float], truth: dict[str, Path], label_map: LabelMap, failed: dict[str, str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return whether each slide has tumour, and its score: bool (n,), float64 (n,); and the slides left out.

    These show no tumour, but have pixels that are not known, so that they may have some. A normal_* slide has none.
    """
    found: dict[str, bool | None] = {}
    for key in scores:
        with spared(failed, key):
            found[key] = has_tumour(truth[key], label_map) if key in truth else False
    unknown = [key for key, tumour in found.items() if tumour is None and not is_normal(key)]
    kept = [key for key in found if key not in unknown]
    return np.array([bool(found[key]) for key in kept]), np.array([scores[key] for key in kept]), unknown


def checked(label: Label, say: bool = False) -> None:
    """Raise DataError if a label is of outlines and cannot be used, as the check before training does.

    `say`: also log what of it is left out.
    """
    reasons = check_label(label) if isinstance(label, PolygonLabel) else []
    if reasons:
        raise DataError(reasons[0])
    for reason in label.remarks if say else ():
        log.warning("%s", reason)


def _classes_at(
    path: Path, downsample: int, label_map: LabelMap, slide: SlideOrFrame | None, say: bool = False
) -> np.ndarray:
    """Return the classes of a whole slide at a downsample of level 0: uint8 (h, w). `say`: as for `checked`."""
    frame = frame_of_file(slide) if isinstance(slide, Path) else slide
    if frame is None and path.suffix.lower() in (".geojson", ".json"):
        raise DataError(
            f"{path}: QuPath's positions begin at the slide's openslide.bounds, so the slide is needed: give "
            "--slide_path"
        )
    if is_mask(path):
        own = frame_of_file(path, "label")
        if frame is None and own.spacing_known and not 1 / _LEVEL_0 < own.spacing / SPACING < _LEVEL_0:
            raise DataError(
                f"{path}: is a mask of {own.spacing:g} µm/px, so it may be smaller than its slide, which is needed: "
                "give --slide_path"
            )
        frame = frame or own
        with Slide(path, kind="label") as mask:
            if (mask.width, mask.height) == (frame.width, frame.height):
                return _mask_at(mask, downsample, label_map)
    if frame is None:
        label: Label = _outlines(path, label_map, _MARGIN * downsample)
    else:
        label = open_label(path, frame, label_map)
    try:
        checked(label, say)
        return label.read_at(0, 0, *_grid(label.size, downsample), downsample)
    finally:
        label.close()


def _outlines(path: Path, label_map: LabelMap, margin: int = 0) -> PolygonLabel:
    """Open outlines on a slide of unknown size, which ends by a margin behind the last of them."""
    areas, left_out = read_areas(path, (0, 0))
    width, height = _reach(areas)
    label = PolygonLabel((width + margin, height + margin), areas, label_map, str(path))
    label.left_out = left_out + label.left_out
    checked(label)
    return label


def _reach(areas: Iterable[AnnotatedArea]) -> tuple[int, int]:
    """Return how far right and down annotations reach, in level-0 pixels; (1, 1) if there are none."""
    ends = [area.geometry.bounds[2:] for area in areas]
    return (max(1, ceil(max(x for x, _ in ends))), max(1, ceil(max(y for _, y in ends)))) if ends else (1, 1)


def _mask_at(mask: Slide, downsample: int, label_map: LabelMap) -> np.ndarray:
    values, levels = MaskValues(label_map, mask), checked_levels(mask)
    for reason in values.reasons(levels.counts):
        raise DataError(reason)
    for level, real in enumerate(mask.downsamples):
        if abs(real / downsample - 1) < _SAME_LEVEL:
            pixels = mask.read_level(0, 0, *mask.level_sizes[level], level)
            if pixels.max() == 255 and values.classes[1:].all():
                # Averages of a 0/255 mask: for the organisers only 255 is tumour.
                return np.where(pixels == 255, values.classes[255], values.classes[0])
            if level in levels.exact:
                return values.of(pixels)
    columns, rows = (
        np.minimum(np.arange(count) * downsample + downsample // 2, limit - 1)
        for count, limit in zip(_grid((mask.width, mask.height), downsample), (mask.width, mask.height))
    )
    strips = []
    for part in np.array_split(rows, max(1, mask.height // _STRIP_ROWS)):
        top, bottom = int(part[0]), int(part[-1]) + 1
        strips.append(mask.read_level(0, top, mask.width, bottom - top, 0)[np.ix_(part - top, columns)])
    return values.of(np.concatenate(strips))


def _grid(size: tuple[int, int], downsample: int) -> tuple[int, int]:
    """Return (width, height) that covers all of the slide."""
    return ceil(size[0] / downsample), ceil(size[1] / downsample)
