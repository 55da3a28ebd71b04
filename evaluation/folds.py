"""Puts the folds of a cross-validation together: one table with mean, deviation and intervals, and one report.

    python -m evaluation.folds --log_dir logs/cv

`logs/cv/fold_1`, `fold_2`, … are runs of train.py with --folds, and their `predictions` what predict.py wrote of the
slides that each of them was validated on, as run_folds.sh makes them. Each slide counts once, as predicted by the model
that has not seen it. Writes folds.json, folds.csv and folds.html into the --log_dir. Exit codes: 1 some slides could
not be evaluated; 2 something cannot be used, or a fold is not finished.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from evaluation.each import add_bootstrap_options, exit_code, refuse_nothing, report_failed, spared
from evaluation.tables import read_slide_scores
from evaluation.whole_slides import HEADLINES, SlideScore, headlines, intervals, of_slides, score_slide
from samplers.labels.label_map import LabelMap
from samplers.pairs.camelyon import center_of
from samplers.pairs.names import patient_pattern, slide_key
from samplers.pairs.pairing import SlidePair, map_of
from samplers.pairs.split import group_of
from samplers.slides.errors import DataError
from utils.cli import EXIT_DONE, HelpFormatter, UserError
from utils.failures import write_failures_to
from utils.files import output_errors, write_atomically
from utils.reporting.page import interval, number, table, write_page

PREDICTIONS = "predictions"  # in the folder of a fold


class Fold(NamedTuple):
    """A run of the cross-validation."""

    number: int
    folder: Path
    options: dict[str, Any]
    pairs: list[SlidePair]  # that it was validated on


class Unfinished(UserError):  # noqa: N818
    """Folds are still to be trained or predicted."""


def read_folds(log_dir: Path) -> list[Fold]:
    """Return all folds, by number. Unfinished: some are missing. DataError: they do not belong together."""
    found = {}
    for path in sorted(log_dir.glob("fold_*/options.json")):
        folder = path.parent
        try:
            options = json.loads(path.read_text())
            if options.get("folds") is None:
                raise DataError(f"{folder} is a run without --folds")
            rows = json.loads((folder / "splits.json").read_text())["val"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is no whole run: {error!r}") from error
        pairs = [
            SlidePair(
                Path(row["slide"]), row["label"] and Path(row["label"]), row.get("partly_annotated", False)
            )
            for row in rows
        ]
        found[options["fold"]] = Fold(options["fold"], folder, options, pairs)
    if not found:
        raise DataError(
            f"{log_dir} holds no runs with --folds (fold_1, fold_2, …): sh run_folds.sh makes them"
        )
    folds = [found[key] for key in sorted(found)]
    _refuse_strangers(folds)
    missing = sorted({*range(1, folds[0].options["folds"] + 1)} - {*found})
    if missing:
        raise Unfinished(
            f"{log_dir}: fold {', '.join(map(str, missing))} of {folds[0].options['folds']} is missing"
        )
    return folds


def _refuse_strangers(folds: Sequence[Fold]) -> None:
    for name in ("folds", "folds_by", "seed", "patient_pattern", "label_map", "unannotated"):
        values = {json.dumps(fold.options.get(name)) for fold in folds}
        if len(values) > 1:
            raise DataError(f"the folds were trained with different --{name}: {', '.join(sorted(values))}")
    seen: dict[Path, int] = {}
    for fold in folds:
        for pair in fold.pairs:
            if seen.setdefault(pair.slide, fold.number) != fold.number:
                raise DataError(f"{pair.slide} is in folds {seen[pair.slide]} and {fold.number}")


def score_fold(fold: Fold, failed: dict[str, str]) -> list[SlideScore]:
    """Return the score of each slide of a fold; bad ones are noted in `failed`. Unfinished: they are not predicted."""
    folder = fold.folder / PREDICTIONS
    if not (folder / "slides.csv").exists():  # predict.py writes it last
        raise Unfinished(
            f"the slides of fold {fold.number} are not predicted: there is no {folder / 'slides.csv'}"
        )
    values = read_slide_scores(folder / "slides.csv")
    label_map = label_map_of(fold)
    scores = []
    for pair in tqdm(fold.pairs, f"fold {fold.number}", unit="slide", disable=None):
        with spared(failed, pair.name):
            probability, of_pair = values.get(slide_key(pair.name)), map_of(pair, label_map)
            if probability is None:
                raise DataError("predict.py could not use it")
            scores.append(score_slide(folder, pair.name, probability, pair.slide, pair.label, of_pair))
    return scores


def label_map_of(fold: Fold) -> LabelMap:
    return LabelMap.parse(fold.options["label_map"], fold.options["unannotated"])


def groups_of(folds: Sequence[Fold]) -> dict[str, str]:
    """Return the patient (or centre, with --folds_by center) of each slide, by its name."""
    options = folds[0].options
    pattern = options.get("patient_pattern") and patient_pattern(options["patient_pattern"])

    def group(pair: SlidePair) -> str:
        return str(center_of(pair.slide)) if options["folds_by"] == "center" else group_of(pair, pattern)

    return {pair.name: group(pair) for fold in folds for pair in fold.pairs}


def summarise(
    scores: dict[int, list[SlideScore]], groups: dict[str, str], samples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return of each of HEADLINES its value by fold, their mean and deviation, that of all slides, and its interval.

    scores: by fold. The mean and the standard deviation (of a sample) are over the folds that have the score. The
    interval (95 %) is that of all slides together, by drawing as many patients with replacement, with all their slides.
    """
    everything = [score for some in scores.values() for score in some]
    by_group: dict[str, list[SlideScore]] = defaultdict(list)
    for score in everything:
        by_group[groups[score.name]].append(score)
    members = [by_group[name] for name in sorted(by_group)]
    by_fold = {fold: headlines(some) for fold, some in scores.items()}
    together, of_patients = headlines(everything), intervals(members, samples, seed)
    found: dict[str, dict[str, Any]] = {}
    for name in HEADLINES:
        values = [by_fold[fold][name] for fold in by_fold]
        known = [value for value in values if value is not None]
        found[name] = {
            "folds": values,
            "mean": float(np.mean(known)) if known else None,
            "deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
            "all": together[name],
            "interval": of_patients.get(name),
        }
    return found


