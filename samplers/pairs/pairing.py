"""Finds slides, pairs them with their labels, and splits off those for validation.

A slide and its label belong together by file stem, without CAMELYON's decorations (`_mask`, `mask_`, case).
Nothing is guessed: what has no partner is named.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from samplers.labels.label import LabelMap
from samplers.pairs.checks import check_pair
from samplers.slides.errors import DataError

_NAMED = 10  # files that a message names before it only counts
_SAME_FORMAT = {"tiff": "tif", "jpeg": "jpg", "json": "geojson"}


@dataclass(frozen=True)
class SlidePair:
    """A slide and its label; None: there is no tumour on it."""

    slide: Path
    label: Path | None

    @property
    def name(self) -> str:
        return self.slide.stem


def find_pairs(
    slide_path: str | Path,
    label_path: str | Path | None,
    slide_format: str = "tif",
    label_format: str = "tif",
    unlabelled: str = "skip",
) -> tuple[list[SlidePair], list[str]]:
    """Return the slides of a folder with their labels, sorted by name, and warnings.

    `unlabelled`: what to do with a slide that has no label: "skip" it with a warning, take it as "normal"
    (tumour-free), or "error". `normal_*` slides of CAMELYON16 need none. Both folders may be the same.
    DataError: a folder is missing, a label has no slide, a slide two labels, or there is no pair.
    """
    slide_files = files_of(slide_path, slide_format)
    label_files = files_of(label_path, label_format) if label_path is not None else []
    if set(slide_files) & set(label_files):  # one folder for both: labels are those that are called so
        slide_files = [file for file in slide_files if not _is_decorated(file)]
        label_files = [file for file in label_files if _is_decorated(file)]
    pairs, warnings = pair_files(slide_files, label_files, unlabelled)
    if not pairs:
        raise DataError(
            f"no pair of a slide and a label: {len(slide_files)} .{slide_format.lstrip('.')} slides in "
            f"{slide_path}, {len(label_files)} .{label_format.lstrip('.')} labels in {label_path}"
        )
    return pairs, warnings


def pair_files(
    slide_files: Sequence[Path],
    label_files: Sequence[Path],
    unlabelled: str = "skip",
    orphans_allowed: bool = False,
) -> tuple[list[SlidePair], list[str]]:
    """Pair files as `find_pairs` does. With `orphans_allowed` a label without a slide is only a warning."""
    if unlabelled not in ("skip", "normal", "error"):
        raise ValueError(f"unlabelled is {unlabelled!r}, must be skip, normal or error")
    slides = _by_key(slide_files, lambda file: file.stem.casefold(), "slides of the same name")
    labels = _by_key(label_files, _label_key, "labels for the same slide")
    orphans = [file for key, file in labels.items() if key not in slides]
    warnings = []
    if orphans:
        message = f"{len(orphans)} labels without a slide: {name_some(orphans)}"
        if not orphans_allowed:
            raise DataError(message)
        warnings.append(message)
    pairs = [SlidePair(file, labels.get(key)) for key, file in sorted(slides.items())]
    lacking = [
        pair for pair in pairs if pair.label is None and not pair.name.casefold().startswith("normal_")
    ]
    if lacking and unlabelled != "normal":
        message = f"{len(lacking)} slides without a label: {name_some(p.slide for p in lacking)}"
        if unlabelled == "error":
            raise DataError(message)
        warnings.append(f"left out, {message}")
        left_out = set(lacking)
        pairs = [pair for pair in pairs if pair not in left_out]
    return pairs, warnings


def check_pairs(
    pairs: Sequence[SlidePair],
    label_map: LabelMap,
    img_size: int,
    resolution: float | None = None,
    threads: int = 4,
    progress: str = "",
) -> dict[SlidePair, list[str]]:
    """`check_pair` of all pairs in parallel: the reasons why each cannot be used, an empty list if it can.

    With `progress` a bar of that name.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        results = pool.map(lambda p: check_pair(p.slide, p.label, label_map, img_size, resolution), pairs)
        reasons = list(tqdm(results, progress, len(pairs), unit="slide", disable=not progress))
    # libvips has one error buffer for all threads, so one slide's error may be taken for another's: what was
    # found bad is looked at again, alone.
    return {
        pair: check_pair(pair.slide, pair.label, label_map, img_size, resolution) if bad else []
        for pair, bad in zip(pairs, reasons)
    }


