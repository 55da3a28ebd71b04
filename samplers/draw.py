"""Draws batches of random patches for the SURF and the Radboud sampler; each patch is redrawn until it is suitable.

A patch is a function of (seed, rank, batch index, place in the batch): each patch has its own generator. Where several
ranks share a patch, `rank` is the number of their group (`utils.ranks.patch_group`). Each of them then reads its strip
of image and label, and what only the whole patch shows they compare (`samplers.agreement`).

The first batch_size · batch_tumor_ratio patches of a batch are tumour patches. The fraction of that number is the
chance of one more: of the batches of one patch with a ratio of 0.5, a random half are tumour patches.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from samplers.agreement import NO_RULING, Failure, Filled, Look, Place, Ruling
from samplers.augment import Augmentation
from samplers.pairs.pairing import SlidePair
from samplers.patches import SEED_AUGMENT, SEED_BATCH, SEED_TUMOUR, PatchInfo, SamplerConfig, SamplerError
from samplers.reader import BadSlideError, OpenPair, PairReader
from samplers.shown import Claim, Shown, Wanted
from samplers.slides.part import Part
from samplers.tissue import contrast_is_low, contrast_sums, patch_origin

MAX_TRIES = 100  # proposals per patch
MAX_NEAR = 50  # proposals per patch of the slides of the rank's share; those after them are of all slides
MAX_PALE = 10  # proposals per patch that are rejected for low contrast; the next one is accepted as it is


class Pixels(NamedTuple):
    """The label (h, w) and the image (h, w, 3) of a patch or a strip of it, uint8; and what its label shows.

    `claim`: the rest of the label decides whether it fits.
    """

    label: np.ndarray
    image: np.ndarray
    shown: Shown
    claim: Claim | None


@dataclass(frozen=True)
class Proposal:
    """A patch to try: its corner in level-0 pixels, and what its label must contain (`Wanted.kind`)."""

    pair: SlidePair
    x_l0: int
    y_l0: int
    wanted: int | str

    def read(self, opened: OpenPair, parts: Sequence[Part | None] = (None,)) -> Pixels | None:
        """Return the first of the `parts` of the patch, which together are all of it; None if the label does not fit.

        The label is read first, because it is cheaper and may rule the patch out. Of several parts the other ones are
        read only for tumour patches, which many proposals are not. All others nearly always fit, so that the ranks
        that share a patch take them, and compare what their strips show (`agreement.ruling_after`).
        """
        wanted = Wanted(self.wanted, opened.min_known)
        label = opened.read_label(self.x_l0, self.y_l0, parts[0])
        shown = Shown.by(label, wanted)
        claim = None if len(parts) == 1 or wanted.kind == "tumour" else Claim(shown, wanted)
        if claim is None:
            for part in parts[1:]:
                if shown.tumour and not wanted.min_known:
                    break  # the rest changes nothing
                shown = shown.with_part(Shown.by(opened.read_label(self.x_l0, self.y_l0, part), wanted))
            if not shown.fits(wanted):
                return None
        return Pixels(label, opened.read_image(self.x_l0, self.y_l0, parts[0]), shown, claim)


class DrawingSampler:
    """Draws the patches of a batch: a subclass proposes patches, and their labels and images are checked here."""

    def __init__(self, config: SamplerConfig, rank: int) -> None:
        self.config, self.rank = config, rank
        self.reader = PairReader(config)
        self.failed_at_start: dict[str, str] = {}  # slides that a subclass could not read → reason
        self._dropped: dict[str, int] = {}  # slide → first batch that does not draw from it

    def propose(
        self, rng: np.random.Generator, tumour: bool, skip: Collection[str], anywhere: bool = False
    ) -> Proposal | None:
        """Return a patch with or without tumour from a slide that is not in `skip`; None to be asked again.

        It is of the rank's share of the slides where that has such patches, and `anywhere` of all slides. Raises
        BadSlideError if a slide cannot be read, SamplerError if there is no patch of the wanted kind.
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

    def fill(self, index: int, images: np.ndarray, labels: np.ndarray, ruling: Ruling = NO_RULING) -> Filled:
        """Fill a batch, see `agreement.Sampler`. The rest of the batch does not draw from a slide that failed."""
        skip = {slide for slide, first in self._dropped.items() if index >= first}
        failures = {slide: Failure(slide, reason) for slide, reason in self.failed_at_start.items()}
        failures.update({failure.slide: failure for failure in ruling.at_start()})
        draw = _Draw(index, skip, failures, ruling)
        tumour = self.tumour_patches(index)
        looks = [
            self._draw(draw, slot, slot < tumour, images[slot], labels[slot]) for slot in range(len(images))
        ]
        return Filled([look.patch for look in looks], list(failures.values()), looks)

    def _draw(
        self, draw: _Draw, slot: int, tumour: bool, image_out: np.ndarray, label_out: np.ndarray
    ) -> Look:
        seed = (self.config.seed, self.rank, draw.index, slot)
        rng = np.random.default_rng((SEED_BATCH, *seed))
        # It has its own generator, so that the same patches are drawn with and without augmentation.
        augmentation = None
        if self.config.augment:
            generator = np.random.default_rng((SEED_AUGMENT, *seed))
            augmentation = Augmentation.draw(generator, self.config.stain_jitter)
        parts = self._parts(augmentation)
        pale = 0
        for place in (Place(slot, attempt) for attempt in range(MAX_TRIES)):
            try:
                proposal = self._propose(draw, rng, tumour, place)
                if proposal is None:
                    continue
                if place in draw.ruling.rejected:
                    pale += draw.ruling.rejected[place]
                    continue
                pixels = self.reader.read(proposal.pair, partial(proposal.read, parts=parts))
            except BadSlideError as error:
                draw.failures[error.pair.name] = Failure(error.pair.name, error.reason, place)
                continue
            if pixels is None:
                continue
            sums = None
            if pale < MAX_PALE and parts[0] is not None:
                sums = contrast_sums(pixels.image, parts[0].top)
            elif pale < MAX_PALE and contrast_is_low(pixels.image):
                pale += 1
                continue
            _write(augmentation, pixels, image_out, label_out)
            size_l0 = self.reader.geometry(proposal.pair)[0]
            patch = PatchInfo(proposal.pair.name, proposal.x_l0, proposal.y_l0, size_l0, pixels.shown.tumour)
            return Look(place, patch, sums, pixels.claim)
        failed = {failure.slide: failure.reason for failure in draw.failures.values()}
        raise SamplerError(
            f"batch {draw.index}: {MAX_TRIES} patches were drawn and none was suitable: their labels did not show "
            f"what was wanted, or less than --min_known {self.config.min_known:g} of a patch is known; failed slides: "
            f"{failed}"
        )

    def _propose(self, draw: _Draw, rng: np.random.Generator, tumour: bool, place: Place) -> Proposal | None:
        """Return a proposal that may be read; None to draw again. A slide that fails is noted in `draw`."""
        ruled, skip = draw.ruling.failure_at(place), draw.skip | draw.failures.keys()
        if ruled is not None:
            draw.failures[ruled.slide] = ruled
            if ruled.proposing:
                return None
        before = rng.bit_generator.state
        try:
            proposal = self.propose(rng, tumour, skip, place.attempt >= MAX_NEAR)
        except BadSlideError as error:
            rng.bit_generator.state = before  # how far a rank has come must not decide what comes next
            draw.failures[error.pair.name] = Failure(error.pair.name, error.reason, place, proposing=True)
            return None
        return None if ruled is not None else proposal

    def _parts(self, augmentation: Augmentation | None) -> list[Part | None]:
        """Return the part of a patch that this rank reads, then the others'; None means the whole patch."""
        strip, size = self.config.strips, self.config.img_size
        if strip.is_whole:
            return [None]
        parts = [
            augmentation.source_of(*rows, size) if augmentation is not None else Part(*rows, 0, size)
            for rows in strip.strips
        ]
        return [parts[strip.member], *parts[: strip.member], *parts[strip.member + 1 :]]


@dataclass
class _Draw:
    """What the patches of a batch have in common while they are drawn."""

    index: int
    skip: set[str]
    failures: dict[str, Failure]  # by slide
    ruling: Ruling


def _write(
    augmentation: Augmentation | None, pixels: Pixels, image_out: np.ndarray, label_out: np.ndarray
) -> None:
    if augmentation is None:
        np.copyto(image_out, pixels.image)
        np.copyto(label_out, pixels.label)
    else:
        augmentation.image(pixels.image, image_out)
        augmentation.label(pixels.label, label_out)
