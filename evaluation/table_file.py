"""The file that says what a table of scores holds: which models, on which datasets, against which labels.

    [models]
    D0 = "logs/d0"
    "D0, five folds" = "logs/folds/fold_*"

    [datasets."CAMELYON16, test"]
    slides = "camelyon16/test/images"
    labels = "camelyon16/test/masks"
    exclude = ["test_049", "test_114"]

Paths are relative to the file's folder. It is TOML (https://toml.io).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.tables import slide_stem
from samplers.labels.label_map import UNANNOTATED, LabelMap
from samplers.pairs.names import patient_pattern, slide_key
from utils.cli import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNLABELLED = ("error", "normal")
_OF_A_DATASET = (
    *("slides", "labels", "exclude", "unlabelled", "label_map", "unannotated", "stages", "patient_pattern"),
)


@dataclass(frozen=True)
class TableModel:
    """A model, or several whose mean is taken. `paths` are what predict.py's --model_path takes."""

    name: str
    paths: tuple[str, ...]

    @property
    def folder(self) -> str:
        return folder_name(self.name)


@dataclass(frozen=True)
class TableDataset:
    """Slides and what is known about them.

    `slides` are what predict.py's --slide_path takes, `labels` a folder of masks or annotations, `exclude` the keys of
    slides that do not count, `unlabelled` and `label_map` as in `evaluation.camelyon16`, `stages` a CSV of
    CAMELYON17's stages, for kappa, and `patients` the pattern of a patient's name (None: known names).
    """

    name: str
    slides: tuple[str, ...]
    labels: Path
    exclude: frozenset[str]
    unlabelled: str
    label_map: LabelMap
    stages: Path | None
    patients: re.Pattern[str] | None

    @property
    def folder(self) -> str:
        return folder_name(self.name)


def read_table_file(path: Path) -> tuple[list[TableModel], list[TableDataset]]:
    """Return the models and the datasets of a file, in its order. UserError: something in it is wrong."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        raise UserError(f"{path} is no TOML: {error}") from error
    _refuse_unknown(path, "the file", content, ("models", "datasets"))
    for part in ("models", "datasets"):
        if not isinstance(content.get(part), dict) or not content[part]:
            raise UserError(f"{path}: [{part}] is missing: a table needs a model and a dataset at least")
    models = [
        TableModel(name, _paths(path, f"models.{name}", value)) for name, value in content["models"].items()
    ]
    datasets = [_dataset(path, name, values) for name, values in content["datasets"].items()]
    for names in ([model.name for model in models], [dataset.name for dataset in datasets]):
        folders: dict[str, str] = {}
        for name in names:
            other = folders.setdefault(folder_name(name).casefold(), name)
            if other != name:
                raise UserError(f'{path}: "{other}" and "{name}" differ by signs only: name them otherwise')
    return models, datasets


def _dataset(path: Path, name: str, values: Any) -> TableDataset:
    place = f"datasets.{name}"
    if not isinstance(values, dict):
        raise UserError(f"{path}: {place} is no table of slides, labels and so on")
    _refuse_unknown(path, place, values, _OF_A_DATASET)
    for needed in ("slides", "labels"):
        if needed not in values:
            raise UserError(f"{path}: {place} has no {needed}")
    unlabelled = values.get("unlabelled", UNLABELLED[0])
    unannotated = values.get("unannotated", next(iter(UNANNOTATED)))
    for what, value, known in (
        ("unlabelled", unlabelled, UNLABELLED),
        ("unannotated", unannotated, UNANNOTATED),
    ):
        if value not in known:
            raise UserError(f"{path}: {place}: {what} is {value!r}, not one of {', '.join(known)}")
    (labels,) = _paths(path, f"{place}.labels", values["labels"], 1)
    stages = _paths(path, f"{place}.stages", values["stages"], 1)[0] if "stages" in values else None
    words = _strings(path, f"{place}.label_map", values["label_map"]) if "label_map" in values else None
    exclude = _strings(path, f"{place}.exclude", values.get("exclude", []), 0)
    pattern = values.get("patient_pattern")
    try:
        return TableDataset(
            name,
            _paths(path, f"{place}.slides", values["slides"]),
            Path(labels),
            frozenset(slide_key(slide_stem(slide)) for slide in exclude),
            unlabelled,
            LabelMap.parse(words, unannotated),
            Path(stages) if stages else None,
            None if pattern is None else patient_pattern(pattern),
        )
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{path}: {place}: {error}") from error


def _refuse_unknown(path: Path, place: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in values:
        if name not in known:
            raise UserError(f"{path}: {place} has {name!r}, but only {', '.join(known)} are known")


def _strings(path: Path, place: str, value: Any, at_least: int = 1) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) and one for one in values) or len(values) < at_least:
        raise UserError(f"{path}: {place} is {value!r}, where a text or a list of texts is needed")
    return tuple(values)


def _paths(path: Path, place: str, value: Any, only: int | None = None) -> tuple[str, ...]:
    """Return paths or patterns, those that are relative from the folder of the file on."""
    values = _strings(path, place, value)
    if only is not None and len(values) != only:
        raise UserError(f"{path}: {place} is {value!r}, where one path is needed")
    return tuple(os.path.join(path.parent, os.path.expanduser(one)) for one in values)


def folder_name(name: str) -> str:
    """Return a name without what a file system or a shell takes amiss: "D0, 1024²" is `D0_1024`."""
    return re.sub(r"[^A-Za-z0-9+.-]+", "_", name).strip("_.") or "_"
