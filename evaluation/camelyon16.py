"""Computes the scores of CAMELYON16: FROC of lesions and AUC of slides, with intervals by bootstrap over slides.

    python -m evaluation.camelyon16 --predictions out/lesions --ground_truth masks --slide_scores out/slides.csv

Predictions are one CSV per slide, `<slide>.csv`, with rows `confidence,X,Y` in level-0 pixels. It is empty for a slide
without detections. `normal_*` slides, and of CAMELYON16's test set those without mask or annotation, are tumour-free.
Writes froc.csv, froc.png, lesions.csv and camelyon16.json. Exit codes: 1 some slides could not be evaluated; 2
something cannot be used.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from evaluation import froc
from evaluation.each import (
    add_bootstrap_options,
    exit_code,
    refuse_nothing,
    refuse_unpaired,
    report_failed,
    spared,
    warn_of_others,
)
from evaluation.froc import Detection, SlideResult, UndefinedScoreError
from evaluation.plots import plot_froc
from evaluation.tables import SLIDE_SUFFIXES, read_detections, read_slide_scores, slide_stem
from evaluation.truth import (
    TRUTH_SUFFIXES,
    find_files,
    find_truth,
    frame_of_detections,
    ignored_at,
    is_mask,
    slide_labels,
    tumour_at,
)
from samplers.labels.label_map import IGNORED, LabelMap
from samplers.labels.options import add_label_options
from samplers.pairs.names import slide_key
from samplers.slides.errors import DataError
from utils.cli import HelpFormatter
from utils.failures import write_failures_to
from utils.files import output_errors

LESION_COLUMNS = (
    *("slide", "lesion", "kind", "diameter_um", "area_um2", "x", "y"),
    *("found", "confidence", "hit_x", "hit_y"),
)
MODES = ("official", "corrected")


def evaluate(
    predictions: dict[str, Path],
    truth: dict[str, Path],
    label_map: LabelMap,
    slides: dict[str, Path],
    failed: dict[str, str],
) -> tuple[list[SlideResult], list[str]]:
    """Return the result of each slide that has a CSV, and warnings. Slides that cannot be used are noted in `failed`.

    DataError: a CSV is wrong, or no slide is left.
    """
    warnings = []
    unpredicted = sorted(set(truth) - set(predictions))
    if unpredicted:
        names = ", ".join(unpredicted)
        warnings.append(
            f"{len(unpredicted)} slides of the ground truth have no CSV and do not count: {names}"
        )
    results = []
    tables = {key: read_detections(path) for key, path in sorted(predictions.items())}
    for key, detections in tqdm(tables.items(), "slides", unit="slide", disable=None):
        with spared(failed, key):
            result, remark = result_of_slide(
                predictions[key], detections, truth.get(key), label_map, slides.get(key)
            )
            results += [result] if result else []
            warnings += [remark] if remark else []
    refuse_nothing(results, failed)
    if not results:
        raise DataError("no slide has a pixel that is known")
    return results, warnings


def result_of_slide(
    path: Path, detections: Sequence[Detection], truth: Path | None, label_map: LabelMap, slide: Path | None
) -> tuple[SlideResult | None, str]:
    """Return the result of a slide, None if nothing on it is known, and a warning or "".

    `path`: its CSV, which has these `detections`. `truth`: its label, None where it has no tumour.
    DataError: the label cannot be used, or it is not known how large the slide is.
    """
    tumour = ignored = frame = None
    if truth is not None:
        frame = frame_of_detections(path, slide)
        tumour = tumour_at(truth, pow(2, froc.LEVEL), label_map, frame)
        if label_map.ignores:
            ignored = ignored_at(truth, pow(2, froc.LEVEL), label_map, frame)
            if ignored.all():
                return None, f"{truth}: no pixel of the slide is known, so it does not count"
    size_known = frame is not None or (truth is not None and is_mask(truth))
    known_beyond = size_known or truth is None or label_map.unannotated != IGNORED
    result = froc.match(path.stem, detections, tumour, ignored, known_beyond)
    if not result.outside or not size_known:
        return result, ""
    return result, (
        f"{path}: {result.outside} of {len(detections)} detections are not on the slide and count as false "
        "positives; are X and Y in level-0 pixels?"
    )


def slide_auc(tumour: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve of slides: bool (n,), float (n,). UndefinedScoreError: one kind only."""
    if tumour.all() or not tumour.any():
        raise UndefinedScoreError("the AUC takes slides with and without tumour")
    return float(roc_auc_score(tumour, scores))


