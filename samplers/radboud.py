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
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
import shapely

from samplers import kept
from samplers.draw import Proposal
from samplers.pairs.pairing import SlidePair, map_of
from samplers.patches import SamplerConfig, SamplerError, share_slides
from samplers.reader import BadSlideError, OpenPair, trim_memory
from samplers.surf import SurfSampler

WEIGHTINGS = ("balanced", "count", "area")
POINTS = 256  # that are tried at once in the bounding box of an annotation
MAX_SPLITS = 24  # halvings of an annotation that is too thin to be hit by a random point
_MIN_KEPT = 64 << 10  # bytes of a label; a smaller one is read as quickly as what is kept of it


class RadboudSampler(SurfSampler):
    """Draws patches as the module says. `pairs` are all training slides; a rank draws tumour from its share of them.

    Tumour is what has a class above 0; annotations of class 0 are drawn only where there are no others on any slide. If
    the share has no such annotation, the rank draws from all slides. Raises SamplerError if no slide has one.
    """

    def __init__(self, pairs: Sequence[SlidePair], config: SamplerConfig, rank: int, size: int) -> None:
        super().__init__(pairs, config, rank, size)
        labelled = [pair for pair in pairs if pair.label is not None]
        self._labelled = labelled
        self._near = self._find(share_slides(labelled, rank, size, config.seed)).of_tumour()
        if not len(self._near.areas):
            self._near = self._everywhere
        if not len(self._near.areas):
            raise SamplerError(f"none of the {len(pairs)} training slides has an annotation")

    @cached_property
    def _everywhere(self) -> Annotations:
        """The annotations of all slides."""
        found = self._find(self._labelled)
        return found.of_tumour() if found.values.any() else found

    def _find(self, pairs: Sequence[SlidePair]) -> Annotations:
        """Return the annotations of slides, without their polygons. Slides that cannot be read are noted."""
        found: list[np.ndarray] = [np.empty((0, 4))]
        for number, pair in enumerate(pairs):
            try:
                classes = self._classes_of(pair)
            except BadSlideError as error:
                self.failed_at_start[pair.name] = error.reason
                continue
            count = len(classes)
            found.append(np.column_stack([np.full(count, number), np.arange(count), classes]))
        pair_of, number_of, values, areas = np.concatenate(found).T
        return Annotations(pairs, pair_of.astype(int), number_of.astype(int), values.astype(int), areas)

    def _classes_of(self, pair: SlidePair) -> np.ndarray:
        """Return class and area of each annotation of a slide: float (n, 2). Of a large label they are kept."""
        try:
            sources = kept.state_of(pair.slide), kept.state_of(pair.label)
            is_large = pair.label is not None and pair.label.stat().st_size >= _MIN_KEPT
        except OSError:
            is_large = False
        if not is_large:
            return self.reader.read(pair, _classes)
        name = kept.name_of("annotations", sources, astuple(map_of(pair, self.config.label_map)))
        return kept.kept_array(name, lambda: self.reader.read(pair, _classes))

    def propose(
        self, rng: np.random.Generator, tumour: bool, skip: Collection[str], anywhere: bool = False
    ) -> Proposal | None:
        if not tumour:
            return super().propose(rng, tumour, skip, anywhere)
        annotations = self._everywhere if anywhere else self._near
        cumulative = annotations.cumulative(self.config.annotation_weighting, frozenset(skip))
        if not cumulative[-1]:
            raise SamplerError(
                f"no slide with annotations is left, unreadable slides: {', '.join(sorted(skip))}"
            )
        chosen = int(np.searchsorted(cumulative, rng.random(), side="right"))
        chosen = min(chosen, len(cumulative) - 1)
        pair, number = annotations.pairs[annotations.pair_of[chosen]], annotations.number_of[chosen]
        polygon = self.reader.read(pair, lambda opened: opened.label.annotations()[number].polygon)
        x_l0, y_l0 = random_point(polygon, rng)
        return self.centred(pair, x_l0, y_l0, int(annotations.values[chosen]))


@dataclass
class Annotations:
    """The annotations of `pairs`: of each the number of its slide, its number there, its class, and its area."""

    pairs: Sequence[SlidePair]
    pair_of: np.ndarray  # int (n,)
    number_of: np.ndarray  # int (n,)
    values: np.ndarray  # int (n,)
    areas: np.ndarray  # float (n,), level-0 pixels

    def __post_init__(self) -> None:
        self._cumulative: dict[frozenset[str], np.ndarray] = {}  # by the skipped slides

    def of_tumour(self) -> Annotations:
        """Return those of classes above 0."""
        tumour = self.values > 0
        parts = [part[tumour] for part in (self.pair_of, self.number_of, self.values, self.areas)]
        return Annotations(self.pairs, *parts)

    def cumulative(self, weighting: str, skip: frozenset[str]) -> np.ndarray:
        """Return the cumulative chances: float (n,) that ends with 1, or all 0 if all slides are skipped."""
        if skip not in self._cumulative:
            is_left = np.array([pair.name not in skip for pair in self.pairs])[self.pair_of]
            chances = weights(weighting, self.values, self.areas, is_left) if is_left.any() else is_left * 0.0
            self._cumulative[skip] = np.cumsum(chances)
        return self._cumulative[skip]


def _classes(opened: OpenPair) -> np.ndarray:
    found = opened.label.annotations()
    trim_memory()  # a whole mask was read
    return np.array([(annotation.value, annotation.polygon.area) for annotation in found]).reshape(-1, 2)


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