def split_pairs(
    pairs: Sequence[SlidePair], val_split: float, seed: int
) -> tuple[list[SlidePair], list[SlidePair]]:
    """Training and validation pairs: the part `val_split` of the slides, by `seed`, whatever their order.

    All nodes of a CAMELYON17 patient and all patches of a slide are on one side. Slides with a label are
    divided apart from the others, so that both sides have some if there are two. DataError if there is nothing
    to divide.
    """
    if not 0 <= val_split < 1:
        raise ValueError(f"the validation split is {val_split}, must be at least 0 and less than 1")
    if val_split == 0:
        return list(pairs), []
    groups: dict[str, list[SlidePair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: (pair.name, str(pair.slide))):
        groups[patient_of(pair.name) or slide_of_patch(pair.name) or str(pair.slide)].append(pair)
    if len(groups) < 2:
        raise DataError(f"{len(groups)} slides or patients cannot be divided for validation, 2 are needed")
    rng = np.random.default_rng(seed)
    labelled = [group for group in groups.values() if any(pair.label for pair in group)]
    normal = [group for group in groups.values() if not any(pair.label for pair in group)]
    chosen = []
    for kind in (labelled, normal):
        count = min(max(round(val_split * len(kind)), 1), len(kind) - 1) if len(kind) > 1 else 0
        chosen += [kind[i] for i in rng.permutation(len(kind))[:count]]
    if not chosen:  # one of each
        chosen = [normal[0]]
    val = {pair for group in chosen for pair in group}
    return [pair for pair in pairs if pair not in val], [pair for pair in pairs if pair in val]


def patient_of(name: str) -> str | None:
    """Return the patient in a CAMELYON17 name (`patient_017_node_4` gives "017"), also inside of a patch's name."""
    found = re.search(r"patient_(\d+)_node_\d+", name)
    return found.group(1) if found else None


def slide_of_patch(name: str) -> str | None:
    """Return the slide in the name of a preprocessed patch, `tumor_center_<center>_<slide>_<x>_<y>`."""
    found = re.fullmatch(r"tumor_center_(?:\d+|na)_(.+)_\d+_\d+", name)
    return found.group(1) if found else None


def files_of(folder: str | Path, format: str) -> list[Path]:
    """Files of a folder with a suffix in any case (.tif and .tiff are the same), hidden ones not."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    wanted = _same_format(format)
    files = (file for file in listed(folder) if not file.name.startswith("."))
    return [file for file in files if _same_format(file.suffix) == wanted and file.is_file()]


def listed(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted. DataError if it cannot be listed: the user may lack the permission."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error}") from error


def _same_format(suffix: str) -> str:
    suffix = suffix.lower().lstrip(".")
    return _SAME_FORMAT.get(suffix, suffix)


def _label_key(file: Path) -> str:
    return file.stem.casefold().removeprefix("mask_").removesuffix("_mask")


def _is_decorated(file: Path) -> bool:
    return _label_key(file) != file.stem.casefold()


def _by_key(files: Sequence[Path], key: Callable[[Path], str], problem: str) -> dict[str, Path]:
    found: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        found[key(file)].append(file)
    double = [file for same in found.values() if len(same) > 1 for file in same]
    if double:
        raise DataError(f"{len(double)} {problem}: {name_some(double)}")
    return {name: same[0] for name, same in found.items()}


def name_some(files: Iterable[Path]) -> str:
    """Return the names of the first ten files, and how many more there are."""
    files = list(files)
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(str(file) for file in files[:_NAMED]) + more