def summarise(
    results: Sequence[SlideResult], scores: tuple[np.ndarray, np.ndarray] | None, samples: int, seed: int
) -> dict[str, Any]:
    """Return all scores as camelyon16.json has them. UndefinedScoreError: no lesion is to be found."""
    lesions = [lesion for result in results for lesion in result.lesions if not lesion.itc]
    summary: dict[str, Any] = {
        "slides": len(results),
        "lesions": len(lesions),
        "lesions_found": sum(lesion.hit is not None for lesion in lesions),
        "itc": sum(lesion.itc for result in results for lesion in result.lesions),
        "false_positives": sum(len(result.false_positives) for result in results),
        "detections_ignored": sum(result.ignored for result in results),
    }
    for mode in MODES:
        corrected = mode == "corrected"

        def of_slides(chosen: np.ndarray, corrected: bool = corrected) -> float:
            return froc.score([results[i] for i in chosen], corrected)

        at_rates = froc.sensitivities(*froc.curve(results, corrected)[:2])
        summary[f"froc_{mode}"] = {
            "score": float(np.mean(at_rates)),
            "interval": froc.bootstrap(of_slides, len(results), samples, seed),
            "sensitivity": {str(rate): float(value) for rate, value in zip(froc.RATES, at_rates)},
        }
    if scores is not None:
        tumour, values = scores
        try:
            auc: float | None = slide_auc(tumour, values)
        except UndefinedScoreError:
            auc = None
        interval = froc.bootstrap(lambda i: slide_auc(tumour[i], values[i]), len(tumour), samples, seed)
        counts = {"tumour": int(tumour.sum()), "normal": int((~tumour).sum())}
        summary["slide_auc"] = {"auc": auc, "interval": interval, **counts}
    return summary


