"""Computes CAMELYON16's lesion score, the free-response receiver operating characteristic (FROC), without IO.

After Ehteshami Bejnordi et al., "Diagnostic assessment of deep learning algorithms for detection of lymph node
metastases in women with breast cancer", JAMA 318 (2017), and the program that its organisers published. `official`
numbers equal that program's to the last bit, with its unintended effects; `corrected` ones are without these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage import measure

from utils.cli import UserError

LEVEL = 5  # of the evaluation mask, whose pixels are 32 × 32 level-0 pixels
SPACING = 0.243  # µm/px at level 0, taken for every slide
RATES = (0.25, 0.5, 1, 2, 4, 8)  # false positives per slide at which the sensitivity is taken
MERGE_UM = 75  # lesions that are closer than this, five tumour cells, are one
ITC_UM = 275  # isolated tumour cells are shorter: 200 µm, plus what merging adds


class UndefinedScoreError(UserError):
    """A score has no value for these slides or patients, for example because none of them has a lesion."""


class Detection(NamedTuple):
    """A predicted place of a lesion, in level-0 pixels."""

    confidence: float
    x: float
    y: float


@dataclass(frozen=True)
class TrueLesion:
    """A lesion of the ground truth, and the detection that hit it."""

    label: int  # from 1 on
    itc: bool  # isolated tumour cells: not to be found, and a hit counts neither way
    diameter: float  # µm, the major axis, with what merging adds
    area: float  # µm²
    x: float  # centre of mass, level 0
    y: float
    hit: Detection | None  # the most confident one


@dataclass(frozen=True)
class SlideResult:
    """The detections of a slide, divided into hits and false positives."""

    name: str
    lesions: tuple[TrueLesion, ...]
    false_positives: tuple[Detection, ...]
    outside: int = 0  # how many of the false positives are not on the slide
    ignored: int = 0  # how many detections are where it is not known what the slide shows


def evaluation_mask(tumour: np.ndarray) -> np.ndarray:
    """Return the lesions of `tumour`, bool (h, w) at level 5, numbered from 1 on: int (h, w)."""
    if not tumour.any():
        return np.zeros(tumour.shape, np.int32)
    distance = ndimage.distance_transform_edt(~tumour)
    near = distance < MERGE_UM / (SPACING * pow(2, LEVEL) * 2)
    return np.asarray(measure.label(ndimage.binary_fill_holes(near), connectivity=2))


def match(
    name: str,
    detections: Sequence[Detection],
    tumour: np.ndarray | None,
    ignored: np.ndarray | None = None,
    known_beyond: bool = True,
) -> SlideResult:
    """Assign each detection to the lesion that it hits. `tumour`: as for `evaluation_mask`, or None for none.

    ignored: bool (h, w), where a detection is neither a hit nor a false positive. `known_beyond`: whether it is one
    where it is beyond the end of the mask.
    """
    labels = evaluation_mask(np.zeros((1, 1), bool) if tumour is None else tumour)
    height, width = labels.shape
    hits: dict[int, Detection] = {}
    false_positives = []
    outside = uncounted = 0
    for detection in detections:
        column, row = int(detection.x / pow(2, LEVEL)), int(detection.y / pow(2, LEVEL))
        on_slide = detection.x >= 0 and detection.y >= 0 and column < width and row < height
        known = (ignored is None or not ignored[row, column]) if on_slide else known_beyond
        if not known:
            uncounted += 1
            continue
        label = int(labels[row, column]) if on_slide else 0
        outside += tumour is not None and not on_slide
        if label == 0:
            false_positives.append(detection)
        elif label not in hits or detection.confidence > hits[label].confidence:
            hits[label] = detection
    pixel_um = SPACING * pow(2, LEVEL)
    lesions = []
    for region in measure.regionprops(labels):
        y, x = ((centre + 0.5) * pow(2, LEVEL) for centre in region.centroid)
        length = region.axis_major_length
        itc = bool(length < ITC_UM / (SPACING * pow(2, LEVEL)))
        size = (float(length * pixel_um), float(region.area * pixel_um**2))
        lesions.append(TrueLesion(region.label, itc, *size, float(x), float(y), hits.get(region.label)))
    return SlideResult(name, tuple(lesions), tuple(false_positives), outside, uncounted)


def targets(results: Sequence[SlideResult]) -> int:
    """Return how many lesions are to be found."""
    return sum(not lesion.itc for result in results for lesion in result.lesions)


def curve(
    results: Sequence[SlideResult], corrected: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false positives per slide, sensitivities and thresholds of the FROC curve, by rising threshold.

    The last point is (0, 0) with an infinite threshold. `results` has one entry for each slide with a list of
    detections, even an empty one. UndefinedScoreError: there is no lesion to be found.

    The official curve lacks its lowest threshold. That should be the 0 of the lesions that were missed. Where none was
    missed it is a real threshold, so one slide with one lesion and one hit scores 0. The official curve also rounds the
    confidences of hits to float32, but not those of false positives, and a hit of confidence 0 does not count.
    `corrected` has all thresholds, in float64.
    """
    count = targets(results)
    if count == 0:
        raise UndefinedScoreError(
            "no lesion is to be found: no slide has one that is larger than isolated tumour cells"
        )
    false: list[float] = [d.confidence for result in results for d in result.false_positives]
    lesions = [lesion for result in results for lesion in result.lesions]
    if corrected:
        true = np.array([lesion.hit.confidence for lesion in lesions if lesion.hit and not lesion.itc])
    else:
        found = (lesion.hit.confidence if lesion.hit and not lesion.itc else 0.0 for lesion in lesions)
        true = np.array([max(confidence, 0.0) for confidence in found], np.float32)
    # By their exact values, float32 or not: so NumPy 1 sorted them. NumPy 2 rounds a Python number to float32 before it
    # compares the two, which leaves the order of 0.8 and float32(0.8) to chance.
    points = np.array(sorted({*false, *true.tolist()}), np.float64)[0 if corrected else 1 :]
    false_counts = _at_least(np.array(false, np.float64), points)
    # But the organisers compare an array of float32 with each threshold, which is rounded to float32 for that.
    true_counts = _at_least(true, points.astype(true.dtype))
    return (
        np.append(false_counts, 0) / float(len(results)),
        np.append(true_counts, 0) / float(count),
        np.append(points, np.inf),
    )


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return how many values are at least as large as each threshold."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")


def sensitivities(false_positives: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Return the sensitivity at each of RATES: interpolated between a curve's points, constant after the last one."""
    return np.interp(RATES, false_positives[::-1], sensitivity[::-1])


def score(results: Sequence[SlideResult], corrected: bool = False) -> float:
    """Return the mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives per slide. Raises what `curve` raises."""
    return float(np.mean(sensitivities(*curve(results, corrected)[:2])))


def bootstrap(
    statistic: Callable[[np.ndarray], float], slides: int, samples: int, seed: int
) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of a statistic of slides' indices, drawing as many slides with replacement.

    Samples for which the statistic raises UndefinedScoreError are left out. None: these are all samples.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        chosen = rng.integers(slides, size=slides)
        try:
            values.append(statistic(chosen))
        except UndefinedScoreError:
            continue
    if not values:
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
