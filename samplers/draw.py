"""Draws batches of random patches for the SURF and the Radboud sampler; each patch is redrawn until it is suitable.

A patch is a function of (seed, rank, batch index, place in the batch): each patch has its own generator.

The first batch_size · batch_tumor_ratio patches of a batch are tumour patches. The fraction of that number is the
chance of one more: of the batches of one patch with a ratio of 0.5, a random half are tumour patches.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from samplers.augment import Augmentation
from samplers.labels.label_map import known_share, shows_tumour
from samplers.pairs.pairing import SlidePair
from samplers.patches import SEED_AUGMENT, SEED_BATCH, SEED_TUMOUR, PatchInfo, SamplerConfig, SamplerError
from samplers.reader import BadSlideError, OpenPair, PairReader
from samplers.tissue import contrast_is_low, patch_origin

MAX_TRIES = 100  # proposals per patch
MAX_PALE = 10  # proposals per patch that are rejected for low contrast; the next one is accepted as it is


@dataclass(frozen=True)
class Proposal:
    """A patch to try: its corner in level-0 pixels, and what its label must contain.

    wanted: a class that at least one pixel must have, or "tumour" (any class above 0), or "none" (no class above 0).
    """

    pair: SlidePair
    x_l0: int
    y_l0: int
    wanted: int | str

    def read(self, opened: OpenPair) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the label (H, W) and the image (H, W, 3), uint8; None if the label is not what was wanted."""
        label = opened.read_label(
            self.x_l0, self.y_l0
        )  # first, because it is cheaper and may rule the patch out
        fits = self.fits(label, opened.min_known)
        return (label, opened.read_image(self.x_l0, self.y_l0)) if fits else None

    def fits(self, label: np.ndarray, min_known: float = 0.0) -> bool:
        """Return whether the label of the patch, uint8 (H, W), is what was wanted and known enough."""
        if min_known and known_share(label) < min_known:
            return False
        if isinstance(self.wanted, str):
            return bool(shows_tumour(label).any()) == (self.wanted == "tumour")
        return bool((label == self.wanted).any())


class DrawingSampler:
    """Draws the patches of a batch: a subclass proposes patches, and their labels and images are checked here."""

    def __init__(self, config: SamplerConfig, rank: int) -> None:
        self.config, self.rank = config, rank
        self.reader = PairReader(config)
        self.failed_at_start: dict[str, str] = {}  # slides that a subclass could not read → reason
        self._dropped: dict[str, int] = {}  # slide → first batch that does not draw from it

    def propose(self, rng: np.random.Generator, tumour: bool, skip: Collection[str]) -> Proposal | None:
        """Return a patch with or without tumour from a slide that is not in `skip`; None to be asked again.

        Raises BadSlideError if a slide cannot be read, SamplerError if there is no patch of the wanted kind.
        """
        raise NotImplementedError

    def centred(self, pair: SlidePair, x_l0: float, y_l0: float, wanted: int | str) -> Proposal:
        """Return the patch centred on a point in level-0 pixels, moved so that it lies inside the slide."""
        size_l0, width, height = self.reader.geometry(pair)
        return Proposal(pair, patch_origin(x_l0, size_l0, width), patch_origin(y_l0, size_l0, height), wanted)

    def tumour_patches(self, index: int) -> int:
        """Return how many patches of a batch are tumour patches."""
        # At random, not every nth batch: hard mining uses up batches and might always keep the same kind.
        chance = np.random.default_rng((SEED_TUMOUR, self.config.seed, self.rank, index)).random()
        return int(self.config.batch_size * self.config.batch_tumor_ratio + chance)

    def drop(self, slide: str, index: int) -> None:
        self._dropped[slide] = min(index, self._dropped.get(slide, index))

    def fill(
        self, index: int, images: np.ndarray, labels: np.ndarray
    ) -> tuple[list[PatchInfo], dict[str, str]]:
        """Fill a batch, see `patches.Sampler`. The rest of the batch does not draw from a slide that failed."""
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
            tumour = bool(shows_tumour(label).any())
            return PatchInfo(proposal.pair.name, proposal.x_l0, proposal.y_l0, size_l0, tumour)
        raise SamplerError(
            f"batch {index}: {MAX_TRIES} patches were drawn and none was suitable; failed slides: {failed}"
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
            # It has its own generator, so that the same patches are drawn with and without augmentation.
            augmentation = Augmentation.draw(
                np.random.default_rng((SEED_AUGMENT, *place)), self.config.stain_jitter
            )
            augmentation.image(image, image_out)
            augmentation.label(label, label_out)
        else:
            np.copyto(image_out, image)
            np.copyto(label_out, label)
