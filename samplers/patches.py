"""The types that a sampler takes and returns, and a rank's share of the slides."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from samplers.labels.label import LabelMap
from samplers.pairs.pairing import SlidePair

# First word of the seeds, so that what is drawn for one purpose tells nothing about another.
SEED_BATCH, SEED_SHARE, SEED_VALIDATION, SEED_AUGMENT, SEED_TUMOUR = 1, 2, 3, 4, 5


class SamplerError(RuntimeError):
    """A worker died, too many slides are bad, or there is no patch of the wanted kind. Ends the run."""


@dataclass(frozen=True)
class SamplerConfig:
    """All that a sampler needs besides the slides; it is pickled to the workers.

    bb_downsample is the *level* of the slide on which regions are found. resolution is the spacing of the
    patches in µm/px, None for level 0. max_bad_slides is a number of slides, or below 1 a part of them
    (then at least one slide).
    """

    sampler: str
    img_size: int
    batch_size: int
    batch_tumor_ratio: float = 1.0
    bb_downsample: int = 7
    resolution: float | None = None
    label_map: LabelMap = field(default_factory=LabelMap)
    seed: int = 0
    augment: bool = False
    stain_jitter: str = "light"  # of the augmentation, a key of augment.JITTERS
    annotation_weighting: str = "balanced"
    max_bad_slides: float = 0.01
    max_validation_patches: int = 512

    def bad_slides_allowed(self, slides: int) -> int:
        if 0 < self.max_bad_slides < 1:
            return max(1, int(self.max_bad_slides * slides))
        return int(self.max_bad_slides)


@dataclass(frozen=True)
class PatchInfo:
    """The place of a patch: (x_l0, y_l0) its upper left corner and size_l0 its side, in level-0 pixels.

    tumour: at least one of its pixels has a class above 0.
    """

    slide: str
    x_l0: int
    y_l0: int
    size_l0: int
    tumour: bool


@dataclass
class Batch:
    """One batch of one rank. The arrays may be views of memory that the next batch overwrites."""

    index: int
    images: np.ndarray  # uint8 (B, H, W, 3)
    labels: np.ndarray  # uint8 (B, H, W)
    patches: list[PatchInfo]


class Sampler(Protocol):
    """Fills batches. The result depends on the index alone, and on the slides dropped by `drop`."""

    def fill(
        self, index: int, images: np.ndarray, labels: np.ndarray
    ) -> tuple[list[PatchInfo], dict[str, str]]:
        """Writes batch `index` to images (B, H, W, 3) and labels (B, H, W), uint8.

        Returns its patches (fewer than B in a last batch of validation) and the slides that could not be
        read on the way, as name → reason. SamplerError: there is no patch of the wanted kind.
        """

    def drop(self, slide: str, index: int) -> None:
        """From batch `index` on, nothing is drawn from this slide."""


def name_seed(name: str) -> int:
    """Return a number for a name, the same in every process (`hash` is not)."""
    return zlib.crc32(name.encode())


def share_slides(pairs: Sequence[SlidePair], rank: int, size: int, seed: int) -> list[SlidePair]:
    """Return the slides of a rank, at least one of those with a label and one of those without, where there are any.

    Both kinds are dealt out apart, so that no rank is left without annotated slides. Fewer slides than
    ranks are shared: then several ranks draw from the same slide, each with its own seed.
    """
    rng = np.random.default_rng((SEED_SHARE, seed))
    mine: list[SlidePair] = []
    for labelled in (True, False):
        group = sorted((p for p in pairs if (p.label is not None) == labelled), key=lambda p: str(p.slide))
        if group:
            order = rng.permutation(len(group))
            mine += [
                group[i] for i in (order[rank::size] if len(group) >= size else [order[rank % len(group)]])
            ]
    return mine
