"""Writes labels with which a training ignores the regions of the audit, and says with which options it does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import numpy as np
import shapely

from prediction.audit.files import GROUPS, OTHER
from prediction.audit.findings import Finding
from prediction.audit.maps import ComparedSlide
from prediction.raster import TILE, Raster
from prediction.write import write_tiff
from samplers.labels import polygons
from samplers.labels.label import MaskLabel
from samplers.labels.label_map import IGNORED, NO_GROUP, LabelMap
from samplers.slides.frame import description_of, mask_scale

ASAP, MASKS = "asap", "masks"  # folders


def write_mask(path: Path, findings: Sequence[Finding], slide: ComparedSlide, work: Path) -> None:
    """Write the label of a slide as a mask of its classes, IGNORED in the regions, with the pixels of its own mask.

    A slide without a label has those of the prediction. `work` is the path of a file for the time being. OutputError:
    it cannot be written.
    """
    label = slide.label
    scale = mask_scale(label.mask, slide.slide) if isinstance(label, MaskLabel) else slide.downsample
    width, height = (max(1, int(size / scale)) for size in label.size)
    work.unlink(missing_ok=True)
    raster = Raster(work, width, height)
    edges = [
        (polygons.edges_of(finding.outline), shapely.box(*shapely.bounds(finding.outline)))
        for finding in findings
    ]
    try:
        for row, column in np.ndindex(raster.rows, raster.columns):
            x, y = column * TILE, row * TILE
            size = min(TILE, width - x), min(TILE, height - y)
            corner = x * scale, y * scale
            pixels = label.read_at(*corner, *size, scale).copy()
            tile = shapely.box(*corner, corner[0] + size[0] * scale, corner[1] + size[1] * scale)
            for lines, box in edges:
                if shapely.intersects(tile, box):
                    pixels[polygons.fill(lines, *corner, *size, scale)] = IGNORED
            raster.write(x, y, pixels)
        description = description_of(slide.slide, scale)
        write_tiff(path, raster, slide.slide.spacing * scale, True, description)
    finally:
        raster.discard()


def training_options(folder: Path, label_map: LabelMap, masks: bool) -> str:
    """Return the options with which train.py takes the labels of the audit, and ignores the regions."""
    if masks:
        classes = " ".join(f"{value}:{value}" for value in range(label_map.num_classes))
        return f"--label_path {quote(str(folder / MASKS))} --label_format tif --label_map {classes} {IGNORED}:ignore"
    # Outlines without a group are as the map's default has it, unless it was asked for them.
    groups = [
        f"{group}:{'ignore' if value == IGNORED else value}"
        for group, value in label_map.groups
        if not group.isdecimal() and (group != NO_GROUP or label_map.names_no_group)
    ]
    ignores = label_map.unannotated == IGNORED
    ours = {OTHER: "0"} if ignores else {}
    ours |= dict.fromkeys(GROUPS.values(), "ignore")
    known = {group for group, _ in label_map.groups}
    groups += [f"{group}:{value}" for group, value in ours.items() if group not in known]
    return (
        f"--label_path {quote(str(folder / ASAP))} --label_format xml --label_map {' '.join(map(quote, groups))}"
        + " --unannotated ignore" * ignores
    )
