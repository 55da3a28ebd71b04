"""Scores predicted slides one by one and puts the scores of all together, with the numbers of the three programs.

The validation of a run and tables over runs take their scores from here: FROC and AUC are those of
`evaluation.camelyon16`, IoU and Dice those of `evaluation.segmentation`, on the files that predict.py writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import camelyon16, froc
from evaluation.froc import ITC_UM, SlideResult, TrueLesion, UndefinedScoreError
from evaluation.lesions import ITC_MM, MICRO_MM
from evaluation.segmentation import TOLERANCE_UM, SegmentationCounts, count_slide
from evaluation.segmentation import summarise as summarise_pixels
from evaluation.tables import read_detections
from evaluation.truth import has_tumour
from samplers.labels.label_map import LabelMap
from samplers.pairs.names import is_normal

HEADLINES = {
    "froc_official": "FROC, official",
    "froc_corrected": "FROC, corrected",
    "slide_auc": "AUC of slides",
    "slide_miou": "mIoU",
    "slide_dice": "Dice of tumour",
}
SIZES = ("itc", "micro", "macro")
# CAMELYON16 calls lesions below 200 µm isolated tumour cells, but compares with 275 µm what merging has made longer.
_MACRO_UM = 1000 * MICRO_MM + ITC_UM - 1000 * ITC_MM


@dataclass(frozen=True)
class SlideScore:
    """A predicted slide compared with its label."""

    name: str
    tumour: bool | None  # None: it shows none, but not all of it is known
    probability: float  # that it has tumour
    result: SlideResult | None  # its lesions and detections; None: nothing on it is known
    confusion: np.ndarray  # int64 (C, C) of pixels, rows: label

    @property
    def is_negative(self) -> bool:
        return self.tumour is False or (self.tumour is None and is_normal(self.name))


def score_slide(
    predictions: Path, name: str, probability: float, slide: Path, label: Path | None, label_map: LabelMap
) -> SlideScore:
    """Compare a slide of the --output folder of predict.py with its label (None: it has no tumour).

    DataError: the label or one of the files cannot be used.
    """
    table = predictions / "lesions" / f"{name}.csv"
    found, _ = camelyon16.result_of_slide(table, read_detections(table), label, label_map, slide)
    counts = count_slide(predictions / f"{name}_prediction.tif", label, slide, label_map, outlines=False)
    tumour = False if label is None else has_tumour(label, label_map)
    return SlideScore(name, tumour, probability, found, counts.confusion)


def size_of(lesion: TrueLesion) -> str:
    """Return which of SIZES a true lesion has."""
    if lesion.itc:
        return "itc"
    return "macro" if lesion.diameter > _MACRO_UM else "micro"


def summarise(scores: Sequence[SlideScore]) -> dict[str, Any]:
    """Return the scores of slides together; None for what cannot be said of them.

    `froc_official` and `froc_corrected`; `slide_auc`; `slide_miou`, `slide_iou`, `slide_dice` (of class 1) of the
    pixels of all slides; `sensitivity` by size: part of the lesions that some detection hits; `lesions`: their number
    by size; `false_positives_per_normal_slide`; `slides`: each slide for itself.
    """
    results = [score.result for score in scores if score.result is not None]
    lesions = [lesion for result in results for lesion in result.lesions]
    by_size = {size: [lesion for lesion in lesions if size_of(lesion) == size] for size in SIZES}
    negative = [score for score in scores if score.is_negative and score.result is not None]
    false_positives = sum(len(score.result.false_positives) for score in negative if score.result)
    return {
        **headlines(scores),
        "slide_iou": _pixels(scores)["iou"],
        "sensitivity": {
            size: sum(lesion.hit is not None for lesion in some) / len(some) if some else None
            for size, some in by_size.items()
        },
        "lesions": {size: len(some) for size, some in by_size.items()},
        "false_positives_per_normal_slide": false_positives / len(negative) if negative else None,
        "slides": of_slides(scores),
    }


def headlines(scores: Sequence[SlideScore]) -> dict[str, float | None]:
    """Return the scores of HEADLINES of slides together; None for what they do not have."""
    return {name: _headline(name, scores) for name in HEADLINES}


def intervals(
    groups: Sequence[Sequence[SlideScore]], samples: int, seed: int
) -> dict[str, tuple[float, float] | None]:
    """Return the 95 % interval of each of HEADLINES, from `samples` of as many groups, drawn with replacement.

    A group holds the slides that are drawn together, such as those of a patient.
    """

    def of(name: str) -> Callable[[np.ndarray], float]:
        def value_of(chosen: np.ndarray) -> float:
            value = _headline(name, [score for i in chosen for score in groups[i]])
            if value is None:
                raise UndefinedScoreError(f"these slides have no {name}")
            return value

        return value_of

    return (
        {name: froc.bootstrap(of(name), len(groups), samples, seed) for name in HEADLINES} if groups else {}
    )


def _headline(name: str, scores: Sequence[SlideScore]) -> float | None:
    if name == "slide_auc":
        return _auc(scores)
    if name.startswith("froc"):
        return _froc(scores, corrected=name == "froc_corrected")
    pixels = _pixels(scores)
    value: float | None = pixels["miou"] if name == "slide_miou" else pixels["dice"][1]
    return value


def _froc(scores: Sequence[SlideScore], corrected: bool) -> float | None:
    results = [score.result for score in scores if score.result is not None]
    try:
        return froc.score(results, corrected)
    except UndefinedScoreError:
        return None


def _auc(scores: Sequence[SlideScore]) -> float | None:
    known = [score for score in scores if score.tumour or score.is_negative]
    tumour = np.array([bool(score.tumour) for score in known])
    try:
        return camelyon16.slide_auc(tumour, np.array([score.probability for score in known]))
    except UndefinedScoreError:
        return None


def _pixels(scores: Sequence[SlideScore]) -> dict[str, Any]:
    counts = SegmentationCounts.empty(len(scores[0].confusion) if scores else 2)
    for score in scores:
        counts.confusion += score.confusion
    return summarise_pixels(counts, TOLERANCE_UM)


def of_slides(scores: Sequence[SlideScore]) -> dict[str, dict[str, Any]]:
    """Return what is said of each slide for itself, by its name."""
    return {score.name: _of_slide(score) for score in sorted(scores, key=lambda score: score.name)}


def _of_slide(score: SlideScore) -> dict[str, Any]:
    pixels, result = _pixels([score]), score.result
    targets = [lesion for lesion in result.lesions if not lesion.itc] if result else []
    return {
        "miou": pixels["miou"],
        "dice": pixels["dice"][1],
        "probability": score.probability,
        "tumour": score.tumour,
        "lesions": len(targets),
        "lesions_found": sum(lesion.hit is not None for lesion in targets),
        "false_positives": len(result.false_positives) if result else None,
        "pixels": int(score.confusion.sum()),
    }
