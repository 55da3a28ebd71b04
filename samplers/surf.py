"""The SURF sampler: patches around points of the tumour and of the other tissue, found on a thumbnail.

First a slide is drawn (each with the same chance), then a pixel of its thumbnail (a cell), then a point in the cell.
The patch is centred on the point and moved so that it lies inside the slide. The fraction batch_tumor_ratio of the
patches contains tumour, the others contain none.

Every patch that meets tumour has the same chance to be a tumour patch. Patches centred on tumour would teach the model
that tumour is in the middle and, at 256 pixels, that 4 of 5 pixels are tumour: with --batch_tumor_ratio 1 on
camelyon16_like the model then calls most of the other tissue tumour as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from samplers import kept
from samplers.draw import DrawingSampler, Proposal
from samplers.labels.label_map import shows_tumour
from samplers.pairs.pairing import SlidePair
from samplers.patches import SamplerConfig, SamplerError, share_slides
from samplers.reader import OpenPair, Overview, overview
from samplers.slides.cache import BoundedCache
from samplers.tissue import PixelSet, cells_without, window_sums, windows_of

# Of the slides whose regions are kept, each at most 0.3 MB (CAMELYON16 at level 7): enough for 500 of them.
MAX_REGION_BYTES = 160 << 20
_TUMOUR, _FREE = 1, 2  # bits of a cell
_MIN_KEPT = 64 << 20  # pixels of level 0; the thumbnail of a smaller slide is read as quickly as a file


@dataclass(frozen=True)
class Regions:
    """The places of a slide where patches can be centred, as pixels of its thumbnail (cells)."""

    cell: tuple[float, float]  # (width, height) of a cell in level-0 pixels
    tumour: PixelSet  # cells around which a patch may meet tumour; for small patches, cells that contain it
    free: PixelSet  # cells of tissue around which a patch meets no tumour

    @property
    def nbytes(self) -> int:
        return self.tumour.nbytes + self.free.nbytes


def find_regions(opened: OpenPair, level: int) -> Regions:
    """Find the regions of a slide on its overview at `level`. Those of a large slide are kept for other processes."""
    places = _kept_places(opened, level)
    height, width = places.shape
    cell = opened.slide.width / width, opened.slide.height / height
    return Regions(cell, PixelSet(places & _TUMOUR > 0), PixelSet(places & _FREE > 0))


def _kept_places(opened: OpenPair, level: int) -> np.ndarray:
    slide, label = opened.slide.path, opened.pair.label
    if opened.slide.width * opened.slide.height < _MIN_KEPT:
        return _places(opened, level)
    try:
        sources = kept.state_of(slide), kept.state_of(label)
    except OSError:
        return _places(opened, level)
    matters = level, opened.size_l0, opened.min_known, astuple(opened.label_map)
    return kept.kept_array(kept.name_of("regions", sources, matters), lambda: _places(opened, level))


def _places(opened: OpenPair, level: int) -> np.ndarray:
    """Return of each cell whether a _TUMOUR patch and a _FREE one can be centred in it: uint8 (h, w)."""
    view = overview(opened, level)
    slide_l0 = (opened.slide.width, opened.slide.height)
    free = cells_without(view.tumour, view.cell, opened.size_l0, slide_l0)
    tumour = view.tumour if _is_small(opened.size_l0, view.cell) else ~free
    known = known_enough(view, opened)
    return (tumour & known) * np.uint8(_TUMOUR) | (free & view.tissue & known) * np.uint8(_FREE)


def known_enough(view: Overview, opened: OpenPair) -> np.ndarray:
    """Return the cells around which a patch may be known enough (`OpenPair.min_known`): bool (h, w).

    The patch centred on the cell must be so by half, as far as the thumbnail shows it; the patch that is drawn is
    looked at again.
    """
    if not opened.min_known:
        return np.ones_like(view.known)
    starts_l0 = [
        np.clip((np.arange(cells) + 0.5) * side - opened.size_l0 / 2, 0, extent - opened.size_l0)
        for cells, side, extent in zip(
            view.known.shape, view.cell[::-1], (opened.slide.height, opened.slide.width)
        )
    ]
    starts_t, stops_t = windows_of(starts_l0, opened.size_l0, view.cell)
    area_t = np.multiply.outer(stops_t[0] - starts_t[0], stops_t[1] - starts_t[1])
    return np.asarray(window_sums(view.known, starts_t, stops_t) >= opened.min_known / 2 * area_t)


def _is_small(size_l0: int, cell: tuple[float, float]) -> bool:
    """Return whether patches are smaller than a cell.

    Then too few of the patches around a cell with a little tumour would meet the tumour (at the limit, one in nine).
    """
    return size_l0 < max(cell)


class SurfSampler(DrawingSampler):
    """Draws patches as the module says. `pairs` are all training slides; a rank draws from its share of them.

    If no slide of the share has the wanted kind of patch, the rank draws it from the other slides. Raises SamplerError
    if no slide has it.
    """

    def __init__(self, pairs: Sequence[SlidePair], config: SamplerConfig, rank: int, size: int) -> None:
        super().__init__(config, rank)
        self._own = share_slides(pairs, rank, size, config.seed)
        own = set(self._own)
        self._others = [pair for pair in pairs if pair not in own]
        self._regions: BoundedCache[SlidePair, Regions] = BoundedCache(MAX_REGION_BYTES)

    def propose(
        self, rng: np.random.Generator, tumour: bool, skip: Collection[str], anywhere: bool = False
    ) -> Proposal | None:
        wanted = "tumour" if tumour else "none"
        pair, regions = self._draw_slide(rng, wanted, skip, anywhere)
        cells = regions.free if wanted == "none" else regions.tumour
        state = rng.bit_generator.state

        def point_of(opened: OpenPair) -> tuple[float, float] | None:
            rng.bit_generator.state = state  # a second attempt to read draws the same point
            return _point(opened, regions.cell, cells, wanted, rng)

        point = self.reader.read(pair, point_of)
        return point and self.centred(pair, *point, wanted)

    def _draw_slide(
        self, rng: np.random.Generator, wanted: str, skip: Collection[str], anywhere: bool
    ) -> tuple[SlidePair, Regions]:
        """Return the first slide, in a random order, that has the wanted kind: all of those have the same chance."""
        for pairs in ([*self._own, *self._others],) if anywhere else (self._own, self._others):
            for i in rng.permutation(len(pairs)):
                pair = pairs[i]
                if pair.name in skip or (wanted == "tumour" and pair.label is None):
                    continue
                regions = self._regions_of(pair)
                if len(regions.tumour if wanted == "tumour" else regions.free):
                    return pair, regions
        kind = (
            "tumour"
            if wanted == "tumour"
            else f"room for a tumour-free patch of {self.config.img_size} pixels"
        )
        raise SamplerError(
            f"no training slide has {kind}, but batch_tumor_ratio {self.config.batch_tumor_ratio} wants it"
            + (f" (unreadable slides: {', '.join(sorted(skip))})" if skip else "")
        )

    def _regions_of(self, pair: SlidePair) -> Regions:
        regions = self._regions.get(pair)
        if regions is None:
            level = self.config.bb_downsample
            regions = self.reader.read(pair, lambda opened: find_regions(opened, level))
            self._regions.put(pair, regions, regions.nbytes)
        return regions


def _point(
    opened: OpenPair, cell: tuple[float, float], cells: PixelSet, wanted: str, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Return a random point (x, y) in one of the cells, in level-0 pixels.

    For small patches with tumour it is the centre of a tumour pixel in the cell, or None if there is none.
    """
    x_t, y_t = cells.draw(rng)
    if wanted == "none" or not _is_small(opened.size_l0, cell):
        dx, dy = rng.random(2)
        return (x_t + dx) * cell[0], (y_t + dy) * cell[1]
    left, top = int(x_t * cell[0]), int(y_t * cell[1])
    right, bottom = np.ceil(((x_t + 1) * cell[0], (y_t + 1) * cell[1])).astype(int)
    width, height = min(right, opened.slide.width) - left, min(bottom, opened.slide.height) - top
    ys, xs = np.nonzero(shows_tumour(opened.label.read_at(left, top, int(width), int(height), 1.0)))
    if not len(xs):
        return None  # an outline touches the cell, but the centre of no pixel is inside
    chosen = int(rng.integers(len(xs)))
    return left + int(xs[chosen]) + 0.5, top + int(ys[chosen]) + 0.5
