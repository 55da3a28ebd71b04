"""The names of slides, labels and predictions: which of them are about the same slide, and which patient it is of.

Two names are about one slide if they are the same without regard to case and Unicode form, and without what follows the
slide's name in CAMELYON and in common tools: `_mask`, `_annotations`, `_labels`, `mask_` in front, `_prediction` of
predict.py, and the ending of a picture that was kept (`x.svs.xml`, `x.ome.tif`). Nothing else is guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

_ENDINGS = (
    "tif tiff btf svs svslide mrxs ndpi scn bif vms vmu qptiff vsi czi dcm isyntax "
    "i2syntax lif afi jp2 zarr png jpg jpeg bmp ome"
)
SLIDE_ENDINGS = tuple(_ENDINGS.split())
_PICTURE = re.compile(rf"\.(?:{'|'.join(SLIDE_ENDINGS)})$")
_ADDED = re.compile(r"^mask_|[_.-](?:masks?|annotations?|labels?)$")
_PREDICTED = re.compile(r"_prediction$")
_CHALLENGE = re.compile(r"(?:tumor|normal|test)_\d{1,3}|patient_\d{3}_node_\d")
_TCGA = re.compile(r"(?<![A-Za-z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Za-z0-9])", re.IGNORECASE)
_NAMED = 10  # files that a message names; the others are counted


def plain_key(stem: str) -> str:
    """Return the stem of a slide's file in one Unicode form and case, without the ending of a picture in it."""
    key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
    return _without(key, _PICTURE)


def slide_key(stem: str) -> str:
    """Return the slide that the stem of any file is about: `plain_key` of the slide, without what was added to it."""
    return _without(plain_key(stem), _PICTURE, _ADDED, _PREDICTED)


def is_decorated(stem: str) -> bool:
    """Return whether a stem says that the file is a label and no slide: `x_mask`, `mask_x`, `x_labels`, …"""
    key = plain_key(stem)
    return _without(key, _PICTURE, _ADDED) != key


def _without(key: str, *patterns: re.Pattern[str]) -> str:
    """Take off what the patterns match, as often as they do, but never the whole name."""
    for pattern in patterns * 3:  # x_mask.svs, x.ome.tif
        shorter = pattern.sub("", key)
        key = shorter or key
    return key


def is_challenge_name(key: str) -> bool:
    """Return whether a key is a slide of CAMELYON16 or 17 to the letter, such as `test_001` or `patient_004_node_4`.

    Their lists are public: a label of such a name without a slide is of one that was not downloaded, and no mistake.
    """
    return _CHALLENGE.fullmatch(key) is not None


def is_normal(key: str) -> bool:
    """Return whether a slide is called tumour-free, as CAMELYON16's `normal_001`: it needs no label."""
    return key.startswith("normal_")


def is_tumour(key: str) -> bool:
    """Return whether a slide is called tumour, as CAMELYON16's `tumor_001`: without a label it is never normal."""
    return re.match(r"tumou?r_\d", key) is not None


def patient_of(name: str, pattern: re.Pattern[str] | None = None) -> str | None:
    """Return the patient in the name of a slide or of a patch, None if it is not known.

    `patient_017_node_4` of CAMELYON17 gives "017", a barcode of TCGA its first three fields. With a `pattern` (one that
    `patient_pattern` returns) it is that pattern's first group alone.
    """
    if pattern is not None:
        found = pattern.search(slide_of_patch(name) or name)
        return found.group(1) or None if found else None
    found = re.search(r"patient_(\d+)_node_\d+", name)
    if found:
        return found.group(1)
    found = _TCGA.search(name)
    return found.group(0).upper() if found else None


def patient_pattern(text: str) -> re.Pattern[str]:
    """Return a regular expression for `patient_of`. ValueError: it is wrong, or no group says what the patient is."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    if not pattern.groups:
        raise ValueError(f"{text!r} has no group in parentheses, which would be the patient: take '({text})'")
    return pattern


def slide_of_patch(name: str) -> str | None:
    """Return the slide in the name of a preprocessed patch, `tumor_center_<center>_<slide>_<x>_<y>`."""
    found = re.fullmatch(r"tumor_center_(?:\d+|na)_(.+)_\d+_\d+", name)
    return found.group(1) if found else None


def name_some(files: Iterable[Path | str]) -> str:
    """Return the first ten names, and how many more there are."""
    files = list(files)
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(str(file) for file in files[:_NAMED]) + more
