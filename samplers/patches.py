"""The interface of the samplers: configuration, patch, batch and error, and a rank's share of the slides."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from samplers.labels.label import LabelMap
from samplers.pairs.pairing import SlidePair
from utils.ranks.patch_group import Rows, Strip

# The first word of each seed, so that the draws for different purposes are independent.
SEED_BATCH, SEED_SHARE, SEED_VALIDATION, SEED_AUGMENT, SEED_TUMOUR = 1, 2, 3, 4, 5


class SamplerError(RuntimeError):
    """A worker died, too many slides are bad, or there is no patch of the wanted kind. It ends the run."""


@dataclass(frozen=True)
class SamplerConfig:
    """The configuration of a sampler; it is pickled to the workers.

    bb_downsample is the *level* of the slide on which regions are found. resolution is the spacing of the patches in
    µm/px, None means level 0. max_bad_slides is a number of slides or, if below 1, a fraction of them (at least one
    slide).
    """

    sampler: str
    img_size: int
    batch_size: int
    batch_tumor_ratio: float = 1.0
    bb_downsample: int = 7
    resolution: float | None = None
    label_map: LabelMap = field(default_factory=LabelMap)
    min_known: float = 0.1
    seed: int = 0
    augment: bool = False
    stain_jitter: str = "light"  # strength of the augmentation, a key of augment.JITTERS
    annotation_weighting: str = "balanced"
    max_bad_slides: float = 0.01
    max_validation_patches: int = 512
    strip: Strip | None = None

    @property
    def strips(self) -> Strip:
        """Return the strip of this rank, which is the whole patch unless several ranks share it."""
        return self.strip or Strip(0, (Rows(0, self.img_size),))

    def bad_slides_allowed(self, slides: int) -> int:
        return bad_slides_allowed(self.max_bad_slides, slides)


def bad_slides_allowed(most: float, slides: int) -> int:
    """Return how many of some slides may be bad, by --max_bad_slides: a number, or below 1 a share, at least one."""
    return max(1, int(most * slides)) if 0 < most < 1 else int(most)


@dataclass(frozen=True)
class PatchInfo:
    """The place of a patch: its upper left corner (x_l0, y_l0) and its side size_l0, in level-0 pixels.

    tumour says whether at least one of its pixels has a class above 0.
    """

    slide: str
    x_l0: int
    y_l0: int
    size_l0: int
    tumour: bool


@dataclass
class Batch:
    """One batch of one rank. The arrays may be views of memory that the next batch overwrites.

    H is the height of the rank's strip if several ranks share a patch. `patches` are the whole ones.
    """

    index: int
    images: np.ndarray  # uint8 (B, H, W, 3)
    labels: np.ndarray  # uint8 (B, H, W)
    patches: list[PatchInfo]


def too_many_bad_slides(bad: Mapping[str, str], allowed: int) -> SamplerError:
    """Return the error of slides that cannot be read, with their reasons, where fewer are allowed."""
    listed = "\n".join(f"  {slide}: {reason}" for slide, reason in sorted(bad.items()))
    return SamplerError(
        f"{len(bad)} slides could not be read, {allowed} are allowed (--max_bad_slides):\n{listed}"
    )


def name_seed(name: str) -> int:
    """Return a number for a name that is the same in every process, unlike `hash`."""
    return zlib.crc32(name.encode())


def share_slides(pairs: Sequence[SlidePair], rank: int, size: int, seed: int) -> list[SlidePair]:
    """Return the slides of a rank: at least one with a label and one without, where there are any.

    Both kinds are dealt out separately, so that no rank is left without annotated slides. If there are fewer slides
    than ranks, several ranks draw from the same slide, each with its own seed.
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