def rows_of(summary: dict[str, dict[str, Any]], numbers: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table."""
    head = ["score", *(f"fold {n}" for n in numbers), "mean", "deviation", "all slides", "95 % interval"]
    rows = []
    for name, title in HEADLINES.items():
        part = summary[name]
        shown = (*part["folds"], part["mean"], part["deviation"], part["all"])
        rows.append([title, *map(number, shown), interval(part["interval"])])
    return head, rows


def text_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as Markdown, aligned so that it can be read on a terminal as well."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def write(
    log_dir: Path, folds: Sequence[Fold], scores: dict[int, list[SlideScore]], summary: dict[str, Any],
    failed: dict[str, str], samples: int,
) -> None:  # fmt: skip
    """Write folds.json, folds.csv (the slides) and folds.html."""
    found = {
        "scores": summary,
        "slides": {fold.number: [pair.name for pair in fold.pairs] for fold in folds},
        "failed": failed,
        "bootstrap": samples,
    }
    text = json.dumps(found, indent=2) + "\n"
    write_atomically(log_dir / "folds.json", lambda path: path.write_text(text))
    lines = slides_of(scores)

    def write_csv(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)

    write_atomically(log_dir / "folds.csv", write_csv)
    head, rows = rows_of(summary, [fold.number for fold in folds])
    by = "centre" if folds[0].options["folds_by"] == "center" else "patient"
    links = "".join(
        f'<li><a href="{html.escape(fold.folder.name)}/report.html">fold {fold.number}</a>: '
        f"{len(fold.pairs)} slides for validation</li>"
        for fold in folds
    )
    parts = [
        f"<p>Each slide counts once, as predicted by the model that has not seen it. No {by} is in two folds. "
        f"Intervals are percentiles of {samples:,} samples of as many {by}s, drawn with replacement.</p>",
        table(head, rows),
        "<h2>Slides</h2>",
        table([str(cell) for cell in lines[0]], [[_cell(cell) for cell in line] for line in lines[1:]]),
        "<h2>Runs</h2>",
        f"<ul>{links}</ul>",
        "<h2>Slides that could not be evaluated</h2>" + table((), sorted(failed.items()), "text")
        if failed
        else "",
    ]
    write_page(log_dir / "folds.html", f"{len(folds)} folds — {log_dir.name}", parts)


def slides_of(scores: dict[int, list[SlideScore]]) -> list[list[Any]]:
    """Return a head and one row per slide."""
    names = ("miou", "dice", "probability", "lesions", "lesions_found", "false_positives")
    rows = [
        [name, fold, *(values[column] for column in names)]
        for fold, some in scores.items()
        for name, values in of_slides(some).items()
    ]
    return [["slide", "fold", *names], *rows]


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) or value is None else str(value)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.folds",
        description="Scores of a cross-validation: mean and deviation over folds, intervals by patient.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--log_dir", type=Path, required=True, help="folder of fold_1, fold_2, …, as run_folds.sh makes it")
    add(
        "--if_finished",
        action="store_true",
        help="do nothing, with exit code 0, if folds are not finished yet",
    )
    add_bootstrap_options(add)
    return parser


def run(options: argparse.Namespace) -> int:
    """Evaluate, write the results, print the table and return the exit code. UserError: something cannot be used."""
    write_failures_to(options.log_dir)
    failed: dict[str, str] = {}
    try:
        folds = read_folds(options.log_dir)
        scores = {fold.number: score_fold(fold, failed) for fold in folds}
    except Unfinished as error:
        if not options.if_finished:
            raise
        print(f"no table yet: {error}")
        return EXIT_DONE
    refuse_nothing([score for some in scores.values() for score in some], failed)
    summary = summarise(scores, groups_of(folds), options.bootstrap, options.seed)
    with output_errors(options.log_dir):
        write(options.log_dir, folds, scores, summary, failed, options.bootstrap)
    print(f"{text_of(*rows_of(summary, [*scores]))}\nwritten to {options.log_dir}/folds.html, .csv and .json")
    return report_failed(failed)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code("evaluation.folds", run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
