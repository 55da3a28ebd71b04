"""Makes the table of a paper, models × datasets, from slides: predicts what is not predicted yet, scores, and prints.

    python -m evaluation.table --file paper.toml --output paper
    NP=4 python -m evaluation.table --file paper.toml --output paper -- --batch_size 4 --tta

`evaluation/table_file.py` says what is in the file. Datasets of the same slides share the predictions, so corrected
labels stand beside those before. The scores are those of `evaluation.camelyon16`, `.segmentation` and `.camelyon17`,
their intervals by bootstrap over patients where the names say whose a slide is, else over slides. Writes table.md,
table.tex, table.csv and table.json. It can be stopped and run again. Exit codes: 0 done; 1 some slides could not be
used, the scores are of all others; 2 something cannot be used.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation import camelyon17, lesions
from evaluation.each import (
    add_bootstrap_options,
    exit_code,
    refuse_nothing,
    refuse_unpaired,
    report_failed,
    spared,
)
from evaluation.table_file import TableDataset, TableModel, read_table_file
from evaluation.table_text import latex, markdown
from evaluation.tables import read_slide_scores
from evaluation.truth import find_truth
from evaluation.whole_slides import HEADLINES, SlideScore, headlines, intervals, score_slide
from prediction.find import find_slides
from samplers.labels.label_map import LabelMap
from samplers.pairs.names import patient_of, slide_key
from samplers.slides.errors import DataError
from samplers.slides.stored_slide import slide_name, state_of
from utils.cli import (
    EXIT_DONE,
    EXIT_FAILED,
    HelpFormatter,
    UserError,
    positive_int,
)
from utils.failures import write_failures_to
from utils.files import output_errors, write_atomically

ROOT = Path(__file__).resolve().parent.parent
SCORES = {**HEADLINES, "kappa": "kappa"}
# Of a model and a dataset: "scores" and "intervals" by SCORES, "slides", "patients", "failed".
Cell = dict[str, Any]


def predict(model: TableModel, slides: Sequence[str], output: Path, words: Sequence[str]) -> None:
    """Run predict.py, or with NP in the environment run_predict.sh; it does nothing for slides that are finished.

    UserError: it ended with another code than those of slides that are done or left out.
    """
    launcher = (
        ["sh", ROOT / "run_predict.sh"] if "NP" in os.environ else [sys.executable, ROOT / "predict.py"]
    )
    command = [
        *(*launcher, "--model_path", *model.paths, "--slide_path", *slides),
        *("--output", output, *words),
    ]
    code = subprocess.run([*map(str, command)], check=False).returncode
    if code not in (EXIT_DONE, EXIT_FAILED):
        raise UserError(f"predict.py ended with code {code} on model {model.name!r}: see above")
    if not (output / "slides.csv").exists():
        raise UserError(f"predict.py could not use any slide with model {model.name!r}: see above")


def score(predictions: Path, dataset: TableDataset, options: argparse.Namespace) -> Cell:
    """Return the scores of the predictions of a dataset's slides.

    A slide that cannot be used is noted in "failed", with the reason. DataError: slides and labels do not belong
    together, or no slide can be used.
    """
    slides = {slide_key(slide_name(path)): path for path in find_slides([*dataset.slides])[0]}
    slides = {key: path for key, path in sorted(slides.items()) if key not in dataset.exclude}
    truth = {key: path for key, path in find_truth(dataset.labels).items() if key not in dataset.exclude}
    refuse_unpaired(slides, truth, dataset.unlabelled)
    values = read_slide_scores(predictions / "slides.csv")
    key = _key(predictions, dataset, slides, truth, options)
    kept = options.output / "cells" / predictions.parent.name / f"{dataset.folder}.json"
    if (cell := _kept(kept, key)) is not None:
        return cell
    failed: dict[str, str] = {}
    found = _score_slides(predictions, slides, truth, values, dataset.label_map, options.processes, failed)
    refuse_nothing(found, failed)
    members: dict[str, list[SlideScore]] = defaultdict(list)
    for one in found:
        members[patient_of(one.name, dataset.patients) or f"slide {one.name}"].append(one)
    groups = [*members.values()]
    cell = {
        "key": key,
        "slides": len(found),
        "patients": len(groups),
        "scores": headlines(found),
        "intervals": intervals(groups, options.bootstrap, options.seed),
        "failed": failed,
    }
    if dataset.stages:
        measures = (lesions.THRESHOLD, lesions.MERGE_UM, lesions.MIN_DIAMETER_UM)
        common = (measures, options.bootstrap, options.seed)
        patients = {camelyon17.patient_of_node(name) for name in slides}
        _, _, kappa = camelyon17.score(
            predictions, dataset.stages, *common, failed, dataset.exclude, patients
        )
        cell["scores"]["kappa"], cell["intervals"]["kappa"] = kappa["kappa"], kappa["interval"]
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, lambda path: path.write_text(json.dumps(cell, indent=2) + "\n"))
    return cell


def _score_slides(
    predictions: Path,
    slides: dict[str, Path],
    truth: dict[str, Path],
    values: dict[str, float],
    label_map: LabelMap,
    processes: int | None,
    failed: dict[str, str],
) -> list[SlideScore]:
    context, cores = get_context("forkserver"), len(os.sched_getaffinity(0))
    # Its imports take seconds, once for all workers.
    context.set_forkserver_preload(["evaluation.whole_slides"])
    found = []
    with ProcessPoolExecutor(min(processes or cores, len(slides)), mp_context=context) as pool:
        running = {
            key: pool.submit(
                score_slide, predictions, slide_name(path), values[key], path, truth.get(key), label_map
            )
            for key, path in slides.items()
            if key in values
        }
        for key in tqdm(slides, "scoring", unit="slide", disable=None):
            with spared(failed, key):
                if key not in running:
                    raise DataError("predict.py could not use it")
                found.append(running[key].result())
    return found


def _key(
    predictions: Path,
    dataset: TableDataset,
    slides: dict[str, Path],
    truth: dict[str, Path],
    options: argparse.Namespace,
) -> str:
    """Return what stands for all that a cell depends on: the files, the predictions, and the options."""
    files = [*slides.values(), *truth.values(), *([dataset.stages] if dataset.stages else [])]
    state = [(str(path), *state_of(path)) for path in files]
    # Written each time; what it says of a slide, with the seconds, changes when that is predicted anew.
    predicted = (predictions / "slides.csv").read_bytes()
    what = (
        *(state, predicted, dataset.unlabelled, dataset.label_map, sorted(dataset.exclude), dataset.patients),
        *(options.bootstrap, options.seed),
    )
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _kept(path: Path, key: str) -> Cell | None:
    """Return the cell of an earlier run if it is of the same files and options and all of its slides could be used."""
    try:
        cell = json.loads(path.read_text())
        return cell if cell["key"] == key and not cell["failed"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(output: Path, cells: dict[tuple[str, str], Cell], order: Sequence[tuple[str, str]]) -> str:
    """Write the table in all its forms, and return it as Markdown."""
    text = markdown(cells, order, SCORES)

    def write_csv(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("dataset", "model", "slides", "patients", "score", "value", "from", "to"))
            for dataset, model in order:
                cell = cells[dataset, model]
                for name, value in cell["scores"].items():
                    ends = cell["intervals"].get(name) or ("", "")
                    shown = "" if value is None else value
                    table.writerow((dataset, model, cell["slides"], cell["patients"], name, shown, *ends))

    listed = [{"dataset": dataset, "model": model, **cells[dataset, model]} for dataset, model in order]
    write_atomically(output / "table.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    tex = latex(cells, order, SCORES)
    write_atomically(output / "table.tex", lambda path: path.write_text(tex + "\n", encoding="utf-8"))
    write_atomically(output / "table.csv", write_csv)
    write_atomically(output / "table.json", lambda path: path.write_text(json.dumps(listed, indent=2) + "\n"))
    return text


def rows_in_order(models: Sequence[TableModel], datasets: Sequence[TableDataset]) -> list[tuple[str, str]]:
    """Return dataset and model of each row: datasets of the same slides stand beside each other for each model."""
    by_slides: dict[tuple[str, ...], list[TableDataset]] = defaultdict(list)
    for dataset in datasets:
        by_slides[dataset.slides].append(dataset)
    return [(one.name, model.name) for same in by_slides.values() for model in models for one in same]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.table",
        description="The table of a paper: models × datasets, with an interval of each score. What follows a -- goes "
        "to predict.py, for all models alike.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add(
        "--file",
        type=Path,
        required=True,
        help="TOML file with the models and the datasets; see docs/evaluation.md",
    )
    add("--output", type=Path, required=True, help="folder for the predictions and the table")
    add(
        "--processes",
        type=positive_int,
        help="number of slides that are scored at once; default: one per core",
    )
    add_bootstrap_options(add)
    return parser


def run(options: argparse.Namespace) -> int:
    """Predict, score, write, print the table and return the exit code. UserError: something cannot be used."""
    models, datasets = read_table_file(options.file)
    for dataset in datasets:  # all of them before hours of prediction
        find_slides([*dataset.slides])
        find_truth(dataset.labels)
        if dataset.stages:
            camelyon17.read_stages(dataset.stages)
    with output_errors(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    write_failures_to(options.output)
    first_of = {dataset.slides: dataset for dataset in reversed(datasets)}
    cells, failed = {}, {}
    for model in models:
        for slides, first in reversed(first_of.items()):
            folder = options.output / "predictions" / model.folder / first.folder
            print(f"{model.name}: slides of {first.name}", flush=True)
            predict(model, slides, folder, options.words)
            for dataset in datasets:
                if dataset.slides == slides:
                    with output_errors(options.output):
                        cell = score(folder, dataset, options)
                    cells[dataset.name, model.name] = cell
                    for slide, reason in cell["failed"].items():
                        failed[f"{slide} ({dataset.name}, {model.name})"] = reason
    with output_errors(options.output):
        text = write(options.output, cells, rows_in_order(models, datasets))
    print(f"{text}\n\nwritten to {options.output}/table.md, .tex, .csv and .json")
    return report_failed(failed)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    own = words[: words.index("--")] if "--" in words else words
    options = build_parser().parse_args(own)
    options.words = words[len(own) + 1 :]
    return exit_code("evaluation.table", run, options)


if __name__ == "__main__":
    sys.exit(main())
