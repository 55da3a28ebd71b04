"""Finds the slides of CAMELYON16 and 17 in their public folder layouts, and the centres that they come from."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from samplers.pairs.folders import files_below, files_of, left_out
from samplers.pairs.names import name_some, patient_of, plain_key, slide_key
from samplers.pairs.pairing import SlidePair, pair_files
from samplers.slides.errors import DataError
from samplers.slides.stored_slide import slide_name

PATIENTS_PER_CENTRE = 20  # CAMELYON17: 100 training patients from 5 centres
BY_STAGES = (
    "stages"  # beside the choices of --unlabelled: tumour-free where stage_labels.csv calls a slide negative
)

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

_REFERENCE_16 = (
    "evaluation/reference.csv",
    "testing/reference.csv",
    "Testset/reference.csv",
    "reference.csv",
)

# The public bucket has all slides in one folder. Their names say which part of the challenge they belong to.
BUCKET = "images"
_BUCKET_LABELS = {"xml": "annotations", "mask": "masks"}
_PARTS_16 = {"training": re.compile("(?:tumor|normal)_"), "test": re.compile("test_")}
_PARTS_17 = {"training": re.compile(r"patient_0\d\d_node_"), "test": re.compile(r"patient_1\d\d_node_")}

Found = tuple[list[SlidePair], list[str]]  # and warnings


def camelyon16(root: Path, slide_format: str, label_format: str, unlabelled: str) -> tuple[Found, Found]:
    """Return training and test pairs. Test slides without a label are tumour-free, as the challenge defines them.

    The test part is empty if its slides or its labels are missing. Raises DataError if there are no training slides
    or no labels of that format.
    """
    root = _top(root, "CAMELYON16")
    kind = _kind(label_format)
    parts, warnings = _bucket(root, slide_format, _PARTS_16)
    train_folders = [root / name for name in _TRAIN_16]
    train = files_below(train_folders, slide_format) + parts["training"]
    if not train:
        raise DataError(_nothing(f"CAMELYON16 slides (.{slide_format})", [*train_folders, root / BUCKET]))
    warnings += _others([*train_folders, *(root / name for name in _TEST_16)], slide_format)

    def labels(names: Sequence[str], part: str) -> list[Path]:
        folders, shared = [root / name for name in names], root / _BUCKET_LABELS[kind]
        of_part = [file for file in _files([shared], label_format) if _is_of(file, _PARTS_16[part])]
        found = files_below(folders, label_format) + of_part
        if not found:
            raise DataError(_nothing(f"{part} labels (--label_format {label_format})", [*folders, shared]))
        return found

    pairs, more = _paired(train, labels(_TRAIN_LABELS_16[kind], "training"), unlabelled)
    test = files_below([root / name for name in _TEST_16], slide_format) + parts["test"]
    if not test:
        return (pairs, warnings + more), ([], [])
    try:
        test_labels = labels(_TEST_LABELS_16[kind], "test")
    except DataError as error:
        return (pairs, warnings + more), ([], [f"left out, {len(test)} test slides: {error}"])
    return (pairs, warnings + more), _known_free(root, *_paired(test, test_labels, "normal"))


def _known_free(root: Path, pairs: list[SlidePair], warnings: list[str]) -> Found:
    """Leave out test slides without a label of which the challenge's reference.csv says that they have tumour."""
    path = next((root / name for name in _REFERENCE_16 if (root / name).is_file()), None)
    classes = _stages(path) if path else {}
    wrong = [pair for pair in pairs if pair.label is None and classes.get(plain_key(pair.name)) == "tumor"]
    if wrong:
        named = name_some(pair.slide for pair in wrong)
        warnings = [
            *warnings,
            f"left out, {len(wrong)} slides without a label that {path} calls tumor: {named}",
        ]
    return [pair for pair in pairs if pair not in wrong], warnings


def camelyon17(root: Path, slide_format: str, label_format: str, unlabelled: str) -> Found:
    """Return all training pairs.

    Only 50 of the 500 slides are annotated. With `unlabelled` "normal" a slide without annotation is tumour-free if
    stage_labels.csv calls it negative, or if there is no such file; with BY_STAGES only if the file does.
    """
    root = _top(root, "CAMELYON17")
    folders = [folder for pattern in _SLIDES_17 for folder in sorted(root.glob(pattern))]
    parts, warnings = _bucket(root, slide_format, _PARTS_17)
    slides = files_below(folders, slide_format) + parts["training"]
    if not slides:
        patterns = [root / pattern for pattern in (*_SLIDES_17, BUCKET)]
        raise DataError(_nothing(f"CAMELYON17 slides (.{slide_format})", patterns))
    if parts["test"]:
        warnings.append(
            f"left out, {len(parts['test'])} slides of the test patients 100 to 199 in {root / BUCKET}"
        )
    warnings += _others(folders, slide_format)
    names = (*_LABELS_17, *(("training/masks", "masks") if _kind(label_format) == "mask" else ()))
    label_folders = [root / name for name in names]
    labels = files_below(label_folders, label_format)
    if not labels:
        raise DataError(_nothing(f"labels (--label_format {label_format})", label_folders))
    by_stages = unlabelled in ("normal", BY_STAGES)
    pairs, more = _paired(slides, labels, "normal" if by_stages else unlabelled)
    warnings += more
    remark = (
        f"CAMELYON17: {sum(pair.label is not None for pair in pairs)} of {len(slides)} slides have outlines (of the "
        "challenge's 500 training slides 50 have); isolated tumour cells are not annotated exhaustively, so what no "
        "outline covers may have some"
    )
    if not by_stages:
        return pairs, [*warnings, remark]
    doubtful, reason = _not_negative(root, pairs, unlabelled)
    if doubtful:
        named = name_some(pair.slide for pair in doubtful)
        warnings.append(f"left out, {len(doubtful)} slides without annotation that {reason}: {named}")
    elif reason:
        warnings.append(reason)
    gone = set(doubtful)
    return [pair for pair in pairs if pair not in gone], [*warnings, remark]


