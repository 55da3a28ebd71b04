"""Computes pixel metrics of predicted masks: IoU, Dice and distance of outlines, per slide and for all together.

    python -m evaluation.segmentation --predictions out --ground_truth masks

Predictions are `<slide>_prediction.tif`, or masks with the names of the slides. They are read tile by tile and compared
at their own pixels. For all slides together the counts are summed and then divided. Writes segmentation.csv and
segmentation.json. Exit codes: 1 some slides could not be evaluated; 2 something cannot be used.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation import boundary
from evaluation.each import exit_code, pairs_of, refuse_nothing, report_failed, spared, warn_of_others
from evaluation.tables import SLIDE_SUFFIXES
from evaluation.truth import TRUTH_SUFFIXES, checked, find_files, find_truth, is_mask
from samplers.labels.label import MASK_SUFFIXES, open_label
from samplers.labels.label_map import IGNORED, LabelMap, shows_tumour
from samplers.labels.options import add_label_options
from samplers.slides.errors import DataError
from samplers.slides.frame import SlideFrame, described_frame, frame_of_file, mask_scale
from samplers.slides.slide import Slide
from utils.cli import HelpFormatter, UserError, positive_int
from utils.failures import write_failures_to
from utils.files import output_errors

log = logging.getLogger(__name__)

TILE = 2048  # side in pixels of the prediction
TOLERANCE_UM = 10.0  # about a cell, within which two people agree on an outline


@dataclass
class SegmentationCounts:
    """Counts that are summed over tiles and slides."""

    confusion: np.ndarray  # int64 (C, C), rows: ground truth
    outlines: np.ndarray  # int64, from `boundary.distance_counts`

    @classmethod
    def empty(cls, classes: int) -> SegmentationCounts:
        return cls(np.zeros((classes, classes), np.int64), np.zeros((2, boundary.BINS + 1), np.int64))

    def __iadd__(self, other: SegmentationCounts) -> SegmentationCounts:
        self.confusion += other.confusion
        self.outlines += other.outlines
        return self


def tiles(
    width: int, height: int, side: int, margin: int
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Yield (rows, columns) of tiles that cover a picture once, and the same with a margin inside the picture."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            core = slice(top, min(top + side, height)), slice(left, min(left + side, width))
            around = tuple(
                slice(max(part.start - margin, 0), min(part.stop + margin, limit))
                for part, limit in zip(core, (height, width))
            )
            yield core, (around[0], around[1])


def count_slide(
    prediction: Path,
    truth: Path | None,
    slide: Path | None,
    label_map: LabelMap,
    tile: int = TILE,
    outlines: bool = True,
) -> SegmentationCounts:
    """Compare a prediction with the ground truth (None: there is no tumour) at the prediction's pixels.

    Without `outlines` their distances are not counted, which take most of the time. `slide`, or the frame that
    predict.py writes into its TIFFs, says what the positions of annotations refer to.
    DataError: one of the files cannot be used, their sizes do not fit, or neither of the two is there.
    """
    classes = label_map.num_classes
    with ExitStack() as opened:
        mask = opened.enter_context(Slide(prediction, kind="label"))
        size = (mask.width, mask.height)
        frame = _frame(prediction, truth, slide)
        # The pixels of a prediction are classes. With two classes 255 means 1 as well.
        values = LabelMap(tuple((str(v), v) for v in range(classes)) if classes > 2 else LabelMap().groups)
        predicted = opened.enter_context(closing(open_label(prediction, frame, values)))
        true = opened.enter_context(closing(open_label(truth, frame, label_map)))
        checked(true, say=True)
        downsample = mask_scale(mask, frame)
        spacing = frame.spacing * downsample if frame.spacing_known else mask.spacing
        if not (frame.spacing_known or mask.spacing_known):
            log.warning("%s: no spacing is known, distances are of %g µm/px", prediction, spacing)
        counts = SegmentationCounts.empty(classes)
        margin = ceil(boundary.REACH_UM / spacing) + 1 if outlines else 0
        for core, around in tiles(*size, tile, margin):
            rows, columns = around
            corner = (columns.start * downsample, rows.start * downsample)
            extent = (columns.stop - columns.start, rows.stop - rows.start)
            pair = [label.read_at(*corner, *extent, downsample) for label in (true, predicted)]
            inner = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(core, around))
            counts += count_tile(pair[0], pair[1], (inner[0], inner[1]), spacing, classes, outlines)
    return counts


def _frame(prediction: Path, truth: Path | None, slide: Path | None) -> SlideFrame:
    """Return the frame that positions refer to: of the slide, else what a file describes, else of the larger mask.

    DataError: annotations have no frame without one of the first two.
    """
    if slide is not None:
        return frame_of_file(slide)
    own = frame_of_file(prediction, "label")
    if truth is None or described_frame(prediction):
        return own
    if not is_mask(truth):
        raise DataError(
            f"{prediction}: does not say the size and the downsample of its slide, without which it cannot be compared "
            f"with the positions of {truth}: give --slide_path with this slide"
        )
    other = frame_of_file(truth, "label")
    return other if described_frame(truth) or other.width > own.width else own


def count_tile(
    truth: np.ndarray,
    predicted: np.ndarray,
    core: tuple[slice, slice],
    spacing: float,
    classes: int,
    outlines: bool = True,
) -> SegmentationCounts:
    """Count uint8 class values (h, w). Only known pixels inside of `core` count; the margin is for distances."""
    known, tumour, found = truth != IGNORED, shows_tumour(truth), predicted > 0
    pairs = (truth[core].astype(np.int64) * classes + predicted[core])[known[core]]
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    if not outlines or (not tumour.any() and not found.any()):
        return SegmentationCounts(confusion, np.zeros((2, boundary.BINS + 1), np.int64))
    return SegmentationCounts(confusion, boundary.distance_counts(tumour, found, core, spacing, known))


def summarise(counts: SegmentationCounts, tolerance: float) -> dict[str, Any]:
    """Return mean IoU, IoU and Dice per class, and boundary metrics; None for what does not occur."""
    hits = np.diag(counts.confusion).astype(float)
    sums = (counts.confusion.sum(axis=0) + counts.confusion.sum(axis=1)).astype(float)
    with np.errstate(invalid="ignore"):
        iou, dice = hits / (sums - hits), 2 * hits / sums
    return {
        "miou": None if np.isnan(iou).all() else float(np.nanmean(iou)),
        "iou": [None if np.isnan(value) else float(value) for value in iou],
        "dice": [None if np.isnan(value) else float(value) for value in dice],
        **boundary.summarise(counts.outlines, tolerance),
    }


def report(slides: dict[str, dict[str, Any]]) -> str:
    """Return the text that is printed: one line per slide and one for all, with the Dice of tumour."""
    names = ("miou", "dice", "boundary_f1", "boundary_mean_um", "boundary_p95_um")
    width = max(map(len, slides))
    lines = [" " * width + "".join(f"{name.removeprefix('boundary_'):>10}" for name in names)]
    for slide, values in slides.items():
        tumour = [value for value in values["dice"][1:] if value is not None]
        dice = float(np.mean(tumour)) if tumour else None
        row = [dice if name == "dice" else values[name] for name in names]
        cells = "".join(f"{'-' if value is None else format(value, '.4f'):>10}" for value in row)
        lines.append(f"{slide:<{width}}{cells}")
    return "\n".join(lines)


def write(
    folder: Path,
    slides: dict[str, dict[str, Any]],
    counts: dict[str, SegmentationCounts],
    tolerance: float,
    failed: dict[str, str],
) -> None:
    """Write segmentation.json and segmentation.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    confusion = {name: counts[name].confusion.tolist() for name in slides}
    found = {"tolerance_um": tolerance, "slides": slides, "confusion": confusion, "failed": failed}
    (folder / "segmentation.json").write_text(json.dumps(found, indent=2) + "\n")
    with (folder / "segmentation.csv").open("w", newline="") as file:
        table = csv.writer(file)
        classes = range(len(next(iter(slides.values()))["iou"]))
        scalars = [name for name in next(iter(slides.values())) if name not in ("iou", "dice")]
        table.writerow(["slide", *scalars, *(f"{kind}_{c}" for kind in ("iou", "dice") for c in classes)])
        for slide, values in slides.items():
            table.writerow([slide, *(values[name] for name in scalars), *values["iou"], *values["dice"]])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.segmentation",
        description="IoU, Dice and distance of outlines, streamed by tiles.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--predictions", type=Path, required=True, help="folder of <slide>_prediction.tif or masks"
    )
    parser.add_argument(
        "--ground_truth", type=Path, required=True, help="folder of masks, ASAP .xml or .geojson"
    )
    parser.add_argument(
        "--slide_path",
        type=Path,
        help="folder of slides, needed for annotations if the predictions are not of predict.py",
    )
    parser.add_argument("--output", type=Path, help="folder for the results (default: <predictions>/scores)")
    add_label_options(parser.add_argument)
    parser.add_argument(
        "--unlabelled",
        choices=("skip", "normal", "error"),
        default="skip",
        help="what to do with a prediction without ground truth, as in train.py; normal_* are tumour-free",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE_UM,
        metavar="UM",
        help="tolerance of the boundary F1 in µm",
    )
    parser.add_argument(
        "--tile", type=positive_int, default=TILE, help="side in pixels of the tiles that are read at once"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Evaluate, write the results, print a summary and return the exit code. UserError: something cannot be used."""
    if not 0 <= options.tolerance < boundary.REACH_UM:
        raise UserError(f"--tolerance must be at least 0 and less than {boundary.REACH_UM:g}")
    label_map = LabelMap.parse(options.label_map, options.unannotated)
    folder = options.predictions
    predictions = find_files(folder, MASK_SUFFIXES, "_prediction") or find_files(folder, MASK_SUFFIXES)
    if not predictions:
        raise DataError(f"{folder}: no *_prediction.tif and no other masks in it")
    slides = find_files(options.slide_path, SLIDE_SUFFIXES) if options.slide_path else {}
    truths = find_truth(options.ground_truth)
    pairs, messages = pairs_of(predictions, truths, options.unlabelled)
    warn_of_others(options.ground_truth, truths, TRUTH_SUFFIXES)
    warn_of_others(options.slide_path, slides, SLIDE_SUFFIXES)
    output = options.output or folder / "scores"
    write_failures_to(output)
    failed: dict[str, str] = {}
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)
    for key, (prediction, truth) in pairs.items():  # all of them before the first is read
        with spared(failed, key):
            _frame(prediction, truth, slides.get(key))
    counts = {}
    pooled = SegmentationCounts.empty(label_map.num_classes)
    usable = {key: pair for key, pair in pairs.items() if key not in failed}
    for key, (prediction, truth) in tqdm(usable.items(), "slides", unit="slide", disable=None):
        with spared(failed, key):
            counts[key] = count_slide(prediction, truth, slides.get(key), label_map, options.tile)
            pooled += counts[key]
            if not counts[key].confusion.any():
                log.warning("%s: no pixel of the slide is known, so it does not count", truth)
    refuse_nothing(counts, failed)
    counts["all slides"] = pooled
    results = {name: summarise(count, options.tolerance) for name, count in counts.items()}
    with output_errors(output):
        write(output, results, counts, options.tolerance, failed)
    print(f"{report(results)}\nwritten to {output}")
    return report_failed(failed)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code("evaluation.segmentation", run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
