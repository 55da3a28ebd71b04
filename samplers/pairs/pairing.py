"""Finds slides and the labels that belong to them, and checks them all.

A slide and its label belong together if their file names agree, see `samplers.pairs.names`. Nothing is guessed: files
without a partner are named, and a slide whose label was not found is not taken as tumour-free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from samplers.labels.label_map import IGNORED, LabelMap
from samplers.pairs.checks import Checked, examine_pair
from samplers.pairs.folders import files_of, left_out, listed, same_format, slides_of
from samplers.pairs.names import (
    is_challenge_name,
    is_decorated,
    is_normal,
    is_tumour,
    name_some,
    plain_key,
    slide_key,
)
from samplers.slides.errors import DataError
from samplers.slides.stored_slide import slide_name
from utils.reporting.progress_bar import shown

__all__ = ["SlidePair", "check_pairs", "files_of", "find_pairs", "listed", "name_some", "pair_files"]

UNLABELLED = ("skip", "normal", "error")  # the choices of --unlabelled
_LABEL_FORMATS = {"xml", "geojson", "tif", "png", "jpg", "bmp"}


@dataclass(frozen=True)
class SlidePair:
    """A slide and its label; None means that the slide has no tumour.

    What no annotation covers is not known on a slide that is annotated in part.
    """

    slide: Path
    label: Path | None
    partly_annotated: bool = False
    name: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", slide_name(self.slide))  # the slide may vanish later


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
    Raises DataError if a folder is missing, a label has no slide, a slide has two labels, there is no pair, or a slide
    that would be taken as tumour-free has a label of another format.
    """
    slide_path = Path(slide_path)
    slide_files = slides_of(slide_path, slide_format)
    label_files = slides_of(label_path, label_format) if label_path is not None else []
    if set(slide_files) & set(label_files):  # one folder for both: labels are the files with a decoration
        slide_files = [file for file in slide_files if not is_decorated(slide_name(file))]
        label_files = [file for file in label_files if is_decorated(file.stem)]
    pairs, warnings = pair_files(slide_files, label_files, unlabelled)
    used = {*slide_files, *label_files}
    other = left_out(slide_path, used, [slide_format], f"the slides' format is {same_format(slide_format)}")
    if label_path is not None:
        refuse_other_labels(pairs, Path(label_path), label_format)
        if Path(label_path) != slide_path:
            asked = f"the labels' format is {same_format(label_format)}"
            other += left_out(Path(label_path), used, [label_format], asked)
    if not pairs:
        raise DataError(
            f"no pair of a slide and a label: {len(slide_files)} .{slide_format.lstrip('.')} slides in "
            f"{slide_path}, {len(label_files)} .{label_format.lstrip('.')} labels in {label_path}"
            + "".join(f"; {line}" for line in other)
        )
    return pairs, warnings + other


def refuse_other_labels(pairs: Iterable[SlidePair], folder: Path, label_format: str) -> None:
    """Raise DataError if a slide that is taken as tumour-free has a label of another format in the labels' folder."""
    lacking = {plain_key(pair.name): pair.slide for pair in pairs if pair.label is None}
    slides = set(lacking.values())
    found = [
        (lacking[slide_key(path.stem)], path)
        for path in (listed(folder) if lacking else ())
        if slide_key(path.stem) in lacking
        and same_format(path.suffix) in _LABEL_FORMATS - {same_format(label_format)}
        # A picture beside the slides may be one of them; an outline, or a name that says so, is a label.
        and (same_format(path.suffix) in ("xml", "geojson") or is_decorated(path.stem))
        and path not in slides
    ]
    if found:
        named = name_some(f"{slide} with {label.name}" for slide, label in found)
        raise DataError(
            f"{len(found)} slides without a .{same_format(label_format)} label would be taken as tumour-free, but have "
            f"a label of another format in {folder}: {named}"
        )


def pair_files(
    slide_files: Sequence[Path],
    label_files: Sequence[Path],
    unlabelled: str = "skip",
    orphans_allowed: bool = False,
) -> tuple[list[SlidePair], list[str]]:
    """Pair files as `find_pairs` does.

    With `orphans_allowed` a label without a slide is only a warning if it has the name of a slide of CAMELYON, which
    was not downloaded then. A slide called `tumor_*` is never taken as tumour-free: without a label it is left out.
    """
    if unlabelled not in UNLABELLED:
        raise ValueError(f"unlabelled is {unlabelled!r}, it must be skip, normal or error")
    slides = _by_key(slide_files, lambda file: plain_key(slide_name(file)), "slides of the same name")
    labels = _by_key(label_files, lambda file: _partner(file, slides), "labels for the same slide")
    pairs = [SlidePair(file, labels.get(key)) for key, file in sorted(slides.items())]
    lacking = [pair for pair in pairs if pair.label is None and not is_normal(plain_key(pair.name))]
    orphans = [file for key, file in labels.items() if key not in slides]
    warnings = []
    if orphans:
        known = orphans_allowed and all(is_challenge_name(slide_key(file.stem)) for file in orphans)
        # A slide of another name may be what one of them is about, and must not be taken as tumour-free then.
        known &= unlabelled != "normal" or all(is_challenge_name(plain_key(pair.name)) for pair in lacking)
        message = unpaired(orphans, [pair.slide for pair in lacking] if not known else [])
        if not known:
            raise DataError(message)
        warnings.append(message)
    if unlabelled == "normal":
        lacking = [pair for pair in lacking if is_tumour(plain_key(pair.name))]
    if lacking:
        what = "with tumour but " if unlabelled == "normal" else ""
        message = f"{len(lacking)} slides {what}without a label: {name_some(p.slide for p in lacking)}"
        if unlabelled == "error":
            raise DataError("; ".join([message, *warnings]))
        warnings.append(f"left out, {message}")
        gone = set(lacking)
        pairs = [pair for pair in pairs if pair not in gone]
    return pairs, warnings


def unpaired(labels: Sequence[Path], slides: Sequence[Path]) -> str:
    """Return the message that names labels without a slide, and slides without a label, which may be their partners."""
    message = f"{len(labels)} labels without a slide: {name_some(labels)}"
    if slides:
        message += f"; {len(slides)} slides without a label: {name_some(slides)}"
    return message


def _partner(label: Path, slides: Collection[str]) -> str:
    """Return the key of the slide that a label is about. A slide may itself be called `x_labels`."""
    key = plain_key(label.stem)
    return key if key in slides else slide_key(label.stem)


def check_pairs(
    pairs: Sequence[SlidePair],
    label_map: LabelMap,
    img_size: int,
    resolution: float | None = None,
    threads: int = 4,
    progress: str = "",
) -> dict[SlidePair, Checked]:
    """Check all pairs in parallel. Return the reasons why each cannot be used, and what its label holds.

    `progress` is what the progress is called; without a name it is not shown.
    """

    def check(pair: SlidePair) -> Checked:
        return examine_pair(pair.slide, pair.label, map_of(pair, label_map), img_size, resolution)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        results = pool.map(check, pairs)
        found = list(shown(results, progress, "slide", len(pairs)) if progress else results)
    return dict(zip(pairs, found))


def _by_key(files: Sequence[Path], key: Callable[[Path], str], problem: str) -> dict[str, Path]:
    found: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        found[key(file)].append(file)
    double = [file for same in found.values() if len(same) > 1 for file in same]
    if double:
        raise DataError(f"{len(double)} {problem}: {name_some(double)}")
    return {name: same[0] for name, same in found.items()}
