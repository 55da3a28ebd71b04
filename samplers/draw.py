"""Draws batches for the SURF and the Radboud sampler: each patch is drawn again until it is fit.

A patch is a function of (seed, rank, batch index, place in the batch): it has a generator of its own.

batch_size · batch_tumor_ratio patches of a batch are tumour patches, the first ones. Of a part of a patch they are
one more as often as that part says, by chance: a batch of 1 with a ratio of 0.5 has tumour every other time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from samplers.augment import Augmentation
from samplers.pairs.pairing import SlidePair
from samplers.patches import SEED_AUGMENT, SEED_BATCH, SEED_TUMOUR, PatchInfo, SamplerConfig, SamplerError
from samplers.reader import BadSlideError, OpenPair, PairReader
from samplers.tissue import contrast_is_low, patch_origin

MAX_TRIES = 100  # proposals a patch
MAX_PALE = 10  # of them rejected for low contrast; then the next is taken as it is


@dataclass(frozen=True)
class Proposal:
    """A patch to try: its corner in level-0 pixels and what its label must hold.

    wanted: a class of which at least one pixel must be there, or "tumour" (any above 0), or "none" (only 0).
    """

    pair: SlidePair
    x_l0: int
    y_l0: int
    wanted: int | str

    def read(self, opened: OpenPair) -> tuple[np.ndarray, np.ndarray] | None:
        """Label (H, W) and image (H, W, 3), uint8; None: it does not hold what was wanted."""
        label = opened.read_label(self.x_l0, self.y_l0)  # first: it is cheaper and may say no
        return (label, opened.read_image(self.x_l0, self.y_l0)) if self.fits(label) else None

    def fits(self, label: np.ndarray) -> bool:
        """Return whether the label, uint8 (H, W), of the patch is what was wanted."""
        if isinstance(self.wanted, str):
            return bool(label.any()) == (self.wanted == "tumour")
        return bool((label == self.wanted).any())


class DrawingSampler:
    """Draws each patch of a batch: what a subclass proposes, checked on the label and the image."""

    def __init__(self, config: SamplerConfig, rank: int) -> None:
        self.config, self.rank = config, rank
        self.reader = PairReader(config)
        self.failed_at_start: dict[str, str] = {}  # slides that a subclass could not read, with the reason
        self._dropped: dict[str, int] = {}  # slide → first batch without it

    def propose(self, rng: np.random.Generator, tumour: bool, skip: Collection[str]) -> Proposal | None:
        """Propose a patch with or without tumour, of none of the slides in `skip`; None means to ask again.

        BadSlideError: a slide could not be read. SamplerError: there is none of the wanted kind.
        """
        raise NotImplementedError

    def centred(self, pair: SlidePair, x_l0: float, y_l0: float, wanted: int | str) -> Proposal:
        """Return the patch of a slide centred on a point in level-0 pixels, moved inside of the slide."""
        size_l0, width, height = self.reader.geometry(pair)
        return Proposal(pair, patch_origin(x_l0, size_l0, width), patch_origin(y_l0, size_l0, height), wanted)

    def tumour_patches(self, index: int) -> int:
        """Return how many patches of a batch, the first ones, are tumour patches."""
        # By chance, not every nth: hard mining uses up batches, and could always be left with the same kind.
        chance = np.random.default_rng((SEED_TUMOUR, self.config.seed, self.rank, index)).random()
        return int(self.config.batch_size * self.config.batch_tumor_ratio + chance)

    def drop(self, slide: str, index: int) -> None:
        self._dropped[slide] = min(index, self._dropped.get(slide, index))

    def fill(
        self, index: int, images: np.ndarray, labels: np.ndarray
    ) -> tuple[list[PatchInfo], dict[str, str]]:
        """See `patches.Sampler`. A slide that fails is left out of the rest of the batch."""
        failed = dict(self.failed_at_start)
        skip = {slide for slide, first in self._dropped.items() if index >= first}
        tumour = self.tumour_patches(index)
        patches = [
            self._draw(index, slot, slot < tumour, skip, failed, images[slot], labels[slot])
            for slot in range(len(images))
        ]
        return patches, failed

    def _draw(
        self,
        index: int,
        slot: int,
        tumour: bool,
        skip: set[str],
        failed: dict[str, str],
        image_out: np.ndarray,
        label_out: np.ndarray,
    ) -> PatchInfo:
        place = (self.config.seed, self.rank, index, slot)
        rng = np.random.default_rng((SEED_BATCH, *place))
        pale = 0
        for _ in range(MAX_TRIES):
            try:
                proposal = self.propose(rng, tumour, skip | failed.keys())
                if proposal is None:
                    continue
                pixels = self.reader.read(proposal.pair, proposal.read)
            except BadSlideError as error:
                failed[error.pair.name] = error.reason
                continue
            if pixels is None:
                continue
            label, image = pixels
            if pale < MAX_PALE and contrast_is_low(image):
                pale += 1
                continue
            self._write(place, image, label, image_out, label_out)
            size_l0 = self.reader.geometry(proposal.pair)[0]
            return PatchInfo(proposal.pair.name, proposal.x_l0, proposal.y_l0, size_l0, bool(label.any()))
        raise SamplerError(
            f"batch {index}: {MAX_TRIES} patches were drawn and none was fit; failed slides: {failed}"
        )

    def _write(
        self,
        place: tuple[int, ...],
        image: np.ndarray,
        label: np.ndarray,
        image_out: np.ndarray,
        label_out: np.ndarray,
    ) -> None:
        if self.config.augment:
            # A generator of its own: with and without augmentation, the same patches are drawn.
            augmentation = Augmentation.draw(
                np.random.default_rng((SEED_AUGMENT, *place)), self.config.stain_jitter
            )
            augmentation.image(image, image_out)
            augmentation.label(label, label_out)
        else:
            np.copyto(image_out, image)
            np.copyto(label_out, label)
