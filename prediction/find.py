"""Finds the slides to predict, and names what is left out."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from evaluation.tables import SLIDE_SUFFIXES
from samplers.pairs.folders import is_of, left_out, listed
from samplers.slides.stored_slide import folder_format, size_of, slide_name
from training.resume import SPLITS, read_splits
from utils.cli import UserError

# Endings of files that lie beside slides but are none.
NO_SLIDES = ("_mask", "_probability", "_prediction", "_disagreement", "_entropy")


def find_slides(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return the slides of folders, files and patterns, largest first, and warnings about files that are left out.

    The splits.json of a training run stands for the slides that it was validated on.

    UserError: one of them has no slides or cannot be listed, or two slides have the same name.
    """
    found: dict[str, Path] = {}
    warnings: list[str] = []
    for word in words:
        names = [word] if os.path.lexists(word) else sorted(glob.glob(word))
        files: list[Path] = []
        for path in map(Path, names):
            is_folder = path.is_dir() and folder_format(path) is None
            slides = [inner for inner in listed(path) if _is_slide(inner)] if is_folder else [path]
            if path.name == SPLITS and path.is_file():
                slides = [Path(slide) for slide in read_splits(path.parent)["val"]]
            files += slides
            if is_folder:
                asked = "slides end in " + ", ".join(SLIDE_SUFFIXES) + ", and not in " + ", ".join(NO_SLIDES)
                warnings += left_out(path, slides, SLIDE_SUFFIXES, asked)
        if not files:
            raise UserError("; ".join([f"--slide_path {word}: no slides are there", *warnings]))
        for path in files:
            name = slide_name(path)
            if found.setdefault(name, path).absolute() != path.absolute():
                raise UserError(f"--slide_path: {found[name]} and {path} have the same name")
    return [found[name] for name in sorted(found, key=lambda name: (-size_of(found[name]), name))], warnings


def _is_slide(path: Path) -> bool:
    return not slide_name(path).lower().endswith(NO_SLIDES) and is_of(path, SLIDE_SUFFIXES)
