"""Finds the slides to cut and their labels."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from CAMELYON17_PREPROCESSING.settings import SourceSlide
from samplers.pairs.camelyon import BY_STAGES, camelyon16, camelyon17, is_camelyon17, itc_slides, of_centers
from samplers.pairs.folders import files_below, left_out
from samplers.pairs.names import is_decorated, name_some
from samplers.pairs.pairing import SlidePair, pair_files, refuse_other_labels
from samplers.pairs.partly_annotated import PARTLY_16, mark_partly_annotated
from samplers.slides.errors import DataError
from samplers.slides.stored_slide import folder_format, size_of, slide_name


def find_sources(options: argparse.Namespace) -> tuple[list[SourceSlide], set[str], list[str]]:
    """Return the slides, the names of slides that are left out, and warnings.

    The largest slides come first, so that ranks get about the same. DataError: there are no slides, or a slide and a
    label have no partner.
    """
    if options.root is not None:
        pairs, warnings = _of_root(options.root, options.format, options.unlabelled)
        if not options.all_annotations:
            seventeen = is_camelyon17(options.root)
            pairs = mark_partly_annotated(pairs, itc_slides(options.root) if seventeen else PARTLY_16)
            partly = [pair.name for pair in pairs if pair.partly_annotated]
            if partly:
                warnings.append(
                    f"{len(partly)} slides are annotated in part: where they are not annotated nothing is known; "
                    "only --unannotated ignore, or GROUP:ignore in --label_map, gives masks that can say so, and else "
                    f"their patches must be known in full (--all_annotations takes the rest as free of tumour): "
                    f"{name_some(partly)}"
                )
    else:
        pairs, warnings = _of_folders(
            options.train_tumor_wsi_path,
            options.train_tumor_mask_path,
            options.format,
            options.unlabelled or "error",
        )
    there = set(_names_below(options.root or options.train_tumor_wsi_path))
    gone = there - {pair.name for pair in pairs}
    if -1 not in options.proc_center:
        pairs = of_centers(pairs, options.proc_center)
        if not pairs:
            raise DataError(f"no slides of --proc_center {' '.join(map(str, options.proc_center))}")
    pairs.sort(key=lambda pair: (-size_of(pair.slide), pair.name))
    return [SourceSlide(pair) for pair in pairs], gone, warnings


def _names_below(root: Path) -> Iterator[str]:
    """Yield the names of all files in a folder and its subfolders, and of slides that are folders.

    Such slides are not looked into: an OME-Zarr may have a million files.
    """
    for folder, inner, files in os.walk(root):
        slides = {name for name in inner if folder_format(Path(folder, name)) is not None}
        yield from (slide_name(Path(folder, name)) for name in (*files, *slides))
        inner[:] = [name for name in inner if name not in slides]


def _of_folders(
    slide_folder: Path, label_folder: Path | None, format: str, unlabelled: str
) -> tuple[list[SlidePair], list[str]]:
    slides = files_below([slide_folder], format)
    label_format = "xml"
    labels = [] if label_folder is None else files_below([label_folder], label_format)
    if label_folder is not None and not labels:
        label_format = "tif"
        labels = files_below([label_folder], label_format)
    if not slides or (label_folder is not None and not labels):
        raise DataError(
            f"{len(slides)} .{format} slides in {slide_folder} and {len(labels)} annotations (xml) or masks (tif) in "
            f"{label_folder}: none belong together"
        )
    if set(slides) & set(labels):  # one folder for both
        slides = [file for file in slides if not is_decorated(slide_name(file))]
        labels = [file for file in labels if is_decorated(file.stem)]
    # CAMELYON's annotations lie in one folder, for all centres.
    pairs, warnings = pair_files(slides, labels, unlabelled, orphans_allowed=True)
    warnings += left_out(slide_folder, [*slides, *labels], [format], f"--format is {format}", depth=1)
    if label_folder is not None:
        refuse_other_labels(pairs, label_folder, label_format)
        if not any(pair.label for pair in pairs):
            raise DataError(
                f"{len(slides)} .{format} slides in {slide_folder} and {len(labels)} annotations or masks in "
                f"{label_folder}: none belong together"
            )
    return pairs, warnings


def _of_root(root: Path, format: str, unlabelled: str | None) -> tuple[list[SlidePair], list[str]]:
    """Return pairs and warnings of CAMELYON17 if there are centres or patients, else CAMELYON16's training slides."""
    if is_camelyon17(root):
        return camelyon17(root, format, "xml", unlabelled or BY_STAGES)
    problems = []
    for label_format in ("xml", "tif"):
        try:
            # Some slides of CAMELYON16 were published without their annotation.
            return camelyon16(root, format, label_format, unlabelled or "skip")[0]
        except DataError as error:
            problems.append(str(error))
    raise DataError(f"{root} has neither CAMELYON17's layout nor CAMELYON16's: {'; '.join(problems)}")
