"""Finds slides and the labels that belong to them, and checks them all.

A slide and its label belong together if their file stems agree, without CAMELYON's decorations (`_mask`, `mask_`,
case). Nothing is guessed: files without a partner are named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from samplers.labels.label_map import IGNORED, LabelMap
from samplers.pairs.checks import check_pair
from samplers.slides.errors import DataError

_NAMED = 10  # files that a message names; the others are counted
_SAME_FORMAT = {"tiff": "tif", "jpeg": "jpg", "json": "geojson"}


@dataclass(frozen=True)
class SlidePair:
    """A slide and its label; None means that the slide has no tumour.

    What no annotation covers is not known on a slide that is annotated in part.
    """

    slide: Path
    label: Path | None
    partly_annotated: bool = False

    @property
    def name(self) -> str:
        return self.slide.stem


def map_of(pair: SlidePair, label_map: LabelMap) -> LabelMap:
    """Return the label map for the label of a pair."""
    return replace(label_map, unannotated=IGNORED) if pair.partly_annotated else label_map


def find_pairs(
    slide_path: str | Path,
    label_path: str | Path | None,
    slide_format: str = "tif",
    label_format: str = "tif",
    unlabelled: str = "skip",
) -> tuple[list[SlidePair], list[str]]:
    """Return the slides of a folder with their labels, sorted by name, and warnings.

    `unlabelled` decides about a slide without a label: "skip" leaves it out with a warning, "normal" takes it as
    tumour-free, "error" raises DataError. `normal_*` slides of CAMELYON16 need no label. Both folders may be the same.
    Raises DataError if a folder is missing, a label has no slide, a slide has two labels, or there is no pair.
    """
    slide_files = files_of(slide_path, slide_format)
    label_files = files_of(label_path, label_format) if label_path is not None else []
    if set(slide_files) & set(label_files):  # one folder for both: labels are the files with a decoration
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
        raise ValueError(f"unlabelled is {unlabelled!r}, it must be skip, normal or error")
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
    """Check all pairs in parallel. Return the reasons why each cannot be used, an empty list if it can.

    `progress` is the name of a progress bar; without a name there is none.
    """

    def check(pair: SlidePair) -> list[str]:
        return check_pair(pair.slide, pair.label, map_of(pair, label_map), img_size, resolution)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        results = pool.map(check, pairs)
        reasons = list(tqdm(results, progress, len(pairs), unit="slide", disable=not progress))
    # libvips has one error buffer for all threads, so one slide's error may be taken for another's: a pair that was
    # found bad is checked again on its own.
    return {pair: check(pair) if bad else [] for pair, bad in zip(pairs, reasons)}


def files_of(folder: str | Path, format: str) -> list[Path]:
    """Return the files of a folder with a suffix in any case (.tif and .tiff are the same), without hidden files.

    Raises DataError if the folder cannot be listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    wanted = _same_format(format)
    files = (file for file in listed(folder) if not file.name.startswith("."))
    return [file for file in files if _same_format(file.suffix) == wanted and file.is_file()]


def listed(folder: Path) -> list[Path]:
    """Return the sorted contents of a folder. Raises DataError if it cannot be listed."""
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


def name_some(files: Iterable[Path | str]) -> str:
    """Return the first ten names, and how many more there are."""
    files = list(files)
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(str(file) for file in files[:_NAMED]) + more
