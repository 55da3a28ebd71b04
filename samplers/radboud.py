"""Radboud sampler: patches around uniformly random points of the annotations.

An annotation is drawn by `annotation_weighting`:

    balanced   each class with the same chance, then each of its annotations
    count      each annotation with the same chance
    area       by its area

then a point inside of it (not in its holes, not in what is painted over it); the patch is centred on it
and moved inside of the slide. The connected regions of a mask are its annotations.

So is batch_tumor_ratio of the patches drawn. The others are the SURF sampler's without tumour, of slides without
annotations too: where only lesions are annotated, as in CAMELYON, a model that never sees other tissue than their
surroundings calls most of it tumour.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import shapely

from samplers.draw import Proposal
from samplers.labels.label import Annotation
from samplers.pairs.pairing import SlidePair
from samplers.patches import SamplerConfig, SamplerError, share_slides
from samplers.reader import BadSlideError, OpenPair, trim_memory
from samplers.surf import SurfSampler

WEIGHTINGS = ("balanced", "count", "area")
POINTS = 256  # tried at once in an annotation's bounding box
MAX_SPLITS = 24  # halvings of an annotation that is too thin to be hit


class Entry(NamedTuple):
    pair: SlidePair
    annotation: Annotation


class RadboudSampler(SurfSampler):
    """See the module. `pairs` are all training slides: the rank draws from its share of those with a label.

    If the share has no annotation, all slides serve; if none has, SamplerError.
    """

    def __init__(self, pairs: Sequence[SlidePair], config: SamplerConfig, rank: int, size: int) -> None:
        super().__init__(pairs, config, rank, size)
        labelled = [pair for pair in pairs if pair.label is not None]
        self._entries = self._find(share_slides(labelled, rank, size, config.seed)) or self._find(labelled)
        if not self._entries:
            raise SamplerError(f"none of the {len(pairs)} training slides has an annotation")
        self._names = np.array([entry.pair.name for entry in self._entries])
        self._values = np.array([entry.annotation.value for entry in self._entries])
        self._areas = np.array([entry.annotation.polygon.area for entry in self._entries])
        self._cumulative: dict[frozenset[str], np.ndarray] = {}  # by the slides left out

    def _find(self, pairs: Sequence[SlidePair]) -> list[Entry]:
        entries = []
        for pair in pairs:
            try:
                annotations = self.reader.read(pair, _annotations)
            except BadSlideError as error:
                self.failed_at_start[pair.name] = error.reason
                continue
            entries += [Entry(pair, annotation) for annotation in annotations]
        return entries

    def propose(self, rng: np.random.Generator, tumour: bool, skip: Collection[str]) -> Proposal | None:
        if not tumour:
            return super().propose(rng, tumour, skip)
        left_out = frozenset(skip)
        if left_out not in self._cumulative:
            if np.isin(self._names, list(left_out)).all():
                raise SamplerError(
                    f"no slide with annotations is left, unreadable: {', '.join(sorted(left_out))}"
                )
            self._cumulative[left_out] = np.cumsum(self._chances(left_out))
        chosen = int(np.searchsorted(self._cumulative[left_out], rng.random(), side="right"))
        pair, annotation = self._entries[min(chosen, len(self._entries) - 1)]
        x_l0, y_l0 = random_point(annotation.polygon, rng)
        return self.centred(pair, x_l0, y_l0, annotation.value)

    def _chances(self, left_out: Collection[str]) -> np.ndarray:
        """Chance of each annotation: float (n,), sum 1."""
        kept = ~np.isin(self._names, list(left_out))
        return weights(self.config.annotation_weighting, self._values, self._areas, kept)


def _annotations(opened: OpenPair) -> list[Annotation]:
    found = opened.label.annotations()
    opened.release()  # a mask was read whole, in strips
    trim_memory()
    return found


def weights(weighting: str, values: np.ndarray, areas: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Chance of each annotation from its class and area, 0 where not kept: float (n,), sum 1."""
    if weighting == "area":
        chances = areas * kept
    elif weighting == "count":
        chances = kept.astype(float)
    elif weighting == "balanced":
        counts = np.bincount(values[kept], minlength=int(values.max()) + 1)
        chances = kept / np.maximum(counts[values], 1)
    else:
        raise ValueError(f"annotation_weighting {weighting!r} is none of {', '.join(WEIGHTINGS)}")
    return chances / chances.sum()


def random_point(area: shapely.Geometry, rng: np.random.Generator) -> tuple[float, float]:
    """Return (x, y) uniformly distributed in a polygon or multipolygon, not in its holes.

    Points of the bounding box are tried; if none hits, the area is thin: it is halved along its longer side,
    one half is taken by its area, and so on. Both keep the distribution uniform.
    """
    for _ in range(MAX_SPLITS):
        left, bottom, right, top = area.bounds
        xs, ys = rng.uniform((left, bottom), (right, top), (POINTS, 2)).T
        shapely.prepare(area)  # an index of its edges, kept with it
        hits = np.flatnonzero(shapely.contains_xy(area, xs, ys))
        if len(hits):
            return float(xs[hits[0]]), float(ys[hits[0]])
        if right - left > top - bottom:
            middle = (left + right) / 2
            boxes = shapely.box([left, middle], bottom, [middle, right], top)
        else:
            middle = (bottom + top) / 2
            boxes = shapely.box(left, [bottom, middle], right, [middle, top])
        halves = shapely.intersection(area, boxes)
        areas = shapely.area(halves)
        if not areas.sum():
            break
        area = halves[int(rng.random() * areas.sum() > areas[0])]
    # Thinner than the precision of its coordinates.
    point = area.representative_point()
    return point.x, point.y
