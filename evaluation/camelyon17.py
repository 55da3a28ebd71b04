"""Computes the score of CAMELYON17: Cohen's kappa with quadratic weights of patients' pN stages.

    python -m evaluation.camelyon17 --predictions submission.csv --ground_truth stage_labels.csv

Predictions are a CSV `patient,stage` with rows `patient_100.zip,pN1` and `patient_100_node_0.tif,macro`, whose stages
are derived from the nodes if it has only these. They may also be a folder of `<slide>_probability.tif`, from which the
nodes' labels are derived as well. A node whose label is `unknown` is not taken as negative. Writes submission.csv,
confusion.csv and camelyon17.json. Exit codes: 1 some slides could not be evaluated; 2 something cannot be used.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score, confusion_matrix
from tqdm import tqdm

from evaluation import lesions
from evaluation.each import add_bootstrap_options, exit_code, refuse_nothing, report_failed, spared
from evaluation.froc import UndefinedScoreError, bootstrap
from evaluation.lesions import NODE_LABELS, find_lesions, node_label
from evaluation.staging import SPELLING, STAGES, UNKNOWN, read_stages, stages_of_nodes
from evaluation.tables import slide_stem
from evaluation.truth import find_files
from samplers.pairs.names import slide_key
from samplers.slides.errors import DataError
from samplers.slides.frame import described_frame
from samplers.slides.slide import Slide
from utils.cli import HelpFormatter, UserError
from utils.failures import write_failures_to
from utils.files import output_errors

log = logging.getLogger(__name__)

NODES_PER_PATIENT = 5
_MAP_UM = 8.0  # µm/px at which lesions are measured: CAMELYON's level 5
_PROBABILITY = "_probability"


def nodes_of_maps(
    folder: Path,
    threshold: float,
    merge: float,
    min_diameter: float,
    failed: dict[str, str],
    left_out: Collection[str],
) -> dict[str, str]:
    """Return the node label of each `<slide>_probability.tif` in a folder. Shows a progress bar.

    `left_out` are keys of slides. Those that cannot be used are noted in `failed`, by slide. DataError: there are none.
    """
    paths = find_files(folder, (".tif",), _PROBABILITY)
    paths = {key: path for key, path in paths.items() if key.removesuffix(_PROBABILITY) not in left_out}
    if not paths:
        raise DataError(f"{folder}: no *{_PROBABILITY}.tif in it")
    nodes = {}
    for key, path in tqdm(paths.items(), "slides", unit="slide", disable=None):
        node = key.removesuffix(_PROBABILITY)
        with spared(failed, node):
            pixels, spacing = _map_of(path)
            found, _ = find_lesions(
                pixels, spacing, threshold=threshold, merge=merge, min_diameter=min_diameter
            )
            largest = max((lesion.diameter for lesion in found), default=0.0)
            nodes[node] = node_label(largest / 1000)
    refuse_nothing(nodes, failed)
    return nodes


def _map_of(path: Path) -> tuple[np.ndarray, float]:
    """Return the probabilities of a slide at about _MAP_UM and their spacing in µm/px.

    DataError: the file does not say its spacing, without which nothing can be measured.
    """
    said = described_frame(path)
    with Slide(path, kind="label") as slide:
        if not slide.spacing_known:
            raise DataError(f"{path}: does not say its spacing, so lesions cannot be measured")
        finest = slide.spacing
        if said and said[0].spacing_known:  # exactly; the TIFF's resolution is rounded
            finest = said[0].spacing * said[1]
        elif said:
            log.warning("%s: its slide does not say its spacing, %g µm/px was assumed", path, finest)
        level = slide.level_at_least(_MAP_UM / finest)
        return slide.read_level(0, 0, *slide.level_sizes[level], level), finest * slide.downsamples[level]


def pairs_of(truth: Mapping[str, str], predicted: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the true and the predicted stages of the ground truth's patients. DataError: a patient is missing."""
    missing = sorted(set(truth) - set(predicted))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(truth)} patients are not in the predictions: {', '.join(missing)}"
        )
    if not truth:
        raise DataError("the ground truth has no patients (rows that end in .zip)")
    return list(truth.values()), [predicted[patient] for patient in truth]


