"""Checks that a slide and its label can be used, in a fraction of a second however large they are.

The check reads the headers, compares the places of the tiles with the size of the file and decodes a few regions that
are far apart.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from samplers.labels.label import Label, LabelMap, MaskLabel, PolygonLabel, open_label
from samplers.pairs.folders import broken_link
from samplers.slides.errors import DataError
from samplers.slides.patch_geometry import patch_geometry
from samplers.slides.slide import Slide
from samplers.slides.tiff_pages import TIFF_ERRORS
from samplers.tissue import tissue_mask
from utils.failures import failure_of

_PLAIN_IMAGES = (".png", ".jpg", ".jpeg", ".bmp")  # formats without a spacing
_GRID = 4  # 4 × 4 regions are decoded at level 0
_REGION = 64  # side of a region in pixels
_PATCH_UM = (
    1000.0  # a smaller image is a patch cut from a slide, where its tissue was found with larger kernels
)
_THUMBNAIL = 1024  # pixels of the longer side of the picture in which tissue is looked for


class LabelFacts(NamedTuple):
    """What the check of a pair finds in its label."""

    areas: (
        dict[int, float] | None
    )  # mm² of each class that occurs, IGNORED among them; None: it would take long
    groups: dict[str, int]  # annotations of each group in the file, used or not


class Checked(NamedTuple):
    """The reasons why a slide and its label cannot be used, and what the label holds if there are none."""

    reasons: list[str]
    facts: LabelFacts


def check_pair(
    slide_path: Path,
    label_path: Path | None,
    label_map: LabelMap,
    img_size: int,
    resolution: float | None = None,
) -> list[str]:
    """Return the reasons why a slide and its label cannot be used for patches of `img_size`; none if they can.

    `resolution` is the spacing of the patches in µm/px, None means level 0. Only with a resolution must the spacing
    of a slide be known. An error that nobody expected is one of the reasons, so that all slides are checked.
    """
    return examine_pair(slide_path, label_path, label_map, img_size, resolution).reasons


def examine_pair(
    slide_path: Path,
    label_path: Path | None,
    label_map: LabelMap,
    img_size: int,
    resolution: float | None = None,
) -> Checked:
    """Do what `check_pair` does, and also return what the label holds."""
    try:
        return _examine(slide_path, label_path, label_map, img_size, resolution)
    except (DataError, OSError) as error:
        reason = str(error)
    except Exception as error:
        reason = failure_of(error, f"check of {slide_path} with {label_path}")
    return Checked([reason], LabelFacts(None, {}))


def _examine(
    slide_path: Path, label_path: Path | None, label_map: LabelMap, img_size: int, resolution: float | None
) -> Checked:
    damage = [reason for path in (slide_path, label_path) if path is not None for reason in check_tiff(path)]
    if damage:
        return Checked(damage, LabelFacts(None, {}))
    with Slide(slide_path) as slide:
        reasons = _check_slide(slide, img_size, resolution)
        label = open_label(label_path, slide, label_map)
        try:
            reasons += check_label(label)
            for reason in label.left_out:  # groups that the map does not name are counted over all slides
                logging.getLogger(__name__).warning("%s", reason)
            areas = None if reasons else label.areas()
        finally:
            label.close()
        mm2 = (slide.spacing / 1000) ** 2
        found = areas and {value: area * mm2 for value, area in areas.items()}
        return Checked(reasons, LabelFacts(found, label.groups))


def _check_slide(slide: Slide, img_size: int, resolution: float | None) -> list[str]:
    """Return the reasons against a slide that is open. Raises ReadError if a region cannot be decoded."""
    decode_samples(slide)
    reasons = []
    if resolution is not None and not slide.spacing_known and slide.path.suffix.lower() not in _PLAIN_IMAGES:
        reasons.append(f"{slide.path}: the spacing is missing, patches of {resolution:g} µm/px cannot be cut")
    try:
        patch_geometry(slide, img_size, resolution)
    except DataError as error:
        reasons.append(str(error))
    if max(slide.width, slide.height) * slide.spacing < _PATCH_UM:
        return reasons
    thumbnail = slide.thumbnail(_THUMBNAIL)
    if not tissue_mask(thumbnail, slide.spacing * slide.width / thumbnail.shape[1]).any():
        reasons.append(f"{slide.path}: no tissue")
    return reasons


def check_label(label: Label) -> list[str]:
    """Return the reasons why a label cannot be used. Raises ReadError if a region of a mask cannot be decoded."""
    if isinstance(label, MaskLabel):  # an empty mask is valid: the slide has no tumour
        decode_samples(label.mask)
        return label.check()
    if isinstance(label, PolygonLabel):
        values = {annotation.value for annotation in label.annotations()}
        # If only exclusions are left because the group of the lesions is unknown, the slide is not tumour-free.
        if (not values and not label.ignores) or (label.remarks and values <= {0}):
            why = f" ({'; '.join(label.remarks)})" if label.remarks else ""
            return [f"{label.name}: no annotation that could be used{why}"]
    return []


def decode_samples(slide: Slide) -> None:
    """Decode regions that are far apart, and the last one of each level. Raises ReadError if one cannot be decoded.

    A damaged tile between them is found when it is read.
    """
    for level, (width, height) in enumerate(slide.level_sizes):
        size = (min(_REGION, width), min(_REGION, height))
        number = _GRID if level == 0 else 2
        for y in np.linspace(0, height - size[1], number).astype(int):
            for x in np.linspace(0, width - size[0], number).astype(int):
                slide.read_level(int(x), int(y), *size, level)


def check_tiff(path: Path) -> list[str]:
    """Return the reasons why a TIFF file is not complete, or a link leads nowhere; none for files of other formats.

    libvips takes a file whose later levels are cut off for one with fewer levels.
    """
    broken = broken_link(path)
    if broken:
        return [broken]
    try:
        file_size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) not in (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+"):
                return []
        with _complaints() as errors, tifffile.TiffFile(path) as tiff:
            pages = [page for top in tiff.pages for page in (top, *(top.pages or ()))]
            reasons = [reason for page in pages for reason in _check_page(page, path, file_size)]
    except TIFF_ERRORS as error:
        return [f"{path}: cannot be read as TIFF: {error}"]
    offsets = [text for text in errors if "offset" in text]
    if not reasons and (offsets or not pages):
        what = offsets[0] if offsets else "it has no image"
        reasons = [f"{path}: truncated or damaged, the file has {file_size} bytes: {what}"]
    return reasons


def _check_page(page: tifffile.TiffPage, path: Path, file_size: int) -> list[str]:
    offsets, counts = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
    name = f"{path}: {'tile' if page.is_tiled else 'strip'}"
    if len(offsets) != len(counts) or len(offsets) == 0:
        return [f"{name}s of image {page.index}: {len(offsets)} offsets, but {len(counts)} sizes"]
    if not counts.any():
        return [f"{path}: image {page.index} has no pixels, its {len(counts)} tiles or strips are empty"]
    behind = np.flatnonzero((offsets + counts > file_size) & (counts > 0))
    if not len(behind):
        return []
    end = int((offsets + counts)[behind].max())
    return [
        f"{name} {behind[0]} of image {page.index} ({len(behind)} of {len(offsets)}) ends behind the "
        f"end of the file (at {end} of {file_size} bytes): the file is truncated or damaged"
    ]


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what tifffile logs as errors in this thread, where it continues with fewer pages or without a tag."""
    messages: list[str] = []
    thread = threading.get_ident()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread and record.levelno >= logging.ERROR:
                messages.append(record.getMessage())

    handler = Collect()
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
