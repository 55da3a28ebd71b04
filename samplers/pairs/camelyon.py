"""Finds the slides of CAMELYON16 and 17 in their public folder layouts, and the centres that they come from."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from samplers.pairs.pairing import SlidePair, files_of, listed, name_some, pair_files
from samplers.pairs.split import patient_of
from samplers.slides.errors import DataError

PATIENTS_PER_CENTRE = 20  # CAMELYON17: 100 training patients from 5 centres

# Folders below the root in all known layouts. Those that exist are searched.
_TRAIN_16 = ("TrainingData/Train_Tumor", "TrainingData/Train_Normal", "training/tumor", "training/normal")
_TEST_16 = ("Testset/Images", "testing/images")
_TRAIN_LABELS_16 = {
    "xml": ("TrainingData/Ground_Truth/XML", "training/lesion_annotations"),
    "mask": ("TrainingData/Ground_Truth/Mask", "training/masks"),
}
_TEST_LABELS_16 = {
    "xml": ("Testset/Ground_Truth/Annotations", "testing/lesion_annotations"),
    "mask": ("Testset/Ground_Truth/Masks", "testing/masks"),
}
_SLIDES_17 = ("training/center_*", "training/patients")
_LABELS_17 = ("training/lesion_annotations", "training/annotations", "lesion_annotations", "annotations")
_STAGES_17 = ("stage_labels.csv", "stages.csv", "training/stage_labels.csv", "training/stages.csv")

Found = tuple[list[SlidePair], list[str]]  # and warnings


def camelyon16(root: Path, slide_format: str, label_format: str, unlabelled: str) -> tuple[Found, Found]:
    """Return training and test pairs. Test slides without a label are tumour-free, as the challenge defines them.

    The test part is empty if its slides or its labels are missing. Raises DataError if there are no training slides
    or no labels of that format.
    """
    kind = "xml" if label_format.lstrip(".").lower() == "xml" else "mask"
    train_folders = [root / name for name in _TRAIN_16]
    train = _files(train_folders, slide_format)
    if not train:
        raise DataError(_nothing(f"CAMELYON16 slides (.{slide_format})", train_folders))
    labels = _labels(root, _TRAIN_LABELS_16[kind], label_format)
    test = _files([root / name for name in _TEST_16], slide_format)
    if not test:
        return _paired(train, labels, unlabelled), ([], [])
    try:
        test_labels = _labels(root, _TEST_LABELS_16[kind], label_format)
    except DataError as error:
        return _paired(train, labels, unlabelled), ([], [f"left out, {len(test)} test slides: {error}"])
    return _paired(train, labels, unlabelled), _paired(test, test_labels, "normal")


def camelyon17(root: Path, slide_format: str, label_format: str, unlabelled: str) -> Found:
    """Return all training pairs.

    With `unlabelled` "normal" a slide without annotation is tumour-free if stage_labels.csv calls it negative, or if
    there is no such file: only 50 of the 500 slides are annotated.
    """
    folders = [folder for pattern in _SLIDES_17 for folder in sorted(root.glob(pattern))]
    slides = files_below(folders, slide_format)
    if not slides:
        raise DataError(
            _nothing(f"CAMELYON17 slides (.{slide_format})", [root / pattern for pattern in _SLIDES_17])
        )
    pairs, warnings = _paired(slides, _labels(root, _LABELS_17, label_format), unlabelled)
    if unlabelled != "normal":
        return pairs, warnings
    lacking = [pair for pair in pairs if pair.label is None]
    path = next((root / name for name in _STAGES_17 if (root / name).is_file()), None)
    if path is None:
        if lacking:
            warnings.append(
                f"{len(lacking)} slides have no annotation and are taken as tumour-free, because there is no "
                f"stage_labels.csv in {root} that could say otherwise"
            )
        return pairs, warnings
    stages = _stages(path)
    doubtful = [pair for pair in lacking if stages.get(pair.name) != "negative"]
    if doubtful:
        warnings.append(
            f"left out, {len(doubtful)} slides without annotation that {path} does not call negative: "
            f"{name_some(pair.slide for pair in doubtful)}"
        )
    return [pair for pair in pairs if pair not in doubtful], warnings


def center_of(path: Path) -> int | None:
    """Return the centre: the last `center_N` in the path, else the patient's (20 patients per centre), else None."""
    for part in (path.stem, *reversed(path.absolute().parts[:-1])):
        found = re.fullmatch(r"(?:tumor_)?center_(\d+)(?:_.*)?", part)
        if found:
            return int(found.group(1))
    patient = patient_of(path.stem)
    return None if patient is None else int(patient) // PATIENTS_PER_CENTRE


def of_centers(pairs: Sequence[SlidePair], centers: Iterable[int]) -> list[SlidePair]:
    """Return the pairs that come from these centres. Raises DataError if the centre of a pair is unknown."""
    found = {pair: center_of(pair.slide) for pair in pairs}
    unknown = [pair.slide for pair, center in found.items() if center is None]
    if unknown:
        raise DataError(
            f"the centre of {len(unknown)} slides is unknown: there is no center_N in their paths and no "
            f"patient_XXX in their names: {name_some(unknown)}"
        )
    wanted = set(centers)
    return [pair for pair in pairs if found[pair] in wanted]


def files_below(folders: Sequence[Path], format: str) -> list[Path]:
    """Return the files of the folders and of their subfolders, such as center_0 or patient_000."""
    inner = [path for folder in folders for path in listed(folder) if path.is_dir()]
    return _files([*folders, *inner], format)


def _files(folders: Sequence[Path], format: str) -> list[Path]:
    return [file for folder in folders if folder.is_dir() for file in files_of(folder, format)]


def _labels(root: Path, names: Sequence[str], format: str) -> list[Path]:
    files = _files([root / name for name in names], format)
    if not files:
        raise DataError(_nothing(f"labels (--label_format {format})", [root / name for name in names]))
    return files


def _paired(slides: list[Path], labels: list[Path], unlabelled: str) -> Found:
    """Pair the files. Labels of slides that were not downloaded are only a warning."""
    pairs, warnings = pair_files(slides, labels, unlabelled, orphans_allowed=True)
    if not pairs:
        raise DataError(f"none of the {len(slides)} slides has a label: {name_some(slides)}")
    return pairs, warnings


def _nothing(what: str, folders: Iterable[Path]) -> str:
    return f"no {what} in {', '.join(str(folder) for folder in folders)}"


def _stages(path: Path) -> dict[str, str]:
    """Return the stage of each slide (`patient_000_node_0`)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if len(row) >= 2]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return {Path(row[0].strip()).stem: row[1].strip().casefold() for row in rows}