def kappa(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return Cohen's kappa with quadratic weights over STAGES, or NaN if all patients have the same stage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0
        return float(cohen_kappa_score(truth, predicted, labels=STAGES, weights="quadratic"))


def summarise(truth: Sequence[str], predicted: Sequence[str], samples: int, seed: int) -> dict[str, Any]:
    """Return kappa, its interval by bootstrap over patients, and the confusion matrix (rows: ground truth)."""

    def of_patients(chosen: np.ndarray) -> float:
        value = kappa([truth[i] for i in chosen], [predicted[i] for i in chosen])
        if math.isnan(value):
            raise UndefinedScoreError("one stage only")
        return value

    value = kappa(truth, predicted)
    return {
        "patients": len(truth),
        "kappa": None if math.isnan(value) else value,
        "interval": bootstrap(of_patients, len(truth), samples, seed),
        "stages": [SPELLING[stage] for stage in STAGES],
        "confusion": confusion_matrix(truth, predicted, labels=STAGES).tolist(),
    }


def compare_nodes(truth: Mapping[str, str], predicted: Mapping[str, str]) -> dict[str, Any] | None:
    """Return accuracy and confusion matrix of the nodes that are known in both, or None if there are none."""
    both = [node for node in truth if node in predicted and UNKNOWN not in (truth[node], predicted[node])]
    if not both:
        return None
    labels = [truth[node] for node in both], [predicted[node] for node in both]
    matrix = confusion_matrix(*labels, labels=NODE_LABELS)
    return {
        "nodes": len(both),
        "accuracy": float(np.trace(matrix) / matrix.sum()),
        "labels": list(NODE_LABELS),
        "confusion": matrix.tolist(),
    }


def write(folder: Path, stages: Mapping[str, str], nodes: Mapping[str, str], summary: dict[str, Any]) -> None:
    """Write submission.csv as the challenge wants it, confusion.csv and camelyon17.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "camelyon17.json").write_text(json.dumps(summary, indent=2) + "\n")
    with (folder / "submission.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("patient", "stage"))
        for patient, stage in sorted(stages.items()):
            table.writerow((f"{patient}.zip", SPELLING[stage]))
            of_patient = [node for node in sorted(nodes) if node.partition("_node_")[0] == patient]
            table.writerows((f"{node}.tif", nodes[node]) for node in of_patient)
    with (folder / "confusion.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("ground_truth", *summary["stages"]))
        table.writerows((stage, *row) for stage, row in zip(summary["stages"], summary["confusion"]))


def report(summary: dict[str, Any]) -> str:
    """Return the text that is printed."""
    interval = summary["interval"]
    value = "undefined (one stage only)" if summary["kappa"] is None else f"{summary['kappa']:.4f}"
    around = f" (95 % {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    lines = [f"{summary['patients']} patients, quadratic weighted kappa {value}{around}"]
    lines += _matrix(summary["stages"], summary["confusion"])
    if summary["nodes"]:
        lines.append(f"{summary['nodes']['nodes']} nodes, accuracy {summary['nodes']['accuracy']:.4f}")
        lines += _matrix(summary["nodes"]["labels"], summary["nodes"]["confusion"])
    return "\n".join(lines)


def _matrix(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[str]:
    head = "truth \\ predicted" + "".join(f"{name:>10}" for name in names)
    return [head, *(f"{name:>17}" + "".join(f"{n:>10}" for n in row) for name, row in zip(names, matrix))]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.camelyon17",
        description="Stage score (quadratic weighted kappa) of CAMELYON17.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help="CSV patient,stage, or a folder of <slide>_probability.tif",
    )
    parser.add_argument(
        "--ground_truth", type=Path, required=True, help="CSV patient,stage (stage_labels.csv)"
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the results (default: scores beside the predictions)"
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="SLIDE",
        help="slides to leave out; without one of its nodes the stage of a patient is not known, so it is left out too",
    )
    add_bootstrap_options(parser.add_argument)
    group = parser.add_argument_group("from probabilities to node labels, for a folder of these only")
    group.add_argument(
        "--threshold",
        type=float,
        help=f"probability from which on a pixel is tumour (default: {lesions.THRESHOLD})",
    )
    group.add_argument(
        "--merge_distance",
        type=float,
        metavar="UM",
        help="distance in µm below which areas are one lesion; CAMELYON16 merges its ground truth by 75 (default: "
        f"{lesions.MERGE_UM})",
    )
    group.add_argument(
        "--min_diameter",
        type=float,
        metavar="UM",
        help="longest diameter in µm that a lesion must have; 75 are five tumour cells (default: "
        f"{lesions.MIN_DIAMETER_UM})",
    )
    return parser


def measures_of(options: argparse.Namespace) -> tuple[float, float, float]:
    """Return threshold, merge distance and minimum diameter. UserError: one is wrong, or would do nothing."""
    names = ("threshold", "merge_distance", "min_diameter")
    given = [f"--{name}" for name in names if getattr(options, name) is not None]
    if given and not options.predictions.is_dir():
        raise UserError(
            f"{', '.join(given)}: only for a folder of *{_PROBABILITY}.tif, but --predictions {options.predictions} is "
            "none; a CSV has the labels of the nodes already"
        )
    defaults = (lesions.THRESHOLD, lesions.MERGE_UM, lesions.MIN_DIAMETER_UM)
    values = [
        default if getattr(options, name) is None else getattr(options, name)
        for name, default in zip(names, defaults)
    ]
    if not 0 < values[0] <= 1 or values[1] < 0 or values[2] < 0:
        raise UserError("--threshold must be above 0 and at most 1, and the distances must not be negative")
    return values[0], values[1], values[2]


def derived_stages(nodes: Mapping[str, str], true_nodes: Mapping[str, str]) -> dict[str, str]:
    """Return the stages of the nodes' patients, and print what is odd about them.

    DataError: the ground truth has nodes of these patients that were not predicted. They are not negative for that.
    """
    counts = Counter(patient_of_node(node) for node in nodes)
    lacking = sorted(n for n in true_nodes if patient_of_node(n) in counts and n not in nodes)
    if lacking:
        raise DataError(
            f"{len(lacking)} nodes of the ground truth are not in the predictions: {', '.join(lacking)}"
        )
    stages = stages_of_nodes(nodes)
    unstaged = sorted(set(counts) - set(stages))
    if unstaged:
        log.warning("patients whose stage depends on a node that is unknown: %s", ", ".join(unstaged))
    odd = [f"{patient} ({count})" for patient, count in sorted(counts.items()) if count != NODES_PER_PATIENT]
    if odd:
        log.warning("patients without exactly %d nodes: %s", NODES_PER_PATIENT, ", ".join(odd))
    return stages


def score(
    predictions: Path,
    ground_truth: Path,
    measures: tuple[float, float, float],
    samples: int,
    seed: int,
    failed: dict[str, str],
    left_out: Collection[str],
    patients: Collection[str] | None = None,
) -> tuple[Mapping[str, str], Mapping[str, str], dict[str, Any]]:
    """Return the predicted stages of patients and labels of nodes, and what camelyon17.json says of them.

    `predictions`, `ground_truth`: as the options; `measures` are threshold, merge distance and minimum diameter in µm.
    Slides that cannot be used are noted in `failed`; neither they nor those `left_out` count, nor their patients. With
    `patients` only these count of the ground truth, which may have those of other slides.
    DataError: stages and predictions do not belong together.
    """
    true_stages, true_nodes = read_stages(ground_truth)
    if patients is not None:
        true_stages = {patient: stage for patient, stage in true_stages.items() if patient in patients}
        true_nodes = {node: label for node, label in true_nodes.items() if patient_of_node(node) in patients}
    of_maps = predictions.is_dir()
    stages, nodes = (
        ({}, nodes_of_maps(predictions, *measures, failed, left_out)) if of_maps else read_stages(predictions)
    )
    # Without one of its nodes the stage of a patient is not known.
    for patient in {patient_of_node(node) for node in (*failed, *left_out)}:
        true_stages.pop(patient, None)
        true_nodes = {node: label for node, label in true_nodes.items() if patient_of_node(node) != patient}
        nodes = {node: label for node, label in nodes.items() if patient_of_node(node) != patient}
    if not stages:
        stages = derived_stages(nodes, true_nodes)
    summary = summarise(*pairs_of(true_stages, stages), samples, seed)
    return stages, nodes, {**summary, "nodes": compare_nodes(true_nodes, nodes), "failed": failed}


def run(options: argparse.Namespace) -> int:
    """Evaluate, write the results, print a summary and return the exit code. UserError: something cannot be used."""
    path, measures = options.predictions, measures_of(options)
    failed: dict[str, str] = {}
    output = options.output or (path if path.is_dir() else path.parent) / "scores"
    write_failures_to(output)
    left_out = {slide_key(slide_stem(name)) for name in options.exclude}
    stages, nodes, summary = score(
        path, options.ground_truth, measures, options.bootstrap, options.seed, failed, left_out
    )
    with output_errors(output):
        write(output, stages, nodes, summary)
    print(f"{report(summary)}\nwritten to {output}")
    return report_failed(failed)


def patient_of_node(node: str) -> str:
    """Return `patient_100` of `patient_100_node_0`."""
    return node.partition("_node_")[0]


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code("evaluation.camelyon17", run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
