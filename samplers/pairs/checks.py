"""Checks that a slide and its label can be used, in a fraction of a second however large they are.

The check reads the headers, compares the places of the tiles with the size of the file and decodes a few regions that
are far apart.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samplers.labels.label import Label, LabelMap, MaskLabel, PolygonLabel, open_label
from samplers.slides.errors import DataError
from samplers.slides.patch_geometry import patch_geometry
from samplers.slides.slide import Slide
from samplers.slides.stored_file import StoredFile
from samplers.slides.tiff_directory import Page, is_tiff, read_directory
from samplers.tissue import least_side, tissue_mask
from utils.failures import failure_of

_PLAIN_IMAGES = (".png", ".jpg", ".jpeg", ".bmp")  # formats without a spacing
_GRID = 4  # 4 × 4 regions are decoded at level 0
_REGION = 64  # side of a region in pixels
_PATCH_UM = (
    1000.0  # a smaller image is a patch cut from a slide, where its tissue was found with larger kernels
)
_THUMBNAIL = 1024  # pixels of the longer side of the picture in which tissue is looked for, or more

log = logging.getLogger(__name__)


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
    remarks: Sequence[str] = ()  # what is assumed or left out, which was said when it was found

    def to_json(self) -> list[Any] | None:
        """Return what is kept of the check for the next run; None if the pair cannot be used."""
        areas, groups = self.facts
        return None if self.reasons else [areas and list(areas.items()), groups, self.remarks]

    @classmethod
    def from_json(cls, value: list[Any]) -> Checked:
        areas, groups, remarks = value
        return cls([], LabelFacts(areas and dict(areas), groups), remarks)

    def say(self) -> Checked:
        """Log the remarks again, as the check has done."""
        for remark in self.remarks:
            log.warning("%s", remark)
        return self


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
    with open_whole(slide_path) as slide:
        reasons = _check_slide(slide, img_size, resolution)
        label = open_label(label_path, slide, label_map)
        try:
            reasons += check_label(label)
            for reason in label.left_out:  # groups that the map does not name are counted over all slides
                log.warning("%s", reason)
            areas = None if reasons else label.areas()
        finally:
            label.close()
        mm2 = (slide.spacing / 1000) ** 2
        found = areas and {value: area * mm2 for value, area in areas.items()}
        remarks = [*slide.remarks, *label.left_out]
        return Checked(reasons, LabelFacts(found, label.groups), remarks)


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
    extent_um = max(slide.width, slide.height) * slide.spacing
    if extent_um < _PATCH_UM:
        return reasons
    thumbnail = slide.thumbnail(max(_THUMBNAIL, least_side(extent_um)))
    if not tissue_mask(thumbnail, slide.spacing * slide.width / thumbnail.shape[1]).any():
        reasons.append(f"{slide.path}: no tissue")
    return reasons


def check_label(label: Label) -> list[str]:
    """Return the reasons why a label cannot be used. Raises DataError if a mask is not whole or cannot be decoded."""
    if isinstance(label, MaskLabel):  # an empty mask is valid: the slide has no tumour
        refuse_incomplete(label.mask)
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


def open_whole(path: Path) -> Slide:
    """Open a slide whose file is complete. Raises DataError if it is not, or cannot be opened."""
    slide = Slide(path)
    try:
        refuse_incomplete(slide)
    except BaseException:
        slide.close()
        raise
    return slide


def refuse_incomplete(slide: Slide) -> None:
    """Raise DataError if a tile of a TIFF file lies behind the end of the file. Files of other formats pass.

    So do Hamamatsu's, which are TIFFs with tags of their own.
    """
    path = slide.path
    if path.is_dir() or not is_tiff(path) or path.suffix.lower() == ".ndpi":
        return
    file = StoredFile(path)
    try:
        pages: Sequence[Page] = slide.pages or read_directory(file)
        for number, page in enumerate(part for top in pages for part in (top, *top.levels)):
            problem = _incomplete(page, number, file)
            if problem:
                raise DataError(f"{path}: {problem}")
    finally:
        file.close()


def _incomplete(page: Page, number: int, file: StoredFile) -> str | None:
    if page.problem:
        return f"image {number} {page.problem}: the file is truncated or damaged"
    offsets, sizes = (
        part.read(file, 0, part.length).astype(np.uint64) for part in (page.offsets, page.sizes)
    )
    count = min(len(offsets), len(sizes))
    offsets, sizes = offsets[:count], sizes[:count]
    if not sizes.any():
        return f"image {number} has no pixels, its {count} tiles or strips are empty"
    behind = np.flatnonzero(sizes > file.size - np.minimum(offsets, file.size))
    if not len(behind):
        return None
    name, end = "tile" if page.tiled else "strip", max(int(offsets[i]) + int(sizes[i]) for i in behind)
    return (
        f"{name} {behind[0]} of image {number} ({len(behind)} of {count}) ends behind the end of the file "
        f"(at {end} of {file.size} bytes): the file is truncated or damaged"
    )