def _not_negative(root: Path, pairs: Sequence[SlidePair], unlabelled: str) -> tuple[list[SlidePair], str]:
    """Return the slides without a label of which it is not known that they are tumour-free, and why, or a remark."""
    lacking = [pair for pair in pairs if pair.label is None]
    path = next((root / name for name in _STAGES_17 if (root / name).is_file()), None)
    if path is not None:
        stages = _stages(path)
        doubtful = [pair for pair in lacking if stages.get(plain_key(pair.name)) != "negative"]
        return doubtful, f"{path} does not call negative"
    if not lacking:
        return [], ""
    if unlabelled == BY_STAGES:
        return (
            lacking,
            f"may have tumour, as there is no stage_labels.csv in {root} that says which are negative",
        )
    return [], (
        f"{len(lacking)} slides have no annotation and are taken as tumour-free, because there is no "
        f"stage_labels.csv in {root} that could say otherwise"
    )


def itc_slides(root: Path) -> frozenset[str]:
    """Return the slides of CAMELYON17 that stage_labels.csv calls isolated tumour cells, in lower case.

    What is not outlined on them may be tumour as well: the challenge annotated these cells, but not exhaustively.
    """
    root = _top(root, "CAMELYON17")
    path = next((root / name for name in _STAGES_17 if (root / name).is_file()), None)
    return frozenset(name for name, stage in (_stages(path) if path else {}).items() if stage == "itc")


def is_camelyon17(root: Path) -> bool:
    """Return whether a folder has CAMELYON17's layout: centres, patients, or the bucket's slides of patients."""
    root = _top(root, "CAMELYON17")
    training = root / "training"
    if any(training.glob("center_*")) or (training / "patients").is_dir():
        return True
    return any((root / BUCKET).glob("patient_*"))


def center_of(path: Path) -> int | None:
    """Return the centre: the last `center_N` in the path, else the patient's (20 patients per centre), else None."""
    for part in (slide_name(path), *reversed(path.absolute().parts[:-1])):
        found = re.fullmatch(r"(?:tumor_)?center_(\d+)(?:_.*)?", part)
        if found:
            return int(found.group(1))
    patient = patient_of(slide_name(path))
    return int(patient) // PATIENTS_PER_CENTRE if patient and patient.isdecimal() else None


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


def _top(root: Path, name: str) -> Path:
    """Return the challenge's folder in a copy of the whole bucket, else the folder itself."""
    return root / name if (root / name).is_dir() else root


def _kind(label_format: str) -> str:
    return "xml" if label_format.lstrip(".").lower() == "xml" else "mask"


def _is_of(file: Path, part: re.Pattern[str]) -> bool:
    return part.match(slide_key(slide_name(file))) is not None


def _bucket(
    root: Path, slide_format: str, parts: dict[str, re.Pattern[str]]
) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the slides of the bucket's folder by part, and warnings about those of no part."""
    files = _files([root / BUCKET], slide_format)
    found = {name: [file for file in files if _is_of(file, pattern)] for name, pattern in parts.items()}
    if not files:
        return found, []
    of_parts = [file for part in found.values() for file in part]
    return found, left_out(root / BUCKET, of_parts, [slide_format], f"the slides' format is {slide_format}")


def _others(folders: Iterable[Path], slide_format: str) -> list[str]:
    """Return warnings about the files of another format in the folders of slides and in their subfolders."""
    asked, there = f"the slides' format is {slide_format}", [folder for folder in folders if folder.is_dir()]
    found = [
        left_out(folder, files_below([folder], slide_format), [slide_format], asked, 1) for folder in there
    ]
    return [line for lines in found for line in lines]


def _files(folders: Sequence[Path], format: str) -> list[Path]:
    return [file for folder in folders if folder.is_dir() for file in files_of(folder, format)]


def _paired(slides: list[Path], labels: list[Path], unlabelled: str) -> Found:
    """Pair the files. Labels of slides that were not downloaded are only a warning."""
    pairs, warnings = pair_files(slides, labels, unlabelled, orphans_allowed=True)
    if not pairs:
        raise DataError(f"none of the {len(slides)} slides has a label: {name_some(slides)}")
    return pairs, warnings


def _nothing(what: str, folders: Iterable[Path]) -> str:
    return f"no {what} in {', '.join(str(folder) for folder in folders)}"


def _stages(path: Path) -> dict[str, str]:
    """Return the second column by slide (`patient_000_node_0`): its stage, of CAMELYON16 its class."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if len(row) >= 2]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return {plain_key(row[0].strip()): row[1].strip().casefold() for row in rows}
