"""The Radboud sampler: patches around uniformly random points of the annotations.

First an annotation is drawn, as `annotation_weighting` says:

    balanced   a class, each with the same chance, then one of its annotations
    count      an annotation, each with the same chance
    area       an annotation, with a chance proportional to its area

then a point inside it, outside of its holes and of annotations that are painted over it. The patch is centred on the
point and moved so that it lies inside the slide. The annotations of a mask are its connected regions.

The fraction batch_tumor_ratio of the patches is drawn in this way. The others are patches without tumour from the SURF
sampler, also of slides without annotations: where only lesions are annotated, as in CAMELYON, a model that never sees
other tissue than the surroundings of lesions calls most of it tumour.
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
POINTS = 256  # that are tried at once in the bounding box of an annotation
MAX_SPLITS = 24  # halvings of an annotation that is too thin to be hit by a random point


class Entry(NamedTuple):
    pair: SlidePair
    annotation: Annotation


class RadboudSampler(SurfSampler):
    """Draws patches as the module says. `pairs` are all training slides; a rank draws tumour from its share of them.

    If the share has no annotation, the rank draws from all slides. Raises SamplerError if no slide has one.
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
        self._cumulative: dict[frozenset[str], np.ndarray] = {}  # cumulative chances, by the skipped slides

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
        skipped = frozenset(skip)
        if skipped not in self._cumulative:
            if np.isin(self._names, list(skipped)).all():
                raise SamplerError(
                    f"no slide with annotations is left, unreadable slides: {', '.join(sorted(skipped))}"
                )
            self._cumulative[skipped] = np.cumsum(self._chances(skipped))
        chosen = int(np.searchsorted(self._cumulative[skipped], rng.random(), side="right"))
        pair, annotation = self._entries[min(chosen, len(self._entries) - 1)]
        x_l0, y_l0 = random_point(annotation.polygon, rng)
        return self.centred(pair, x_l0, y_l0, annotation.value)

    def _chances(self, skipped: Collection[str]) -> np.ndarray:
        """Return the chance of each annotation: float (n,), sum 1."""
        kept = ~np.isin(self._names, list(skipped))
        return weights(self.config.annotation_weighting, self._values, self._areas, kept)


def _annotations(opened: OpenPair) -> list[Annotation]:
    found = opened.label.annotations()
    trim_memory()  # a whole mask was read
    return found


def weights(weighting: str, values: np.ndarray, areas: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the chance of each annotation by its class and area, 0 where not kept: float (n,), sum 1."""
    if weighting == "area":
        chances = areas * kept
    elif weighting == "count":
        chances = kept.astype(float)
    elif weighting == "balanced":
        counts = np.bincount(values[kept], minlength=int(values.max()) + 1)
        chances = kept / np.maximum(counts[values], 1)
    else:
        raise ValueError(f"annotation_weighting {weighting!r} is not one of {', '.join(WEIGHTINGS)}")
    return chances / chances.sum()


def random_point(area: shapely.Geometry, rng: np.random.Generator) -> tuple[float, float]:
    """Return a point (x, y), uniformly distributed in a polygon or multipolygon without its holes.

    Random points of the bounding box are tried. If none of them hits, the area is thin: it is cut into halves across
    its longer side, and one of them is chosen by its area. Both steps keep the distribution uniform.
    """
    for _ in range(MAX_SPLITS):
        left, bottom, right, top = area.bounds
        xs, ys = rng.uniform((left, bottom), (right, top), (POINTS, 2)).T
        shapely.prepare(area)  # builds an index of its edges, which stays with it
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
    # The area is thinner than the precision of its coordinates.
    point = area.representative_point()
    return point.x, point.y
