"""The settings of the preprocessing, and the slides and folders that it works on."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from samplers.labels.label_map import LabelMap
from samplers.pairs.camelyon import center_of
from samplers.pairs.folders import PATCHES
from samplers.pairs.names import patient_of
from samplers.pairs.pairing import SlidePair

LAYOUTS = ("slide", "flat")  # a folder for the patches of each slide, or one for all


@dataclass(frozen=True)
class PatchSettings:
    """The settings that the patches of a folder have in common, as preprocessing.json holds them."""

    patch_size: int = 1024  # pixels
    stride: int = 1024  # pixels from one patch to the next
    spacing: float | None = None  # µm/px; None: that of level 0
    min_tumor: float = 0.01  # smallest share of tumour in a positive patch
    min_tissue: float = 0.5  # smallest share of tissue in a negative patch
    label_map: tuple[str, ...] | None = None  # of GROUP:CLASS
    unannotated: str = "background"  # a key of UNANNOTATED
    min_known: float = 0.5  # smallest share of a patch whose class is known
    all_annotations: bool = False  # take CAMELYON16's partly annotated slides as they are
    max_patches: int | None = None  # per kind and slide
    save_neg: bool = False
    save_png: bool = False
    output_format: str = "png"
    seed: int = 0  # of the random choice of max_patches
    layout: str = "flat"  # one of LAYOUTS; earlier versions had this one only

    def values(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return {**asdict(self), "label_map": self.label_map and list(self.label_map)}

    @functools.cached_property
    def classes(self) -> LabelMap:
        return LabelMap.parse(self.label_map, self.unannotated)

    @property
    def masks_hold_classes(self) -> bool:
        """Whether masks have the classes, and 255 where they are not known. Otherwise tumour is 255, all else 0."""
        return self.classes.ignores or self.classes.num_classes > 2


class Folders(NamedTuple):
    """The folders that patches are written to. Both may be the same."""

    positive: Path
    negative: Path

    def of_patches(self, kind: str, slide: str, layout: str) -> Path:
        """Return the folder of a slide's patches that are "positive" or "negative"."""
        folder: Path = getattr(self, kind)
        return folder / PATCHES / slide if layout == "slide" else folder


@dataclass(frozen=True)
class PatchRow:
    """A line of patches.csv. (x, y) is the corner in level-0 pixels; `size` is in pixels of `spacing` µm/px."""

    patch: str
    slide: str
    patient: str
    center: str
    x: int
    y: int
    size: int
    spacing: float
    tumor_fraction: float  # of the pixels whose class is known
    tissue_fraction: float
    known_fraction: float = 1.0


COLUMNS = tuple(field.name for field in fields(PatchRow))


@dataclass(frozen=True)
class SourceSlide:
    """A slide to cut, its label, and the names of its patches."""

    pair: SlidePair

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def label(self) -> list[Any]:
        """Name, size and time of the label file, by which a changed label is noticed. Empty if there is none."""
        if self.pair.label is None:
            return []
        try:
            status = self.pair.label.stat()
        except OSError:  # a link to nothing: it is named when it is opened
            return [self.pair.label.name]
        return [self.pair.label.name, status.st_size, int(status.st_mtime)]

    @functools.cached_property
    def center(self) -> str:
        """The medical centre, or "" if it is unknown."""
        center = center_of(self.pair.slide)
        return "" if center is None else str(center)

    @property
    def patient(self) -> str:
        return patient_of(self.name) or ""

    def patch_name(self, x_l0: int, y_l0: int) -> str:
        return f"tumor_center_{self.center or 'na'}_{self.name}_{x_l0}_{y_l0}"
