"""Finds the slides to predict, and names what is left out."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from evaluation.tables import SLIDE_SUFFIXES
from samplers.pairs.folders import is_file, left_out, listed, size_of
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
            slides = [inner for inner in listed(path) if _is_slide(inner)] if path.is_dir() else [path]
            if path.name == SPLITS and path.is_file():
                slides = [Path(slide) for slide in read_splits(path.parent)["val"]]
            files += slides
            if path.is_dir():
                asked = "slides end in " + ", ".join(SLIDE_SUFFIXES) + ", and not in " + ", ".join(NO_SLIDES)
                warnings += left_out(path, slides, SLIDE_SUFFIXES, asked)
        if not files:
            raise UserError("; ".join([f"--slide_path {word}: no slides are there", *warnings]))
        for path in files:
            if found.setdefault(path.stem, path).absolute() != path.absolute():
                raise UserError(f"--slide_path: {found[path.stem]} and {path} have the same name")
    return sorted(found.values(), key=lambda path: (-size_of(path), path.stem)), warnings


def _is_slide(path: Path) -> bool:
    named = path.suffix.lower() in SLIDE_SUFFIXES and not path.stem.lower().endswith(NO_SLIDES)
    return named and is_file(path)
