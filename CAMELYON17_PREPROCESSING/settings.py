"""The settings of the preprocessing, and the slides and folders that it works on."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from samplers.pairs.camelyon import center_of
from samplers.pairs.pairing import SlidePair, patient_of


@dataclass(frozen=True)
class PatchSettings:
    """The settings that the patches of a folder have in common, as preprocessing.json holds them."""

    patch_size: int = 1024  # pixels
    stride: int = 1024  # pixels of the patch from one to the next
    spacing: float | None = None  # µm/px, None: level 0
    min_tumor: float = 0.01  # part of a positive patch
    min_tissue: float = 0.5  # part of a negative patch
    max_patches: int | None = None  # of each kind and slide
    save_neg: bool = False
    save_png: bool = False
    output_format: str = "png"
    seed: int = 0  # of the choice for max_patches

    def values(self) -> dict[str, Any]:
        return asdict(self)


class Folders(NamedTuple):
    """The folders that patches go to; both may be the same."""

    positive: Path
    negative: Path


@dataclass(frozen=True)
class PatchRow:
    """A line of patches.csv. x, y: corner in level-0 pixels; size in pixels of `spacing` µm/px."""

    patch: str
    slide: str
    patient: str
    center: str
    x: int
    y: int
    size: int
    spacing: float
    tumor_fraction: float
    tissue_fraction: float


COLUMNS = tuple(field.name for field in fields(PatchRow))


@dataclass(frozen=True)
class SourceSlide:
    """A slide, its label, and how its patches are called."""

    pair: SlidePair

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def label(self) -> list[Any]:
        """Name, bytes and time of the label: another one makes other patches. Empty if there is none."""
        if self.pair.label is None:
            return []
        status = self.pair.label.stat()
        return [self.pair.label.name, status.st_size, int(status.st_mtime)]

    @functools.cached_property
    def center(self) -> str:
        """Empty if it is not known."""
        center = center_of(self.pair.slide)
        return "" if center is None else str(center)

    @property
    def patient(self) -> str:
        return patient_of(self.name) or ""

    def patch_name(self, x_l0: int, y_l0: int) -> str:
        return f"tumor_center_{self.center or 'na'}_{self.name}_{x_l0}_{y_l0}"
