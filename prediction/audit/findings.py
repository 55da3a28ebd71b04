"""Finds the regions of a slide where prediction and annotation disagree with confidence, and ranks them.

The score of a region is its area in mm² times the confidence with which annotation and prediction disagree in it, the
mean of |annotation - probability|: the area that is likely to be wrong in one of the two. Of a shifted annotation the
area is that of the pixels that change when it is moved, and the confidence how much less the two disagree there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, pi

import cv2
import numpy as np
import shapely
from scipy import ndimage

from prediction.audit.maps import ComparedSlide, Maps
from prediction.audit.shifts import Shift, estimate_shift, moved_by
from samplers.labels.polygons import trace

MISSED, DOUBTFUL, OUTLINE, SHIFTED = "missed", "doubtful", "outline", "shifted"
KINDS = {
    MISSED: "predicted with confidence, but annotated as other tissue",
    DOUBTFUL: "annotated, but the model is confident that there is no lesion",
    OUTLINE: "a part of a lesion in which annotation and prediction disagree",
    SHIFTED: "the annotation agrees better when it is moved",
}
SAME_LESION = 0.1  # part of a predicted or annotated lesion from which on the other one is about it as well
_CROP = 1024  # pixels a side, in which a shift is estimated
_CONNECTED = np.ones((3, 3), int)


@dataclass(frozen=True)
class AuditSettings:
    """When a disagreement is reported."""

    threshold: float  # probability from which on a pixel is predicted as lesion
    confidence: float  # of which side ever, that a region must have
    tolerance: float  # µm, that outlines may be off: what is narrower than two of them is not reported
    max_shift: float  # µm along each axis
    min_diameter: float  # µm of the circle that is the smallest region
    regions: int  # per slide


@dataclass(frozen=True)
class Finding:
    """A region where annotation and prediction disagree. Geometries are in level-0 pixels."""

    kind: str  # one of KINDS
    outline: shapely.Geometry  # the pixels in question
    confidence: float  # 0 … 1
    area: float  # mm²
    shift: tuple[float, float] | None = (
        None  # (dx, dy) in level-0 pixels, by which the annotation is to be moved
    )
    suggestion: shapely.Geometry | None = None  # the annotation when it is moved

    @property
    def score(self) -> float:
        """Area times confidence, in mm²."""
        return self.area * self.confidence


def findings_of(slide: ComparedSlide, maps: Maps, settings: AuditSettings) -> list[Finding]:
    """Return the regions of a slide, the highest scores first. `maps`: those of the whole slide."""
    smallest = pi / 4 * (settings.min_diameter / 1000) ** 2
    shifts, annotated = _shifts(slide, maps, settings, smallest)
    found = [*shifts, *_regions(maps, annotated, settings, smallest)]
    return sorted(found, key=lambda finding: -finding.score)[: settings.regions]


def _shifts(
    slide: ComparedSlide, maps: Maps, settings: AuditSettings, smallest: float
) -> tuple[list[Finding], np.ndarray]:
    """Return the shifted annotations, and the annotation of the slide when they are moved: bool (h, w)."""
    annotated = maps.annotated
    lesions, count = ndimage.label(annotated, _CONNECTED)
    areas = np.bincount(lesions.ravel(), minlength=count + 1) * maps.mm2
    margin = ceil(settings.max_shift / maps.spacing) + 1
    found = []
    gone, come = np.zeros_like(annotated), np.zeros_like(annotated)
    for number, place in enumerate(ndimage.find_objects(lesions), 1):
        if areas[number] < smallest:
            continue
        rows, columns = (slice(max(0, part.start - margin), part.stop + margin) for part in place)
        own = lesions[rows, columns] == number
        if not _disagrees(maps, (rows, columns), own, settings):
            continue
        finding = _shift_of(slide, maps, (rows, columns), own, settings)
        if finding is None or finding.shift is None:
            continue
        found.append(finding)
        dx, dy = (round(step / maps.scale) for step in finding.shift)
        gone[rows, columns] |= own
        come[rows, columns] |= moved_by(own, dx, dy)
    return found, (annotated & ~gone) | come


def _disagrees(maps: Maps, place: tuple[slice, slice], own: np.ndarray, settings: AuditSettings) -> bool:
    """Return whether a shift can be found at all: something is predicted nearby, and not all of it is annotated."""
    predicted = maps.probability[place] >= settings.threshold
    return bool(predicted.any() and (predicted != own)[maps.known[place]].any())


def _shift_of(
    slide: ComparedSlide, maps: Maps, place: tuple[slice, slice], own: np.ndarray, settings: AuditSettings
) -> Finding | None:
    """Return how far a lesion, bool (h, w) at a place of the maps, is shifted, estimated on the finest pixels."""
    rows, columns = place
    box = [maps.scale * edge for edge in (columns.start, rows.start, columns.stop, rows.stop)]
    fine = slide.around((box[0], box[1], box[2], box[3]), _CROP)
    ratio = maps.scale / fine.scale
    # The pixels of the fine picture that are of this lesion: those in its own coarse pixels, or beside them.
    wide = cv2.dilate(own.astype(np.uint8), np.ones((3, 3), np.uint8))
    ys, xs = (
        np.minimum((np.arange(size) / ratio).astype(np.int64), limit - 1)
        for size, limit in zip(fine.annotated.shape, own.shape)
    )
    own_fine = fine.annotated & (wide[np.ix_(ys, xs)] > 0)
    if not own_fine.any():
        return None
    shift = estimate_shift(fine, own_fine, settings.max_shift, settings.threshold)
    if shift is None:
        return None
    return _shifted(fine, shift)


def _shifted(fine: Maps, shift: Shift) -> Finding:
    return Finding(
        SHIFTED,
        outline_of(shift.changed, fine),
        min(1.0, shift.confidence),
        int(shift.changed.sum()) * fine.mm2,
        (shift.dx * fine.scale, shift.dy * fine.scale),
        outline_of(shift.moved, fine),
    )


def _regions(
    maps: Maps, annotated: np.ndarray, settings: AuditSettings, smallest: float
) -> Iterator[Finding]:
    """Yield the regions where the annotation, bool (h, w), is wrong if the prediction is right."""
    predicted = maps.probability >= settings.threshold
    error = np.abs(annotated - maps.probability)
    sides = ((predicted, annotated, MISSED), (annotated, predicted, DOUBTFUL))
    for one, other, kind in sides:
        wrong = one & ~other & maps.known
        labels, count = _wide_regions(wrong, error, maps.spacing, settings)
        if not count:
            continue
        lesions, lesion_count = ndimage.label(one, _CONNECTED)
        shared = _shares(lesions, lesion_count, other)
        for number, place in enumerate(ndimage.find_objects(labels), 1):
            inside = labels[place] == number
            area = int(inside.sum()) * maps.mm2
            if area < smallest:
                continue
            lesion = np.bincount(lesions[place][inside]).argmax()
            yield Finding(
                OUTLINE if shared[lesion] >= SAME_LESION else kind,
                outline_of(inside, maps, place),
                float(error[place][inside].mean()),
                area,
            )


def _wide_regions(
    wrong: np.ndarray, error: np.ndarray, spacing: float, settings: AuditSettings
) -> tuple[np.ndarray, int]:
    """Return the regions that hold a confident circle with the tolerance as its radius: int32 (h, w), and their number.

    Opening leaves out the seams along outlines, which no two people draw alike.
    """
    radius = max(1, round(settings.tolerance / spacing))
    circle = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    sure = (wrong & (error >= settings.confidence)).astype(np.uint8)
    core = cv2.morphologyEx(sure, cv2.MORPH_OPEN, circle)
    if not core.any():
        return np.zeros(wrong.shape, np.int32), 0
    labels, count = ndimage.label(wrong & (cv2.dilate(core, circle) > 0), _CONNECTED)
    return labels, count


def _shares(lesions: np.ndarray, count: int, other: np.ndarray) -> np.ndarray:
    """Return the part of each lesion of a picture of numbers that `other`, bool (h, w), covers: float (count + 1,)."""
    sizes, covered = (
        np.bincount(numbers.ravel(), minlength=count + 1) for numbers in (lesions, lesions[other])
    )
    return np.asarray(covered / np.maximum(1, sizes))


def outline_of(
    mask: np.ndarray, maps: Maps, place: tuple[slice, slice] = (slice(0, None), slice(0, None))
) -> shapely.Geometry:
    """Return the outline in level-0 pixels of a bool mask (h, w), which is at a place of the maps."""
    corner = np.array([place[1].start, place[0].start]) * maps.scale + maps.corner
    parts = [polygon for _, polygon in trace(mask.astype(np.uint8), mask, (maps.scale, maps.scale))]
    return shapely.transform(shapely.MultiPolygon(parts), lambda points: points + corner)
