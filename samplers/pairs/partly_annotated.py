"""Slides that are annotated in part, and other known faults of the public data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from samplers.pairs.names import name_some, plain_key
from samplers.pairs.pairing import SlidePair
from samplers.slides.errors import DataError

# CAMELYON16's training slides on which not all lesions are annotated: PMC9659028, table 1.
_NUMBERS = (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
PARTLY_16 = frozenset(f"tumor_{number:03d}" for number in _NUMBERS)
# Of the test set, test_049 is a duplicate of another slide and test_114 is not annotated exhaustively.
UNFIT_16 = frozenset({"test_049", "test_114"})


def mark_partly_annotated(pairs: Sequence[SlidePair], names: frozenset[str]) -> list[SlidePair]:
    """Return the pairs; those of these names (`plain_key`) that have a label are marked as annotated in part."""
    return [
        replace(pair, partly_annotated=True) if pair.label and plain_key(pair.name) in names else pair
        for pair in pairs
    ]


def without(pairs: Sequence[SlidePair], names: frozenset[str]) -> list[SlidePair]:
    """Return the pairs that do not have one of these names (`plain_key`)."""
    return [pair for pair in pairs if plain_key(pair.name) not in names]


def read_names(path: Path, pairs: Sequence[SlidePair]) -> frozenset[str]:
    """Return the slides that a text file names, one a line, as `plain_key`; a # begins a comment.

    A name may have the ending of the slide. Raises DataError if the file cannot be read, or names a slide that is not
    among the pairs or has no annotation.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    wanted = [name for name in (line.partition("#")[0].strip() for line in lines) if name]
    known = {plain_key(pair.name): pair for pair in pairs}
    missing = [name for name in wanted if plain_key(name) not in known]
    if missing:
        raise DataError(f"{path}: {len(missing)} names are of no slide of this run: {name_some(missing)}")
    found = [known[plain_key(name)] for name in wanted]
    bare = [pair.slide for pair in found if pair.label is None]
    if bare:
        raise DataError(
            f"{path}: {len(bare)} slides have no annotation that could be partial: {name_some(bare)}"
        )
    return frozenset(plain_key(pair.name) for pair in found)