def write(folder: Path, results: Sequence[SlideResult], summary: dict[str, Any]) -> None:
    """Write camelyon16.json, lesions.csv, froc.csv and froc.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "camelyon16.json").write_text(json.dumps(summary, indent=2) + "\n")
    with (folder / "lesions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(LESION_COLUMNS)
        for result in results:
            for lesion in result.lesions:
                size = (f"{lesion.diameter:.1f}", f"{lesion.area:.0f}", f"{lesion.x:.0f}", f"{lesion.y:.0f}")
                hit = lesion.hit or ("", "", "")
                kind = "itc" if lesion.itc else "metastasis"
                table.writerow((result.name, lesion.label, kind, *size, int(lesion.hit is not None), *hit))
    with (folder / "froc.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("mode", "threshold", "false_positives_per_slide", "sensitivity"))
        for mode in MODES:
            false, found, thresholds = froc.curve(results, mode == "corrected")
            table.writerows((mode, *map(float, row)) for row in zip(thresholds, false, found))
    plot_froc(results, summary, folder / "froc.png")


def report(summary: dict[str, Any]) -> str:
    """Return the text that is printed."""
    lines = [
        "{slides} slides, {lesions} lesions ({lesions_found} found), {itc} isolated tumour cells, "
        "{false_positives} false positives".format_map(summary)
    ]
    if summary["detections_ignored"]:
        lines[0] += f", {summary['detections_ignored']} detections where it is not known what the slide shows"
    for mode in MODES:
        part = summary[f"froc_{mode}"]
        at_rates = ", ".join(f"{rate}: {value:.3f}" for rate, value in part["sensitivity"].items())
        lines.append(f"FROC score {part['score']:.4f}{_interval(part)}, {mode} (sensitivity at {at_rates})")
    if "slide_auc" in summary:
        part = summary["slide_auc"]
        kinds = f"{part['tumour']} with tumour, {part['normal']} without"
        value = "undefined" if part["auc"] is None else f"{part['auc']:.4f}"
        lines.append(f"slide AUC {value}{_interval(part)} ({kinds})")
    return "\n".join(lines)


def _interval(part: dict[str, Any]) -> str:
    return " (95 % {:.4f} to {:.4f})".format(*part["interval"]) if part["interval"] else ""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.camelyon16",
        description="Lesion (FROC) and slide (AUC) scores of CAMELYON16.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help="folder of <slide>.csv with rows confidence,X,Y, or the --output of predict.py",
    )
    parser.add_argument(
        "--ground_truth", type=Path, required=True, help="folder of masks, ASAP .xml or .geojson"
    )
    parser.add_argument(
        "--slide_path",
        type=Path,
        help="folder of slides, which tell their sizes and where QuPath's positions begin, if predict.py did not",
    )
    parser.add_argument("--slide_scores", type=Path, help="CSV image,probability, for the AUC of the slides")
    parser.add_argument("--output", type=Path, help="folder for the results (default: <predictions>/scores)")
    add_label_options(parser.add_argument)
    parser.add_argument(
        "--unlabelled",
        choices=("error", "normal"),
        default="error",
        help="what to do with a slide without ground truth: stop, or take it as free of tumour; normal_* are, and "
        "CAMELYON16's test_*",
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="SLIDE",
        help="slides to leave out; usually Test_049 (a duplicate) and Test_114 (partly annotated)",
    )
    add_bootstrap_options(parser.add_argument)
    return parser


def run(options: argparse.Namespace) -> int:
    """Evaluate, write the results, print a summary and return the exit code. UserError: something cannot be used."""
    folder, slide_scores = options.predictions, options.slide_scores
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / "lesions").is_dir():  # all that predict.py writes
        slide_scores = slide_scores or (folder / "slides.csv" if (folder / "slides.csv").exists() else None)
        folder = folder / "lesions"
    left_out = {slide_key(slide_stem(name)) for name in options.exclude}
    predictions = {key: path for key, path in find_files(folder, (".csv",)).items() if key not in left_out}
    if not predictions:
        raise DataError(f"{folder}: no .csv files; one per slide is needed")
    truth = {key: path for key, path in find_truth(options.ground_truth).items() if key not in left_out}
    slides = find_files(options.slide_path, SLIDE_SUFFIXES) if options.slide_path else {}
    label_map = LabelMap.parse(options.label_map, options.unannotated)
    values = read_slide_scores(slide_scores) if slide_scores else {}
    values = {key: value for key, value in values.items() if key not in left_out}
    refuse_unpaired({*predictions, *values}, truth, options.unlabelled)
    warn_of_others(options.ground_truth, find_truth(options.ground_truth), TRUTH_SUFFIXES)
    warn_of_others(options.slide_path, slides, SLIDE_SUFFIXES)
    output = options.output or folder / "scores"
    write_failures_to(output)
    failed: dict[str, str] = {}
    results, warnings = evaluate(predictions, truth, label_map, slides, failed)
    scores = None
    if slide_scores:
        tumour, probabilities, unknown = slide_labels(values, truth, label_map, failed)
        scores = (tumour, probabilities) if len(tumour) else None
        if unknown:
            warnings.append(
                f"{len(unknown)} slides do not count in the AUC, because they show no tumour but have pixels that are "
                f"not known: {', '.join(unknown)}"
            )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    summary = {**summarise(results, scores, options.bootstrap, options.seed), "failed": failed}
    with output_errors(output):
        write(output, results, summary)
    print(f"{report(summary)}\nwritten to {output}")
    return report_failed(failed)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code("evaluation.camelyon16", run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
