"""CAMELYON16's lesion score: the free-response receiver operating characteristic (FROC), without files.

After Ehteshami Bejnordi et al., "Diagnostic assessment of deep learning algorithms for detection of lymph node
metastases in women with breast cancer", JAMA 318 (2017), and the program that its organisers published. `official`
numbers are the same to the last bit, with what that program does unintentionally; `corrected` ones are without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage import measure

from utils.cli import UserError

LEVEL = 5  # of the evaluation mask: its pixels are 32 level-0 pixels
SPACING = 0.243  # µm/px at level 0, taken for every slide
RATES = (0.25, 0.5, 1, 2, 4, 8)  # false positives a slide at which the sensitivity is taken
MERGE_UM = 75  # lesions that are closer are one: five tumour cells
ITC_UM = 275  # isolated tumour cells, 200 µm, and what merging adds


class Detection(NamedTuple):
    """A place that is said to be in a lesion, in level-0 pixels."""

    confidence: float
    x: float
    y: float


@dataclass(frozen=True)
class TrueLesion:
    """A region of the evaluation mask, and what was found of it."""

    label: int  # from 1 on
    itc: bool  # isolated tumour cells: no target, and a hit in it does not count at all
    diameter: float  # µm: major axis, with what merging adds
    area: float  # µm²
    x: float  # centre of mass, level 0
    y: float
    hit: Detection | None  # the most confident of all in it


@dataclass(frozen=True)
class SlideResult:
    """The detections of a slide, divided into hits and false positives."""

    name: str
    lesions: tuple[TrueLesion, ...]
    false_positives: tuple[Detection, ...]
    outside: int = 0  # of them, how many are not on the slide


def evaluation_mask(tumour: np.ndarray) -> np.ndarray:
    """Lesions, numbered from 1 on: int (h, w) of `tumour`, bool (h, w) at level 5."""
    if not tumour.any():
        return np.zeros(tumour.shape, np.int32)
    distance = ndimage.distance_transform_edt(~tumour)
    near = distance < MERGE_UM / (SPACING * pow(2, LEVEL) * 2)
    return np.asarray(measure.label(ndimage.binary_fill_holes(near), connectivity=2))


def match(name: str, detections: Sequence[Detection], tumour: np.ndarray | None) -> SlideResult:
    """Gives each detection to the lesion that it hits; `tumour` as of `evaluation_mask`, None: there is none."""
    labels = evaluation_mask(np.zeros((1, 1), bool) if tumour is None else tumour)
    height, width = labels.shape
    hits: dict[int, Detection] = {}
    false_positives = []
    outside = 0
    for detection in detections:
        column, row = int(detection.x / pow(2, LEVEL)), int(detection.y / pow(2, LEVEL))
        on_slide = detection.x >= 0 and detection.y >= 0 and column < width and row < height
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
    return SlideResult(name, tuple(lesions), tuple(false_positives), outside)


def targets(results: Sequence[SlideResult]) -> int:
    """Return how many lesions are to be found."""
    return sum(not lesion.itc for result in results for lesion in result.lesions)


def curve(
    results: Sequence[SlideResult], corrected: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False positives a slide, sensitivities and thresholds of the FROC curve, by rising threshold.

    The last point is (0, 0) with an infinite threshold. `results` has one entry for each slide that has a
    list of detections, even if that is empty. ValueError: no lesion is to be found.

    The official curve is without its lowest threshold. That should be the 0 of the lesions that were not
    found; where there is none it is a real one, and one slide, one lesion, one hit make a score of 0.
    Confidences of hits are rounded to float32 there, those of false positives are not, and a hit of
    confidence 0 does not count. `corrected` has all thresholds, and float64.
    """
    count = targets(results)
    if count == 0:
        raise UserError(
            "no lesion is to be found: no slide has one that is larger than isolated tumour cells"
        )
    false: list[float] = [d.confidence for result in results for d in result.false_positives]
    lesions = [lesion for result in results for lesion in result.lesions]
    if corrected:
        true = np.array([lesion.hit.confidence for lesion in lesions if lesion.hit and not lesion.itc])
        thresholds = sorted({*false, *true.tolist()})
    else:
        found = (lesion.hit.confidence if lesion.hit and not lesion.itc else 0.0 for lesion in lesions)
        true = np.array([max(confidence, 0.0) for confidence in found], np.float32)
        # Sorted as the mixture of Python and NumPy numbers that it is there: ties depend on it.
        thresholds = sorted(set(false + list(true)))[1:]
    points = np.array(thresholds, np.float64)
    false_counts = _at_least(np.array(false, np.float64), points)
    true_counts = _at_least(true, np.array(thresholds, true.dtype))
    return (
        np.append(false_counts, 0) / float(len(results)),
        np.append(true_counts, 0) / float(count),
        np.append(points, np.inf),
    )


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return how many values are at least as large as each threshold."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")


def sensitivities(false_positives: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Sensitivity at each of RATES, between the points of a curve interpolated, after the last one constant."""
    return np.interp(RATES, false_positives[::-1], sensitivity[::-1])


def score(results: Sequence[SlideResult], corrected: bool = False) -> float:
    """Mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide. ValueError as of `curve`."""
    return float(np.mean(sensitivities(*curve(results, corrected)[:2])))


def bootstrap(
    statistic: Callable[[np.ndarray], float], slides: int, samples: int, seed: int
) -> tuple[float, float] | None:
    """95 % confidence interval of a statistic of slides' indices, by drawing as many slides with replacement.

    Samples for which it raises ValueError (no lesion among them, no normal slide) are left out; None: all.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        chosen = rng.integers(slides, size=slides)
        try:
            values.append(statistic(chosen))
        except ValueError:
            continue
    if not values:
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
