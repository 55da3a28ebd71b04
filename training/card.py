"""The model card of an exported model: card.json for programs, MODEL_CARD.md for people.

After Mitchell et al., "Model cards for model reporting" (2019), arXiv 1810.03993. What the run does not know, the
licence and the use that the model is meant for, is left to be filled in, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prediction.store import OVERLAP
from training.label_summary import LABELS_FILE
from training.resume import read_metrics
from utils.reporting.page import interval, number

CARD, MARKDOWN = "card.json", "MODEL_CARD.md"  # in the folder of an exported model
FILL_IN = "to be filled in"
_OF_PATCHES = ("miou", "iou", "dice", "auc", "calibration_error")
_OF_SLIDES = (
    *("froc_official", "froc_corrected", "slide_auc", "slide_miou", "slide_dice", "sensitivity"),
    *("false_positives_per_normal_slide", "intervals"),
)


def make_card(log_dir: Path, classes: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the content of card.json, from the files of a run. `classes`: the names of each class."""
    options, environment, labels = (
        json.loads((log_dir / name).read_text()) for name in ("options.json", "environment.json", LABELS_FILE)
    )
    spacing: float | None = options["resolution"]
    side = options["img_size"]
    return {
        "name": log_dir.name,
        "model": options["model"],
        "input": {
            "pixels": "uint8 RGB (batch, height, width, 3)",
            "tile": side,
            "overlap": OVERLAP,
            "spacing_um": spacing,  # None: level 0 of the slides
            "field_of_view_um": None if spacing is None else side * spacing,
        },
        "output": "class probabilities float32 (batch, height, width, classes)",
        "classes": [list(names) for names in classes],
        "data": {
            "dataset": options["dataset"],
            "split": {"folds": options["folds"], "fold": options["fold"], "seed": options["seed"]},
            "train": labels["train"],
            "val": labels["val"],
        },
        "scores": dict(_scores(read_metrics(log_dir))),
        "version": environment.get("suite"),
        "command": environment.get("command"),
        "licence": FILL_IN,
        "intended_use": FILL_IN,
    }


def _scores(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the scores of the last validation on patches and on whole slides, as far as there was one."""
    for split, title, names in (("val", "patches", _OF_PATCHES), ("slides", "whole_slides", _OF_SLIDES)):
        last = next((row for row in reversed(rows) if row["split"] == split), None)
        if last is not None:
            found = {name: last[name] for name in names if name in last}
            yield title, {"step": last["step"], "slides": len(last["slides"]), **found}


def markdown(card: dict[str, Any]) -> str:
    """Return MODEL_CARD.md."""
    given, classes = card["input"], card["classes"]
    spacing = "level 0 of the slides" if given["spacing_um"] is None else f"{given['spacing_um']:g} µm/px"
    view = "" if given["field_of_view_um"] is None else f" ({given['field_of_view_um']:g} µm)"
    lines = [
        f"# {card['name']}",
        "",
        f"Semantic segmentation of whole-slide images, {card['model']}. This card was written by the training; what it "
        f'does not know says "{FILL_IN}".',
        "",
        "| | |",
        "|---|---|",
        f"| input | {given['pixels']}, {spacing}; patches of {given['tile']}²{view}, overlap {given['overlap']:g} |",
        f"| output | {card['output']} |",
        f"| classes | {'; '.join(f'{value} {_cell(names)}' for value, names in enumerate(classes))} |",
        f"| version | {_cell([card['version']])} |",
        f"| command | `{_cell([card['command']])}` |",
        f"| licence | {card['licence']} |",
        f"| intended use | {card['intended_use']} |",
        "",
        "## Data",
        "",
        "| | training | validation |",
        "|---|---|---|",
        *_data(card["data"], classes),
        "",
        "## Scores on the validation slides",
        "",
        "| | score | 95 % interval, by slide |",
        "|---|---|---|",
        *_rows(card["scores"], classes),
        "",
        "A score of slides that chose the checkpoint or the options is better than that of other slides.",
        "",
    ]
    return "\n".join(lines)


def _cell(words: Sequence[Any]) -> str:
    return ", ".join(str(word) for word in words).replace("|", "\\|")


def _data(data: dict[str, Any], classes: Sequence[Sequence[str]]) -> Iterator[str]:
    both = data["train"], data["val"]
    yield (
        "| slides | "
        + " | ".join(f"{part['slides']}, {part['labelled']} with a label" for part in both)
        + " |"
    )
    for value, names in enumerate(classes):
        yield f"| {_cell(names)} | " + " | ".join(f"{part['mm2'][value]:.4g} mm²" for part in both) + " |"
    yield "| not known | " + " | ".join(f"{part['ignored_mm2']:.4g} mm²" for part in both) + " |"


def _rows(scores: dict[str, dict[str, Any]], classes: Sequence[Sequence[str]]) -> Iterator[str]:
    for kind, found in scores.items():
        title = kind.replace("_", " ")
        yield f"| **{title}**, step {found['step']:,}, {found['slides']} slides | | |"
        for name, value in found.items():
            if name in ("step", "slides", "intervals"):
                continue
            ends = (found.get("intervals") or {}).get(name)
            shown = interval(ends) if ends else ""
            yield f"| {name.replace('_', ' ')} | {_value(value, classes)} | {shown} |"


def _value(value: Any, classes: Sequence[Sequence[str]]) -> str:
    if isinstance(value, list):
        return ", ".join(f"{_cell(names[:1])} {_value(part, classes)}" for names, part in zip(classes, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(part, classes)}" for name, part in value.items())
    return number(value)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write both files into the folder of an exported model."""
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / MARKDOWN).write_text(markdown(card), encoding="utf-8")
