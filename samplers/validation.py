"""The fixed patches of the validation: a grid over the lesions and the other tissue of each slide.

The list depends on the slides and the configuration, not on the number of ranks; rank r reads [r::size] of it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import astuple, replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from samplers.agreement import NO_RULING, Failure, Filled, Look, Place, Ruling
from samplers.labels.label_map import shows_tumour
from samplers.pairs.known import known_of
from samplers.pairs.pairing import SlidePair
from samplers.patches import SEED_VALIDATION, PatchInfo, SamplerConfig, name_seed
from samplers.reader import BadSlideError, OpenPair, PairReader, overview
from samplers.slides.errors import DataError
from samplers.slides.part import Part
from samplers.tissue import window_sums, windows_of
from utils.ranks.single import ALONE, Ranks
from utils.reporting.progress_bar import shown

MIN_TISSUE = 0.1  # fraction of a patch; less if no patch of the slide has so much
MIN_OTHERS = 8  # patches without lesion per slide; as many as there are lesion patches if those are more

Item = tuple[SlidePair, PatchInfo]

log = logging.getLogger(__name__)


def validation_patches(pairs: Sequence[SlidePair], config: SamplerConfig, ranks: Ranks = ALONE) -> list[Item]:
    """Collective: return the patches of a grid that have a lesion, and as many others with tissue (at least 8 a slide).

    A patch must be known enough, as config.min_known says and as far as the thumbnail shows it.

    There are at most config.max_validation_patches, taken from the slides in turn and, within a slide, alternately with
    and without lesion. `PatchInfo.tumour` is what the thumbnail shows. Each rank looks at its share of the slides, and
    all have the same list. A slide that cannot be read is left out with a warning. Raises DataError if more slides
    cannot be read than config.bad_slides_allowed, or all, or if there is nothing to validate.
    """
    in_order = sorted(pairs, key=lambda p: str(p.slide))
    options = [config.img_size, config.resolution, config.bb_downsample, config.min_known, config.seed,
               config.max_validation_patches, astuple(config.label_map)]  # fmt: skip
    found = known_of(
        "validation",
        options,
        in_order,
        ranks,
        lambda mine: _grids(mine, config),
        _Grid.to_json,
        _Grid.from_json,
    )
    bad, allowed = (
        [grid.failure for grid in found.values() if grid.failure],
        config.bad_slides_allowed(len(pairs)),
    )
    if len(bad) > allowed or len(bad) == len(pairs):
        listed = "\n".join(f"  validation slide {failure}" for failure in bad)
        raise DataError(
            f"{len(bad)} of {len(pairs)} validation slides could not be read, {allowed} are allowed "
            f"(--max_bad_slides):\n{listed}"
        )
    turns = [
        item
        for turn in zip_longest(*([(pair, patch) for patch in grid.patches] for pair, grid in found.items()))
        for item in turn
        if item is not None
    ]
    if not turns:
        raise DataError(f"there is neither tissue nor a lesion on the {len(pairs)} validation slides")
    kept = turns[: config.max_validation_patches]
    return sorted(kept, key=lambda item: (str(item[0].slide), item[1].y_l0, item[1].x_l0))


class _Grid(NamedTuple):
    """The patches that may be taken of a slide, the first ones first, or why it cannot be read."""

    patches: list[PatchInfo]
    failure: str = ""

    def to_json(self) -> list[tuple[int, int, int, bool]] | None:
        if self.failure:
            return None
        return [(patch.x_l0, patch.y_l0, patch.size_l0, patch.tumour) for patch in self.patches]

    @classmethod
    def from_json(cls, pair: SlidePair, value: list[tuple[int, int, int, bool]]) -> _Grid:
        return cls([PatchInfo(pair.name, *place) for place in value])


def _grids(pairs: Sequence[SlidePair], config: SamplerConfig) -> dict[SlidePair, _Grid]:
    reader = PairReader(config)
    grids = {}
    for pair in shown(pairs, "thumbnails of the validation", "slide"):
        try:
            patches = reader.read(pair, lambda opened: _patches(opened, config))
            grids[pair] = _Grid(patches[: config.max_validation_patches])
        except BadSlideError as error:
            log.warning("bad slide, left out of the validation: %s", error)
            grids[pair] = _Grid([], str(error))
    reader.close()
    return grids


def _patches(opened: OpenPair, config: SamplerConfig) -> list[PatchInfo]:
    """Return the patches of a slide in random order, alternately with and without lesion."""
    view = overview(opened, config.bb_downsample)
    size_l0 = opened.size_l0
    # Evenly from edge to edge; neighbours overlap a little if the slide is not a multiple of the patch.
    starts_l0 = [
        np.linspace(0, extent_l0 - size_l0, -(-extent_l0 // size_l0)).astype(int)
        for extent_l0 in (opened.slide.height, opened.slide.width)
    ]
    starts_t, stops_t = windows_of(starts_l0, size_l0, view.cell)
    area_t = np.multiply.outer(stops_t[0] - starts_t[0], stops_t[1] - starts_t[1])
    lesion = window_sums(view.tumour, starts_t, stops_t) > 0
    known = window_sums(view.known, starts_t, stops_t) >= max(opened.min_known, 1e-9) * area_t
    tissue = window_sums(view.tissue, starts_t, stops_t) * (known & ~lesion)
    other = (tissue > 0) & (tissue >= np.minimum(MIN_TISSUE * area_t, tissue.max()))
    lesion &= known

    rng = np.random.default_rng((SEED_VALIDATION, config.seed, name_seed(opened.pair.name)))
    lists = []
    for mask, bound in ((lesion, None), (other, max(MIN_OTHERS, int(lesion.sum())))):
        places = rng.permutation(np.argwhere(mask))[:bound]
        lists.append([(int(starts_l0[1][x]), int(starts_l0[0][y]), bool(lesion[y, x])) for y, x in places])
    in_turn = [place for turn in zip_longest(*lists) for place in turn if place is not None]
    return [PatchInfo(opened.pair.name, x_l0, y_l0, size_l0, tumour) for x_l0, y_l0, tumour in in_turn]


class GridSampler:
    """Reads a fixed list of patches batch by batch, see `agreement.Sampler`. The last batch may be smaller."""

    def __init__(self, items: Sequence[Item], config: SamplerConfig) -> None:
        self._items = items
        self._reader = PairReader(config)
        self._part = None if config.strips.is_whole else Part(*config.strips.rows, 0, config.img_size)

    def fill(self, index: int, images: np.ndarray, labels: np.ndarray, ruling: Ruling = NO_RULING) -> Filled:
        failures: list[Failure] = []
        looks: list[Look] = []
        for slot, (pair, patch) in enumerate(self._items[index * len(images) : (index + 1) * len(images)]):
            place = Place(slot, 0)
            ruled = ruling.failure_at(place)
            if ruled is not None:
                failures.append(ruled)
                continue
            where = patch.x_l0, patch.y_l0, self._part
            try:
                label = self._reader.read(pair, lambda opened: opened.read_label(*where))  # noqa: B023
                image = self._reader.read(pair, lambda opened: opened.read_image(*where))  # noqa: B023
            except BadSlideError as error:
                failures.append(Failure(pair.name, error.reason, place))
                continue
            images[len(looks)], labels[len(looks)] = image, label
            looks.append(Look(place, replace(patch, tumour=bool(shows_tumour(label).any()))))
        return Filled([look.patch for look in looks], failures, looks)

    def drop(self, slide: str, index: int) -> None:
        """Do nothing: every validation tries the same patches, and leaves out only those that cannot be read."""
